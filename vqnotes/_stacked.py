"""Many modules as one, so that one large operation does the work of many small ones."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn, vmap
from torch.func import functional_call, stack_module_state

from vqnotes._checks import check_latents_form
from vqnotes._rounding import wide_type
from vqnotes.nearest import nearest_in_each
from vqnotes.quantizers import Quantized, VectorQuantizer, moving_averages, rows

BY_NUMBER = (nn.LeakyReLU, nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity)  # each number for itself


class Stacked:
    """R modules of one structure, called at once: each parameter and buffer has a leading axis R.

    The tensors of each module become views of its row. So the modules are up to date at any time, and what is written
    into one of them counts; `unstack` makes their tensors their own again.
    A whole module is called by `torch.vmap`. So is a part of it, but for the layers that are known here: they take
    half as many operations, and fewer passes over memory.
    parameters, buffers: by name. Which parameters stand still is read at each call from the first module.
    """

    def __init__(self, modules: Sequence[nn.Module]):
        self.parameters, self.buffers = stack_module_state(list(modules))
        self._first, self._tensors = modules[0], self.parameters | self.buffers
        self._own = [dict(one.named_parameters()) | dict(one.named_buffers()) for one in modules]
        for row, tensors in enumerate(self._own):
            for name, tensor in tensors.items():
                tensor.data = self._tensors[name].data[row]

    def __call__(self, batches: Tensor, option: object) -> Any:
        """Module r of batches[r], for all r: batches (R, B, ...); each result of `forward` gets a leading axis R."""
        self._follow()
        return self._vmapped("", self._first, batches, option)

    def part(self, name: str, batches: Tensor) -> Any:
        """The same of a part, as "model.encoder". Only where `has_parts`."""
        self._follow()
        return self._part(name, self._first.get_submodule(name), batches)

    @property
    def has_parts(self) -> bool:
        """Whether each parameter and buffer belongs to one part alone: not if it is shared, or used as another's."""
        first = self._first
        names = chain(first.named_parameters(remove_duplicate=False), first.named_buffers(remove_duplicate=False))
        return {name for name, _ in names} == self._own[0].keys()

    def finite(self) -> list[bool]:
        """Of each module, whether all its numbers are finite."""
        return [all(bool(tensor.isfinite().all()) for tensor in tensors.values()) for tensors in self._own]

    def unstack(self) -> None:
        """Ends it: each module's tensors are its own, with the numbers that they have now."""
        for tensors in self._own:
            for tensor in tensors.values():
                tensor.data = tensor.data.clone()

    def _follow(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(self._own[0][name].requires_grad)

    def _part(self, name: str, module: nn.Module, x: Tensor) -> Any:
        kind = type(module)
        if _has_hooks(module):
            return self._vmapped(name, module, x)
        if kind is nn.Sequential:
            return self._sequence(name, module, x)
        if kind is nn.Linear and f"{name}.weight" in self._tensors:
            return _linear(x, self._tensors[f"{name}.weight"], self._tensors.get(f"{name}.bias"))
        if isinstance(module, VectorQuantizer) and kind is VectorQuantizer:
            return _quantized(x, module, self._tensors[f"{name}.codebook"], self._tensors.get(f"{name}.share"))
        return module(x) if kind in BY_NUMBER else self._vmapped(name, module, x)

    def _sequence(self, name: str, layers: nn.Module, x: Tensor) -> Tensor:
        before = None
        for child, layer in layers.named_children():
            if before is nn.Linear and _may_overwrite(layer) and x.ndim == 3:  # more axes are a view
                x = F.leaky_relu_(x, cast(nn.LeakyReLU, layer).negative_slope)
            else:
                x = self._part(f"{name}.{child}", layer, x)
            before = None if _has_hooks(layer) else type(layer)
        return x

    def _vmapped(self, name: str, module: nn.Module, *arguments: Any) -> Any:
        """By vmap over the module's tensors and the first argument; the others are the same for all."""

        def call(tensors: dict, batch: Tensor, *options: Any) -> Any:
            return functional_call(module, tensors, (batch, *options))

        start = f"{name}." if name else ""
        own = {key[len(start) :]: tensor for key, tensor in self._tensors.items() if key.startswith(start)}
        axes = (0, 0, *[None] * (len(arguments) - 1))
        return vmap(call, in_dims=axes, randomness="different")(own, *arguments)


def _has_hooks(module: nn.Module) -> bool:
    """Whether someone listens to this module, or changes what it gets or gives: then the module itself is called."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _may_overwrite(layer: nn.Module) -> bool:
    return type(layer) is nn.LeakyReLU and layer.negative_slope > 0 and not _has_hooks(layer)


def _linear(x: Tensor, weights: Tensor, biases: Tensor | None) -> Tensor:
    """`nn.Linear` of R: x (R, ..., in), weights (R, out, in), biases (R, out), to (R, ..., out)."""
    flat = x.flatten(1, -2)
    y = flat.bmm(weights.mT) if biases is None else torch.baddbmm(biases[:, None], flat, weights.mT)
    return y if x.ndim == 3 else y.unflatten(1, x.shape[1:-1])


def _quantized(latents: Tensor, first: VectorQuantizer, codebooks: Tensor, share: Tensor | None) -> Quantized:
    """`VectorQuantizer.forward` of R: latents (R, ..., D), codebooks (R, K, D), with EMA share (R, K).

    first: one of the quantisers, for its options.
    """
    latents = check_latents_form(latents, first.dim)
    index, codes = nearest_in_each(latents, codebooks), codebooks.flatten(0, 1)
    of_run = torch.arange(0, len(codes), first.codebook_size, device=codes.device)
    among_all = index + of_run.view(-1, *[1] * (index.ndim - 1))
    chosen = rows(codes, among_all)
    wide = wide_type(latents, chosen)
    z, e = latents.to(wide), chosen.to(wide)
    commitment = mean_squares(z, e.detach())
    loss = (
        first.beta * commitment if not first.codebook_loss else mean_squares(e, z.detach()) + first.beta * commitment
    )
    if first.training and share is not None and first.decay is not None:
        with torch.no_grad():
            flat, count = latents.reshape(-1, first.dim), index[0].numel()
            moved, now = moving_averages(codes, share.flatten(), flat, among_all.flatten(), count, first.decay)
            codebooks.copy_(moved.view_as(codebooks))
            share.copy_(now.view_as(share))
    return Quantized(first.estimate(latents, chosen), index, loss)


def mean_squares(one: Tensor, other: Tensor) -> Tensor:
    """`mse_loss` of each of R: (R, ...) to (R,)."""
    return F.mse_loss(one, other, reduction="none").flatten(1).mean(dim=1)


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
