"""Listening to a model: its quantisers, and what reaches them. A file for each library says how its own are heard."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vqnotes.diagnosis.listening import gumbel, ours, vector_quantize_pytorch, vector_quantize_pytorch_grids, yours
from vqnotes.diagnosis.listening.calls import Call, Ear, first_argument
from vqnotes.diagnosis.listening.found import Found

__all__ = ["LIBRARIES", "Listener", "quantisers"]

LIBRARIES = (ours, vector_quantize_pytorch, vector_quantize_pytorch_grids, gumbel)
KNOWN = ", ".join(library.KNOWN for library in (*LIBRARIES, yours))


def quantisers(model: nn.Module, quantizers: Any = None) -> dict[str, type[Ear]]:
    """The names of the model's quantisers that are known or described, each with the kind of ear that hears it.

    quantizers: as for `diagnose_model`. Raises ValueError for what is no module, and as `yours.described` does.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    own = {} if quantizers is None else yours.described(model, quantizers)
    modules = {
        name: module
        for name, module in model.named_modules()
        if not any(name == one or name.startswith(f"{one}." if one else "") for one in own)
    }
    known = {name: kind for name, module in modules.items() if (kind := _first(LIBRARIES, module))}
    for name, module in modules.items():  # what holds known quantisers is none of its own
        holds = any(one.startswith(f"{name}." if name else "") for one in known)
        if not holds and (kind := yours.ear_of(module)):
            own[name] = kind
    return {name: (own | known)[name] for name, _ in model.named_modules() if name in own or name in known}


def _first(libraries: Iterable, module: nn.Module) -> type[Ear] | None:
    return next(filter(None, (library.ear_of(module) for library in libraries)), None)


class Listener:
    """Hears all calls of a model's quantisers while it is open, and what enters the modules that hold them.

    Those that no library's file knows, and nobody describes, are found in the first pass, by watching.

    quantizers: as for `diagnose_model`. run: called with a model and a batch, calls the one with the other.
    calls: those of the last pass, in their order. entered: what entered each module that holds quantisers, by name.
    names: of the quantisers, once they are found. not_started: the names of those whose codes were not in place when
    it was made; a pass may place them.
    """

    def __init__(
        self,
        model: nn.Module,
        quantizers: Any = None,
        run: Callable[[nn.Module, Any], Any] = lambda model, x: model(x),
    ):
        self.model, self.run = model, run
        self.calls: list[Call] = []
        self.entered: dict[str, Tensor] = {}
        self.kinds = quantisers(model, quantizers)
        self.names = list(self.kinds)
        self.not_started = {name for name, kind in self.kinds.items() if not kind.started(model.get_submodule(name))}
        self.found = None if self.kinds else Found(model, run, KNOWN)
        self._hooks: list = []

    def __call__(self, x: Any) -> Any:
        """What the model returns on x, while its calls are heard. ValueError if it has no quantiser."""
        if self.found is not None and not self.names:
            self.found.find(x)
            self.names, self.not_started = list(self.found.names.values()), self.found.not_started
            self._hear_holders()
        self.calls.clear()
        self.entered.clear()
        if self.found is None:
            return self.run(self.model, x)
        calls, output = self.found.calls(x)
        self.calls += calls
        return output

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Meanwhile calls are heard; afterwards no hook is left on the model."""
        try:
            self._hear_holders()
            for name, kind in self.kinds.items():
                self._hooks += kind(name, self.model.get_submodule(name), self.calls).hooks()
            yield
        finally:
            for hook in self._hooks:
                hook.remove()
            self._hooks.clear()

    @contextmanager
    def returning(self, names: set[str], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Meanwhile these quantisers return changed codes."""
        if self.found is not None:
            with self.found.returning(names, change):
                yield
            return

        def changed(module: nn.Module, arguments: tuple, output: Any) -> Any:
            if isinstance(output, Tensor):
                return change(output)
            if isinstance(output, Mapping):
                first, *others = output
                kind: Any = type(output)
                return kind({first: change(output[first])} | {name: output[name] for name in others})
            values = change(output[0]), *output[1:]
            return type(output)(*values) if hasattr(output, "_fields") else values

        hooks = [self.model.get_submodule(name).register_forward_hook(changed) for name in names]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hear_holders(self) -> None:
        """Hooks on the modules that hold quantisers."""
        for name in {one[:i] for one in self.names for i, letter in enumerate(one) if letter == "."}:
            holder = self.model.get_submodule(name)
            self._hooks.append(holder.register_forward_pre_hook(self._entering(name), with_kwargs=True))

    def _entering(self, name: str) -> Callable:
        def enter(module: nn.Module, arguments: tuple, named: dict) -> None:
            if arguments or named:
                self.entered[name] = first_argument(arguments, named)

        return enter
