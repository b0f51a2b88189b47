"""How many indices stay when latents are moved by a stated amount, beside k-means codes on the same latents."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vqnotes._checks import Array, check_codebook, check_latents, check_positive, real_numbers
from vqnotes.diagnosis.observed import AT_LEAST, AT_MOST, PER_CODE, seed_of
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code

__all__ = ["NOISE", "Moved", "Stability", "index_stability", "moved_by", "shares_that_stay", "stability_of", "wilson"]

NOISE = 0.1  # of the latents' spread
FIT = 8  # latents for each code, below which k-means is no reference


class Stability(NamedTuple):
    """How many indices stay when what is coded moves a little. Lengths are root mean squares.

    share: of the indices that stay, in [0, 1]. interval: its 95 % interval (Wilson), for independent latents.
    reference, reference_interval: the same for k-means codes, as many, fitted to one half of the latents and judged
    on the other, moved alike; None if there are fewer than 8 latents for each code.
    moved: how far latents moved, over their distance from their mean. moved_in_errors: the same over their distance
    from their codes, the quantiser's own error; infinite if it has none. latents: how many were compared.
    """

    share: float
    interval: tuple[float, float]
    reference: float | None
    reference_interval: tuple[float, float] | None
    moved: float
    moved_in_errors: float
    latents: int


class Moved(NamedTuple):
    """Latents (N, D) before and after, the codes (K, D), and the index (N,) before and after."""

    latents: Tensor
    after: Tensor
    codes: Tensor
    index_before: Tensor
    index_after: Tensor


def index_stability(
    latents: Array, codebook: Array, *, noise: float = NOISE, relative_to: str = "latents", seed: int = 0
) -> Stability:
    """How many latents keep their nearest code when Gaussian noise moves them, alike in all directions.

    latents: (..., D). codebook: (K, D). noise: the length of the noise (root mean square). relative_to: "latents",
    in units of the latents' distance from their mean; or "error", of their distance from their nearest codes.
    seed: of the noise, of k-means, and of the sample: 16 latents a code, at least 8,192 and at most 262,144.

    Few live codes are stable codes: one that takes all latents never changes. So read it beside usage, and beside
    the same share for k-means codes. In units of the error, codebooks of
    different sizes compare.
    Source: X. Wang et al., "Decoupled Residual Quantization for Robust Semantic IDs in Recommendation",
    arXiv:2606.01844, who judge codebooks under such noise by the overlap that they expect of codes; here it is the
    share of indices that stay.
    Raises ValueError for latents that do not vary, an error of 0 to be relative to, noise that is not above 0, an
    unknown `relative_to`, and for what `vqnotes.diagnose` refuses of latents and codebook.
    """
    check_positive("noise", noise)
    if relative_to not in ("latents", "error"):
        raise ValueError(f"relative_to must be 'latents' or 'error', got {relative_to!r}")
    seed, codes = seed_of(seed), check_codebook(real_numbers(codebook, "codebook"))
    z = check_latents(real_numbers(latents, "latents"), codes.shape[1]).reshape(-1, codes.shape[1])
    random = torch.Generator().manual_seed(seed)
    z = z[torch.randperm(len(z), generator=random)[: min(AT_MOST, max(AT_LEAST, PER_CODE * len(codes)))]].double()
    centre = z.mean(0)
    unit = (z - centre).square().sum(1).mean().sqrt().item()
    if unit == 0:
        raise ValueError(f"latents {tuple(z.shape)} do not vary: noise cannot be relative to them")
    z, codes = ((z - centre) / unit).float(), ((codes.double() - centre) / unit).float()
    index = nearest_code(z, codes)
    if relative_to == "error":
        error = _length(z - codes[index])
        if error == 0:
            raise ValueError("each latent is a code: there is no error that noise could be relative to")
        noise *= error
    after = moved_by(z, noise, random)
    return stability_of([Moved(z, after, codes, index, nearest_code(after, codes))], seed)


def shares_that_stay(points: Tensor, codebooks: Sequence[Tensor], seed: int) -> list[float]:
    """For each codebook (K, D), the share of the points that keep their code; points (N, D) of variance 1 in all."""
    after = moved_by(points, NOISE, torch.Generator().manual_seed(seed))
    return [(nearest_code(points, codes) == nearest_code(after, codes)).double().mean().item() for codes in codebooks]


def moved_by(points: Tensor, noise: float, random: torch.Generator) -> Tensor:
    """The points (N, ...) with Gaussian noise of this length (root mean square), alike in all directions."""
    drawn = torch.randn(points.shape, generator=random, dtype=points.dtype)
    return points + noise / math.sqrt(points[0].numel()) * drawn


def stability_of(each: Sequence[Moved], seed: int) -> Stability:
    """The stability of the indices of one quantiser, over all its codebooks (heads), or calls, together.

    Raises ValueError without latents.
    """
    total = sum(len(one.latents) for one in each)
    if not total:
        raise ValueError("there are no latents whose indices could be compared")
    stay, shifts, errors, spreads = 0, 0.0, 0.0, 0.0
    references: list[Tensor] | None = []
    for one in each:
        z, after, codes = one.latents.double(), one.after.double(), one.codes.double()
        centre = z.mean(0)
        spread = (z - centre).square().sum().item()
        stay += int((one.index_before == one.index_after).sum())
        shifts += (after - z).square().sum().item()
        errors += (z - codes[one.index_before]).square().sum().item()
        spreads += spread
        if len(z) < FIT * len(codes) or spread == 0:
            references = None
        elif references is not None:
            unit = math.sqrt(spread / len(z))
            order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
            half, others = order[: len(z) // 2], order[len(z) // 2 :]
            fitted, here, there = (
                ((some[rows] - centre) / unit).float() for some, rows in ((z, half), (z, others), (after, others))
            )
            placed = kmeans(fitted, len(codes), seed)[0]
            references.append(nearest_code(here, placed) == nearest_code(there, placed))
    stayed = None if references is None else torch.cat(references)
    return Stability(
        stay / total,
        wilson(stay, total),
        None if stayed is None else stayed.double().mean().item(),
        None if stayed is None else wilson(int(stayed.sum()), len(stayed)),
        math.sqrt(shifts / spreads) if spreads else math.inf,
        math.sqrt(shifts / errors) if errors else math.inf,
        total,
    )


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share of so many independent cases (Wilson, 1927); total at least 1."""
    z = 1.959964  # the normal deviate that 2.5 % exceed
    share, extra = count / total, z**2 / total
    middle, reach = share + extra / 2, z * math.sqrt(share * (1 - share) / total + extra / (4 * total))
    low, high = (middle - reach) / (1 + extra), (middle + reach) / (1 + extra)
    return max(0.0, low), min(1.0, high)


def _length(vectors: Tensor) -> float:
    """Root mean square length of vectors (N, D)."""
    return vectors.double().square().sum(1).mean().sqrt().item()
