"""Typical wrong answers to the exercises of notebook 03."""

_OVER_ALL = """
def psnr_of_batches(batches):
    total = count = 0
    for rebuilt, images in batches:
        total = total + torch.sum((rebuilt - images) ** 2).item()
        count = count + images.numel()
    return {result}
"""

_TWO_SCORES = """
def relative_separability(latents, pixels, y):
    def score(points):
        distance = ((points[:, None] - points[None]) ** 2).sum(-1)
        distance[range(len(y)), range(len(y))] = {diagonal}
        return sum(y[distance.argmin(1)] == y).item() / len(y)
    return {result}
"""

MISTAKES = {
    "3.1": {
        "batches' PSNRs": """
def psnr_of_batches(batches):
    found = []
    for rebuilt, images in batches:
        found.append(-10 * math.log10(torch.nn.functional.mse_loss(rebuilt, images)))
    return sum(found) / len(found)
""",
        "small batch weighs": """
def psnr_of_batches(batches):
    error = 0
    for rebuilt, images in batches:
        error += torch.nn.functional.mse_loss(rebuilt, images).item() / len(batches)
    return 10 * math.log10(1 / error)
""",
        "natural logarithm": _OVER_ALL.format(result="10 * math.log(count / total)"),
        "factor 20": _OVER_ALL.format(result="20 * math.log10(count / total)"),
        "factor 10": _OVER_ALL.format(result="-10 * math.log10(math.sqrt(total / count))"),
        "sign": _OVER_ALL.format(result="10 * math.log10(total / count)"),
        "sum of the squared": _OVER_ALL.format(result="-10 * math.log10(total)"),
    },
    "3.2": {
        "finds itself": """
def relative_separability(latents, pixels, y):
    hits = []
    for points in (latents, pixels):
        nearest = torch.cdist(points, points).argsort(dim=1)[:, 0]
        hits.append(torch.sum(y == y[nearest]))
    return hits[0] / hits[1]
""",
        "latents alone": _TWO_SCORES.format(diagonal="1e9", result="score(latents)"),
        "swapped": _TWO_SCORES.format(diagonal="1e9", result="score(pixels) / score(latents)"),
        "difference of": _TWO_SCORES.format(diagonal="1e9", result="score(latents) - score(pixels)"),
        "differ: count": """
def relative_separability(latents, pixels, y):
    wrong = []
    for points in (latents, pixels):
        far = torch.cdist(points, points) + 1e6 * torch.eye(len(y))
        wrong.append((y[far.argmin(dim=1)] != y).float().mean())
    return wrong[0] / wrong[1]
""",
    },
    "3.3": {
        "A's latents": 'treat_first = ("encoder", "codebook", "neither", "encoder")',
        "B's gap": 'treat_first = ("codebook", "neither", "neither", "encoder")',
        "accuracy of C": 'treat_first = ("codebook", "encoder", "encoder", "encoder")',
        "in D both": 'treat_first = ["codebook", "encoder", "neither", "codebook"]',
    },
}
