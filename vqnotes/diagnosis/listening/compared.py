"""Which of the tensors that met a table are the latents: those whose nearest codes came out of it."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vqnotes.diagnosis.listening.calls import TEN_LINES
from vqnotes.diagnosis.listening.tracing import Compared, Lookup, Trace, joined

__all__ = ["AGREES", "Reading", "arranged", "reading_of"]

SHOWN = 512  # latents by which it is told whether they are what was compared
AGREES = 0.99  # of the indices are the nearest code: then the latents are read rightly
ABOUT = 0.005  # shares that differ by no more are alike


@dataclass
class Reading:
    """A tensor as latents: its axis that holds the dimensions, the rows (n, D), and the codes (K, D) beside them."""

    tensor: Tensor
    axis: int
    rows: Tensor
    codes: Tensor
    share: float  # of the indices that are the nearest code
    by_direction: bool


def reading_of(lookup: Lookup, trace: Trace, earlier: list[tuple[Lookup, Reading]]) -> Reading | None:
    """The latents of a lookup; None for rows that come out once more, or whose latents are not seen.

    earlier: the lookups in the same table before, in this pass, with their latents. Raises ValueError for a tensor
    that can be read in two ways.
    """
    met = trace.compared[lookup.sources]
    same = [one for other, one in earlier if torch.equal(other.index.flatten(), lookup.index.flatten())]
    met[:] = [one for one in met if not any(_is_in(one, reading) for reading in same)]  # compared once more
    found: list[tuple[Compared, Reading]] = []
    for by_direction in (False, True):
        for compared in met:
            one = _best(compared, lookup, by_direction)
            if one is not None and one.share >= AGREES:
                met[:] = [other for other in met if not _is_in(other, one)]
                return one
            found += [] if one is None else [(compared, one)]
    if same:
        return None
    entered = [one for one in (ref() for ref in reversed(trace.entered)) if one is not None]
    for by_direction in (False, True):
        for tensor in entered:
            one = _best(Compared([tensor], lookup.table), lookup, by_direction)
            if one is not None and one.share >= AGREES:
                return one
    if not found:
        return None
    compared, one = max(found, key=lambda pair: pair[1].share)  # chosen otherwise than by distance, or by chance
    met.remove(compared)
    return one


def _is_in(compared: Compared, reading: Reading) -> bool:
    return any(one is reading.tensor for one in compared.tensors)


def _best(compared: Compared, lookup: Lookup, by_direction: bool) -> Reading | None:
    """The best reading as latents of what was compared, at distance or in direction.

    Of tensors that are the same but for shape and a factor, the first that was made counts. Raises ValueError for one
    that agrees along two of its axes.
    """
    first, *before = compared.tensors
    index, dim = lookup.index.flatten(), lookup.table.shape[1]
    best: list[Reading] = []
    for axis, rows in arranged(first, len(index), dim):
        older = [(one, *pair) for one in reversed(before) for pair in arranged(one, len(index), dim, rows)]
        tried: list[Reading] = []
        for tensor, at, latents in [*older, (first, axis, rows)]:
            for codes in (compared.table, lookup.table):
                tried.append(Reading(tensor, at, latents, codes, 0.0, by_direction))
                tried[-1].share = _share(tried[-1], index)
                if tried[-1].share >= 1 - ABOUT:
                    break
            if tried[-1].share >= 1 - ABOUT:
                break
        most = max(one.share for one in tried)
        best.append(next(one for one in tried if one.share >= most - ABOUT))
    right = [one for one in best if one.share >= AGREES]
    if len(right) > 1:
        axes = " or ".join(str(one.axis) for one in right)
        raise ValueError(
            f"latents {tuple(first.shape)} that were compared with {joined(lookup.sources)} "
            f"{tuple(lookup.table.shape)} can be read in two ways, with their dimensions along axis {axes}. "
            f"Say which. {TEN_LINES}"
        )
    if not best:
        return None
    found = max(best, key=lambda one: one.share)
    found.by_direction = by_direction or (dim > 1 and _of_length_one(found.codes))
    return found


def arranged(tensor: Tensor, count: int, dim: int, like: Tensor | None = None) -> list[tuple[int, Tensor]]:
    """(axis, rows (n, D)) for each axis that may hold the dimensions.

    like: only rows that are these but for a factor.
    """
    if tensor.numel() != count * dim:
        return []
    found: list[tuple[int, Tensor]] = []
    for axis in [axis for axis, side in enumerate(tensor.shape) if side == dim]:
        rows = tensor.movedim(axis, -1).reshape(count, dim)
        if like is not None:
            size = rows.double().norm().clamp_min(1e-300) / like.double().norm().clamp_min(1e-300)
            scaled, most = like.double() * size, float(rows.abs().max())
            if not (math.isfinite(most) and torch.allclose(rows.double(), scaled, rtol=1e-2, atol=1e-3 * most)):
                continue
        if not any(torch.equal(rows, other) for _, other in found):
            found.append((axis, rows))
    return found


def _share(one: Reading, index: Tensor) -> float:
    """Of the indices, the share that are the nearest code but for rounding."""
    some = torch.linspace(0, len(index) - 1, min(len(index), SHOWN)).long().to(index.device)
    rows, codes = one.rows.detach()[some].double(), one.codes.detach().double()
    if one.by_direction:
        rows, codes = F.normalize(rows, dim=-1), F.normalize(codes, dim=-1)
    lengths = codes.square().sum(-1)
    distances = lengths - 2 * rows @ codes.T
    eps = max(torch.finfo(kept.dtype).eps for kept in (one.rows, one.codes))
    rounding = 8 * eps * (rows.square().sum(-1) + lengths.max())
    chosen = distances.gather(1, index[some].long()[:, None])[:, 0]
    return (chosen <= distances.min(1).values + rounding).double().mean().item()


def _of_length_one(codes: Tensor) -> bool:
    return bool(((codes.detach().double().norm(dim=-1) - 1).abs() < 1e-3).all())
