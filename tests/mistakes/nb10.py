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

STEPS = """
def steps_needed(steps, perplexity, goal):
    x, y = {x}, {y}
    slope = torch.cov(torch.stack([x, y]))[0, 1] / x.var()
    return {end}
"""


def _steps(x="steps.log()", y="perplexity.log()", end="torch.exp({place})", goal="math.log(goal)"):
    place = f"x.mean() + ({goal} - y.mean()) / slope"
    return STEPS.format(x=x, y=y, end=end.format(place=place))


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
        "straight on plain axes": _steps(x="steps", y="perplexity", end="{place}", goal="goal"),
        "only the axis of the steps": _steps(y="perplexity", goal="goal"),
        "only the axis of perplexity": _steps(x="steps", end="{place}"),
        "joins the first look and the last": """
def steps_needed(steps, perplexity, goal):
    power = torch.log(perplexity[-1] / perplexity[0]) / torch.log(steps[-1] / steps[0])
    return steps[0] * (goal / perplexity[0]) ** (1 / power)
""",
        "starts from the last look": _steps(end="steps[-1] * (goal / perplexity[-1]) ** (1 / slope)"),
        "to grow as the steps do": """
def steps_needed(steps, perplexity, goal):
    return steps[-1] * goal / perplexity[-1]
""",
        "fits steps against perplexity": _steps(
            x="perplexity.log()", y="steps.log()", end="torch.exp(y.mean() + slope * (math.log(goal) - x.mean()))"
        ),
        "to the base 2": _steps(x="steps.log2()", y="perplexity.log2()", end="{place}", goal="math.log2(goal)"),
        "take exp of it": _steps(end="{place}"),
    },
}
