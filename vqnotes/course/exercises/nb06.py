"""Exercises of notebook 06: water-filling by hand, the dimensions of codes in use, how long to wait."""

import math

import torch
from torch import Tensor

from vqnotes.course.exercises import check, whole
from vqnotes.metrics import effective_dimension, water_filling

__all__ = ["check_code_dimension", "check_error_by_hand", "check_wait"]


def check_error_by_hand(answer: object) -> None:
    """6.1: the least squared error of variances 32, 8 and 1 with 3 bits in all."""
    check(
        "6.1",
        answer,
        water_filling([32, 8, 1], 3).distortion,
        None,
        [
            (2, "that is the water level: the error is its sum over the numbers, and one of them lies below it"),
            (
                6,
                "either the third number got the level as its error, though its variance is 1, or the first two "
                "got equal bits: they must end at one level",
            ),
            (4, "the number that gets no bits still has an error: its whole variance"),
            (3 * 4 ** (1 / 3), "all three share the bits here, but then the level lies above the third variance"),
            (41 / 4, "one bit for each is not best: a bit is worth most where the error is largest"),
            (32 / 64 + 8 + 1, "all bits for the first number: after one of them the next is worth as much elsewhere"),
            (2 * math.sqrt(32) + 1, "a bit divides the squared error by 4: its bits are log2(variance / level) / 2"),
            (8 + 4 + 1, "a bit divides the error by 4, not by 2: errors are squares"),
        ],
        tolerance=0.01,
    )


def _held(rows: Tensor, power: int = 2, center: bool = True) -> int:
    spread = torch.linalg.svdvals(rows - rows.mean(0) * center) ** power
    return int((spread.cumsum(0) / spread.sum() < 0.99).sum()) + 1


def check_code_dimension(answer: object) -> None:
    """6.2: code_dimension(codebook, index): principal components that hold 99 % of the codes in use."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for _ in range(4):
            # Dead codes fill 20 dimensions. Of the live ones a few, seldom used, fill 9, the others 4 or 5; all lie
            # away from the origin, by far in the last dimension.
            much = whole(generator, 4, 6)
            codes = torch.randn(96, 20, generator=generator)
            codes[:64] *= 0.0
            codes[:32, :much] = torch.randn(32, much, generator=generator)
            codes[32:64, 5:14] = torch.randn(32, 9, generator=generator)
            codes += 40 * torch.eye(20)[19] - 6 * codes.mean(0)
            often = torch.randint(0, 32, (20_000,), generator=generator)
            index = torch.cat([often, torch.arange(32, 64)])[torch.randperm(20_032, generator=generator)]
            drawn.append((codes, index))
        return drawn

    check(
        "6.2",
        answer,
        lambda codes, index: effective_dimension(codes[index]),
        cases,
        [
            (
                lambda codes, index: _held(codes),
                "all codes count alike here, those that nobody uses too: take one row for each latent",
            ),
            (
                lambda codes, index: _held(codes[index.unique()]),
                "each code in use counts once here, however often it is used: take one row for each latent",
            ),
            (
                lambda codes, index: _held(codes[index], center=False),
                "the mean was not subtracted: a codebook far from the origin then seems to fill one dimension",
            ),
            (
                lambda codes, index: _held(codes[index], power=1),
                "singular values are standard deviations: variances are their squares",
            ),
            (
                lambda codes, index: _held(codes[index]) - 1,
                "one too few: count the components that are needed to reach 99 %, the last one included",
            ),
        ],
    )


def check_wait(answer: object) -> None:
    """6.3: wait(variances, bits, c, s0): steps until all directions that the bits pay for are half learnt."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for _ in range(4):
            variances = torch.logspace(0.5, -2, whole(generator, 12, 30), dtype=torch.float64)
            variances = variances[torch.randperm(len(variances), generator=generator)]
            bits = whole(generator, 3, 9)
            drawn.append((variances, bits, 0.01 * whole(generator, 1, 9), 1e-3 * whole(generator, 1, 90)))
        return drawn

    def time(strength: float, rate: float, ends: float = 0.5) -> float:
        return (math.log(ends / (1 - ends)) - math.log(strength / (1 - strength))) / rate

    def paid(variances: Tensor, bits: float) -> Tensor:
        return variances[variances > water_filling(variances, bits).level]

    check(
        "6.3",
        answer,
        lambda variances, bits, c, s0: time(s0, c * float(paid(variances, bits).min())),
        cases,
        [
            (
                lambda variances, bits, c, s0: time(s0, c * float(variances.min())),
                "this waits for the weakest direction of all: those that get no bits need not be learnt",
            ),
            (
                lambda variances, bits, c, s0: time(s0, c * float(variances.max())),
                "this waits for the strongest direction only: the weakest that is paid for comes last",
            ),
            (
                lambda variances, bits, c, s0: time(s0, c * water_filling(variances, bits).level),
                "that is the time of a direction exactly at the level: take the weakest variance above it",
            ),
            (
                lambda variances, bits, c, s0: math.log(1 / s0) / (c * float(paid(variances, bits).min())),
                "near: it leaves out the factor 1 - s0 of the start, which counts where s0 is not tiny",
            ),
            (
                lambda variances, bits, c, s0: math.log(0.5 / s0) / (c * float(paid(variances, bits).min())),
                "that is growth without a limit: the factor 1 - s slows it, so solve for s / (1 - s)",
            ),
            (
                lambda variances, bits, c, s0: float(sum(time(s0, c * float(v)) for v in paid(variances, bits))),
                "the directions are learnt side by side, not one when the other is done: take the longest time",
            ),
            (
                lambda variances, bits, c, s0: time(s0, float(paid(variances, bits).min())),
                "the rate c is missing: a slower net must wait longer",
            ),
        ],
    )
