"""Exercises of notebook 09: from measures to a verdict, a gap between bounds, what to do first, codes in effect."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from vqnotes.course.exercises import check, whole
from vqnotes.diagnosis.measures import Measures
from vqnotes.diagnosis.rules import decide
from vqnotes.metrics import entropy, perplexity, quantization_error
from vqnotes.nearest import nearest_code

__all__ = ["check_first_step", "check_gap_bounds", "check_in_effect", "check_verdict"]


def _by_the_module(own: float, best: float, encoder: float, inputs: float, filled: float, most: float) -> str:
    """The verdict of `rules.decide`, where `before`, `extra` and `costs` play no part."""
    codes = 1024
    usual: Any = {"latents": 2**20, "codes": codes, "sample": 2**14, "spread": 1.0, "distinct": codes, "usage": 1.0}
    at_codes: Any = {"error": own, "best_low": best, "best": best, "gap": own / best, "gap_high": own / best}
    lost: Any = {"encoder_loss": encoder, "inputs_loss": inputs, "codes_loss": best, "own_loss": own}
    dimensions: Any = {"dimensions": filled, "best_dimensions": most, "best_loss": 1e-3}
    figures: Any = usual | at_codes | lost | dimensions
    return decide(Measures(ceiling=1.0, perplexity=codes, **figures))[0]


def _verdict(tokens: bool, embeddings: bool, dimensional: bool, rate: bool, order: str = "BETDR") -> str:
    """The first that holds, in the given order: both, embedding, token, dimensional, rate."""
    holds = {
        "B": (tokens and embeddings, "token and embedding collapse"),
        "E": (embeddings, "embedding collapse"),
        "T": (tokens, "token collapse"),
        "D": (dimensional, "dimensional collapse"),
        "R": (rate, "rate limit"),
    }
    return next((name for fault, name in (holds[one] for one in order) if fault), "healthy")


def _with(at_codes=lambda gap, saved: gap > 1.4 and saved > 0.015, order: str = "BETDR") -> Callable:
    """An answer to 9.1 with its own idea of a codebook at fault, or its own order."""
    return lambda own, best, encoder, inputs, filled, most: _verdict(
        at_codes(own / best, own - best), encoder > 1.5 * inputs, filled < 0.4 * most, best - encoder > 0.3, order
    )


def check_verdict(answer: object) -> None:
    """9.1: verdict(own, best, encoder, inputs, filled, most), by the tree of the notebook."""

    def cases(generator: torch.Generator) -> list[tuple]:
        def between(low: float, high: float) -> float:
            return low + (high - low) * torch.rand((), generator=generator).item()

        at_codes = [  # what the best codes lose beyond the encoder, gap: the difference is (gap - 1) * best
            ((0.1, 0.25), (1.02, 1.2)),  # sound
            ((0.33, 0.38), (1.02, 1.05)),  # sound, at the limit of the rate
            (None, (1.5, 1.7)),  # a large gap that costs nothing
            ((0.1, 0.2), (1.25, 1.35)),  # a small gap that looks dear
            ((0.1, 0.2), (2, 4)),  # at fault
            ((0.33, 0.38), (1.5, 2)),  # at fault, and the rate as well
        ]
        drawn = []
        for (beyond, gap), loss, share in itertools.product(at_codes, [(0.8, 1.4), (1.7, 4)], [(0.6, 1), (0.1, 0.3)]):
            inputs, most = between(0.1, 0.12), between(4, 9)
            encoder = inputs * between(*loss)
            if beyond is None:  # next to nothing is lost, for want of dimensions either
                best, filled = between(0.01, 0.02), most
            else:
                best, filled = encoder + between(*beyond), most * between(*share)
                best = (
                    best if encoder < 1.5 * inputs else min(best, 1.9 * encoder, 0.5)
                )  # beyond, what is kept counts
            drawn.append((best * between(*gap), best, encoder, inputs, filled, most))
        return drawn

    check(
        "9.1",
        answer,
        _by_the_module,
        cases,
        [
            (_with(order="TEDR"), "it stops at the codebook: the encoder can be at fault as well, so ask both first"),
            (_with(order="ETDR"), "it stops at the encoder: the codebook can be at fault as well, so ask both first"),
            (
                _with(lambda gap, saved: gap > 1.4),
                "a large gap that costs next to nothing convicts no codebook: the difference counts too",
            ),
            (
                _with(lambda gap, saved: saved > 0.015),
                "a difference alone convicts no codebook: k-means is not perfect, so the gap counts too",
            ),
            (
                _with(lambda gap, saved: gap > 1.4 or saved > 0.015),
                "a codebook is at fault if gap *and* difference are large, not if one of them is",
            ),
            (_with(order="RBETD"), "the rate is the last question: first comes what is broken"),
            (
                _with(order="BETRD"),
                "the rate is asked for too early: missing dimensions can be mended without more codes",
            ),
            (_with(order="DBETR"), "dimensions are asked for once encoder and codebook are sound"),
        ],
    )


def check_gap_bounds(answer: object) -> None:
    """9.2: gap_bounds(codebook, centroids, fitted, new): the gap on new latents and on those k-means has seen."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for codes in (8, 12, 16):
            latents = torch.randn(200, 3, generator=generator) * torch.tensor([4, 2, 1])
            fitted, new = latents.split([100, 100])
            chosen = one_hot(nearest_code(fitted, fitted[:codes]), codes).float()
            centroids = chosen.T @ fitted / chosen.sum(0)[:, None]  # a step of Lloyd's algorithm
            drawn.append((torch.randn(codes, 3, generator=generator), centroids, fitted, new))
        return drawn

    def squared(latents: Tensor, codes: Tensor) -> float:
        return quantization_error(latents, codes, relative=False)

    def nearest(latents: Tensor, codes: Tensor) -> Tensor:
        return torch.cdist(latents, codes).amin(dim=1)

    def both(latents: Tensor, codes: Tensor, centroids: Tensor, error=squared) -> float:
        return error(latents, codes) / error(latents, centroids)

    check(
        "9.2",
        answer,
        lambda codes, centroids, fitted, new: (both(new, codes, centroids), both(fitted, codes, centroids)),
        cases,
        [
            (
                lambda codes, centroids, fitted, new: (both(fitted, codes, centroids), both(new, codes, centroids)),
                "the two are swapped: on new latents k-means does worse, and the gap is smaller",
            ),
            (
                lambda codes, centroids, fitted, new: (both(new, centroids, codes), both(fitted, centroids, codes)),
                "the ratio is upside down: the gap is the codebook's error over that of k-means",
            ),
            (
                lambda codes, centroids, fitted, new: (
                    both(new, codes, centroids, lambda *pair: nearest(*pair).mean()),
                    both(fitted, codes, centroids, lambda *pair: nearest(*pair).mean()),
                ),
                "these are mean distances: an error is the mean of the *squared* distances",
            ),
            (
                lambda codes, centroids, fitted, new: (
                    both(new, codes, centroids) ** 0.5,
                    both(fitted, codes, centroids) ** 0.5,
                ),
                "these are roots: an error is the mean of the squared distances, without a root",
            ),
            (
                lambda codes, centroids, fitted, new: (
                    squared(torch.cat([fitted, new]), codes) / squared(new, centroids),
                    squared(torch.cat([fitted, new]), codes) / squared(fitted, centroids),
                ),
                "the codebook is measured on all latents and k-means on half of them: take the same for both",
            ),
            (
                lambda codes, centroids, fitted, new: (both(torch.cat([fitted, new]), codes, centroids),) * 2,
                "both are the gap on all latents, where k-means has seen half of them: keep the halves apart",
            ),
        ],
    )


def check_first_step(answer: object) -> None:
    """9.3: what to do first about a thin thread of latents from an encoder that loses much: a letter."""
    answer = answer.lower() if isinstance(answer, str) else answer
    check(
        "9.3",
        answer,
        "c",
        None,
        [
            ("a", "better codes for these latents would save 2 % of their variance: look where far more is lost"),
            ("b", "dead codes are a symptom: count what live ones could save here, and what is lost before them"),
            ("d", "the best 512 codes leave next to nothing of these latents, so that more codes cannot help"),
            ("e", "so few codes are enough for these latents, but the latents are not enough for the inputs"),
            (answer, 'a letter is asked for, such as "a"'),
        ],
    )


def check_in_effect(answer: object) -> None:
    """9.5: in_effect(index, codebook_size), the perplexity of the codes in use."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for _ in range(3):
            size = whole(generator, 6, 20)
            weights = torch.rand(size, generator=generator) ** 2
            index = torch.multinomial(weights, 400, replacement=True, generator=generator)
            drawn.append((index, 2 * size))  # half of the codes are dead
        return drawn

    def share(index, size):
        return torch.bincount(index, minlength=size) / len(index)

    check(
        "9.5",
        answer,
        perplexity,
        cases,
        [
            (lambda index, size: index.unique().numel(), "that is how many codes are in use, however rarely"),
            (lambda index, size: entropy(share(index, size)), "that is the entropy: perplexity is its exponential"),
            (
                lambda index, size: math.exp(entropy(share(index, size)) / math.log(2)),
                "the entropy is in bits, and the exponential in nats: take the same base for both",
            ),
            (
                lambda index, size: perplexity(index, size) / size,
                "that is a share of the codebook: the number of codes in effect is asked for",
            ),
            (
                lambda index, size: math.nan,
                "dead codes have the share 0, and 0 times the logarithm of 0 is no number: leave them out",
            ),
        ],
    )
