"""The entropy gap of soft choices: first as a formula; then the same in little memory, chunk by chunk of latents."""

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor

from vqnotes._rounding import full_precision
from vqnotes._threads import shared_out
from vqnotes.nearest import _exporting

__all__ = ["entropy_gap", "entropy_gap_of_products"]

SCORES_PER_CHUNK = 2**18  # of a thread, which holds two numbers for each; on a GPU 64 times as many


def entropy_gap(*scores: Tensor) -> Tensor:
    """Mean entropy of softmax(scores) minus the entropy of its mean, in nats, in [-log K, 0]: scores (N, K).

    Two scores (N, I) and (N, J) are those of choices made independently, that together make one of K = I * J.
    """
    logs = [one.log_softmax(dim=-1) for one in scores]
    shares = [one.exp() for one in logs]
    of_each = -sum((share * log).sum(-1).mean() for share, log in zip(shares, logs))
    mean = shares[0].mean(0) if len(scores) == 1 else shares[0].T @ shares[1] / len(shares[0])
    return of_each + (mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()


def entropy_gap_of_products(z: Tensor, weights: Tensor) -> Tensor:
    """entropy_gap(z @ weights.T) for z (N, D) and weights (K, D), in memory for chunks of the scores (N, K).

    Its derivatives too, in reverse mode; only where the gradient is to be differentiated again, all are held at once.
    """
    if _exporting():
        return entropy_gap(z @ weights.T)
    return cast(Any, _EntropyGap).apply(z[None], weights[None])[0][0]


class _EntropyGap(torch.autograd.Function):
    """The same for R runs at once, which `torch.vmap` asks for: z (R, N, D), weights (R, K, D) to the gaps (R,).

    With p_n the softmax of the scores of latent n, q the mean of all p_n, and r_nk = log p_nk - log q_k, the gap is
    -mean_n sum_k p_nk r_nk, and its derivative by a score -p_nk (r_nk - sum_j p_nj r_nj) / N: what the score changes
    in the logarithms adds up to 0. So q is all that the way back has to know of other latents; it makes p again.
    """

    @staticmethod
    def forward(z: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        def sums(parts: list[slice]) -> tuple[Tensor, Tensor]:
            total, of_each = z.new_zeros(len(z), weights.shape[1]), z.new_zeros(len(z))
            for _, logs, shares in _choices(z, weights, parts):
                total += shares.sum(1)
                of_each -= logs.mul_(shares).sum((1, 2))
            return total, of_each

        total, of_each = _over_chunks(sums, z, weights)
        mean = total / z.shape[1]
        log_mean = mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
        return of_each / z.shape[1] + (mean * log_mean).sum(1), log_mean

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        z, weights, log_mean = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated too: by way of all scores
            return torch.func.vjp(lambda z, w: torch.vmap(entropy_gap)(z @ w.mT), z, weights)[1](gradient)
        to_z = torch.empty_like(z)

        def sums(parts: list[slice]) -> tuple[Tensor]:
            to_weights = torch.zeros_like(weights)
            for part, logs, shares in _choices(z, weights, parts):
                products = logs.sub_(log_mean[:, None]).mul_(shares)  # p r
                slopes = products.addcmul_(shares, products.sum(2, keepdim=True), value=-1)
                with full_precision(z.device.type):
                    to_z[:, part] = slopes @ weights
                    to_weights.baddbmm_(slopes.mT, z[:, part])
            return (to_weights,)

        (to_weights,) = _over_chunks(sums, z, weights)
        scale = -gradient[:, None, None] / z.shape[1]
        return scale * to_z, scale * to_weights

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *tensors: Tensor) -> tuple:
        many = [
            one.expand(info.batch_size, *one.shape) if dim is None else one.movedim(dim, 0)
            for one, dim in zip(tensors, in_dims)
        ]
        found = cast(Any, _EntropyGap).apply(*(one.flatten(0, 1) for one in many))
        return tuple(one.unflatten(0, (info.batch_size, -1)) for one in found), (0, 0)


def _over_chunks(sums: Callable[[list[slice]], tuple], z: Tensor, weights: Tensor) -> list[Tensor]:
    """The sums of all chunks, by one thread a chunk; which thread has which is fixed, and so is the rounding."""
    runs, count, dim = z.shape
    rows = max(dim, SCORES_PER_CHUNK * (64 if z.is_cuda else 1) // (runs * weights.shape[1]))
    parts = [slice(start, min(start + rows, count)) for start in range(0, count, rows)]
    threads = min(torch.get_num_threads(), len(parts)) if z.device.type == "cpu" else 1
    found: list[tuple] = [()] * threads

    def work(left: Iterator[int]) -> None:
        for thread in left:
            found[thread] = sums(parts[thread::threads])

    shared_out(work, range(threads), z.device)
    return [reduce(torch.add, each) for each in zip(*found)]


def _choices(z: Tensor, weights: Tensor, parts: list[slice]) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Each part of the latents, their log p and their p, (R, n, K) each; both are overwritten next."""
    (runs, _, _), size = z.shape, weights.shape[1]
    buffers = z.new_empty(2, runs * (parts[0].stop - parts[0].start) * size)  # the first part is the longest
    for part in parts:
        shares, logs = buffers[:, : runs * (part.stop - part.start) * size].view(2, runs, -1, size)
        with full_precision(z.device.type):
            torch.bmm(z[:, part], weights.mT, out=shares)
        torch.log_softmax(shares, dim=2, out=logs)
        yield part, logs, torch.exp(logs, out=shares)
