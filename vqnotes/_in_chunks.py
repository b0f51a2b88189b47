"""Straight-through and losses of many latents, chunk by chunk in one pass each way, by one thread a chunk."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from vqnotes._by_index import rows
from vqnotes._threads import alone_but_for_parts, shared_out, worth_threads

PER_PART = 2**16  # numbers that a thread takes at once: with what is made of them they fit into its cache
MANY = 2**15  # numbers from which PyTorch computes an operation on several threads


def can_be_in_chunks(latents: Tensor, codes: Tensor, index: Tensor, beta: object) -> bool:
    """Whether `estimate_and_loss` is for them: many latents in single precision, on a processor, and nothing unusual.

    Unusual are a program that is being written down, which has one way for any number of latents; `torch.vmap`; and
    a beta that is learnt.
    """
    if torch.compiler.is_compiling() or cast(Any, torch.jit).is_tracing():
        return False
    alike = latents.dtype == codes.dtype == torch.float32 and latents.device == codes.device == torch.device("cpu")
    usual = alike and index.shape == latents.shape[:-1] and isinstance(beta, int | float)
    return usual and latents.numel() >= MANY and not any(map(_is_batch, (latents, codes, index)))


@alone_but_for_parts()
def estimate_and_loss(
    latents: Tensor, codes: Tensor, index: Tensor, beta: float, codebook_loss: bool
) -> tuple[Tensor, Tensor]:
    """The stages `estimate` and `loss` of the plain quantiser: values and gradients bit for bit, loss up to rounding.

    These take a dozen operations, and in each all threads wait for the last: beside a busy neighbour a step did
    little else. Here they wait once each way; few latents are left to one thread, which is as fast on two cores.
    Only in this it is less than the stages: after `torch.autograd.grad(loss, codes)` the loss has no way back to the
    latents any more, unless the graph is retained.
    """
    latents_q, mean = cast(Any, _Estimate).apply(latents, codes.detach(), index)
    kept = (codes if codebook_loss else codes.detach()).clone()  # codes may be moved before the way back
    return latents_q, cast(Any, _Loss).apply(latents, kept, index.clone(), mean, beta, codebook_loss)


class _Estimate(torch.autograd.Function):
    """The codes chosen, whose gradient goes to the latents unchanged, and the mean square from them."""

    @staticmethod
    def forward(latents: Tensor, codes: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        z, of = latents.reshape(-1, codes.shape[1]), index.flatten()
        latents_q, parts = z.new_empty(latents.shape), _parts(z)
        flat, sums = latents_q.view_as(z), z.new_empty(len(parts), dtype=torch.float64)

        def work(left: Iterator[int]) -> None:
            for i in left:
                e = torch.index_select(codes, 0, of[parts[i]], out=flat[parts[i]])
                sums[i] = (z[parts[i]] - e).square_().sum()

        shared_out(work, range(len(parts)), z.device, threads=worth_threads(z.numel()))
        return latents_q, (sums.sum() / z.numel()).to(z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple:
        return slope, None, None


class _Loss(torch.autograd.Function):
    """Of the mean square, which is known: codebook loss, if there is one, + beta * commitment loss."""

    @staticmethod
    def forward(
        latents: Tensor, codes: Tensor, index: Tensor, mean: Tensor, beta: float, codebook_loss: bool
    ) -> Tensor:
        return mean + beta * mean if codebook_loss else beta * mean

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.beta = inputs[4]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple:
        of_latents, of_codes = ctx.needs_input_grad[:2]
        weights = slope * ctx.beta if of_latents else None, -slope if of_codes else None
        # A derivative of the gradient may be wanted, or the gradients of a batch of losses:
        at_once = torch.is_grad_enabled() or _is_batch(slope)
        given = *ctx.saved_tensors, *weights
        gradients = _gradients(*given) if at_once else _gradients_in_chunks(*given)
        return *gradients, None, None, None, None


Gradients = tuple[Tensor | None, Tensor | None]


def _gradients(
    latents: Tensor, codes: Tensor, index: Tensor, commitment: Tensor | None, codebook: Tensor | None
) -> Gradients:
    """Of latents and codes. commitment, codebook: the weight of each, with its sign; None where none is wanted."""
    chosen = rows(codes, index)
    of_latents = of_codes = None
    if commitment is not None:
        of_latents = _unit_gradient(latents, chosen.detach()) * commitment
    if codebook is not None:
        of_chosen = _unit_gradient(latents.detach(), chosen) * codebook
        of_codes = torch.zeros_like(codes).index_add(0, index.flatten(), of_chosen.reshape(-1, codes.shape[1]))
    return of_latents, of_codes


@alone_but_for_parts()
def _gradients_in_chunks(
    latents: Tensor, codes: Tensor, index: Tensor, commitment: Tensor | None, codebook: Tensor | None
) -> Gradients:
    """The same. What the codes get is added up in the order of the latents, whichever thread had which."""
    z, of, threads = latents.reshape(-1, codes.shape[1]), index.flatten(), worth_threads(latents.numel())
    apart = codebook is not None and threads > 1
    of_latents, of_chosen = (z.new_empty(z.shape if wanted else 0) for wanted in (commitment is not None, apart))
    of_codes = torch.zeros_like(codes)

    def work(left: Iterator[slice]) -> None:
        for part in left:
            unit = codes.index_select(0, of[part])
            torch.sub(z[part], unit, out=unit).mul_(2 / z.numel())  # _unit_gradient, in place
            if commitment is not None:
                torch.mul(unit, commitment, out=of_latents[part])
            if codebook is not None and apart:
                torch.mul(unit, codebook, out=of_chosen[part])
            elif codebook is not None:
                of_codes.index_add_(0, of[part], unit.mul_(codebook))

    shared_out(work, _parts(z), z.device, threads=threads)
    if apart:
        of_codes.index_add_(0, of, of_chosen)
    return None if commitment is None else of_latents.view(latents.shape), None if codebook is None else of_codes


def _unit_gradient(latents: Tensor, chosen: Tensor) -> Tensor:
    """That of the mean square, as `mse_loss` computes it."""
    return 2 / latents.numel() * (latents - chosen)


def _is_batch(tensor: Tensor) -> bool:
    """Whether it stands for several: within `torch.vmap`, or `torch.autograd.grad(..., is_grads_batched=True)`."""
    try:
        tensor[(0,) * tensor.ndim].item()
    except RuntimeError:
        return True
    return False


def _parts(flat: Tensor) -> list[slice]:
    """Of latents (N, D)."""
    step = max(1, PER_PART // flat.shape[1])
    return [slice(start, min(start + step, len(flat))) for start in range(0, len(flat), step)]
