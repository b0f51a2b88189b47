"""Exercises of notebook 02: distances of codes, the modes they cover, latents that move, codes that follow."""

import math

import torch

from vqnotes.course.exercises import check, given, whole
from vqnotes.metrics import entropy, mode_entropy, pairwise_distance, perplexity
from vqnotes.nearest import nearest_code

__all__ = ["check_cosine_distance", "check_follow", "check_left_behind", "check_modes_covered"]


def check_cosine_distance(answer: object) -> None:
    """2.1: cosine_distance(codebook), the mean of 1 - cos over all pairs of different codes."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for _ in range(4):
            size, dim = whole(generator, 6, 13), whole(generator, 3, 8)
            lengths = 0.5 + 3 * torch.rand(size, 1, generator=generator)
            drawn.append((lengths * (0.5 + torch.randn(size, dim, generator=generator)),))
        return drawn

    def over_pairs(products):
        """The mean of 1 - product over pairs of different rows, given all products (K, K)."""
        size = len(products)
        return 1 - (products.sum() - products.trace()) / (size * (size - 1))

    def by_dimension(codebook):
        columns = codebook / codebook.norm(dim=0)
        return over_pairs(columns @ columns.T)

    check(
        "2.1",
        answer,
        pairwise_distance,
        cases,
        [
            (
                lambda codebook: pairwise_distance(codebook) * (1 - 1 / len(codebook)),
                "each code is also paired with itself, at distance 0: leave those pairs out of the mean",
            ),
            (
                lambda codebook: 1 - pairwise_distance(codebook),
                "that is the cosine, which is large for codes that agree",
            ),
            (
                lambda codebook: pairwise_distance(codebook) / 2,
                "each pair is added once and counted twice: there are K (K - 1) / 2 pairs, without regard to order",
            ),
            (by_dimension, "that gives each dimension length 1 instead of each code: the other axis"),
            (
                lambda codebook: over_pairs(codebook @ codebook.T),
                "an inner product is a cosine only if both codes have length 1",
            ),
            (lambda codebook: pairwise_distance(codebook, "euclidean"), "that is the Euclidean distance"),
        ],
    )


def check_modes_covered(answer: object) -> None:
    """2.2: modes_covered(latents, codebook, y), the effective number of modes that the codes sit in."""

    def cases(generator: torch.Generator) -> list[tuple]:
        return [_crowded(generator, modes) for modes in (6, 7, 8, 9)]

    def finite(answer, *case):
        number = given(answer(*case))
        return "not a number" if torch.as_tensor(number).isnan().any() else number

    def labels(latents, codebook, y):
        return y[nearest_code(codebook, latents)]

    def weighted_by_use(latents, codebook, y):
        return perplexity(labels(latents, codebook, y)[nearest_code(latents, codebook)], len(y))

    def wrong_axis(latents, codebook, y):
        return perplexity(y[nearest_code(latents, codebook)], len(y))

    check(
        "2.2",
        answer,
        lambda latents, codebook, y: math.exp(mode_entropy(latents, codebook, y)),
        cases,
        [
            (
                lambda *case: math.nan,
                "it gives nan: for a mode without codes, 0 · log 0 is not a number, so leave its share out",
            ),
            (mode_entropy, "that is the entropy in nats: the exponential of it is the number of modes"),
            (
                lambda *case: mode_entropy(*case) / math.log(2),
                "that is the entropy in bits: 2 to the power of it is the number of modes",
            ),
            (
                lambda *case: math.exp(mode_entropy(*case) / math.log(2)),
                "the base of the power is e and that of the logarithm is 2: they must be the same",
            ),
            (
                lambda *case: len(labels(*case).unique()),
                "that counts the modes with any code at all: a mode with few codes must count for less",
            ),
            (
                lambda latents, codebook, y: perplexity(y, len(y)),
                "those are the shares of the points in each mode, and the shares of the codes are asked for",
            ),
            (
                lambda latents, codebook, y: math.exp(
                    mode_entropy(latents, codebook[nearest_code(latents, codebook).unique()], y)
                ),
                "dead codes are left out: all codes count here, for the question is where the codebook sits",
            ),
            (
                weighted_by_use,
                "codes are weighted by how many latents chose them: each code counts once",
            ),
            (wrong_axis, "that finds the code nearest to each latent, and the latent nearest to each code is needed"),
        ],
        measure=finite,
    )


def _crowded(generator: torch.Generator, modes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents in separate modes on a circle, codes, and the latents' labels: mode 0 has no code, mode 1 a dead knot.

    In double precision, so that no nearest code depends on how the distances are rounded.
    """
    sizes = torch.randint(40, 120, (modes,), generator=generator)
    y = torch.repeat_interleave(torch.arange(modes), sizes)
    y = y[torch.randperm(len(y), generator=generator)]
    angles = 2 * math.pi * (torch.arange(modes) / modes + torch.rand((), generator=generator))
    centers = 15 * torch.stack([angles.cos(), angles.sin()], dim=1)
    latents = (centers[y] + 0.5 * torch.randn(len(y), 2, generator=generator)).double()
    codes = [
        latents[y == mode][: whole(generator, 1, 12)] + 0.01 * torch.randn(1, 2, generator=generator)
        for mode in range(1, modes)
    ]
    knot = centers[1] * torch.linspace(1.3, 1.5, whole(generator, 25, 40))[:, None]  # beyond the latents of mode 1
    codebook = torch.cat([*codes, knot])
    return latents, codebook[torch.randperm(len(codebook), generator=generator)], y


def check_left_behind(answer: object) -> None:
    """2.3: the perplexity of 100 codes in a row, one unit apart, once their latents spread from 100 to 300 units."""
    weights = [1] * 98 + [101] * 2
    right = math.exp(entropy(weights))
    check(
        "2.3",
        answer,
        right,
        None,
        [
            (
                100,
                "all 100 codes stay live, but no longer equally used: the two at the ends get far more than the rest",
            ),
            (
                100 / 3,
                "a third of the latents stay in the middle, but the others do not vanish: they go to the end codes",
            ),
            (entropy(weights), "that is the entropy in nats: perplexity is the exponential of it"),
            (entropy(weights) / math.log(2), "that is the entropy in bits: perplexity is 2 to the power of it"),
            (
                math.exp(entropy([1] * 98 + [98] * 2)),
                "the two codes at the ends get all that the 98 others leave: more than a third each",
            ),
            (
                math.exp(entropy([1] * 100 + [100] * 2)),
                "that has 102 codes: the two at the ends get the latents outside and those of their own place",
            ),
            (3, "that takes the codes in the middle as one: each of them counts with its own share"),
            (2, "the codes in the middle are still chosen, by a third of the latents"),
        ],
        tolerance=0.003,
    )


def check_follow(answer: object) -> None:
    """2.5: follow(latents, index, codebook, share, decay), a step of the moving averages: codebook and share."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for decay in (0.5, 0.8, 0.99):
            size, dim = whole(generator, 5, 9), whole(generator, 2, 5)
            share = torch.rand(size, generator=generator) + 0.1
            index = torch.randint(0, size - 1, (30,), generator=generator)  # nobody chooses the last one
            latents, codebook = (torch.randn(count, dim, generator=generator) for count in (30, size))
            drawn.append((latents, index, codebook, share / share.sum(), decay))
        return drawn

    def averaged(latents, index, codebook):
        """The share of the latents that chose each code, and their mean, the code itself where there are none."""
        share = torch.bincount(index, minlength=len(codebook)) / len(latents)
        sums = torch.zeros_like(codebook).index_add(0, index, latents) / len(latents)
        return share, torch.where(share[:, None] > 0, sums / share[:, None], codebook)

    def follow(latents, index, codebook, share, decay):
        new, mean = averaged(latents, index, codebook)
        total = decay * share + (1 - decay) * new
        weight = (1 - decay) * new / total
        return codebook + weight[:, None] * (mean - codebook), total

    def plain(latents, index, codebook, share, decay):
        _, mean = averaged(latents, index, codebook)
        return decay * codebook + (1 - decay) * mean, follow(latents, index, codebook, share, decay)[1]

    def fading(latents, index, codebook, share, decay):
        new, mean = averaged(latents, index, codebook)
        sums = decay * codebook + (1 - decay) * torch.where(new[:, None] > 0, mean, 0.0)
        return sums, decay * share + (1 - decay) * new

    def counted(latents, index, codebook, share, decay):
        new, mean = averaged(latents, index, codebook)
        total = decay * share + (1 - decay) * new * len(latents)
        return codebook + ((1 - decay) * new * len(latents) / total)[:, None] * (mean - codebook), total

    def at_once(latents, index, codebook, share, decay):
        return averaged(latents, index, codebook)[1], follow(latents, index, codebook, share, decay)[1]

    def old_share(latents, index, codebook, share, decay):
        return follow(latents, index, codebook, share, decay)[0], share

    check(
        "2.5",
        answer,
        follow,
        cases,
        [
            (
                lambda latents, index, codebook, share, decay: follow(latents, index, codebook, share, 1 - decay),
                "the decay is on the wrong side: it weighs what was there before, and 1 - decay what is new",
            ),
            (
                plain,
                "each code goes the same part of the way: one that few latents chose must go less far, so average "
                "shares and sums apart, and divide",
            ),
            (fading, "a code that nobody chose moves to the origin: its sum and its share fade alike, so it stays"),
            (counted, "share is a part of the latents, between 0 and 1: divide the counts by N"),
            (at_once, "the code jumps to the mean of this step: what was there before has the weight decay * share"),
            (old_share, "the share that is returned is the old one: it is averaged as well"),
        ],
    )
