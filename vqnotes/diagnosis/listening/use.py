"""Whether a model's quantisers have been in use in training: what a watch must know before it judges their codes."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from vqnotes.diagnosis.listening import quantisers

__all__ = ["Use"]


class Use:
    """Which quantisers have been used since it was made: called in training mode, or any number in them has moved.

    Neither sign is enough alone: codes that nobody trains do not move, and a call by another way than the module's,
    or of a copy of the model, is not heard.
    models: by name. They are trained alike, so that a call in one of them counts for all: `fit_many` calls only one.
    names: of each model's quantisers; None: those that are known. One that is no module of its own counts as used
    with the model, "".
    """

    def __init__(self, models: Mapping[str, nn.Module], names: Mapping[str, Iterable[str]] | None = None):
        self._called: set[str] = set()
        self._waiting: dict[str, dict[str, tuple[_Hook, dict[str, Tensor]]]] = {}
        for run, model in models.items():
            modules = {name: model.get_submodule(name) for name in (names[run] if names else quantisers(model))}
            self._waiting[run] = {
                name: (_Hook(module, name, self._called), _numbers(module)) for name, module in modules.items()
            }

    def unused(self, run: str, model: nn.Module) -> set[str]:
        """The names of those that have not been used so far, in the model of this name."""
        waiting, modules = self._waiting.get(run, {}), dict(model.named_modules())
        for name, (hook, before) in list(waiting.items()):
            if name in self._called or name not in modules or _moved(before, _numbers(modules[name])):
                hook.handle.remove()
                del waiting[name]
        return set(waiting)


class _Hook:
    """Notes the first call in training mode, and goes. A class, so that a model can be copied and stored with it."""

    def __init__(self, module: nn.Module, name: str, called: set[str]):
        self.name, self.called = name, called
        self.handle = module.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, arguments: Any) -> None:
        if not torch.compiler.is_compiling() and module.training:  # a compiled step must not depend on it
            self.called.add(self.name)
            self.handle.remove()


def _numbers(module: nn.Module) -> dict[str, Tensor]:
    """A copy of its parameters and buffers."""
    numbers = chain(module.named_parameters(), module.named_buffers())
    return {name: one.detach().cpu().clone() for name, one in numbers}


def _moved(before: dict[str, Tensor], now: dict[str, Tensor]) -> bool:
    return before.keys() != now.keys() or any(
        one.dtype != now[name].dtype or not torch.equal(one, now[name]) for name, one in before.items()
    )
