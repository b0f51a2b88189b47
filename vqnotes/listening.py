"""Listening to a model: its quantisers, what reaches them, and how they belong together.

A quantiser is told by what it has, so that no other library need be imported. How quantisers belong together is told
by the tensors of one forward pass and not by names: levels code what the one before them left, parts get pieces of
one tensor.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqnotes.quantizers import VectorQuantizer

KNOWN = (
    "vqnotes' quantisers, and VectorQuantize, SimVQ, ResidualVQ, GroupedResidualVQ, HierarchicalVQ of "
    "vector-quantize-pytorch"
)


@dataclass
class Call:
    """One call of a quantiser: what it was given, what it compared with its codes, and which it chose.

    Latents have their dimensions last, whatever the layout of the call: (heads, batch, places ..., D).
    """

    name: str  # of the quantiser's module
    entered: Tensor  # as the module was called
    returned: Tensor  # in place of it
    channel_axis: int  # of both
    latents: Tensor  # (heads, batch, places ..., D)
    codes: Tensor  # (heads, K, D)
    index: Tensor  # (heads, batch, places ...)
    mask: Tensor | None  # (batch, places ...), True counts
    shared: bool  # whether all heads have one codebook


# ---------------------------------------------------------------- ears


class _Ear:
    """Hears the calls of one quantiser, here one of vqnotes."""

    def __init__(self, name: str, module: nn.Module, heard: list[Call]):
        self.name, self.module, self.heard = name, module, heard

    def hooks(self) -> list:
        return [self.module.register_forward_hook(self.hear, with_kwargs=True)]

    def hear(self, module: nn.Module, arguments: tuple, named: dict, output) -> None:
        entered = first_argument(arguments, named)
        self.keep(entered, output.latents_q, -1, module.prepare(entered), module.codes(), output.index)

    def keep(self, entered: Tensor, returned: Tensor, axis: int, latents, codes, index, mask=None) -> None:
        """One head, unless latents and codes come with heads."""
        if codes.ndim == 2:
            latents, codes, index = latents[None], codes[None], index[None]
        shared = len(codes) < len(latents)
        codes = codes.expand(len(latents), -1, -1)
        tensors = [one.detach() for one in (entered, returned, latents, codes, index)]
        entered, returned, latents, codes, index = tensors
        self.heard.append(Call(self.name, entered, returned, axis, latents, codes, index, mask, shared))


class _SimVQEar(_Ear):
    """SimVQ of vector-quantize-pytorch: codes are a map of frozen ones."""

    def hear(self, module: nn.Module, arguments: tuple, named: dict, output) -> None:
        entered, axis = first_argument(arguments, named), 1 if module.channel_first else -1
        self.keep(entered, output[0], axis, entered.movedim(axis, -1), module.codebook, output[1])


class _VectorQuantizeEar(_Ear):
    """VectorQuantize of vector-quantize-pytorch: its inner codebook gets ([heads,] batch, places, D)."""

    inside = None  # what was heard of the codebook in this call; levels may share it: only the one inside hears

    def hooks(self) -> list:
        return [
            self.module.register_forward_pre_hook(self.enter),
            self.module._codebook.register_forward_hook(self.hear, with_kwargs=True),
            self.module.register_forward_hook(self.leave, with_kwargs=True),
        ]

    def enter(self, module: nn.Module, arguments: tuple) -> None:
        self.inside = []

    def hear(self, module: nn.Module, arguments: tuple, named: dict, output) -> None:
        if self.inside is not None:
            self.inside = [first_argument(arguments, named), named.get("mask"), *output[:2]]

    def leave(self, module: nn.Module, arguments: tuple, named: dict, output) -> None:
        (latents, mask, chosen, index), self.inside = self.inside, None
        codes, entered = module._codebook.embed, first_argument(arguments, named)
        if index.shape != latents.shape[:-1]:
            raise ValueError(f"quantiser {self.name!r} keeps several codes a latent (a beam): not supported")
        if latents.ndim == 3:  # without heads
            latents, chosen, index = latents[None], chosen[None], index[None]
        for own, chosen_of, index_of in zip(codes, chosen, index):
            in_use = own[index_of].to(chosen.dtype)
            if not torch.allclose(in_use, chosen_of, rtol=1e-3, atol=1e-3 * own.abs().max().item()):
                raise ValueError(
                    f"quantiser {self.name!r} computes the codes it uses from its codebook: not supported"
                )
        if module.heads > len(codes):  # all heads in one codebook: (1, batch * heads, places, D)
            latents, index = (one[0].unflatten(0, (-1, module.heads)).movedim(1, 0) for one in (latents, index))
        maps = module.accept_image_fmap or getattr(module, "accept_3d_fmap", False)
        places = entered.shape[2:] if maps else latents.shape[2:3] if entered.ndim > 2 else ()
        latents, index = latents.reshape(*latents.shape[:2], *places, -1), index.reshape(*index.shape[:2], *places)
        axis = 1 if (maps or not module.channel_last) and entered.ndim > 2 else -1
        self.keep(entered, output[0], axis, latents, codes, index, mask)


def first_argument(arguments: tuple, named: dict) -> Tensor:
    """The first argument of a call, by position or by name."""
    return arguments[0] if arguments else next(iter(named.values()))


def quantisers(model: nn.Module) -> dict[str, type[_Ear]]:
    """The names of the model's quantisers, each with the kind of ear that hears it; ValueError if there is none."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, VectorQuantizer):
            found[name] = _Ear
        elif isinstance(getattr(getattr(module, "_codebook", None), "embed", None), Tensor):
            found[name] = _VectorQuantizeEar
        elif hasattr(module, "frozen_codebook") and hasattr(module, "code_transform"):
            found[name] = _SimVQEar
    if not found:
        raise ValueError(f"no quantiser found in {type(model).__name__}; known are {KNOWN}")
    return found


class Listener:
    """Hears all calls of a model's quantisers while it is open, and what enters the modules that hold them.

    calls: those of the last pass, in their order. entered: what entered each module that holds quantisers, by name.
    """

    def __init__(self, model: nn.Module):
        self.model, self.calls, self.entered = model, [], {}
        self.names = list(quantisers(model))

    def __call__(self, x: Tensor):
        """What the model returns on x, while its calls are heard."""
        self.calls.clear()
        self.entered.clear()
        return self.model(x)

    @contextmanager
    def listening(self) -> Iterator[None]:
        hooks = []
        holding = {name[:i] for name in self.names for i, letter in enumerate(name) if letter == "."}
        try:
            for name in holding:
                holder = self.model.get_submodule(name)
                hooks.append(holder.register_forward_pre_hook(self._entering(name), with_kwargs=True))
            for name, kind in quantisers(self.model).items():
                hooks += kind(name, self.model.get_submodule(name), self.calls).hooks()
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _entering(self, name: str):
        def enter(module: nn.Module, arguments: tuple, named: dict) -> None:
            if arguments or named:
                self.entered[name] = first_argument(arguments, named)

        return enter


# ---------------------------------------------------------------- how calls belong together


@dataclass(frozen=True)
class Level:
    """One codebook in a model: the call it is heard in (its number within a pass), and the head of that call."""

    name: str
    call: int
    head: int


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
        return [Level(f"{name}[head {head}]" if several else name, number, head) for head in heads]

    stacks, found = _stacks(calls), []
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
        for together in [list(heads)] if calls[own[0]].shared else [[head] for head in heads]:
            same = [level for number in own for level in levels(number, together)]
            of_head = f"[head {together[0]}]" if len(together) < len(heads) else ""
            found.append(
                Unit((name or type(model).__name__) + of_head, tuple((level,) for level in same), loose=True)
            )
    return sorted(found, key=lambda unit: unit.levels[0].call)


def _stacks(calls: list[Call]) -> list[list[int]]:
    """Numbers of the calls, each list levels one after another: what reaches a level is what the last one left."""
    stacks = []
    for number, call in enumerate(calls):
        before = (one for one in reversed(stacks) if _left(calls[one[-1]], call))
        stack = next(before, None)
        if stack is None:
            stacks.append([number])
        else:
            stack.append(number)
    return stacks


def _left(call: Call, later: Call) -> bool:
    """Whether what the first call left of its latents, and not these themselves, is what the later one was given."""
    x, y = call.entered, later.entered
    alike = [(len(one.latents), one.entered.shape, one.entered.dtype, one.entered.device) for one in (call, later)]
    if alike[0] != alike[1] or call.returned.shape != x.shape:
        return False
    rounding = 64 * torch.finfo(x.dtype).eps * x.abs().max().item()
    off_by = [(y - expected).abs().max().item() for expected in (x - call.returned, x)]
    return off_by[0] <= rounding < off_by[1]


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
    apart, steps = abs(other.storage_offset() - one.storage_offset()), {}
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
    while len(common) > 1 and isinstance(model.get_submodule(".".join(common)), nn.ModuleList | nn.ModuleDict):
        common.pop()
    return ".".join(common) or type(model).__name__


# ---------------------------------------------------------------- by example


def by_example(call: Call, batch: int) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """The call's latents (heads, batch, places ..., D), index and mask, one row an example; None if they are not.

    Latents of all places in a single row, as (batch * places, D), count as example after example.
    """
    count = math.prod(call.latents.shape[1:-1])
    if call.latents.ndim > 2 and call.latents.shape[1] == batch:
        return call.latents, call.index, call.mask
    if count % batch:
        return None
    places = (count // batch,) if count > batch else ()
    latents = call.latents.reshape(len(call.latents), batch, *places, -1)
    mask = None if call.mask is None else call.mask.reshape(batch, *places)
    return latents, call.index.reshape(latents.shape[:-1]), mask
