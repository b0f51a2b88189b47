"""k-means: where the codes of a codebook are best placed, the reference for what was learnt."""

import warnings

import numpy as np
import torch
from torch import Tensor

from vqnotes.search import check_latents, nearest_code


def enough(latents: Tensor, codebook_size: int) -> Tensor:
    """The latents as rows (N, D); ValueError if there are fewer than codes."""
    flat = latents.reshape(-1, latents.shape[-1])
    if len(flat) < codebook_size:
        raise ValueError(f"{len(flat)} latents are too few for {codebook_size} codes")
    return flat


def kmeans(latents: Tensor, codebook_size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """k-means by scikit-learn: the centroids (K, D) and the share (K,) of the latents (..., D) in each cluster.

    Above 1,024 codes it is `lloyd`, since k-means++ takes time K^2.
    Raises ValueError for unusable latents or fewer latents than codes.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    check_latents(latents)
    flat = enough(latents.detach(), codebook_size)
    if codebook_size > 1024:
        return lloyd(flat, codebook_size, seed)
    points = flat.to("cpu", torch.float64).numpy()  # twice as fast as float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct latents than codes: some codes coincide
        fitted = KMeans(codebook_size, n_init=1, max_iter=50, random_state=seed).fit(points)
    share = np.bincount(fitted.labels_, minlength=codebook_size) / len(points)
    return torch.from_numpy(fitted.cluster_centers_).to(latents), torch.from_numpy(share).to(latents)


def lloyd(latents: Tensor, codebook_size: int, seed: int = 0, steps: int = 10) -> tuple[Tensor, Tensor]:
    """k-means where the latents are, on a GPU too: centroids (K, D) and the share (K,) of latents that each has.

    Lloyd's algorithm from K latents (N, D) drawn without replacement, from different places where there are so many;
    a centroid that no latent chooses stays. The same for any K, so that a sweep over K changes nothing else.
    Raises ValueError for unusable latents, fewer latents than codes, or steps < 0.
    """
    check_latents(latents)
    if latents.ndim != 2 or not 1 <= codebook_size <= len(latents) or steps < 0:
        found = f"{tuple(latents.shape)}, {codebook_size} codes, {steps} steps"
        raise ValueError(f"need latents (N, D), 1 .. N codes and steps >= 0, got {found}")
    distinct = latents.unique(dim=0)
    pool = distinct if len(distinct) >= codebook_size else latents
    drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:codebook_size]
    codes = pool[drawn.to(pool.device)]
    for _ in range(steps):
        index = nearest_code(latents, codes)
        counts = torch.bincount(index, minlength=codebook_size)[:, None]
        sums = torch.zeros_like(codes).index_add_(0, index, latents)
        codes = torch.where(counts > 0, sums / counts.clamp_min(1), codes)
    counts = torch.bincount(nearest_code(latents, codes), minlength=codebook_size)
    return codes, counts.to(latents.dtype) / len(latents)
