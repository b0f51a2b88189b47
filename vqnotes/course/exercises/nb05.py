"""Exercises of notebook 05: codes that start anew, a restart storm by arithmetic, rounding with a gradient."""

import math

import torch
from torch import Tensor

from vqnotes.course.exercises import check, given, replaced, whole
from vqnotes.quantizers import straight_through

__all__ = ["check_fsq", "check_replaced_share", "check_restart"]


def _outcome(answer, latents: Tensor, codebook: Tensor, uses: Tensor, threshold: float) -> str:
    """What became of the codes, in words: which latents are drawn is left to the answer."""
    found = torch.as_tensor(given(answer(latents, codebook, uses, threshold)))
    if found.shape != codebook.shape:
        raise ValueError(f"the new codebook has shape {tuple(found.shape)}, not {tuple(codebook.shape)}")
    stale = uses < threshold * uses.sum() / len(codebook)
    stays = (found == codebook).all(dim=1)
    is_latent = (found[:, None] == latents).all(dim=2).any(dim=1)
    places = len(found[stale].unique(dim=0))
    different = "one place" if places == 1 else f"{'' if places == stale.sum() else 'not all '}different places"
    return (
        f"of the codes used enough {_words(stays[~stale])} stay; of the others {_words(~stays[stale])} move, "
        f"{_words(is_latent[stale])} are latents, in {different}"
    )


def _words(mask: Tensor) -> str:
    return "all" if mask.all() else "some" if mask.any() else "none"


def check_restart(answer: object) -> None:
    """5.1: restart(latents, codebook, uses, threshold): codes below threshold * N/K become different latents."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for threshold in (0.55, 0.6, 0.7):
            rare = torch.tensor([0.0] * 80 + [1.0] * 80)
            often = torch.randint(4, 7, (96,), generator=generator).float()
            uses = torch.cat([rare, often])[torch.randperm(256, generator=generator)]
            latents = torch.randn(int(uses.sum()), 3, generator=generator)
            drawn.append((latents, torch.randn(256, 3, generator=generator), uses, threshold))
        return drawn

    stale = lambda uses, threshold: uses < threshold * uses.mean()  # noqa: E731
    check(
        "5.1",
        answer,
        lambda latents, codes, uses, threshold: replaced(codes, stale(uses, threshold), latents),
        cases,
        [
            (
                lambda latents, codes, uses, threshold: replaced(codes, ~stale(uses, threshold), latents),
                "the comparison is the wrong way round: codes in use were replaced, and the rare ones kept",
            ),
            (
                lambda latents, codes, uses, threshold: replaced(codes, uses < threshold, latents),
                "codes with a single use were kept: the limit is a share of the mean N/K, not a number of latents",
            ),
            (
                lambda latents, codes, uses, threshold: latents[: len(codes)],
                "every code moved: those that are used enough must stay where they are",
            ),
            (
                lambda latents, codes, uses, threshold: replaced(
                    codes, stale(uses, threshold), latents[:1].expand_as(latents)
                ),
                "all of them became one latent: codes in one place are clones, so give each a latent of its own",
            ),
            (
                lambda latents, codes, uses, threshold: replaced(
                    codes, stale(uses, threshold), latents.repeat_interleave(2, dim=0)
                ),
                "some latents were given to several codes: draw them without putting any back",
            ),
            (
                lambda latents, codes, uses, threshold: replaced(codes, stale(uses, threshold), latents + 1),
                "the new codes are not latents: codes from elsewhere die again, so place them on the batch itself",
            ),
        ],
        measure=_outcome,
    )


def check_replaced_share(answer: object) -> None:
    """5.2: the share of 1,024 equally likely codes that fewer than 2 of 2,048 latents choose."""

    def exactly(uses: int) -> float:
        return math.comb(2048, uses) * (1 / 1024) ** uses * (1 - 1 / 1024) ** (2048 - uses)

    none, one, two = (exactly(uses) for uses in range(3))
    check(
        "5.2",
        answer,
        none + one,
        None,
        [
            (0, "only the mean use is 2: choices fall at random, so that many codes get less than the mean"),
            (none, "these are the codes with no use at all: a code with one use is replaced as well"),
            (one, "these are the codes with exactly one use: those with none are replaced as well"),
            (none + one + two, "codes with exactly 2 uses stay: only those with fewer are replaced"),
            (1 - none - one, "that is the share that stays"),
            (0.5, "small counts do not lie evenly about their mean: add up the chances of no use and of one"),
            (1.5 * math.exp(-0.5), "the mean use is N/K, latents over codes, and not K/N"),
        ],
        tolerance=0.003,
    )


def _value_and_gradient(answer, latents: Tensor, levels: int, weight: Tensor) -> tuple[Tensor, Tensor]:
    latents = latents.clone().requires_grad_()
    value = given(answer(latents, levels))
    if not value.requires_grad:
        return value, torch.zeros_like(latents)
    return value, torch.autograd.grad((value * weight).sum(), latents)[0]


def _rounded(bounded: Tensor, half: float) -> Tensor:
    return straight_through(bounded.round(), bounded) / half


def check_fsq(answer: object) -> None:
    """5.3: fsq(latents, levels), tanh rounded to an odd number of levels, with a gradient as without rounding."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for levels in (5, 9, 17):  # half of levels - 1 is a power of 2, and no number is near to the edge of a level
            half = levels // 2
            digits = torch.randint(-half, half + 1, (40, 3), generator=generator)
            within = 0.8 * torch.rand(40, 3, generator=generator) - 0.4
            latents = ((digits + within) / half).clamp(-0.97, 0.97).atanh()
            drawn.append((latents, levels, whole(generator, 2, 9) * torch.rand(40, 3, generator=generator)))
        return drawn

    check(
        "5.3",
        answer,
        lambda z, levels: _rounded(levels // 2 * z.tanh(), levels // 2),
        cases,
        [
            (
                lambda z, levels: (levels // 2 * z.tanh()).round() / (levels // 2),
                "the values are right, but no gradient comes through: that of rounding is zero, so pass it by",
            ),
            (
                lambda z, levels: straight_through((levels // 2 * z.tanh()).round() / (levels // 2), z),
                "the values are right, but the gradient skips tanh too: only the rounding is to be passed by",
            ),
            (
                lambda z, levels: _rounded(levels // 2 * z, levels // 2),
                "nothing bounds the numbers, so that there are more than L levels: tanh comes first",
            ),
            (
                lambda z, levels: _rounded(levels // 2 * z.clamp(-1, 1), levels // 2),
                "a clamp has no gradient outside of its bounds, where numbers then stay for ever: bound by tanh",
            ),
            (
                lambda z, levels: _rounded(levels // 2 * z.tanh(), 1),
                "these are whole numbers from -h to h: divide by h, so that the levels lie between -1 and 1",
            ),
            (
                lambda z, levels: _rounded((levels - 1) * z.tanh(), levels - 1),
                "whole numbers from -(L - 1) to L - 1 are 2L - 1 levels: take half of it",
            ),
            (
                lambda z, levels: _rounded(levels / 2 * z.tanh(), levels / 2),
                "with h = L/2 the outer levels are not at -1 and 1: of L levels, (L - 1)/2 lie on each side of 0",
            ),
        ],
        measure=_value_and_gradient,
    )
