"""What is measured of latents and codes, each number beside a reference measured on the same data.

The codebook beside k-means on the same latents, the encoder beside the inputs themselves, the dimensions of the
inputs that codes fill beside those that as many codes placed on the inputs fill, usage beside what so many latents
could show. Codes that are put together (residual levels, heads, groups) stand beside k-means in the same arrangement.
What rests on a sample comes with resamples of it.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from vqnotes import metrics
from vqnotes._progress import stage
from vqnotes._rounding import PART
from vqnotes._threads import one_thread
from vqnotes.diagnosis.beside_inputs import KnownInputs, encoder_measures
from vqnotes.diagnosis.inputs import Unused
from vqnotes.diagnosis.observed import AT_LEAST, FEWEST, Observed
from vqnotes.diagnosis.references import Scaled, coded_by, reference_for, squared_errors
from vqnotes.diagnosis.resampling import DRAWS, Resampled, perplexities, spread_of_share, units_of
from vqnotes.diagnosis.stability import shares_that_stay
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code

__all__ = ["Measures", "measure"]

STAYING = 2048  # latents that are moved to see whether they keep their code
LABEL_SAMPLE = 1500  # latents that labels are read off
CLASS = 5  # labels that one must have, to be cross-validated
STARTS = 3  # k-means as the reference, where the sample is small enough


@dataclass(frozen=True)
class Measures:
    """What `measure` found. None: not measured, for want of inputs, labels or latents.

    Errors are shares of the latents' variance, losses shares of the inputs' variance. Of codes that are put together
    (levels, heads, groups), codes, distinct, usage, ceiling and perplexity count all codebooks; errors and losses are
    those of the whole.
    """

    latents: int  # N
    codes: int  # K
    sample: int  # latents that the references are measured on
    spread: float  # the latents' variance, summed over dimensions; 0 if it is no more than rounding
    distinct: int  # codes that differ from each other
    usage: float
    ceiling: float  # the usage to expect if all codes were equally likely, but no more than different latents need
    perplexity: float
    counts: Tensor | None = field(default=None, repr=False, compare=False)  # how often each code is used
    inputs: int | None = None  # that the latents are of, where one has several: images, sequences
    error: float | None = None  # of the codebook
    reference_codes: int | None = None  # of k-means: K, or as many as the sample allows
    best_low: float | None = None  # error of k-means on the half that it was fitted to
    best: float | None = None  # and on the other half
    gap: float | None = None  # error / best on the other half: k-means is at a disadvantage
    gap_high: float | None = None  # on its own half: k-means is at an advantage; infinite if it has fewer codes
    dimensions: float | None = None  # of the inputs, that the codes fill; see `dimensions_filled`
    best_dimensions: float | None = None  # that the codes placed on the inputs fill
    own_loss: float | None = None  # of the inputs, by the codes that the latents have
    best_loss: float | None = None  # by the codes placed on the inputs; where it is extrapolated, its upper end
    inputs_codes: int | None = None  # that were placed on the inputs: as many as there are, or it is extrapolated
    inputs_loss: float | None = None  # of the inputs, by as many codes placed on the inputs themselves
    inputs_low: float | None = None  # the interval that it is in; wider than a point where it was extrapolated
    inputs_high: float | None = None
    encoder_loss: float | None = None  # of the inputs, by the best reader of a latent and, on a grid, those around it
    codes_loss: float | None = None  # by a regression on their nearest centroids: what the best codes leave
    separability: float | None = None
    separability_inputs: float | None = None
    chance: float | None = None  # share of the largest class; 1 if there is none beside it
    reader: str | None = None  # whose reading encoder_loss is
    model_loss: float | None = None  # of the inputs, by the model's own reconstruction
    different: int | None = None  # latents that differ from each other, if some are equal
    size: float | None = None  # root mean square of the latents, over that of their distance from their mean
    own_ratio: float | None = None  # error with the model's own indices over that with the nearest codes
    own_differs: float | None = None  # share of the latents whose own code is farther than the nearest
    scale: float | None = None  # width of the latents over that of the codes
    gap_scaled: float | None = None  # if codes were moved and scaled to the latents' centre and width
    gap_directions: float | None = None  # if latents were brought to the length that all codes have
    unused: Unused | None = None  # why inputs that were given were not used
    bits: float | None = None  # of codes that are put together: the sum of log2 K
    stays: float | None = None  # share of the latents that keep their code where noise moves them
    stays_reference: float | None = None  # of those that keep their code of k-means
    stays_of: int | None = None  # latents that were moved
    centroids: Tensor | None = field(default=None, repr=False, compare=False)  # of k-means (K, D), as the latents are
    codebooks: tuple["Measures", ...] = field(default=(), repr=False)  # of codes that are put together: each alone
    draws: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)  # of a name: resamples

    @property
    def left(self) -> float:
        """Error of k-means between its two halves: what the best codes leave of the latents' variance."""
        return (self.best_low + self.best) / 2

    def resample(self, number: int) -> "Measures":
        """The measures as they came out in one of the resamples."""
        return replace(self, draws={}, **{name: values[number].item() for name, values in self.draws.items()})

    def interval(self, name: str) -> tuple[float, float] | None:
        """The middle 95 % of the resamples of a measure, or of `left`; None if it has none."""
        draws = dict(self.draws)
        if {"best_low", "best"} <= draws.keys():
            draws["left"] = (draws["best_low"] + draws["best"]) / 2
        if name not in draws:
            return None
        low, high = np.nanquantile(draws[name], (0.025, 0.975), method="nearest")
        return float(low), float(high)

    @property
    def each(self) -> tuple["Measures", ...]:
        """The measures of each codebook."""
        return self.codebooks or (self,)

    @property
    def rate(self) -> float:
        """Bits that a latent gets, at most."""
        return math.log2(self.codes) if self.bits is None else self.bits


# ---------------------------------------------------------------- from what was observed to measures


def measure(
    observed: Observed,
    centroids: Tensor | None = None,
    *,
    settled: Callable[[Measures], bool] = lambda found: False,
    known: KnownInputs | None = None,
) -> Measures:
    """The measures behind a verdict: of the whole, and of each codebook if codes are put together.

    centroids: of k-means (K, D) on all latents that these are a part of, in whose place they stand as the reference.
    settled: whether the verdict stays the same, however little the encoder loses; then no network reads.
    known: what earlier calls measured of the same inputs, if they were given it too.
    """
    several = len(observed.levels) > 1
    alone = tuple(measure(one) for one in observed.codebooks) if several else ()
    found = _uses_of_all(observed, alone) if several else _uses(observed)
    sample, enough = observed.sample, len(observed.sample) >= FEWEST
    with one_thread() if len(sample) <= AT_LEAST else nullcontext():
        scaled = Scaled(observed)
        found |= {"sample": len(sample), "spread": scaled.spread}
        if enough and scaled.spread > 0:
            stage("k-means on the latents")
            starts = range(STARTS if len(sample) <= AT_LEAST else 1)
            if centroids is None:
                references = [reference_for(scaled, start) for start in starts]
            else:
                references = [[[scaled.centred(centroids)]]]
                needed = len(nearest_code(scaled.points, references[0][0][0]).unique()) / len(centroids)
                found["ceiling"] = min(found["ceiling"], needed)
            stage("codes beside those of k-means")
            found |= _codebook_measures(scaled, references)
            if not several:
                found |= _doubtful_measures(scaled, found) | _staying(scaled, references[0][0][0])
    if observed.stacked:
        found |= {"bits": observed.total_bits, "codebooks": alone or (_as_measures(found),)}
    found |= {"unused": observed.unused, "inputs": observed.units}
    if observed.inputs is not None and not observed.has_inputs:
        few = f"inputs {observed.inputs.shape} were given, but belong to {len(observed.beside)} latents that count"
        found["unused"] = Unused(f"{few}: it takes {FEWEST}", f"pass inputs for {FEWEST} latents or more")
    with one_thread():
        if observed.has_inputs and scaled.spread > 0:
            known = known or KnownInputs()
            found |= encoder_measures(scaled, references[0], known, lambda more: settled(_as_measures(found | more)))
        if observed.labels is not None:
            found |= _label_measures(observed)
    return _as_measures(found)


def _as_measures(found: dict) -> Measures:
    """What was found by name; an array is a number, first, and its resamples."""
    drawn = {name: one for name, one in found.items() if isinstance(one, np.ndarray)}
    plain = found | {name: one[0].item() for name, one in drawn.items()}
    return Measures(**plain, draws={name: one[1:] for name, one in drawn.items()})


def _uses(observed: Observed) -> dict:
    """How the codes of one codebook are used, over all latents."""
    stage("uses of the codes")
    one = observed.levels[0]
    size, different, meter = len(one.codes), _different(one.latents), metrics.UsageMeter(len(one.codes))
    meter.counts = torch.bincount(one.index, minlength=size) if one.uses is None else one.uses
    count = int(meter.counts.sum())
    ceiling = -math.expm1(count * math.log1p(-1 / size)) if size > 1 else 1.0
    spread = perplexities(units_of(observed.rows, observed.grid), one.index, size, observed.seed)
    return {
        "latents": count,
        "codes": size,
        "distinct": len(one.codes.unique(dim=0)),
        "different": different if different < len(one.latents) else None,
        "usage": meter.usage(),
        "ceiling": min(ceiling, different / size) if different < len(one.latents) else ceiling,
        "perplexity": np.concatenate([[meter.perplexity()], np.minimum(meter.perplexity() * spread, size)]),
        "counts": meter.counts,
    }


def _different(latents: Tensor) -> int:
    """How many latents (N, D) differ: those that do along a random direction, too."""
    direction = torch.rand(latents.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return len(torch.cat([part.double() @ direction for part in latents.split(PART)]).unique())


def _uses_of_all(observed: Observed, each: tuple[Measures, ...]) -> dict:
    """How the codes of several codebooks are used."""
    codes = sum(one.codes for one in each)
    return {
        "latents": len(observed.counted),
        "codes": codes,
        "distinct": sum(one.distinct for one in each),
        "usage": sum(one.usage * one.codes for one in each) / codes,
        "ceiling": sum(one.ceiling * one.codes for one in each) / codes,
        "perplexity": sum(one.perplexity for one in each),
    }


def _codebook_measures(scaled: Scaled, references: list[list[list[Tensor]]]) -> dict:
    """The codes chosen in the sample beside the references, which were fitted to the first half of it.

    Of the starts of k-means, the one counts that does best on its own half.
    """
    points, half, seed = scaled.points, scaled.half, scaled.observed.seed
    number = sum(len(codes) for levels in references[0] for codes in levels)
    complete = number == sum(len(one.codes) for one in scaled.observed.levels)
    kinds = {"best": torch.stack([squared_errors(points, coded_by(one, points)) for one in references], dim=1)}
    if scaled.chosen is not None:
        kinds["own"] = squared_errors(points, scaled.chosen)
    low, high = (
        Resampled(scaled.units[part], seed, {name: errors[part] for name, errors in kinds.items()}).means
        for part in (slice(half), slice(half, None))
    )
    starts = _starts(low["best"][0], seed)
    ((first, *_), *_) = references[starts[0]]
    best_low, best = (np.take_along_axis(part["best"], starts[:, None], axis=1)[:, 0] for part in (low, high))
    found = {
        "size": scaled.size,
        "reference_codes": number,
        "best_low": best_low if complete else 0.0,
        "best": best,
        "centroids": first.double() * scaled.unit + scaled.centre if len(scaled.observed.levels) == 1 else None,
    }
    if scaled.chosen is None:
        return found
    return found | {
        "error": high["own"],
        "gap": _ratio(high["own"], best),
        "gap_high": _ratio(low["own"], best_low) if complete else math.inf,
    }


def _starts(errors: np.ndarray, seed: int) -> np.ndarray:
    """Which start of k-means counts, (1 + DRAWS,): the best of all; for a resample, of as many drawn."""
    order, count = errors.argsort(), len(errors)
    drawn = np.random.default_rng(seed).integers(count, size=(DRAWS, count)).min(axis=1)
    return order[np.concatenate([[0], drawn])]


def _ratio(error: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Of errors to the least errors: 1 if both are 0, infinite if only the latter are."""
    either = np.where(error == 0, 1.0, math.inf)
    return np.divide(error, best, out=either, where=best > 0)


def _doubtful_measures(scaled: Scaled, found: dict) -> dict:
    """Whether latents and codes are what the quantiser compares: its own indices, and how well other codes would fit.

    The latter only where the codes are bad: a codebook that becomes good by moving and scaling it, or by bringing the
    latents to its codes' common length, has not collapsed. A normalisation or a projection was left out.
    """
    observed, points, half = scaled.observed, scaled.points, scaled.half
    one, codes = observed.levels[0], scaled.centred(observed.levels[0].codes)
    result = {}
    if one.own_index is not None:
        own, nearest = (codes[index[observed.sample]] for index in (one.own_index, one.nearest))
        error, least = ((points - some).square().sum(1) for some in (own, nearest))
        rounding = 1e-5  # of the variance; what half precision makes of a distance
        farther = error > 1.01 * least + rounding
        result["own_ratio"] = ((error.mean() + rounding) / (least.mean() + rounding)).item()
        result["own_differs"] = farther.double().mean().item()
    width = (codes - codes.mean(0)).square().sum(1).mean().sqrt().item()
    result["scale"] = 1 / width if width > 0 else math.inf
    best = found["best"][0].item()
    if found["gap"][0] <= 1.3 or len(codes) < 2:
        return result
    if width > 0 and not 0.5 < width < 2:
        moved = (codes - codes.mean(0)) / width
        placed = squared_errors(points, moved[nearest_code(points, moved)])[half:].mean().item()
        result["gap_scaled"] = placed / best if best > 0 else math.inf
    lengths = one.codes.double().norm(dim=1)
    latents = observed.counted[observed.sample].double()
    if lengths.std() < 1e-3 * lengths.mean() and (norms := latents.norm(dim=1)).std() > 1e-2 * norms.mean():
        directions = (latents / norms.clamp_min(1e-30)[:, None]).float()
        codes = (one.codes.double() / lengths[:, None]).float()
        best_codes = kmeans(directions[:half], min(len(codes), half // 4), observed.seed)[0]
        of_own, of_best = (
            squared_errors(directions, some[nearest_code(directions, some)])[half:].mean().item()
            for some in (codes, best_codes)
        )
        result["gap_directions"] = of_own / of_best if of_best > 0 else math.inf
    return result


def _staying(scaled: Scaled, centroids: Tensor) -> dict:
    """How many indices stay where noise moves latents, of the half that the centroids were not fitted to."""
    codes, points = scaled.centred(scaled.observed.levels[0].codes), scaled.points[scaled.half :][:STAYING]
    own, reference = shares_that_stay(points, [codes, centroids], scaled.observed.seed)
    return {
        "stays": own,
        "stays_reference": reference if len(centroids) == len(codes) else None,
        "stays_of": len(points),
    }


def _label_measures(observed: Observed) -> dict:
    """How well labels, one a latent or one an input, are read off latents and inputs."""
    stage("labels read off the latents")
    y, each = observed.labels, len(observed.labels) == len(observed.latents)
    rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(observed.seed))
    if observed.inputs is not None:  # of the first only, perhaps
        rows = rows[rows < (math.prod(observed.inputs.grid) if each else len(observed.inputs.inputs))]
    rows = (rows[observed.mask[rows]] if each and observed.mask is not None else rows)[:LABEL_SAMPLE]
    classes, where, sizes = y[rows].unique(return_inverse=True, return_counts=True)
    rows = rows[sizes[where] >= CLASS]
    if (sizes >= CLASS).sum() < 2:
        return {"chance": 1.0}  # nothing can be read off
    kept = metrics.separability(observed.latents.reshape(len(y), -1)[rows], y[rows])
    found = {
        "separability": spread_of_share(kept, len(rows), observed.seed),
        "chance": sizes.max().item() / len(rows),
    }
    if observed.inputs is not None:
        x = observed.inputs.rows(rows) if each else observed.inputs.whole(rows)
        found["separability_inputs"] = metrics.separability(x, y[rows])
    return found
