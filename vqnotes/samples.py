"""Judging samples beside real data: how typical they are, and how much of the data they reach.

Real data are (N, ...) and samples (M, ...); both are flattened to vectors and compared by Euclidean distance, so
memory grows with N * (N + M). All functions raise ValueError for empty, NaN, infinite or mismatched input, and show
its shape.
"""

import math

import numpy as np
import torch
from torch import Tensor

from vqnotes.priors import as_rows
from vqnotes.search import check_latents


def coverage(real: Tensor, samples: Tensor, k: int = 5) -> float:
    """Share of the real points that have a sample no farther away than their k-th nearest real neighbour, in [0, 1].

    Naeem et al., arXiv:2002.09797. Low if parts of the data have no sample near them; `expected_coverage` if both
    come from one distribution. It does not punish copies: a model that repeats its training data does well.
    Raises ValueError unless 1 <= k < N.
    """
    return float(_within(real, samples, k).any(axis=1).mean())


def density(real: Tensor, samples: Tensor, k: int = 5) -> float:
    """Mean number of real neighbourhoods that a sample lies in, over k: at least 0, about 1 for one distribution.

    Naeem et al., arXiv:2002.09797. A neighbourhood reaches from a real point to its k-th nearest real neighbour.
    Low if samples lie where no data are. It does not ask for variety: samples that stay where the data are densest
    can exceed 1.
    Raises ValueError unless 1 <= k < N.
    """
    return float(_within(real, samples, k).sum(axis=0).mean() / k)


def expected_coverage(real: int, samples: int, k: int = 5) -> float:
    """Mean coverage of N real points by M samples of the same continuous distribution, whichever it is, in (0, 1).

    1 - (N-1)...(N-k) / ((M+N-1)...(M+N-k)), about 1 - (N / (M + N))^k: a real point is left out if its k nearest
    neighbours, among all others, are real (Naeem et al., arXiv:2002.09797, lemma 2).
    Raises ValueError unless 1 <= k < N and M >= 1.
    """
    if not 1 <= k < real or samples < 1:
        raise ValueError(f"need 1 <= k < real and samples >= 1, got k={k}, real={real}, samples={samples}")
    return 1 - math.prod((real - step) / (samples + real - step) for step in range(1, k + 1))


def spread(points: Tensor) -> float:
    """Root mean square distance between two different points (N, ...), in their own unit: diversity, if it is large.

    The mean runs over all pairs, and needs none of them: the mean squared distance is twice the total variance,
    2 * sum_d N/(N-1) var_d. So it falls whenever details are lost, with or without a collapse.
    Raises ValueError for fewer than two points.
    """
    flat = _vectors(points)
    if len(flat) < 2:
        raise ValueError(f"need at least two points, got shape {tuple(points.shape)}")
    return math.sqrt(2 * flat.var(axis=0, ddof=1).sum())


def histograms(index: Tensor, size: int) -> Tensor:
    """How often each of `size` codes occurs in each grid: index (N, ...) to counts float32 (N, size).

    Raises ValueError unless the grids hold whole numbers in 0 .. size - 1.
    """
    rows = as_rows(index, size)
    counts = torch.zeros(len(rows), size, device=rows.device)
    return counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=counts.dtype))


def _within(real: Tensor, samples: Tensor, k: int) -> np.ndarray:
    """Which samples lie in the neighbourhood of which real point: bool (N, M)."""
    from scipy.spatial.distance import cdist

    x, y = _vectors(real), _vectors(samples)
    if x.shape[1] != y.shape[1] or not 1 <= k < len(x):
        shapes = f"{tuple(real.shape)} and {tuple(samples.shape)}"
        raise ValueError(f"need points of one size and 1 <= k < N, got k={k} and shapes {shapes}")
    among = cdist(x, x)
    np.fill_diagonal(among, np.inf)
    radii = np.partition(among, k - 1, axis=1)[:, k - 1]
    return cdist(x, y) <= radii[:, None]


def _vectors(points: Tensor) -> np.ndarray:
    check_latents(points)
    if points.ndim < 2:
        raise ValueError(f"need points (N, ...), got shape {tuple(points.shape)}")
    return points.detach().flatten(1).double().cpu().numpy()
