"""Names of items, as tuples of codes: how many have one of their own, how pure prefixes are, how all can differ."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vqnotes import metrics
from vqnotes._checks import check_index
from vqnotes.diagnosis.collisions import collisions

__all__ = ["appended", "balanced_assignment", "dealt_out", "name_measures", "prefix_purity"]


# ---------------------------------------------------------------- what names are worth


def name_measures(index: Tensor, tree: Tensor, sizes: Sequence[int]) -> dict[str, float]:
    """What names are judged by, as the columns of the table: collisions, use of each level, purity of prefixes.

    index: (N, S). tree: (N, depth). sizes: K of each level. Raises ValueError as `collisions` and `prefix_purity`.
    """
    met = collisions(index, size=list(sizes))
    row: dict[str, float] = {"sharing": met.sharing, "tuples": met.tuples, "largest": met.largest}
    for level, size in enumerate(sizes):
        row[f"usage {level + 1}"] = metrics.usage(index[:, level], size)
        row[f"perplexity {level + 1}"] = metrics.perplexity(index[:, level], size)
    for depth in range(tree.shape[1]):
        for length in range(1, index.shape[1]):
            purity, chance = prefix_purity(index, tree[:, depth], length)
            row |= {f"purity {length}, depth {depth + 1}": purity, f"chance {length}, depth {depth + 1}": chance}
    return row


def prefix_purity(index: Tensor, labels: Tensor, length: int, seed: int = 0) -> tuple[float, float]:
    """How pure the first codes of names are: the share of items that have the commonest label of their prefix.

    index: (N, S). labels: (N,), a node of the tree for each item. length: of the prefix, in codes.
    Returns the share, in (0, 1], and what it would be by chance, with the labels shuffled (mean of 8 times): the
    more prefixes there are, the purer they are by chance, and an item that is alone is pure.
    Raises ValueError for a length not in 1 .. S, or another number of labels.
    """
    index, labels = check_index(index), check_index(labels)
    if index.ndim != 2 or labels.shape != index.shape[:1] or not 1 <= length <= index.shape[1]:
        shapes = f"{tuple(index.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"need an index (N, S), labels (N,) and 1 <= length <= S, got {shapes}, length {length}")
    prefix = index[:, :length].unique(dim=0, return_inverse=True)[1]
    node = labels.unique(return_inverse=True)[1]
    random = torch.Generator().manual_seed(seed)
    shuffled = [node[torch.randperm(len(node), generator=random)] for _ in range(8)]
    found, *chance = [_commonest(prefix, one) for one in (node, *shuffled)]
    return found, float(np.mean(chance))


def _commonest(prefix: Tensor, node: Tensor) -> float:
    """The share of items whose node is the commonest one of their prefix."""
    pairs, counts = torch.stack([prefix, node], dim=1).unique(dim=0, return_counts=True)
    most = torch.zeros(int(prefix.max()) + 1, dtype=counts.dtype).scatter_reduce_(0, pairs[:, 0], counts, "amax")
    return most.sum().item() / len(prefix)


# ---------------------------------------------------------------- names that all differ


def appended(index: Tensor) -> Tensor:
    """Names (N, S + 1) that are all different: a number is appended, 0 for the first item of a tuple, 1 for the next.

    As TIGER does it (arXiv:2305.05065, section 3.1). The number says nothing of the item. Raises ValueError for an
    index that is not (N, S).
    """
    index = check_index(index)
    if index.ndim != 2:
        raise ValueError(f"need an index (N, S), got shape {tuple(index.shape)}")
    same = index.unique(dim=0, return_inverse=True)[1]
    order = same.argsort(stable=True)
    counts = same.bincount()
    starts = counts.cumsum(0) - counts
    number = torch.empty_like(same)
    number[order] = torch.arange(len(same)) - starts[same[order]]
    return torch.cat([index.cpu(), number[:, None]], dim=1)


def dealt_out(index: Tensor, left: Tensor, codes: Tensor) -> Tensor:
    """Names (N, S) that are all different: among items of one prefix the last codes are dealt out anew, each once.

    index: (N, S). left: (N, D), what the levels before the last one left of each item. codes: (K, D), of the last.
    Of all ways to deal them out it is the one with the least quantisation error (`balanced_assignment` with room for
    one). Where no two items collide nothing changes. Raises ValueError for shapes that do not fit, and if more than
    K items share a prefix: there are no K + 1 names then.
    """
    index = check_index(index).cpu()
    if index.ndim != 2 or left.shape != (len(index), codes.shape[-1]):
        shapes = f"{tuple(index.shape)}, {tuple(left.shape)} and {tuple(codes.shape)}"
        raise ValueError(f"need an index (N, S), what is left (N, D) and codes (K, D), got {shapes}")
    names = index.clone()
    prefix = index[:, :-1].unique(dim=0, return_inverse=True)[1]
    _, tuples, times = index.unique(dim=0, return_inverse=True, return_counts=True)
    for one in prefix[times[tuples] > 1].unique():
        members = (prefix == one).nonzero()[:, 0]
        costs = torch.cdist(left[members].double(), codes.double()).square()
        names[members, -1] = balanced_assignment(costs, 1)
    return names


def balanced_assignment(costs: Tensor, capacity: int) -> Tensor:
    """The assignment of rows to columns of least total cost that gives no column more than `capacity` rows: (N,).

    costs: (N, K), finite. Exact, by `scipy.optimize.linear_sum_assignment` on `capacity` copies of each column, so
    for some thousands of rows at most. Raises ValueError if there is no room for all rows, and for costs that are
    not finite or no matrix.
    """
    from scipy.optimize import linear_sum_assignment

    if costs.ndim != 2 or not costs.isfinite().all():
        raise ValueError(f"costs must be finite and (N, K), got shape {tuple(costs.shape)}")
    count, size = costs.shape
    if capacity < 1 or count > size * capacity:
        raise ValueError(f"{size} columns of capacity {capacity} have no room for {count} rows")
    row, place = linear_sum_assignment(costs.double().repeat(1, capacity).numpy())
    chosen = torch.empty(count, dtype=torch.int64)
    chosen[torch.from_numpy(row)] = torch.from_numpy(place) % size
    return chosen
