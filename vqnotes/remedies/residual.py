"""All stages in a row: codes that are sums, one of each quantiser, which codes what the one before it left."""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vqnotes.quantizers import Quantized, VectorQuantizer, rows

__all__ = ["ResidualVQ"]

SUMS_LISTED = 2**20  # at most, of a residual quantiser


class ResidualVQ(nn.Module):
    """Residual quantisation (SoundStream, arXiv:2107.03312, section 3.3): each stage codes what the last one left.

    latents_q is the sum of the stages' codes, index (..., S) the S stages' indices, loss the mean of their losses.
    Few vectors make many codes, all their sums, but not any codes. Nothing here depends on how many sums there are.
    The gradient is that of the sum, once: `estimate` of the kind is asked about it and not stage by stage, as in the
    DiVeQ authors' code. (vector-quantize-pytorch adds up the stages' gradients, so latents get S times as much.)

    stages: how many codes each has, at least 1. They say the size: K is their product. dim: D, of all stages.
    kind, options: what every stage is.
    Raises ValueError for no stages, one without codes, or a kind that cannot code what is left.
    """

    stages: Any  # an nn.ModuleList; what is in it has the methods of `VectorQuantizer`

    def __init__(
        self,
        stages: Sequence[int],
        dim: int,
        *,
        kind: type[VectorQuantizer] = VectorQuantizer,
        **options: Any,
    ):
        super().__init__()
        if kind.prepare is not VectorQuantizer.prepare:
            raise ValueError(
                f"stages must be able to code what is left, got kind={kind.__name__}, which bounds latents, or has "
                "codes of a fixed size"
            )
        sizes = [int(size) for size in stages]
        if not sizes or min(sizes) < 1:
            raise ValueError(f"need at least one stage, each of at least one code, got {sizes}")
        self.codebook_size, self.dim = math.prod(sizes), dim
        self.stages = nn.ModuleList(kind(size, dim, **options) for size in sizes)

    def forward(self, latents: Tensor) -> Quantized:
        """latents (..., D) to Quantized(latents_q (..., D), index (..., S), loss)."""
        left: Tensor = latents
        chosen: Tensor | int = 0
        parts: list[Quantized] = []
        for stage in self.stages:
            codes = stage.codes().clone()  # as they are before the stage moves them
            parts.append(stage(left))
            code = rows(codes, parts[-1].index)
            chosen, left = chosen + code, left - code.detach()
        index = torch.stack([part.index for part in parts], dim=-1)
        loss = torch.stack([part.loss for part in parts]).mean()
        return Quantized(self.stages[0].estimate(latents, chosen), index, loss)

    def prepare(self, latents: Tensor) -> Tensor:
        return latents

    def decode(self, index: Tensor) -> Tensor:
        """The sums of codes (..., D) of an index (..., S), as the decoder gets them."""
        parts = (stage.decode(own) for stage, own in zip(self.stages, index.unbind(-1), strict=True))
        return cast(Tensor, sum(parts))

    def codes(self) -> Tensor:
        """All sums (K_1 * K_2 * ..., D), in the order of `joint_index`; ValueError if there are more than 2^20."""
        if self.codebook_size > SUMS_LISTED:
            raise ValueError(
                f"{self.codebook_size:,} sums of codes are too many to list (at most {SUMS_LISTED:,}): "
                "ask each of the stages for its codes(), or decode an index"
            )
        sums = torch.zeros(1, self.dim, device=self.stages[0].codes().device)
        for stage in self.stages:
            sums = (stage.codes()[:, None] + sums).reshape(-1, self.dim)
        return sums

    def joint_index(self, index: Tensor) -> Tensor:
        """One number (...,) for an index (..., S): sum_i index_i * K_1 ... K_(i-1), the place of the sum in codes().

        Raises ValueError if not every sum has a number in int64.
        """
        if self.codebook_size > 2**63:
            raise ValueError(
                f"{self.codebook_size:,} sums are too many to number them in int64: use an index a stage"
            )
        joint: Any = 0
        basis = 1
        for stage, own in zip(self.stages, index.unbind(-1), strict=True):
            joint, basis = joint + own * basis, basis * stage.codebook_size
        return joint

    @torch.no_grad()
    def init_codes(self, how: str, latents: Tensor | None = None, seed: int = 0) -> None:
        """As `VectorQuantizer.init_codes`, stage after stage, each on what is left, by a seed of its own."""
        later = np.random.default_rng(seed).integers(2**31, size=len(self.stages) - 1)  # not the same codes again
        for stage, own_seed in zip(self.stages, [seed, *later.tolist()]):
            stage.init_codes(how, latents, own_seed)
            if latents is not None:
                codes = stage.codes()
                latents = latents - rows(codes, stage.assign(latents, codes))
