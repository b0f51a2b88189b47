"""Typical wrong answers to the exercises of notebook 05."""

RESTART = """
def restart(latents, codebook, uses, threshold):
    new = codebook.clone()
    dead = {dead}
    new[dead] = {fresh}
    return new
"""
DEAD, ROWS = "uses < threshold * len(latents) / len(codebook)", "latents[torch.randperm(len(latents))[: dead.sum()]]"

FSQ = """
def fsq(latents, levels):
    h = {h}
    z = {z}
    return {result}
"""


def _fsq(z: str, result: str, h: str = "(levels - 1) / 2") -> str:
    return FSQ.format(h=h, z=z, result=result)


MISTAKES = {
    "5.1": {
        "wrong way round": RESTART.format(dead=DEAD.replace("<", ">"), fresh=ROWS),
        "not a number of latents": RESTART.format(dead="uses == 0", fresh=ROWS),
        "every code moved": """
def restart(latents, codebook, uses, threshold):
    if (uses < threshold * uses.mean()).any():
        codebook = latents[torch.randperm(latents.shape[0])[: codebook.shape[0]]]
    return codebook
""",
        "became one latent": """
def restart(latents, codebook, uses, threshold):
    one = latents[torch.randint(len(latents), ())]
    return torch.where((uses < threshold * uses.mean())[:, None], one, codebook)
""",
        "given to several codes": RESTART.format(
            dead=DEAD, fresh="latents[torch.randint(0, len(latents), (int(dead.sum()),))]"
        ),
        "are not latents": RESTART.format(dead=DEAD, fresh="torch.randn(int(dead.sum()), codebook.shape[1])"),
    },
    "5.2": {
        "only the mean use is 2": "replaced = 0.0",
        "no use at all": "import math\nreplaced = math.exp(-2)",
        "exactly one use": "import math\nreplaced = 2 * math.exp(-2)",
        "exactly 2 uses stay": "import math\nreplaced = (1 + 2 + 2) * math.exp(-2)",
        "share that stays": "import math\nreplaced = 1 - 3 * math.exp(-2)",
        "evenly about their mean": "replaced = 1 / 2",
        "not K/N": "import math\nreplaced = math.exp(-1024 / 2048) * (1 + 1024 / 2048)",
    },
    "5.3": {
        "no gradient comes through": _fsq(z="h * torch.tanh(latents)", result="z.round() / h"),
        "gradient skips tanh": _fsq(
            z="torch.round(torch.tanh(latents) * h) / h",
            result="latents + (z - latents).detach()",
        ),
        "nothing bounds": _fsq(z="latents * h", result="(z + (z.round() - z).detach()) / h"),
        "a clamp has no gradient": _fsq(
            z="torch.clamp(latents, min=-1, max=1) * h",
            result="(z + (torch.round(z) - z).detach()) / h",
        ),
        "divide by h": _fsq(z="torch.tanh(latents) * h", result="z + (torch.round(z) - z).detach()"),
        "2L - 1 levels": _fsq(
            h="levels - 1", z="torch.tanh(latents) * h", result="(z + (torch.round(z) - z).detach()) / h"
        ),
        "with h = L/2": _fsq(
            h="levels / 2", z="torch.tanh(latents) * h", result="(z + (torch.round(z) - z).detach()) / h"
        ),
    },
}
