"""Typical wrong answers to the exercises of notebook 08."""

REVIVE = """
def revive(codebook, sums, counts, dead, fresh):
    codebook, sums, counts = codebook.clone(), sums.clone(), counts.clone()
    {}
    return codebook, sums, counts
"""

WEIGHTS = """
def weights_in_effect(loss, latents, chosen):
    z, e = latents.detach().clone(), chosen.detach().clone()
    z.requires_grad, e.requires_grad = True, True
    loss(z, e).backward()
    unit = {unit}
    way = latents - chosen
    return {result}
"""
MEAN = "2 * (latents - chosen) / latents.numel()"
DOT = "(z.grad * unit).sum() / (unit * unit).sum(), (e.grad * -unit).sum() / (unit * unit).sum()"

MISTAKES = {
    "8.1": {
        "suspect the instrument": 'reports = "fad"',
        "more collapsed for small batches": 'reports = "aad"',
        "no threshold acts": 'reports = "cbb"',
        "bugs leave exact traces": 'reports = "edd"',
        "takes a whole training": 'reports = "ebd"',
        "keeps perplexity up": 'reports = "eca"',
        "stay as large as they were": 'reports = "eed"',
        "look for arithmetic": 'reports = "eaf"',
        "does not heal by itself": 'reports = "eaa"',
        "shrink codes at the first step": 'reports = "eab"',
        "in use from the first steps on": 'reports = "eac"',
        "three letters are asked for": 'reports = "1e 2a"',
    },
    "8.2": {
        "have not heard of it": REVIVE.format("codebook[dead] = fresh"),
        "sums are new and counts old": REVIVE.format("codebook[dead] = sums[dead] = fresh"),
        "counts are new and sums old": REVIVE.format("codebook[dead], counts[dead] = fresh, 1.0"),
        "a count of 0": REVIVE.format("codebook[dead], sums[dead], counts[dead] = fresh, fresh, 0.0"),
        "codebook itself": REVIVE.format("sums[dead], counts[dead] = fresh, 1.0"),
        "lost their counts": REVIVE.format("codebook[dead] = sums[dead] = fresh; counts.fill_(1)"),
    },
    "8.3": {
        "the two are swapped": WEIGHTS.format(unit=MEAN, result="tuple(reversed([" + DOT + "]))"),
        "lengths have no sign": WEIGHTS.format(
            unit=MEAN, result="z.grad.norm() / unit.norm(), e.grad.norm() / unit.norm()"
        ),
        "the value of the loss": """
def weights_in_effect(loss, latents, chosen):
    value, term = loss(latents, chosen), ((latents - chosen) ** 2).mean()
    return value / term, value / term
""",
        "twice too large": WEIGHTS.format(unit=MEAN.replace("2 * ", ""), result=DOT),
        "number of elements": WEIGHTS.format(unit="2 * (latents - chosen)", result=DOT),
        "number of latents": WEIGHTS.format(
            unit="2 * (latents - chosen) / latents.shape[1]", result="(z.grad / unit).mean(), -(e.grad / unit).mean()"
        ),
        "the second is turned": WEIGHTS.format(unit=MEAN, result="(z.grad / unit).mean(), (e.grad / unit).mean()"),
    },
}
