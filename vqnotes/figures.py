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
from vqnotes.quantizers import check_codebook, check_latents, kmeans, nearest_code

PER_CODE, AT_LEAST, AT_MOST = 16, 8192, 2**18  # latents in the sample that references are measured on
ENCODER_SAMPLE, ENCODER_PER_CODE = 8192, 16
LABEL_SAMPLE = 1500


@dataclass(frozen=True)
class Figures:
    """What `measure` found. None: not measured, for want of inputs, labels or latents.

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
    encoder_codes: int | None = None
    loss: float | None = None  # of the inputs, by the codes of k-means on the latents
    loss_inputs: float | None = None  # and on the inputs themselves
    neighbours: float | None = None  # loss of the mean input of a latent's five nearest neighbours
    neighbours_inputs: float | None = None
    separability: float | None = None
    separability_inputs: float | None = None
    chance: float | None = None  # share of the largest class


# ---------------------------------------------------------------- from data to figures


def measure(latents, codebook, *, labels=None, inputs=None, seed: int = 0) -> Figures:
    """The figures behind a verdict. Arguments and errors are those of `diagnosis.diagnose`."""
    flat, codes, grid = parted(latents, codebook)
    paired = None if inputs is None else _Inputs(inputs, grid)
    size, count = len(codes), len(flat)
    meter = metrics.UsageMeter(size)
    meter.update(nearest_code(flat, codes))
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
    if spread > 0 and len(rows) >= 2 * ENCODER_PER_CODE:
        # Centred and of variance 1, so that squared distances are shares of it and no digit is lost.
        points, placed = ((some / spread**0.5).float() for some in (points, codes.double() - center))
        found |= _codebook_figures(points, placed, seed)
        found |= _encoder_figures(points, placed, rows, paired, seed)
    if labels is not None:
        found |= _label_figures(flat, labels, paired, grid, seed)
    return Figures(**found)


def _codebook_figures(points: Tensor, codes: Tensor, seed: int) -> dict:
    """The codebook beside k-means fitted to one half of the points."""
    half = len(points) // 2
    number = min(len(codes), half // 4)
    centroids, _ = kmeans(points[:half], number, seed)
    own, best = ((points - some[nearest_code(points, some)]).double().square().sum(1) for some in (codes, centroids))
    own_low, error, best_low, best_error = (
        part.mean().item() for one in (own, best) for part in one.tensor_split([half])
    )
    return {
        "error": error,
        "error_deviation": own[half:].std().item() / math.sqrt(len(points) - half),
        "reference_codes": number,
        "best_low": best_low if number == len(codes) else 0.0,
        "best": best_error,
        "gap": _ratio(error, best_error),
        "gap_high": _ratio(own_low, best_low) if number == len(codes) else math.inf,
    }


def _ratio(error: float, best: float) -> float:
    return error / best if best > 0 else (1.0 if error == 0 else math.inf)


def _encoder_figures(points: Tensor, codes: Tensor, rows: Tensor, paired: "_Inputs | None", seed: int) -> dict:
    """The encoder beside the inputs, as far as they are there; and the dimensions that codes fill."""
    bits, used = math.log2(len(codes)), codes[nearest_code(points, codes)]
    dimensions = shared_dimensions(metrics.principal_variances(used), bits)
    if paired is None:
        return {"dimensions": dimensions, "paid": shared_dimensions(metrics.principal_variances(points), bits)}
    count = min(len(points), ENCODER_SAMPLE, max(512, 2**25 // paired.size))
    z, x = points[:count], paired.rows(rows[:count])
    if (x == x[0]).all():
        raise ValueError(f"the inputs do not vary: shape {tuple(paired.inputs.shape)}")
    reduced, variances = _principal_part(x, seed)
    number = min(max(16, len(codes)), count // 2 // ENCODER_PER_CODE)
    found = {"dimensions": dimensions, "paid": shared_dimensions(variances, bits), "encoder_codes": number}
    for name, seen in (("", z), ("_inputs", reduced)):
        found["loss" + name] = _loss_by_codes(seen, x, number, seed)
        found["neighbours" + name] = _loss_by_neighbours(seen, x)
    return found


def shared_dimensions(variances, bits: float) -> float:
    """How many dimensions share the bits of water-filling: exp(entropy of their shares); 0 if there are no bits."""
    given = metrics.water_filling(variances, bits).bits
    share = given[given > 0] / given.sum() if given.sum() > 0 else np.ones(0)
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0


def _loss_by_codes(seen: Tensor, x: Tensor, number: int, seed: int) -> float:
    """Share of the variance of x left over by its mean given the nearest of `number` centroids of what is seen.

    Centroids and means come from the first half, the loss from the second.
    """
    half = len(x) // 2
    centroids, _ = kmeans(seen[:half], number, seed)
    near = nearest_code(seen, centroids)
    sums = torch.zeros(number, x.shape[1]).index_add_(0, near[:half], x[:half])
    counts = torch.bincount(near[:half], minlength=number)[:, None]
    means = torch.where(counts > 0, sums / counts.clamp_min(1), x[:half].mean(0))
    return _left_over(x[half:], means[near[half:]])


def _loss_by_neighbours(seen: Tensor, x: Tensor) -> float:
    """Share of the variance of x left over by the mean x of the five nearest neighbours, from half to half."""
    from sklearn.neighbors import KNeighborsRegressor

    half = len(x) // 2
    reader = KNeighborsRegressor(min(5, half)).fit(seen[:half].numpy(), x[:half].numpy())
    return _left_over(x[half:], torch.from_numpy(reader.predict(seen[half:].numpy())))


def _left_over(x: Tensor, guess: Tensor) -> float:
    left = (x - guess).double().square().sum() / (x - x.mean(0)).double().square().sum()
    return max(left.item(), 1e-12)  # so that it has a logarithm


def _principal_part(x: Tensor, seed: int) -> tuple[Tensor, np.ndarray]:
    """x (n, P) in its first 64 principal components, and their variances."""
    from sklearn.decomposition import PCA

    solver = "randomized" if x.shape[1] > 256 else "full"
    fitted = PCA(min(64, *x.shape), svd_solver=solver, random_state=seed).fit(x.numpy())
    return torch.from_numpy(fitted.transform(x.numpy())).float(), fitted.explained_variance_


def _label_figures(flat: Tensor, labels, paired: "_Inputs | None", grid: tuple, seed: int) -> dict:
    """How well labels, one a latent or one an input, are read off latents and inputs."""
    y = torch.as_tensor(labels).flatten().cpu()
    if len(y) not in (len(flat), grid[0]) or y.is_floating_point():
        raise ValueError(
            f"need whole numbers as labels, one for each of {len(flat)} latents or {grid[0]} inputs, got {y.dtype} {len(y)}"
        )
    rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:LABEL_SAMPLE]
    classes, where, sizes = y[rows].unique(return_inverse=True, return_counts=True)
    rows = rows[sizes[where] >= 5]  # smaller classes cannot be cross-validated
    if (sizes >= 5).sum() < 2:
        return {}
    seen = flat.reshape(len(y), -1)[rows]
    found = {
        "separability": metrics.separability(seen, y[rows]),
        "chance": sizes.max().item() / len(rows),
    }
    if paired is not None:
        x = paired.rows(rows) if len(y) == len(flat) else paired.whole(rows)
        found["separability_inputs"] = metrics.separability(x, y[rows])
    return found


# ---------------------------------------------------------------- what people have


def parted(latents, codebook) -> tuple[Tensor, Tensor, tuple]:
    """Latents as rows (N, D), codes (K, D), and the shape of the latents without D: (inputs, ...)."""
    latents, codes = (torch.as_tensor(one).detach().cpu() for one in (latents, codebook))
    check_codebook(codes)
    check_latents(latents)
    dim = codes.shape[1]
    if latents.shape[-1] != dim and latents.ndim > 2 and latents.shape[1] == dim:
        latents = latents.movedim(1, -1)
    check_latents(latents, dim)
    grid = tuple(latents.shape[:-1]) or (1,)
    return latents.reshape(-1, dim), codes, grid


class _Inputs:
    """Inputs beside latents: each latent's own input, or the patch of the input that stands at its place."""

    def __init__(self, inputs, grid: tuple):
        x = torch.as_tensor(inputs).detach().cpu()
        if x.numel() == 0 or not torch.isfinite(x.double() if not x.is_floating_point() else x).all():
            raise ValueError(f"inputs are empty, or hold NaN or infinite values: shape {tuple(x.shape)}")
        self.inputs, inner = x, grid[1:]
        if len(x) == math.prod(grid):
            self.patches, self.grid = x.reshape(len(x), -1), (len(x),)
        else:
            space = x.shape[x.ndim - len(inner) :]
            fits = x.ndim in (len(inner) + 1, len(inner) + 2) and all(s % g == 0 for s, g in zip(space, inner))
            if len(x) != grid[0] or not inner or not fits:
                raise ValueError(f"inputs {tuple(x.shape)} do not belong to latents on a grid {grid}")
            channels = x.shape[1] if x.ndim == len(inner) + 2 else 1
            x = x.reshape(len(x), channels, *(part for s, g in zip(space, inner) for part in (g, s // g)))
            places, within = range(2, x.ndim, 2), range(3, x.ndim, 2)
            self.patches, self.grid = x.permute(0, *places, 1, *within), grid
        self.size = self.patches[(0,) * len(self.grid)].numel()

    def rows(self, rows: Tensor) -> Tensor:
        """What belongs to these latents, (n, size) float32."""
        at = np.unravel_index(rows.numpy(), self.grid)
        return self.patches[tuple(map(torch.from_numpy, at))].reshape(len(rows), -1).float()

    def whole(self, rows: Tensor) -> Tensor:
        return self.inputs[rows].reshape(len(rows), -1).float()
