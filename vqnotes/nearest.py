"""The nearest code: exact, close to the time of its matrix product, in little memory, for many codebooks at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vqnotes._checks import check_codebook, check_codebook_form, check_latents, check_latents_form

SCORES_PER_CHUNK = 2**20  # held at once: 4 MB in float32, about a processor's cache; 64 times on a GPU
BLOCK = 64  # scores, see _two_lowest_of_blocks
PART = 2**14  # latents that are in float64 at once
DOUBTFUL = 64  # latents that a training step on a GPU measures again


def nearest_code(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the code at the smallest Euclidean distance from each latent; of equal ones, the lowest.

    latents (..., D), codebook (K, D), any float dtype. Returns int64 (...,) in 0 .. K-1.
    Raises ValueError for empty, NaN, infinite or mismatched input. In float64, differences below 1e-150 are none.

    argmin_k ||z - e_k||^2 = argmin_k (||e_k||^2 / 2 - z.e_k), one matrix product. Far from the origin that
    difference of large numbers loses the small distance it should give, so both sides are first shifted to the
    centre of the codebook; and where the best two codes are closer than rounding can tell apart, that latent is
    measured again by plain differences in float64. Works in chunks of latents: memory does not grow with N * K.
    Half precision counts in float32, also under autocast and where TF32 is allowed.
    Under `torch.vmap` its runs are searched together.

    On a GPU, a training step (latents that carry a gradient) does not wait to hear which latents are in doubt. It
    measures 64 of them again; any more keep the choice that float32 made among codes equal up to rounding, and NaN
    is not refused. Without a gradient the search is exact there, too.

    A program made by `torch.export` shifts, multiplies and takes the minimum, in memory N * K: the same codes, but
    any of those that are equal up to rounding, and NaN is not refused. `torch.compile` leaves the search as it is.
    """
    codebook = check_codebook_form(codebook)
    latents = check_latents_form(latents, codebook.shape[1])
    if _exporting():
        return _by_product(latents, codebook)
    return _NearestCode.apply(latents, codebook)


_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # the former since torch 2.7


def _by_product(latents: Tensor, codebook: Tensor) -> Tensor:
    """`nearest_code` without its precautions, but for the shift: what a program without Python can hold."""
    dtype = torch.promote_types(torch.promote_types(latents.dtype, codebook.dtype), torch.float32)
    center = codebook.to(dtype).mean(dim=0)
    z, codes = latents.to(dtype) - center, codebook.to(dtype) - center
    return (codes.square().sum(dim=1) / 2 - z @ codes.mT).argmin(dim=-1)


class _NearestCode(torch.autograd.Function):
    """The search as one operation without gradient, so that `torch.vmap` can be told how R of them are done."""

    @staticmethod
    def forward(latents: Tensor, codebook: Tensor) -> Tensor:
        return _nearest_in_each(latents[None], codebook[None], _may_wait(latents))[0]

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info, in_dims: tuple, latents: Tensor, codebook: Tensor) -> tuple[Tensor, int]:
        each = [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip((latents, codebook), in_dims)
        ]
        return _nearest_in_each(*each, _may_wait(latents)), 0


def _may_wait(latents: Tensor) -> bool:
    """Whether the search may ask the device how many latents are in doubt, which halts a GPU."""
    return not (latents.is_cuda and latents.requires_grad)


@torch.no_grad()
def _nearest_in_each(latents: Tensor, codebooks: Tensor, may_wait: bool) -> Tensor:
    """`nearest_code` for R pairs: latents (R, ..., D), codebooks (R, K, D) to int64 (R, ...)."""
    dtype = torch.promote_types(torch.promote_types(latents.dtype, codebooks.dtype), torch.float32)
    center = codebooks.to(dtype).mean(dim=1, keepdim=True)
    codes = codebooks.to(dtype) - center
    runs, size, dim = codes.shape
    longest = codes.norm(dim=2).amax(dim=1)[:, None, None]
    rounding, tiny = 2 * (dim + 4) * torch.finfo(dtype).eps, torch.finfo(dtype).tiny  # twice Higham's n u |a| |b|

    # A score is (z, 1) times (-e, ||e||^2 / 2): one product. Codes infinitely far away fill up the last block.
    pairs = torch.cat([-codes, codes.square().sum(dim=2, keepdim=True) / 2], dim=2)
    if size > BLOCK:
        pairs = F.pad(pairs, (0, 0, 0, -size % BLOCK))
        pairs[:, size:, dim] = torch.inf
    two_lowest = _two_lowest_of_blocks if size > BLOCK else _two_lowest

    flat = latents.reshape(runs, -1, dim)
    index = torch.empty(flat.shape[:2], dtype=torch.int64, device=flat.device)
    sure = torch.empty_like(index, dtype=torch.bool)
    per_latent = runs * pairs.shape[1]
    wanted = SCORES_PER_CHUNK * (64 if flat.is_cuda else 1) // per_latent
    rows = min(max(dim + 1, wanted), flat.shape[1])  # fewer would read large codebooks more often than scores
    buffer = torch.empty(rows * per_latent, dtype=dtype, device=flat.device)
    extended = torch.ones(runs, rows, dim + 1, dtype=dtype, device=flat.device)
    for start in range(0, flat.shape[1], rows):
        part = flat[:, start : start + rows]
        count = part.shape[1]
        z = torch.sub(part, center, out=extended[:, :count, :dim])
        scores = buffer[: count * per_latent].view(runs, count, -1)
        with _full_precision(flat.device.type):
            torch.bmm(extended[:, :count], pairs.mT, out=scores)
        lowest, best, second = two_lowest(scores)
        largest = longest * (z.norm(dim=2, keepdim=True) + longest)  # that a score, or a part of it, can become
        index[:, start : start + count] = best[..., 0]
        sure[:, start : start + count] = (second - lowest > rounding * largest + tiny)[..., 0]
    # What is NaN or infinite, overflows or underflows is never sure.
    _measure_again(index, ~sure, flat, codebooks, may_wait)
    return index.reshape(latents.shape[:-1])


def _measure_again(index: Tensor, unsure: Tensor, flat: Tensor, codebooks: Tensor, may_wait: bool) -> None:
    """Puts the code nearest by differences where the index (R, N) is unsure, for latents (R, N, D)."""
    if not may_wait:
        again = unsure.byte().topk(min(DOUBTFUL, unsure.shape[1]), dim=1).indices
        some = flat.gather(1, again[..., None].expand(-1, -1, flat.shape[2]))
        index.scatter_(1, again, _by_differences(some, codebooks))
        return
    for run in unsure.any(dim=1).nonzero()[:, 0].tolist():
        codes, again = codebooks[run], unsure[run].nonzero()[:, 0]
        check_codebook(codes)
        measure, rows = _by_differences, max(1, SCORES_PER_CHUNK // codes.shape[0])
        if len(again) > len(codes):  # so many are worth a look at why
            first = _first_of_equal(codes)
            if len(first) < len(codes) or torch.promote_types(flat.dtype, codes.dtype) != torch.float64:
                measure, rows = partial(_among, first), PART
        for some in again.split(rows):
            latents = flat[run, some]
            check_latents(latents)
            index[run, some] = measure(latents, codes)


def _among(kept: Tensor, latents: Tensor, codebook: Tensor) -> Tensor:
    """The search again, in float64, among the codes that are kept."""
    codes = codebook[kept].double()
    return kept[_nearest_in_each(latents[None].double(), codes[None], may_wait=True)[0]]


def _first_of_equal(codebook: Tensor) -> Tensor:
    """Indices of the codes that are not equal to an earlier one, ascending."""
    distinct, group = codebook.unique(dim=0, return_inverse=True)
    every = torch.arange(len(codebook), device=codebook.device)
    return every.new_full((len(distinct),), len(codebook)).scatter_reduce_(0, group, every, "amin").sort().values


def _two_lowest(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Along the last axis: the lowest score, where it is, and the second lowest, (..., 1) each. Overwrites them."""
    lowest, place = scores.min(dim=-1, keepdim=True)
    return lowest, place, scores.scatter_(-1, place, torch.inf).amin(dim=-1, keepdim=True)


def _two_lowest_of_blocks(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same, for (R, B, K) with K a multiple of BLOCK, in a third of the time.

    torch's minimum that says where it is takes six times as long on a processor as the one that does not. So the
    blocks are only asked for their minimum, and the place is looked for in the best one alone.
    """
    blocks = scores.view(-1, BLOCK)
    lowest_of_block = blocks.amin(dim=1).view(*scores.shape[:2], -1)
    _, block, elsewhere = _two_lowest(lowest_of_block)
    first = torch.arange(0, len(blocks), lowest_of_block.shape[2], device=scores.device).view(*scores.shape[:2], 1)
    lowest, place, second = _two_lowest(blocks[first + block][..., 0, :])
    return lowest, block * BLOCK + place, torch.minimum(second, elsewhere)


def _by_differences(latents: Tensor, codebooks: Tensor) -> Tensor:
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(latents.double(), codebooks.double(), compute_mode=mode).argmin(dim=-1)


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
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


# ---------------------------------------------------------------- what is refused
