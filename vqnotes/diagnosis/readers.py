"""How much of the inputs can be read off latents: always learnt on one half and judged on the other.

Readers of growing strength. What a stronger one still reads is not lost, whatever a weaker one left.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqnotes.diagnosis.observed import INPUTS_PER_CODE
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code

__all__ = [
    "MOST_COMPONENTS",
    "Components",
    "Network",
    "by_network",
    "by_regression",
    "in_few_dimensions",
    "left_over",
    "LossByCodes",
    "Placed",
    "loss_by_as_many_codes",
    "loss_by_codes",
    "means_by",
    "off_codes",
]

STEPS, BATCH = 2000, 64  # of the network, at most
MOST_COMPONENTS = 64  # of the inputs, that codes are placed on and that a network reads
FITTED = 8192  # points that components are fitted to
MOST_CODES = 4096  # that are placed on the inputs
BEND = 0.04  # of the slope: the loss of four times as many codes may be so much (in logarithms, twice) off the line


def in_few_dimensions(x: Tensor) -> Tensor:
    """Points x (n, P) as (n, n) where P is larger: distances stay the same, and so does what a linear reader leaves.

    They are turned into the space that the n points span, by the eigenvectors of their products.
    """
    if x.shape[1] <= len(x):
        return x
    products = torch.zeros(len(x), len(x), dtype=torch.float64)
    for part in x.split(4096, dim=1):
        part = part - part.mean(0)
        products += part @ part.T
    sizes, directions = torch.linalg.eigh(products)
    return (directions * sizes.clamp_min(0).sqrt()).float()


class Components:
    """The first principal components of x (n, P), at most so many: `reduced` (n, C), and the `variances` of each.

    They are those of the first FITTED points.
    """

    def __init__(self, x: Tensor, most: int, seed: int):
        from sklearn.decomposition import PCA

        solver, some = "randomized" if x.shape[1] > 4 * most else "full", x[:FITTED]
        fitted = PCA(min(most, *some.shape), svd_solver=solver, random_state=seed).fit(some.numpy())
        self.reduced = torch.from_numpy(fitted.transform(x.numpy())).float()
        self.axes, self.variances = torch.from_numpy(fitted.components_).float(), fitted.explained_variance_


def left_over(x: Tensor, guess: Tensor) -> float:
    """Share of the variance of x (n, P), around the mean of each entry, that the guess leaves."""
    left = (x - guess).double().square().sum() / (x - x.mean(0)).double().square().sum()
    return max(left.item(), 1e-12)  # so that one can divide by it


def means_by(index: Tensor, x: Tensor, learnt: int) -> Tensor:
    """For each of x (n, P) the mean of those of the first `learnt` that have the same index."""
    number = int(index.max()) + 1
    sums = torch.zeros(number, x.shape[1]).index_add_(0, index[:learnt], x[:learnt])
    counts = torch.bincount(index[:learnt], minlength=number)[:, None]
    return torch.where(counts > 0, sums / counts.clamp_min(1), x[:learnt].mean(0))[index]


def by_regression(near: Tensor, x: Tensor, seed: int) -> Tensor:
    """x (n, P) as ridge regression on what is near (n, places, D) guesses it, for the second half.

    The features are its principal components, and likenesses to some of the points, far and close (Nystroem).
    """
    from sklearn.kernel_approximation import Nystroem

    half = len(x) // 2
    seen = _of_length_one(near, 256, seed).numpy()
    features = [seen / seen.std(0).clip(1e-6)]
    for reach in (0.5, 8):
        kernel = Nystroem(gamma=reach, n_components=min(128, half), random_state=seed).fit(seen[:half])
        features.append(kernel.transform(seen))
    return _by_ridge(torch.from_numpy(np.concatenate(features, axis=1)).double(), x.double(), half).to(x.dtype)


def _by_ridge(table: Tensor, x: Tensor, half: int) -> Tensor:
    """x (n, P) as ridge regression on a table of features (n, F) guesses it, for those after the first half.

    Of the strengths that does best which leaves least of the first half, each guessed from the others: what is left
    with all of them, over 1 - leverage. scikit-learn's RidgeCV is the same, and takes twice as long.
    """
    centre, level = table[:half].mean(0), x[:half].mean(0)
    known, wanted = table[:half] - centre, x[:half] - level
    sizes, axes = torch.linalg.eigh(known.T @ known)
    turned = known @ axes
    told, squares = turned.T @ wanted, turned.square()
    least, best = math.inf, sizes
    for strength in (1e-2, 1.0, 1e2, 1e4):
        share = 1 / (sizes + strength)
        others = 1 - 1 / half - squares @ share
        left = ((wanted - turned @ (share[:, None] * told)) / others[:, None]).square().mean().item()
        if left < least:
            least, best = left, share
    return level + (table[half:] - centre) @ (axes @ (best[:, None] * told))


def off_codes(near: Tensor, index: Tensor | None, x: Tensor, seed: int) -> Tensor:
    """x (n, P) as it is guessed, for the second half, from codes near (n, places, D), or by means of its own code.

    index: of its own code, (n,), or None. Whichever leaves less counts.
    """
    half = len(x) // 2
    guesses = [by_regression(near, x, seed)]
    if index is not None:
        guesses.append(means_by(index, x, half)[half:])
    return min(guesses, key=lambda guess: left_over(x[half:], guess))


class Network(nn.Module):
    """A linear map, and beside it two hidden layers for what is not linear."""

    def __init__(self, inputs: int, outputs: int, width: int = 128):
        super().__init__()
        hidden = [nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width), nn.GELU()]
        self.linear, self.curved = nn.Linear(inputs, outputs), nn.Sequential(*hidden, nn.Linear(width, outputs))

    def forward(self, seen: Tensor) -> Tensor:
        return self.linear(seen) + self.curved(seen)


def by_network(near: Tensor, x: Tensor, guess: Tensor, seed: int) -> Tensor:
    """x (n, P) as a small network guesses it, for the second half.

    It reads the inputs' first principal components; the others stay as in the guess of another reader. Of its epochs,
    the one counts that does best on an eighth of the first half, from which it does not learn.
    """
    half, held_out = len(x) // 2, len(x) // 16
    with torch.random.fork_rng([]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        seen, parts = _of_length_one(near, 256, seed), Components(x, MOST_COMPONENTS, seed)
        unit = parts.reduced.std(0).max()
        seen, wanted = seen / seen.std(0).clamp_min(1e-6), parts.reduced / unit
        network = Network(seen.shape[1], wanted.shape[1])
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.1, fused=True)
        epochs = min(60, STEPS * BATCH // half)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        least, best = math.inf, None
        for _ in range(epochs):
            for batch in (held_out + torch.randperm(half - held_out)).split(BATCH):
                optimizer.zero_grad()
                F.mse_loss(network(seen[batch]), wanted[batch]).backward()
                optimizer.step()
            schedule.step()
            with torch.no_grad():
                error = F.mse_loss(network(seen[:held_out]), wanted[:held_out]).item()
                if error < least:
                    least, best = error, network(seen[half:]) * unit
    return guess + (best - (guess - x.mean(0)) @ parts.axes.T) @ parts.axes


def _of_length_one(near: Tensor, most: int, seed: int) -> Tensor:
    """What is near (n, places, D) in its principal components, of mean square 1; 0 if all of it coincides."""
    seen = Components(near.flatten(1), most, seed).reduced
    return seen / seen.square().sum(1).mean().sqrt().clamp_min(1e-30)


class Placed(NamedTuple):
    """What codes placed on some inputs leave of the variance of others, and of those.

    deviation: the standard error of the loss, as a share of it. of_first: what they leave of those that they were
    placed on. left: all that is left of the others, (n, P).
    """

    loss: float
    deviation: float
    of_first: float
    left: Tensor


def loss_by_codes(x: Tensor, reduced: Tensor, learnt: int, sizes: list[int], seed: int) -> Placed:
    """What codes placed on the first `learnt` of inputs x (n, P) leave of the others.

    One k-means of each size on the `reduced` inputs (n, C), level after level on what those before left; the best
    number of levels counts.
    """
    left, found = x, []
    for size in sizes:
        codes = kmeans(reduced[:learnt], size, seed)[0]
        index = nearest_code(reduced, codes)
        left, reduced = left - means_by(index, left, learnt), reduced - codes[index]
        each = left[learnt:].double().square().sum(1)
        deviation = each.std() / (each.mean().clamp_min(1e-300) * math.sqrt(len(each)))
        guess = x - left
        of_first, of_others = (left_over(x[part], guess[part]) for part in (slice(learnt), slice(learnt, None)))
        found.append(Placed(of_others, deviation.item(), of_first, left[learnt:]))
    return min(found, key=lambda one: one.loss)


class LossByCodes(NamedTuple):
    """A loss, the interval that it is thought to be in, how many codes it was measured with, and what those left.

    left: of the last inputs, by which it was judged, (n, P).
    """

    loss: float
    low: float
    high: float
    codes: int
    left: Tensor


def loss_by_as_many_codes(x: Tensor, reduced: Tensor, sizes: list[int], seed: int) -> LossByCodes:
    """`loss_by_codes` of codebooks of these sizes, measured if half of the inputs pays for them, else extrapolated.

    It pays for a codebook with INPUTS_PER_CODE to each code, up to MOST_CODES. Of larger ones, the largest for which
    it pays, a quarter and a sixteenth of it are measured, each with as many inputs to a code, and drawn on. Then as
    many codes as there should be are placed all the same, if there are two inputs to each. What they lose of inputs
    that they did not learn from is an upper bound, since they learnt from few. What they lose of those is a lower
    bound, since they fit them too closely. Where they lose less than was drawn, the inputs have more clusters than
    codes were measured: nothing is drawn on then, and the bounds are all that is known.
    """
    half = len(x) // 2
    most = max(1, min(half // INPUTS_PER_CODE, MOST_CODES))
    if max(sizes) <= most:
        found = loss_by_codes(x, reduced, half, sizes, seed)
        return LossByCodes(found.loss, found.loss, found.loss, sum(sizes), found.left)
    bits, losses = [], []
    for share in (16, 4, 1):
        rung = [max(1, min(size, most) // share) for size in sizes]
        learnt = INPUTS_PER_CODE * max(rung)
        found = loss_by_codes(x[half - learnt :], reduced[half - learnt :], learnt, rung, seed)
        bits.append(_bits(rung))
        losses.append(math.log(found.loss))
    low, loss, high = _drawn_on(bits, losses, found.deviation, _bits(sizes))
    placed = [max(1, min(size, half // 2, MOST_CODES)) for size in sizes]
    if placed != rung:
        all_codes = loss_by_codes(x, reduced, half, placed, seed)
        if all_codes.loss < _drawn_on(bits, losses, all_codes.deviation, _bits(placed))[1]:
            low, loss, high = 0.0, all_codes.loss, math.inf
        high = min(high, all_codes.loss * math.exp(2 * all_codes.deviation))
        low = min(high, max(low, all_codes.of_first) if placed == sizes else low)
    return LossByCodes(min(max(loss, low), high), low, high, sum(rung), found.left)


def _bits(sizes: list[int]) -> float:
    return sum(map(math.log2, sizes))


def _drawn_on(bits: list[float], losses: list[float], deviation: float, wanted: float) -> tuple[float, float, float]:
    """The loss for so many bits, between its ends, from logarithms of losses for fewer; deviation: that of the last.

    They are about a straight line over the bits: of slope -2 / d in d dimensions (Zador's law; Gersho, 1979), and
    flatter before. The last slope is drawn on. How wrong that may be is told by how much the slope had just changed,
    by BEND at least, and by two standard errors of the last loss. Where the loss has begun to fall faster, as it does
    until there is a code for each cluster, it may stop to fall at any moment: then it is only known to be no higher.
    """
    before, last = np.diff(losses) / np.diff(bits).clip(min=1e-9)
    slope, doubt = min(0.0, last), abs(last - before) + BEND
    flattest = 0.0 if last < before - BEND else min(0.0, slope + doubt)
    steps = (slope - doubt, -2 * deviation), (slope, 0.0), (flattest, 2 * deviation)
    low, loss, high = (math.exp(losses[-1] + (wanted - bits[-1]) * one + error) for one, error in steps)
    return low, loss, high
