"""Exercises of notebook 11: how many items share a name by chance, who shares one, names given in turn."""

import torch
from torch import Tensor

from vqnotes.course.exercises import check
from vqnotes.diagnosis.collisions import collisions

__all__ = ["check_birthday", "check_greedy", "check_sharers"]


def check_birthday(answer: object) -> None:
    """11.1: the share of 1,024 items that share their name, if each draws one of 4,096 at random."""
    alone = (1 - 1 / 4096) ** 1023
    in_use = 4096 * (1 - (1 - 1 / 4096) ** 1024)
    check(
        "11.1",
        answer,
        1 - alone,
        None,
        [
            (alone, "that is the share of the items that are alone with their name"),
            (0.0, "there are enough names, but nobody sees to it that no name is drawn twice"),
            (
                1 - in_use / 1024,
                "that leaves out one item of each name: it shares its name too",
            ),
            (1023 / 4096, "that adds up the chances of 1,023 pairs: an item that meets two others counts twice"),
            (
                1024 / 4096,
                "that is how many items there are for a name: ask for the chance to meet one of the others",
            ),
            (100 * (1 - alone), "as a share of 1, not in percent"),
        ],
        tolerance=0.002,
    )


def _index(generator: torch.Generator) -> Tensor:
    """Names (20, 3), of which some come twice, some backwards too, and each code is sometimes alone."""
    drawn = torch.randint(14, (12, 3), generator=generator)
    again = drawn[torch.randint(12, (5,), generator=generator)]
    names = torch.cat([drawn, again, drawn[:3].flip(1)])
    return names[torch.randperm(len(names), generator=generator)]


def check_sharers(answer: object) -> None:
    """11.2: sharers(index), a mask of the items (N,) whose whole name (N, S) another item has too."""

    def cases(generator: torch.Generator) -> list[tuple]:
        return [(_index(generator),) for _ in range(6)]

    def numbered(index: Tensor) -> tuple[Tensor, Tensor]:
        _, name, times = index.unique(dim=0, return_inverse=True, return_counts=True)
        return name, times

    def reference(index: Tensor) -> Tensor:
        name, times = numbered(index)
        return times.gt(1)[name]

    def not_the_first(index: Tensor) -> Tensor:
        rows = [tuple(row) for row in index.tolist()]
        return torch.tensor([row in rows[:place] for place, row in enumerate(rows)])

    check(
        "11.2",
        answer,
        reference,
        cases,
        [
            (not_the_first, "the first item of each name is left out: it shares its name too"),
            (lambda index: ~reference(index), "those are the items that have a name of their own"),
            (lambda index: reference(index[:, -1:]), "a name is the whole row: you look at its last code alone"),
            (lambda index: reference(index[:, :1]), "a name is the whole row: you look at its first code alone"),
            (
                lambda index: reference(index.sort(dim=1).values),
                "the order of codes counts: (0, 1, 2) and (2, 1, 0) are two names",
            ),
            (lambda index: reference(index.sum(dim=1, keepdim=True)), "different names may have one sum of codes"),
            (
                lambda index: numbered(index)[1].gt(1),
                "that has an entry a name: one an item is asked for",
            ),
            (
                lambda index: collisions(index).sharing,
                "that is their share: a mask is asked for, an entry an item",
            ),
        ],
    )


def check_greedy(answer: object) -> None:
    """11.3: greedy(costs), codes (N,) for N items in turn: each the cheapest one that is still free."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for items, codes in ((5, 6), (8, 8), (4, 9)):
            common = 3 * torch.rand(codes, generator=generator)  # what is cheap for one is cheap for others
            drawn.append((common + torch.rand(items, codes, generator=generator),))
        return drawn

    def reference(costs: Tensor, order: Tensor | None = None) -> Tensor:
        rest = costs.clone()
        chosen = torch.zeros(len(costs), dtype=torch.int64)
        for item in torch.arange(len(costs)) if order is None else order:
            chosen[item] = rest[item].argmin()
            rest[:, chosen[item]] = torch.inf
        return chosen

    def exact(costs: Tensor) -> Tensor:
        from vqnotes.studies.item_names import balanced_assignment

        return balanced_assignment(costs, 1)

    def of_codes(costs: Tensor) -> Tensor:
        return reference(costs.T[: len(costs)])

    check(
        "11.3",
        answer,
        reference,
        cases,
        [
            (
                lambda costs: costs.argmin(dim=1),
                "each gets its cheapest code, taken or not: leave out the taken ones",
            ),
            (
                lambda costs: reference(costs, torch.arange(len(costs)).flip(0)),
                "the last item is served first: go through them in their order",
            ),
            (
                lambda costs: reference(costs, costs.amin(dim=1).argsort()),
                "the item with the cheapest code is served first: go through them in their order",
            ),
            (exact, "that is the cheapest of all ways: it is better, but served in turn they get others"),
            (lambda costs: reference(-costs), "each gets the dearest code that is free"),
            (of_codes, "you go through codes and choose an item for each: go through items"),
        ],
    )
