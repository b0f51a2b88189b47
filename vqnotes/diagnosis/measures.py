"""What is measured of latents and codes, each number beside a reference measured on the same data.

The codebook beside k-means on the same latents, the encoder beside the inputs themselves, the dimensions of the
inputs that codes fill beside those that as many codes placed on the inputs fill, usage beside what so many latents
could show. Codes that are put together (residual levels, heads, groups) stand beside k-means in the same arrangement.
What rests on a sample comes with resamples of it.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from vqnotes import metrics
from vqnotes._progress import stage
from vqnotes._rounding import PART, mean_of_rows
from vqnotes._threads import one_thread
from vqnotes.diagnosis import readers
from vqnotes.diagnosis.inputs import Unused
from vqnotes.diagnosis.observed import AT_LEAST, FEWEST, Observed, around
from vqnotes.diagnosis.resampling import DRAWS, Resampled, perplexities, spread_of_share, units_of
from vqnotes.diagnosis.stability import shares_that_stay
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code

__all__ = ["TRIFLE", "Measures", "bits_of_directions", "dimensions_filled", "measure"]

STAYING = 2048  # latents that are moved to see whether they keep their code
READ, LABEL_SAMPLE = 8192, 1500  # latents that readers read, and that labels are read off
CLASS = 5  # labels that one must have, to be cross-validated
TRIFLE = 0.005  # of a variance: what costs less is not called ill
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
    codebooks: tuple["Measures", ...] = field(default=(), repr=False)  # of codes that are put together: each alone
    draws: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)  # of a name: resamples

    @property
    def left(self) -> float:
        """Error of k-means between its two halves: what the best codes leave of the latents' variance."""
        return (self.best_low + self.best) / 2

    def drawn(self, number: int) -> "Measures":
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


def measure(observed: Observed) -> Measures:
    """The measures behind a verdict: of the whole, and of each codebook if codes are put together."""
    several = len(observed.levels) > 1
    alone = tuple(measure(one) for one in observed.codebooks) if several else ()
    found = _uses_of_all(observed, alone) if several else _uses(observed)
    sample, enough = observed.sample, len(observed.sample) >= FEWEST
    with one_thread() if len(sample) <= AT_LEAST else nullcontext():
        scaled = Scaled(observed)
        found |= {"sample": len(sample), "spread": scaled.spread}
        if enough and scaled.spread > 0:
            stage("k-means on the latents")
            references = [reference_for(scaled, start) for start in range(STARTS if len(sample) <= AT_LEAST else 1)]
            stage("codes beside those of k-means")
            found |= _codebook_measures(scaled, references)
            if not several:
                found |= _doubtful_measures(scaled, found) | _staying(scaled, references[0][0][0])
    if observed.stacked:
        found |= {"bits": observed.total_bits, "codebooks": alone or (_as_measures(found),)}
    found["unused"] = observed.unused
    if observed.inputs is not None and not observed.has_inputs:
        few = f"inputs {observed.inputs.shape} were given, but belong to {len(observed.beside)} latents that count"
        found["unused"] = Unused(f"{few}: it takes {FEWEST}", f"pass inputs for {FEWEST} latents or more")
    with one_thread():
        if observed.has_inputs and scaled.spread > 0:
            found |= _encoder_measures(scaled, references[0])
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


class Scaled:
    """The sample of the latents, centred and of variance 1: squared distances are shares of it, no digit is lost.

    half: how many of them references are fitted to. units: what each belongs to, see `resampling.units_of`.
    centre (D,), unit: what was taken off, and divided by. spread: the variance in the latents' own units; 0 if it is
    no more than rounding, and then nothing below is there. size: root mean square of the latents, in units.
    points (n, D): the latents. reaching: for each place of a code, what reaches it (n, D of the place).
    chosen (n, D): the codes of all places put together; None if a level codes something else than what the one before
    left, for instance a projection of it.
    """

    def __init__(self, observed: Observed):
        self.observed, self.half, firsts = observed, len(observed.sample) // 2, observed.firsts
        self.units = units_of(observed.rows[observed.sample], observed.grid)
        centres = [_centre(observed, first) for first in firsts]
        self.centre = torch.cat(centres)
        points = observed.counted[observed.sample].double().sub_(self.centre)
        mean = points.mean(0)
        self.spread = max(0.0, points.square().sum(1).mean().item() - mean.square().sum().item())
        mean_square = self.spread + (mean + self.centre).square().sum().item()
        if self.spread <= torch.finfo(observed.latents.dtype).eps ** 2 * mean_square or (points == points[0]).all():
            self.spread = 0.0
            return
        self.unit, self.size = self.spread**0.5, (mean_square / self.spread) ** 0.5
        self.points = points.div_(self.unit).float()
        first_levels = iter(self.points.split([len(one) for one in centres], dim=1))
        self.reaching = [
            next(first_levels) if number in firsts else (one.latents[observed.sample].double() / self.unit).float()
            for number, one in enumerate(observed.levels)
        ]
        self.chosen = self._chosen(dict(zip(firsts, centres)))

    def centred(self, latents: Tensor) -> Tensor:
        """Latents (..., D) as the points are."""
        return ((latents.double() - self.centre) / self.unit).float()

    def _chosen(self, centres: dict[int, Tensor]) -> Tensor | None:
        parts, left = [], None
        for number, (one, reaches) in enumerate(zip(self.observed.levels, self.reaching)):
            codes = (
                (one.codes[one.index[self.observed.sample]].double() - centres.get(number, 0)) / self.unit
            ).float()
            if number in centres:
                parts.append(codes)
            elif _same(reaches, left):
                parts[-1] = parts[-1] + codes
            else:
                return None
            left = reaches - codes
        return torch.cat(parts, dim=1)


def _same(points: Tensor, others: Tensor) -> bool:
    """Whether points (n, D) are the others up to rounding, both in units of the sample."""
    if points.shape != others.shape:
        return False
    return bool((points - others).square().sum() <= 1e-4 * points.square().sum() + 1e-6 * len(points))


def _centre(observed: Observed, first: int) -> Tensor:
    """The mean of a part's latents, or of all that reaches its codebook, if other places have the same."""
    group = next(group for group in observed.shared if first in group)
    return torch.stack([mean_of_rows(observed.levels[one].latents) for one in group]).mean(0)


def reference_for(scaled: Scaled, start: int = 0) -> list[list[Tensor]]:
    """k-means in the arrangement of the codebooks: the centroids of each level of each part.

    It is fitted to the first half of the sample: part by part, and level after level on what those before left.
    Places that share a codebook get one k-means, fitted to what reaches all of them in the model.
    start: which of several starts of k-means.
    """
    observed, seed = scaled.observed, (scaled.observed.seed + start) % 2**32
    fitted: dict = {}

    def of(points: Tensor, size: int) -> Tensor:
        return kmeans(points, min(size, len(points) // 4), seed)[0]

    for group in (group for group in observed.shared if len(group) > 1):
        pooled = torch.cat([scaled.reaching[number][: scaled.half] for number in group])
        fitted |= dict.fromkeys(group, of(pooled, len(observed.levels[group[0]].codes)))
    reference: list[list[Tensor]] = []
    for number, level in enumerate(observed.levels):
        if number in observed.firsts:
            left = scaled.reaching[number][: scaled.half]
            reference.append([])
        codes = fitted[number] if number in fitted else of(left, len(level.codes))
        left = left - codes[nearest_code(left, codes)]
        reference[-1].append(codes)
    return reference


def coded_by(reference: list[list[Tensor]], points: Tensor) -> Tensor:
    """The points (n, D) as these centroids code them, part by part and level after level."""
    parts = []
    for levels, left in zip(reference, points.split([levels[0].shape[1] for levels in reference], dim=1)):
        part = torch.zeros_like(left)
        for codes in levels:
            chosen = codes[nearest_code(left - part, codes)]
            part = part + chosen
        parts.append(part)
    return torch.cat(parts, dim=1)


def _codebook_measures(scaled: Scaled, references: list[list[list[Tensor]]]) -> dict:
    """The codes chosen in the sample beside the references, which were fitted to the first half of it.

    Of the starts of k-means, the one counts that does best on its own half.
    """
    points, half, seed = scaled.points, scaled.half, scaled.observed.seed
    number = sum(len(codes) for levels in references[0] for codes in levels)
    complete = number == sum(len(one.codes) for one in scaled.observed.levels)
    kinds = {"best": torch.stack([_errors(points, coded_by(one, points)) for one in references], dim=1)}
    if scaled.chosen is not None:
        kinds["own"] = _errors(points, scaled.chosen)
    low, high = (
        Resampled(scaled.units[part], seed, {name: errors[part] for name, errors in kinds.items()}).means
        for part in (slice(half), slice(half, None))
    )
    starts = _starts(low["best"][0], seed)
    best_low, best = (np.take_along_axis(part["best"], starts[:, None], axis=1)[:, 0] for part in (low, high))
    found = {
        "size": scaled.size,
        "reference_codes": number,
        "best_low": best_low if complete else 0.0,
        "best": best,
    }
    if scaled.chosen is None:
        return found
    return found | {
        "error": high["own"],
        "gap": _ratio(high["own"], best),
        "gap_high": _ratio(low["own"], best_low) if complete else math.inf,
    }


def _errors(points: Tensor, coded: Tensor) -> Tensor:
    """Squared distances (n,), in double precision."""
    return (points - coded).double().square().sum(1)


def _starts(errors: np.ndarray, seed: int) -> np.ndarray:
    """Which start of k-means counts, (1 + DRAWS,): the best of all; for a resample, of as many drawn."""
    order, count = errors.argsort(), len(errors)
    drawn = np.random.default_rng(seed).integers(count, size=(DRAWS, count)).min(axis=1)
    return order[np.concatenate([[0], drawn])]


def _ratio(error: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Of errors to the least errors: 1 if both are 0, infinite if only the latter are."""
    either = np.where(error == 0, 1.0, math.inf)
    return np.divide(error, best, out=either, where=best > 0)


def bits_of_directions(variances: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Bits that each direction of the inputs gets: log2(variance / what is left of it) / 2, or 0 if more is left.

    variances, left: (..., C), not negative. Source: the rate of a Gaussian (Cover and Thomas, theorem 10.3.2).
    """
    tiny = np.finfo(float).tiny
    return np.log2(np.maximum(variances, tiny) / np.clip(left, tiny, np.maximum(variances, tiny))) / 2


def dimensions_filled(bits: np.ndarray) -> np.ndarray:
    """Over how many directions bits (..., C) are spread: (sum b)^2 / sum b^2, from 1 to C; 0 if there are no bits.

    C directions that get as much each count as C, and those that get next to nothing do not count. The bits are what
    codes tell of the inputs, direction by direction, whoever reads them. So the figure stays the same when latents
    and codes are turned, scaled, or mapped in any other way that keeps who gets which code.
    Source: the participation ratio (`metrics.participation_ratio`), of bits in the place of variances.
    """
    squares = np.square(bits).sum(-1)
    return np.divide(np.square(bits.sum(-1)), squares, out=np.zeros_like(squares), where=squares > 0)


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
        placed = _errors(points, moved[nearest_code(points, moved)])[half:].mean().item()
        result["gap_scaled"] = placed / best if best > 0 else math.inf
    lengths = one.codes.double().norm(dim=1)
    latents = observed.counted[observed.sample].double()
    if lengths.std() < 1e-3 * lengths.mean() and (norms := latents.norm(dim=1)).std() > 1e-2 * norms.mean():
        directions = (latents / norms.clamp_min(1e-30)[:, None]).float()
        codes = (one.codes.double() / lengths[:, None]).float()
        best_codes = kmeans(directions[:half], min(len(codes), half // 4), observed.seed)[0]
        of_own, of_best = (
            _errors(directions, some[nearest_code(directions, some)])[half:].mean().item()
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


def _encoder_measures(scaled: Scaled, reference: list[list[Tensor]]) -> dict:
    """The encoder beside its inputs: what is read off latents, off the codes of the reference, and off their own."""
    stage("codes placed on the inputs")
    observed, paired = scaled.observed, scaled.observed.inputs
    rows, seed = observed.beside, observed.seed
    x = paired.rows(rows)
    largest = torch.stack(torch.aminmax(x)).abs().max()  # so that squares do not overflow
    given = x.div_(largest)[:READ]
    x = readers.in_few_dimensions(x)
    parts = readers.Components(x, readers.MOST_COMPONENTS, seed)
    placed, as_many = _codes_on_inputs(x, parts.reduced, [len(one.codes) for one in observed.levels], seed)
    at_codes = _Judged(x[-len(placed.left) :], units_of(rows[-len(placed.left) :], observed.grid), seed, parts.axes)

    stage("inputs read off the latents")
    rows, x = rows[:READ], x[:READ]
    half = len(rows) // 2
    judged = _Judged(x[half:], units_of(rows[half:], observed.grid), seed, parts.axes)
    grid = paired.grid if len(paired.grid) > 1 else observed.grid
    near = scaled.centred(around(observed.latents, grid, rows, observed.mask))
    near_codes = coded_by(reference, near.flatten(0, 1)).reshape(near.shape)
    index = nearest_code(near[:, near.shape[1] // 2], reference[0][0]) if len(observed.levels) == 1 else None
    guess = readers.by_regression(near, x, seed)
    left = {
        "a regression on codes": x[half:] - readers.off_codes(near_codes, index, x, seed),
        "a regression": x[half:] - guess,
    }
    if paired.rebuilt is not None:
        left["the model's decoder"] = given[half:] - paired.rebuilt_rows(rows)[half:] / largest
    losses = judged.losses(left)
    # Before an encoder can be convicted, a stronger reader is heard.
    if min(one[0] for one in losses.values()) > max(placed.low + TRIFLE, losses["a regression on codes"][0] / 2):
        left["a network"] = x[half:] - readers.by_network(near, x, guess, seed)
        losses = judged.losses(left)
    off_range = at_codes.losses({"codes placed": placed.left})["codes placed"]
    found = {
        "inputs_codes": placed.codes,
        **{f"inputs_{name}": getattr(placed, name) * off_range / off_range[0] for name in ("loss", "low", "high")},
        "codes_loss": losses["a regression on codes"],
        "encoder_loss": np.min(list(losses.values()), axis=0),
        "reader": min(losses, key=lambda name: losses[name][0]),
        "model_loss": losses.get("the model's decoder"),
    }
    if scaled.chosen is None:
        return found
    own = {"own codes": x[half:] - readers.off_codes(*_own_codes(observed, grid, rows), x, seed)}
    if paired.rebuilt is not None and x.shape == given.shape:  # else x is turned, and the decoder's output is not
        own["the model's decoder"] = left["the model's decoder"]
    losses = judged.losses(own)
    best = min(losses, key=lambda name: losses[name][0])
    return found | {
        "own_loss": losses[best],
        "best_loss": at_codes.losses({"as many": as_many.left})["as many"] * as_many.high / as_many.loss,
        "dimensions": judged.dimensions(own[best]),
        "best_dimensions": at_codes.dimensions(as_many.left),
    }


def _codes_on_inputs(
    x: Tensor, reduced: Tensor, sizes: list[int], seed: int
) -> tuple[readers.LossByCodes, readers.LossByCodes]:
    """What codes placed on the inputs x leave of them: of the encoder's reference, and of as many as there are.

    They differ where there are fewer than 16: of an encoder more can be asked than what so few codes would keep.
    """
    as_many = readers.loss_by_as_many_codes(x, reduced, sizes, seed)
    if min(sizes) >= 16:
        return as_many, as_many
    return readers.loss_by_as_many_codes(x, reduced, [max(16, size) for size in sizes], seed), as_many


class _Judged:
    """Inputs x (n, P) by which readers are judged, the units they belong to, and their main directions (C, P)."""

    def __init__(self, x: Tensor, units: Tensor, seed: int, axes: Tensor):
        self.units, self.seed, self.axes, self.x = units, seed, axes, x - x.mean(0)

    def losses(self, left: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """Of what readers leave of x, each (n, P): the share of its variance, and of resamples, (1 + DRAWS,)."""
        squares = {name: one.double().square().sum(1) for name, one in [("all", self.x), *left.items()]}
        means = Resampled(self.units, self.seed, squares).means
        return {name: np.maximum(means[name] / means["all"], 1e-12) for name in left}  # so that one can divide by it

    def dimensions(self, left: Tensor) -> np.ndarray:
        """Over how many directions the bits are spread that leave so much (n, P), and in resamples, (1 + DRAWS,).

        The directions are principal components of what is told, x without what is left: where x varies as much in all
        directions, its own are any.
        """
        told = ((self.x - left) @ self.axes.T).double()
        _, directions = torch.linalg.eigh(told.T @ told)
        axes = directions.T.float() @ self.axes
        squares = {name: (one @ axes.T).double().square() for name, one in (("all", self.x), ("left", left))}
        means = Resampled(self.units, self.seed, squares).means
        return dimensions_filled(bits_of_directions(means["all"], means["left"]))


def _own_codes(observed: Observed, grid: tuple, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """The codes that latents at these rows and around them have, (n, places, D); and the index of their own, (n,).

    The index is None for codes that are put together.
    """
    index = torch.zeros(len(observed.latents), 1, dtype=torch.long)
    parts = []
    for levels in observed.parts:
        chosen = []
        for level in levels:
            index[observed.rows, 0] = level.index
            near = around(index, grid, rows, observed.mask)[..., 0]
            codes = level.codes.double()
            chosen.append((codes - codes.mean(0))[near])
        parts.append(torch.stack(chosen).sum(0))
    own = torch.cat(parts, dim=-1)
    own = (own / own.abs().max().clamp_min(1e-300)).float()
    return own, near[:, near.shape[1] // 2] if len(observed.levels) == 1 else None


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
