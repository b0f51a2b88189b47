"""Exercises of notebook 00: what an index costs, which codes live, how many codes are in effect."""

import math

import torch

from vqnotes.course.exercises import check, whole
from vqnotes.metrics import perplexity, usage

__all__ = ["check_bits_per_pixel", "check_effective_codes", "check_live_share"]


def check_bits_per_pixel(answer: object) -> None:
    """0.1: bits_per_pixel(codes, side), of an index for each square of side × side pixels: log2(codes) / side²."""
    check(
        "0.1",
        answer,
        lambda codes, side: math.log2(codes) / side**2,
        lambda generator: [(2 ** whole(generator, 3, 13), whole(generator, 2, 9)) for _ in range(4)],
        [
            (lambda codes, side: math.log(codes) / side**2, "that is in nats: bits take the logarithm to base 2"),
            (lambda codes, side: math.log2(codes) / side, "a square has side × side pixels, not side"),
            (lambda codes, side: math.log2(codes), "these are the bits of a square: share them among its pixels"),
            (
                lambda codes, side: codes / side**2,
                "K codes do not take K bits: with b bits you can number 2 to the power of b codes",
            ),
        ],
    )


def check_live_share(answer: object) -> None:
    """0.2: live_share(batches, size), the share of codes that occur in any of the batches of indices."""

    def cases(generator: torch.Generator) -> list[tuple]:
        draw = lambda count: torch.randint(0, 400, (count,), generator=generator)  # noqa: E731
        return [([draw(500), draw(40), draw(250)], size) for size in (400, 512, 1000, 1024)]

    check(
        "0.2",
        answer,
        lambda batches, size: usage(torch.cat(batches), size),
        cases,
        [
            (
                lambda batches, size: sum(usage(batch, size) for batch in batches) / len(batches),
                "that is the mean over batches: a code that is missing from one batch may live in another",
            ),
            (
                lambda batches, size: sum(usage(batch, size) for batch in batches),
                "codes that occur in several batches are counted several times",
            ),
            (lambda batches, size: usage(batches[-1], size), "that is the last batch alone"),
            (
                lambda batches, size: len(torch.cat(batches).unique()) / len(torch.cat(batches)),
                "the share is one of the codes, not of the latents: divide by the size of the codebook",
            ),
            (
                lambda batches, size: 100 * usage(torch.cat(batches), size),
                "a share lies between 0 and 1: leave the factor 100 out",
            ),
            (
                lambda batches, size: len(torch.cat(batches).unique()),
                "that is the number of live codes: divide it by the size of the codebook",
            ),
        ],
    )


def check_effective_codes(answer: object) -> None:
    """0.3: the perplexity of four codes that get 1/2, 1/4, 1/8 and 1/8 of the latents, by heart or by hand."""
    right = perplexity(torch.tensor([0, 0, 0, 0, 1, 1, 2, 3]), 4)
    check(
        "0.3",
        answer,
        right,
        None,
        [
            (4, "that counts live codes, as if each were used equally often"),
            (math.log2(right), "that is the entropy in bits: perplexity is 2 to the power of it"),
            (math.log(right), "that is the entropy in nats: perplexity is the exponential of it"),
            (2, "that looks at the most frequent code alone: the others count too, by their shares"),
        ],
        tolerance=0.001,
    )
