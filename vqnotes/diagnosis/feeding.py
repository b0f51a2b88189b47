"""Batches as people have them, and how a model is called with one."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vqnotes._checks import dense_tensor
from vqnotes.diagnosis.on_disk import is_mapped, part_of

__all__ = ["BATCH", "Feed", "batches"]

BATCH = 256


class Feed:
    """Batches of data for a model, and the calls with them.

    call, inputs: as for `diagnose_model`. A call with other inputs x than those of the present batch gets the batch
    with x in their place, and all else in it cut to as many examples.
    """

    def __init__(
        self, model: nn.Module, call: Callable[[Any, Any], Any] | None = None, inputs: str | int | None = None
    ):
        if call is not None and not callable(call):
            raise ValueError(f"call must be a function of a model and a batch, got {type(call).__name__}")
        if inputs is not None and call is None:
            raise ValueError(
                f"inputs={inputs!r} names a part of a batch: pass call= too, which takes a batch as it is"
            )
        self.model, self.call, self.inputs = model, call, inputs
        self._first: tuple[Any, Tensor] | None = None
        self._now: tuple[Any, Tensor] | None = None

    def batches(self, data: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
        """As the function of this name; where `call` takes them, batches may be anything that holds tensors."""
        if self.call is None:
            yield from batches(data, self.model)
            return
        for batch in _pieces(data):
            (batch,) = batch if hasattr(data, "shape") else (batch,)  # inputs alone come as they are
            batch = _moved(batch, _like(self.model))
            x = self._inputs(batch)
            self._now = batch, x
            self._first = self._first or self._now
            yield x, _labels(batch[1:], len(x)) if isinstance(batch, list | tuple) else None

    def rewind(self) -> None:
        """Back to the first batch: calls that follow are with this one."""
        self._now = self._first

    def call_with(self, model: nn.Module, x: Tensor) -> Any:
        """Calls this model, or a copy of it, with inputs x in the present batch."""
        if self.call is None:
            return model(x)
        if self._now is None:
            raise ValueError("no batch has come yet")
        batch, own = self._now
        return self.call(model, batch if x is own else _filled(batch, own, x))

    def _inputs(self, batch: Any) -> Tensor:
        """The tensor of a batch that the latents code. ValueError where that is not clear."""
        if self.inputs is not None:
            try:
                found = batch[self.inputs]
            except (KeyError, IndexError, TypeError) as error:
                raise ValueError(
                    f"inputs={self.inputs!r} is no part of a batch, which holds {_parts(batch)}"
                ) from error
        else:
            found = batch[0] if isinstance(batch, list | tuple) and batch else batch
            if isinstance(found, Mapping):
                floats = [one for one in found.values() if isinstance(one, Tensor) and one.is_floating_point()]
                if len(floats) != 1:
                    raise ValueError(
                        f"a batch holds {_parts(batch)}: say with inputs= which of them the latents code, as in "
                        f"inputs={next(iter(found), 'x')!r}"
                    )
                (found,) = floats
        if not isinstance(found, Tensor) or not found.ndim or not len(found):
            raise ValueError(
                f"inputs must be a tensor with an example a row, and not empty; a batch holds {_parts(batch)}"
            )
        return found


def batches(data: Any, model: nn.Module) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of inputs on the model's device, in its float type, each with its labels if there are any.

    data: as for `diagnose_model`. Raises ValueError for what is none of that.
    """
    like = _like(model)
    for batch in _pieces(data):
        x, *others = batch if isinstance(batch, list | tuple) and batch else [batch]
        shape = getattr(x, "shape", None)
        if not shape or not shape[0]:
            found = f"{type(batch).__name__} {tuple(shape or ())}"
            how = "; of other batches, call= says how the model takes them: call=lambda model, batch: model(**batch)"
            raise ValueError(
                f"a batch must be a tensor or array, or (x, y, ...), and not empty, got {found}"
                f"{how if isinstance(batch, Mapping) else ''}"
            )
        x = dense_tensor(x, "a batch")
        yield x.to(like if x.is_floating_point() else like.device), _labels(others, len(x))


def _pieces(data: Any) -> Iterable:
    """The batches that data is made of, whatever they are."""
    if isinstance(data, tuple) or hasattr(data, "shape"):
        given = data if isinstance(data, tuple) else (data,)
        parts = [part if is_mapped(part) else dense_tensor(part, "data") for part in given]
        if not all(part.ndim and len(part) == len(parts[0]) for part in parts):
            raise ValueError(
                f"data must have inputs along their first axis, got {[tuple(one.shape) for one in parts]}"
            )
        return _cut(parts)
    if not isinstance(data, Dataset | Iterable) or isinstance(data, Mapping):
        how = "; one batch that is a dict goes into a list" if isinstance(data, Mapping) else ""
        raise ValueError(
            f"data must be a tensor or array, batches of them, or a Dataset, got {type(data).__name__}{how}"
        )
    return DataLoader(data, BATCH) if isinstance(data, Dataset) else data


def _cut(parts: list) -> Iterator[list[Tensor]]:
    """Batches of what has an example a row: copies, since a model may change its inputs."""
    for first in range(0, len(parts[0]), BATCH):
        rows = slice(first, first + BATCH)
        yield [dense_tensor(part_of(one, rows), "data") if is_mapped(one) else one[rows].clone() for one in parts]


def _like(model: nn.Module) -> Tensor:
    """A tensor of the model's device and float type."""
    return next((one for one in model.state_dict().values() if one.is_floating_point()), torch.empty(0))


def _labels(others: Any, count: int) -> Tensor | None:
    """What stands behind the inputs, if it is one whole number for each."""
    y = dense_tensor(others[0], "labels").cpu() if others and hasattr(others[0], "shape") else None
    countable = y is not None and y.ndim == 1 and len(y) == count and not y.is_floating_point()
    return y if countable else None


def _each(batch: Any, change: Callable[[Any], Any]) -> Any:
    """The batch with each of its tensors and arrays changed."""
    if isinstance(batch, Mapping):
        return {name: _each(one, change) for name, one in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_each(one, change) for one in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(_each(one, change) for one in batch)
    return change(batch) if hasattr(batch, "shape") else batch


def _moved(batch: Any, like: Tensor) -> Any:
    """The batch on a device, and its float tensors in a float type."""

    def move(one: Any) -> Tensor:
        tensor = dense_tensor(one, "a batch")
        return tensor.to(like if tensor.is_floating_point() else like.device)

    return _each(batch, move)


def _filled(batch: Any, own: Tensor, x: Tensor) -> Any:
    """The batch with x instead of its own inputs, and all that is one for each of these cut to as many."""

    def fill(one: Any) -> Any:
        return x if one is own else one[: len(x)] if one.ndim and len(one) == len(own) else one

    return _each(batch, fill)


def _parts(batch: Any) -> str:
    """The tensors of a batch, by name or position."""
    if isinstance(batch, Mapping | list | tuple):
        pairs = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
        shown = [
            f"{name!r}: {tuple(one.shape)}" if hasattr(one, "shape") else f"{name!r}: {_parts(one)}"
            for name, one in pairs
        ]
        return "{" + ", ".join(shown) + "}"
    return f"{type(batch).__name__} {tuple(getattr(batch, 'shape', ()))}"
