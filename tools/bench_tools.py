"""What the bench and the plots of growth both time, and how."""

import statistics
import time
from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor

from vqnotes import data, models
from vqnotes.quantizers import VectorQuantizer

SIZES = ((16_384, 64, 1024), (16_384, 64, 8192), (65_536, 16, 512))  # latents, dimensions, codes
MODES = data.gaussian_modes(modes=32, per_mode=150, dim=16).x


def small(seed: int, width: int = 64, device: str = "cpu") -> models.VQAutoencoder:
    return models.mlp_autoencoder(16, VectorQuantizer(64, 8), width=width).to(device)


def wait() -> None:
    """Until a GPU, if this process uses one, has done all that it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def ratios(repeats: int, first: Callable, second: Callable) -> str:
    """How many times as long the first takes as the second, alternating. The first call of each does not count."""
    first(), second(), wait()
    return said([seconds(first) / seconds(second) for _ in range(repeats)])


def said(found: list[float]) -> str:
    """The median, and in brackets the lowest and the highest of several."""
    ends = f" ({min(found):.2f} .. {max(found):.2f})" if len(found) > 1 else ""
    return f"{statistics.median(found):.2f}{ends}"


def both_ways(quantizer: torch.nn.Module, *batches: Tensor) -> Callable[[], None]:
    """One forward and one backward pass on the next of the batches, by our quantiser or a peer's."""
    inputs = cycle([batch.clone().requires_grad_() for batch in batches])

    def work() -> None:
        latents = next(inputs)
        latents.grad = None
        latents_q, _, loss = quantizer(latents)
        (latents_q.square().mean() + loss.sum()).backward()

    return work


def search_alone(latents: Tensor, codes: Tensor, rows: int) -> Callable[[], Tensor]:
    """The limit: product and argmin in chunks of so many rows, without a gradient or a check."""
    half_squares = codes.square().sum(1) / 2

    def work() -> Tensor:
        parts = latents.split(rows)
        return torch.cat([torch.addmm(half_squares, part, codes.T, alpha=-1).argmin(1) for part in parts])

    return work


def fastest_search(latents: Tensor, codes: Tensor) -> Callable[[], Tensor]:
    """The limit in its best chunk size."""
    sizes = range(20, 31) if latents.is_cuda else range(17, 24)
    works = [search_alone(latents, codes, 2**bits // len(codes)) for bits in sizes if 2**bits >= len(codes)]
    return min(works, key=lambda work: min(seconds(work) for _ in range(3)))


def batched_products(runs: int, batch: int, codes: int, steps: int, device: str = "cpu") -> Callable[[], None]:
    """The matrix products of so many steps of all runs, forward and backward, and nothing else."""
    layers = [(16, 64), (64, 64), (64, 8), (8, 64), (64, 64), (64, 16)]
    weights = [torch.randn(runs, *shape, device=device) for shape in layers]
    inputs = [torch.randn(runs, batch, shape[0], device=device) for shape in layers]
    outputs = [torch.randn(runs, batch, shape[1], device=device) for shape in layers]
    latents, codebooks = torch.randn(runs, batch, 8, device=device), torch.randn(runs, 8, codes, device=device)

    def work() -> None:
        for _ in range(steps):
            for x, weight, gradient in zip(inputs, weights, outputs):
                x @ weight, x.mT @ gradient, gradient @ weight.mT
            latents @ codebooks

    return work
