"""Inputs beside latents: which piece of an input belongs to which latent.

Nothing is guessed. Where shapes can be read in two ways, `places` decides; without them an error names both readings.
"""

import math
import operator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqnotes._checks import real_numbers

__all__ = ["Inputs", "UnpairedInputs", "Unused", "axes_of", "cuts"]

QUANTITIES = (torch.bool, torch.uint8, torch.int8, torch.int16)  # pixels and samples of sound, not ids


class UnpairedInputs(ValueError):
    """Inputs that cannot stand beside the latents, or of which it is not known which belongs to which."""


class Unused(NamedTuple):
    """Why inputs that were given say nothing of the encoder, in half a sentence with the shapes, and what to do."""

    why: str
    remedy: str


def axes_of(places: Any) -> tuple[int, ...] | None:
    """The axes of the inputs along which places run, as a tuple; one may come as a number. ValueError for others."""
    if places is None:
        return None
    try:
        return tuple(map(operator.index, places if isinstance(places, list | tuple) else [places]))
    except TypeError as error:
        raise ValueError(f"places must be axes of the inputs, whole numbers, got {places!r:.80}") from error


class Inputs:
    """Inputs beside latents: each latent's own input, or the piece of the input that stands at its place.

    grid: of the latents, (N, places ...). places: the axes of the inputs along which the places run.
    mask: which of these latents count, (M,); where none does, inputs may be NaN, and are 0 then.
    axes: the places as they were understood; None if a latent has an input of its own.
    Raises UnpairedInputs for inputs that do not belong to the grid, can be read in two ways, or are ids; ValueError
    for what is empty, not finite or does not vary, and for a reconstruction of another shape.
    """

    def __init__(
        self, inputs: Any, grid: tuple, places: Any = None, reconstruction: Any = None, mask: Tensor | None = None
    ):
        x = real_numbers(inputs, "inputs")
        if x.ndim == 0 or x.numel() == 0:
            raise ValueError(f"inputs are empty, or a single number: shape {tuple(x.shape)}")
        if not x.is_floating_point() and x.dtype not in QUANTITIES:
            raise UnpairedInputs(
                f"inputs {x.dtype} {tuple(x.shape)} look like ids (tokens, items), which cannot be averaged: pass "
                f"what they are embedded to, or labels=; if they are quantities, pass inputs.float()"
            )
        self.shape = tuple(x.shape)
        self.axes = self._axes(grid, axes_of(places))
        self.grid = (len(x),) if self.axes is None else self._grid(grid)
        self.inputs = self._finite(x, "inputs", mask)
        if len(x) > 1 and (self.inputs == self.inputs[:1]).all():
            raise ValueError(f"the inputs do not vary: all {len(x)} of shape {self.shape[1:]} are equal")
        self.patches = self._cut(self.inputs)
        self.piece = tuple(self.patches.shape[len(self.grid) :])  # what one latent gets
        self.size = math.prod(self.piece)
        self.rebuilt = None
        if reconstruction is not None:
            back = real_numbers(reconstruction, "reconstruction")
            if back.shape != x.shape:
                raise ValueError(f"reconstruction {tuple(back.shape)} must have the shape of inputs {self.shape}")
            self.rebuilt = self._cut(self._finite(back, "reconstruction", mask))

    def _finite(self, x: Tensor, name: str, mask: Tensor | None) -> Tensor:
        """x, with 0 for NaN where no latent counts; ValueError if it is NaN or infinite anywhere else."""
        if not x.is_floating_point() or torch.stack(x.aminmax()).float().isfinite().all():
            return x
        finite = x.float().isfinite()
        good = self._cut(finite).reshape(math.prod(self.grid), -1).all(dim=1)
        if mask is None or not good[mask].all():
            raise ValueError(
                f"{name} must be finite (in float32) where latents count, got NaN or more: {tuple(x.shape)}"
            )
        return torch.where(finite, x, 0)

    def check_variation(self, rows: Tensor) -> None:
        """ValueError if all inputs are equal in one of the halves of these rows, of which each judges the other."""
        x = self.rows(rows)
        for half in x.tensor_split([len(x) // 2]):
            if (half == half[0]).all():
                raise ValueError(f"the inputs do not vary: {len(x) // 2} of {len(x)}, chosen at random, are equal")

    def _axes(self, grid: tuple, places: tuple | None) -> tuple | None:
        """The axes along which the places run; UnpairedInputs if none do, or if it can be read in two ways."""
        ndim, inner = len(self.shape), grid[1:]
        if places is not None:
            if self.shape[0] != grid[0] or not inner:
                raise UnpairedInputs(
                    f"places={places} need latents and inputs with the same first axis, and latents with further "
                    f"ones: got inputs {self.shape} and latents on a grid {grid}"
                )
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
        """All of these inputs, whatever belongs to which latent, (n, all their numbers) float32."""
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
