"""What people bring, parsed and checked once: latents as rows, the codes they got, inputs and labels beside them.

Nothing is guessed. Where shapes can be read in two ways, an argument decides; without it a ValueError names both.
Behind this door nothing is parsed or checked again: all that follows takes an `Observed`.
"""

import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqnotes._checks import Array, check_codebook, check_latents, check_latents_form, real_numbers
from vqnotes.diagnosis.inputs import Inputs, Unused
from vqnotes.nearest import nearest_code

__all__ = [
    "AT_LEAST",
    "AT_MOST",
    "FEWEST",
    "MOST_NUMBERS",
    "PER_CODE",
    "Coded",
    "Kind",
    "Observed",
    "around",
    "kind_of_all",
    "observe",
    "observe_stack",
    "seed_of",
]

PER_CODE, AT_LEAST, AT_MOST = 16, 8192, 2**18  # latents in the sample that references are measured on
MOST_NUMBERS = 2**25  # of each array, of what is heard, and of a probe so much is kept
FEWEST = 32  # in a sample on which anything can be measured: half of them to learn from, half to judge by
INPUTS_PER_CODE, INPUTS_AT_MOST = 16, 2**17  # codes are placed on half of the inputs, so many to a code


class Kind(str, Enum):
    """How the codes of a quantiser come about: by it the advice is chosen."""

    LEARNT = "learnt codebook"  # by gradient
    EMA = "EMA codebook"  # moving averages of latents
    COMPUTED = "computed codebook"  # a learnt map of a table, as in SimVQ: no code moves alone
    GRID = "fixed grid"  # never moves: FSQ, LFQ
    STACK = "stack"  # several codebooks put together: residual levels, heads, groups
    UNKNOWN = "unknown"


def kind_of(kind: Any) -> Kind:
    """The kind of this name; None is unknown. ValueError, with all names, for anything else."""
    try:
        return Kind.UNKNOWN if kind is None else Kind(kind)
    except ValueError as error:
        names = ", ".join(repr(one.value) for one in Kind)
        raise ValueError(f"kind must be one of {names}, or None, got {kind!r:.80}") from error


def kind_of_all(kinds: list[Kind]) -> Kind:
    """That of codes put together: their own where none of them can be placed, else STACK. One alone is as it is."""
    alike = len(set(kinds)) == 1 and (len(kinds) == 1 or kinds[0] in (Kind.COMPUTED, Kind.GRID))
    return kinds[0] if alike else Kind.STACK


def _whole_number(given: Any, name: str) -> int:
    """A whole number of any type; ValueError if it is anything else."""
    try:
        return operator.index(given)
    except TypeError as error:
        raise ValueError(f"{name} must be a whole number, got {given!r:.80}") from error


def seed_of(seed: Any) -> int:
    """A seed that torch, NumPy and scikit-learn all take, in 0 .. 2^32 - 1; ValueError for anything else."""
    seed = _whole_number(seed, "seed")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in 0 .. 2^32 - 1, got {seed}")
    return seed


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
    seed: int  # of all that is drawn
    stacked: bool = False  # whether codes are put together, and each codebook gets a verdict of its own
    inputs: Inputs | None = None
    labels: Tensor | None = None  # one for each of the M latents, or for each input
    unused: Unused | None = None  # why there are no inputs, if some were given
    kind: Kind = Kind.UNKNOWN

    @cached_property
    def rows(self) -> Tensor:
        """Which of the M latents count, (N,)."""
        return torch.arange(len(self.latents)) if self.mask is None else self.mask.nonzero()[:, 0]

    @property
    def units(self) -> int | None:
        """How many inputs the latents that count are of; None where each latent is one of an input's own."""
        places = math.prod(self.grid[1:])
        return None if places == 1 else len((self.rows // places).unique())

    @cached_property
    def counted(self) -> Tensor:
        """The latents that count, (N, D)."""
        firsts = [part[0].latents for part in self.parts]
        return self.latents if self.mask is None else firsts[0] if len(firsts) == 1 else torch.cat(firsts, dim=1)

    @cached_property
    def sample(self) -> Tensor:
        """Which of the counted latents references are measured on, (n,), in random order."""
        wanted = max(AT_LEAST, PER_CODE * max(len(level.codes) for level in self.levels))
        return self._shuffled(len(self.counted))[: min(AT_MOST, wanted)]

    @cached_property
    def beside(self) -> Tensor:
        """Which of the M latents the encoder is judged by, (n,), in random order: those whose inputs are known.

        Those that references are fitted to, the first half of the sample, come last where they would be too many.
        """
        known = self.rows[self.rows < math.prod(self.inputs.grid)]
        wanted = max(AT_LEAST, 2 * INPUTS_PER_CODE * max(len(level.codes) for level in self.levels))
        wanted = min(INPUTS_AT_MOST, wanted, max(512, 2**25 // self.inputs.size))
        order, sample = self._shuffled(len(known)), len(self.sample)
        return known[order.roll(-(sample // 2)) if wanted < sample or sample > AT_LEAST else order][:wanted]

    @cached_property
    def fitted(self) -> Tensor:
        """Which of the M latents references are fitted to: the first half of the sample."""
        return self.rows[self.sample[: len(self.sample) // 2]]

    @property
    def has_inputs(self) -> bool:
        """Whether there are enough latents with inputs to judge the encoder by."""
        return self.inputs is not None and min(len(self.sample), len(self.beside)) >= FEWEST

    def _shuffled(self, count: int) -> Tensor:
        return torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))

    @property
    def levels(self) -> list[Coded]:
        """All levels of all parts, one after another."""
        return [level for levels in self.parts for level in levels]

    @property
    def firsts(self) -> list[int]:
        """Which of the levels are the first of their part."""
        return np.cumsum([0, *map(len, self.parts)])[:-1].tolist()

    @cached_property
    def shared(self) -> list[list[int]]:
        """Which of the levels have the same codebook, one list for each codebook that differs from the others.

        Grids that are equal are no one codebook: each level has its own latents come to its grid.
        """
        groups: list[list[int]] = []
        for number, level in enumerate(self.levels):
            alike = (group for group in groups if torch.equal(self.levels[group[0]].codes, level.codes))
            same = [] if self.kind is Kind.GRID else list(alike)
            if same:
                same[0].append(number)
            else:
                groups.append([number])
        return groups

    @cached_property
    def codebooks(self) -> list["Observed"]:
        """Each codebook by itself, in the order of `shared`: with all latents that reach it, without inputs."""
        return [self._alone([self.levels[number] for number in group]) for group in self.shared]

    def _alone(self, levels: list[Coded]) -> "Observed":
        first, *others = levels
        if others:
            own = [level.own_index for level in levels]
            uses = [level.uses for level in levels]
            first = Coded(
                torch.cat([level.latents for level in levels]),
                first.codes,
                None if any(one is None for one in own) else torch.cat(own),
                None if any(one is None for one in uses) else torch.stack(uses).sum(0),
            )
        return Observed(first.latents, (len(first.latents),), None, [[first]], self.seed, kind=self.kind)

    @property
    def total_bits(self) -> float:
        """What all codes of a latent can carry: the sum of log2 K."""
        return sum(math.log2(len(level.codes)) for level in self.levels)


def observe(
    latents: Array,
    codebook: Array,
    *,
    labels: Array | None = None,
    inputs: Array | Inputs | None = None,
    index: Array | None = None,
    mask: Array | None = None,
    channel_axis: int | None = None,
    places: tuple | None = None,
    reconstruction: Array | None = None,
    seed: int = 0,
    kind: Kind | str | None = None,
    uses: Tensor | None = None,
    unused: Unused | None = None,
) -> Observed:
    """What `diagnosis.diagnose` is given, parsed and checked. Arguments and errors are explained there.

    uses: how often each code was used, (K,), where the latents are a sample of those that were coded.
    unused: why there are no inputs, if some were given.
    """
    latents, codes = real_numbers(latents, "latents"), _codes(codebook)
    if latents.ndim:
        latents = _channels_last(latents, codes.shape[1], channel_axis)
    parts = [[(latents, codes, index, uses)]]
    return _observed(parts, mask, labels, inputs, places, reconstruction, seed, unused, kind_of(kind), stacked=False)


def observe_stack(
    parts: Any,
    *,
    labels: Array | None = None,
    inputs: Array | Inputs | None = None,
    mask: Array | None = None,
    places: tuple | None = None,
    reconstruction: Array | None = None,
    seed: int = 0,
    kind: Kind | str | None = Kind.STACK,
    uses: list[Tensor] | None = None,
    unused: Unused | None = None,
) -> Observed:
    """What `diagnosis.diagnose_stack` is given, parsed and checked. Arguments and errors are explained there.

    kind: as `kind_of_all` gives it. uses: of each level as for `observe`, in their order. unused: as for `observe`.
    """
    try:
        parts = [[(latents, codebook, index) for latents, codebook, index in part] for part in parts]
    except (TypeError, ValueError) as error:
        raise ValueError(f"need for each part a list of levels (latents, codebook, index): {error}") from error
    if not parts or not all(parts):
        counts = [len(part) for part in parts]
        raise ValueError(f"need at least one part, each with at least one level, got {counts} levels")
    counted = itertools.repeat(None) if uses is None else iter(uses)
    parts = [
        [(real_numbers(z, "latents"), _codes(codes), index, next(counted)) for z, codes, index in part]
        for part in parts
    ]
    shapes = [tuple(latents.shape[:-1]) for part in parts for latents, *_ in part]
    if len(set(shapes)) > 1:
        raise ValueError(f"all levels need latents at the same places, got shapes without D {shapes}")
    return _observed(parts, mask, labels, inputs, places, reconstruction, seed, unused, kind_of(kind), stacked=True)


def _observed(
    parts: Any,
    mask: Any,
    labels: Any,
    inputs: Any,
    places: Any,
    reconstruction: Any,
    seed: Any,
    unused: Unused | None,
    kind: Kind,
    *,
    stacked: bool,
) -> Observed:
    """parts: of each level its latents (..., D), codes, index and uses, the last two perhaps None."""
    seed = seed_of(seed)
    for latents, codes, *_ in itertools.chain(*parts):
        check_latents_form(latents, codes.shape[1])
    grid = tuple(parts[0][0][0].shape[:-1]) or (1,)
    if mask is not None:
        mask = _one_each(mask, "mask", grid, "True where a latent counts", lambda one: one.dtype == torch.bool)
        if not mask.any():
            raise ValueError(f"mask {grid} is False everywhere: no latent counts")
    parts = [[(_rows(latents, mask), *others) for latents, *others in part] for part in parts]
    firsts = [part[0][0] for part in parts]
    latents = torch.cat(firsts, dim=1) if len(firsts) > 1 else firsts[0]
    coded = [[_coded(grid, mask, *level) for level in part] for part in parts]
    labels, inputs = _labels(labels, grid), _inputs(inputs, grid, mask, places, reconstruction)
    observed = Observed(latents, grid, mask, coded, seed, stacked, inputs, labels, unused, kind)
    if observed.has_inputs:
        inputs.check_variation(observed.beside)
    return observed


def _codes(codebook: Any) -> Tensor:
    codes = real_numbers(codebook, "codebook")
    check_codebook(codes)
    return codes


def _rows(latents: Tensor, mask: Tensor | None) -> Tensor:
    """Latents (..., D) as rows, those that are masked as 0: padding may hold anything, NaN too."""
    rows = latents.reshape(-1, latents.shape[-1])
    rows = rows if mask is None else torch.where(mask[:, None], rows, 0)
    check_latents(rows)
    return rows


def _coded(grid: tuple, mask: Tensor | None, rows: Tensor, codes: Tensor, index: Any, uses: Tensor | None) -> Coded:
    """Those of the rows that count, with their codes."""
    rows = rows if mask is None else rows[mask]
    if index is None:
        return Coded(rows, codes, None, uses)
    index = _one_each(index, "index", grid, "whole numbers", lambda one: not one.is_floating_point())
    index = (index if mask is None else index[mask]).long()
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= len(codes):
        raise ValueError(f"index must be in 0 .. {len(codes) - 1}, got {low} .. {high}")
    return Coded(rows, codes, index, uses)


def _one_each(given: Any, name: str, grid: tuple, kind: str, fits: Callable) -> Tensor:
    """The index or mask in a row; ValueError unless there is one entry for each latent, of a fitting type."""
    tensor = real_numbers(given, name)
    if tuple(tensor.shape) != grid or not fits(tensor):
        found = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise ValueError(f"{name} must be {kind}, of the latents' shape without D, {grid}, got {found}")
    return tensor.flatten()


def _labels(labels: Any, grid: tuple) -> Tensor | None:
    """A whole number for each latent, or for each input."""
    if labels is None:
        return None
    labels, count = real_numbers(labels, "labels").flatten(), math.prod(grid)
    if len(labels) not in (count, grid[0]) or labels.is_floating_point():
        found = f"got {len(labels)} {labels.dtype}"
        raise ValueError(f"need a whole number a label, for {count} latents or {grid[0]} inputs, {found}")
    return labels


def _inputs(inputs: Any, grid: tuple, mask: Tensor | None, places: Any, reconstruction: Any) -> Inputs | None:
    if inputs is not None:
        return inputs if isinstance(inputs, Inputs) else Inputs(inputs, grid, places, reconstruction, mask)
    if places is not None:
        raise ValueError(f"places are axes of the inputs: pass inputs= too, got places={places!r} alone")
    if reconstruction is not None:
        given = type(reconstruction).__name__
        raise ValueError(f"a reconstruction is compared with the inputs: pass inputs= too, got {given} alone")
    return None


def _channels_last(latents: Tensor, dim: int, channel_axis: int | None) -> Tensor:
    """The latents with the axis that holds D moved to the end."""
    shape = tuple(latents.shape)
    if channel_axis is not None:
        channel_axis = _whole_number(channel_axis, "channel_axis")
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
