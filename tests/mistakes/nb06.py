"""Typical wrong answers to the exercises of notebook 06."""

DIMENSION = """
def code_dimension(codebook, index):
    rows = {rows}
    rows = rows - {mean}
    held = {spread}
    held = torch.cumsum(held, 0) / held.sum()
    return {count}
"""
RIGHT = {
    "rows": "codebook[index]",
    "mean": "rows.mean(dim=0)",
    "spread": "torch.linalg.svdvals(rows) ** 2",
    "count": "int(torch.searchsorted(held, torch.tensor(0.99))) + 1",
}

WAIT = """
def wait(variances, bits, c, s0):
    level = water_filling(variances, bits).level
    paid = [float(v) for v in variances if v > level]
    return {time}
"""

MISTAKES = {
    "6.1": {
        "that is the water level": "least_error = 2",
        "though its variance is 1": "least_error = 3 * 2",
        "still has an error": "least_error = 2 + 2",
        "all three share": "least_error = 3 * (256 / 64) ** (1 / 3)",
        "one bit for each": "least_error = (32 + 8 + 1) / 4",
        "all bits for the first": "least_error = 32 / 4**3 + 8 + 1",
        "by 4: its bits": "least_error = 2 * (256 / 8) ** 0.5 + 1",
        "not by 2": "least_error = 32 / 2**2 + 8 / 2 + 1",
    },
    "6.2": {
        "all codes count alike": DIMENSION.format(**RIGHT | {"rows": "codebook"}),
        "however often it is used": DIMENSION.format(**RIGHT | {"rows": "codebook[torch.unique(index)]"}),
        "mean was not subtracted": DIMENSION.format(**RIGHT | {"mean": "0"}),
        "variances are their squares": DIMENSION.format(**RIGHT | {"spread": "torch.linalg.svdvals(rows)"}),
        "one too few": DIMENSION.format(**RIGHT | {"count": "int((held < 0.99).sum())"}),
    },
    "6.3": {
        "weakest direction of all": WAIT.format(time="math.log((1 - s0) / s0) / (c * float(variances.min()))"),
        "strongest direction only": WAIT.format(time="math.log((1 - s0) / s0) / (c * max(paid))"),
        "exactly at the level": WAIT.format(time="math.log((1 - s0) / s0) / (c * level)"),
        "leaves out the factor": WAIT.format(time="-math.log(s0) / (c * min(paid))"),
        "growth without a limit": WAIT.format(time="math.log(1 / (2 * s0)) / (c * min(paid))"),
        "side by side": WAIT.format(time="sum(math.log((1 - s0) / s0) / (c * v) for v in paid)"),
        "rate c is missing": WAIT.format(time="math.log((1 - s0) / s0) / min(paid)"),
    },
}
