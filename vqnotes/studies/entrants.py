"""Who enters the season of the league: those that notebook 05 trains and others, each with three values to try.

The published or default value of an option is among its three; a remedy without an option of its own has those of the
commitment's weight, beta. The budget is one of trials and steps, not of time: a wider encoder costs more of it.
All have 64 codes, whatever their size is; groups must divide the dimensions, so some of them have 9 or 6 of those.
"""

from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies.choices import GumbelVQ, IndexBackpropagation, StochasticVQ
from vqnotes.remedies.codes import SimVQ
from vqnotes.remedies.gradients import DiVeQ, RotationTrick
from vqnotes.remedies.losses import DecorrelatedCodes, KernelLoss
from vqnotes.remedies.product import ProductVQ
from vqnotes.remedies.replacement import CodeSplitting, OnlineClustering
from vqnotes.remedies.residual import LevelDropout
from vqnotes.remedies.scalar import BSQ
from vqnotes.studies.remedies import BATCH, CODES, QUICK, REMEDIES, Remedy

__all__ = ["ENTRANTS", "DimVQ", "Entrant", "GroupedVQ", "SplitDiVeQ"]


class SplitDiVeQ(CodeSplitting, DiVeQ):
    """DiVeQ with the replacement that its authors always have beside it."""


class DimVQ(DecorrelatedCodes, SimVQ):
    """The regulariser of DimVQ on SimVQ, where its authors have it."""


class GroupedVQ(ProductVQ):
    """Product quantisation whose groups share one codebook: the heads of vector-quantize-pytorch."""

    def __init__(self, stages: tuple[int, ...], dim: int, **options: Any):
        super().__init__(stages, dim, **options)
        self.shared = self.stages[0]
        del self.stages
        self.stages = (self.shared,) * len(stages)  # no modules of this one, so that `fit_many` finds it once

    def init_codes(self, how: str, latents: Tensor | None = None, seed: int = 0) -> None:
        pieces = None if latents is None else torch.cat([piece.flatten(0, -2) for piece in self.pieces(latents)])
        self.shared.init_codes(how, pieces, seed)


class Entrant(NamedTuple):
    """A remedy and three values of its main option: one of the quantiser's, or a field of `Remedy`."""

    remedy: Remedy
    option: str
    values: tuple

    @property
    def own(self) -> Any:
        """The value that it has where none is chosen, a default or one of `REMEDIES`."""
        one: Any = self.remedy
        if self.option not in {field.name for field in fields(Remedy)}:
            with torch.random.fork_rng(devices=[]):
                one = self.remedy.kind(*self.remedy.size, **self.remedy.options)
        value = one.limit(BATCH) if self.option == "patience" else getattr(one, self.option)
        return tuple(value) if isinstance(value, list) else value

    def with_value(self, value: Any) -> Remedy:
        """The remedy with another value of its option."""
        if self.option in {field.name for field in fields(Remedy)}:
            return replace(self.remedy, **{self.option: value})
        return replace(self.remedy, options=self.remedy.options | {self.option: value})


BETAS = ("beta", (0.1, 0.25, 1.0))
WARMUPS, EXPIRY = ("warmup", (0.25, 0.5, 0.75)), ("threshold", (0.03, 0.1, 0.3))
TEMPERATURES, MEMORIES = ("sampling_temperature", (0.1, 0.3, 1.0)), ("memory", (0.9, 0.97, 0.99))
GRIDS = ("entropy_weight", (0.02, 0.1, 0.5))
STAGES = ("size", (((8, 8), 8), ((4, 4, 4), 8), ((2,) * 6, 8)))
GROUPS = ("size", (((8, 8), 8), ((4, 4, 4), 9), ((2,) * 6, 6)))  # each must divide the dimensions

TUNED: dict[str, tuple[str, tuple]] = {  # of the league as it stands
    "plain": BETAS,
    "data start": BETAS,
    "k-means start": BETAS,
    "warm-up, k-means": WARMUPS,
    "larger encoder": ("wider", (2, 4, 8)),
    "cosine, 4 dimensions": ("size", ((CODES, 2), (CODES, 4), (CODES, 8))),
    "SimVQ": BETAS,
    "affine": ("affine_decay", (0.9, 0.99, 0.999)),
    "rotation trick": BETAS,
    "DiVeQ": ("variance", (1e-6, 1e-3, 5e-3)),
    "orthogonality": ("orthogonal_weight", (1.0, 10.0, 100.0)),
    "entropy": ("entropy_weight", (0.01, 0.1, 1.0)),
    "EMA": ("decay", (0.8, 0.9, 0.99)),
    "random restart": ("threshold", (0.25, 0.5, 1.0)),
    "expiry": EXPIRY,
    "LRU": ("patience", (10, 20, 40)),
    "CVQ": MEMORIES,
    "FSQ": ("levels", ((8, 8), (4, 4, 4), (16, 4))),
    "LFQ": GRIDS,
    "residual": STAGES,
    "expiry + rotation": EXPIRY,
    "warm-up + expiry": WARMUPS,
}
NEW = {
    "DiVeQ + replacement": Entrant(Remedy(SplitDiVeQ), "interval", (20, 50, 100)),
    "SimVQ, published": Entrant(
        Remedy(SimVQ, {"bias": True, "start": "linear"}, init=None), "beta", (1.0, 4.0, 16.0)
    ),
    "rotation + EMA": Entrant(Remedy(RotationTrick, {"update": "ema"}), "decay", (0.8, 0.9, 0.99)),
    "CVQ, probrandom": Entrant(Remedy(OnlineClustering, QUICK | {"anchor": "probrandom"}), *MEMORIES),
    "product": Entrant(Remedy(ProductVQ), *GROUPS),
    "grouped": Entrant(Remedy(GroupedVQ), *GROUPS),
    "kernel rule": Entrant(Remedy(KernelLoss), "kernel_weight", (0.001, 0.01, 0.1)),
    "index backpropagation": Entrant(Remedy(IndexBackpropagation, init="normal"), *BETAS),
    "Gumbel": Entrant(Remedy(GumbelVQ, init="normal"), *TEMPERATURES),  # codes all but equal are drawn alike
    "stochastic": Entrant(Remedy(StochasticVQ), *TEMPERATURES),
    "binary spherical": Entrant(Remedy(BSQ, size=(6,)), *GRIDS),
    "higher codebook rate": Entrant(Remedy(VectorQuantizer), "rate", (3.0, 10.0, 30.0)),
    "DimVQ": Entrant(  # the last weight pulls as hard as the authors' on their 65,536 codes
        Remedy(DimVQ, init=None), "decorrelation_weight", (10.0, 100.0, 1e-3 * (65536 / CODES) ** 2)
    ),
    "quantiser dropout": Entrant(Remedy(LevelDropout), *STAGES),
}
ENTRANTS = {name: Entrant(REMEDIES[name], *tuned) for name, tuned in TUNED.items()} | NEW
