"""The figures behind a diagnosis, each beside a reference measured on the same data.

The codebook beside k-means on the same latents, the encoder beside the inputs themselves, the dimensions that codes
fill beside those that log2 K bits can pay for, usage beside what so many latents could show.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vqnotes import metrics
from vqnotes.kmeans import kmeans
from vqnotes.pairing import Inputs, Observed, around, observe
from vqnotes.search import nearest_code

PER_CODE, AT_LEAST, AT_MOST = 16, 8192, 2**18  # latents in the sample that references are measured on
INPUTS_SAMPLE, INPUTS_PER_CODE = 8192, 16
LABEL_SAMPLE = 1500


@dataclass(frozen=True)
class Figures:
    """What `figures_of` found. None: not measured, for want of inputs, labels or latents.

    Errors are shares of the latents' variance, losses shares of the inputs' variance.
    """

    latents: int  # N
    codes: int  # K
    sample: int  # latents that the references are measured on
    spread: float  # the latents' variance, summed over dimensions
    distinct: int  # codes that differ from each other
    usage: float
    ceiling: float  # expected usage if all codes were equally likely: 1 - (1 - 1/K)^N
    perplexity: float
    counts: Tensor | None = field(default=None, repr=False, compare=False)  # how often each code is used
    error: float | None = None  # of the codebook
    error_deviation: float | None = None  # standard error of it, from the sample
    reference_codes: int | None = None  # of k-means: K, or as many as the sample allows
    best_low: float | None = None  # error of k-means on the half that it was fitted to
    best: float | None = None  # and on the other half
    gap: float | None = None  # error / best on the other half: k-means is at a disadvantage
    gap_high: float | None = None  # on its own half: k-means is at an advantage; infinite if it has fewer codes
    dimensions: float | None = None  # that share the bits, of the codes in use
    paid: float | None = None  # of the inputs, or of the latents if there are no inputs
    inputs_codes: int | None = None
    inputs_loss: float | None = None  # of the inputs, by so many codes placed on the inputs themselves
    encoder_loss: float | None = None  # of the inputs, by a regression on a latent and, on a grid, those around it
    codes_loss: float | None = None  # by the same regression on their nearest centroids: what the best codes leave
    separability: float | None = None
    separability_inputs: float | None = None
    chance: float | None = None  # share of the largest class

    @property
    def left(self) -> float:
        """Error of k-means between its two halves: what the best codes leave of the latents' variance."""
        return (self.best_low + self.best) / 2


# ---------------------------------------------------------------- from data to figures


def figures_of(latents, codebook, *, seed: int = 0, **given) -> Figures:
    """The figures behind a verdict. Arguments and errors are those of `diagnosis.diagnose`."""
    return measured(observe(latents, codebook, **given), seed)


def measured(seen: Observed, seed: int = 0) -> Figures:
    """The figures behind a verdict on what was observed."""
    flat, codes, index, grid, paired = seen.counted, seen.codes, seen.index, seen.grid, seen.inputs
    size, count = len(codes), len(flat)
    meter = metrics.UsageMeter(size).update(index)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    rows = order[: min(AT_MOST, max(AT_LEAST, PER_CODE * size))]
    center = flat.mean(0, dtype=torch.float64)
    points = flat[rows].double() - center
    spread = 0.0 if (points == points[0]).all() else points.square().sum(1).mean().item()
    found = {
        "latents": count,
        "codes": size,
        "sample": len(rows),
        "spread": spread,
        "distinct": len(codes.unique(dim=0)),
        "usage": meter.usage(),
        "ceiling": -math.expm1(count * math.log1p(-1 / size)) if size > 1 else 1.0,
        "perplexity": meter.perplexity(),
        "counts": meter.counts,
    }
    if spread > 0 and len(rows) >= 2 * INPUTS_PER_CODE:
        # Centred and of variance 1, so that squared distances are shares of it and no digit is lost.
        points, chosen = ((some / spread**0.5).float() for some in (points, codes[index[rows]].double() - center))
        half, bits = len(points) // 2, math.log2(size)
        centroids, _ = kmeans(points[:half], min(size, half // 4), seed)
        found |= _codebook_figures(points, chosen, centroids, size)
        found["dimensions"], found["paid"] = (
            shared_dimensions(metrics.principal_variances(some), bits) for some in (chosen, points)
        )
        if paired is not None:
            rows = seen.rows[rows[: min(INPUTS_SAMPLE, max(512, 2**25 // paired.size))]]
            places = paired.grid if len(paired.grid) > 1 else grid
            near = ((around(seen.latents, places, rows, seen.mask).double() - center) / spread**0.5).float()
            found |= _encoder_figures(near, paired.rows(rows), centroids, size, seed)
    if seen.labels is not None:
        found |= _label_figures(seen, seed)
    return Figures(**found)


def _codebook_figures(points: Tensor, chosen: Tensor, centroids: Tensor, size: int) -> dict:
    """The codes chosen for points (n, D) beside centroids fitted to the first half of them. size: K."""
    half, number = len(points) // 2, len(centroids)
    nearest = centroids[nearest_code(points, centroids)]
    own, best = ((points - some).double().square().sum(1) for some in (chosen, nearest))
    own_low, error, best_low, best_error = (
        part.mean().item() for one in (own, best) for part in one.tensor_split([half])
    )
    return {
        "error": error,
        "error_deviation": own[half:].std().item() / math.sqrt(len(points) - half),
        "reference_codes": number,
        "best_low": best_low if number == size else 0.0,
        "best": best_error,
        "gap": _ratio(error, best_error),
        "gap_high": _ratio(own_low, best_low) if number == size else math.inf,
    }


def _ratio(error: float, best: float) -> float:
    return error / best if best > 0 else (1.0 if error == 0 else math.inf)


def _encoder_figures(near: Tensor, x: Tensor, centroids: Tensor, size: int, seed: int) -> dict:
    """The encoder beside its inputs x (n, P). near: for each the latent, and those around it (n, places, D)."""
    half = len(x) // 2
    if (x[:half] == x[0]).all() or (x[half:] == x[half]).all():
        raise ValueError(f"the inputs do not vary: {half} of {len(x)}, chosen at random, are equal")
    x = x / x.abs().max()  # so that squares do not overflow
    reduced, variances = _principal_part(x, 64, seed)
    number = min(max(16, size), half // INPUTS_PER_CODE)
    own = kmeans(reduced[:half], number, seed)[0]
    index = nearest_code(near, centroids)
    by_codes = min(_loss_by_mean(index[:, near.shape[1] // 2], x), _loss_by_reading(centroids[index], x, seed))
    return {
        "paid": shared_dimensions(variances, math.log2(size)),
        "inputs_codes": number,
        "inputs_loss": _loss_by_mean(nearest_code(reduced, own), x),
        "codes_loss": by_codes,
        "encoder_loss": min(by_codes, _loss_by_reading(near, x, seed)),  # codes tell no more than the latent does
    }


def shared_dimensions(variances, bits: float) -> float:
    """How many dimensions share the bits of water-filling: exp(entropy of their shares); 0 if there are no bits."""
    given = metrics.water_filling(variances, bits).bits
    return float(np.exp(metrics.entropy(given))) if given.sum() > 0 else 0.0


def _loss_by_mean(index: Tensor, x: Tensor) -> float:
    """Share of the variance of x left over by its mean for each index, from half to half."""
    half, number = len(x) // 2, int(index.max()) + 1
    sums = torch.zeros(number, x.shape[1]).index_add_(0, index[:half], x[:half])
    counts = torch.bincount(index[:half], minlength=number)[:, None]
    means = torch.where(counts > 0, sums / counts.clamp_min(1), x[:half].mean(0))
    return _left_over(x[half:], means[index[half:]])


def _loss_by_reading(near: Tensor, x: Tensor, seed: int) -> float:
    """Share of the variance of x left over by ridge regression on what is near (n, places, D), from half to half.

    The features are its principal components, and likenesses to some of the points, far and close (Nystroem).
    """
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import RidgeCV

    half = len(x) // 2
    seen = _principal_part(near.flatten(1), 256, seed)[0]
    seen = (seen / seen.square().sum(1).mean().sqrt().clamp_min(1e-30)).numpy()  # 0 if all codes near coincide
    features = [seen / seen.std(0).clip(1e-6)]
    for reach in (0.5, 8):
        kernel = Nystroem(gamma=reach, n_components=min(128, half), random_state=seed).fit(seen[:half])
        features.append(kernel.transform(seen))
    features = np.concatenate(features, axis=1)
    reader = RidgeCV((1e-2, 1.0, 1e2, 1e4)).fit(features[:half], x[:half].numpy())
    return _left_over(x[half:], torch.from_numpy(reader.predict(features[half:])))


def _left_over(x: Tensor, guess: Tensor) -> float:
    left = (x - guess).double().square().sum() / (x - x.mean(0)).double().square().sum()
    return max(left.item(), 1e-12)  # so that one can divide by it


def _principal_part(x: Tensor, most: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """x (n, P) in its first principal components, at most so many, and their variances."""
    from sklearn.decomposition import PCA

    solver = "randomized" if x.shape[1] > 4 * most else "full"
    fitted = PCA(min(most, *x.shape), svd_solver=solver, random_state=seed).fit(x.numpy())
    return torch.from_numpy(fitted.transform(x.numpy())).float(), fitted.explained_variance_


def _label_figures(seen: Observed, seed: int) -> dict:
    """How well labels, one a latent or one an input, are read off latents and inputs."""
    y, each = seen.labels, len(seen.labels) == len(seen.latents)
    rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    rows = (rows[seen.mask[rows]] if each and seen.mask is not None else rows)[:LABEL_SAMPLE]
    classes, where, sizes = y[rows].unique(return_inverse=True, return_counts=True)
    rows = rows[sizes[where] >= 5]  # smaller classes cannot be cross-validated
    if (sizes >= 5).sum() < 2:
        return {}
    found = {
        "separability": metrics.separability(seen.latents.reshape(len(y), -1)[rows], y[rows]),
        "chance": sizes.max().item() / len(rows),
    }
    if seen.inputs is not None:
        x = seen.inputs.rows(rows) if each else seen.inputs.whole(rows)
        found["separability_inputs"] = metrics.separability(x, y[rows])
    return found
