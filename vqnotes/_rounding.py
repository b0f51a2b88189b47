"""So that rounding decides nothing: types that are wide enough, and latents in doubt measured again in float64."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce

import torch
from torch import Tensor

from vqnotes._checks import check_codebook, check_latents

PART = 2**14  # latents that are in float64 at once
DISTANCES_AT_ONCE = 2**20
DOUBTFUL = 64  # latents that a training step on a GPU measures again


def wide_type(*tensors: Tensor) -> torch.dtype:
    """One type for all, float32 at least: sums of half-precision squares would lose most of their digits."""
    return reduce(torch.promote_types, [one.dtype for one in tensors], torch.float32)


def measure_again(
    index: Tensor,
    unsure: Tensor,
    flat: Tensor,
    codebooks: Tensor,
    may_wait: bool,
    search: Callable[[Tensor, Tensor, bool], Tensor],
) -> None:
    """Puts the code nearest by differences where the index (R, N) is unsure, for latents (R, N, D).

    Where that is more latents of a run than it has codes, by the search itself, in float64.
    search: from latents (R, ..., D), codebooks (R, K, D) and may_wait to an index (R, ...).
    Raises ValueError for a NaN or infinite value in them; if it may not wait, it does not look.
    """
    if not may_wait:
        again = unsure.byte().topk(min(DOUBTFUL, unsure.shape[1]), dim=1).indices
        some = flat.gather(1, again[..., None].expand(-1, -1, flat.shape[2]))
        index.scatter_(1, again, by_differences(some, codebooks))
        return
    for run in unsure.any(dim=1).nonzero()[:, 0].tolist():
        codes, again = codebooks[run], unsure[run].nonzero()[:, 0]
        check_codebook(codes)
        measure, rows = by_differences, max(1, DISTANCES_AT_ONCE // codes.shape[0])
        if len(again) > len(codes):  # so many are worth a look at why
            first = _first_of_equal(codes)
            if len(first) < len(codes) or torch.promote_types(flat.dtype, codes.dtype) != torch.float64:
                measure, rows = partial(_among, search, first), PART
        for some in again.split(rows):
            latents = flat[run, some]
            check_latents(latents)
            index[run, some] = measure(latents, codes)


def _among(search: Callable, kept: Tensor, latents: Tensor, codebook: Tensor) -> Tensor:
    """The search again, in float64, among the codes that are kept."""
    codes = codebook[kept].double()
    return kept[search(latents[None].double(), codes[None], True)[0]]


def _first_of_equal(codebook: Tensor) -> Tensor:
    """Indices of the codes that are not equal to an earlier one, ascending."""
    distinct, group = codebook.unique(dim=0, return_inverse=True)
    every = torch.arange(len(codebook), device=codebook.device)
    return every.new_full((len(distinct),), len(codebook)).scatter_reduce_(0, group, every, "amin").sort().values


def by_differences(latents: Tensor, codebooks: Tensor) -> Tensor:
    """argmin_k sum_i (z_i - e_ki)^2 as it stands there, in float64: (..., N, D), (..., K, D) to int64 (..., N)."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(latents.double(), codebooks.double(), compute_mode=mode).argmin(dim=-1)


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Neither autocast nor TF32. The latter has a new name since torch 2.9 and must then not be read by its old."""
    with torch.autocast(device, enabled=False):
        if device != "cuda":
            yield
            return
        settings = torch.backends.cuda.matmul
        name, full = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
        before = getattr(settings, name)
        setattr(settings, name, full)
        try:
            yield
        finally:
            setattr(settings, name, before)
