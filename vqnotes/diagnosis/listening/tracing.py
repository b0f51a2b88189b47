"""One pass of a model, traced operation by operation: which tables' rows come out, and what was compared with them.

A table is made of a model's own numbers alone. An index is computed if values of the inputs decide it, as in a
quantiser, and brought if the batch holds it, as tokens are.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Compared", "Lookup", "Source", "Trace", "joined", "names_of", "tensors_in"]

MOST_BEFORE, MOST_SHAPES = 16, 4  # tensors that a tensor was made of, and shapes of rows, which are remembered
aten: Any = torch.ops.aten
ALIKE = {aten.clone, aten._to_copy, aten.mul, aten.div, aten.neg, aten._unsafe_view}  # but for type and a factor


class Source(NamedTuple):
    """A tensor of the model that a table was made of: its name, and where in it the table begins."""

    name: str
    offset: int


@dataclass(frozen=True)
class _State:
    """Where a tensor comes from. sources: those of a tensor made of the model's numbers alone, else None."""

    sources: frozenset[Source] | None
    brought: bool = False  # the batch holds it: no number of the model, and no other value, went into it


CONSTANT, COMPUTED, BROUGHT = _State(frozenset()), _State(None), _State(None, brought=True)


@dataclass(frozen=True)
class Lookup:
    """Rows that came out of a table (K, D): table[index]."""

    sources: frozenset[Source]
    table: Tensor
    index: Tensor  # of any shape
    rows: Tensor  # (*index.shape, D)
    brought: bool
    shaped: list[Tensor]  # is filled later: the same numbers in other shapes


@dataclass(frozen=True, eq=False)
class Compared:
    """A tensor that met a table (K, D) or its transpose, or what was made of it alone, in one operation."""

    tensors: list[Tensor]  # it, and those before it that are the same but for shape, type and a factor
    table: Tensor


class Trace(TorchDispatchMode):
    """Meanwhile it hears each operation of a model that runs.

    tables: sources and (K, D) of those whose comparisons are kept. looked_up: is called with each lookup whose index
    is not a constant, and returns what comes out instead of the rows, None for the rows themselves.
    compared: for each table what met it. entered: the last tensors that entered a module, if `enter` is a hook.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        tables: dict[frozenset[Source], tuple[int, int]],
        looked_up: Callable[[Lookup], Tensor | None],
    ):
        super().__init__()  # type: ignore[no-untyped-call]
        self.tables, self.looked_up = tables, looked_up
        self.compared: dict[frozenset[Source], list[Compared]] = {sources: [] for sources in tables}
        self.own = {_place(one): (name, one) for name, one in own_tensors(model)}
        self.states: dict[int, tuple[StorageWeakRef, _State]] = {}
        self.before: Any = WeakTensorKeyDictionary()
        self.shaped: Any = WeakTensorKeyDictionary()
        self.entered: list[Any] = []
        for one in tensors_in(batch):
            self._mark(one, COMPUTED if one.is_floating_point() else BROUGHT)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # there, what is made of several operations comes as one
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        given = [(one, self.state(one)) for one in tensors_in((args, kwargs))]
        out = func(*args, **kwargs)
        made = self._made(given)
        lookup = self._lookup(func.overloadpacket, args, out)
        if lookup is not None:
            instead = self.looked_up(lookup)
            if instead is not None:
                out = instead.reshape(out.shape).to(out.dtype)
            self.shaped[out] = lookup.shaped
        else:
            self._compare(given)
        for one in tensors_in(out):
            if _place(one) not in self.own:
                self._mark(one, made)
            if made.sources is None:
                self._remember(func.overloadpacket, one, given)
        return out

    def state(self, tensor: Tensor) -> _State:
        """Where a tensor comes from. What is not known was computed."""
        place = _place(tensor)
        if place in self.own:
            name, kept = self.own[place]
            whole = tensor.numel() == kept.numel()
            return _State(frozenset([Source(name, 0 if whole else int(tensor.storage_offset()))]))
        return self.states[place][1] if place in self.states else COMPUTED

    def _made(self, given: list[tuple[Tensor, _State]]) -> _State:
        """The state of what an operation makes of tensors."""
        states = [state for _, state in given]
        if all(state.sources is not None for state in states):
            return _State(frozenset().union(*(state.sources for state in states if state.sources)))
        with_own = any(one.is_floating_point() and state.sources for one, state in given)
        alone = all(state.brought for state in states if state.sources is None)
        return BROUGHT if alone and not with_own else COMPUTED

    def _mark(self, tensor: Tensor, state: _State) -> None:
        storage = _storage(tensor)
        if storage is not None:  # the weak reference keeps its place from being given to another
            self.states[storage._cdata] = StorageWeakRef(storage), state

    def _remember(self, operation: Any, out: Tensor, given: list[tuple[Tensor, _State]]) -> None:
        """Of what this tensor was made, if that is one tensor, the same but for shape, type and a factor."""
        made_of = [one for one, state in given if state.sources is None]
        if len(made_of) != 1 or made_of[0] is out or made_of[0].numel() != out.numel():
            return
        (one,) = made_of
        if _place(one) != _place(out) and (operation not in ALIKE or any(state.sources for _, state in given)):
            return
        self.before[out] = [weakref.ref(one), *self.before.get(one, [])][:MOST_BEFORE]
        for rows in (ref() for ref in self.before[out]):
            if rows is not None and rows in self.shaped and len(self.shaped[rows]) < MOST_SHAPES:
                self.shaped[rows].append(out)

    def history(self, tensor: Tensor) -> list[Tensor]:
        """The tensor, and those that it was made of and that are the same but for shape, type and a factor."""
        found = [ref() for ref in self.before.get(tensor, [])]
        return [tensor, *(one for one in found if one is not None)]

    def _compare(self, given: list[tuple[Tensor, _State]]) -> None:
        """Keeps what meets a table."""
        own = [(one, state.sources) for one, state in given if state.sources and one.is_floating_point()]
        met = [one for one, state in given if state.sources is None and one.is_floating_point()]
        for table, sources in own if met else []:
            for key, (count, dim) in self.tables.items():
                if not sources.isdisjoint(key) and (thin := _thin(table, count, dim)) is not None:
                    fitting = [one for one in met if dim in one.shape and not self.state(one).brought]
                    self.compared[key] += [Compared(self.history(one), thin) for one in fitting]

    def _lookup(self, operation: Any, args: tuple, out: Any) -> Lookup | None:
        """What rows this operation took out of which table, by an index that is no constant."""
        read = READERS.get(operation)
        found = read(args, self) if read else None
        if found is None:
            return None
        table, index = found
        own, chosen = self.state(table), self.state(index)
        if not (own.sources and table.is_floating_point() and table.ndim == 2) or chosen.sources is not None:
            return None
        if index.is_floating_point():  # one-hot rows, (..., K)
            index = index.argmax(-1)
        if out.numel() != index.numel() * table.shape[1] or len(table) < 2:
            return None
        rows = out if out.shape[-1] == table.shape[1] else out.mT
        return Lookup(own.sources, table, index, rows.reshape(*index.shape, -1), chosen.brought, [])

    def enter(self, module: nn.Module, arguments: tuple, named: dict) -> None:
        """A forward pre-hook of all modules: what enters them may be latents."""
        some = [weakref.ref(one) for one in tensors_in((arguments, named)) if one.is_floating_point()]
        self.entered = [*self.entered, *some][-MOST_BEFORE:]


def own_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The model's parameters, buffers, and tensors that are plain attributes, by name."""
    for path, module in model.named_modules():
        for name, one in [*vars(module).items(), *module._parameters.items(), *module._buffers.items()]:
            if isinstance(one, Tensor):
                yield f"{path}.{name}" if path else name, one


def names_of(tensors: Iterable[Tensor], model: nn.Module) -> set[str]:
    """The names that a model has for these tensors, or for others with the same numbers in the same place."""
    places = {_place(one) for one in tensors}
    return {name for name, one in own_tensors(model) if _place(one) in places}


def joined(sources: frozenset[Source]) -> str:
    """Their names, for a message."""
    return " and ".join(sorted(f"{one.name}{f' from number {one.offset}' if one.offset else ''}" for one in sources))


def tensors_in(given: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, dict):
        yield from tensors_in(tuple(given.values()))
    elif isinstance(given, list | tuple):
        for one in given:
            yield from tensors_in(one)


def _storage(tensor: Tensor) -> Any:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # a sparse tensor has none
        return None


def _thin(table: Tensor, count: int, dim: int) -> Tensor | None:
    """A table (K, D) or (D, K), perhaps repeated along other axes, as (K, D); None if it is no such table."""
    while table.ndim > 2 and table.numel() > count * dim:
        table = table[0]
    sides = [side for side in table.shape if side > 1] if count > 1 and dim > 1 else [*table.shape]
    if table.numel() != count * dim or (table.ndim > 2 and len(sides) > 2):
        return None
    table = table.reshape(sides) if table.ndim > 2 and len(sides) == 2 else table
    if tuple(table.shape) == (count, dim):
        return table
    return table.mT if tuple(table.shape) == (dim, count) else None


def _place(tensor: Tensor) -> int:
    storage = _storage(tensor)
    return 0 if storage is None else int(storage._cdata)


# ---------------------------------------------------------------- how rows are taken out of a table


def _whole(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32)


def _by_embedding(args: tuple, trace: Trace) -> tuple[Tensor, Tensor] | None:
    return args[0], args[1]


def _by_index(args: tuple, trace: Trace) -> tuple[Tensor, Tensor] | None:
    """table[index], or table[0, index] of a table (1, K, D)."""
    table, chosen = args[0], args[1]
    if table.ndim == 3 and len(table) == 1 and len(chosen) == 2:
        table, chosen = table[0], chosen[1:]
    return (table, chosen[0]) if len(chosen) == 1 and _whole(chosen[0]) else None


def _by_index_select(args: tuple, trace: Trace) -> tuple[Tensor, Tensor] | None:
    table, axis, index = args
    if table.ndim == 3 and len(table) == 1 and axis % 3:
        table, axis = table[0], axis % 3 - 1
    return (table.mT if axis % 2 else table, index) if table.ndim == 2 else None


def _by_gather(args: tuple, trace: Trace) -> tuple[Tensor, Tensor] | None:
    """Rows of a table (..., K, D) that may be one and the same along the first axes."""
    table, axis, index = args[:3]
    if table.ndim < 2 or axis % table.ndim != table.ndim - 2 or index.shape[-1] != table.shape[-1]:
        return None
    if any(size > 1 and step for size, step in zip(table.shape[:-2], table.stride())):
        return None
    return table[(0,) * (table.ndim - 2)], index[..., 0]


def _by_product(args: tuple, trace: Trace) -> tuple[Tensor, Tensor] | None:
    """One-hot rows (..., K) times a table."""
    chosen, table = args[-2:] if len(args) > 2 else args
    if table.ndim == 3 and (len(table) == 1 or table.stride(0) == 0):
        table = table[0]
    if table.ndim != 2 or not trace.state(table).sources or trace.state(chosen).sources is not None:
        return None
    some = chosen.reshape(-1, chosen.shape[-1])
    one_hot = all(bool(((x == 0) | (x == 1)).all() and (x.sum(-1) == 1).all()) for x in (some[:1], some))
    return (table, chosen) if one_hot else None


READERS: dict[Any, Callable] = {
    aten.embedding: _by_embedding,
    aten.index: _by_index,
    aten.index_select: _by_index_select,
    aten.gather: _by_gather,
    aten.mm: _by_product,
    aten.bmm: _by_product,
}
