"""The league of remedies: every one at the same budget of steps, on the same seeds, on three test beds.

python -m vqnotes.studies.remedies --seeds 32 --steps 600   writes the long table into the folder you are in
make league                                                   puts it where `long_table` reads it
"""

import argparse
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from vqnotes import data, metrics, models, training
from vqnotes._checks import check_columns
from vqnotes._files import replaced
from vqnotes._printing import say
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies.codes import AffineCodes, CosineCodes, SimVQ
from vqnotes.remedies.gradients import DiVeQ, RotationTrick
from vqnotes.remedies.losses import EntropyLoss, OrthogonalCodes
from vqnotes.remedies.replacement import CodeExpiry, LeastRecentlyUsed, OnlineClustering, RandomRestart
from vqnotes.remedies.residual import ResidualVQ, Several
from vqnotes.remedies.scalar import FSQ, LFQ
from vqnotes.studies import sweeps

__all__ = [
    "BEDS",
    "CODES",
    "RANKED",
    "REMEDIES",
    "ExpiryRotation",
    "Remedy",
    "compete",
    "long_table",
    "measures",
    "modes",
    "table",
    "trained",
]

CODES, LR, BATCH = 64, 5e-3, 128
LONG = Path(__file__).with_name("remedies.csv")


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
RANKED = ("tokens", "digits")  # the beds of the long league
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
    """The measures of one remedy on one bed, one dict a seed, with the milliseconds that a step took a run.

    Raises KeyError for an unknown remedy or bed.
    """
    start = time.perf_counter()
    entered = trained(remedy, bed, seeds, steps)
    spent = {"ms a step": 1000 * (time.perf_counter() - start) / steps / len(entered)}
    return [measures(*pair) | spent for pair in entered]


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


def long_table() -> pd.DataFrame:
    """The runs of the long league that comes with the module: 32 seeds, more steps (`make league`)."""
    return pd.read_csv(LONG)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vqnotes.studies.remedies", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each (default: 2)")
    parser.add_argument("--out", type=Path, default=LONG.name, help="the table (default: %(default)s, here)")
    options = parser.parse_args()
    settings = sweeps.grid(bed=RANKED, remedy=REMEDIES)
    run, seeds = partial(compete, steps=options.steps), range(10_000, 10_000 + options.seeds)
    with ProcessPoolExecutor(options.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        runs = sweeps.sweep(run, settings, seeds=seeds, executor=pool)
    if runs.attrs["failed"]:
        raise SystemExit("some runs failed: nothing was written")
    with replaced(options.out) as beside:
        runs.drop(columns="ms a step").round(4).to_csv(beside, index=False)
    for bed in RANKED:
        say(bed, table(runs, bed).round(3).to_string())


if __name__ == "__main__":
    main()
