"""Reverse water-filling: how the bits are best shared among directions of different variance."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class WaterFilling(NamedTuple):
    """What `water_filling` gives: the least distortion, and how the bits are shared for it."""

    distortion: float  # summed over components, in the unit of the variances
    level: float  # of the water, in the same unit
    active: int  # components that get bits
    bits: np.ndarray  # (D,) of each


def water_filling(variances: ArrayLike, bits: float) -> WaterFilling:
    """Reverse water-filling: the least squared error of independent Gaussians at `bits` bits in all.

    The water level t solves sum_i max(0, log2(variance_i / t) / 2) = bits; the distortion is
    sum_i min(t, variance_i) (Cover and Thomas, theorem 10.3.3). With K codes, bits = log2 K. No quantiser of such
    Gaussian vectors does better; other distributions with these variances can.
    variances: (D,), not negative. Raises ValueError for negative or no variances, or negative bits.
    """
    values = np.asarray(variances, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values.sum()) or (values < 0).any():
        raise ValueError(f"variances must be (D,), finite and not negative, got shape {values.shape}: {values}")
    if not 0 <= 2 * bits < np.inf:
        raise ValueError(f"bits must be finite and at least 0, got {bits}")
    if bits == 0 or values.max() == 0:
        return WaterFilling(float(values.sum()), float(values.max()), 0, np.zeros_like(values))
    logs = np.log2(np.sort(values[values > 0])[::-1])
    levels = (np.cumsum(logs) - 2 * bits) / np.arange(1, len(logs) + 1)  # if the first n components are active
    log_level = levels[max(np.flatnonzero(logs > levels), default=0)]  # bits may be too few to tell from 0
    level = 2.0**log_level
    each = np.zeros_like(values)
    above = values > level
    each[above] = (np.log2(values[above]) - log_level) / 2
    return WaterFilling(float(np.minimum(values, level).sum()), float(level), int(above.sum()), each)
