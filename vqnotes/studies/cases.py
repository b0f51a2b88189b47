"""How the models that `diagnose` is judged by are made: with which quantiser, from which start, with how much room.

Quantisers of vector-quantize-pytorch are made too, where it is installed; without it, they are left out.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from vqnotes.quantizers import Quantized, VectorQuantizer
from vqnotes.remedies.codes import AffineCodes, CosineCodes, SimVQ
from vqnotes.remedies.gradients import DiVeQ, RotationTrick
from vqnotes.remedies.losses import EntropyLoss, OrthogonalCodes
from vqnotes.remedies.replacement import CodeExpiry, LeastRecentlyUsed, OnlineClustering, RandomRestart
from vqnotes.remedies.residual import ResidualVQ
from vqnotes.remedies.scalar import FSQ, LFQ
from vqnotes.studies.families import BEDS, HIDDEN, at_hand

__all__ = ["CASES", "CORE", "Case", "Peer", "left_out", "seeds_of", "settings"]

PEERS = find_spec("vector_quantize_pytorch") is not None
STACKS = ("items", "photographs", "signals")  # where codes are put together, level after level


@dataclass(frozen=True)
class Case:
    """One way to make a model.

    made: what it should then have. quantizer: called with K and D. warmup: share of the steps without a quantiser.
    width: units of the encoder. dim: D, None for that of the bed. sizes: K, in place of the bed's: "few" or "all".
    beds: those that it is made on; None for all that are not slow. room: whether D can be chosen.
    """

    made: str
    quantizer: Callable[[int, int], nn.Module] = VectorQuantizer
    init: str | None = "kmeans"
    warmup: float = 0.5
    width: int = HIDDEN
    dim: int | None = None
    sizes: str = ""
    beds: tuple[str, ...] | None = None
    room: bool = True
    peer: bool = False

    @property
    def of_levels(self) -> bool:
        """Whether its codes are put together, level after level."""
        return self.beds is STACKS


def _of(kind: Callable, **options: Any) -> Callable[[int, int], nn.Module]:
    return lambda codes, dim: kind(codes, dim, **options)


def _grid(codes: int, dim: int) -> nn.Module:
    """FSQ of about so many codes."""
    return FSQ((4,) * max(1, round(math.log(codes, 4))))


def _bits(codes: int, dim: int) -> nn.Module:
    return LFQ(max(1, round(math.log2(codes))))


def _levels(codes: int, count: int) -> list[int]:
    """So many levels of equal size, which put together make about so many codes."""
    return [max(2, round(codes ** (1 / count)))] * count


def _residual(count: int, **options: Any) -> Callable[[int, int], nn.Module]:
    return lambda codes, dim: ResidualVQ(_levels(codes, count), dim, **options)


# ---------------------------------------------------------------- another library's quantisers


class Peer(nn.Module):
    """A quantiser of vector-quantize-pytorch, called as ours are: latents (N, ..., D).

    Its latents are (N, places, D) inside. kind: the name of the class there.
    """

    def __init__(self, kind: str, codes: int, dim: int, **options: Any):
        import vector_quantize_pytorch

        super().__init__()
        self.codebook_size, self.dim = codes, dim
        self.inner = getattr(vector_quantize_pytorch, kind)(dim=dim, **options)

    @property
    def by_direction(self) -> bool:
        """Whether latents and codes are compared at length 1."""
        return bool(getattr(self.inner, "use_cosine_sim", False))

    def forward(self, latents: Tensor) -> Quantized:
        value, index, loss = self.inner(latents.reshape(len(latents), -1, self.dim))
        index = index.reshape(*latents.shape[:-1], *index.shape[2:])
        return Quantized(value.reshape(latents.shape), index, loss.sum())

    def prepare(self, latents: Tensor) -> Tensor:
        """Latents (..., D) as they are compared with the codes."""
        latents = getattr(self.inner, "project_in", nn.Identity())(latents)
        return nn.functional.normalize(latents, dim=-1) if self.by_direction else latents

    def back(self, codes: Tensor) -> Tensor:
        """What was compared, or codes, as the decoder gets them."""
        return getattr(self.inner, "project_out", nn.Identity())(codes)


def _peer(kind: str = "VectorQuantize", **options: Any) -> Callable[[int, int], nn.Module]:
    return lambda codes, dim: Peer(kind, codes, dim, codebook_size=codes, **options)


def _peer_levels(**options: Any) -> Callable[[int, int], nn.Module]:
    def make(codes: int, dim: int) -> nn.Module:
        first, second = _levels(codes, 2)
        return Peer("ResidualVQ", first, dim, codebook_size=first, num_quantizers=2, **options)

    return make


# ---------------------------------------------------------------- cases

EMA, QUICK = {"update": "ema"}, {"memory": 0.9}
FLAT = ("modes", "Gaussian", "digits", "items", "signals", "text", "Fashion-MNIST", "photographs")
SLOW = ("slow", "slow, convolution")
RISING = {"update": "ema", "decay": 0.9}
_EMA, _SLOW = _of(VectorQuantizer, **EMA), _of(VectorQuantizer, **RISING)
TOKEN, EMBEDDING, BOTH, DIMENSIONAL, RATE = (
    "token collapse",
    "embedding collapse",
    "token and embedding collapse",
    "dimensional collapse",
    "rate limit",
)

CASES = {
    "plain": Case("healthy", sizes="all"),
    "EMA": Case("healthy", _EMA),
    "expiry": Case("healthy", _of(CodeExpiry, **QUICK)),
    "random restart, EMA": Case("healthy", _of(RandomRestart, **EMA, **QUICK)),
    "LRU, 16 dimensions": Case("healthy", _of(LeastRecentlyUsed, patience=100), dim=16),
    "CVQ": Case("healthy", _of(OnlineClustering, **QUICK)),
    "rotation trick": Case("healthy", _of(RotationTrick)),
    "DiVeQ": Case("healthy", _of(DiVeQ)),
    "SimVQ": Case("healthy", _of(SimVQ)),
    "affine": Case("healthy", _of(AffineCodes)),
    "cosine, 4 dimensions": Case("healthy", _of(CosineCodes), dim=4),
    "entropy": Case("healthy", _of(EntropyLoss)),
    "orthogonality": Case("healthy", _of(OrthogonalCodes)),
    "FSQ": Case("healthy", _grid, room=False),
    "LFQ": Case("healthy", _bits, room=False),
    "two levels": Case("healthy", _residual(2), sizes="all", beds=STACKS),
    "three levels, EMA": Case("healthy", _residual(3, **EMA), sizes="all", beds=STACKS),
    "two levels, expiry": Case("healthy", _residual(2, kind=CodeExpiry, **QUICK), beds=STACKS),
    "U(±1/K)": Case(TOKEN, init="uniform", warmup=0, sizes="all"),
    "N(0, 1)": Case(TOKEN, init="normal", warmup=0),
    "k-means untrained": Case(TOKEN, warmup=0),
    "k-means untrained, EMA": Case(TOKEN, _EMA, warmup=0, sizes="all"),
    "U(±1/K), rotation": Case(TOKEN, _of(RotationTrick), init="uniform", warmup=0),
    "U(±1/K) after warm-up": Case(TOKEN, init="uniform", sizes="all"),
    "N(0, 1) after warm-up, EMA": Case(TOKEN, _EMA, init="normal"),
    "two levels, U(±1/K)": Case(TOKEN, _residual(2), init="uniform", warmup=0, sizes="all", beds=STACKS),
    "width 1": Case(EMBEDDING, width=1, sizes="all"),
    "width 1, expiry": Case(EMBEDDING, _of(CodeExpiry, **QUICK), width=1),
    "width 2": Case(EMBEDDING, width=2),
    "width 2, EMA": Case(EMBEDDING, _EMA, width=2),
    "width 2, SimVQ": Case(EMBEDDING, _of(SimVQ), width=2),
    "two levels, width 1": Case(EMBEDDING, _residual(2), width=1, sizes="all", beds=STACKS),
    "width 2, U(±1/K)": Case(BOTH, width=2, init="uniform", sizes="all"),
    "width 1, N(0, 1)": Case(BOTH, width=1, init="normal"),
    "width 2, U(±1/K) after warm-up": Case(BOTH, width=2, init="uniform", warmup=0.5),
    "2 dimensions": Case(DIMENSIONAL, dim=2, sizes="all", beds=FLAT),
    "2 dimensions, EMA": Case(DIMENSIONAL, _EMA, dim=2, beds=FLAT),
    "slow, no warm-up": Case(DIMENSIONAL, _SLOW, warmup=0, sizes="all", beds=SLOW),
    "slow, warm-up 5 %": Case(DIMENSIONAL, _SLOW, warmup=0.05, sizes="all", beds=SLOW),
    "slow, gradient, no warm-up": Case(DIMENSIONAL, warmup=0, sizes="all", beds=SLOW),
    "slow, warm-up 30 %": Case("healthy", _SLOW, warmup=0.3, sizes="all", beds=SLOW),
    "slow, warm-up 75 %": Case("healthy", _SLOW, warmup=0.75, sizes="all", beds=SLOW),
    "slow, gradient, warm-up 75 %": Case("healthy", warmup=0.75, sizes="all", beds=SLOW),
    "few codes": Case(RATE, sizes="few"),
    "few codes, EMA": Case(RATE, _EMA, sizes="few"),
    "peer: k-means": Case("healthy", _peer(kmeans_init=True), None, peer=True),
    "peer: k-means, expiry": Case("healthy", _peer(kmeans_init=True, threshold_ema_dead_code=1), None, peer=True),
    "peer: random start": Case(TOKEN, _peer(), None, 0, peer=True),
    "peer: cosine": Case("healthy", _peer(use_cosine_sim=True, kmeans_init=True), None, peer=True),
    "peer: projection": Case("healthy", _peer(codebook_dim=4, kmeans_init=True), None, peer=True),
    "peer: learnt, rotation": Case(
        "healthy",
        _peer(learnable_codebook=True, ema_update=False, rotation_trick=True, kmeans_init=True),
        None,
        peer=True,
    ),
    "peer: SimVQ": Case("healthy", _peer("SimVQ"), None, peer=True),
    "peer: width 1": Case(EMBEDDING, _peer(kmeans_init=True, threshold_ema_dead_code=1), None, width=1, peer=True),
    "peer: two levels": Case("healthy", _peer_levels(kmeans_init=True), None, sizes="all", beds=STACKS, peer=True),
}
CORE = ("plain", "U(±1/K)", "k-means untrained, EMA", "width 1")  # of the largest codebooks


def settings() -> list[dict]:
    """All that is trained: bed, case, codes. Cases of sizes "all" get each size of the bed, others one in turn."""
    found = []
    for place, (name, bed) in enumerate(BEDS.items()):
        if not at_hand(bed.family):
            continue
        for turn, (case, how) in enumerate(CASES.items()):
            if (how.beds is None and bed.slow) or name not in (how.beds or BEDS) or (how.peer and not PEERS):
                continue
            if not how.sizes and (turn + place) % 3 == 0:  # each bed does without a third of those made in one size
                continue
            one = bed.sizes[(turn + place) // 3 % len(bed.sizes)]
            sizes = {"few": bed.few, "all": bed.sizes, "": (one,)}[how.sizes]
            sizes += bed.large if case in CORE else ()
            found += [{"bed": name, "case": case, "codebook_size": size} for size in sizes]
    return found


def left_out() -> list[str]:
    """What is not made on this machine, and why, in a sentence each."""
    found = [f"{bed.family} is left out: its files are not here" for bed in BEDS.values() if not at_hand(bed.family)]
    if not PEERS:
        names = ", ".join(name for name, how in CASES.items() if how.peer)
        found.append(f"vector-quantize-pytorch is not installed, left out are {names}")
    return found


def seeds_of(bed: str, case: str, codebook_size: int) -> list[int]:
    """Seeds of its own for each setting: three, and two of the largest codebooks."""
    first = zlib.crc32(f"{bed} {case} {codebook_size}".encode()) // 16 * 4
    return [first + number for number in range(2 if codebook_size > 2048 else 3)]
