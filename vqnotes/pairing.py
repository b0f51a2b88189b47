"""Latents as people have them, and the inputs they belong to: rows, maps, patches."""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from vqnotes.search import check_codebook, check_latents


class UnpairedInputs(ValueError):
    """Inputs and latents of which it is not known which belong together."""


def as_tensor(given, name: str) -> Tensor:
    """A tensor on the CPU from a tensor or an array; ValueError if it is neither."""
    try:
        tensor = torch.as_tensor(given).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a tensor or an array of numbers, got {type(given).__name__}") from error
    if tensor.is_complex():
        raise ValueError(f"{name} must be real numbers, got {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def parted(latents, codebook) -> tuple[Tensor, Tensor, tuple]:
    """Latents as rows (N, D), codes (K, D), and the shape of the latents without D: (inputs, ...)."""
    latents, codes = as_tensor(latents, "latents"), as_tensor(codebook, "codebook")
    check_codebook(codes)
    check_latents(latents)
    dim = codes.shape[1]
    if latents.shape[-1] != dim and latents.ndim > 2 and latents.shape[1] == dim:
        latents = latents.movedim(1, -1)
    check_latents(latents, dim)
    grid = tuple(latents.shape[:-1]) or (1,)
    return latents.reshape(-1, dim), codes, grid


class Inputs:
    """Inputs beside latents: each latent's own input, or the patch of the input that stands at its place."""

    def __init__(self, inputs, grid: tuple):
        x = as_tensor(inputs, "inputs")
        if x.ndim == 0 or x.numel() == 0 or (x.is_floating_point() and not torch.isfinite(x).all()):
            raise ValueError(f"inputs are empty, or hold NaN or infinite values: shape {tuple(x.shape)}")
        grid = _unrolled(grid, x)
        self.inputs, inner = x, grid[1:]
        if len(x) == math.prod(grid):
            self.patches, self.grid = x.reshape(len(x), -1), (len(x),)
        else:
            space = x.shape[x.ndim - len(inner) :]
            fits = x.ndim in (len(inner) + 1, len(inner) + 2) and all(s % g == 0 for s, g in zip(space, inner))
            if len(x) != grid[0] or not inner or not fits:
                raise UnpairedInputs(
                    f"inputs {tuple(x.shape)} do not belong to latents on a grid {grid}: need one for each, "
                    f"or ({grid[0]}, C, ...) with sides that are multiples of {tuple(inner)}"
                )
            channels = x.shape[1] if x.ndim == len(inner) + 2 else 1
            x = x.reshape(len(x), channels, *(part for s, g in zip(space, inner) for part in (g, s // g)))
            places, within = range(2, x.ndim, 2), range(3, x.ndim, 2)
            self.patches, self.grid = x.permute(0, *places, 1, *within), grid
        self.size = self.patches[(0,) * len(self.grid)].numel()

    def rows(self, rows: Tensor) -> Tensor:
        """What belongs to these latents, (n, size) float32."""
        at = np.unravel_index(rows.numpy(), self.grid)
        return self.patches[tuple(map(torch.from_numpy, at))].reshape(len(rows), -1).float()

    def whole(self, rows: Tensor) -> Tensor:
        return self.inputs[rows].reshape(len(rows), -1).float()


def _unrolled(grid: tuple, x: Tensor) -> tuple:
    """(N, places) as (N, h, w) if images (N, C, H, W) can be cut into so many square patches; else as it is."""
    if len(grid) == 2 and x.ndim == 4:
        height, width = x.shape[2:]
        for side in (side for side in range(1, height + 1) if height % side == 0 == width % side):
            if height * width == grid[1] * side**2:
                return (grid[0], height // side, width // side)
    return grid


def around(flat: Tensor, grid: tuple, rows: Tensor) -> Tensor:
    """For some rows of latents (N, D) on a grid (inputs, ...): the latent and those around it, (n, 3^axes, D).

    One axis of places gives 3 of them, two give 9; over the edge the latents at the edge count. Rows without a grid
    are alone: (n, 1, D).
    """
    at = np.unravel_index(rows.numpy(), grid)
    seen = []
    for shift in itertools.product((-1, 0, 1), repeat=len(grid) - 1):
        places = [np.clip(place + step, 0, size - 1) for place, step, size in zip(at[1:], shift, grid[1:])]
        seen.append(flat[torch.from_numpy(np.ravel_multi_index((at[0], *places), grid))])
    return torch.stack(seen, dim=1)
