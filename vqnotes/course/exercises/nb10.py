"""Exercises of notebook 10: how large a table of distances is, where two curves cross, how a sweep goes on."""

import math

import torch
from torch import Tensor

from vqnotes.course.exercises import check, given

__all__ = ["check_crossing", "check_gigabytes", "check_resume"]


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


class _Disconnected(Exception):
    """The machine is gone."""


def _story(answer, parts: list[str], worth: dict[str, float], before: list[str], breaks: int) -> tuple:
    """What is trained and kept when the connection breaks, and what a second call then trains and returns."""
    saved, trained = {part: worth[part] for part in before}, []

    def train(part: str) -> float:
        trained.append(part)
        if len(trained) == breaks:
            raise _Disconnected
        return worth[part]

    try:
        given(answer(list(parts), saved, train))
    except _Disconnected:
        pass
    first, kept = " ".join(trained), " ".join(sorted(saved))
    given(returned := answer(list(parts), saved, train))
    return f"first {first}; kept {kept}; then {' '.join(trained)}", list(returned), sorted(saved.items())


def check_resume(answer: object) -> None:
    """10.3: resume(parts, saved, train): trains what is not saved, saves at once, returns all in order."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for breaks in (2, 3):
            names = [f"K={2**n}" for n in torch.randperm(9, generator=generator)[:6].tolist()]
            worth = dict(zip(names, (torch.rand(6, generator=generator) + 1).tolist())) | {names[4]: 0.0}
            drawn.append((names, worth, [names[4], names[1]], breaks))
        return drawn

    def resumed(parts, saved, train, missing=lambda part, saved: part not in saved, result=None):
        for part in filter(lambda part: missing(part, saved), parts):
            saved.update({part: train(part)})
        return list(map(saved.get, parts)) if result is None else result(saved)

    def at_the_end(parts, saved, train):
        saved.update({part: train(part) for part in parts if part not in saved})
        return list(map(saved.get, parts))

    def marked_first(parts, saved, train):
        for part in parts:
            if part not in saved:
                saved[part] = math.nan
                saved[part] = train(part)
        return list(map(saved.get, parts))

    def only_new(parts, saved, train):
        new = [part for part in parts if part not in saved]
        return resumed(parts, saved, train, result=lambda saved: list(map(saved.get, new)))

    check(
        "10.3",
        answer,
        resumed,
        cases,
        [
            (
                at_the_end,
                "results are saved at the end only: when the connection breaks, all of them are lost",
            ),
            (
                lambda parts, saved, train: resumed(parts, saved, train, missing=lambda part, saved: True),
                "what is saved already is trained again",
            ),
            (
                lambda parts, saved, train: resumed(
                    parts, saved, train, missing=lambda part, saved: not saved.get(part)
                ),
                "a result that is 0 is taken for none and trained again: ask whether the part is in `saved`",
            ),
            (
                marked_first,
                "a part is entered before it is trained: the one that the break hit counts as done for ever",
            ),
            (only_new, "only the new results are returned: those saved by an earlier call are missing"),
            (
                lambda parts, saved, train: resumed(parts, saved, train, result=lambda saved: list(saved.values())),
                "the results come in the order in which they were saved, not in that of `parts`",
            ),
        ],
        measure=_story,
    )
