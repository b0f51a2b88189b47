"""What people bring, parsed once: latents as rows, the codes they got, the inputs and labels that belong to them.

Nothing is guessed. Where shapes can be read in two ways, an argument decides; without it a ValueError names both.
"""

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vqnotes._checks import check_codebook, check_latents
from vqnotes.nearest import nearest_code

QUANTITIES = (torch.bool, torch.uint8, torch.int8, torch.int16)  # pixels and samples of sound, not ids


class UnpairedInputs(ValueError):
    """Inputs that cannot stand beside the latents, or of which it is not known which belongs to which."""


def as_tensor(given, name: str) -> Tensor:
    """A tensor on the CPU from a tensor or an array; ValueError if it is neither."""
    try:
        tensor = torch.as_tensor(given).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a tensor or an array of numbers, got {type(given).__name__}") from error
    if tensor.is_complex():
        raise ValueError(f"{name} must be real numbers, got {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


# ---------------------------------------------------------------- latents and codes


@dataclass(frozen=True)
class Coded:
    """Latents (N, D) that reach a codebook (K, D), and the codes that they get."""

    latents: Tensor
    codes: Tensor
    own_index: Tensor | None = None  # (N,) the model's own choice
    uses: Tensor | None = None  # (K,) of each code, where these latents are a sample of those that were coded

    @cached_property
    def nearest(self) -> Tensor:
        """Index of the nearest code, (N,)."""
        return nearest_code(self.latents, self.codes)

    @property
    def index(self) -> Tensor:
        """The model's own choice if it is known, else the nearest code, (N,)."""
        return self.nearest if self.own_index is None else self.own_index

    def chosen(self, rows: Tensor) -> Tensor:
        """The codes of these latents, (n, D) float64."""
        return self.codes[self.index[rows]].double()


@dataclass(frozen=True)
class Observed:
    """Latents, the codebooks that code them, and the inputs and labels beside them: see `observe`, `observe_stack`.

    parts: heads or groups, each with its levels. A single codebook is one part of one level. A part's first level
    codes its share of the latents' dimensions, each later level what the one before left.
    """

    latents: Tensor  # (M, D), those that are masked too, which are 0
    grid: tuple  # shape of the latents without D: (inputs, places ...)
    mask: Tensor | None  # (M,) True for those that count; None: all do
    parts: list[list[Coded]]
    inputs: "Inputs | None" = None
    labels: Tensor | None = None  # one for each of the M latents, or for each input

    @cached_property
    def rows(self) -> Tensor:
        """Which of the M latents count, (N,)."""
        return torch.arange(len(self.latents)) if self.mask is None else self.mask.nonzero()[:, 0]

    @cached_property
    def counted(self) -> Tensor:
        """The latents that count, (N, D)."""
        return self.latents if self.mask is None else self.latents[self.mask]

    @property
    def places(self) -> list[Coded]:
        """Every place where a code is chosen: all levels of all parts."""
        return [level for levels in self.parts for level in levels]

    @property
    def firsts(self) -> list[int]:
        """Which of the places are first levels."""
        return np.cumsum([0, *map(len, self.parts)])[:-1].tolist()

    @cached_property
    def shared(self) -> list[list[int]]:
        """Which of the places have the same codebook, one list for each codebook that differs from the others."""
        groups: list[list[int]] = []
        for number, one in enumerate(self.places):
            same = [group for group in groups if torch.equal(self.places[group[0]].codes, one.codes)]
            if same:
                same[0].append(number)
            else:
                groups.append([number])
        return groups

    @property
    def total_bits(self) -> float:
        """What all codes of a latent can carry: the sum of log2 K."""
        return sum(math.log2(len(one.codes)) for one in self.places)

    def alone(self, group: list[int]) -> "Observed":
        """The codebook that these places share, by itself: with the latents of all of them, without inputs."""
        members = [self.places[number] for number in group]
        own = None if any(one.own_index is None for one in members) else torch.cat([one.own_index for one in members])
        uses = None if any(one.uses is None for one in members) else sum(one.uses for one in members)
        latents = torch.cat([one.latents for one in members])
        return Observed(latents, (len(latents),), None, [[Coded(latents, members[0].codes, own, uses)]])


def observe(
    latents,
    codebook,
    *,
    labels=None,
    inputs=None,
    index=None,
    mask=None,
    channel_axis: int | None = None,
    places: tuple | None = None,
    reconstruction=None,
) -> Observed:
    """What `diagnosis.diagnose` is given, parsed and checked. Arguments and errors are explained there."""
    codes = as_tensor(codebook, "codebook")
    check_codebook(codes)
    latents = as_tensor(latents, "latents")
    if latents.ndim:
        latents = _channels_last(latents, codes.shape[1], channel_axis)
    seen = _on_a_grid(latents, mask)
    check_latents(seen.latents, codes.shape[1])
    return _with_inputs(seen, [[_coded(seen, seen.latents, codes, index)]], inputs, labels, places, reconstruction)


def observe_stack(parts, *, labels=None, inputs=None, mask=None, places=None, reconstruction=None) -> Observed:
    """What `diagnosis.diagnose_stack` is given, parsed and checked. Arguments and errors are explained there."""
    parts = [
        [(as_tensor(z, "latents"), as_tensor(codes, "codebook"), index) for z, codes, index in part] for part in parts
    ]
    if not parts or not all(parts):
        raise ValueError(
            f"need at least one part, each with at least one level, got {[len(part) for part in parts]} levels"
        )
    shapes = [tuple(latents.shape[:-1]) for part in parts for latents, *_ in part]
    if len(set(shapes)) > 1:
        raise ValueError(f"all levels need latents at the same places, got shapes without D {shapes}")
    seen = _on_a_grid(torch.cat([part[0][0] for part in parts], dim=-1), mask)
    coded = []
    for part in parts:
        levels = []
        for latents, codes, index in part:
            check_codebook(codes)
            latents = _on_a_grid(latents, mask).latents
            check_latents(latents, codes.shape[1])
            levels.append(_coded(seen, latents, codes, index))
        coded.append(levels)
    return _with_inputs(seen, coded, inputs, labels, places, reconstruction)


def _on_a_grid(latents: Tensor, mask) -> Observed:
    """The latents (..., D) as rows, those that are masked as 0: padding may hold anything, NaN too."""
    if not latents.ndim or not latents.numel():
        check_latents(latents)
    grid = tuple(latents.shape[:-1]) or (1,)
    latents = latents.reshape(-1, latents.shape[-1])
    if mask is not None:
        mask = _one_each(
            mask, "mask", grid, "True where a latent counts", lambda one: one.dtype == torch.bool
        ).flatten()
        if not mask.any():
            raise ValueError(f"mask {grid} is False everywhere: no latent counts")
        latents = torch.where(mask[:, None], latents, 0)
    return Observed(latents, grid, mask, [])


def _coded(seen: Observed, latents: Tensor, codes: Tensor, index) -> Coded:
    """Those of the latents (M, D) that count, with their codes. index: of the latents' shape without D, or None."""
    counted = latents if seen.mask is None else latents[seen.mask]
    if index is None:
        return Coded(counted, codes)
    index = _one_each(index, "index", seen.grid, "whole numbers", lambda one: not one.is_floating_point()).flatten()
    index = (index if seen.mask is None else index[seen.mask]).long()
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= len(codes):
        raise ValueError(f"index must be in 0 .. {len(codes) - 1}, got {low} .. {high}")
    return Coded(counted, codes, index)


def _one_each(given, name: str, grid: tuple, kind: str, fits) -> Tensor:
    """The index or mask as a tensor; ValueError unless there is one entry for each latent, of a fitting type."""
    tensor = as_tensor(given, name)
    if tuple(tensor.shape) != grid or not fits(tensor):
        found = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise ValueError(f"{name} must be {kind}, of the latents' shape without D, {grid}, got {found}")
    return tensor


def _with_inputs(seen: Observed, parts: list, inputs, labels, places, reconstruction) -> Observed:
    paired = None if inputs is None else Inputs(inputs, seen.grid, places, reconstruction)
    if labels is not None:
        labels, count = as_tensor(labels, "labels").flatten(), len(seen.latents)
        if len(labels) not in (count, seen.grid[0]) or labels.is_floating_point():
            found = f"got {len(labels)} {labels.dtype}"
            raise ValueError(f"need a whole number a label, for {count} latents or {seen.grid[0]} inputs, {found}")
    return replace(seen, parts=parts, inputs=paired, labels=labels)


def _channels_last(latents: Tensor, dim: int, channel_axis: int | None) -> Tensor:
    """The latents with the axis that holds D moved to the end."""
    shape = tuple(latents.shape)
    if channel_axis is not None:
        if not -latents.ndim <= channel_axis < latents.ndim or shape[channel_axis] != dim:
            raise ValueError(
                f"channel_axis={channel_axis} of latents {shape} does not hold the codes' {dim} dimensions"
            )
        return latents.movedim(channel_axis, -1)
    if latents.ndim < 3 or shape[1] != dim:
        return latents
    if shape[-1] == dim and (dim > 1 or shape[1:-1] != shape[2:]):
        raise ValueError(
            f"latents {shape} and codes of {dim} dimensions can be read in two ways: channel_axis=-1, the last axis "
            f"holds the dimensions, as in (N, T, D) or (N, H, W, D); or channel_axis=1, the second does, as in "
            f"(N, D, T) or (N, D, H, W). Say which"
        )
    return latents.movedim(1, -1)


# ---------------------------------------------------------------- inputs


class Inputs:
    """Inputs beside latents: each latent's own input, or the piece of the input that stands at its place.

    grid: of the latents, (N, places ...). places: the axes of the inputs along which the places run.
    axes: the same as they were understood; None if a latent has an input of its own.
    """

    def __init__(self, inputs, grid: tuple, places: tuple | None = None, reconstruction=None):
        x = as_tensor(inputs, "inputs")
        if x.ndim == 0 or x.numel() == 0 or (x.is_floating_point() and not torch.stack(x.aminmax()).isfinite().all()):
            raise ValueError(f"inputs are empty, or hold NaN or infinite values: shape {tuple(x.shape)}")
        if not x.is_floating_point() and x.dtype not in QUANTITIES:
            raise UnpairedInputs(
                f"inputs {x.dtype} {tuple(x.shape)} look like ids (tokens, items), which cannot be averaged: pass "
                f"what they are embedded to, or labels=; if they are quantities, pass inputs.float()"
            )
        if len(x) > 1 and (x == x[:1]).all():
            raise ValueError(f"the inputs do not vary: all {len(x)} of shape {tuple(x.shape[1:])} are equal")
        if isinstance(places, int):
            places = (places,)
        if places is not None and not all(isinstance(axis, int) for axis in places):
            raise ValueError(f"places must be axes of the inputs, whole numbers, got {places!r}")
        self.inputs, self.shape = x, tuple(x.shape)
        self.axes = self._axes(grid, places)
        self.grid = (len(x),) if self.axes is None else self._grid(grid)
        self.patches = self._cut(x)
        self.piece = tuple(self.patches.shape[len(self.grid) :])  # what one latent gets
        self.size = self.patches[(0,) * len(self.grid)].numel()
        self.rebuilt = None
        if reconstruction is not None:
            back = as_tensor(reconstruction, "reconstruction")
            if back.shape != x.shape:
                raise ValueError(f"reconstruction {tuple(back.shape)} must have the shape of inputs {self.shape}")
            self.rebuilt = self._cut(back)

    def _axes(self, grid: tuple, places: tuple | None) -> tuple | None:
        """The axes along which the places run; UnpairedInputs if none do, or if it can be read in two ways."""
        ndim, inner = len(self.shape), grid[1:]
        if places is not None and self.shape[0] == grid[0] and inner:
            axes = tuple(axis % ndim for axis in places if -ndim <= axis < ndim)
            if (
                len(axes) != len(places)
                or 0 in axes
                or len(set(axes)) < len(axes)
                or not _fits(self.shape, axes, inner)
            ):
                raise UnpairedInputs(f"places={places} of inputs {self.shape} cannot be cut into a grid {inner}")
            return axes
        if self.shape[0] == math.prod(grid):
            return None
        readings = _readings(self.shape, inner) if self.shape[0] == grid[0] and inner else []
        if len(readings) > 1:
            ways = "; ".join(f"places={axes} gives a latent a piece {self._piece(axes, inner)}" for axes in readings)
            raise UnpairedInputs(
                f"inputs {self.shape} and latents on a grid {grid} can be paired in {len(readings)} ways: {ways}. "
                f"Say which"
            )
        if not readings:
            raise UnpairedInputs(
                f"inputs {self.shape} do not belong to latents on a grid {grid}: need one for each latent, or "
                f"({grid[0]}, C, ...) or ({grid[0]}, ..., C) with sides that are multiples of {inner}, or places="
            )
        return readings[0]

    def _grid(self, grid: tuple) -> tuple:
        return (grid[0], *cuts([self.shape[axis] for axis in self.axes], grid[1:]))

    def _piece(self, axes: tuple, inner: tuple) -> tuple:
        """Shape of what one latent gets."""
        piece = list(self.shape[1:])
        for axis, parts in zip(axes, cuts([self.shape[axis] for axis in axes], inner)):
            piece[axis - 1] //= parts
        return tuple(piece)

    def _cut(self, x: Tensor) -> Tensor:
        """x (N, ...) as (N, places ..., what is at a place ...)."""
        if self.axes is None:
            return x.reshape(len(x), -1)
        parts = dict(zip(self.axes, self.grid[1:]))
        for axis in sorted(parts, reverse=True):
            x = x.unflatten(axis, (parts[axis], x.shape[axis] // parts[axis]))
        # Each axis of places before this one has become two.
        now = tuple(axis + sum(other < axis for other in parts) for axis in parts)
        return x.movedim(now, tuple(range(1, 1 + len(parts))))

    def rows(self, rows: Tensor) -> Tensor:
        """What belongs to these latents, (n, size) float32."""
        return self._at(self.patches, rows)

    def rebuilt_rows(self, rows: Tensor) -> Tensor:
        """What the model made of it, (n, size) float32."""
        return self._at(self.rebuilt, rows)

    def _at(self, patches: Tensor, rows: Tensor) -> Tensor:
        at = np.unravel_index(rows.numpy(), self.grid)
        return patches[tuple(map(torch.from_numpy, at))].reshape(len(rows), -1).float()

    def whole(self, rows: Tensor) -> Tensor:
        return self.inputs[rows].reshape(len(rows), -1).float()


def _readings(shape: tuple, inner: tuple) -> list[tuple]:
    """All axes of inputs (N, ...) along which latents on the places `inner` may run.

    (N, C, ...), (N, ..., C) or (N, ...) with sides that are multiples of the places; with more axes, those right
    after the first if they are as long as the places, as in frames (N, T, C, H, W). One axis of places may also run
    over the square patches of images (N, C, H, W) or (N, H, W, C), row by row.
    """
    count, most = len(inner), len(shape) - len(inner)
    if most in (1, 2):
        tried = [tuple(range(first, first + count)) for first in range(1, most + 1)]
    else:
        tried = [tuple(range(1, count + 1))] if shape[1 : count + 1] == inner else []
        tried += [(1, 2), (2, 3)] if count == 1 and len(shape) == 4 else []
    found = [axes for axes in tried if _fits(shape, axes, inner)]
    if len(found) == 2 and all(one == other for one, other, parts in zip(*found, inner) if parts > 1):
        return found[:1]  # they differ only in axes that are not cut
    return found


def _fits(shape: tuple, axes: tuple, inner: tuple) -> bool:
    return cuts([shape[axis] for axis in axes], inner) is not None


def cuts(sides: list[int], inner: tuple) -> tuple | None:
    """Into how many pieces each side is cut, to make the places; None if that cannot be.

    As many sides as axes of places: each by its own. More sides than one axis of places: into pieces of equal sides.
    """
    if len(sides) == len(inner):
        return tuple(inner) if all(side % parts == 0 for side, parts in zip(sides, inner)) else None
    if len(inner) == 1 < len(sides):
        for size in range(1, min(sides) + 1):
            pieces = tuple(side // size for side in sides)
            if all(side % size == 0 for side in sides) and math.prod(pieces) == inner[0]:
                return pieces
    return None


def around(latents: Tensor, grid: tuple, rows: Tensor, mask: Tensor | None = None) -> Tensor:
    """For some rows of latents (M, D) on a grid (inputs, ...): the latent and those around it, (n, 3^axes, D).

    One axis of places gives 3 of them, two give 9. Over the edge the latents at the edge count, and in the place of
    one that is masked the latent itself. Rows without a grid are alone: (n, 1, D).
    """
    at = np.unravel_index(rows.numpy(), grid)
    seen = []
    for shift in itertools.product((-1, 0, 1), repeat=len(grid) - 1):
        places = [np.clip(place + step, 0, size - 1) for place, step, size in zip(at[1:], shift, grid[1:])]
        one = torch.from_numpy(np.ravel_multi_index((at[0], *places), grid))
        seen.append(latents[one if mask is None else torch.where(mask[one], one, rows)])
    return torch.stack(seen, dim=1)
