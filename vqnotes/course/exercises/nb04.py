"""Exercises of notebook 04: the share that a cause explains, what the share depends on, and an interaction."""

import torch
from torch import Tensor

from vqnotes.course.exercises import check, whole

__all__ = ["check_interaction", "check_new_share", "check_share_of_start"]


def _table(generator: torch.Generator, starts: int, widths: int, seeds: int) -> Tensor:
    """A measure of (starts, widths, seeds), in points: two causes, their interaction, equal seeds, and noise."""
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    causes = 9 * draw(starts, 1, 1) + 7 * draw(1, widths, 1) + 5 * draw(starts, widths, 1)
    return 50 + causes + 6 * draw(1, 1, seeds) + 4 * draw(starts, widths, seeds)


def _spread(values: Tensor) -> Tensor:
    return values.var(correction=0)


def check_share_of_start(answer: object) -> None:
    """4.1: share_of_start(table), eta squared of the first axis of (starts, widths, seeds)."""
    check(
        "4.1",
        answer,
        lambda table: _spread(table.mean((1, 2))) / _spread(table),
        lambda generator: [(_table(generator, *shape),) for shape in ((5, 6, 8), (3, 4, 6), (4, 2, 5), (2, 3, 9))],
        [
            (
                lambda table: _spread(table.mean((0, 2))) / _spread(table),
                "that is the share of the width: average over the other two axes",
            ),
            (
                lambda table: _spread(table.mean(2)) / _spread(table),
                "the means of the cells differ by start, width and interaction: average over the widths too",
            ),
            (
                lambda table: table.mean((1, 2)).var() / table.var(),
                "both variances divide by n - 1, which blows up that of the few means: divide by n",
            ),
            (
                lambda table: table.mean((1, 2)).var() / _spread(table),
                "the variance of the means divides by n - 1, and the other one by n: divide by n in both",
            ),
            (
                lambda table: (_spread(table.mean((1, 2))) / _spread(table)).sqrt(),
                "that is the quotient of standard deviations: shares add up to 1 as variances only",
            ),
            (
                lambda table: 1 / (_spread(table) / _spread(table.mean((1, 2))) - 1),
                "it is divided by what the start leaves unexplained: divide by the variance of all values",
            ),
            (
                lambda table: _spread(table.mean((1, 2))) / table.var(2, correction=0).mean(),
                "it is divided by the variance between seeds alone: divide by the variance of all values",
            ),
            (
                lambda table: _spread(table.mean((1, 2))) / _spread(table) / table[0].numel(),
                "the sum over a few means is compared with that over all values: take means of the squares in both",
            ),
        ],
    )


def check_new_share(answer: object) -> None:
    """4.2: eta squared of a start that adds 30 points, beside a width that adds 40 instead of 10."""
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    start, width = 30 * ends[:, None], 40 * ends
    right = (_spread(start) / _spread(start + width)).item()
    check(
        "4.2",
        answer,
        right,
        None,
        [
            (0.9, "that is the old share: the start does what it did, but there is more variance to share"),
            (3 / 7, "that shares out the effects themselves: variance goes with their squares"),
            (1 - right, "that is the share of the width"),
            (right**0.5, "that is the root of the share: compare variances, not standard deviations"),
            (9 / 16, "that compares the start with the width: a share is one of all the variance, of both together"),
        ],
        tolerance=0.003,
    )


def check_interaction(answer: object) -> None:
    """4.3: interaction(table), of (2 starts, 2 widths, seeds): a difference of differences, and its standard error.

    The pair is compared. Of some mistakes the mean is right and the error is not.
    """

    def pair(each: Tensor) -> tuple[float, float]:
        return each.mean().item(), (each.var() / len(each)).sqrt().item()

    def contrast(table: Tensor, weights: list[list[float]]) -> Tensor:
        return torch.einsum("sw,swn->n", torch.tensor(weights, dtype=table.dtype), table)

    crossed = lambda table: contrast(table, [[1, -1], [-1, 1]])  # noqa: E731

    def with_error(error):
        """The right mean with another error, from the difference of differences, all values, and n."""
        return lambda table: (crossed(table).mean().item(), error(crossed(table), table, table.shape[2]).item())

    check(
        "4.3",
        answer,
        lambda table: pair(crossed(table)),
        lambda generator: [(_table(generator, 2, 2, whole(generator, low, low + 4)),) for low in (5, 7, 12)],
        [
            (
                with_error(lambda each, table, n: (table.var(2).sum() / n).sqrt()),
                "the error treats the four cells as independent: first take the differences seed by seed",
            ),
            (
                with_error(lambda each, table, n: each.std()),
                "that is how far single seeds scatter: the error of their mean is smaller by the root of n",
            ),
            (
                with_error(lambda each, table, n: each.std() / n),
                "the error is divided by n: it falls with the root of the number of seeds",
            ),
            (
                with_error(lambda each, table, n: each.std(correction=0) / n**0.5),
                "the standard deviation divides by n: a few seeds scatter around their own mean, so take n - 1",
            ),
            (
                lambda table: pair(-crossed(table)),
                "its sign is turned round: it should be positive if the start does more at the wide encoder",
            ),
            (
                lambda table: pair(contrast(table, [[-0.5, -0.5], [0.5, 0.5]])),
                "that is the mean effect of the start: take the difference of its effects at the two widths",
            ),
            (
                lambda table: pair(contrast(table, [[-1, -1], [1, 1]])),
                "that is the sum of the effects of the start at the two widths: take their difference",
            ),
            (
                lambda table: pair(contrast(table, [[-1, 0], [0, 1]])),
                "it changes both causes at once, from corner to corner: all four cells are needed",
            ),
        ],
    )
