"""What an index says of codes: which are chosen, by what share of the latents, and where these draw them."""

import torch
from torch import Tensor


def rows(codes: Tensor, index: Tensor) -> Tensor:
    """The rows (..., D) of codes (K, D) at an index (...,)."""
    return codes.index_select(0, index.flatten()).view(*index.shape, -1)


def shares(index: Tensor, like: Tensor, count: int | None = None) -> Tensor:
    """The share of all indices (...,), or of so many of them, that each code has, shaped as `like` (K,)."""
    flat = index.reshape(-1)
    weights = torch.full_like(flat, 1 / (count or len(flat)), dtype=like.dtype)
    return torch.zeros_like(like).scatter_add_(0, flat, weights)


def moving_averages(
    codes: Tensor, share: Tensor, latents: Tensor, index: Tensor, count: int, decay: float
) -> tuple[Tensor, Tensor]:
    """Codes (K, D) and share (K,) as `VectorQuantizer.after_step` moves them, for latents (N, D), index (N,).

    count: N; or, of several codebooks one after the other, how many of the latents are of each.
    """
    flat, hits = latents.to(codes.dtype), shares(index, share, count)
    sums = torch.zeros_like(codes).scatter_add_(0, index[:, None].expand_as(flat), flat / count)
    mean = torch.where(hits[:, None] > 0, sums / hits[:, None], codes)
    share = (share * decay).add_(hits, alpha=1 - decay)
    rate = (1 - decay) * hits / share.clamp_min(torch.finfo(hits.dtype).tiny)
    return codes.lerp(mean, rate[:, None]), share
