"""How many items share their whole tuple of indices with another item."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vqnotes._checks import Array, check_index

__all__ = ["Collisions", "collisions"]


class Collisions(NamedTuple):
    """Items with tuples of indices, one index a level.

    sharing: share of the items whose whole tuple another item has too, in [0, 1]. tuples: that differ. largest: items
    with the commonest tuple. expected_sharing, expected_tuples: the same if each item drew its tuple at random, all
    equally likely (the birthday problem); None if it is not known how many tuples there could be.
    """

    items: int
    tuples: int
    sharing: float
    largest: int
    expected_sharing: float | None
    expected_tuples: float | None


def collisions(*indices: Array, size: int | Sequence[int] | None = None) -> Collisions:
    """How many items cannot be told apart by their codes.

    indices: one array (..., levels), whose last axis runs over the levels of a residual quantiser, heads or groups;
    or several of one shape, one for each level, such as (N,). Whole numbers from 0 on.
    size: K, the number of codes of each level, or one number for each. None: nothing is expected.

    Recommenders by residual codes append a number to items that collide (S. Rajput et al., arXiv:2305.05065).
    `diagnose_tokens(..., collisions=True)` reads ids from files, with padding, and compares with shuffled ones.
    Raises ValueError without indices, for those that are not whole, below 0 or from K on, for shapes that differ, and
    for sizes that are not one for each level.
    """
    levels = _levels(indices)
    sizes = None if size is None else _sizes(size, len(levels))
    for number, one in enumerate(levels):
        low, high = int(one.min()), int(one.max())
        if low < 0:
            raise ValueError(f"indices are whole numbers from 0 on, level {number} has {low}: leave padding out")
        if sizes is not None and high >= sizes[number]:
            raise ValueError(f"indices of level {number} must be in 0 .. {sizes[number] - 1}, got {high}")
    tuples = np.zeros(len(levels[0]), dtype=np.int64)
    for one in levels:  # tuples so far and ids are numbered anew, so that no product overflows
        ids = np.unique(one, return_inverse=True)[1]
        tuples = np.unique(tuples * (int(ids.max()) + 1) + ids, return_inverse=True)[1]
    times = np.bincount(tuples)
    items, sharing = len(tuples), int(times[times > 1].sum())
    by_chance = (None, None) if sizes is None else _by_chance(items, sizes)
    return Collisions(items, len(times), sharing / items, int(times.max()), *by_chance)


def _levels(indices: tuple) -> list[np.ndarray]:
    """One array (N,) for each level."""
    if not indices:
        raise ValueError("need at least one index: (..., levels), or one for each level")
    arrays = [check_index(one).cpu().numpy() for one in indices]
    if len(arrays) == 1 and arrays[0].ndim > 1:
        return list(arrays[0].reshape(-1, arrays[0].shape[-1]).T)
    shapes = [one.shape for one in arrays]
    if len(set(shapes)) > 1:
        raise ValueError(f"all levels need an index for the same items, got shapes {shapes}")
    return [one.reshape(-1) for one in arrays]


def _sizes(size: int | Sequence[int], levels: int) -> list[int]:
    sizes = [size] * levels if isinstance(size, int | np.integer) else list(size)
    if len(sizes) != levels or not all(isinstance(one, int | np.integer) and one > 0 for one in sizes):
        raise ValueError(f"size must be a number of codes, or one for each of {levels} levels, got {size!r:.80}")
    return [int(one) for one in sizes]


def _by_chance(items: int, sizes: list[int]) -> tuple[float, float]:
    """Expected share of items that share, and of tuples that differ, if all tuples are equally likely."""
    possible = math.prod(sizes)
    if possible == 1:
        return float(items > 1), 1.0
    if possible >= 2**900:  # more than a float holds; they hardly meet then
        return 0.0, float(items)
    missed = math.log1p(-1 / possible)  # log of the chance that one item has not a given tuple
    return -math.expm1((items - 1) * missed), possible * -math.expm1(items * missed)
