"""Typical wrong answers to the exercises of notebook 11."""

GREEDY = """
def greedy(costs):
    taken, codes = set(), {{}}
    for item in {order}:
        ranking = costs[item].argsort(descending={descending}).tolist()
        codes[item] = next(code for code in ranking if {free})
        taken.add(codes[item])
    return torch.tensor([codes[item] for item in range(len(costs))])
"""


def _greedy(order="range(len(costs))", descending=False, free="code not in taken"):
    return GREEDY.format(order=order, descending=descending, free=free)


def _sharers(result, prepare="index"):
    return f"""
def sharers(index):
    index = {prepare}
    rows = [tuple(row) for row in index.tolist()]
    return {result}
"""


MASK = "torch.tensor([rows.count(row) > 1 for row in rows])"

MISTAKES = {
    "11.1": {
        "alone with their name": "share = (4095 / 4096) ** 1023",
        "nobody sees to it": "share = 0",
        "leaves out one item of each name": "share = 1 - 4 * (1 - (4095 / 4096) ** 1024)",
        "chances of 1,023 pairs": "share = 1023 / 4096",
        "not in percent": "share = 100 - 100 * (4095 / 4096) ** 1023",
    },
    "11.2": {
        "first item of each name": _sharers(
            "torch.tensor([rows.index(row) < place for place, row in enumerate(rows)])"
        ),
        "a name of their own": _sharers("torch.tensor([rows.count(row) == 1 for row in rows])"),
        "its last code alone": _sharers(MASK, "index[:, 2:]"),
        "its first code alone": _sharers(MASK, "index[:, :1]"),
        "the order of codes counts": _sharers(
            "torch.tensor([sum(sorted(row) == sorted(one) for one in rows) > 1 for row in rows])"
        ),
        "one sum of codes": _sharers(MASK, "index.sum(1)[:, None]"),
        "an entry a name": _sharers("torch.tensor([rows.count(row) > 1 for row in sorted(set(rows))])"),
        "a mask is asked for": _sharers("sum(rows.count(row) > 1 for row in rows) / len(rows)"),
    },
    "11.3": {
        "taken or not": _greedy(free="True"),
        "last item is served first": _greedy(order="reversed(range(len(costs)))"),
        "cheapest code is served first": _greedy(order="costs.min(1).values.argsort().tolist()"),
        "cheapest of all ways": "from scipy.optimize import linear_sum_assignment\n"
        "def greedy(costs):\n    return torch.tensor(linear_sum_assignment(costs.numpy())[1])",
        "the dearest code": _greedy(descending=True),
    },
}
