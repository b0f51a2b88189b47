"""How the calls of a forward pass belong together, told by its tensors and not by names.

Levels code what the one before them left; parts get pieces of one tensor.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqnotes.diagnosis.listening.calls import Call

__all__ = ["Level", "Unit", "modules_of", "named_by", "units"]


@dataclass(frozen=True)
class Level:
    """One codebook in a model: the call it is heard in (its number within a pass), and the head of that call.

    scale: of each dimension, by which its latents and codes come to the scale of the first level; None: they have it.
    """

    name: str
    call: int
    head: int
    scale: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Unit:
    """What makes one token of a latent: one codebook, or parts side by side, each with its levels one after another.

    loose: calls that have nothing to do with each other but their codebook; their latents are taken as one set.
    """

    name: str
    parts: tuple[tuple[Level, ...], ...]
    loose: bool = False

    @property
    def levels(self) -> list[Level]:
        """All levels of all parts, one after another."""
        return [level for part in self.parts for level in part]


def units(model: nn.Module, calls: list[Call], entered: dict[str, Tensor]) -> list[Unit]:
    """The calls of one pass, put together to what is judged as one."""
    numbers: dict[str, list[int]] = {}  # of the calls of each quantiser
    for number, call in enumerate(calls):
        numbers.setdefault(call.name, []).append(number)

    def levels(number: int, heads: list[int]) -> list[Level]:
        call = calls[number]
        name = call.name or type(model).__name__
        name += f"[call {numbers[call.name].index(number)}]" if len(numbers[call.name]) > 1 else ""
        several = len(call.latents) > 1 and not call.shared
        named = [(f"{name}[head {head}]" if several else name, head) for head in heads]
        return [Level(one, number, head, scales.get(number)) for one, head in named]

    stacks, scales = _stacks(calls)
    found: list[Unit] = []
    alone = {stack[0] for stack in stacks if len(stack) == 1}
    loose = {
        name: [one for one in own if one in alone]
        for name, own in numbers.items()
        if len(alone.intersection(own)) > 1
    }
    stacks = [stack for stack in stacks if calls[stack[0]].name not in loose or len(stack) > 1]
    for side_by_side in _side_by_side(calls, stacks, entered):
        parts = []
        for stack in side_by_side:
            for head in range(len(calls[stack[0]].latents)):
                parts.append(tuple(level for number in stack for level in levels(number, [head])))
        names = [calls[number].name for stack in side_by_side for number in stack]
        together = _name_of_all(model, names)
        if any(unit.name == together for unit in found):  # another stack in the same module
            together = " + ".join(dict.fromkeys(names))
        found.append(Unit(together, tuple(parts)))
    for name, own in loose.items():
        heads = range(len(calls[own[0]].latents))
        for some in [list(heads)] if calls[own[0]].shared else [[head] for head in heads]:
            same = [level for number in own for level in levels(number, some)]
            of_head = f"[head {some[0]}]" if len(some) < len(heads) else ""
            found.append(
                Unit((name or type(model).__name__) + of_head, tuple((level,) for level in same), loose=True)
            )
    return sorted(found, key=lambda unit: unit.levels[0].call)


def modules_of(name: str, names: Iterable[str]) -> list[str]:
    """Which of a model's quantisers, by the names of their modules, a unit or a level of this name is about."""
    modules = _modules_in(name)
    found = [one for one in names if any(f"{one}.".startswith(f"{module}.") for module in modules)]
    return found or list(names)  # no module has this name: it is the model's


def named_by(names: Iterable[str], model: nn.Module) -> list[str]:
    """The modules that these names of units and levels are about; "", the model, for what is no module of its own."""
    known = dict(model.named_modules())
    return list(dict.fromkeys(one if one in known else "" for name in names for one in _modules_in(name)))


def _modules_in(name: str) -> list[str]:
    return [part.partition("[")[0] for part in name.split(" + ")]


def _stacks(calls: list[Call]) -> tuple[list[list[int]], dict[int, tuple[float, ...]]]:
    """Numbers of the calls, each list levels one after another: what reaches a level is what the last one left.

    And the scales of those levels to which that comes multiplied.
    """
    stacks: list[list[int]] = []
    scales: dict[int, tuple[float, ...]] = {}
    for number, call in enumerate(calls):
        for stack in reversed(stacks):
            step = _left(calls[stack[-1]], call)
            if step is not None:
                before = scales.get(stack[-1])
                if before is not None or bool((step != 1).any()):
                    scales[number] = tuple((step * (1.0 if before is None else step.new_tensor(before))).tolist())
                stack.append(number)
                break
        else:
            stacks.append([number])
    return stacks, scales


def _left(call: Call, later: Call) -> Tensor | None:
    """The scale (D,) of what the later call was given, if that is what the first one left of its latents; else None.

    It is 1 where both are the same. Latents themselves, given once more at any scale, are not what was left of them.
    """
    x, y = call.entered, later.entered
    alike = [(len(one.latents), one.entered.shape, one.entered.dtype, one.entered.device) for one in (call, later)]
    if alike[0] != alike[1] or call.returned.shape != x.shape:
        return None
    left, rounding = x - call.returned, 64 * torch.finfo(x.dtype).eps * _largest(x)
    if _largest(y - left) <= rounding < _largest(y - x):
        return torch.ones(call.latents.shape[-1], dtype=torch.float64)
    rows, given, all_of_it = (one.movedim(call.channel_axis, -1).flatten(0, -2).double() for one in (left, y, x))
    rows, given, all_of_it = (one.nan_to_num() for one in (rows, given, all_of_it))
    if len(rows) <= 2 or given.shape[1] != call.latents.shape[-1]:  # so few fit at some scale
        return None
    scale = _fitted(rows, given)
    fits = _largest(rows - scale * given) <= rounding < _largest(all_of_it - _fitted(all_of_it, given) * given)
    return scale.cpu() if fits and bool((scale > 0).all()) else None


def _fitted(rows: Tensor, given: Tensor) -> Tensor:
    """The factors (D,) by which what was given comes nearest to the rows (n, D)."""
    return (rows * given).sum(0) / given.square().sum(0).clamp_min(1e-300)


def _largest(x: Tensor) -> float:
    """The largest absolute value; padding may be NaN."""
    return x.abs().nan_to_num().max().item()


def _side_by_side(calls: list[Call], stacks: list[list[int]], entered: dict[str, Tensor]) -> list[list[list[int]]]:
    """The stacks, those together that got pieces of one tensor, cut along its dimensions."""
    groups: list[list[list[int]]] = []
    for stack in stacks:
        whole = _entry(calls, stack, entered)
        axis = calls[stack[0]].channel_axis
        for group in groups:
            if all(_pieces(_entry(calls, other, entered), whole, axis) for other in group):
                group.append(stack)
                break
        else:
            groups.append([stack])
    return groups


def _entry(calls: list[Call], stack: list[int], entered: dict[str, Tensor]) -> Tensor:
    """What entered the outermost module that holds the quantisers of this stack and no others."""
    first, inside = calls[stack[0]], {calls[number].name for number in stack}
    parts = first.name.split(".")
    for i in range(1, len(parts)):
        holder = ".".join(parts[:i])
        held = {call.name for call in calls if call.name.startswith(holder + ".")}
        if held == inside and isinstance(entered.get(holder), Tensor):
            return entered[holder]
    return first.entered


def _pieces(one: Tensor, other: Tensor, axis: int) -> bool:
    """Whether both are views of one tensor that is cut along this axis."""
    axis %= one.ndim
    sizes = [[size for i, size in enumerate(x.shape) if i != axis] for x in (one, other)]
    same = one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() and one.dtype == other.dtype
    if not same or sizes[0] != sizes[1] or one.stride() != other.stride():
        return False
    apart, steps = abs(int(other.storage_offset()) - int(one.storage_offset())), {}
    strides = [(stride, i) for i, stride in enumerate(one.stride()) if i == axis or one.shape[i] > 1]
    for stride, i in sorted(strides, reverse=True):
        steps[i], apart = divmod(apart, stride)
    return steps.pop(axis) > 0 and apart == 0 and not any(steps.values())


def _name_of_all(model: nn.Module, names: list[str]) -> str:
    """The name of the innermost module that holds them all, of no list of modules unless it is the model's own."""
    common = []
    for parts in zip(*(name.split(".") for name in names)):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    modules = dict(model.named_modules())
    while len(common) > 1 and isinstance(modules.get(".".join(common)), nn.ModuleList | nn.ModuleDict):
        common.pop()
    return ".".join(common) or type(model).__name__
