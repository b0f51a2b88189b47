"""Small trials on a model: which piece of the inputs moves which latent, and whether gradients pass a quantiser."""

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vqnotes.diagnosis.inputs import UnpairedInputs, cuts
from vqnotes.diagnosis.listening import Listener
from vqnotes.diagnosis.listening.calls import first_argument
from vqnotes.diagnosis.listening.units import Unit

__all__ = [
    "depends_on_codes_alone",
    "fed_by",
    "moves_others",
    "read_places",
    "readings",
    "rebuilt",
    "tensors",
    "without_gradient",
]

PLACES_TRIED, EXAMPLES_TRIED = 8, 32
LOCAL, CLEARLY = 0.2, 1.5  # share of the movement at the place, above chance; and beside that of any other reading
GRADIENT_EXAMPLES = 8


# ---------------------------------------------------------------- which place belongs to which


def readings(shape: tuple, inner: tuple) -> list[tuple]:
    """All choices of axes of inputs (N, ...) along which latents on the places `inner` might run, in this order.

    Sides must be multiples of the places. A single axis of places might also be square patches of images, row by row.
    """
    axes = range(1, len(shape))
    tried = list(itertools.combinations(axes, len(inner)))
    if len(inner) == 1 and len(shape) > 3:
        tried += zip(axes, axes[1:])
    found: dict[tuple, tuple] = {}
    for one in tried:
        pieces = cuts([shape[axis] for axis in one], inner)
        if pieces is not None:
            found.setdefault(tuple((axis, many) for axis, many in zip(one, pieces) if many > 1), one)
    return list(found.values())


def read_places(hear: Callable, x: Tensor, inner: tuple, given: tuple | None = None) -> tuple[tuple, str | None]:
    """The axes of the inputs x (N, ...) along which the latents' places run, and a note where others would fit too.

    The inputs are changed at one place of a reading, and the model is asked which latents move: a reading is right if
    those at that place do. If none is clearly right, UnpairedInputs names what was tried.
    hear: called with inputs, returns latents (N, places, D) and which of them count, (N, places).
    inner: the places of the latents, () if an input has one. given: the axes, if they are known;
    ValueError if they are none of x.
    """
    if not inner:
        return (), None
    shape = tuple(x.shape)
    if given is not None:
        if len(set(given)) < len(given) or any(axis not in range(1, x.ndim) for axis in given):
            raise ValueError(f"places={given} must be different axes of inputs {shape}, not the first")
        if cuts([shape[axis] for axis in given], inner) is None:
            raise UnpairedInputs(f"inputs {shape} cannot be cut along axes {given} into places {inner}")
        return given, None
    tried = readings(shape, inner)
    if not tried:
        raise UnpairedInputs(f"no sides of inputs {shape} are multiples of the latents' places {inner}")
    local = {axes: _locality(hear, x, axes, cuts([shape[axis] for axis in axes], inner)) for axes in tried}
    moved = {axes: one for axes, one in local.items() if one is not None}
    if len(tried) == 1 and not moved:  # nothing moves at all: nothing speaks against it
        return tried[0], None
    for near in (0, 1) if moved else ():  # at the place; else with those around it, as what is causal may need
        best = max(moved, key=lambda axes: moved[axes][near])
        others = [one[near] for axes, one in moved.items() if axes != best]
        if moved[best][near] >= LOCAL and all(moved[best][near] >= CLEARLY * one for one in others):
            said = f"inputs (N, {', '.join(map(str, shape[1:]))})"
            note = f"{said} could be read along axes {' or '.join(map(str, tried))}; latents move with {best}"
            return best, note if len(tried) > 1 else None
    ways = " or ".join(f"places={axes}" for axes in tried)
    raise UnpairedInputs(
        f"inputs {shape} changed at one place of {ways} do not move the latents {inner} there more than elsewhere; "
        f"say places= if you know better"
    )


def moves_others(hear: Callable, x: Tensor) -> bool:
    """Whether inputs that are changed move the latents of others about as much as their own. hear: see `read_places`.

    Such latents are not one for each input, even if there are as many.
    """
    x = x[:EXAMPLES_TRIED]
    changed = torch.arange(len(x)) < (len(x) + 1) // 2
    put = x.clone()
    put[changed] = x.roll(1, 0)[changed]
    before, after = hear(x)[0], hear(put)[0]
    moved = (after - before).double().norm(dim=-1).nan_to_num().sum(1)  # padding may be NaN
    total = moved.sum().item()
    return total > 0 and _above(moved[changed].sum().item() / total, changed.double().mean().item()) < LOCAL


def _locality(hear: Callable, x: Tensor, axes: tuple, pieces: tuple) -> tuple[float, float] | None:
    """The latents' movement at the place where the inputs are changed, and there and around it, both above chance.

    0 is no more than elsewhere, 1 is all of it. None if no latent moves. Half of the examples stand still, and so
    must their latents.
    """
    x = x[:EXAMPLES_TRIED]
    changed = torch.arange(len(x)) < (len(x) + 1) // 2
    before, counts = hear(x)
    places = list(itertools.product(*(range(many) for many in pieces)))
    other = x.roll(1, 0) if len(x) > 1 else x.flip(axes)
    shares = []
    for number in {round(i) for i in torch.linspace(0, len(places) - 1, PLACES_TRIED).tolist()}:
        piece: list[Any] = [slice(None)] * x.ndim
        piece[0] = changed.to(x.device)
        for axis, many, place in zip(axes, pieces, places[number]):
            size = x.shape[axis] // many
            piece[axis] = slice(place * size, (place + 1) * size)
        put = x.clone()
        put[tuple(piece)] = other[tuple(piece)]
        after, _ = hear(put)
        if after.shape != before.shape:
            return None
        moved = (after - before).double().norm(dim=-1).where(counts > 0, 0)  # padding may be NaN
        if (total := moved.sum().item()) > 0:
            near = torch.tensor([max(abs(a - b) for a, b in zip(one, places[number])) <= 1 for one in places])
            at, around = moved[changed, number].sum().item() / total, moved[changed][:, near].sum().item() / total
            shares.append((_above(at, 1 / len(places)), _above(around, near.sum().item() / len(places))))
    return tuple(sum(one) / len(one) for one in zip(*shares)) if shares else None


def _above(share: float, chance: float) -> float:
    """0 for a share that is what chance gives, 1 for all."""
    return (share - chance) / (1 - chance) if chance < 1 else 0.0


# ---------------------------------------------------------------- what depends on the codes


def fed_by(listener: Listener, call: Callable, x: Tensor, units: list[Unit]) -> dict[str, str]:
    """{name of a unit: name of the first other one on whose codes it depends}: these are changed, and others heard.

    call: calls the model, as the listener does.
    """
    x = x[:EXAMPLES_TRIED]
    found: dict = {}

    def entering() -> list[Tensor]:
        torch.manual_seed(0)
        call(x)
        return [torch.cat([listener.calls[part[0].call].entered.flatten() for part in unit.parts]) for unit in units]

    before = entering()
    names = [{listener.calls[level.call].name for level in unit.levels} for unit in units]
    for unit, own in zip(units, names):
        with listener.returning(own, lambda codes: codes.roll(1, 0) + 1):
            after = entering()
        for other, one, changed in zip(units, before, after):
            if other is not unit and not torch.equal(one, changed):
                found.setdefault(other.name, unit.name)
    return found


def depends_on_codes_alone(listener: Listener, call: Callable, x: Tensor) -> bool:
    """Whether the model rebuilds its inputs from codes and nothing else: given the same codes, all look the same."""
    x = x[:EXAMPLES_TRIED]
    with listener.returning(set(listener.names), lambda codes: codes[:1].expand_as(codes)):
        torch.manual_seed(0)
        back = rebuilt(call(x), x)
    if back is None or len(x) < 2:
        return False
    finite = back.isfinite() & back[:1].isfinite()  # what is not, is refused later, where it counts
    each, first = back.where(finite, 0), back[:1].where(finite, 0)
    return torch.allclose(each, first, rtol=0, atol=1e-3 * float(each.abs().max()))


# ---------------------------------------------------------------- gradients


def without_gradient(listener: Listener, x: Tensor, names: list[str]) -> set[str]:
    """Those of the quantisers through which no gradient passes from the model's output to what enters them.

    A copy of the model is asked, in evaluation mode and, since some estimators work in training only, in training
    mode; so nothing of it stays. Empty where it cannot be known: a model that cannot be copied or differentiated,
    nothing to be learnt before or after the quantiser, or an output that is a loss.
    """
    x, cut = x[:GRADIENT_EXAMPLES], set(names)
    with torch.enable_grad():
        for training in (False, True):
            try:
                passes = _gradients(listener, copy.deepcopy(listener.model).train(training), x, sorted(cut))
            except Exception:  # whatever other people's code may raise: then it is not known
                passes = dict.fromkeys(cut)
            cut = {name for name in cut if passes[name] is False or (passes[name] is None and not training)}
            if not cut:
                break
    return cut


def _gradients(listener: Listener, model: nn.Module, x: Tensor, names: list[str]) -> dict[str, bool | None]:
    """For each quantiser whether what enters it, or what that is made of, gets a gradient; None if unknown."""
    entered, output = _entered(listener, model, x, names)
    passes: dict[str, bool | None] = dict.fromkeys(names)
    output = rebuilt(output, x) if rebuilt(output, x) is not None else next(filter(_wide, tensors(output)), None)
    if output is None or not output.requires_grad:
        return passes
    for name, latents in entered.items():
        if latents.requires_grad:
            learnt = [latents, *_leaves(latents)]
            found = torch.autograd.grad(output.sum(), learnt, retain_graph=True, allow_unused=True)
            passes[name] = any(one is not None for one in found)
    return passes


def _entered(listener: Listener, model: nn.Module, x: Tensor, names: list[str]) -> tuple[dict[str, Tensor], Any]:
    """What enters each quantiser of a copy of the model, with its gradient, and what that copy returns."""
    entered: dict[str, Tensor] = {}
    for name in listener.kinds.keys() & set(names):

        def enter(module: nn.Module, arguments: tuple, named: dict, name: str = name) -> None:
            entered.setdefault(name, first_argument(arguments, named))

        model.get_submodule(name).register_forward_pre_hook(enter, with_kwargs=True)
    if listener.found is None:
        return entered, listener.run(model, x)
    found, output = listener.found.entering(model, x)
    return entered | found, output


def _leaves(tensor: Tensor) -> list[Tensor]:
    """The parameters that a tensor was made of."""
    seen, found, left = set(), [], [tensor.grad_fn]
    while left:
        step = left.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if hasattr(step, "variable"):
            found.append(step.variable)
        left += [before for before, _ in step.next_functions]
    return found


def rebuilt(output: Any, x: Tensor) -> Tensor | None:
    """The first tensor in a model's output that has the inputs' shape and is not the inputs themselves, if any."""
    if not x.is_floating_point():
        return None
    return next(
        (one for one in tensors(output) if one.shape == x.shape and _wide(one) and not torch.equal(one, x)), None
    )


def _wide(tensor: Tensor) -> bool:
    return tensor.ndim > 1 and tensor.is_floating_point()


def tensors(output: Any) -> Iterator[Tensor]:
    """All tensors in what a model returns: tuples, lists and dicts of them, in their order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for one in output.values():
            yield from tensors(one)
    elif isinstance(output, list | tuple):
        for one in output:
            yield from tensors(one)
