"""Typical wrong answers to the exercises of notebook 07."""

COVERAGE = """
import torch

def share_covered(real, generated, k):
    radii = {radii}
    inside = torch.cdist(real, generated) <= {limit}
    return {result}
"""
RADII, SHARE = "torch.cdist(real, real).topk(k + 1, largest=False).values[:, -1]", "inside.any(dim=1).float().mean()"


def _coverage(radii: str = RADII, limit: str = "radii[:, None]", result: str = SHARE) -> str:
    return COVERAGE.format(radii=radii, limit=limit, result=result)


BITS = """
import torch, math

def bits(logits, index):
    chance = torch.softmax(logits, dim=-1)
    picked = torch.stack([chance[n, torch.arange(len(row)), row] for n, row in enumerate(index)])
    return {result}
"""

MISTAKES = {
    "7.1": {
        "its own nearest neighbour": _coverage(radii=RADII.replace("k + 1", "k")),
        "(precision)": _coverage(result="inside.any(dim=0).float().mean()"),
        "(recall)": _coverage(radii=RADII.replace("(real, real)", "(generated, generated)"), limit="radii[None]"),
        "that is density": _coverage(result="inside.sum() / (k * len(generated))"),
        "mean over all pairs": _coverage(result="inside.float().mean()"),
        "give their share": _coverage(result="int(inside.any(dim=1).sum())"),
    },
    "7.2": {
        "squared distance": "left = 0.81",
        "ask what is left": "left = 0.19",
        "root of what is lost": "left = 0.19 ** 0.5",
        "their roots cannot": "left = 1 - 0.19 ** 0.5",
        "half of the loss": "left = 0.905",
        "a mean is smoother": "left = 1.19 ** 0.5",
        "the distances shrink": "left = 1.0",
    },
    "7.3": {
        "these are nats: divide": BITS.format(result="-torch.log(picked).sum(dim=1).mean()"),
        "these are bits a code": BITS.format(result="-torch.log2(picked).mean()"),
        "these are nats a code": """
import torch

def bits(logits, index):
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), index.flatten())
""",
        "all images together": BITS.format(result="-torch.log2(picked).sum()"),
        "the sign is missing": BITS.format(result="torch.log2(picked).sum(dim=1).mean()"),
        "shifted by one place": """
import math, torch

def bits(logits, index):
    lost = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), index[:, 1:], reduction="none")
    return lost.sum(dim=1).mean() / math.log(2)
""",
        "a softmax over the codes is missing": """
import math, torch

def bits(logits, index):
    scores = torch.stack([logits[n, torch.arange(len(row)), row] for n, row in enumerate(index)])
    return -scores.sum(dim=1).mean() / math.log(2)
""",
    },
}
