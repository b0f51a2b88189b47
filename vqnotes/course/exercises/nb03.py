"""Exercises of notebook 03: PSNR over batches, separability against the input's, and which part is at fault."""

import itertools

import torch
from torch import Tensor

from vqnotes.course.exercises import check, whole

__all__ = ["check_psnr_of_batches", "check_relative_separability", "check_treat_first"]


def _errors(batches) -> Tensor:
    """Mean squared error of each batch."""
    return torch.stack([(rebuilt - images).square().mean() for rebuilt, images in batches])


def _decibels(error) -> Tensor:
    return -10 * error.log10()


def check_psnr_of_batches(answer: object) -> None:
    """3.1: psnr_of_batches(batches), of pairs (rebuilt, images) in [0, 1], from the squared error over all values."""

    def cases(generator: torch.Generator) -> list[tuple]:
        def batch(count: int, level: float) -> tuple[Tensor, Tensor]:
            images = torch.rand(count, 3, 8, 8, generator=generator)
            noise = level * torch.randn(images.shape, generator=generator)
            return (images + noise).clamp(0, 1), images

        return [
            ([batch(whole(generator, 8, 17), level) for level in (0.05, 0.1)] + [batch(rest, last)],)
            for rest, last in ((3, 0.4), (2, 0.3), (5, 0.02))
        ]

    def over_all(batches) -> Tensor:
        return torch.cat([(rebuilt - images).flatten() for rebuilt, images in batches]).square().mean()

    check(
        "3.1",
        answer,
        lambda batches: _decibels(over_all(batches)),
        cases,
        [
            (
                lambda batches: _decibels(_errors(batches)).mean(),
                "that is the mean of the batches' PSNRs: put the errors together first, take the logarithm once",
            ),
            (
                lambda batches: _decibels(_errors(batches).mean()),
                "a small batch weighs as much as a large one: the mean goes over values, not over batches",
            ),
            (
                lambda batches: -10 * over_all(batches).log(),
                "that is the natural logarithm: decibels take the logarithm to base 10",
            ),
            (
                lambda batches: 2 * _decibels(over_all(batches)),
                "the factor 20 belongs to the root of the squared error: the squared error itself takes 10",
            ),
            (
                lambda batches: _decibels(over_all(batches)) / 2,
                "the factor 10 belongs to the squared error, and this takes its root: leave the root out",
            ),
            (
                lambda batches: -_decibels(over_all(batches)),
                "its sign is turned round: a smaller error must give more decibels",
            ),
            (
                lambda batches: _decibels(sum((a - b).square().sum() for a, b in batches)),
                "that takes the sum of the squared errors: divide it by the number of values",
            ),
        ],
    )


def _leave_one_out(points: Tensor, y: Tensor) -> float:
    nearest_two = torch.cdist(points, points).topk(2, largest=False).indices
    return (y[nearest_two[:, 1]] == y).double().mean().item()


def check_relative_separability(answer: object) -> None:
    """3.2: relative_separability(latents, pixels, y), the quotient of two leave-one-out accuracies.

    Each point gets the label of its nearest other point. Points are in double precision, so that two ways to
    compute a distance do not disagree on which is the nearest.
    """

    def cases(generator: torch.Generator) -> list[tuple]:
        def one(count: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
            y = torch.arange(count) % classes
            draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
            pixels = 0.8 * draw(classes, 12)[y] + draw(count, 12)
            return pixels[:, :3] + draw(count, 3), pixels, y

        return [one(150, 6), one(160, 8), one(120, 5), one(144, 9), one(140, 7)]

    check(
        "3.2",
        answer,
        lambda latents, pixels, y: _leave_one_out(latents, y) / _leave_one_out(pixels, y),
        cases,
        [
            (
                lambda latents, pixels, y: 1.0,
                "each point finds itself, at distance 0, so that both accuracies are 1: "
                "leave the diagonal of the distances out",
            ),
            (
                lambda latents, pixels, y: _leave_one_out(latents, y),
                "that is the accuracy on the latents alone: set it in relation to that on the pixels",
            ),
            (
                lambda latents, pixels, y: _leave_one_out(pixels, y) / _leave_one_out(latents, y),
                "the two are swapped: what the encoder lost must make the result smaller",
            ),
            (
                lambda latents, pixels, y: _leave_one_out(latents, y) - _leave_one_out(pixels, y),
                "that is the difference of the two accuracies: a share of what the pixels allow is a quotient",
            ),
            (
                lambda latents, pixels, y: (1 - _leave_one_out(latents, y)) / (1 - _leave_one_out(pixels, y)),
                "that compares how often the labels differ: count how often they agree",
            ),
        ],
    )


_WHY = {
    "A": "A's latents tell nearly all that its inputs tell, but k-means would code them with a ninth of the error",
    "B": "B's gap only says that its latents are coded well: they tell little more than guessing does",
    "C": "the accuracy of C is low on its inputs too, so neither side of the quantiser has lost much",
    "D": "in D both are bad: start where the loss cannot be made good by better codes",
}


def check_treat_first(answer: object) -> None:
    """3.3: what to treat first in models A, B, C and D, a tuple of "codebook", "encoder" or "neither"."""
    right = ("codebook", "encoder", "neither", "encoder")
    wrong = [words for words in itertools.product(("codebook", "encoder", "neither"), repeat=4) if words != right]
    because = [_WHY["ABCD"[min(place for place in range(4) if words[place] != right[place])]] for words in wrong]
    if isinstance(answer, tuple | list):
        answer = tuple(word.lower() if isinstance(word, str) else word for word in answer)
    check("3.3", answer, right, None, list(zip(wrong, because)))
