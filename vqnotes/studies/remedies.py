"""The league of remedies: every one at the same budget of steps, on the same seeds, on three test beds.

Here are those that notebook 05 trains before the reader's eyes, what is measured of them, and how they are ranked.
The season, with more entrants and tuned options, is in `studies.tuning`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from vqnotes import data, metrics, models, training
from vqnotes._checks import check_columns
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies.codes import AffineCodes, CosineCodes, SimVQ
from vqnotes.remedies.gradients import DiVeQ, RotationTrick
from vqnotes.remedies.losses import EntropyLoss, OrthogonalCodes
from vqnotes.remedies.replacement import CodeExpiry, LeastRecentlyUsed, OnlineClustering, RandomRestart
from vqnotes.remedies.residual import ResidualVQ, Several
from vqnotes.remedies.scalar import FSQ, LFQ

__all__ = [
    "BEDS",
    "CODES",
    "RANKED",
    "REMEDIES",
    "ExpiryRotation",
    "Remedy",
    "compete",
    "measures",
    "modes",
    "standings",
    "table",
    "trained",
]

CODES, LR, BATCH = 64, 5e-3, 128


@dataclass(frozen=True)
class Remedy:
    """What is changed against the plain quantiser. size: what the class is called with, in order."""

    kind: Callable = VectorQuantizer
    options: dict = field(default_factory=dict)
    size: tuple = (CODES, 8)
    init: str | None = "uniform"
    warmup: float = 0.0  # share of the steps
    wider: int = 1  # times as many hidden units in the encoder
    rate: float = 1.0  # times the learning rate, for the quantiser's parameters


class ExpiryRotation(CodeExpiry, RotationTrick):
    """Both: dead codes start anew, gradients are rotated."""


QUICK = {"memory": 0.9}  # runs of a few hundred steps cannot wait for an average over a hundred

REMEDIES = {
    "plain": Remedy(),
    "data start": Remedy(init="data"),
    "k-means start": Remedy(init="kmeans"),
    "warm-up, k-means": Remedy(init="kmeans", warmup=0.5),
    "larger encoder": Remedy(wider=4),
    "cosine, 4 dimensions": Remedy(CosineCodes, size=(CODES, 4)),
    "SimVQ": Remedy(SimVQ, init=None),
    "affine": Remedy(AffineCodes),
    "rotation trick": Remedy(RotationTrick),
    "DiVeQ": Remedy(DiVeQ),
    "orthogonality": Remedy(OrthogonalCodes),
    "entropy": Remedy(EntropyLoss),
    "EMA": Remedy(options={"update": "ema"}),
    "random restart": Remedy(RandomRestart, QUICK),
    "expiry": Remedy(CodeExpiry, QUICK),
    "LRU": Remedy(LeastRecentlyUsed),
    "CVQ": Remedy(OnlineClustering, QUICK),
    "FSQ": Remedy(FSQ, {"levels": (4, 4, 4)}, size=()),
    "LFQ": Remedy(LFQ, size=(6,)),
    "residual": Remedy(ResidualVQ, size=((8, 8), 8)),
    "expiry + rotation": Remedy(ExpiryRotation, QUICK),
    "warm-up + expiry": Remedy(CodeExpiry, QUICK, init="kmeans", warmup=0.5),
}


def modes(seed: int) -> data.LabelledData:
    """The beds "tokens" and "starved": x (4800, 16) of 32 modes."""
    return data.gaussian_modes(modes=32, per_mode=150, dim=16, seed=seed)


Bed = tuple[Callable[[int], data.LabelledData], int]
RANKED = ("tokens", "digits")  # where there is something to rank
BEDS: dict[str, Bed] = {  # data, width of the encoder
    "tokens": (modes, 64),
    "digits": (lambda seed: data.digit_vectors(), 64),
    "starved": (modes, 2),
}


def trained(
    remedy: str | Remedy, bed: str | Bed, seeds: Iterable[int], steps: int, **options: Any
) -> list[tuple[data.LabelledData, models.VQAutoencoder]]:
    """One model a seed, with its data: [(data, model)]. options: of `fit_many`, in place of the league's.

    remedy, bed: the name of one of the league, or one of your own. Raises KeyError for an unknown name.
    """
    chosen = REMEDIES[remedy] if isinstance(remedy, str) else remedy
    make, width = BEDS[bed] if isinstance(bed, str) else bed
    seeds = list(seeds)
    sets = [make(seed) for seed in seeds]

    def build(seed: int) -> models.VQAutoencoder:
        quantizer = chosen.kind(*chosen.size, **chosen.options)
        return models.mlp_autoencoder(sets[0].x.shape[1], quantizer, width=width * chosen.wider)

    plan: dict[str, Any] = {"init": chosen.init, "warmup": int(chosen.warmup * steps), "lr": LR, "batch_size": BATCH}
    plan |= {"codebook_lr": None if chosen.rate == 1 else chosen.rate * LR}
    plan |= {"steps": steps, "seeds": seeds, "progress": False}
    runs = training.fit_many(build, [one.x for one in sets], **(plan | options))
    return [(one, model) for one, (model, _) in zip(sets, runs)]


def measures(one: data.LabelledData, model: models.VQAutoencoder) -> dict[str, float]:
    """What the league compares, by name: each is explained where `metrics` computes it; codes in effect as a share.

    The gap is between the quantiser's codes and k-means, both on the latents as the quantiser sees them (`prepare`).
    """
    outcome, quantizer = models.evaluate(model, one.x), model.quantizer
    codes, index = quantizer.codes().detach(), outcome.index
    if isinstance(quantizer, Several):
        index = quantizer.joint_index(index)
    return {
        "gap": metrics.optimality_gap(quantizer.prepare(outcome.latents[:2400]), codes),
        "relative error": metrics.reconstruction_error(outcome.reconstruction, one.x),
        "usage": metrics.usage(index, CODES),
        "codes in effect": metrics.perplexity(index, CODES) / CODES,
        "effective dimension": metrics.effective_dimension(codes[index]),
        "separability": metrics.separability(outcome.latents[:1200], one.y[:1200]),
    }


def compete(seeds: Iterable[int], remedy: str, bed: str, steps: int) -> list[dict]:
    """The measures of one remedy on one bed, one dict a seed. Raises KeyError for an unknown remedy or bed."""
    return [measures(*pair) for pair in trained(remedy, bed, seeds, steps)]


def table(runs: pd.DataFrame, bed: str) -> pd.DataFrame:
    """The league of one bed: medians over seeds, one row a remedy, ranked by gap and error (mean of both ranks).

    runs: one row a run, with columns bed, remedy, seed and `measures`. Raises ValueError for a bed without runs.
    """
    check_columns(runs, "bed", "remedy", "seed", "gap", "relative error")
    if not (runs["bed"] == bed).any():
        raise ValueError(f"need runs of the bed {bed!r}, got those of {sorted(set(runs['bed']))}")
    part = runs[runs["bed"] == bed].drop(columns=["bed", "seed"])
    league = part.groupby("remedy", sort=False).median()
    league.insert(0, "rank", league[["gap", "relative error"]].rank().mean(axis=1))
    return league.sort_values("rank")


def standings(runs: pd.DataFrame, bed: str, draws: int = 2000) -> pd.DataFrame:
    """The ranks of one bed by the relative error, how sure they are, and who cannot be told apart.

    One row a remedy. error: the median over seeds. rank: 1 for the smallest. low, high:
    the middle 95 % of the ranks where seeds are drawn anew, with replacement and the same for all. group: 1 is that
    of the best, 2 that of the best who is not in 1, and so on; rows go by group, then by rank.

    With a group's first stand all that *cannot be told apart from it*: their errors less its error, seed by seed,
    have a median whose 95 % interval holds 0 (by the same draws). So whoever is in a later group is told apart from
    the first of each group before, and two of one group may still differ. Of comparisons where nothing differs, one
    in twenty finds a difference.

    runs: one row a run, with columns bed, remedy, seed and relative error, the same seeds for all.
    Raises ValueError for a bed without runs, or where a remedy lacks a seed or has it twice.
    """
    check_columns(runs, "bed", "remedy", "seed", "relative error")
    part = runs[runs["bed"] == bed]
    if part.empty or part.duplicated(["remedy", "seed"]).any():
        raise ValueError(
            f"need each seed once of the bed {bed!r}, got {len(part)} runs of {sorted(set(runs['bed']))}"
        )
    errors = part.pivot(index="seed", columns="remedy", values="relative error")
    if errors.isna().to_numpy().any():
        raise ValueError(f"every remedy needs every seed:\n{errors.notna().sum()}")
    errors = errors[errors.median().sort_values(kind="stable").index]
    drawn = np.random.default_rng(0).integers(len(errors), size=(draws, len(errors)))

    def medians(values: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame(np.median(values.to_numpy()[drawn], axis=1), columns=values.columns)

    ranks = medians(errors).rank(axis=1).quantile([0.025, 0.975])
    found = pd.DataFrame({"error": errors.median(), "rank": errors.median().rank()})
    found = found.assign(low=ranks.loc[0.025], high=ranks.loc[0.975], group=0)
    while (left := found.index[found["group"] == 0]).size:
        low, high = medians(errors[left].sub(errors[left[0]], axis=0)).quantile([0.025, 0.975]).to_numpy()
        found.loc[left[(low <= 0) & (high >= 0)], "group"] = found["group"].max() + 1
    return found.sort_values(["group", "rank"], kind="stable")
