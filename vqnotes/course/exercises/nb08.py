"""Exercises of notebook 08: which exhibit is it, an expiry that lasts, and which weights a loss really has."""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vqnotes.course.exercises import check, given, replaced

__all__ = ["check_reports", "check_revive", "check_weights_in_effect"]

_REPORTS = "ead"
_HINTS = (  # by report: for any wrong letter, and for the most tempting ones
    {
        "": "report 1 is about one checkpoint, and only the way of looking at it differs: suspect the instrument",
        "a": "in report 1 the codes of one checkpoint cannot be more collapsed for small batches than for large",
        "c": "in report 1 nothing trains, so that no threshold acts: only the way of looking differs",
    },
    {
        "": "report 2 is gradual and differs from seed to seed: bugs leave exact traces, this one leaves none",
        "b": "forgotten counts break a codebook in one step: report 2 takes a whole training",
        "c": "a threshold too high makes a storm, which keeps perplexity up: in report 2 it sinks",
        "e": "in report 2 perplexity falls with time while the batches stay as large as they were",
    },
    {
        "": "report 3 gives the same step for all seeds, rates and data: nothing learnt does, so look for arithmetic",
        "a": "a collapse does not heal by itself, at one step for all seeds and data: report 3 is arithmetic",
        "b": "forgotten counts shrink codes at the first step, and do not bring them back on a date: see report 3",
        "c": "replaced codes would be in use from the first steps on: in report 3 hundreds of steps pass without",
    },
)


def _first_slip(letters: tuple[str, ...]) -> str:
    """What to say about the first wrong letter."""
    place = next(i for i, letter in enumerate(letters) if letter != _REPORTS[i])
    return _HINTS[place].get(letters[place], _HINTS[place][""])


def check_reports(answer: object) -> None:
    """8.1: three letters, what each of three reports is about."""
    if isinstance(answer, str | tuple | list):
        answer = "".join(letter for letter in "".join(map(str, answer)).lower() if letter.isalpha())
    wrong = (letters for letters in itertools.product("abcdef", repeat=3) if "".join(letters) != _REPORTS)
    mistakes = [("".join(letters), _first_slip(letters)) for letters in wrong]
    check("8.1", answer, _REPORTS, None, [*mistakes, (answer, 'three letters are asked for, such as "abc"')])


def _after_a_step(answer, *case: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The codes now, the codes after one more step of averages that no dead code takes part in, the live counts."""
    *before, hits, total = case
    dead = before[3]
    codebook, sums, counts = given(answer(*before))
    later = (0.9 * sums + 0.1 * total) / (0.9 * counts + 0.1 * hits)[:, None]
    return codebook, later.nan_to_num(0, 1e9, -1e9), counts[~dead]


def _counted(counts: Tensor, dead: Tensor, as_many: float) -> Tensor:
    return torch.where(dead, as_many, counts)


def check_revive(answer: object) -> None:
    """8.2: revive(codebook, sums, counts, dead, fresh): new places that the next step of averages does not undo."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for alive in (6, 7, 8):
            dead = torch.randperm(12, generator=generator) >= alive
            counts = torch.where(dead, 0.1, 10) * (0.2 + torch.rand(12, generator=generator))
            codebook, noise = torch.randn(2, 12, 3, generator=generator)
            hits = torch.where(dead, 0, torch.randint(0, 10, (12,), generator=generator))
            total = hits[:, None] * (codebook + noise / 10)
            fresh = 3 + torch.randn(12 - alive, 3, generator=generator)
            drawn.append((codebook, codebook * counts[:, None], counts, dead, fresh, hits, total))
        return drawn

    check(
        "8.2",
        answer,
        lambda codes, sums, counts, dead, fresh: (
            replaced(codes, dead, fresh),
            replaced(sums, dead, fresh * counts.mean()),
            _counted(counts, dead, counts.mean()),
        ),
        cases,
        [
            (
                lambda codes, sums, counts, dead, fresh: (replaced(codes, dead, fresh), sums, counts),
                "the averages have not heard of it: the next step computes the old places again from sums and counts",
            ),
            (
                lambda codes, sums, counts, dead, fresh: (
                    replaced(codes, dead, fresh),
                    replaced(sums, dead, fresh),
                    counts,
                ),
                "sums are new and counts old: divided by nearly nothing, the next step throws these codes far away",
            ),
            (
                lambda codes, sums, counts, dead, fresh: (
                    replaced(codes, dead, fresh),
                    sums,
                    _counted(counts, dead, 1),
                ),
                "counts are new and sums old: the next step divides the old sums, and puts these codes near 0",
            ),
            (
                lambda codes, sums, counts, dead, fresh: (
                    replaced(codes, dead, fresh),
                    replaced(sums, dead, fresh),
                    _counted(counts, dead, 0),
                ),
                "a count of 0 is divided by in the next step: let each new code begin with some latents",
            ),
            (
                lambda codes, sums, counts, dead, fresh: (
                    codes,
                    replaced(sums, dead, fresh),
                    _counted(counts, dead, 1),
                ),
                "the averages are right, but the codebook itself still has the dead codes",
            ),
            (
                lambda codes, sums, counts, dead, fresh: (
                    replaced(codes, dead, fresh),
                    replaced(sums, dead, fresh),
                    torch.ones_like(counts),
                ),
                "live codes have lost their counts, and the next step moves them: change those of dead codes alone",
            ),
        ],
        measure=_after_a_step,
    )


@dataclass(frozen=True)
class _Loss:
    """A quantiser's loss as a black box."""

    commitment: float
    codebook: float

    def __call__(self, latents: Tensor, chosen: Tensor) -> Tensor:
        to_codes, to_latents = F.mse_loss(latents, chosen.detach()), F.mse_loss(chosen, latents.detach())
        return self.commitment * to_codes + self.codebook * to_latents


def check_weights_in_effect(answer: object) -> None:
    """8.3: weights_in_effect(loss, latents, chosen), of commitment and codebook loss, by their gradients."""

    def cases(generator: torch.Generator) -> list[tuple]:
        beta, a, b = (0.1 + 0.8 * torch.rand(3, generator=generator)).tolist()
        pairs = [(beta, 1.0), (1.0, beta), (beta - 1, 0.0), (2 * a, 3 * b)]
        return [(_Loss(*pair), *torch.randn(2, 50, 4, generator=generator)) for pair in pairs]

    check(
        "8.3",
        answer,
        lambda loss, latents, chosen: (loss.commitment, loss.codebook),
        cases,
        [
            (
                lambda loss, latents, chosen: (loss.codebook, loss.commitment),
                "the two are swapped: the commitment moves the latents, the codebook loss the codes",
            ),
            (
                lambda loss, latents, chosen: (abs(loss.commitment), abs(loss.codebook)),
                "lengths have no sign: where latents are pushed away from their codes, the weight is negative",
            ),
            (
                lambda loss, latents, chosen: (loss.commitment + loss.codebook,) * 2,
                "that is the value of the loss over that of one term: both terms have it, only gradients part them",
            ),
            (
                lambda loss, latents, chosen: (2 * loss.commitment, 2 * loss.codebook),
                "both are twice too large: the gradient of a square has a factor 2",
            ),
            (
                lambda loss, latents, chosen: (
                    loss.commitment / latents.numel(),
                    loss.codebook / latents.numel(),
                ),
                "both are too small by the number of elements: a term is the mean of the squares, not their sum",
            ),
            (
                lambda loss, latents, chosen: (loss.commitment / len(latents), loss.codebook / len(latents)),
                "both are too small by the number of latents: compare with the gradient of one term by itself",
            ),
            (
                lambda loss, latents, chosen: (loss.commitment, -loss.codebook),
                "the sign of the second is turned: a weight is positive if it draws the code to its latent",
            ),
        ],
    )
