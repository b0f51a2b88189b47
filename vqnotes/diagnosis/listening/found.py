"""Quantisers that no library's file knows, found by watching: which tables' rows come out, and of what latents.

Codes are those that came out. Latents are what was compared with the table in the same pass, and the share of the
indices that are the nearest code of their latents shows whether they were read rightly.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqnotes.diagnosis.listening.calls import TEN_LINES, Call, axis_of, is_started, without_calls
from vqnotes.diagnosis.listening.compared import AGREES, Reading, arranged, reading_of
from vqnotes.diagnosis.listening.tracing import Lookup, Source, Trace, joined, names_of, tensors_in
from vqnotes.diagnosis.observed import Kind

__all__ = ["Found"]

MOST_PASSES = 3  # until no new table comes out: some models store what they compute of a table in the first
Key = frozenset[Source]


@dataclass
class _Heard:
    """A lookup with its latents; around: what entered the quantiser's module and was returned in place of it.

    before: how many calls of known quantisers had been heard.
    """

    key: Key
    lookup: Lookup
    reading: Reading
    before: int
    around: tuple[Tensor, Tensor] | None = None


class Found:
    """The tables of a model that quantise, and the calls of them in a pass.

    run: calls a model with a batch. known: words for the quantisers that were looked for before. beside: those that
    were found, whose tables do not count. count: how many of their calls have been heard in this pass.
    names: of their quantisers, by table. change: by name, what the rows are changed by before they come out.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[nn.Module, Any], Any],
        known: str,
        beside: Iterable[nn.Module] = (),
        count: Callable[[], int] = lambda: 0,
    ):
        self.model, self.run, self.known, self.count = model, run, known, count
        self.apart = names_of({one for each in beside for one in (*each.parameters(), *each.buffers())}, model)
        self.tables: dict[Key, tuple[int, int]] = {}
        self.names: dict[Key, str] = {}
        self.change: dict[str, Callable[[Tensor], Tensor]] = {}
        self.brought: dict[str, tuple[int, ...]] = {}
        self.started = {path: is_started(module) for path, module in model.named_modules()}

    def find(self, x: Any) -> None:
        """Runs the model on a batch and finds its tables. ValueError, with what came out, if none quantises."""
        heard = self._passes(x)
        read = {one.key for one in heard}
        if not read:
            raise ValueError(self._nothing())
        self._keep(read)

    def find_beside(self, x: Any) -> list[str]:
        """As `find`, beside quantisers that are known. Only those are kept whose indices are the nearest codes.

        Returns what is to be said of others, which may be quantisers or not. A model that cannot be watched has none.
        """
        try:
            heard = self._passes(x)
        except Exception as error:  # whatever a model does, those that are known are heard without this
            return [f"other quantisers were not looked for by watching, {type(error).__name__}: {error}"]
        nearest = {one.key for one in heard if one.reading.share >= AGREES}
        others = {one.key: one for one in heard if one.key not in nearest}
        said = [
            f"not judged: rows of {joined(key)} {self.tables[key]} come out, too, by indices that the inputs decide, "
            f"but only {one.reading.share:.0%} of these are the nearest code of what was compared with it; "
            f"quantizers= may say how it works, if that is a quantiser"
            for key, one in others.items()
        ]
        self._keep(nearest)
        return said

    def _passes(self, x: Any) -> list[_Heard]:
        """What is heard in a pass, once no new table comes out."""
        for _ in range(MOST_PASSES):
            before = len(self.tables)
            heard, _ = self._heard(self.model, x, self._note)
            if len(self.tables) == before:
                break
        return heard

    def _keep(self, read: set[Key]) -> None:
        self.tables = {key: size for key, size in self.tables.items() if key in read}
        self.names = _named(self.model, list(self.tables))

    @property
    def not_started(self) -> set[str]:
        """The names of those whose codes were not in place when the model came."""
        owners = {self.names[key]: {_owner(one.name) for one in key} for key in self.tables}
        return {name for name, paths in owners.items() if not all(self.started.get(path, True) for path in paths)}

    def calls(self, x: Any) -> tuple[list[tuple[int, Call]], Any]:
        """The calls in a pass over a batch, in their order, and what the model returned.

        Each comes with the number of calls of known quantisers before it.
        """
        heard, output = self._heard(self.model, x)
        return [(one.before, self._call(one)) for one in heard], output

    def entering(self, model: nn.Module, x: Any) -> tuple[dict[str, Tensor], Any]:
        """What is compared first in each quantiser of a copy of the model, with its gradient, and its output."""
        heard, output = self._heard(model, x)
        found: dict[str, Tensor] = {}
        for one in heard:
            found.setdefault(self.names[one.key], one.reading.tensor)
        return found, output

    @contextmanager
    def returning(self, names: set[str], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Meanwhile these quantisers return changed codes."""
        self.change = dict.fromkeys(names, change)
        try:
            yield
        finally:
            self.change = {}

    # ------------------------------------------------------------ one pass

    def _note(self, lookup: Lookup) -> None:
        """A lookup in a table that is not known yet."""
        if not self.apart.isdisjoint(one.name for one in lookup.sources):
            return
        if lookup.brought:
            self.brought[joined(lookup.sources)] = tuple(lookup.table.shape)
        else:
            self.tables.setdefault(lookup.sources, (lookup.table.shape[0], lookup.table.shape[1]))

    def _heard(
        self, model: nn.Module, x: Any, note: Callable[[Lookup], None] | None = None
    ) -> tuple[list[_Heard], Any]:
        """The lookups of a pass that have latents, and the model's output."""
        heard: list[_Heard] = []

        def looked_up(lookup: Lookup) -> Tensor | None:
            if note:
                note(lookup)
            if lookup.brought or lookup.sources not in trace.compared:
                return None
            earlier = [(one.lookup, one.reading) for one in heard if one.key == lookup.sources]
            reading = reading_of(lookup, trace, earlier)
            if reading is not None:
                heard.append(_Heard(lookup.sources, lookup, reading, self.count()))
            change = self.change.get(self.names.get(lookup.sources, ""))
            return change(lookup.rows) if change else None

        trace = Trace(model, x, dict(self.tables), looked_up)
        modules = [one for one in model.modules() if not isinstance(one, torch.jit.ScriptModule)]  # has no such hooks
        hooks = [module.register_forward_pre_hook(trace.enter, with_kwargs=True) for module in modules]
        hooks += self._around(model, heard)
        try:
            with trace:
                output = self.run(model, x)
        finally:
            for hook in hooks:
                hook.remove()
        return heard, output

    def _around(self, model: nn.Module, heard: list[_Heard]) -> list:
        """Hooks that keep what enters a quantiser's module, and what it returns in place of it."""
        hooks: list = []
        modules = dict(model.named_modules())
        for name in {name for name in self.names.values() if name and name in modules}:
            open_calls: list[int] = []

            def enter(module: nn.Module, arguments: tuple, open_calls: list[int] = open_calls) -> None:
                open_calls.append(len(heard))

            def leave(
                module: nn.Module,
                arguments: tuple,
                named: dict,
                output: Any,
                name: str = name,
                open_calls: list[int] = open_calls,
            ) -> None:
                inside = heard[open_calls.pop() :]
                given = next((one for one in tensors_in((arguments, named)) if one.is_floating_point()), None)
                back = [one for one in tensors_in(output) if given is not None and one.shape == given.shape]
                if len(inside) == 1 and self.names.get(inside[0].key) == name and given is not None and back:
                    inside[0].around = given, back[0]

            hooks.append(modules[name].register_forward_pre_hook(enter))
            hooks.append(modules[name].register_forward_hook(leave, with_kwargs=True))
        return hooks

    # ------------------------------------------------------------ a call

    def _call(self, one: _Heard) -> Call:
        """A lookup as the call of a quantiser."""
        reading, lookup, name = one.reading, one.lookup, self.names[one.key]
        dim, rows = reading.rows.shape[1], lookup.rows.reshape(reading.rows.shape)
        places = _places(one)
        latents, codes = reading.rows, reading.codes
        if reading.by_direction:
            latents, codes = F.normalize(latents, dim=-1), F.normalize(codes, dim=-1)
        entered, returned, axis = latents.reshape(*places, dim), rows.reshape(*places, dim), -1
        if not reading.by_direction:  # as it was before it was copied, which shows what it is a piece of
            entered = reading.tensor.movedim(reading.axis, -1).reshape(entered.shape)
        if one.around is not None:
            (entered, returned), axis = one.around, axis_of(one.around[0], places, dim)
        tensors = [part.detach() for part in (entered, returned, latents, codes, lookup.index)]
        entered, returned, latents, codes, index = tensors
        return Call(
            name,
            entered,
            returned,
            axis,
            latents.reshape(1, *places, dim),
            codes[None],
            index.reshape(1, *places).long(),
            None,
            False,
            self._kind(one.key),
            self._said(one, places),
        )

    def _said(self, one: _Heard, places: tuple) -> str:
        """What was found, and how."""
        reading, (count, dim) = one.reading, self.tables[one.key]
        if reading.share >= AGREES:
            how = f"{reading.share:.0%} of the indices are the code that is nearest"
        else:
            how = f"but only {reading.share:.0%} of the indices are the nearest code"
        return (
            f"found by watching a pass: rows of {joined(one.key)} ({count}, {dim}) come out, by indices that the "
            f"inputs decide; latents are the {places} x {dim} numbers that were compared with it"
            f"{', both taken at length 1,' if reading.by_direction else ','} {how}"
        )

    def _kind(self, key: Key) -> Kind:
        """How the codes come about: a buffer, or a table with a count of uses beside it, is a moving average."""
        names = [one.name for one in key]
        buffers, parameters = dict(self.model.named_buffers()), dict(self.model.named_parameters())
        count = self.tables[key][0]
        owners = {_owner(name) for name in names}
        around = {owner.rpartition(".")[0] for owner in owners} | owners
        beside = [one for name, one in buffers.items() if _owner(name) in around and name not in names]
        if all(name in buffers for name in names) or any(tuple(one.shape) == (count,) for one in beside):
            return Kind.EMA
        if len(names) > 1:
            return Kind.COMPUTED
        return Kind.LEARNT if names[0] in parameters and parameters[names[0]].requires_grad else Kind.UNKNOWN

    def _nothing(self) -> str:
        """Why nothing was found, and what to do."""
        seen = [
            f"rows of {joined(key)} {size} come out by indices that the inputs decide, but nothing of as many "
            f"latents of {size[1]} dimensions was compared with it"
            for key, size in self.tables.items()
        ]
        seen += [
            f"rows of {name} {size} come out by indices that the batch brings" for name, size in self.brought.items()
        ]
        if traced := without_calls(self.model):
            came = "; ".join(seen) or "no row of a table came out"
            return f"no quantiser found in {type(self.model).__name__}: {traced}. In a pass, {came}"
        return (
            f"no quantiser found in {type(self.model).__name__}: none of those that are known ({self.known}); and "
            f"none by watching a pass for a table (K, D) of the model's own whose rows come out by indices that the "
            f"inputs decide, and for what was compared with it: {'; '.join(seen) or 'no such table'}. {TEN_LINES}"
        )


# ---------------------------------------------------------------- places and names


def _places(one: _Heard) -> tuple:
    """The shape of the latents without D: as rows came out, as they were compared, or as rows were put later."""
    lookup, reading = one.lookup, one.reading
    count, dim = reading.rows.shape
    if lookup.rows.ndim > 2:
        return tuple(lookup.rows.shape[:-1])
    if reading.tensor.ndim > 2:
        return tuple(reading.tensor.movedim(reading.axis, -1).shape[:-1])
    flat = lookup.rows.reshape(count, dim)
    shaped = [*lookup.shaped, *(one.around[1:] if one.around else [])]
    for tensor in shaped:
        for axis, _ in arranged(tensor, count, dim, flat) if tensor.ndim > 2 else []:
            return tuple(tensor.movedim(axis, -1).shape[:-1])
    return (count,)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _named(model: nn.Module, keys: list[Key]) -> dict[Key, str]:
    """The modules whose tables they are, "" for the model itself; the tables' own names where one has several."""
    modules = dict(model.named_modules())
    owners = {}
    for key in keys:
        parts = [_owner(one.name).split(".") for one in key]
        shared = [one[0] for one in zip(*parts) if len(set(one)) == 1] if len(parts) > 1 else parts[0]
        path = ".".join(shared)
        above = _owner(path)
        if isinstance(modules.get(path), nn.Embedding) and not isinstance(
            modules[above], nn.ModuleList | nn.ModuleDict
        ):
            path = above if path else path
        owners[key] = path
    return {
        key: path if list(owners.values()).count(path) == 1 else _own_name(key, keys) for key, path in owners.items()
    }


def _own_name(key: Key, keys: list[Key]) -> str:
    """The name of the tensor that a table is made of, with its number if others are cut from the same."""
    first = min(key)
    cuts = sorted({min(other).offset for other in keys if min(other).name == first.name})
    return first.name.removesuffix(".weight") + (f"[{cuts.index(first.offset)}]" if len(cuts) > 1 else "")
