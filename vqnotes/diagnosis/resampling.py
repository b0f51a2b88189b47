"""How sure a figure is: it is taken again on resamples of what it was taken of (the bootstrap; Efron, 1979).

What is drawn are units: inputs with all of their latents, since those of one image are alike. Units are put into
groups at random, and each group gets weights that are Poisson(1), one for each resample. So all figures, of whichever
latents they are, see the same resamples, and cost next to nothing at any number of latents.
"""

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["DRAWS", "Resampled", "perplexities", "spread_of_share", "units_of"]

DRAWS, GROUPS = 200, 1024
FEWEST_UNITS = 32  # with fewer inputs, say a single large image, latents are the units


def units_of(rows: Tensor, grid: tuple) -> Tensor:
    """To which unit each latent belongs, (n,): its input, or itself if there are fewer than 32 inputs.

    rows: places of the latents on their grid (inputs, places ...), whole numbers, (n,).
    """
    return rows // math.prod(grid[1:]) if grid[0] >= FEWEST_UNITS else rows


class Resampled:
    """Means of numbers of latents, over all of them and over resamples of their units.

    units: (n,) whole numbers; with one seed, a unit has the same weights wherever it occurs. columns: of each name
    one number a latent, (n,), or several, (n, C).
    `means[name]`: (1 + DRAWS,) or (1 + DRAWS, C) in double precision; the first is that of the latents as they are.
    Raises ValueError for no units, or columns of another length.
    """

    def __init__(self, units: Tensor, seed: int, columns: Mapping[str, Tensor]):
        lengths = [len(column) for column in columns.values()]
        if not len(units) or set(lengths) - {len(units)}:
            raise ValueError(f"need one row for each unit, and one unit or more: {len(units)} units, {lengths} rows")
        flat = [column.double().reshape(len(units), -1) for column in columns.values()]
        table = torch.cat([torch.ones(len(units), 1, dtype=torch.float64), *flat], dim=1)
        sums = torch.zeros(GROUPS, table.shape[1], dtype=torch.float64).index_add_(0, _groups(units, seed), table)
        count, *parts = (_weights(seed) @ sums).split([1, *(one.shape[1] for one in flat)], dim=1)
        parts[:] = [part / count.clamp_min(1e-300) for part in parts]
        self.means: dict[str, np.ndarray] = {
            name: part.reshape(-1, *column.shape[1:]).numpy() for (name, column), part in zip(columns.items(), parts)
        }


def _groups(units: Tensor, seed: int) -> Tensor:
    """A group for each unit, as if at random, that depends on unit and seed alone: mixed as by SplitMix64."""
    mixed = units.numpy().astype(np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return torch.from_numpy(((mixed ^ (mixed >> np.uint64(31))) % np.uint64(GROUPS)).astype(np.int64))


@lru_cache(maxsize=2)
def _weights(seed: int) -> Tensor:
    """Of each group in each resample, (1 + DRAWS, GROUPS); 1 in the first. Every figure asks for them."""
    drawn = np.random.default_rng(seed).poisson(1.0, (DRAWS, GROUPS))
    return torch.from_numpy(np.concatenate([np.ones((1, GROUPS)), drawn]).astype(np.float64))


def perplexities(units: Tensor, index: Tensor, size: int, seed: int) -> np.ndarray:
    """The perplexity of resamples, (DRAWS,), as ratios to their mean: a resample shows fewer codes than there are.

    units, index: (n,) whole numbers, the latter below size, K.
    """
    from scipy.sparse import coo_array
    from scipy.stats import entropy

    at = _groups(units, seed).numpy(), index.numpy()
    counts = coo_array((np.ones(len(index)), at), shape=(GROUPS, size)).tocsc()
    found = np.exp(entropy(_weights(seed)[1:].numpy() @ counts, axis=1))
    return found / np.nanmean(found)  # NaN is a resample without any unit, where there are few


def spread_of_share(share: float, count: int, seed: int) -> np.ndarray:
    """A share of `count` cases, and as it might have come out in other such cases: (1 + DRAWS,), binomial."""
    drawn = np.random.default_rng(seed).binomial(count, share, DRAWS) / count
    return np.concatenate([[share], drawn])
