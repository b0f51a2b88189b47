"""Which of the tensors that met a table are the latents: those whose nearest codes came out of it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vqnotes.diagnosis.listening.tracing import Compared, Lookup, Trace, joined
from vqnotes.diagnosis.listening.yours import TEN_LINES

__all__ = ["AGREES", "Reading", "arranged", "reading_of"]

SHOWN = 512  # latents by which it is told whether they are what was compared
AGREES = 0.99  # of the indices are the nearest code: then the latents are read rightly


@dataclass
class Reading:
    """A tensor as latents: its axis that holds the dimensions, the rows (n, D), and the codes (K, D) beside them."""

    tensor: Tensor
    axis: int
    rows: Tensor
    codes: Tensor
    share: float = 0.0  # of the indices that are the nearest code
    by_direction: bool = False


def reading_of(lookup: Lookup, trace: Trace, earlier: list[Lookup]) -> Reading | None:
    """The latents of a lookup; None for rows that come out once more, or whose latents are not seen.

    Raises ValueError for a tensor that can be read in two ways.
    """
    met = trace.compared[lookup.sources]
    by_meeting = [(number, one) for number, compared in enumerate(met) for one in _best(compared, lookup)]
    entered = [ref() for ref in reversed(trace.entered)]
    others = [one for one in entered if one is not None]
    by_entering = [one for tensor in others for one in _best(Compared([tensor], lookup.table), lookup)]
    right = [one for one in by_meeting if one[1].share >= AGREES]
    for by_direction in (False, True):
        for number, one in right:
            if one.by_direction == by_direction:
                del met[number]
                return one
    found = [one for one in by_entering if one.share >= AGREES]
    if found and not earlier:
        return min(found, key=lambda one: one.by_direction)
    if any(torch.equal(one.index.flatten(), lookup.index.flatten()) for one in earlier):
        return None
    if by_meeting:  # chosen otherwise than by distance, or by chance
        number, one = max(by_meeting, key=lambda pair: pair[1].share)
        del met[number]
        return one
    return None


def _best(compared: Compared, lookup: Lookup) -> list[Reading]:
    """The best reading of what was compared as latents, at distance and in direction: at most two.

    Of tensors that are the same but for shape and a factor, the first that was made counts.
    """
    first, *before = compared.tensors
    count, dim = lookup.index.numel(), lookup.table.shape[1]
    index = lookup.index.flatten()
    some = torch.linspace(0, count - 1, min(count, SHOWN)).long().to(index.device)
    found = []
    for by_direction in (False, True):
        best: list[Reading] = []
        for axis, rows in arranged(first, count, dim):
            older = [(tensor, *pair) for tensor in before for pair in arranged(tensor, count, dim, rows)]
            tried = []
            for tensor, at, latents in [(first, axis, rows), *older]:
                for codes in [compared.table, lookup.table]:
                    one = Reading(tensor, at, latents, codes, by_direction=by_direction)
                    one.share = _share(one, index, some)
                    tried.append(one)
            most = max(one.share for one in tried)
            best.append([one for one in tried if one.share >= most - (1 - AGREES) / 2][-1])
        right = [one for one in best if one.share >= AGREES]
        if len(right) > 1 and not torch.equal(right[0].rows, right[1].rows):
            axes = " or ".join(str(one.axis) for one in right)
            raise ValueError(
                f"latents {tuple(first.shape)} that were compared with {joined(lookup.sources)} "
                f"{tuple(lookup.table.shape)} can be read in two ways, with their dimensions along axis {axes}. "
                f"Say which. {TEN_LINES}"
            )
        found += [max(best, key=lambda one: one.share)] if best else []
    for one in found:
        one.by_direction = one.by_direction or (dim > 1 and _of_length_one(one.codes))
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
            if not torch.allclose(
                rows.double(), like.double() * size, rtol=1e-2, atol=1e-3 * float(rows.abs().max())
            ):
                continue
        if not any(torch.equal(rows, other) for _, other in found):
            found.append((axis, rows))
    return found


def _share(one: Reading, index: Tensor, some: Tensor) -> float:
    """Of the indices, the share that are the nearest code but for rounding."""
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
