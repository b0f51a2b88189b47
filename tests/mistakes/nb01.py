"""Typical wrong answers to the exercises of notebook 01."""

MISTAKES = {
    "1.1": {
        "D times too small": """
def relative_error(latents, codebook):
    index = torch.cdist(latents, codebook).argmin(dim=1)
    squares = (latents - codebook[index]) ** 2
    return squares.mean() / latents.var(dim=0).sum()
""",
        "D times too large": """
def relative_error(latents, codebook):
    index = torch.cdist(latents, codebook).argmin(dim=1)
    squares = (latents - codebook[index]) ** 2
    return squares.sum(dim=1).mean() / latents.var(dim=0).mean()
""",
        "all numbers at once": """
def relative_error(latents, codebook):
    index = torch.cdist(latents, codebook).argmin(dim=1)
    return torch.nn.functional.mse_loss(codebook[index], latents) / torch.var(latents)
""",
        "not from the origin": """
def relative_error(latents, codebook):
    index = torch.cdist(latents, codebook).argmin(dim=1)
    error = (latents - codebook[index]).norm(dim=1) ** 2
    return error.sum() / (latents**2).sum()
""",
        "that is the distortion": """
def relative_error(latents, codebook):
    differences = latents[:, None] - codebook
    return (differences**2).sum(-1).min(dim=1).values.mean().item()
""",
        "that is the mean distance": """
def relative_error(latents, codebook):
    index = torch.cdist(latents, codebook).argmin(dim=1)
    distances = (latents - codebook[index]).norm(dim=1)
    return distances.mean() / latents.var(dim=0, correction=0).sum()
""",
        "nearest to each code": """
def relative_error(latents, codebook):
    differences = latents[:, None] - codebook
    squares = (differences**2).sum(-1).min(dim=0).values
    return squares.mean() / latents.var(dim=0, correction=0).sum()
""",
    },
    "1.2": {
        "those are the bits": "codes_needed = 16 * math.log2(4) / 2",
        "what one dimension needs": "codes_needed = 2 ** (math.log2(4) / 2)",
        "divided the error by K": "codes_needed = 1 / 0.25",
        "half of the variance": "codes_needed = 256",
        "do not add up": "codes_needed = 2 * 16",
        "factor 2 is missing": "codes_needed = 4**16",
    },
    "1.3": {
        "fed the code": """
def gradients(z, e, slope, target, beta):
    error = slope * z - target
    return 2 * error * slope + 2 * beta * (z - e), 2 * (e - z)
""",
        "gets nothing from the reconstruction": """
def gradients(z, e, slope, target, beta):
    arriving = 2 * (slope * e - target) * slope
    return arriving + 2 * beta * (z - e), arriving + 2 * (e - z)
""",
        "at the wrong term": """
def gradients(z, e, slope, target, beta):
    arriving = 2 * (slope * e - target) * slope
    return arriving + 2 * (z - e), beta * 2 * (e - z)
""",
        "without the stop gradients": """
import torch

def gradients(z, e, slope, target, beta):
    z, e = torch.tensor([z, e], requires_grad=True).unbind()
    q = e.detach() + (z - z.detach())
    loss = (slope * q - target) ** 2 + (z - e) ** 2 + beta * (e - z) ** 2
    return torch.autograd.grad(loss, (z, e))
""",
        "z gets no gradient from the reconstruction": """
def gradients(z, e, slope, target, beta):
    return 2 * beta * (z - e), 2 * (e - z)
""",
        "leaves straight-through out": """
import torch

def gradients(z, e, slope, target, beta):
    z, e = torch.tensor(z, requires_grad=True), torch.tensor(e, requires_grad=True)
    loss = (slope * e - target) ** 2 + (z.detach() - e) ** 2 + beta * (e.detach() - z) ** 2
    loss.backward()
    return z.grad, e.grad
""",
        "chain rule": """
def gradients(z, e, slope, target, beta):
    return 2 * (slope * e - target) + 2 * beta * (z - e), 2 * (e - z)
""",
        "factor 2": """
def gradients(z, e, slope, target, beta):
    return slope * (slope * e - target) + beta * (z - e), e - z
""",
        "wrong sign": """
def gradients(z, e, slope, target, beta):
    arriving = 2 * (slope * e - target) * slope
    return arriving + 2 * beta * (e - z), 2 * (z - e)
""",
        "swapped": """
def gradients(z, e, slope, target, beta):
    of_e = 2 * (e - z)
    of_z = 2 * (slope * e - target) * slope - beta * of_e
    return of_e, of_z
""",
        "direction of descent": """
def gradients(z, e, slope, target, beta):
    return 2 * slope * (target - slope * e) + 2 * beta * (e - z), 2 * (z - e)
""",
    },
    "1.5": {
        "farthest away": """
def quantize(latents, codebook, beta):
    index = (-torch.cdist(latents, codebook)).argmin(dim=1)
    chosen = codebook[index]
    pull, hold = ((chosen - latents.detach()) ** 2).mean(), ((latents - chosen.detach()) ** 2).mean()
    return latents + (chosen - latents).detach(), index, pull + beta * hold
""",
        "straight-through is missing": """
def quantize(latents, codebook, beta):
    index = torch.cdist(latents, codebook).argmin(dim=1)
    chosen = codebook[index]
    pull, hold = ((chosen - latents.detach()) ** 2).mean(), ((latents - chosen.detach()) ** 2).mean()
    return chosen, index, pull + beta * hold
""",
        "the codes get the gradient": """
def quantize(latents, codebook, beta):
    index = torch.cdist(latents, codebook).argmin(dim=1)
    chosen = codebook[index]
    pull, hold = ((chosen - latents.detach()) ** 2).mean(), ((latents - chosen.detach()) ** 2).mean()
    return latents - latents.detach() + chosen, index, pull + beta * hold
""",
        "beta is at the wrong term": """
def quantize(latents, codebook, beta):
    index = torch.cdist(latents, codebook).argmin(dim=1)
    chosen = codebook[index]
    pull, hold = ((chosen - latents.detach()) ** 2).mean(), ((latents - chosen.detach()) ** 2).mean()
    return latents + (chosen - latents).detach(), index, beta * pull + hold
""",
        "without detach": """
def quantize(latents, codebook, beta):
    index = torch.cdist(latents, codebook).argmin(dim=1)
    chosen = codebook[index]
    far = ((chosen - latents) ** 2).mean()
    return latents + (chosen - latents).detach(), index, far + beta * far
""",
        "commitment loss is missing": """
def quantize(latents, codebook, beta):
    index = torch.cdist(latents, codebook).argmin(dim=1)
    chosen = codebook[index]
    return latents + (chosen - latents).detach(), index, ((chosen - latents.detach()) ** 2).mean()
""",
        "codebook loss is missing": """
def quantize(latents, codebook, beta):
    index = torch.cdist(latents, codebook).argmin(dim=1)
    chosen = codebook[index]
    return latents + (chosen - latents).detach(), index, beta * ((chosen.detach() - latents) ** 2).mean()
""",
    },
}
