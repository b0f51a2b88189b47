"""Arrays that are mapped from files (`np.memmap`): read part by part, so that they may be larger than memory.

Pages that were read are given back, where nobody can have changed them.
"""

import math
import mmap
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vqnotes._checks import dense_tensor, real_numbers
from vqnotes.diagnosis.observed import MOST_NUMBERS, PER_CODE, Observed, observe, seed_of

__all__ = ["is_mapped", "observe_mapped", "part_of"]

LEAST_LATENTS = 512  # so much is kept of each array
PART = 2**22  # numbers that are read at once


def is_mapped(array: Any) -> bool:
    """Whether it is an array with rows that is mapped from a file."""
    return isinstance(array, np.memmap) and array.ndim > 0


def part_of(array: Any, rows: slice) -> Any:
    """These rows, (n, ...): of a mapped array a copy, of a tensor a view."""
    if not is_mapped(array):
        return array[rows]
    part, base = np.array(array[rows]), array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise") and array.mode != "c":  # "c" may hold changes
        base.madvise(mmap.MADV_DONTNEED)
    return part


def observe_mapped(
    latents: Any, codebook: Any, *, beside: dict[str, Any], seed: int, channel_axis: int | None, **options: Any
) -> Observed:
    """As `observe`, where latents, or something beside them, are mapped: of a random sample of the inputs, by `seed`.

    beside: labels, inputs, index, mask and reconstruction. options: what else `observe` takes. Of each array 2^25
    numbers are kept, and at least what belongs to 16 latents a code and to 512 latents. How often the codes are used
    is counted over all latents. Raises ValueError as `observe`, and for arrays whose first axes differ.
    """
    given = {"latents": latents} | {name: one for name, one in beside.items() if one is not None}
    arrays = {name: one if is_mapped(one) else dense_tensor(one, name) for name, one in given.items()}
    shapes = {name: tuple(one.shape) for name, one in arrays.items()}
    count, codes = (shapes["latents"] or (0,))[0], real_numbers(codebook, "codebook")
    if "labels" in arrays and count and math.prod(shapes["labels"]) % count == 0:
        arrays["labels"] = arrays["labels"].reshape(count, -1)  # one an input, or one a latent
    if any(one.ndim == 0 or len(one) != count for one in arrays.values()):
        raise ValueError(f"arrays on disk need the inputs along their first axis, as many in each, got {shapes}")
    numbers = [math.prod(one.shape[1:]) for one in arrays.values()]
    places = max(1, numbers[0] // max(1, codes.shape[-1] if codes.ndim else 1))
    most = max(MOST_NUMBERS // max(1, *numbers), math.ceil(max(LEAST_LATENTS, PER_CODE * len(codes)) / places))
    drawn = np.random.default_rng(seed_of(seed)).permutation(count)[:most]
    order = drawn if most < count else np.arange(count)  # all of it, as it is in memory

    def observed(some: dict[str, Any], **options: Any) -> Observed:
        labels = {"labels": some["labels"].reshape(-1)} if "labels" in some else {}
        return observe(codebook=codes, seed=seed, channel_axis=channel_axis, **(some | labels), **options)

    found = observed({name: _taken(one, order) for name, one in arrays.items()}, **options)
    if len(order) == count:
        return found
    counted: dict[str, Any] = {name: arrays[name] for name in ("latents", "index", "mask") if name in arrays}
    uses, step = torch.zeros(len(codes), dtype=torch.int64), max(1, PART // max(1, *numbers))
    for first in range(0, count, step):
        part: dict[str, Any] = {name: part_of(one, slice(first, first + step)) for name, one in counted.items()}
        if "mask" not in part or part["mask"].any():
            uses += torch.bincount(observed(part).levels[0].index, minlength=len(codes))
    (level,) = found.levels
    return replace(found, parts=[[replace(level, uses=uses)]])


def _taken(array: Any, order: np.ndarray) -> Any:
    """Rows of an array in this order, in memory."""
    if not is_mapped(array):
        return array[torch.from_numpy(order).to(array.device)]
    rank, taken = np.argsort(order), np.empty((len(order), *array.shape[1:]), array.dtype)
    step = max(1, PART // max(1, math.prod(array.shape[1:])))
    for first in range(0, len(array), step):
        low, high = np.searchsorted(order[rank], [first, first + step])
        if low < high:
            here = rank[low:high]
            taken[here] = part_of(array, slice(first, first + step))[order[here] - first]
    return taken
