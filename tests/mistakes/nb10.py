"""Typical wrong answers to the exercises of notebook 10."""

CROSSING = """
def crossing(sizes, untrained, warm_up):
    x, y = {x}, {y}
    n = int((y > 0).float().argmax())
    t = {t}
    return {result}
"""
LOGS, EXACT = "torch.log(untrained / warm_up)", "y[n - 1] / (y[n - 1] - y[n])"


def _crossing(x="sizes.log2()", y=LOGS, t=EXACT, result="2 ** (x[n - 1] + t * (x[n] - x[n - 1]))"):
    return CROSSING.format(x=x, y=y, t=t, result=result)


LINE = "x[n - 1] + t * (x[n] - x[n - 1])"

MISTAKES = {
    "10.1": {
        "GiB": "gigabytes = 2**19 * 2**14 * 4 / 1024**3",
        "number of distances": "gigabytes = 524288 * 16384 / 1e9",
        "8 is float64": "gigabytes = 524288 * 16384 * 8 / 1e9",
        "2 is half precision": "gigabytes = 524288 * 16384 * 2 / 1e9",
        "whatever D is": "gigabytes = 524288 * 16384 * 8 * 4 / 1e9",
        "latents themselves": "gigabytes = 524288 * 8 * 4 / 1e9",
    },
    "10.2": {
        "first size at which warm-up is ahead": _crossing(result="sizes[n]"),
        "last size at which warm-up is behind": _crossing(result="sizes[n - 1]"),
        "the middle between": _crossing(t="0.5"),
        "the axis of K is logarithmic too": _crossing(x="sizes", result=LINE),
        "joins differences of errors": _crossing(y="untrained - warm_up"),
        "both axes are logarithmic": _crossing(x="sizes", y="untrained - warm_up", result=LINE),
        "to the base 2": _crossing(result=LINE),
        "take exp of it": _crossing(x="sizes.log()", result=LINE),
    },
    "10.3": {
        "at the end only": """
def resume(parts, saved, train):
    new = {}
    for part in parts:
        if part not in saved:
            new[part] = train(part)
    saved.update(new)
    return [saved[part] for part in parts]
""",
        "trained again": """
def resume(parts, saved, train):
    for part in parts:
        saved[part] = train(part)
    return [saved[part] for part in parts]
""",
        "taken for none": """
def resume(parts, saved, train):
    for part in parts:
        if not saved.get(part):
            saved[part] = train(part)
    return [saved[part] for part in parts]
""",
        "entered before": """
def resume(parts, saved, train):
    for part in parts:
        if part in saved:
            continue
        saved[part] = float("nan")
        saved[part] = train(part)
    return [saved[part] for part in parts]
""",
        "only the new results": """
def resume(parts, saved, train):
    results = []
    for part in parts:
        if part not in saved:
            saved[part] = train(part)
            results.append(saved[part])
    return results
""",
        "order in which they were saved": """
def resume(parts, saved, train):
    for part in parts:
        if part not in saved:
            saved[part] = train(part)
    return list(saved.values())
""",
    },
}
