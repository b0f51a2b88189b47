"""The sample that figures are taken of, and k-means in the arrangement of the codebooks, by which they are judged."""

import torch
from torch import Tensor

from vqnotes._rounding import mean_of_rows
from vqnotes.diagnosis.observed import Observed
from vqnotes.diagnosis.resampling import units_of
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code

__all__ = ["Scaled", "coded_by", "reference_for", "squared_errors"]


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


def squared_errors(points: Tensor, coded: Tensor) -> Tensor:
    """Squared distances (n,), in double precision."""
    return (points - coded).double().square().sum(1)
