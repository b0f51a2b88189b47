"""Ids as people have them: opened, read in parts, refused where they are none, counted by groups of their units.

Nothing is guessed, and nothing larger than a part is copied: ids may be a tensor, an array, a memory map or a file.
"""

import math
import operator
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "GROUPS",
    "ITEMS",
    "LARGEST_SIZE",
    "Counted",
    "Units",
    "counted",
    "fill",
    "no_padding",
    "opened",
    "padding_of",
    "pairs_of",
    "size_of",
    "sizes_of",
    "stages_of",
    "whole_number",
]

PART = 2**20  # ids that are looked at, and held as int64, at a time
LARGEST_SIZE = 2**22  # codes: each takes 8 * GROUPS bytes
GROUPS = 64  # of independent units
ITEMS = 30  # that must be there to be the independent units
SHOWN = 1000  # of the ids of a part that are no codes: as many are kept to be told

Ids = Tensor | np.ndarray


def whole_number(given: Any, name: str, least: int) -> int:
    """A whole number of any type; ValueError if it is anything else, or too small."""
    try:
        number = operator.index(given)
    except TypeError as error:
        raise ValueError(f"{name} must be a whole number, got {given!r:.80}") from error
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def size_of(given: Any) -> int:
    """The number of codes. Raises ValueError for one that is not whole, below 1 or above LARGEST_SIZE."""
    size = whole_number(given, "size", least=1)
    if size > LARGEST_SIZE:
        raise ValueError(
            f"size is the number of codes, at most {LARGEST_SIZE:,}, got {size:,}: "
            f"if an id joins several codebooks, take it apart and give them by stages_axis="
        )
    return size


def sizes_of(given: Any, stages: int) -> list[int]:
    """The number of codes of each stage. Raises as `size_of`, and ValueError for more or fewer sizes."""
    if not isinstance(given, list | tuple | np.ndarray | Tensor) or np.ndim(given) == 0:
        return [size_of(given)] * stages
    if len(given) != stages:
        raise ValueError(f"need a size for each of {stages} stages, or one for all, got {given}")
    return [size_of(one) for one in given]


def padding_of(given: Any) -> list[int]:
    """The ids that do not count, sorted."""
    if given is None:
        return []
    several = given if isinstance(given, list | tuple | set | frozenset | range) else np.atleast_1d(given)
    return sorted({whole_number(one, "padding", least=-(2**63)) for one in several})


def opened(index: Any, dtype: Any = None) -> Ids:
    """The ids as a tensor or an array, a file as a memory map; ValueError if they are none. Nothing is copied."""
    if isinstance(index, str | os.PathLike):
        return _checked(_mapped(index, dtype))
    if dtype is not None:
        raise ValueError(f"dtype is for the path of a raw file, got dtype={dtype!r} beside {type(index).__name__}")
    if isinstance(index, np.ma.MaskedArray):
        raise ValueError("index is a masked array: fill it, as in index.filled(-1), and pass padding=-1")
    if isinstance(index, Tensor):
        if index.layout != torch.strided or index.is_nested or index.is_meta:
            raise ValueError(f"index must be a dense tensor with its values, got one that is {index.layout}")
        index = index.detach()
        shared = index.device.type == "cpu" and index.dtype != torch.bfloat16
        return _checked(index.numpy() if shared else index)
    try:
        return _checked(np.asarray(index))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"index must be a tensor or an array of whole numbers: {error}. Sequences of several lengths have to be "
            f"padded, with a number that is no code and that you pass as padding="
        ) from error


def _checked(array: Ids) -> Ids:
    if isinstance(array, Tensor):
        numbers = not (array.is_complex() or array.dtype == torch.bool)
    else:
        numbers = array.dtype.kind in "iuf"
    if not numbers or math.prod(array.shape) == 0:
        raise ValueError(f"need whole numbers, at least one, got {array.dtype} of shape {tuple(array.shape)}")
    return array.reshape(1) if array.ndim == 0 else array


def _mapped(path: str | os.PathLike, dtype: Any) -> np.ndarray:
    """The ids in a file, as a memory map. Which kind of file it is, its first bytes say."""
    with open(path, "rb") as file:
        first = file.read(6)
    if first == b"\x93NUMPY":
        if dtype is not None:
            raise ValueError(f"{path} is a .npy file and says its dtype itself: leave out dtype={dtype!r}")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    if first[:4] == b"PK\x03\x04":
        raise ValueError(f"{path} is an archive (.npz, .pt): load the ids from it, and give the array")
    if dtype is None:
        raise ValueError(f'{path} is no .npy file: say what it holds, such as dtype="<u2" for uint16')
    try:
        kind = np.dtype(dtype)
    except TypeError as error:
        raise ValueError(f'dtype must be one of NumPy, such as "<u2" for uint16, got {dtype!r}') from error
    size = os.path.getsize(path)
    if size == 0 or kind.itemsize == 0 or size % kind.itemsize:
        raise ValueError(f"{path} has {size:,} bytes, which are no whole number of {kind} ({kind.itemsize} bytes)")
    return np.memmap(path, dtype=kind, mode="r")


def stages_of(array: Ids, axis: Any) -> list[Ids]:
    """The ids of each stage, along an axis. Raises ValueError for one that is not there, or the only one."""
    axis = whole_number(axis, "stages_axis", least=-array.ndim)
    if array.ndim < 2 or axis >= array.ndim:
        raise ValueError(f"stages_axis={axis} does not fit an index of shape {tuple(array.shape)}")
    return list(array.movedim(axis, 0) if isinstance(array, Tensor) else np.moveaxis(array, axis, 0))


# ---------------------------------------------------------------- in parts


def _numbers(part: Ids) -> np.ndarray:
    """A part of the ids, of their own type; ValueError if some are not whole."""
    if isinstance(part, Tensor):
        part = (part.double() if part.is_floating_point() else part).cpu().numpy()
    part = np.asarray(part)
    if part.dtype.kind == "f":
        odd = part[~(part == np.trunc(part)) | np.isinf(part)]
        if len(odd):
            shown = ", ".join(f"{one:g}" for one in odd[:5])
            raise ValueError(f"index must hold whole numbers, got {part.dtype} with {shown}")
    return part


def _parts(array: Ids) -> Iterator[np.ndarray]:
    """All ids in their order, flat, at most PART at a time."""
    if array.ndim == 1:
        yield from (_numbers(array[start : start + PART]) for start in range(0, len(array), PART))
    elif rows := PART // math.prod(array.shape[1:]):
        yield from (_numbers(array[start : start + rows]).reshape(-1) for start in range(0, len(array), rows))
    else:
        for one in array:
            yield from _parts(one)


def no_padding(ids: np.ndarray, padding: list[int]) -> np.ndarray:
    """True for ids that count."""
    here = np.ones(ids.shape, dtype=bool)
    for one in padding:
        here &= ids != one
    return here


def fill(flat: np.ndarray, array: Ids, made: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Makes a flat array anew, part by part, of the ids and of what it held."""
    start = 0
    for part in _parts(array):
        flat[start : start + len(part)] = made(part, flat[start : start + len(part)])
        start += len(part)


# ---------------------------------------------------------------- counted


@dataclass(frozen=True)
class Units:
    """Which ids are taken to be independent of each other: units of one length, put into groups."""

    length: int  # ids in a unit
    group: np.ndarray  # (units,) which group each is in: 0 .. groups - 1
    items: bool  # whether a unit is an item of the first axis; else it is a stretch of neighbouring ids

    @classmethod
    def of(cls, array: Ids, seed: int) -> "Units":
        """The items along the first axis, put into groups at random; if they are too few, stretches."""
        total = math.prod(array.shape)
        if array.ndim > 1 and len(array) >= ITEMS:
            order = np.random.default_rng(seed).permutation(len(array))
            return cls(total // len(array), order % min(GROUPS, len(array)), items=True)
        length = -(-total // GROUPS)
        return cls(length, np.arange(-(-total // length)), items=False)

    def groups_of(self, start: int, stop: int) -> np.ndarray:
        """The group of each id from a place to another."""
        return self.group[np.arange(start, stop) // self.length]


@dataclass(frozen=True)
class Counted:
    """How often each code occurs in each group of units."""

    counts: np.ndarray  # (groups, K), without groups of which nothing counts, and without codes that are padding
    units: Units
    padded: int  # ids that do not count
    not_met: list[int]  # padding that does not occur


def counted(array: Ids, size: int, padding: list[int], seed: int) -> Counted:
    """Counts ids. Raises ValueError for ids outside 0 .. size - 1 that are no padding, and if there are no others."""
    units = Units.of(array, seed)
    counts = np.zeros((units.group.max() + 1, size), dtype=np.int64)
    strays: Counter = Counter()
    met: set[int] = set()
    start = padded = stray = 0
    ends = (0, 0)
    for part in _parts(array):
        groups = units.groups_of(start, start + len(part))
        start += len(part)
        here = no_padding(part, padding)
        padded += len(part) - int(here.sum())
        if len(met) < len(padding):
            met |= {int(one) for one in np.unique(part[~here])}
        part, groups = part[here], groups[here]
        if len(part) and (part.min() < 0 or part.max() >= size):
            outside = (part < 0) | (part >= size)
            stray += int(outside.sum())
            ends = min(ends[0], int(part.min())), max(ends[1], int(part.max()))
            ids, times = np.unique(part[outside], return_counts=True)
            strays.update(dict(zip(map(int, ids[:SHOWN]), times[:SHOWN].tolist())))
            part, groups = part[~outside], groups[~outside]
        np.add.at(counts.reshape(-1), groups * size + part.astype(np.int64), 1)
    if stray:
        raise ValueError(_said_of(strays, ends, stray, start, size, from_one=not counts[:, 0].any()))
    if padded == start:
        raise ValueError(f"all {start:,} ids are padding ({', '.join(map(str, padding))}): none is left to count")
    inside, empty = [one for one in padding if 0 <= one < size], ~counts.any(axis=1)
    counts = np.delete(counts, inside, axis=1) if inside else counts
    return Counted(counts[~empty] if empty.any() else counts, units, padded, sorted({*padding} - met))


def _said_of(strays: Counter, ends: tuple, stray: int, total: int, size: int, from_one: bool) -> str:
    """What is wrong with ids that are no codes, and what may be done."""
    several = strays.most_common(4)
    shown = ", ".join(f"{_shown(one)} ({times:,} times)" for one, times in several[:3])
    first = f"{stray:,} of {total:,} ids are not in 0 .. {size - 1}: {shown}{', ...' if len(several) > 3 else ''}"
    if [*strays] == [size] and from_one:
        return f"{first}; and 0 does not occur. If ids count from 1, subtract 1"
    if len(several) > 3:
        low, high = map(_shown, ends)
        return f"{first}; they run from {low} to {high}. Is size={size} right? Ids that do not count go into padding="
    some = several[0][0] if len(several) == 1 else [one for one, _ in several]
    return f"{first}. If that is padding, pass padding={some}; if not, is size={size} right?"


def _shown(one: int) -> str:
    return str(one if abs(one) < 2**64 else float(one))


# ---------------------------------------------------------------- neighbours


def pairs_of(array: Ids, padding: list[int], units: Units, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of neighbours along the last axis, about `most` of them: ids, the ids after them, and their group.

    Each group gives as many: its first items, or the first ids of its first item or of its stretch. Pairs with
    padding are left out.
    """
    before, after, group = ([np.zeros(0, np.int64)] for _ in range(3))
    for number, block in _blocks(array, units, most):
        ids = _numbers(block)
        here = no_padding(ids, padding)
        both = here[..., 1:] & here[..., :-1]
        before.append(ids[..., :-1][both].astype(np.int64))
        after.append(ids[..., 1:][both].astype(np.int64))
        group.append(np.full(len(after[-1]), number))
    return np.concatenate(before), np.concatenate(after), np.concatenate(group)


def _blocks(array: Ids, units: Units, most: int) -> Iterator[tuple[int, Ids]]:
    """Blocks (..., length) of sequences, each with the number of its group."""
    groups = int(units.group.max()) + 1
    quota, length = most // groups, array.shape[-1]
    each = units.length // length * (length - 1)  # pairs of an item
    for number in range(groups if quota else 0):
        mine = np.flatnonzero(units.group == number)
        if units.items and 0 < each <= quota:
            items = mine[: quota // each]
            yield number, array[torch.from_numpy(items).to(array.device) if isinstance(array, Tensor) else items]
        else:
            rows = _rows(array, int(mine[0]) * units.length, min(units.length, quota))
            yield from ((number, row) for row in rows)


def _rows(array: Ids, start: int, most: int) -> Iterator[Ids]:
    """The next `most` ids from a place on, each with the one after it, cut where a sequence ends."""
    sequence, offset = divmod(start, array.shape[-1])
    while most > 0 and sequence < math.prod(array.shape[:-1]):
        where = tuple(int(one) for one in np.unravel_index(sequence, array.shape[:-1]))
        row = array[where][offset : offset + most + 1]
        yield row
        most, sequence, offset = most - len(row), sequence + 1, 0
