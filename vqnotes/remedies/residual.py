"""All stages: several quantisers make a code together. In a row, each codes what the one before it left."""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vqnotes._by_index import rows
from vqnotes.quantizers import Quantized, VectorQuantizer
from vqnotes.remedies.choices import GumbelVQ, IndexBackpropagation

__all__ = ["LevelDropout", "ResidualVQ"]

MOST_LISTED = 2**20  # codes that are made of those of several quantisers


class Several(nn.Module):
    """Quantisers, the `stages`, of which each gives a part of the code: an index (..., S), one a stage.

    A kind of it says in `joined` how the parts (..., D of a stage) make a code (..., D).
    """

    stages: Any  # an nn.ModuleList; what is in it has the methods of `VectorQuantizer`

    def __init__(self, sizes: Sequence[int], dim: int, stages: Sequence[nn.Module]):
        super().__init__()
        self.codebook_size, self.dim, self.stages = math.prod(sizes), dim, nn.ModuleList(stages)

    def joined(self, parts: list[Tensor]) -> Tensor:
        raise NotImplementedError

    def decode(self, index: Tensor) -> Tensor:
        """The codes (..., D) of an index (..., S), as the decoder gets them."""
        return self.joined([stage.decode(own) for stage, own in zip(self.stages, index.unbind(-1), strict=True)])

    def codes(self) -> Tensor:
        """All codes (K_1 * K_2 * ..., D), in the order of `joint_index`; ValueError if there are more than 2^20."""
        if self.codebook_size > MOST_LISTED:
            raise ValueError(
                f"{self.codebook_size:,} codes are too many to list (at most {MOST_LISTED:,}): "
                "ask each of the stages for its codes(), or decode an index"
            )
        number, digits = torch.arange(self.codebook_size, device=self.stages[0].codes().device), []
        for stage in self.stages:
            digits.append(number % stage.codebook_size)
            number = number // stage.codebook_size
        return self.decode(torch.stack(digits, dim=-1))

    def joint_index(self, index: Tensor) -> Tensor:
        """One number (...,) for an index (..., S): sum_i index_i * K_1 ... K_(i-1), the place of the code in codes().

        Raises ValueError if not every code has a number in int64.
        """
        if self.codebook_size > 2**63:
            raise ValueError(
                f"{self.codebook_size:,} codes are too many to number them in int64: use an index a stage"
            )
        joint: Any = 0
        basis = 1
        for stage, own in zip(self.stages, index.unbind(-1), strict=True):
            joint, basis = joint + own * basis, basis * stage.codebook_size
        return joint


def sizes_of(stages: Sequence[int]) -> list[int]:
    """How many codes each stage has; ValueError for no stages, or one without codes."""
    sizes = [int(size) for size in stages]
    if not sizes or min(sizes) < 1:
        raise ValueError(f"need at least one stage, each of at least one code, got {sizes}")
    return sizes


class ResidualVQ(Several):
    """Residual quantisation (SoundStream, arXiv:2107.03312, section 3.3): each stage codes what the last one left.

    latents_q is the sum of the stages' codes, index (..., S) the S stages' indices, loss the mean of their losses.
    Few vectors make many codes, all their sums, but not any codes. Nothing here depends on how many sums there are.
    The gradient is that of the sum, once: `estimate` of the kind is asked about it and not stage by stage, as in the
    DiVeQ authors' code. (vector-quantize-pytorch adds up the stages' gradients, so latents get S times as much.)

    stages: how many codes each has, at least 1. They say the size: K is their product. dim: D, of all stages.
    kind, options: what every stage is.
    Raises ValueError for no stages, one without codes, or a kind that cannot code what is left, or whose gradient
    goes by its own codes and not by their sum.
    """

    def __init__(
        self,
        stages: Sequence[int],
        dim: int,
        *,
        kind: type[VectorQuantizer] = VectorQuantizer,
        **options: Any,
    ):
        if kind.prepare is not VectorQuantizer.prepare:
            raise ValueError(
                f"stages must be able to code what is left, got kind={kind.__name__}, which bounds latents, or has "
                "codes of a fixed size"
            )
        if issubclass(kind, GumbelVQ | IndexBackpropagation):
            raise ValueError(
                f"the gradient of the sum must not depend on one stage's codes, got kind={kind.__name__}, whose does"
            )
        sizes = sizes_of(stages)
        super().__init__(sizes, dim, [kind(size, dim, **options) for size in sizes])

    def forward(self, latents: Tensor) -> Quantized:
        """latents (..., D) to Quantized(latents_q (..., D), index (..., S), loss)."""
        left: Tensor = latents
        chosen: Tensor | int = 0
        parts: list[Quantized] = []
        used = self.used(latents)
        for stage, counts in zip(self.stages, used):
            codes = stage.codes().clone()  # as they are before the stage moves them
            parts.append(stage(left))
            code = rows(codes, parts[-1].index)
            chosen, left = chosen + counts * code, left - code.detach()
        index = torch.stack([part.index for part in parts], dim=-1)
        loss = (used * torch.stack([part.loss for part in parts])).sum() / used.sum()
        return Quantized(self.stages[0].estimate(latents, chosen), index, loss)

    def used(self, latents: Tensor) -> Tensor:
        """Of each stage (S,), 1 if its code counts in this pass, 0 if it is left out."""
        return latents.new_ones(len(self.stages))

    def prepare(self, latents: Tensor) -> Tensor:
        return latents

    def joined(self, parts: list[Tensor]) -> Tensor:
        return cast(Tensor, sum(parts))

    @torch.no_grad()
    def init_codes(self, how: str, latents: Tensor | None = None, seed: int = 0) -> None:
        """As `VectorQuantizer.init_codes`, stage after stage, each on what is left, by a seed of its own."""
        for stage, own_seed in zip(self.stages, seeds_of(self.stages, seed)):
            stage.init_codes(how, latents, own_seed)
            if latents is not None:
                codes = stage.codes()
                latents = latents - rows(codes, stage.assign(latents, codes))


class LevelDropout(ResidualVQ):
    """Residual quantisation that leaves out its last stages at random, in training (SoundStream, arXiv:2107.03312).

    For each batch one number of stages is drawn, from 1 to all, each as likely, as in vector-quantize-pytorch
    (quantize_dropout); SoundStream, whose word is quantizer dropout, draws one an example. The first stages must
    then do alone, as a prefix of a name must. Stages that are left out still see what reaches them.
    """

    def used(self, latents: Tensor) -> Tensor:
        if not self.training:
            return super().used(latents)
        kept = torch.randint(1, len(self.stages) + 1, (), device=latents.device)
        return (torch.arange(len(self.stages), device=latents.device) < kept).to(latents.dtype)


def seeds_of(stages: Sequence[nn.Module], seed: int) -> list[int]:
    """A seed for each stage, so that they do not draw the same codes; the first has the seed itself."""
    return [seed, *np.random.default_rng(seed).integers(2**31, size=len(stages) - 1).tolist()]
