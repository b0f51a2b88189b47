"""assign() without search: codes are a fixed grid, and each number of a latent is rounded by itself."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vqnotes._checks import check_not_negative, check_positive
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies.choices import IndexBackpropagation, StochasticVQ
from vqnotes.remedies.codes import AffineCodes, CosineCodes, LearntAffineCodes, SimVQ, need_gradient, unit
from vqnotes.remedies.entropy import entropy_gap
from vqnotes.remedies.gradients import DiVeQ
from vqnotes.remedies.losses import DecorrelatedCodes, EntropyLoss, KernelLoss, OrthogonalCodes, SpreadLatents
from vqnotes.remedies.replacement import _Replacing

__all__ = ["BSQ", "FSQ", "LFQ"]

MOVES_CODES = (
    SimVQ,
    AffineCodes,
    LearntAffineCodes,
    CosineCodes,
    DiVeQ,
    OrthogonalCodes,
    DecorrelatedCodes,
    KernelLoss,
)


class _FixedCodes(VectorQuantizer):
    """A codebook that never moves: a grid. `init_codes` leaves it as it is. beta: 0 unless given.

    Raises ValueError for update="ema", and in combination with what moves or reshapes codes.
    """

    excludes = dict.fromkeys(
        (*MOVES_CODES, _Replacing), "the codes are a fixed grid, which cannot be moved or given another shape"
    ) | dict.fromkeys((StochasticVQ, IndexBackpropagation), "a grid rounds latents, and chooses among no codes")

    def __init__(self, *size: int, beta: float = 0.0, **options: Any):
        super().__init__(*size, beta=beta, **options)
        need_gradient(self)
        self.codebook_loss = False

    def fix(self, codes: Tensor) -> None:
        """Makes codes (K, D) the codebook, for good."""
        del self.codebook
        self.register_buffer("codebook", codes)

    def prepare(self, latents: Tensor) -> Tensor:
        nearest_code(latents, latents.new_zeros(1, self.dim))  # refuses what is not (..., D) or not finite
        return super().prepare(latents)

    def init_codes(self, how: str, latents: Tensor | None = None, seed: int = 0) -> None:
        pass


class FSQ(_FixedCodes):
    """Finite scalar quantisation (arXiv:2309.15505, section 3): every direction is rounded to a few levels.

    z_i is bounded to (L_i - 1) / 2 by tanh (and shifted by half a step where L_i is even), rounded, and divided by
    floor(L_i / 2), so codes are a grid in [-1, 1]^D. Gradients pass the rounding straight through. There is no
    loss, unless a beta is given for the commitment, and nothing to search: index = sum_i digit_i * L_1 ... L_(i-1).

    levels: L_1 .. L_D, each at least 3. They say the size: K is their product, D their number.
    bound: with b = (L_i - 1) / 2 and o = 1/2 where L_i is even, 0 where it is odd, "atanh" bounds z_i to
    1.001 b tanh(z_i + atanh(o / 1.001 b)) - o, so that 0 stays 0, as vector-quantize-pytorch does; "tan" to
    0.999 b tanh(z_i + tan(o / 0.999 b)) - o, as the paper's appendix and its authors' notebook do. They differ by
    little: 0 moves by less than a thousandth of a level, and the range is 0.2 % less.
    Raises ValueError for levels below 3, or another bound.
    """

    excludes = {
        SpreadLatents: "FSQ bounds latents to (-1, 1): to vary by 1 there, all must be at the outermost levels"
    }

    sizes: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int], *, bound: str = "atanh", **options: Any):
        levels = [int(level) for level in levels]
        if not levels or min(levels) < 3:
            raise ValueError(f"FSQ needs levels of at least 3, got {levels}")
        if bound not in ("atanh", "tan"):
            raise ValueError(f"bound must be 'atanh' or 'tan', got {bound!r}")
        super().__init__(math.prod(levels), len(levels), **options)
        self.levels, self.bound = levels, bound
        sizes, basis = torch.tensor(levels), torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
        digits = torch.arange(self.codebook_size)[:, None] // basis % sizes
        self.fix((digits - sizes // 2) / (sizes // 2))
        self.register_buffer("sizes", sizes)
        self.register_buffer("basis", basis)

    def prepare(self, latents: Tensor) -> Tensor:
        latents = super().prepare(latents)
        stretch, inverse = (1 + 1e-3, torch.atanh) if self.bound == "atanh" else (1 - 1e-3, torch.tan)
        reach = ((self.sizes - 1) * stretch / 2).to(latents.dtype)
        offset = (self.sizes % 2 == 0).to(latents.dtype) / 2
        bounded = torch.tanh(latents + inverse(offset / reach)) * reach - offset
        return bounded / (self.sizes // 2)

    def assign(self, latents: Tensor, codes: Tensor) -> Tensor:
        half = self.sizes // 2
        digits = ((latents * half).round().long() + half).clamp_min(0).minimum(self.sizes - 1)
        return digits.mul(self.basis).sum(-1)  # in whole numbers: exact in bf16 too


class LFQ(_FixedCodes):
    """Lookup-free quantisation (arXiv:2310.05737, section 3): the code is the sign of each direction, (-1, 1)^D.

    loss = entropy_weight * (mean of H(p(.|z)) - H(mean of p(.|z))) + beta * commitment, in nats, with
    p(k|z) proportional to exp(2 * inverse_temperature * z.e_k). index: bit i is whether z_i > 0, the first
    direction the highest bit. Since p is a product over directions, the entropies are taken of halves of the bits,
    which costs N x 2^(D/2) instead of N x 2^D.

    bits: D, at least 1. They say the size: K is 2^D.
    Raises ValueError for no bits, negative weights, or an inverse temperature not above 0.
    """

    excludes = {FSQ: "FSQ and LFQ are two grids: take one of them", EntropyLoss: "LFQ has an entropy loss of its own"}
    basis: Tensor

    def __init__(
        self,
        bits: int,
        *,
        entropy_weight: float = 0.1,
        inverse_temperature: float = 100.0,
        beta: float = 0.25,
        **options: Any,
    ):
        if bits < 1:
            raise ValueError(f"LFQ needs at least 1 bit, got {bits}")
        super().__init__(2**bits, bits, beta=beta, **options)
        self.bits = bits
        self.entropy_weight = check_not_negative("entropy_weight", entropy_weight)
        self.inverse_temperature = check_positive("inverse_temperature", inverse_temperature)
        basis = 2 ** torch.arange(bits - 1, -1, -1)
        self.fix((torch.arange(self.codebook_size)[:, None] // basis % 2 * 2 - 1).float())
        self.register_buffer("basis", basis)

    def assign(self, latents: Tensor, codes: Tensor) -> Tensor:
        return ((latents > 0) * self.basis).sum(-1)

    def loss(self, latents: Tensor, chosen: Tensor) -> Tensor:
        codes, flat = self.codebook.to(latents.dtype), latents.reshape(-1, self.dim)
        half = self.dim // 2
        many = 2 ** (self.dim - half)  # the second half of the bits
        halves = (flat[:, :half], codes[::many, :half]), (flat[:, half:], codes[:many, half:])
        scores = [z @ e.T * (2 * self.inverse_temperature) for z, e in halves]
        return super().loss(latents, chosen) + self.entropy_weight * entropy_gap(*scores)


class BSQ(LFQ):
    """Binary spherical quantisation (arXiv:2406.07548): LFQ on the unit sphere, where codes are signs / sqrt(D).

    Latents are brought to length 1, so that none is far from its code: |z - q|^2 <= 2. Loss and index are those of
    `LFQ`, with its entropy_weight, an inverse_temperature of 1, and beta=0 unless given. The authors' code takes the
    entropies group by group of the bits, and their sum for that of all, which cannot be less; with a single group it
    has our formula, but for a loss divided by the inverse temperature. vector-quantize-pytorch (LFQ with
    spherical=True) has an inverse temperature of 100.

    bits: D, at least 1. They say the size: K is 2^D.
    Raises ValueError as `LFQ`.
    """

    def __init__(
        self,
        bits: int,
        *,
        entropy_weight: float = 0.1,
        inverse_temperature: float = 1.0,
        beta: float = 0.0,
        **options: Any,
    ):
        super().__init__(
            bits, entropy_weight=entropy_weight, inverse_temperature=inverse_temperature, beta=beta, **options
        )
        self.codebook.div_(bits**0.5)

    def prepare(self, latents: Tensor) -> Tensor:
        return unit(super().prepare(latents))
