"""Measuring instruments for codebooks and latents. Every figure the course prints comes from here.

Latents are (..., D), a codebook is (K, D), an index holds int64 values in 0 .. K-1 of any shape; tensors or arrays.
All functions raise ValueError for empty, NaN, infinite or mismatched input, and show its shape.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vqnotes._checks import (
    LARGEST,
    Array,
    as_tensor,
    check_codebook,
    check_columns,
    check_index,
    check_labelled,
    check_latents,
)
from vqnotes._counts import Counts
from vqnotes._rounding import PART, wide_type
from vqnotes._threads import threads_for
from vqnotes._water_filling import WaterFilling, water_filling
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "UsageMeter", "WaterFilling", "confidence_interval", "effective_dimension", "effective_rank", "entropy",
    "mode_entropy", "optimality_gap", "pairwise_distance", "participation_ratio", "perplexity",
    "principal_variances", "quantization_error", "reconstruction_error", "separability", "summary", "usage",
    "water_filling"
]  # fmt: skip

LATENTS_PER_CODE = 16  # that `optimality_gap` needs

# ---------------------------------------------------------------- how the codes are used


class UsageMeter(Counts):
    """Counts how often each of `size` codes is used, over as many batches as you like.

    Use it over a whole data set: the usage or perplexity of one batch is bounded by the size of the batch.
    The sum of two meters has counted what either of them has, and `all_reduce()` gives one that has counted what all
    processes of a distributed run have. A checkpoint keeps `state_dict()`; `load_state_dict` goes on from it.
    counts: (size,) int64, how often each code came.
    Raises ValueError for a size < 1, indices that are no whole numbers in 0 .. size - 1, a sum of meters of different
    sizes, and if usage or perplexity are asked for before anything was counted.
    """

    def __init__(self, size: int):
        if size < 1:
            raise ValueError(f"size must be positive, got {size}")
        self.counts = torch.zeros(size, dtype=torch.int64)

    def reset(self) -> None:
        """Forgets all that was counted."""
        self.counts.zero_()

    def update(self, index: Array) -> "UsageMeter":
        """Adds the indices of one batch, of any shape. Returns the meter."""
        index = check_index(index).flatten().cpu()
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= len(self.counts):
            raise ValueError(f"index must be in 0 .. {len(self.counts) - 1}, got {low} .. {high}")
        self.counts += torch.bincount(index.long(), minlength=len(self.counts))
        return self

    def usage(self) -> float:
        """Share of codes used at least once, in (0, 1]: #{k: n_k > 0} / K."""
        self._check_started()
        return (self.counts > 0).double().mean().item()

    def perplexity(self) -> float:
        """exp(-sum_k p_k log p_k), p_k the share of code k: 1 if one code is used, K if all are equally."""
        self._check_started()
        return float(np.exp(entropy(self.counts)))

    def dead(self) -> Tensor:
        """Numbers (int64) of the codes that were never used, in rising order; all of them if nothing was counted."""
        return (self.counts == 0).nonzero()[:, 0]

    def _check_started(self) -> None:
        if self.counts.sum() == 0:
            raise ValueError("no index counted yet: call update first")


def usage(index: Array, size: int) -> float:
    """Share of the `size` codes that occur in the index, in (0, 1]. At most index.numel() / size.

    Raises ValueError for indices that are no whole numbers in 0 .. size - 1.
    """
    return UsageMeter(size).update(index).usage()


def perplexity(index: Array, size: int) -> float:
    """Effective number of codes in use, exp(entropy of their shares), in [1, size]. At most index.numel().

    As DeepMind's VQ-VAE example has it, which takes it of a batch.
    Raises ValueError for indices that are no whole numbers in 0 .. size - 1.
    """
    return UsageMeter(size).update(index).perplexity()


def mode_entropy(latents: Array, codebook: Array, labels: Array) -> float:
    """Entropy, in nats, of the modes the codes sit in: 0 (all in one) to log(number of modes) (evenly spread).

    -sum_m p_m log p_m, p_m the share of codes whose nearest latent has label m (2603.17052, as reported).
    exp of it is the effective number of modes covered. All codes count, dead ones too: a few live codes may
    still serve every mode.
    labels: a whole number for each latent, of any shape. Raises ValueError for another number of them.
    """
    codebook = check_codebook(codebook)
    latents, labels = check_labelled(latents, labels)
    nearest = nearest_code(codebook, latents.reshape(-1, latents.shape[-1]))
    return entropy(labels[nearest.cpu()].unique(return_counts=True)[1])


def pairwise_distance(codebook: Array, metric: str = "cosine") -> float:
    """Mean distance between two different codes; small means that the codebook has shrunk together.

    metric: "cosine", 1 - cos(e_i, e_j), in [0, 2] (2603.17052); or "euclidean", in the latents' units.
    Cosine depends on the origin: codes far from it all point the same way. Centre first to compare codebooks.
    Raises ValueError for a single code, another metric, or a code of length 0 under "cosine".
    """
    codebook = check_codebook(codebook)
    if len(codebook) < 2:
        raise ValueError(f"need at least two codes, got shape {tuple(codebook.shape)}")
    codes, pairs = codebook.detach().double(), len(codebook) * (len(codebook) - 1)
    if metric == "cosine":
        lengths = codes.norm(dim=1, keepdim=True)
        if (lengths < 1 / LARGEST).any():
            raise ValueError(f"code {int(lengths[:, 0].argmin())} is zero: it has no direction")
        total = (codes / lengths).sum(dim=0).square().sum().item()  # sum of all cosines, the diagonal included
        return min(max(0.0, 1 - (total - len(codes)) / pairs), 2.0)
    if metric == "euclidean":
        codes = codes - codes.mean(dim=0)  # far from the origin cdist would lose digits
        return sum(float(torch.cdist(part, codes).sum()) for part in codes.split(1024)) / pairs
    raise ValueError(f"metric must be 'cosine' or 'euclidean', got {metric!r}")


# ---------------------------------------------------------------- how many dimensions are filled


def principal_variances(x: Array) -> np.ndarray:
    """Variances (D,) along the principal components of x (..., D), largest first; all 0 for constant x.

    In the squared units of x. Raises ValueError for fewer than two vectors.
    """
    x = check_latents(x)
    flat = x.detach().reshape(-1, x.shape[-1])
    if len(flat) < 2:
        raise ValueError(f"need at least two vectors, got shape {tuple(x.shape)}")
    with threads_for((len(flat) + flat.shape[1]) * flat.shape[1] ** 2):
        if torch.equal(flat.amin(dim=0), flat.amax(dim=0)):
            return np.zeros(flat.shape[1])
        parts = flat.split(PART)  # float64 for one at a time
        mean = sum(part.double().sum(dim=0) for part in parts) / len(flat)
        covariance = sum((centered := part.double() - mean).T @ centered for part in parts) / len(flat)
        return np.linalg.eigvalsh(covariance.cpu().numpy())[::-1].clip(min=0)


def effective_dimension(x: Array, share: float = 0.99) -> int:
    """Smallest number of principal components that hold `share` of the variance (DCVQ; 2605.06870), 1 .. D.

    0 for constant x. Compare it with the same figure for offline k-means: few codes cannot fill many dimensions.
    x: (..., D). Raises ValueError for a share not in (0, 1], or fewer than two vectors.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    variances = principal_variances(x)
    if variances.sum() == 0:
        return 0
    return int(np.searchsorted(np.cumsum(variances) / variances.sum(), share * (1 - 1e-12)) + 1)


def effective_rank(x: Array) -> float:
    """exp(entropy of the singular values of centred x, normalised to sum 1), in [1, D] (Roy and Vetterli, 2007).

    0 for constant x. x: (..., D). Raises ValueError for fewer than two vectors.
    """
    deviations = np.sqrt(principal_variances(x))
    return float(np.exp(entropy(deviations))) if deviations.sum() > 0 else 0.0


def participation_ratio(x: Array) -> float:
    """(sum of variances)^2 / sum of squared variances over principal components, in [1, D]; 0 for constant x.

    x: (..., D). Raises ValueError for fewer than two vectors.
    """
    variances = principal_variances(x)
    variances = np.ldexp(variances, -np.frexp(variances.max())[1])  # so that no square overflows
    return float(variances.sum() ** 2 / (variances**2).sum()) if variances.sum() > 0 else 0.0


# ---------------------------------------------------------------- how good the codes are


def quantization_error(latents: Array, codebook: Array, relative: bool = True) -> float:
    """Mean squared distance of a latent to its nearest code, over the latents' total variance tr Cov(z).

    0 is perfect, 1 is what a single code at the mean gives, more is worse than that. relative=False gives the
    squared distance itself, which also falls when the latents shrink.
    Raises ValueError for codes of other dimensions, and if latents that do not vary, or hardly, are to be compared
    with their variance.
    """
    latents, codebook = check_latents(latents), check_codebook(codebook)
    flat, codes = latents.detach().reshape(-1, latents.shape[-1]), codebook.detach()
    parts = zip(flat.split(PART), nearest_code(flat, codes).split(PART))
    error = sum((z.double() - codes[index].double()).square().sum().item() for z, index in parts) / len(flat)
    if not relative:
        return error
    variance = principal_variances(flat).sum()
    if variance < error / LARGEST or variance == 0:
        raise ValueError(f"all latents are equal, shape {tuple(latents.shape)}: no variance to compare with")
    return float(error / variance)


def optimality_gap(latents: Array, codebook: Array, seed: int = 0) -> float:
    """Quantisation error of the codebook over that of offline k-means with as many codes, on the same latents.

    About 1: the codebook is as good as these latents allow, what is wrong is elsewhere. Far above 1: the codebook
    is at fault. infinity if k-means reaches error 0 and the codebook does not.

    k-means is fitted to half of the latents, n of them, drawn by `seed`, and both are measured on all. What it gains
    on those that it knows and what it loses on the others, a share of about K / n each, cancel. So codes at the true
    centres have a gap of about 1: mostly .8 to 1.2 with 16 latents a code, the least that will do, and .9 to 1.1 with
    64. It is lower where k-means got stuck, by the seed, and for clusters so rare that their half holds none. Codes
    that were trained on these very latents, all N, have one that is lower by K / N to 2 K / N: about .9 with 16.
    Raises ValueError for fewer latents than 16 a code, and for codes of other dimensions.
    """
    latents, codebook = check_latents(latents), check_codebook(codebook)
    flat = latents.reshape(-1, latents.shape[-1])
    if len(flat) < LATENTS_PER_CODE * len(codebook):
        needed = f"need {LATENTS_PER_CODE} a code, {LATENTS_PER_CODE * len(codebook)} in all"
        raise ValueError(f"{len(flat)} latents are too few to judge {len(codebook)} codes by: {needed}")
    half = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))[: len(flat) // 2]
    centroids, _ = kmeans(flat[half.to(flat.device)], len(codebook), seed)
    best = quantization_error(flat, centroids, relative=False)
    error = quantization_error(flat, codebook, relative=False)
    return error / best if best > 0 else (1.0 if error == 0 else float("inf"))


def reconstruction_error(reconstruction: Array, x: Array) -> float:
    """Mean squared error over the variance of all entries of x, any shape: 0 if exact, 1 for a constant at the mean.

    Raises ValueError for shapes that differ, and for an x that does not vary.
    """
    reconstruction, x = as_tensor(reconstruction, "reconstruction"), as_tensor(x)
    if reconstruction.shape != x.shape or x.numel() == 0:
        raise ValueError(f"shapes must be equal and not empty: {tuple(reconstruction.shape)}, {tuple(x.shape)}")
    wide = wide_type(reconstruction, x)
    if wide.is_complex:
        raise ValueError(f"both must hold real numbers, got {reconstruction.dtype} and {x.dtype}")
    error = (reconstruction.to(wide) - x.to(wide)).double().square().mean().item()
    variance = x.double().var(correction=0).item()
    if not (variance > 0 and np.isfinite(error / variance)):
        raise ValueError(f"both must be finite and x must vary, got error {error}, variance {variance}")
    return error / variance


def separability(latents: Array, labels: Array, reader: Any = None) -> float:
    """How well the label can be read off a latent: 5-fold cross-validated accuracy, in [0, 1].

    reader: a scikit-learn classifier; by default the vote of the 5 nearest neighbours. Compare it with the same
    figure for the inputs, and with the share of the largest class, which is what guessing gives.
    labels: a whole number for each latent.
    Raises ValueError for another number of them, fewer than 2 classes, or a class of fewer than 5 members.
    """
    from sklearn.model_selection import cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    latents, labels = check_labelled(latents, labels)
    _, sizes = labels.unique(return_counts=True)
    if len(sizes) < 2 or sizes.min() < 5:
        raise ValueError(f"need at least 2 classes of at least 5 members, got sizes {sizes.tolist()}")
    points = latents.detach().reshape(len(labels), -1).double().cpu().numpy()
    reader = KNeighborsClassifier(5) if reader is None else reader
    with threads_for(len(points) * points.size):
        return float(cross_val_score(reader, points, labels.numpy(), cv=5).mean())


# ---------------------------------------------------------------- how sure we are


def confidence_interval(values: ArrayLike, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Bootstrap percentile interval of the mean of independent runs (scipy.stats.bootstrap, 2,000 resamples).

    values: (runs,). level: the share of such intervals that hold the mean, about, in (0, 1). Returns (low, high).
    Raises ValueError for fewer than two values, values that are not finite, or another level.
    """
    from scipy.stats import bootstrap

    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not (np.isfinite(np.abs(values).max() * len(values)) and 0 < level < 1):
        raise ValueError(f"need at least two finite values and a level in (0, 1), got {values} and {level}")
    result = bootstrap((values,), np.mean, n_resamples=2000, confidence_level=level, method="percentile", rng=seed)
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def entropy(weights: ArrayLike) -> float:
    """Entropy in nats of weights of any shape, normalised to sum 1: 0 if one has all, to log(how many there are).

    Raises ValueError for a negative or infinite weight, or if all are 0.
    """
    from scipy import stats

    weights = np.asarray(weights, dtype=np.float64)
    if not 0 < weights.sum() < np.inf or (weights < 0).any():
        raise ValueError(f"weights must be finite, not negative and not all 0, got {weights}")
    return float(stats.entropy(weights, axis=None))


def summary(runs: "DataFrame", by: list[str], y: str) -> "DataFrame":
    """Mean of y and its bootstrap 95 % interval for each group of rows: columns `by`, mean, low, high.

    runs: one row each. Raises ValueError for a group of fewer than two, a missing column, and values not finite.
    """
    from pandas import DataFrame

    check_columns(runs, *by, y)
    rows = []
    for names, values in runs.groupby(by, sort=False, dropna=False)[y]:
        low, high = confidence_interval(values)
        rows.append((*names, values.mean(), low, high))
    return DataFrame(rows, columns=[*by, "mean", "low", "high"])
