"""Listening to a model: its quantisers, and what reaches them. A file for each library says how its own are heard."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vqnotes.diagnosis.listening import ours, vector_quantize_pytorch
from vqnotes.diagnosis.listening.calls import Call, Ear, first_argument

__all__ = ["KNOWN", "LIBRARIES", "Listener", "quantisers"]

LIBRARIES = (ours, vector_quantize_pytorch)
KNOWN = ", and ".join(library.KNOWN for library in LIBRARIES)


def quantisers(model: nn.Module) -> dict[str, type[Ear]]:
    """The names of the model's quantisers, each with the kind of ear that hears it; ValueError if there is none."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    kinds = {name: [library.ear_of(module) for library in LIBRARIES] for name, module in model.named_modules()}
    found = {name: next(filter(None, kind)) for name, kind in kinds.items() if any(kind)}
    if not found:
        raise ValueError(
            f"no quantiser found in {type(model).__name__}; known are {KNOWN}. Of any other, take latents and "
            f"codes as they are compared, and diagnose by hand: diagnose(latents, codebook, inputs=...)"
        )
    return found


class Listener:
    """Hears all calls of a model's quantisers while it is open, and what enters the modules that hold them.

    calls: those of the last pass, in their order. entered: what entered each module that holds quantisers, by name.
    not_started: the names of the quantisers whose codes were not in place when it was made; a pass may place them.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.calls: list[Call] = []
        self.entered: dict[str, Tensor] = {}
        kinds = quantisers(model)
        self.names = list(kinds)
        self.not_started = {name for name, kind in kinds.items() if not kind.started(model.get_submodule(name))}

    def __call__(self, x: Tensor) -> Any:
        """What the model returns on x, while its calls are heard."""
        self.calls.clear()
        self.entered.clear()
        return self.model(x)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Meanwhile calls are heard; afterwards no hook is left on the model."""
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

    def _entering(self, name: str) -> Callable:
        def enter(module: nn.Module, arguments: tuple, named: dict) -> None:
            if arguments or named:
                self.entered[name] = first_argument(arguments, named)

        return enter
