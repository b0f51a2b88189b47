"""So that rounding decides nothing: types that are wide enough, equal codes as one, doubts measured in float64."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor

from vqnotes._checks import check_codebook, check_latents

PART = 2**14  # latents that are in float64 at once
DISTANCES_AT_ONCE = 2**20
DOUBTFUL = 64  # latents that a training step on a GPU measures again
FEW = 16  # latents in doubt that are not worth a look at why
WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # types of as many bytes

Search = Callable[[Tensor, Tensor, bool], Tensor]  # of latents (R, ..., D), codebooks (R, K, D), may_wait: (R, ...)


def wide_type(*tensors: Tensor) -> torch.dtype:
    """One type for all, float32 at least: sums of half-precision squares would lose most of their digits."""
    return reduce(torch.promote_types, [one.dtype for one in tensors], torch.float32)


def mean_of_rows(rows: Tensor) -> Tensor:
    """The mean (D,) of rows (N, D) in float64, of which only a part is in float64 at once."""
    return torch.stack([part.sum(0, dtype=torch.float64) for part in rows.split(PART)]).sum(0) / len(rows)


def among_distinct(search: Search, latents: Tensor, codebook: Tensor, may_wait: bool) -> Tensor:
    """The search for latents (..., D) in one codebook (K, D), int64 (...); of equal codes only the first takes part.

    Otherwise a code and its clone would be a tie that rounding hides, and each of their latents in doubt. It is a
    pass over the codes, so they are looked through only where there is much to search. If it may not wait, it is not.
    Raises ValueError for codes that are NaN or infinite; if it does not look, the search does.
    """
    if may_wait and latents.shape[:-1].numel() * len(codebook) > DISTANCES_AT_ONCE:
        kept = _first_of_equal(check_codebook(codebook))
        if len(kept) < len(codebook):
            return kept[search(latents[None], codebook[None, kept], True)[0]]
    return search(latents[None], codebook[None], may_wait)[0]


def measure_again(
    index: Tensor, unsure: Tensor, flat: Tensor, codebooks: Tensor, may_wait: bool, search: Search
) -> None:
    """Puts the code nearest by differences where the index (R, N) is unsure, for latents (R, N, D).

    Where that is many latents of a run, by the search itself: among codes that differ, or, if all do, in float64.
    Raises ValueError for a NaN or infinite value in them; if it may not wait, it does not look.
    """
    if not may_wait:
        again = unsure.byte().topk(min(DOUBTFUL, unsure.shape[1]), dim=1).indices
        some = flat.gather(1, again[..., None].expand(-1, -1, flat.shape[2]))
        index.scatter_(1, again, by_differences(some, codebooks))
        return
    for run in unsure.any(dim=1).nonzero()[:, 0].tolist():
        again = unsure[run].nonzero()[:, 0]
        codes = check_codebook(codebooks[run])
        kept = _first_of_equal(codes) if len(again) > FEW else torch.arange(len(codes), device=codes.device)
        narrow = torch.promote_types(flat.dtype, codes.dtype) != torch.float64
        by_search = len(kept) < len(codes) or (narrow and len(again) > len(codes))
        for some in again.split(PART if by_search else max(1, DISTANCES_AT_ONCE // len(codes))):
            latents = check_latents(flat[run, some])
            if len(kept) < len(codes):
                index[run, some] = kept[search(latents[None], codes[None, kept], True)[0]]
            elif by_search:
                index[run, some] = search(latents[None].double(), codes[None].double(), True)[0]
            else:
                index[run, some] = by_differences(latents, codes)


def _first_of_equal(codebook: Tensor) -> Tensor:
    """Indices of the codes (K, D) that are not equal to an earlier one, ascending. The codes are finite.

    Whole numbers made of the digits of a code tell which differ; sums of them are exact in any order, as those of
    floats are not. To compare whole rows takes twenty times as long.
    """
    every = torch.arange(len(codebook), device=codebook.device)
    bits = (codebook + 0.0).contiguous().view(WHOLE[codebook.element_size()]).long()  # -0.0 is 0.0
    factors = torch.randint(2**62, bits.shape[1:], generator=torch.Generator().manual_seed(0), device="cpu")
    if len((bits * factors.to(bits.device)).sum(dim=1).unique()) == len(codebook):
        return every
    distinct, group = codebook.unique(dim=0, return_inverse=True)
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
