"""The scores of latents and codes, in chunks that fit into a cache."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vqnotes._rounding import full_precision
from vqnotes._two_lowest import BLOCK

SCORES_PER_CHUNK = 2**20  # held at once: 4 MB in float32, about a processor's cache; 64 times on a GPU


def score_matrix(codes: Tensor) -> Tensor:
    """(-e, ||e||^2 / 2) for each code e of codes (R, K, D): times (z, 1) it is the score, in one product.

    More than one block is filled up with codes that are infinitely far away, to whole blocks.
    """
    matrix = torch.cat([-codes, codes.square().sum(dim=2, keepdim=True) / 2], dim=2)
    size = codes.shape[1]
    if size > BLOCK:
        matrix = F.pad(matrix, (0, 0, 0, -size % BLOCK))
        matrix[:, size:, -1] = torch.inf
    return matrix


def parts_of(flat: Tensor, matrix: Tensor) -> list[slice]:
    """Which of the latents (R, N, D) are searched at once: so many that their scores fill a chunk."""
    (_, count, dim), per_latent = flat.shape, matrix.shape[0] * matrix.shape[1]
    wanted = SCORES_PER_CHUNK * (64 if flat.is_cuda else 1) // per_latent
    rows = max(dim + 1, wanted)  # fewer would read large codebooks more often than scores
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


def chunks_of(flat: Tensor, center: Tensor, matrix: Tensor, parts: Iterator[slice]) -> Iterator[tuple]:
    """Each part, its latents shifted (R, n, D), and their scores (R, n, K); both are overwritten next."""
    (runs, _, dim), buffer, extended = flat.shape, matrix[:0], matrix[:, :0]
    for part in parts:
        some = part.stop - part.start
        if some > extended.shape[1]:  # the first part is the longest, or the only one
            extended = matrix.new_ones(runs, some, dim + 1)
            buffer = matrix.new_empty(runs * some * matrix.shape[1])
        z = torch.sub(flat[:, part], center, out=extended[:, :some, :dim])
        scores = buffer[: runs * some * matrix.shape[1]].view(runs, some, -1)
        with full_precision(flat.device.type):
            torch.bmm(extended[:, :some], matrix.mT, out=scores)
        yield part, z, scores
