"""Many modules as one, so that one large operation does the work of many small ones."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn, vmap
from torch.func import functional_call, stack_module_state


class Stacked:
    """R modules of one structure, called at once by `torch.vmap`: each parameter and buffer has a leading axis R.

    The tensors of each module become views of its row. So the modules are up to date at any time, and what is written
    into one of them counts; `unstack` makes their tensors their own again.
    parameters: by name, for an optimiser. Which of them stand still is read at each call from the first module.
    """

    def __init__(self, modules: Sequence[nn.Module]):
        self.parameters, buffers = stack_module_state(list(modules))
        self._own = [dict(one.named_parameters()) | dict(one.named_buffers()) for one in modules]
        for row, tensors in enumerate(self._own):
            for name, tensor in tensors.items():
                tensor.data = (self.parameters | buffers)[name].data[row]

        def call(parameters: dict, buffers: dict, batch: Tensor, option: object) -> Any:
            return functional_call(modules[0], (parameters, buffers), (batch, option))

        self._buffers, self._call = buffers, vmap(call, in_dims=(0, 0, 0, None), randomness="different")

    def __call__(self, batches: Tensor, option: object) -> Any:
        """Module r of batches[r], for all r: batches (R, B, ...); each result of `forward` gets a leading axis R."""
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(self._own[0][name].requires_grad)
        return self._call(self.parameters, self._buffers, batches, option)

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
