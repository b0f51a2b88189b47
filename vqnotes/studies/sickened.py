"""Small models that are made healthy or made ill, for the studies that follow them up: `advice` and `watching`.

That a model has what it was made to have is confirmed by interventions that the diagnosis knows nothing of. Two
copies train their decoder on, with the encoder held: one keeps its codes, the other has new ones, by k-means on its
own latents. If new codes help, the codebook was at fault.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vqnotes import data, models, training
from vqnotes.kmeans import kmeans
from vqnotes.metrics import reconstruction_error
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies.replacement import CodeExpiry
from vqnotes.studies import remedies as league

__all__ = [
    "CASES",
    "Case",
    "confirmed",
    "decoders_trained_on",
    "floor",
    "inputs_of",
    "made",
    "pace",
    "with_decoders_trained_on",
]

FAMILIES = ("modes", "digits", "photographs")
STEPS, DECODER_STEPS, DIM, WIDTH = 300, 150, 8, 64
MOST_POINTS = 8192  # that codes are placed on


@dataclass(frozen=True)
class Case:
    """One way to make a model: what it then has, and what was done. warmup: a share of the steps."""

    label: str
    kind: Callable = VectorQuantizer
    options: dict = field(default_factory=dict)
    init: str = "kmeans"
    warmup: float = 0.5


EMA = {"update": "ema"}
CASES = {
    "plain": Case("healthy"),
    "EMA": Case("healthy", options=EMA),
    "expiry": Case("healthy", CodeExpiry, {"memory": 0.9}),
    "U(±1/K)": Case("token collapse", init="uniform", warmup=0),
    "N(0, 1)": Case("token collapse", init="normal", warmup=0),
    "k-means untrained, EMA": Case("token collapse", options=EMA, warmup=0),
    "U(±1/K) after warm-up": Case("token collapse", init="uniform"),
}


def inputs_of(family: str, seed: int) -> data.LabelledData:
    """The data of a family; of photographs 300 crops of 32 x 32 pixels, without labels.

    Raises ValueError for an unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {FAMILIES}, got {family!r}")
    if family == "photographs":
        crops = data.random_crops(data.photographs(), 300, 32, seed=seed)
        return data.LabelledData(crops, None)  # type: ignore[arg-type]  # all other data have labels
    return data.digit_vectors() if family == "digits" else league.modes(seed)


def pace(family: str) -> dict:
    """Batch size and learning rate, as options of `fit`."""
    photographs = family == "photographs"
    pace = {"batch_size": 16, "lr": 3e-3} if photographs else {"batch_size": league.BATCH, "lr": league.LR}
    return pace | {"progress": False}


def made(
    seeds: Sequence[int], case: str, codes: int, steps: int = STEPS, callback: Callable | None = None
) -> list[tuple]:
    """One model a seed with its data, which are modes, trained: [(data, model)].

    codes: K. callback: as `fit_many` calls it. Raises KeyError for an unknown case.
    """
    how, sets = CASES[case], [inputs_of("modes", seed) for seed in seeds]

    def build(seed: int) -> models.VQAutoencoder:
        return models.mlp_autoencoder(sets[0].x.shape[1], how.kind(codes, DIM, **how.options), width=WIDTH)

    plan = {"init": how.init, "warmup": int(how.warmup * steps), "steps": steps} | pace("modes")
    runs = training.fit_many(build, [one.x for one in sets], seeds=seeds, callback=callback, **plan)
    return [(one, model) for one, (model, _) in zip(sets, runs)]


def with_decoders_trained_on(entered: list[tuple], family: str, init: str | None, steps: int) -> list[tuple]:
    """Copies whose decoder alone learnt for some more steps, after `init` of the codes: [(data, model)], as entered.

    entered: as from `made`.
    """
    copies = [copy.deepcopy(model) for _, model in entered]

    def hold(step: int, runs: list) -> None:
        for model in runs:
            model.encoder.requires_grad_(False)
            model.quantizer.requires_grad_(False).eval()

    xs, seeds = [one.x for one, _ in entered], range(len(entered))
    plan = {"init": init, "steps": steps, "callback": hold} | pace(family)
    runs = training.fit_many(lambda seed: copies[seed], xs, seeds=seeds, **plan)
    return [(one, model) for (one, _), (model, _) in zip(entered, runs)]


def decoders_trained_on(entered: list[tuple], family: str, init: str | None, steps: int) -> list[float]:
    """Their relative errors, one `metrics.reconstruction_error` a model. Arguments as `with_decoders_trained_on`."""
    trained = with_decoders_trained_on(entered, family, init, steps)
    return [reconstruction_error(models.evaluate(model, one.x).reconstruction, one.x) for one, model in trained]


def floor(x: Tensor, codes: int) -> float:
    """Relative error of as many codes placed by k-means on the inputs x (N, P)."""
    points = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:MOST_POINTS]]
    centroids, _ = kmeans(points, codes)
    return ((points - centroids[nearest_code(points, centroids)]).square().mean() / x.var(correction=0)).item()


def confirmed(table: pd.DataFrame) -> pd.Series:
    """Whether the interventions agree with the label, "healthy" or "token collapse": one truth value a row.

    New codes help where they take the error down to less than 1 / 1.1 of that of a copy that kept its codes and
    trained its decoder as long; they make no difference within 5 %, and what lies between confirms nothing. A healthy
    model has an error below 1.4 times the floor, and the floor is below a quarter of the variance.
    """
    cured, damage = table["same codes"] / table["new codes"], table["same codes"] / table["floor"]
    holds = {
        "healthy": (cured > 0.95) & (cured < 1.05) & (damage < 1.4) & (table["floor"] < 0.25),
        "token collapse": cured >= 1.1,
    }
    return pd.Series(np.select([table["label"] == name for name in holds], list(holds.values()), False), table.index)
