"""How many indices of a model stay when its inputs are moved by a stated amount."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vqnotes._checks import check_positive
from vqnotes.diagnosis.feeding import batches
from vqnotes.diagnosis.listening import Listener
from vqnotes.diagnosis.listening.calls import Call
from vqnotes.diagnosis.model import as_it_was
from vqnotes.diagnosis.observed import AT_MOST, MOST_NUMBERS, seed_of
from vqnotes.diagnosis.stability import NOISE, Moved, Stability, moved_by, stability_of

__all__ = ["input_stability"]


def input_stability(model: nn.Module, data: Any, *, noise: float = NOISE, seed: int = 0) -> dict[str, Stability]:
    """How many indices of each quantiser stay when noise moves the model's inputs: {name of the module: Stability}.

    data: inputs as for `diagnose_model`, of a float type and all of one shape; labels are not used. The batch with
    which 2^25 numbers of them are there is the last, and so is that with which 2^18 latents were heard.
    noise: the length of the Gaussian noise (root mean square, alike in all directions), over the inputs' distance
    from their mean.
    `moved` of the result says how far the latents moved, in their own units; k-means codes are placed on half of the
    latents and judged on the others. Heads and repeated calls of one quantiser count together; what is masked does
    not count.

    The model runs in evaluation mode, with the same random numbers both times, and is left as it was.
    Raises ValueError for noise that is not above 0, inputs that are whole numbers or do not vary, quantisers that
    are not started or not called alike both times, and as `diagnose_model` does.
    """
    check_positive("noise", noise)
    listener, seed = Listener(model), seed_of(seed)
    if listener.not_started:
        raise ValueError(f"the codes of {sorted(listener.not_started)} are not started: train for a step first")
    given: list[Tensor] = []
    moved: dict[str, list[Moved]] = {}
    with as_it_was(model, listener.names), listener.listening():
        for x, _ in batches(data, model):
            given.append(x)
            if sum(one.numel() for one in given) >= MOST_NUMBERS:
                break
        if not given:
            raise ValueError("no data: not a single batch came")
        unit, random = _spread(given), torch.Generator().manual_seed(seed)
        for x in given:
            noisy = moved_by(x.cpu().double(), noise * unit, random).to(x)
            for name, ones in _moved(_heard(listener, x), _heard(listener, noisy)).items():
                moved.setdefault(name, []).extend(ones)
            if max(sum(len(one.latents) for one in ones) for ones in moved.values()) >= AT_MOST:
                break
    return {name: stability_of(_together(ones), seed) for name, ones in moved.items()}


def _spread(given: list[Tensor]) -> float:
    """The inputs' distance from their mean, entry by entry (root mean square); ValueError if they do not vary."""
    if not all(x.is_floating_point() for x in given):
        raise ValueError(f"noise moves inputs of a float type only, got {given[0].dtype} {tuple(given[0].shape)}")
    if len({x.shape[1:] for x in given}) > 1:
        raise ValueError(f"inputs must be of one shape, got {sorted({tuple(x.shape[1:]) for x in given})}")
    count = sum(len(x) for x in given)
    mean = sum(x.double().sum(0) for x in given) / count
    spread = sum((x.double() - mean).square().sum().item() for x in given) / count
    if spread == 0:
        raise ValueError(f"inputs ({count}, {', '.join(map(str, given[0].shape[1:]))}) do not vary")
    return math.sqrt(spread)


def _heard(listener: Listener, x: Tensor) -> list[Call]:
    torch.manual_seed(0)  # the same noise each time, if the model draws any
    try:
        listener(x)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"the model cannot be called with a batch {x.dtype} {tuple(x.shape)}: {error}") from error
    if not listener.calls:
        raise ValueError(f"quantisers were found but never called: {sorted(listener.names)}")
    return listener.calls.copy()


def _moved(before: list[Call], after: list[Call]) -> dict[str, list[Moved]]:
    """What was heard twice, by the quantiser's name: one `Moved` for each codebook of each call."""
    if [(one.name, one.latents.shape) for one in before] != [(one.name, one.latents.shape) for one in after]:
        raise ValueError("quantisers are called otherwise on inputs that moved: there is nothing to compare")
    found: dict[str, list[Moved]] = {}
    for one, other in zip(before, after):
        for head in range(len(one.latents)):
            counts = torch.ones_like(one.index[head], dtype=torch.bool)
            for mask in (one.mask, other.mask):
                counts = counts if mask is None else counts & mask.reshape(counts.shape)
            here, there = (call.latents[head][counts].cpu().float() for call in (one, other))
            index, index_after = (call.index[head][counts].cpu() for call in (one, other))
            moved = Moved(here, there, one.codes[head].cpu().float(), index, index_after)
            found.setdefault(one.name, []).append(moved)
    return found


def _together(ones: list[Moved]) -> list[Moved]:
    """Those of equal codes as one."""
    groups: list[list[Moved]] = []
    for one in ones:
        same = [group for group in groups if torch.equal(group[0].codes, one.codes)]
        if same:
            same[0].append(one)
        else:
            groups.append([one])
    return [
        Moved(
            torch.cat([one.latents for one in group]),
            torch.cat([one.after for one in group]),
            group[0].codes,
            torch.cat([one.index_before for one in group]),
            torch.cat([one.index_after for one in group]),
        )
        for group in groups
    ]
