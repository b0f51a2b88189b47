"""Batches: which inputs each step of a training gets, for many runs at once."""

from collections.abc import Iterator

import torch
from torch import Tensor

AHEAD = 16  # steps: their batches are cut, and moved to the device, together


def batches_of(
    length: int, batch_size: int, seeds: list[int], device: torch.device, shuffle: bool = True
) -> Iterator[Tensor]:
    """Each step's places in x (R, B), without end: for each of R seeds the passes through x, cut into batches."""
    streams = [passes(length, AHEAD * batch_size, seed, shuffle) for seed in seeds]
    for places in zip(*streams):
        ahead = torch.stack(places).view(len(seeds), AHEAD, batch_size).transpose(0, 1)
        yield from ahead.to(device, torch.int64, non_blocking=True)


def passes(length: int, count: int, seed: int, shuffle: bool) -> Iterator[Tensor]:
    """All of 0 .. length - 1 over and over, `count` at a time: each pass in a new random order, or in their own."""
    # Each of many runs holds its order until it is through: int32, where the data's length allows, is half as much.
    dtype = torch.int32 if length < 2**31 else torch.int64
    generator = torch.Generator().manual_seed(seed)
    torch.randperm(length, generator=generator)  # not used: by it `sample_latents` chooses what the codes start from
    order, used = torch.empty(0, dtype=dtype), 0
    while True:
        parts, missing = [], count
        while missing:
            if used == len(order):
                order = torch.randperm(length, generator=generator, dtype=dtype) if shuffle else torch.arange(length)
                used = 0
            parts.append(order[used : used + missing])
            used, missing = used + len(parts[-1]), missing - len(parts[-1])
        yield torch.cat(parts)
