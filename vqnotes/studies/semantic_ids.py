"""Semantic IDs: an item's name is its tuple of residual codes. Which training gives each item a name of its own?

python -m vqnotes.studies.semantic_ids --out build/semantic_ids --table semantic_ids.csv

trains what the folder lacks, and writes the table. All arms get the same models, items, batches and steps; each
differs from the random start in one thing, or from the untrained k-means in one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vqnotes import metrics, models, training
from vqnotes.diagnosis.collisions import collisions
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies.gradients import RotationTrick
from vqnotes.remedies.replacement import CodeExpiry
from vqnotes.remedies.residual import LevelDropout, ResidualVQ
from vqnotes.studies import next_items, parts
from vqnotes.studies.item_names import appended, dealt_out, name_measures
from vqnotes.studies.items import Items, digit_items, text_items, tree_items

__all__ = [
    "ARMS",
    "Arm",
    "BalancedCodes",
    "Naming",
    "SETTINGS",
    "examine",
    "named_for_sessions",
    "names_of",
    "residual_kmeans",
    "stored_names",
    "trained_names",
]

TABLE = Path(__file__).with_name("semantic_ids.csv")
DIM, WIDTH, LR, BATCH, STEPS = 16, 64, 5e-3, 256, 400
SEEDS = range(10_000, 10_008)


# ---------------------------------------------------------------- quantisers


class BalancedCodes(VectorQuantizer):
    """Balanced assignment in training: each code gets about as many latents of a batch as the others.

    By entropic optimal transport between latents and codes (Sinkhorn's algorithm), as LC-Rec (arXiv:2311.09049) has
    it for the last level: the plan has even sums of rows and of columns, and a latent gets the code with its largest
    share. Costs are squared distances, less what a row or a column has in common, over their mean. In evaluation it
    is the nearest code, as ever: a latent is alone then.
    sharpness: the larger, the nearer the plan is to the cheapest one, and the slower it becomes even.
    Raises ValueError for a sharpness not above 0 or fewer than one round.
    """

    def __init__(self, *size: int, sharpness: float = 20.0, rounds: int = 10, **options: Any):
        super().__init__(*size, **options)
        if not 0 < sharpness < float("inf") or rounds < 1:
            raise ValueError(f"need sharpness > 0 and at least one round, got {sharpness} and {rounds}")
        self.sharpness, self.rounds = sharpness, rounds

    def assign(self, latents: Tensor, codes: Tensor) -> Tensor:
        if not self.training:
            return super().assign(latents, codes)
        z, codes = latents.detach().reshape(-1, self.dim), codes.detach()
        costs = codes.square().sum(1) - 2 * z @ codes.T
        costs = costs - costs.amin(dim=1, keepdim=True)  # what a row or a column has in common changes no plan
        costs = costs - costs.amin(dim=0)
        weights = (-self.sharpness * costs / costs.mean().clamp_min(1e-30)).exp().clamp_min(1e-20)
        of_codes = torch.ones_like(weights[0])
        for _ in range(self.rounds):
            of_latents = 1 / (weights @ of_codes)
            of_codes = len(z) / len(codes) / (of_latents @ weights)
        return (weights * of_codes).argmax(dim=1).reshape(latents.shape[:-1])


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Arm:
    """What differs from the random start. warmup: share of the steps. last: of the last level alone."""

    init: str = "uniform"
    warmup: float = 0.0
    kind: type[VectorQuantizer] = VectorQuantizer
    options: dict[str, Any] = field(default_factory=dict)
    stack: type[ResidualVQ] = ResidualVQ
    last: type[VectorQuantizer] | None = None


QUICK = {"memory": 0.9}
ARMS = {
    "random start": Arm(),
    "untrained k-means": Arm("kmeans"),
    "warm-up": Arm("kmeans", 0.5),
    "rotation trick": Arm(kind=RotationTrick),
    "level dropout": Arm(stack=LevelDropout),
    "balanced": Arm(kind=BalancedCodes),
    "balanced, last level": Arm(last=BalancedCodes),
    "expiry": Arm(kind=CodeExpiry, options=QUICK),
    "k-means, rotation": Arm("kmeans", kind=RotationTrick),
    "k-means, dropout": Arm("kmeans", stack=LevelDropout),
    "k-means, balanced last": Arm("kmeans", last=BalancedCodes),
    "k-means, expiry": Arm("kmeans", kind=CodeExpiry, options=QUICK),
}


def trained_names(
    arm: str, items: Sequence[Items], sizes: Sequence[int], *, seeds: Iterable[int], steps: int = STEPS
) -> list[models.VQAutoencoder]:
    """One autoencoder a seed, with a residual quantiser of the given sizes, trained as the arm says.

    items: those of each seed, all of one shape. sizes: K of each level. Raises KeyError for an unknown arm, and
    ValueError as `training.fit_many`.
    """
    chosen, dim = ARMS[arm], items[0].x.shape[1]

    def build(seed: int) -> models.VQAutoencoder:
        quantizer = chosen.stack(sizes, DIM, kind=chosen.kind, **chosen.options)
        if chosen.last:
            quantizer.stages[-1] = chosen.last(sizes[-1], DIM)
        return models.mlp_autoencoder(dim, quantizer, width=WIDTH, decoder_width=WIDTH)

    plan: dict[str, Any] = {"init": chosen.init, "warmup": int(chosen.warmup * steps), "steps": steps, "lr": LR}
    found = training.fit_many(build, [one.x for one in items], seeds=seeds, batch_size=BATCH, progress=False, **plan)
    return [model for model, _ in found]


# ---------------------------------------------------------------- names


class Naming(NamedTuple):
    """Names of items. index: (N, S). error: of the items rebuilt from their names, over their variance.

    dealt: the names (N, S) after `item_names.dealt_out`, and their error; None and NaN where more items share a
    prefix than the last level has codes.
    """

    index: Tensor  # type: ignore[assignment]  # a tuple has a method of that name
    error: float
    dealt: Tensor | None
    dealt_error: float


@torch.no_grad()
def names_of(model: models.VQAutoencoder, items: Items) -> Naming:
    """The names that a model gives to items, in evaluation, and those after `dealt_out`; see `Naming`."""
    model.eval()
    quantizer, latents = model.quantizer, model.encode(items.x)
    index = quantizer(latents).index
    before = [stage.decode(own) for stage, own in zip(quantizer.stages[:-1], index.unbind(-1))]
    left = latents - torch.stack(before).sum(dim=0) if before else latents

    def error(names: Tensor) -> float:
        return metrics.reconstruction_error(model.decode(quantizer.decode(names)), items.x)

    try:
        dealt = dealt_out(index, left, quantizer.stages[-1].codes())
    except ValueError:  # more items share a prefix than there are codes
        return Naming(index, error(index), None, np.nan)
    return Naming(index, error(index), dealt, error(dealt))


@torch.no_grad()
def residual_kmeans(items: Items, sizes: Sequence[int], seed: int) -> models.VQAutoencoder:
    """Residual codes by k-means on the items as they are, level after level: a model without a network.

    Its encoder and decoder change nothing. Raises ValueError as `kmeans`.
    """
    quantizer = ResidualVQ(sizes, items.x.shape[1])
    quantizer.init_codes("kmeans", items.x, seed)
    return models.VQAutoencoder(torch.nn.Identity(), quantizer, torch.nn.Identity())


# ---------------------------------------------------------------- the study

SIZES = {"tree": (256, 256, 256), "digits": (64, 64, 64), "text": (256, 256, 256)}
LAST_LEVEL = (1, 4, 16, 64, 256)  # codes of the last level, where names are to collide more or less
FIRST_LEVELS = (32, 32)
RECOMMENDED = {  # the names that recommenders predict, and how many codes the last level has
    **{f"last level of {size}": size for size in LAST_LEVEL},
    "number appended": 1,
    "last level dealt out": 256,
    "names drawn at random": 256,
    "ids": 0,
}
SESSIONS, LENGTH, TESTED, KS = 8000, 4, 1000, (1, 10)

SETTINGS = [{"part": "names", "items": one, "arm": arm, "steps": STEPS} for one in SIZES for arm in ARMS]
SETTINGS += [{"part": "names", "items": one, "arm": "residual k-means", "steps": 0} for one in SIZES]
SETTINGS += [{"part": "next item", "items": "small tree", "arm": names, "steps": 500} for names in RECOMMENDED]


def examine(part: str, items: str, arm: str, steps: int) -> list[dict[str, Any]]:
    """The rows of one setting of `SETTINGS`, one a seed. Raises KeyError for one that is not among them."""
    found = _next_item(arm, steps) if part == "next item" else _names(items, arm, steps)
    setting = {"part": part, "items": items, "arm": arm, "steps": steps}
    return [{**setting, "seed": seed, **row} for seed, row in zip(SEEDS, found, strict=True)]


def _names(name: str, arm: str, steps: int) -> list[dict[str, float]]:
    items, sizes = _items(name), SIZES[name]
    if arm == "residual k-means":
        made = [residual_kmeans(one, sizes, seed) for one, seed in zip(items, SEEDS)]
    else:
        made = trained_names(arm, items, sizes, seeds=SEEDS, steps=steps)
    found = []
    for model, one in zip(made, items):
        naming = names_of(model, one)
        row = name_measures(naming.index, one.tree, sizes) | {
            "error": naming.error,
            "dealt error": naming.dealt_error,
        }
        if naming.dealt is not None:
            row["renamed"] = (naming.dealt != naming.index).any(dim=1).double().mean().item()
        found.append(row)
    return found


def _items(name: str) -> list[Items]:
    """Those of each seed: another tree for each, or the same digits or text."""
    if name == "tree":
        return [tree_items(seed) for seed in SEEDS]
    return [{"digits": digit_items, "text": text_items}[name]()] * len(SEEDS)


def named_for_sessions(arm: str, items: Items, seed: int) -> tuple[Tensor, list[int]]:
    """Names (N, S) of `RECOMMENDED`, all from residual k-means, and how many codes each level has.

    Raises KeyError for others, and ValueError as `dealt_out`.
    """
    last, count = RECOMMENDED[arm], len(items.x)
    if arm == "ids":
        return torch.arange(count)[:, None], [count]
    sizes = [*FIRST_LEVELS, last]
    if arm == "names drawn at random":
        drawn = torch.randperm(int(np.prod(sizes)), generator=torch.Generator().manual_seed(seed))[:count]
        return torch.stack(torch.unravel_index(drawn, tuple(sizes)), dim=1), sizes
    naming = names_of(residual_kmeans(items, sizes, seed), items)
    if arm == "last level dealt out":
        if naming.dealt is None:
            raise ValueError(f"more than {last} of the items of seed {seed} share a prefix")
        return naming.dealt, sizes
    names = appended(naming.index[:, :2]) if arm == "number appended" else naming.index
    return names, [*sizes[:2], int(names[:, -1].max()) + 1]


def _next_item(arm: str, steps: int) -> list[dict[str, float]]:
    items = [tree_items(seed, 1024, 8, 8) for seed in SEEDS]
    chances = [next_items.chances_of_next(one.tree, seed=seed) for one, seed in zip(items, SEEDS)]
    heard, tested = (
        [next_items.sessions_of(own, count, LENGTH, seed + shift) for own, seed in zip(chances, SEEDS)]
        for count, shift in ((SESSIONS, 0), (TESTED, 10**6))
    )
    naming = [named_for_sessions(arm, one, seed) for one, seed in zip(items, SEEDS)]
    sizes = np.max([own for _, own in naming], axis=0).tolist()
    names = [own for own, _ in naming]
    recommenders = next_items.fit_recommenders(names, sizes, heard, seeds=SEEDS, steps=steps, batch_size=64)
    found = []
    for recommender, own, sessions, truth in zip(recommenders, names, tested, chances):
        recalls = next_items.recall_at(recommender, own, sizes, sessions, KS)
        ceilings = [next_items.recall_ceiling(truth[sessions[:, -2]], own, k) for k in KS]
        row = {f"recall {k}": recall for k, recall in zip(KS, recalls)}
        row |= {f"ceiling {k}": ceiling for k, ceiling in zip(KS, ceilings)}
        met = collisions(own)
        found.append({"sharing": met.sharing, "tuples": met.tuples, "largest": met.largest, **row})
    return found


def stored_names() -> pd.DataFrame:
    """The table that comes with the module, a row a seed: see `SETTINGS` and `item_names.name_measures`."""
    return pd.read_csv(TABLE)


if __name__ == "__main__":
    parts.command("python -m vqnotes.studies.semantic_ids", __doc__.splitlines()[0], examine, SETTINGS)
