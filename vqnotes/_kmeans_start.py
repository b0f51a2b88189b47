"""The start of k-means: candidates as k-means|| draws them, and the choice of greedy k-means++ among them."""

import math

import torch
from torch import Tensor

from vqnotes._progress import first_half
from vqnotes.nearest import nearest_code

FEW = 4096  # points that are all candidates; of more
ROUNDS, AT_LEAST = 5, 32  # so many times K / 2, or at least 32, are drawn
PER_DRAW, MOST = 2048, 8  # for each so many codes, one more is drawn at once, up to so many: memory grows with them


def start(points: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """`size` of the points (N, D), chosen from weighted candidates by greedy k-means++.

    One after the other. Each time 2 + log K candidates are drawn in proportion to the error that is left at them, and
    the one with which the least would be left of all is taken (Arthur and Vassilvitskii, 2007, section 5). From 4,096
    codes on, those for several codes are drawn at once, so that the candidates are not read anew for each; not so for
    the last eighth of the codes, which must find the few places that are still far from any.
    """
    rows, weights = _candidates(points, max(AT_LEAST, -(-size // 2)), generator)
    places, weights = points[rows].double(), weights.double()  # distances by a product need the digits
    squares, ones = places.square().sum(dim=1, keepdim=True), torch.ones_like(weights)[:, None]
    last, tries = len(rows) - 1, torch.cat([places, ones, squares], dim=1)
    errors = (torch.cat([-2 * places, squares, ones], dim=1) * weights[:, None]).T.contiguous()  # times those tries
    lots = torch.rand(size, 2 + int(math.log(size)), generator=generator, dtype=torch.float64).to(points.device)
    together = min(MOST, max(1, size // PER_DRAW))
    draws = (size - size // 8) // together
    buffer, chosen = places.new_empty(together * lots.shape[1], len(rows)), []
    left, chance = torch.full_like(weights, math.inf), weights  # the first is drawn in proportion to the weights
    for lot in first_half(lots.split([together] * draws + [1] * (size - together * draws))):
        upto = chance.cumsum(dim=0)
        tried = torch.searchsorted(upto, lot * upto[-1], right=True).clamp_max_(last)
        found = torch.mm(tries[tried.flatten()], errors, out=buffer[: tried.numel()]).view(*tried.shape, -1)
        for those, error in zip(tried, found):
            left_with = torch.minimum(error, left, out=error)  # (2 + log K, candidates)
            best = left_with.sum(dim=1).argmin(dim=0, keepdim=True)
            left = chance = left_with.index_select(0, best)[0].clamp_min_(0)
            chosen.append(those.index_select(0, best))
    return points[rows[torch.cat(chosen)]]


def _candidates(points: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of the points (N, D), and to how many points each is the nearest.

    All rows of few points. Else one, and five times `count`, drawn without replacement in proportion to the squared
    distance from the nearest one so far: those for which distance / exponential variable is highest (Efraimidis and
    Spirakis, 2006).
    """
    if len(points) <= FEW:
        rows = torch.arange(len(points), device=points.device)
        return rows, torch.ones_like(rows)
    rows = torch.randint(len(points), (1,), generator=generator).to(points.device)
    nearest = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    distance = (points - points[rows]).square().sum(dim=1)
    for _ in range(ROUNDS):
        luck = torch.empty(len(points), dtype=torch.float64).exponential_(generator=generator).to(points.device)
        drawn = (distance / luck).topk(min(count, len(points))).indices
        index = nearest_code(points, points[drawn])
        there = (points - points[drawn[index]]).square().sum(dim=1)
        nearest = torch.where(there < distance, len(rows) + index, nearest)
        distance = torch.minimum(there, distance)
        rows = torch.cat([rows, drawn])
    return rows, torch.bincount(nearest, minlength=len(rows))
