"""Exercises of notebook 07: coverage, what an error does to distances, the bits that a prior pays."""

import math

import torch
from torch import Tensor

from vqnotes.course.exercises import check, whole
from vqnotes.studies.generation import coverage, density

__all__ = ["check_bits", "check_coverage", "check_shrunk"]


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th neighbour; as the 0th it counts itself."""
    return torch.cdist(points, points).sort(dim=1).values[:, k]


def check_coverage(answer: object) -> None:
    """7.1: share_covered(real, generated, k): of real points that have a sample within their k-th real neighbour."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for count, made in ((41, 23), (53, 29), (47, 31)):
            real = torch.randn(count, 2, generator=generator)
            generated = 0.7 * torch.randn(made, 2, generator=generator) + 0.6
            drawn.append((real, generated, whole(generator, 2, 5)))
        return drawn

    near = lambda real, generated, radii: torch.cdist(real, generated) <= radii  # noqa: E731
    check(
        "7.1",
        answer,
        coverage,
        cases,
        [
            (
                lambda real, generated, k: coverage(real, generated, k - 1),
                "each real point was counted as its own nearest neighbour: leave it out, it has distance 0",
            ),
            (
                lambda real, generated, k: near(real, generated, _radii(real, k)[:, None]).any(0).double().mean(),
                "this is the share of samples within a ball (precision): ask which balls hold a sample",
            ),
            (
                lambda real, generated, k: near(real, generated, _radii(generated, k)).any(1).double().mean(),
                "the balls are drawn around the samples (recall): draw them around the real points",
            ),
            (density, "that is density, which counts a ball again for every sample: count each ball once"),
            (
                lambda real, generated, k: near(real, generated, _radii(real, k)[:, None]).double().mean(),
                "this is the mean over all pairs: for each ball ask only whether there is any sample in it",
            ),
            (
                lambda real, generated, k: near(real, generated, _radii(real, k)[:, None]).any(1).sum(),
                "that is how many balls hold a sample: give their share",
            ),
        ],
    )


def check_shrunk(answer: object) -> None:
    """7.2: what an error of 0.19 of the variance leaves of the root mean square distance."""
    left = 1 - 0.19
    check(
        "7.2",
        answer,
        math.sqrt(left),
        None,
        [
            (left, "this is the share that is left of the squared distance: take its root"),
            (0.19, "this is the share of the variance that is lost: ask what is left"),
            (math.sqrt(0.19), "this is the root of what is lost: subtract first, and take the root of what is left"),
            (1 - math.sqrt(0.19), "variances can be subtracted, their roots cannot: take the root at the end"),
            (1 - 0.19 / 2, "half of the loss is only near to it: take the root itself"),
            (math.sqrt(1 + 0.19), "what is rebuilt varies less than the images, and not more: a mean is smoother"),
            (1, "the distances shrink: images that share a grid are all rebuilt as one"),
        ],
        tolerance=0.002,
    )


def _likelihoods(logits: Tensor, index: Tensor) -> Tensor:
    return logits.log_softmax(dim=-1).gather(-1, index[..., None])[..., 0]


def check_bits(answer: object) -> None:
    """7.3: bits(logits, index), the mean negative log-likelihood of a grid, in bits."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for _ in range(3):
            images, codes, positions = whole(generator, 5, 9), whole(generator, 10, 13), whole(generator, 14, 17)
            logits = 2 * torch.randn(images, positions, codes, generator=generator)
            drawn.append((logits, torch.randint(0, codes, (images, positions), generator=generator)))
        return drawn

    shifted = lambda logits, index: _likelihoods(logits[:, :-1], index[:, 1:])  # noqa: E731
    check(
        "7.3",
        answer,
        lambda logits, index: -_likelihoods(logits, index).sum(1).mean() / math.log(2),
        cases,
        [
            (lambda logits, index: -_likelihoods(logits, index).sum(1).mean(), "these are nats: divide by log 2"),
            (
                lambda logits, index: -_likelihoods(logits, index).mean() / math.log(2),
                "these are bits a code: add up the codes of an image before you take the mean over images",
            ),
            (
                lambda logits, index: -_likelihoods(logits, index).mean(),
                "these are nats a code: add up the codes of an image, and divide by log 2",
            ),
            (
                lambda logits, index: -_likelihoods(logits, index).sum() / math.log(2),
                "these are the bits of all images together: divide by their number",
            ),
            (
                lambda logits, index: _likelihoods(logits, index).sum(1).mean() / math.log(2),
                "the sign is missing: probabilities are below 1, so that their logarithms are negative",
            ),
            (
                lambda logits, index: -shifted(logits, index).sum(1).mean() / math.log(2),
                "logits and codes are shifted by one place: here the logits at t are about the code at t itself",
            ),
            (
                lambda logits, index: -logits.gather(-1, index[..., None]).sum((1, 2)).mean() / math.log(2),
                "logits are no log-probabilities yet: a softmax over the codes is missing",
            ),
        ],
    )
