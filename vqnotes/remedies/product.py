"""All stages: several quantisers side by side, each of which codes some of the dimensions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vqnotes._checks import check_latents_form
from vqnotes.quantizers import Quantized, VectorQuantizer
from vqnotes.remedies.residual import Several, seeds_of, sizes_of

__all__ = ["ProductVQ"]


class ProductVQ(Several):
    """Product quantisation (as DCVQ, NeurIPS 2025, poster 115424): the latent is cut into groups, a codebook each.

    With G groups, a latent (..., D) is cut into G pieces of D / G dimensions, in order. latents_q is the codes of the
    pieces put together again, index (..., G) the pieces' indices, loss the mean of their losses. Any combination of
    the groups' codes is a code, K = K_1 K_2 ... in all, and no piece asks what the others chose. It is what
    vector-quantize-pytorch calls heads with separate codebooks. (DCVQ has pieces of 8 dimensions, and many.)

    stages: how many codes each group has, at least 1. They say G, and the size: K is their product. dim: D.
    kind, options: what every group is.
    Raises ValueError for no groups, one without codes, or dimensions that are not a multiple of the groups.
    """

    def __init__(
        self,
        stages: Sequence[int],
        dim: int,
        *,
        kind: type[VectorQuantizer] = VectorQuantizer,
        **options: Any,
    ):
        sizes = sizes_of(stages)
        if dim % len(sizes):
            raise ValueError(f"{dim} dimensions cannot be cut into {len(sizes)} groups of one width")
        super().__init__(sizes, dim, [kind(size, dim // len(sizes), **options) for size in sizes])

    def forward(self, latents: Tensor) -> Quantized:
        """latents (..., D) to Quantized(latents_q (..., D), index (..., G), loss)."""
        parts = [stage(piece) for stage, piece in zip(self.stages, self.pieces(latents))]
        index = torch.stack([part.index for part in parts], dim=-1)
        loss = torch.stack([part.loss for part in parts]).mean()
        return Quantized(self.joined([part.latents_q for part in parts]), index, loss)

    def pieces(self, latents: Tensor) -> tuple[Tensor, ...]:
        """Latents (..., D) as G pieces (..., D / G). ValueError for latents of another width."""
        return check_latents_form(latents, self.dim).split(self.dim // len(self.stages), dim=-1)

    def prepare(self, latents: Tensor) -> Tensor:
        return self.joined([stage.prepare(piece) for stage, piece in zip(self.stages, self.pieces(latents))])

    def joined(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def init_codes(self, how: str, latents: Tensor | None = None, seed: int = 0) -> None:
        """As `VectorQuantizer.init_codes`, each group on its pieces, by a seed of its own."""
        pieces = [None] * len(self.stages) if latents is None else self.pieces(latents)
        for stage, piece, own_seed in zip(self.stages, pieces, seeds_of(self.stages, seed)):
            stage.init_codes(how, piece, own_seed)
