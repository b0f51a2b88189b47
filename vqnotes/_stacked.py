"""Many modules as one, so that one large operation does the work of many small ones."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn, vmap
from torch.func import functional_call, stack_module_state


class Stacked:
    """R modules of one structure, called at once by `torch.vmap`: each parameter and buffer has a leading axis R.

    The tensors of each module become views of its row. So the modules are up to date at any time, and what is written
    into one of them counts; `unstack` makes their tensors their own again.
    parameters: by name, for an optimiser. tensors: they and the buffers, by name.
    """

    def __init__(self, modules: Sequence[nn.Module]):
        self.parameters, buffers = stack_module_state(list(modules))
        self.first, self.tensors = modules[0], self.parameters | buffers
        self._own = [dict(one.named_parameters()) | dict(one.named_buffers()) for one in modules]
        for row, tensors in enumerate(self._own):
            for name, tensor in tensors.items():
                tensor.data = self.tensors[name].data[row]

    def __call__(self, batches: Tensor, option: object) -> Any:
        """Module r of batches[r], for all r: batches (R, B, ...); each result of `forward` gets a leading axis R."""
        self.freeze_as_first()
        return self.part("", batches, option)

    def freeze_as_first(self) -> None:
        """Lets those parameters stand still that do so now in the first module."""
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(self._own[0][name].requires_grad)

    def part(self, name: str, *arguments: Any) -> Any:
        """The same of a part, as "model.encoder". The first argument has one for each module, others are for all."""
        module = self.first.get_submodule(name)

        def call(tensors: dict, batch: Tensor, *options: Any) -> Any:
            return functional_call(module, tensors, (batch, *options))

        start = f"{name}." if name else ""
        own = {key[len(start) :]: tensor for key, tensor in self.tensors.items() if key.startswith(start)}
        return vmap(call, in_dims=(0, 0, *[None] * (len(arguments) - 1)), randomness="different")(own, *arguments)

    def has_its_tensors(self) -> bool:
        """Whether the first module has the tensors that were stacked, each under one name, and no others."""
        first = self.first
        now = chain(first.named_parameters(remove_duplicate=False), first.named_buffers(remove_duplicate=False))
        found = dict(now)
        return found.keys() == self._own[0].keys() and all(found[name] is one for name, one in self._own[0].items())

    def finite(self) -> list[bool]:
        """Of each module, whether all its numbers are finite."""
        return [all(bool(tensor.isfinite().all()) for tensor in tensors.values()) for tensors in self._own]

    def unstack(self) -> None:
        """Ends it: each module's tensors are its own, with the numbers that they have now."""
        for tensors in self._own:
            for tensor in tensors.values():
                tensor.data = tensor.data.clone()


def check_alike(modules: Sequence[nn.Module], seeds: list[int]) -> None:
    """ValueError unless the state of all modules has the same names, shapes and types."""
    layouts = [{name: (tuple(t.shape), t.dtype) for name, t in module.state_dict().items()} for module in modules]
    for seed, layout in zip(seeds, layouts):
        if layout != layouts[0]:
            differs = sorted(dict(layout.items() ^ layouts[0].items()))[0]
            raise ValueError(
                f"build must return models of the same shapes: {differs.removeprefix('model.')} is "
                f"{layouts[0].get(differs)} for seed {seeds[0]} and {layout.get(differs)} for seed {seed}"
            )
