"""The lowest two of many scores, and where the lowest is."""

import torch
from torch import Tensor

BLOCK = 64  # scores


def two_lowest(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Along the last axis: the lowest score, where it is, and the second lowest, (..., 1) each. Overwrites them.

    scores (R, B, K), with K at most BLOCK or a multiple of it.
    A minimum that says where it is costs more than one that does not. So several blocks are only asked for their
    minimum, and the place is looked for in the best one alone.
    """
    if scores.shape[-1] <= BLOCK:
        return _of_few(scores)
    blocks = scores.view(-1, BLOCK)
    lowest_of_block = blocks.amin(dim=1).view(*scores.shape[:2], -1)
    _, block, elsewhere = _of_few(lowest_of_block)
    first = torch.arange(0, len(blocks), lowest_of_block.shape[2], device=scores.device).view(*scores.shape[:2], 1)
    lowest, place, second = _of_few(blocks[first + block][..., 0, :])
    return lowest, block * BLOCK + place, torch.minimum(second, elsewhere)


def _of_few(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same by a minimum that says where it is."""
    lowest, place = scores.min(dim=-1, keepdim=True)
    return lowest, place, scores.scatter_(-1, place, torch.inf).amin(dim=-1, keepdim=True)
