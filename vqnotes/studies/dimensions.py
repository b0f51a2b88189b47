"""Dimensions: what keeps weak directions from being learnt once a quantiser is on, and what lets them in.

python -m vqnotes.studies.dimensions --out build/dimensions --table dimensions.csv   about 20 minutes on one core

Notebook 06 calls it a lock: codes do not differ in directions in which latents hardly vary, and latents do not grow
in directions in which codes do not differ. A linear autoencoder learns 32 Gaussian numbers, whose variances fall from
1 to 0.001, with one thing changed in each arm: of the loss, of the codes, of the decoder's input, of the optimiser,
of the weights at the start, or of K. Each run is measured on fresh numbers after each of `CHECKED` steps.
Three names of figures. The *repaired* error is that of codes placed anew, by k-means on the latents of many inputs,
each decoded as the mean of its inputs. *learnt* counts directions of which decoder times encoder passes over half.
*filled* counts the directions that share the bits, `beside_inputs.dimensions_filled`.
Not run: codes refitted in each step are followed for 480 steps only, those refitted in every tenth for 4,800; losses
on the codes for 2,400; K other than 64 for 480, by SGD, from the smallest weights, with five seeds in place of eight.
SimVQ and DimVQ never start from the smallest weights without a warm-up: their codes move together, and lag behind.
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from vqnotes import metrics, models, training
from vqnotes.diagnosis.beside_inputs import dimensions_filled
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import DecorrelatedCodes, SimVQ
from vqnotes.studies import parts
from vqnotes.studies.sweeps import grid

__all__ = ["ARMS", "CHECKED", "AnothersError", "examine", "gaussian_numbers", "offline", "settings", "stored_table"]

TABLE = Path(__file__).with_name("dimensions.csv")
DIM, VARIANCES = 32, np.geomspace(1, 1e-3, 32)
SHORT, WARM = 480, 144  # steps of a run in the notebook, and of its warm-up
CHECKED = (SHORT, 5 * SHORT, 10 * SHORT)  # steps after which a long run is measured
ROWS, FRESH, ROWS_A_CODE = 16384, 8192, 16  # inputs to train on, to measure on, and at least so many a code
SEEDS, FEW = range(20_000, 20_008), range(20_000, 20_005)


class AnothersError(VectorQuantizer):
    """While it learns the decoder gets the latent plus the error (code - latent) of *another* input of the batch.

    The errors are as large as with codes, but weak directions get through. What is measured is decoded from codes.
    """

    def estimate(self, latents: Tensor, chosen: Tensor) -> Tensor:
        if not self.training:
            return super().estimate(latents, chosen)
        return latents + (chosen - latents).detach().roll(1, dims=0)


class _NetBySGD(torch.optim.Adam):
    """Plain gradient descent for the first group, the net; Adam for the second, the codes."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(self.param_groups[0]["lr"] * parameter.grad)
            parameter.grad = None  # Adam passes it over
        return super().step(closure)


class _DimVQ(DecorrelatedCodes, SimVQ):
    """The regulariser of DimVQ on SimVQ, where its authors have it."""


WEIGHTS = (1e-3, 1.0, 1049.0)  # the authors'; between; 1e-3 (65,536 / 64)^2, as hard a pull with 64 codes
EMA: dict[str, Any] = {"update": "ema", "decay": 0.9}
ARMS: dict[str, tuple[type[VectorQuantizer], dict[str, Any]]] = {  # the quantiser of each
    "reference": (VectorQuantizer, EMA),
    "beta 0": (VectorQuantizer, EMA | {"beta": 0.0}),
    "refitted each step": (VectorQuantizer, EMA),
    "refitted each tenth step": (VectorQuantizer, EMA),
    "another's error": (AnothersError, EMA),
    "gradient": (VectorQuantizer, {}),
    "SimVQ": (SimVQ, {}),
    **{f"decorrelated, {weight:g}": (DecorrelatedCodes, {"decorrelation_weight": weight}) for weight in WEIGHTS},
    **{f"DimVQ, {weight:g}": (_DimVQ, {"decorrelation_weight": weight}) for weight in WEIGHTS},
}
REFITTED = {"refitted each step": 1, "refitted each tenth step": 10}
REFITTED_ON, CODES_LR = 1024, 2e-3  # latents; learning rate of codes that a gradient moves, by Adam


@lru_cache(maxsize=2 * len(SEEDS))
def gaussian_numbers(seed: int, count: int = ROWS) -> Tensor:
    """Inputs (count, 32): independent Gaussian numbers, whose variances are VARIANCES."""
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(VARIANCES).sqrt().float() * torch.randn(count, DIM, generator=generator)


def _measured(model: models.VQAutoencoder, x: Tensor, fresh: Tensor) -> dict[str, float]:
    codes = model.quantizer.codes().detach()
    outcome, size = models.evaluate(model, fresh), len(codes)
    assert isinstance(model.encoder, nn.Linear) and isinstance(model.decoder, nn.Linear)
    passed = (model.decoder.weight @ model.encoder.weight).diagonal()
    latents = models.evaluate(model, x).latents
    placed, _ = kmeans(latents, size)
    index = nearest_code(latents, placed)
    counts = torch.bincount(index, minlength=size).clamp_min(1)[:, None]
    means = torch.zeros_like(placed).index_add_(0, index, x) / counts
    again = metrics.reconstruction_error(means[nearest_code(outcome.latents, placed)], fresh)
    gap = metrics.quantization_error(outcome.latents, codes) / metrics.quantization_error(outcome.latents, placed)
    bits = (fresh.var(0) / (fresh - outcome.reconstruction).square().mean(0)).log2().clamp_min(0) / 2
    return {
        "error": metrics.reconstruction_error(outcome.reconstruction, fresh), "repaired": again, "gap": gap,
        "d_eff of latents": metrics.effective_dimension(outcome.latents),
        "d_eff of codes": metrics.effective_dimension(codes[outcome.index.flatten()]),
        "d_eff of rows": metrics.effective_dimension(codes),
        "filled": float(dimensions_filled(bits.numpy())), "learnt": int((passed > 0.5).sum()),
        "perplexity": metrics.perplexity(outcome.index, size),
    }  # fmt: skip


def offline(K: int, seeds: Iterable[int]) -> list[dict[str, float]]:
    """k-means on the inputs: `error` on fresh ones, and `d_eff of codes`, one dict a seed. Nothing is trained."""
    rows = []
    for seed in seeds:
        x, fresh = gaussian_numbers(seed, max(ROWS, ROWS_A_CODE * K)), gaussian_numbers(seed + 500_000, FRESH)
        codes, _ = kmeans(x, K)
        nearest = codes[nearest_code(fresh, codes)]
        d_eff, error = metrics.effective_dimension(nearest), metrics.reconstruction_error(nearest, fresh)
        rows.append({"error": error, "d_eff of codes": d_eff})
    return rows


def examine(
    arm: str, optimizer: str, lr: float, size: float, K: int, warmup: int, steps: int, seeds: Iterable[int] = ()
) -> list[dict[str, Any]]:
    """Trains one setting, a run a seed; a row for each run and each of CHECKED that it reaches, or its last step.

    arm: of ARMS, or "offline", see `offline`. optimizer: "SGD" or "Adam". lr: of encoder and decoder. size: standard
    deviation of their weights at the start. warmup: steps without the quantiser. seeds: () for those of the table.
    Batches have 128 inputs, or K.
    A row has the setting, the seed, the step, and: error, repaired (both relative to the variance of the inputs), gap
    (of the codes to those placed anew), d_eff of latents, of codes (as often as used), of rows (all codes alike),
    filled, learnt, perplexity. Raises ValueError for another arm or optimiser.
    """
    if arm not in (*ARMS, "offline") or optimizer not in ("SGD", "Adam"):
        raise ValueError(f"need one of {[*ARMS, 'offline']}, and SGD or Adam: {arm!r}, {optimizer!r}")
    seeds, rows = list(seeds) or list(SEEDS if K == 64 else FEW), []
    setting = {"arm": arm, "optimizer": optimizer, "lr": lr, "size": size, "K": K, "warmup": warmup, "steps": steps}
    if arm == "offline":
        return [{**setting, "seed": seed, "step": 0} | found for seed, found in zip(seeds, offline(K, seeds))]
    (kind, options), every = ARMS[arm], REFITTED.get(arm)
    sets = [gaussian_numbers(seed, max(ROWS, ROWS_A_CODE * K)) for seed in seeds]

    def build(seed: int) -> models.VQAutoencoder:
        halves = [nn.Linear(DIM, DIM, bias=False) for _ in range(2)]
        for half in halves:
            nn.init.normal_(half.weight, std=size)
        return models.VQAutoencoder(halves[0], kind(K, DIM, **options), halves[1])

    def look(step: int, now: list[models.VQAutoencoder]) -> None:
        for one, model in zip(sets, now) if every and step >= warmup and step % every == 0 else ():
            model.quantizer.place_codes(*kmeans(model.encode(one[:REFITTED_ON]), K))
        for seed, one, model in zip(seeds, sets, now) if step in (*CHECKED, steps) else ():
            place = {**setting, "seed": seed, "step": step}
            rows.append(place | _measured(model, one, gaussian_numbers(seed + 500_000, FRESH)))

    by_sgd = torch.optim.SGD if options.get("update") == "ema" else _NetBySGD
    training.fit_many(
        build, sets, seeds=seeds, steps=steps, warmup=warmup, batch_size=max(128, K), lr=lr, codebook_lr=CODES_LR,
        optimizer=by_sgd if optimizer == "SGD" else torch.optim.Adam, callback=look, progress=False,
    )  # fmt: skip
    return rows


def settings() -> list[dict[str, Any]]:
    """All settings of the stored table: the arms, the third voice, optimiser x rate x size of the weights, and K."""
    plain: dict[str, Any] = {"optimizer": ["SGD"], "lr": [0.375], "size": [1e-3], "K": [64]}
    long, mid = {"steps": [10 * SHORT]}, {"steps": [5 * SHORT]}
    voice = [one for one in ARMS if one.startswith(("gradient", "SimVQ", "decorrelated", "DimVQ"))]
    found = grid(arm=[*list(ARMS)[:2], *list(ARMS)[3:5]], **plain, warmup=[0], **long)
    found += grid(arm=["reference"], **plain, warmup=[WARM], **long)
    found += grid(arm=["refitted each step"], **plain, warmup=[0], steps=[SHORT])
    found += grid(arm=[one for one in voice if "VQ" not in one], **plain, warmup=[0], **mid)
    found += grid(arm=voice, **plain, warmup=[WARM], **mid)
    found += grid(arm=voice, **plain | {"optimizer": ["Adam"], "lr": [2e-3], "size": [0.18]}, warmup=[0], **mid)
    for optimizer, rates in (("SGD", [0.125, 0.375]), ("Adam", [5e-4, 2e-3])):
        sizes = {"optimizer": [optimizer], "lr": rates, "size": [1e-3, 0.03, 0.18]}
        found += grid(arm=["reference"], **plain | sizes, warmup=[0], **long)
    few = {"K": [16, 256, 1024, 4096], "warmup": [0, WARM], "steps": [SHORT]}
    found += grid(arm=["reference"], **plain | few)
    found += grid(arm=["offline"], **plain | few | {"K": [16, 64, 256, 1024, 4096], "warmup": [0], "steps": [0]})
    return list({parts.name_of(one): one for one in found}.values())


def stored_table() -> pd.DataFrame:
    """The table that comes with the module: one row a run and a step of `CHECKED`, as `examine` has it."""
    return pd.read_csv(TABLE)


if __name__ == "__main__":
    parts.command("python -m vqnotes.studies.dimensions", __doc__.splitlines()[0], examine, settings())
