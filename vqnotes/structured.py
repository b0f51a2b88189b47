"""Quantisers whose codebook has a structure: a fixed grid without search (FSQ, LFQ), or codes that are sums."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqnotes.quantizers import Quantized, VectorQuantizer, nearest_code, not_negative, straight_through
from vqnotes.remedies import entropy_gap


class _FixedCodes(VectorQuantizer):
    """A codebook that never moves. `init_codes` leaves it as it is."""

    replaceable = False

    def __init__(self, codes: Tensor, **options):
        super().__init__(*codes.shape, **options)
        del self.codebook
        self.register_buffer("codebook", codes)

    def prepare(self, latents: Tensor) -> Tensor:
        nearest_code(latents, latents.new_zeros(1, self.dim))  # refuses what is not (..., D) or not finite
        return latents

    def init_codes(self, how: str, latents: Tensor | None = None, seed: int = 0) -> None:
        pass


class FSQ(_FixedCodes):
    """Finite scalar quantisation (arXiv:2309.15505, section 3): every direction is rounded to a few levels.

    z_i is bounded to (L_i - 1) / 2 by tanh (and shifted by half a step where L_i is even), rounded, and divided by
    floor(L_i / 2), so codes are a grid in [-1, 1]^D. Gradients pass the rounding straight through. There is no
    loss and nothing to search: index = sum_i digit_i * L_1 ... L_(i-1).

    levels: L_1 .. L_D, each at least 3; their product is codebook_size, their number dim.
    Raises ValueError if they are not, or for levels below 3.
    """

    def __init__(self, codebook_size: int, dim: int, *, levels: Sequence[int]):
        levels = [int(level) for level in levels]
        if not levels or min(levels) < 3:
            raise ValueError(f"FSQ needs levels of at least 3, got {levels}")
        if math.prod(levels) != codebook_size or len(levels) != dim:
            raise ValueError(
                f"levels {levels} make {math.prod(levels)} codes of {len(levels)} dimensions, "
                f"not {codebook_size} of {dim}"
            )
        basis = [math.prod(levels[:i]) for i in range(dim)]
        digits = torch.stack([torch.arange(codebook_size) // b % level for b, level in zip(basis, levels)], dim=1)
        half = torch.tensor(levels) // 2
        super().__init__((digits - half) / half)
        self.register_buffer("levels", torch.tensor(levels))
        self.register_buffer("basis", torch.tensor(basis))

    def prepare(self, latents: Tensor) -> Tensor:
        latents = super().prepare(latents)
        reach = ((self.levels - 1) * (1 + 1e-3) / 2).to(latents.dtype)
        offset = (self.levels % 2 == 0).to(latents.dtype) / 2
        bounded = torch.tanh(latents + torch.atanh(offset / reach)) * reach - offset
        return bounded / (self.levels // 2)

    def assign(self, latents: Tensor, codes: Tensor) -> Tensor:
        half = self.levels // 2
        digits = ((latents * half).round().long() + half).clamp_min(0).minimum(self.levels - 1)
        return digits.mul(self.basis).sum(-1)  # in whole numbers: exact in bf16 too

    def loss(self, latents: Tensor, chosen: Tensor) -> Tensor:
        return latents.new_zeros(())


class LFQ(_FixedCodes):
    """Lookup-free quantisation (arXiv:2310.05737, section 3): the code is the sign of each direction, (-1, 1)^D.

    loss = entropy_weight * (mean of H(p(.|z)) - H(mean of p(.|z))) + beta * commitment, in nats, with
    p(k|z) proportional to exp(2 * inverse_temperature * z.e_k) (eq. 5). index: bit i is whether z_i > 0, the first
    direction the highest bit. Since p is a product over directions, the entropies are taken of halves of the bits,
    which costs N x 2^(D/2) instead of N x 2^D: a step with 1,024 codes takes a seventeenth of the time.

    Raises ValueError unless codebook_size = 2^dim, or for negative weights or an inverse temperature not above 0.
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        entropy_weight: float = 0.1,
        inverse_temperature: float = 100.0,
        beta: float = 0.25,
    ):
        if dim < 1 or codebook_size != 2**dim:
            raise ValueError(f"LFQ of {dim} dimensions has 2^{dim} codes, not {codebook_size}")
        if not 0 < inverse_temperature < math.inf:
            raise ValueError(f"LFQ needs inverse_temperature above 0, got {inverse_temperature}")
        bits = 2 ** torch.arange(dim - 1, -1, -1)
        super().__init__((torch.arange(codebook_size)[:, None] // bits % 2 * 2 - 1).float(), beta=beta)
        self.entropy_weight = not_negative("entropy_weight", entropy_weight)
        self.inverse_temperature = inverse_temperature
        self.register_buffer("bits", bits)

    def assign(self, latents: Tensor, codes: Tensor) -> Tensor:
        return ((latents > 0) * self.bits).sum(-1)

    def loss(self, latents: Tensor, chosen: Tensor) -> Tensor:
        codes, flat = self.codebook.to(latents.dtype), latents.reshape(-1, self.dim)
        half = self.dim // 2
        many = 2 ** (self.dim - half)  # the second half of the bits
        halves = (flat[:, :half], codes[::many, :half]), (flat[:, half:], codes[:many, half:])
        scores = [z @ e.T * (2 * self.inverse_temperature) for z, e in halves]
        commitment = (latents - chosen.detach()).square().mean()
        return self.entropy_weight * entropy_gap(*scores) + self.beta * commitment


class ResidualVQ(nn.Module):
    """Residual quantisation (SoundStream, arXiv:2107.03312, section 3.3): each stage codes what the last one left.

    latents_q is the sum of the stages' codes, index = sum_i index_i * K_1 ... K_(i-1), loss the mean of the stages'.
    The codes are all sums, (K_1 * K_2 * ..., D): few vectors make many codes, but not any codes.

    codebook_size: the product of the stages' sizes. stages: their sizes. kind, options: what every stage is.
    Raises ValueError if the sizes' product is not codebook_size.
    """

    def __init__(
        self, codebook_size: int, dim: int, *, stages: Sequence[int], kind: type = VectorQuantizer, **options
    ):
        super().__init__()
        stages = [int(size) for size in stages]
        if not stages or math.prod(stages) != codebook_size:
            raise ValueError(f"stages {stages} make {math.prod(stages)} codes, not {codebook_size}")
        self.codebook_size, self.dim = codebook_size, dim
        self.stages = nn.ModuleList(kind(size, dim, **options) for size in stages)

    def forward(self, latents: Tensor) -> Quantized:
        """latents (..., D) to Quantized(latents_q (..., D), index (...,), loss)."""
        left, index, basis, parts = latents, 0, 1, []
        for stage in self.stages:
            parts.append(stage(left))
            index, basis = index + parts[-1].index * basis, basis * stage.codebook_size
            left = left - parts[-1].latents_q.detach()
        losses = torch.stack([part.loss for part in parts])
        chosen = sum(part.latents_q for part in parts)
        return Quantized(straight_through(chosen, latents), index, losses.mean())

    def prepare(self, latents: Tensor) -> Tensor:
        return latents

    def codes(self) -> Tensor:
        sums = torch.zeros(1, self.dim, device=self.stages[0].codes().device)
        for stage in self.stages:
            sums = (stage.codes()[:, None] + sums).reshape(-1, self.dim)
        return sums

    @torch.no_grad()
    def init_codes(self, how: str, latents: Tensor | None = None, seed: int = 0) -> None:
        """As `VectorQuantizer.init_codes`, stage after stage, each on what the one before it left."""
        for stage in self.stages:
            stage.init_codes(how, latents, seed)
            if latents is not None:
                codes = stage.codes()
                latents = latents - codes[stage.assign(latents, codes)]
