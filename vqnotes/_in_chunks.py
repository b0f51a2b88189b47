"""Straight-through and losses of many latents, chunk by chunk in one pass each way, by one thread a chunk."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, vmap

from vqnotes._threads import alone_but_for_parts, shared_out, worth_threads

PER_PART = 2**16  # numbers that a thread takes at once: with what is made of them they fit into its cache
MANY = 2**15  # numbers from which PyTorch computes an operation on several threads

Formula = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # latents, codes, index: latents_q, loss


def pays(latents: Tensor, codes: Tensor) -> bool:
    """Whether there are so many latents (..., D), on a processor, that `estimate_and_loss` is worth it for them."""
    if torch.compiler.is_compiling() or cast(Any, torch.jit).is_tracing():
        return False  # a program has one way for any number of latents
    alike = latents.dtype == codes.dtype == torch.float32 and latents.device == codes.device == torch.device("cpu")
    return alike and latents.numel() >= MANY


def estimate_and_loss(
    latents: Tensor, codes: Tensor, index: Tensor, beta: float, codebook_loss: bool, formula: Formula
) -> tuple[Tensor, Tensor]:
    """The stages `estimate` and `loss` of the plain quantiser: values and gradients bit for bit, loss up to rounding.

    These take a dozen operations, and in each all threads wait for the last: beside a busy neighbour a step did
    little else. Here they wait once each way; few latents are left to one thread, which is as fast on two cores.
    formula: the same, by those stages. It is what `torch.vmap` computes.
    """
    with alone_but_for_parts():
        return cast(Any, _InChunks).apply(latents, codes.clone(), index, beta, codebook_loss, formula)


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        latents: Tensor, codes: Tensor, index: Tensor, beta: float, codebook_loss: bool, formula: Formula
    ) -> tuple[Tensor, Tensor]:
        z, of = latents.reshape(-1, latents.shape[-1]), index.flatten()
        latents_q, parts = z.new_empty(latents.shape), _parts(z)
        flat = latents_q.view_as(z)
        sums = torch.empty(len(parts), dtype=torch.float64)

        def work(left: Iterator[int]) -> None:
            for i in left:
                e = torch.index_select(codes, 0, of[parts[i]], out=flat[parts[i]])
                sums[i] = (z[parts[i]] - e).square_().sum()

        shared_out(work, range(len(parts)), z.device, threads=worth_threads(z.numel()))
        mean = (sums.sum() / z.numel()).to(z.dtype)
        return latents_q, mean + beta * mean if codebook_loss else beta * mean

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.beta, ctx.codebook_loss = inputs[3:5]

    @staticmethod
    def backward(ctx: Any, of_latents_q: Tensor, of_loss: Tensor) -> tuple:
        of_codes = ctx.codebook_loss and ctx.needs_input_grad[1]
        given = *ctx.saved_tensors, of_latents_q, of_loss * ctx.beta, -of_loss if of_codes else None
        # A derivative of the gradient may be wanted, or the gradients of a batch of losses:
        at_once = torch.is_grad_enabled() or _is_batch(of_latents_q) or _is_batch(of_loss)
        return *(_gradients(*given) if at_once else _gradients_in_chunks(*given)), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *given: Any) -> tuple[tuple, tuple]:
        return vmap(given[-1], in_dims[:3])(*given[:3]), (0, 0)


def _gradients(
    latents: Tensor, codes: Tensor, index: Tensor, straight: Tensor, to_codes: Tensor, to_latents: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Of the latents and, if they are drawn to the latents, of the codes. straight: the gradient of their values."""
    flat = index.flatten()
    chosen = codes.index_select(0, flat).view_as(latents)
    of_latents = straight + _unit_gradient(latents, chosen.detach(), latents.numel()) * to_codes
    if to_latents is None:
        return of_latents, None
    of_chosen = _unit_gradient(latents.detach(), chosen, latents.numel()) * to_latents
    return of_latents, torch.zeros_like(codes).index_add(0, flat, of_chosen.reshape(-1, codes.shape[1]))


@alone_but_for_parts()
def _gradients_in_chunks(
    latents: Tensor, codes: Tensor, index: Tensor, straight: Tensor, to_codes: Tensor, to_latents: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    z, slope, of = latents.reshape(-1, codes.shape[1]), straight.reshape(-1, codes.shape[1]), index.flatten()
    of_latents, of_codes, threads = torch.empty_like(z), torch.zeros_like(codes), worth_threads(z.numel())
    of_chosen = z.new_empty(z.shape if threads > 1 and to_latents is not None else 0)

    def work(left: Iterator[slice]) -> None:
        for part in left:
            unit = _unit_gradient(z[part], codes.index_select(0, of[part]), z.numel())
            if to_latents is not None and threads > 1:
                torch.mul(unit, to_latents, out=of_chosen[part])
            elif to_latents is not None:
                of_codes.index_add_(0, of[part], unit * to_latents)
            torch.add(slope[part], unit.mul_(to_codes), out=of_latents[part])

    shared_out(work, _parts(z), z.device, threads=threads)
    if len(of_chosen):
        of_codes.index_add_(0, of, of_chosen)  # in the order of the latents, whichever thread had them
    return of_latents.view(latents.shape), None if to_latents is None else of_codes


def _unit_gradient(latents: Tensor, chosen: Tensor, count: int) -> Tensor:
    """That of a mean of so many squares, as `mse_loss` computes it."""
    return 2 / count * (latents - chosen)


def _is_batch(slope: Tensor) -> bool:
    """Whether it stands for several slopes, as with `torch.autograd.grad(..., is_grads_batched=True)`."""
    try:
        slope.flatten()[0].item()
    except RuntimeError:
        return True
    return False


def _parts(flat: Tensor) -> list[slice]:
    """Of latents (N, D)."""
    rows = max(1, PER_PART // flat.shape[1])
    return [slice(start, min(start + rows, len(flat))) for start in range(0, len(flat), rows)]
