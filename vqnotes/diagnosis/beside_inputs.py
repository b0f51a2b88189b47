"""The encoder beside its inputs: what can be read off latents and codes, and of how many dimensions codes tell."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqnotes._progress import stage
from vqnotes.diagnosis import readers
from vqnotes.diagnosis.observed import Observed, around
from vqnotes.diagnosis.references import Scaled, coded_by
from vqnotes.diagnosis.resampling import Resampled, units_of
from vqnotes.nearest import nearest_code

__all__ = ["TRIFLE", "KnownInputs", "bits_of_directions", "dimensions_filled", "encoder_measures"]

READ = 8192  # latents that readers read
TRIFLE = 0.005  # of a variance: what costs less is not called ill


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


def encoder_measures(
    scaled: Scaled, reference: list[list[Tensor]], known: "KnownInputs", settled: Callable[[dict], bool]
) -> dict:
    """The encoder beside its inputs: what is read off latents, off the codes of the reference, and off their own.

    settled: by what was measured so far, by name, whether it does not matter how much a stronger reader reads.
    """
    stage("codes placed on the inputs")
    observed, paired = scaled.observed, scaled.observed.inputs
    rows, seed = observed.beside, observed.seed
    x = paired.rows(rows)
    largest = torch.stack(torch.aminmax(x)).abs().max()  # so that squares do not overflow
    read = _to_read(observed, rows)
    given = x.div_(largest)[read]
    alone = known.alone(x, units_of(rows, observed.grid), [len(one.codes) for one in observed.levels], seed)

    stage("inputs read off the latents")
    rows, x = rows[read], alone.x[read]
    half = len(rows) // 2
    judged = _Judged(x[half:], units_of(rows[half:], observed.grid), seed, alone.axes)
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
    found = alone.reference | {
        "codes_loss": losses["a regression on codes"],
        "model_loss": losses.get("the model's decoder"),
        **_best_reader(losses),
    }
    if scaled.chosen is not None:
        own = {"own codes": x[half:] - readers.off_codes(*_own_codes(observed, grid, rows), x, seed)}
        if paired.rebuilt is not None and x.shape == given.shape:  # else x is turned; the decoder's output is not
            own["the model's decoder"] = left["the model's decoder"]
        own_losses = judged.losses(own)
        best = min(own_losses, key=lambda name: own_losses[name][0])
        found |= alone.best | {"own_loss": own_losses[best], "dimensions": judged.dimensions(own[best])}
    # Before an encoder can be convicted, a stronger reader is heard.
    doubtful = found["encoder_loss"][0] > max(alone.low + TRIFLE, found["codes_loss"][0] / 2)
    if doubtful and not settled(found):
        by_network = {"a network": x[half:] - readers.by_network(near, x, guess, seed)}
        found |= _best_reader(losses | judged.losses(by_network))
    return found


def _best_reader(losses: dict[str, np.ndarray]) -> dict:
    """What the encoder loses at most: what the reader leaves that leaves least; and which reader it is."""
    return {
        "encoder_loss": np.min(list(losses.values()), axis=0),
        "reader": min(losses, key=lambda name: losses[name][0]),
    }


def _to_read(observed: Observed, rows: Tensor) -> Tensor:
    """Which of these rows are read, (n,). Readers are judged by the second half: none that references were fitted to.

    They would err less there than elsewhere, and look better than the model's own codes.
    """
    fitted, places, count = torch.isin(rows, observed.fitted), torch.arange(len(rows)), min(READ, len(rows))
    judged = places[~fitted][: count - count // 2]
    others = torch.cat([places[fitted], places[~fitted][len(judged) :]])[: len(judged)]
    return torch.cat([others, judged]) if len(judged) > count // 4 else places[:count]


class _Alone(NamedTuple):
    """What is known of inputs alone, whatever the model makes of them.

    x: the inputs, in few dimensions, (n, P). axes: their main directions (C, P). low: the least that codes placed on
    them may lose. reference, best: measures by name, those of the encoder and those beside the model's own codes.
    """

    x: Tensor
    axes: Tensor
    low: float
    reference: dict
    best: dict


def _alone(x: Tensor, units: Tensor, sizes: list[int], seed: int) -> _Alone:
    """Codes placed on the inputs x (n, P), as many as codebooks of these sizes have. units (n,) they belong to."""
    x = readers.in_few_dimensions(x)
    parts = readers.Components(x, readers.MOST_COMPONENTS, seed)
    placed, as_many = _codes_on_inputs(x, parts.reduced, sizes, seed)
    judged = _Judged(x[-len(placed.left) :], units[-len(placed.left) :], seed, parts.axes)
    losses = judged.losses({"placed": placed.left, "as many": as_many.left})
    off_range = losses["placed"] / losses["placed"][0]
    reference = {f"inputs_{name}": getattr(placed, name) * off_range for name in ("loss", "low", "high")}
    best = {
        "best_loss": losses["as many"] * as_many.high / as_many.loss,
        "best_dimensions": judged.dimensions(as_many.left),
    }
    return _Alone(x, parts.axes, placed.low, reference | {"inputs_codes": placed.codes}, best)


class KnownInputs:
    """What was measured of inputs alone, for whoever diagnoses models again and again beside the same ones.

    Sets of inputs (n, P) of 2^22 numbers together are kept, those that were asked for last. A copy learns anew.
    """

    NUMBERS = 2**22

    def __init__(self) -> None:
        self._kept: list[tuple[tuple[Tensor, Tensor, list[int], int], _Alone]] = []

    def __reduce__(self) -> tuple:
        return KnownInputs, ()

    def alone(self, x: Tensor, units: Tensor, sizes: list[int], seed: int) -> _Alone:
        """As `_alone` finds it, or found it before."""
        for entry in self._kept:
            (old, belong, *asked), found = entry
            if asked == [sizes, seed] and torch.equal(old, x) and torch.equal(belong, units):
                break
        else:
            found = _alone(x, units, sizes, seed)
            entry = (x, units, sizes, seed), found
            if x.numel() > self.NUMBERS:
                return found
        kept = [entry, *(one for one in self._kept if one is not entry)]
        while sum(given[0].numel() for given, _ in kept) > self.NUMBERS:
            kept.pop()
        self._kept = kept
        return found


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
