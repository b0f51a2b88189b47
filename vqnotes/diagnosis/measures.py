"""What is measured of latents and codes, each number beside a reference measured on the same data.

The codebook beside k-means on the same latents, the encoder beside the inputs themselves, the dimensions that codes
fill beside those that log2 K bits can pay for, usage beside what so many latents could show. Codes that are put
together (residual levels, heads, groups) stand beside k-means in the same arrangement.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vqnotes import metrics
from vqnotes._progress import stage
from vqnotes._rounding import PART, mean_of_rows
from vqnotes._threads import one_thread
from vqnotes.diagnosis import readers
from vqnotes.diagnosis.inputs import Unused
from vqnotes.diagnosis.observed import AT_LEAST, FEWEST, Coded, Observed, around
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code

__all__ = ["TRIFLE", "Measures", "measure", "shared_dimensions"]

INPUTS_PER_CODE, LABEL_SAMPLE, CLASS = 16, 1500, 5  # CLASS: labels that one must have, to be cross-validated
TRIFLE = 0.005  # of a variance: what costs less is not called ill


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
    error_deviation: float | None = None  # standard error of it, from the sample
    reference_codes: int | None = None  # of k-means: K, or as many as the sample allows
    best_low: float | None = None  # error of k-means on the half that it was fitted to
    best: float | None = None  # and on the other half
    gap: float | None = None  # error / best on the other half: k-means is at a disadvantage
    gap_high: float | None = None  # on its own half: k-means is at an advantage; infinite if it has fewer codes
    dimensions: float | None = None  # that share the bits, of the codes in use
    paid: float | None = None  # of the inputs, or of the latents if there are no inputs
    inputs_codes: int | None = None
    inputs_loss: float | None = None  # of the inputs, by so many codes placed on the inputs themselves
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
    codebooks: tuple["Measures", ...] = field(default=(), repr=False)  # of codes that are put together: each alone

    @property
    def left(self) -> float:
        """Error of k-means between its two halves: what the best codes leave of the latents' variance."""
        return (self.best_low + self.best) / 2

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
    found = _uses_of_all(observed, alone) if several else _uses(observed.levels[0])
    sample, enough = observed.sample, len(observed.sample) >= FEWEST
    with one_thread() if len(sample) <= AT_LEAST else nullcontext():
        scaled = Scaled(observed)
        found |= {"sample": len(sample), "spread": scaled.spread}
        if enough and scaled.spread > 0:
            stage("k-means on the latents")
            reference = reference_for(scaled)
            stage("codes beside those of k-means")
            found |= _codebook_measures(scaled, reference)
            if not several:
                found |= _doubtful_measures(scaled, found)
    if observed.stacked:
        found |= {"bits": observed.total_bits, "codebooks": alone or (Measures(**found),)}
    found["unused"] = observed.unused
    if observed.inputs is not None and not observed.has_inputs:
        few = f"inputs {observed.inputs.shape} were given, but belong to {len(observed.beside)} latents that count"
        found["unused"] = Unused(f"{few}: it takes {FEWEST}", f"pass inputs for {FEWEST} latents or more")
    with one_thread():
        if observed.has_inputs and scaled.spread > 0:
            found |= _encoder_measures(scaled, reference)
        if observed.labels is not None:
            found |= _label_measures(observed)
    return Measures(**found)


def _uses(one: Coded) -> dict:
    """How the codes of one codebook are used, over all latents."""
    stage("uses of the codes")
    size, different, meter = len(one.codes), _different(one.latents), metrics.UsageMeter(len(one.codes))
    meter.counts = torch.bincount(one.index, minlength=size) if one.uses is None else one.uses
    count = int(meter.counts.sum())
    ceiling = -math.expm1(count * math.log1p(-1 / size)) if size > 1 else 1.0
    return {
        "latents": count,
        "codes": size,
        "distinct": len(one.codes.unique(dim=0)),
        "different": different if different < len(one.latents) else None,
        "usage": meter.usage(),
        "ceiling": min(ceiling, different / size) if different < len(one.latents) else ceiling,
        "perplexity": meter.perplexity(),
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

    half: how many of them references are fitted to.
    centre (D,), unit: what was taken off, and divided by. spread: the variance in the latents' own units; 0 if it is
    no more than rounding, and then nothing below is there. size: root mean square of the latents, in units.
    points (n, D): the latents. reaching: for each place of a code, what reaches it (n, D of the place).
    chosen (n, D): the codes of all places put together; None if a level codes something else than what the one before
    left, for instance a projection of it.
    """

    def __init__(self, observed: Observed):
        self.observed, self.half, firsts = observed, len(observed.sample) // 2, observed.firsts
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


def reference_for(scaled: Scaled) -> list[list[Tensor]]:
    """k-means in the arrangement of the codebooks: the centroids of each level of each part.

    It is fitted to the first half of the sample: part by part, and level after level on what those before left.
    Places that share a codebook get one k-means, fitted to what reaches all of them in the model.
    """
    observed = scaled.observed
    fitted: dict = {}

    def of(points: Tensor, size: int) -> Tensor:
        return kmeans(points, min(size, len(points) // 4), observed.seed)[0]

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


def _codebook_measures(scaled: Scaled, reference: list[list[Tensor]]) -> dict:
    """The codes chosen in the sample beside the reference, which was fitted to the first half of it."""
    points, number = scaled.points, sum(len(codes) for levels in reference for codes in levels)
    complete = number == sum(len(one.codes) for one in scaled.observed.levels)
    best_low, best = _errors(points, coded_by(reference, points), scaled.half)
    found = {
        "size": scaled.size,
        "reference_codes": number,
        "best_low": best_low.mean().item() if complete else 0.0,
        "best": best.mean().item(),
        "paid": shared_dimensions(metrics.principal_variances(points), scaled.observed.total_bits),
    }
    if scaled.chosen is None:
        return found
    low, own = _errors(points, scaled.chosen, scaled.half)
    return found | {
        "error": own.mean().item(),
        "error_deviation": own.std().item() / math.sqrt(len(own)),
        "gap": _ratio(own.mean().item(), found["best"]),
        "gap_high": _ratio(low.mean().item(), found["best_low"]) if complete else math.inf,
        "dimensions": shared_dimensions(metrics.principal_variances(scaled.chosen), scaled.observed.total_bits),
    }


def _errors(points: Tensor, coded: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Squared distances (n,) in double precision, of the first half and of the second."""
    errors = (points - coded).double().square().sum(1)
    return errors[:half], errors[half:]


def _ratio(error: float, best: float) -> float:
    return error / best if best > 0 else (1.0 if error == 0 else math.inf)


def shared_dimensions(variances: np.ndarray, bits: float) -> float:
    """How many dimensions share the bits of water-filling: exp(entropy of their shares); 0 if there are no bits."""
    given = metrics.water_filling(variances, bits).bits
    return float(np.exp(metrics.entropy(given))) if given.sum() > 0 else 0.0


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
    result["scale"] = _ratio(1.0, width)
    if found["gap"] <= 1.3 or len(codes) < 2:
        return result
    if width > 0 and not 0.5 < width < 2:
        moved = (codes - codes.mean(0)) / width
        placed = _errors(points, moved[nearest_code(points, moved)], half)[1].mean().item()
        result["gap_scaled"] = _ratio(placed, found["best"])
    lengths = one.codes.double().norm(dim=1)
    latents = observed.counted[observed.sample].double()
    if lengths.std() < 1e-3 * lengths.mean() and (norms := latents.norm(dim=1)).std() > 1e-2 * norms.mean():
        directions = (latents / norms.clamp_min(1e-30)[:, None]).float()
        codes = (one.codes.double() / lengths[:, None]).float()
        best = kmeans(directions[:half], min(len(codes), half // 4), observed.seed)[0]
        error, least = (_errors(directions, some[nearest_code(directions, some)], half)[1] for some in (codes, best))
        result["gap_directions"] = _ratio(error.mean().item(), least.mean().item())
    return result


def _encoder_measures(scaled: Scaled, reference: list[list[Tensor]]) -> dict:
    """The encoder beside its inputs: what can be read off latents, and off the codes of the reference."""
    observed, paired, rows, seed = (
        scaled.observed,
        scaled.observed.inputs,
        scaled.observed.beside,
        scaled.observed.seed,
    )
    stage("codes placed on the inputs")
    x, half = paired.rows(rows), len(rows) // 2
    largest = torch.stack(torch.aminmax(x)).abs().max()  # so that squares do not overflow
    x /= largest
    model_loss = None
    if paired.rebuilt is not None:
        model_loss = readers.left_over(x[half:], paired.rebuilt_rows(rows)[half:] / largest)
    x = readers.in_few_dimensions(x)
    grid = paired.grid if len(paired.grid) > 1 else observed.grid
    near = scaled.centred(around(observed.latents, grid, rows, observed.mask))
    near_codes = coded_by(reference, near.flatten(0, 1)).reshape(near.shape)
    parts = readers.Components(x, readers.MOST_COMPONENTS, seed)
    sizes = [min(max(16, len(one.codes)), half // INPUTS_PER_CODE) for one in observed.levels]
    inputs_loss = readers.loss_by_codes(x, parts, sizes, seed)

    stage("inputs read off the latents")
    codes_loss = readers.left_over(x[half:], readers.by_regression(near_codes, x, seed))
    if len(observed.levels) == 1:
        index = nearest_code(near[:, near.shape[1] // 2], reference[0][0])
        codes_loss = min(codes_loss, readers.left_over(x[half:], readers.means_by(index, x)[half:]))
    guess = readers.by_regression(near, x, seed)
    losses = {"a regression on codes": codes_loss, "a regression": readers.left_over(x[half:], guess)}
    if model_loss is not None:
        losses["the model's decoder"] = model_loss
    # Before an encoder can be convicted, a stronger reader is heard.
    if min(losses.values()) > max(inputs_loss + TRIFLE, codes_loss / 2):
        losses["a network"] = readers.left_over(x[half:], readers.by_network(near, x, guess, seed))
    reader = min(losses, key=losses.get)
    return {
        "paid": shared_dimensions(parts.variances, observed.total_bits),
        "inputs_codes": sum(sizes),
        "inputs_loss": inputs_loss,
        "codes_loss": codes_loss,
        "encoder_loss": losses[reader],
        "reader": reader,
        "model_loss": model_loss,
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
    found = {
        "separability": metrics.separability(observed.latents.reshape(len(y), -1)[rows], y[rows]),
        "chance": sizes.max().item() / len(rows),
    }
    if observed.inputs is not None:
        x = observed.inputs.rows(rows) if each else observed.inputs.whole(rows)
        found["separability_inputs"] = metrics.separability(x, y[rows])
    return found
