"""k-means: where the codes of a codebook are best placed, the reference for what was learnt."""

import math

import torch
from torch import Tensor

from vqnotes._checks import Array, check_latents
from vqnotes._kmeans_start import start
from vqnotes.nearest import nearest_code

__all__ = ["enough", "kmeans"]

STEPS, IMPROVEMENT = 50, 1e-3  # Lloyd's algorithm ends after so many, or when one lowers the error by a smaller share


def enough(latents: Tensor, codebook_size: int) -> Tensor:
    """The latents as rows (N, D); ValueError if there are fewer than codes."""
    flat = latents.reshape(-1, latents.shape[-1])
    if len(flat) < codebook_size:
        raise ValueError(f"{len(flat)} latents are too few for {codebook_size} codes")
    return flat


@torch.no_grad()
def kmeans(latents: Array, codebook_size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The centroids (K, D) of k-means, and the share (K,) of the latents (..., D) that each is nearest to.

    Lloyd's algorithm from the start of k-means|| (Bahmani et al., 2012, arXiv:1203.6402), where the latents are, on a
    GPU too: draw candidates, most where latents are still far from any; weight each by the latents nearest to it;
    let greedy k-means++ choose K of them, from 4,096 on several at once. Then each centroid moves to the mean of its
    latents, and one that has none to the latent farthest from its own, until a step lowers the error by less than a
    thousandth, at most 50 times. The error is that of scikit-learn's `KMeans` up to a few percent in the mean over
    seeds; a single run of either may get stuck, above all where clusters are far apart and of very unequal size.

    Time: 2.5 K candidates x K choices x (2 + log K) x D for the start, N x K x D for a step. Memory: some copies of
    the latents. If fewer latents differ than there are codes, centroids coincide, and one of them has the share.
    Raises ValueError for unusable latents, no code, or fewer latents than codes.
    """
    latents = check_latents(latents)
    if codebook_size < 1:
        raise ValueError(f"need at least one code, got {codebook_size}")
    flat = enough(latents, codebook_size)
    squares_fit = 1e-15 < flat.abs().max() < 1e15  # into float32
    dtype = torch.promote_types(flat.dtype, torch.float32 if squares_fit else torch.float64)
    center = flat.to(dtype).mean(dim=0)
    points = flat - center  # far from the origin, sums would lose digits
    codes, error = start(points, codebook_size, torch.Generator().manual_seed(seed)), math.inf
    for step in range(STEPS + 1):
        index = nearest_code(points, codes)
        distance = (points - codes[index]).square().sum(dim=1)
        before, error = error, distance.sum(dtype=torch.float64).item()
        if step == STEPS or error >= (1 - IMPROVEMENT) * before:
            break
        codes = _means(points, index, distance, codes)
    share = torch.bincount(index, minlength=codebook_size).double() / len(points)
    return (codes + center).to(latents.dtype), share.to(latents.dtype)


def _means(points: Tensor, index: Tensor, distance: Tensor, codes: Tensor) -> Tensor:
    """The mean of the points (N, D) of each code; those without any first get the points at the largest distance."""
    empty = (torch.bincount(index, minlength=len(codes)) == 0).nonzero()[:, 0]
    if len(empty):
        index[distance.topk(len(empty)).indices] = empty
    counts = torch.bincount(index, minlength=len(codes))[:, None].clamp_min(1)
    sums = torch.zeros_like(codes).index_add_(0, index, points - codes[index])  # small numbers: no digit is lost
    return codes + sums / counts
