"""Exercises of notebook 10: how large a table of distances is, where two curves cross, how far a line leads."""

import math

import numpy as np
import torch
from torch import Tensor

from vqnotes.course.exercises import check

__all__ = ["check_crossing", "check_gigabytes", "check_steps_needed"]


def check_gigabytes(answer: object) -> None:
    """10.1: the gigabytes of all distances between 2^19 latents and 2^14 codes in float32."""
    distances = 2**19 * 2**14 / 1e9
    check(
        "10.1",
        answer,
        4 * distances,
        None,
        [
            (4 * 2**33 / 2**30, "that is in units of 2^30 bytes (GiB): a gigabyte is 10^9 bytes"),
            (distances, "that is the number of distances, in thousand millions: each takes 4 bytes"),
            (8 * distances, "a number in float32 takes 4 bytes, 8 is float64"),
            (2 * distances, "a number in float32 takes 4 bytes, 2 is half precision"),
            (32 * distances, "8 times too much: a distance is one number, whatever D is, and bytes are not bits"),
            (
                4 * 2**19 * 8 / 1e9,
                "those are the latents themselves: the table has a row a latent and a column a code",
            ),
        ],
        tolerance=0.005,
    )


def _between(sizes: Tensor, gap: Tensor, share=None) -> Tensor:
    """Where the gap becomes positive, on a straight line between neighbours; or at a given share of the way."""
    after = int((gap > 0).nonzero()[0, 0])
    if share is None:
        share = gap[after - 1] / (gap[after - 1] - gap[after])
    return torch.lerp(sizes[after - 1], sizes[after], torch.as_tensor(share, dtype=sizes.dtype))


def check_crossing(answer: object) -> None:
    """10.2: crossing(sizes, untrained, warm_up), the K at which two curves cross on logarithmic axes."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for place in (0.8, 2.3, 3.6):
            sizes = 2.0 ** torch.arange(3, 13, 2)
            ahead = (torch.arange(5) - place) * (0.1 + 0.2 * torch.rand(5, generator=generator))
            warm_up = (0.9 - 0.15 * torch.arange(5)) * (0.9 + 0.1 * torch.rand(5, generator=generator))
            drawn.append((sizes, warm_up * ahead.exp(), warm_up))
        return drawn

    of = lambda u, w: u.log() - w.log()  # noqa: E731
    check(
        "10.2",
        answer,
        lambda sizes, u, w: _between(sizes.log(), of(u, w)).exp(),
        cases,
        [
            (
                lambda sizes, u, w: _between(sizes, of(u, w), 1),
                "that is the first size at which warm-up is ahead: the curves cross before it",
            ),
            (
                lambda sizes, u, w: _between(sizes, of(u, w), 0),
                "that is the last size at which warm-up is behind: the curves cross after it",
            ),
            (
                lambda sizes, u, w: _between(sizes.log(), of(u, w), 0.5).exp(),
                "the middle between the two sizes says nothing of how far apart the errors are at either: weigh them",
            ),
            (
                lambda sizes, u, w: _between(sizes, of(u, w)),
                "the axis of K is logarithmic too: draw the line against the logarithm of K",
            ),
            (
                lambda sizes, u, w: _between(sizes.log(), u - w).exp(),
                "this line joins differences of errors: their axis is logarithmic, so take logarithms first",
            ),
            (
                lambda sizes, u, w: _between(sizes, u - w),
                "both axes are logarithmic: take the logarithm of K and of the errors first",
            ),
            (
                lambda sizes, u, w: _between(sizes.log2(), of(u, w)),
                "that is the logarithm of K to the base 2: raise 2 to it",
            ),
            (
                lambda sizes, u, w: _between(sizes.log(), of(u, w)),
                "that is the logarithm of K: take exp of it",
            ),
        ],
        tolerance=1e-3,
    )


def _line(x, y) -> tuple[float, float]:
    """Slope and height at 0 of the line of least squares."""
    slope, height = np.polyfit(np.asarray(x, dtype=float), np.asarray(y, dtype=float), 1)
    return float(slope), float(height)


def _reached(x, y, goal: float) -> float:
    slope, height = _line(x, y)
    return (goal - height) / slope


def check_steps_needed(answer: object) -> None:
    """10.3: steps_needed(steps, perplexity, goal): where a line through looks, on logarithmic axes, meets a goal."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for start, goal in ((32, 900.0), (64, 3000.0)):
            steps = start * 2.0 ** torch.arange(5)
            slope = 0.7 + 0.4 * torch.rand((), generator=generator)
            noise = (0.15 * torch.randn(5, generator=generator)).exp()
            drawn.append((steps, 30 * (steps / start) ** slope * noise, goal))
        return drawn

    log = math.log
    ends = [0, -1]
    check(
        "10.3",
        answer,
        lambda s, p, goal: math.exp(_reached(s.log(), p.log(), log(goal))),
        cases,
        [
            (
                lambda s, p, goal: _reached(s, p, goal),
                "that line is straight on plain axes: take the logarithms of steps and of perplexity first",
            ),
            (
                lambda s, p, goal: math.exp(_reached(s.log(), p, goal)),
                "only the axis of the steps is logarithmic there: take the logarithm of perplexity too",
            ),
            (
                lambda s, p, goal: _reached(s, p.log(), log(goal)),
                "only the axis of perplexity is logarithmic there: take the logarithm of the steps too",
            ),
            (
                lambda s, p, goal: math.exp(_reached(s[ends].log(), p[ends].log(), log(goal))),
                "that line joins the first look and the last: fit it to all of them",
            ),
            (
                lambda s, p, goal: s[-1] * (goal / p[-1]) ** (1 / _line(s.log(), p.log())[0]),
                "that line starts from the last look: the fitted one need not go through it",
            ),
            (
                lambda s, p, goal: s[-1] * goal / p[-1],
                "that takes perplexity to grow as the steps do: fit the slope",
            ),
            (
                lambda s, p, goal: math.exp(np.polyval(_line(p.log(), s.log()), log(goal))),
                "that line fits steps against perplexity: the steps were chosen, perplexity was measured",
            ),
            (
                lambda s, p, goal: _reached(s.log2(), p.log2(), math.log2(goal)),
                "that is the logarithm of the steps to the base 2: raise 2 to it",
            ),
            (
                lambda s, p, goal: _reached(s.log(), p.log(), log(goal)),
                "that is the logarithm of the steps: take exp of it",
            ),
        ],
        tolerance=1e-3,
    )
