"""What a recommender loses where items share their names: sessions whose truth is known, and who predicts the next.

A recommender is the causal transformer of `vqnotes.studies.generation` on names in a row, item after item. One that
predicts ids is the same on names of one code each.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqnotes._checks import check_index
from vqnotes.studies.generation import CodeTransformer, fit_priors

__all__ = ["chances_of_next", "fit_recommenders", "recall_at", "recall_ceiling", "sessions_of"]

BEAM = 16  # names that are followed at once


def chances_of_next(tree: Tensor, *, kind: float = 0.7, group: float = 0.2, seed: int = 0) -> Tensor:
    """The truth of the sessions: the chance of each item to come next, (N, N), rows sum to 1.

    tree: (N, 2), group and kind of each item. With chance `kind` the next item is of the same kind, with `group` of
    the same group, else any. Among those an item is chosen by its popularity, which falls in its kind as 1, 1/2,
    1/3 ..., in an order drawn by `seed`. Raises ValueError for a tree of another depth or chances above 1 in all.
    """
    tree = check_index(tree)
    if tree.ndim != 2 or tree.shape[1] != 2 or min(kind, group) < 0 or kind + group > 1:
        raise ValueError(
            f"need a tree (N, 2) and chances of at most 1 in all, got {tuple(tree.shape)}, {kind}, {group}"
        )
    rng = np.random.default_rng(seed)
    popularity = np.empty(len(tree))
    for one in tree[:, 1].unique():
        members = np.flatnonzero(tree[:, 1].numpy() == int(one))
        popularity[members] = 1 / rng.permutation(np.arange(1, len(members) + 1))
    likely = torch.from_numpy(popularity).double()
    parts = []
    for same in (tree[:, 1, None] == tree[None, :, 1], tree[:, 0, None] == tree[None, :, 0]):
        chosen = same * likely
        parts.append(chosen / chosen.sum(dim=1, keepdim=True))
    anything = (likely / likely.sum()).expand_as(parts[0])
    return kind * parts[0] + group * parts[1] + (1 - kind - group) * anything


def sessions_of(chances: Tensor, count: int, length: int, seed: int) -> Tensor:
    """`count` sessions of so many items each, (count, length) int64: the first is any item, each next one by chance.

    chances: (N, N), as of `chances_of_next`. Raises ValueError for other shapes and for sizes below 1.
    """
    if chances.ndim != 2 or chances.shape[0] != chances.shape[1] or min(count, length) < 1:
        raise ValueError(f"need chances (N, N) and sizes >= 1, got {tuple(chances.shape)}, {count} and {length}")
    rng = np.random.default_rng(seed)
    upto = chances.cumsum(dim=1)
    items = [torch.from_numpy(rng.integers(len(chances), size=count))]
    for _ in range(length - 1):
        lot = torch.from_numpy(rng.random(count))[:, None]
        items.append(torch.searchsorted(upto[items[-1]], lot)[:, 0].clamp_max(len(chances) - 1))
    return torch.stack(items, dim=1)


def recall_ceiling(chances: Tensor, names: Tensor, k: int) -> float:
    """The recall at k that no recommender exceeds which sees names alone, in [0, 1].

    chances: (M, N), of each of N items to come next in M cases; rows sum to 1. names: (N, S).
    It may recommend k items; those that share a name are the same to it, so each has their mean chance. With names
    that are all different it is what the truth itself allows: the chance of the k likeliest items.
    Raises ValueError for another number of names, or k not in 1 .. N.
    """
    names = check_index(names)
    if chances.ndim != 2 or names.ndim != 2 or len(names) != chances.shape[1] or not 1 <= k <= len(names):
        shapes = f"{tuple(chances.shape)} and {tuple(names.shape)}"
        raise ValueError(f"need chances (M, N), names (N, S) and 1 <= k <= N, got {shapes} and k={k}")
    _, same, times = names.unique(dim=0, return_inverse=True, return_counts=True)
    mass = torch.zeros(len(chances), len(times), dtype=chances.dtype).index_add_(1, same, chances)
    return (mass / times)[:, same].topk(k, dim=1).values.sum(dim=1).mean().item()


# ---------------------------------------------------------------- recommenders


def _rows(names: Tensor, sizes: Sequence[int], sessions: Tensor) -> Tensor:
    """Sessions (M, T) as rows of codes (M, T * S), a code of each level with numbers of its own."""
    first = torch.tensor([0, *np.cumsum(sizes)[:-1].tolist()])
    return (names + first)[sessions].flatten(1)


def fit_recommenders(
    names: Sequence[Tensor], sizes: Sequence[int], sessions: Sequence[Tensor], *, seeds: Iterable[int], **options: Any
) -> list[CodeTransformer]:
    """One recommender a seed, which has learnt sessions (M, T) of items as rows of their names (N, S).

    names, sessions: one tensor a seed. sizes: how many codes each level has. options: of `generation.fit_priors`.
    Raises ValueError as `fit_priors` does.
    """
    grids = [_rows(own, sizes, those) for own, those in zip(names, sessions, strict=True)]
    found = fit_priors(grids, sum(sizes), seeds=seeds, progress=False, **options)
    return [recommender for recommender, _ in found]


@torch.no_grad()
def recall_at(
    recommender: CodeTransformer, names: Tensor, sizes: Sequence[int], sessions: Tensor, ks: Sequence[int]
) -> list[float]:
    """The share of sessions whose last item is among the k that are recommended after the others, for each k.

    names: (N, S). sessions: (M, T). Names are found code by code, the likeliest 16 beginnings at once (beam search);
    names that no item has are left out. Items that share a name come in random order: their expected share counts.
    Raises ValueError for sessions of another length than the recommender has learnt.
    """
    count, levels = len(sessions), names.shape[1]
    if sessions.shape[1] * levels != recommender.positions:
        raise ValueError(f"the recommender reads {recommender.positions} codes, got {tuple(sessions.shape)}")
    before = _rows(names, sizes, sessions[:, :-1])
    first = torch.tensor([0, *np.cumsum(sizes)[:-1].tolist()])
    rows, scores = before[:, None], torch.zeros(count, 1, dtype=torch.float64)
    for level, size in enumerate(sizes):
        flat = rows.flatten(0, 1)
        logits = torch.cat([recommender(part)[:, -1] for part in flat.split(512)])
        own = logits[:, first[level] : first[level] + size].double().log_softmax(dim=1)
        total = (scores.reshape(-1, 1) + own).reshape(count, -1)
        scores, best = total.topk(min(BEAM, total.shape[1]), dim=1)
        chosen = rows.gather(1, (best // size)[..., None].expand(-1, -1, rows.shape[2]))
        rows = torch.cat([chosen, (best % size + first[level])[..., None]], dim=2)
    return _expected_hits(rows[..., -levels:] - first, names, sessions[:, -1], ks)


def _expected_hits(recommended: Tensor, names: Tensor, wanted: Tensor, ks: Sequence[int]) -> list[float]:
    """recommended: names (M, B, S) from the likeliest on. wanted: (M,), the item that came."""
    everything = torch.cat([names, recommended.flatten(0, 1)])
    numbers = everything.unique(dim=0, return_inverse=True)[1]
    items, found = numbers[: len(names)], numbers[len(names) :].reshape(recommended.shape[:2])
    having = items.bincount(minlength=int(numbers.max()) + 1)
    before = having[found].cumsum(dim=1) - having[found]
    hit = found == items[wanted][:, None]
    place = torch.where(hit, before, len(names)).amin(dim=1)
    of_name = having[items[wanted]]
    return [((k - place) / of_name).clamp(0, 1).mean().item() for k in ks]
