"""The nearest code: first as a formula in three lines; then the same exactly, in little memory, for many at once."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from vqnotes._checks import Array, check_codebook_form, check_latents_form
from vqnotes._rounding import among_distinct, measure_again, wide_type
from vqnotes._scores import chunks_of, parts_of, score_matrix
from vqnotes._threads import alone_but_for_parts, shared_out
from vqnotes._two_lowest import two_lowest

__all__ = ["nearest_by_product", "nearest_code"]


def nearest_by_product(latents: Tensor, codebook: Tensor) -> Tensor:
    """argmin_k ||z - e_k||^2 = argmin_k (||e_k||^2 / 2 - z.e_k): shift, product, argmin. Memory N * K.

    latents (..., D), codebook (K, D), float32 at least. Returns int64 (...,). Far from the origin the difference of
    large numbers would lose the small distance that it should give, so both are first shifted to the codes' centre.
    """
    z, codes = latents - codebook.mean(dim=0), codebook - codebook.mean(dim=0)
    scores = codes.square().sum(dim=1) / 2 - z @ codes.mT
    return scores.argmin(dim=-1)


def nearest_code(latents: Array, codebook: Array) -> Tensor:
    """Index of the code at the smallest Euclidean distance from each latent; of equal ones, the lowest.

    latents (..., D), codebook (K, D), any float dtype. Returns int64 (...,) in 0 .. K-1.
    Raises ValueError for empty, NaN, infinite or mismatched input. In float64, differences below 1e-150 are none.

    The scores are those of `nearest_by_product`, in chunks of latents, so memory does not grow with N * K. Where the
    best two codes are closer than rounding can tell apart, that latent is measured again by plain differences in
    float64. Half precision counts in float32, also under autocast and where TF32 is allowed.
    Under `torch.vmap` its runs are searched together.

    On a GPU, a training step (latents that carry a gradient) does not wait to hear which latents are in doubt. It
    measures 64 of them again; any more keep the choice that float32 made among codes equal up to rounding, and NaN
    is not refused. Without a gradient the search is exact there, too.

    A program made by `torch.export` holds `nearest_by_product`: the same codes, but any of those that are equal up to
    rounding, and NaN is not refused. `torch.compile` leaves the search as it is.
    """
    codebook = check_codebook_form(codebook)
    latents = check_latents_form(latents, codebook.shape[1])
    if _exporting():
        wide = wide_type(latents, codebook)
        return nearest_by_product(latents.to(wide), codebook.to(wide))
    return cast(Any, _NearestCode).apply(latents, codebook)


_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # the former since torch 2.7


class _NearestCode(torch.autograd.Function):
    """The search as one operation without gradient, so that `torch.vmap` can be told how R of them are done."""

    @staticmethod
    def forward(latents: Tensor, codebook: Tensor) -> Tensor:
        with alone_but_for_parts():
            return among_distinct(_search, latents, codebook, _may_wait(latents))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, latents: Tensor, codebook: Tensor) -> tuple[Tensor, int]:
        each_latents, each_codebook = [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip((latents, codebook), in_dims)
        ]
        return nearest_in_each(each_latents, each_codebook), 0


def _may_wait(latents: Tensor) -> bool:
    """Whether the search may ask the device how many latents are in doubt, which halts a GPU."""
    return not (latents.is_cuda and latents.requires_grad)


def nearest_in_each(latents: Tensor, codebooks: Tensor) -> Tensor:
    """`nearest_code` for R pairs: latents (R, ..., D), codebooks (R, K, D) to int64 (R, ...)."""
    with alone_but_for_parts():
        return _search(latents, codebooks, _may_wait(latents))


@torch.no_grad()
def _search(latents: Tensor, codebooks: Tensor, may_wait: bool) -> Tensor:
    codes = codebooks.to(wide_type(latents, codebooks))
    center = codes.mean(dim=1, keepdim=True)
    codes = codes - center
    matrix, longest = score_matrix(codes), codes.norm(dim=2).amax(dim=1)[:, None, None]

    flat = latents.reshape(len(codes), -1, codes.shape[2])
    index = torch.empty(flat.shape[:2], dtype=torch.int64, device=flat.device)
    sure = torch.empty_like(index, dtype=torch.bool)

    def search(parts: Iterator[slice]) -> None:
        for part, z, scores in chunks_of(flat, center, matrix, parts):
            lowest, best, second = two_lowest(scores)
            index[:, part], sure[:, part] = best[..., 0], _is_sure(lowest, second, z, longest)[..., 0]

    shared_out(search, parts_of(flat, matrix), flat.device)
    measure_again(index, ~sure, flat, codebooks, may_wait, _search)
    return index.reshape(latents.shape[:-1])


def _is_sure(lowest: Tensor, second: Tensor, z: Tensor, longest: Tensor) -> Tensor:
    """Whether the two lowest scores differ by more than rounding can make them. What overflows or is NaN never does.

    Twice the bound of Higham (Accuracy and Stability, section 3.1) on a product of two vectors, n u |a| |b|.
    """
    kind = torch.finfo(lowest.dtype)
    largest = longest * (z.norm(dim=2, keepdim=True) + longest)  # that a score, or a part of it, can become
    return second - lowest > 2 * (z.shape[2] + 4) * kind.eps * largest + kind.tiny
