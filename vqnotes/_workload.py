"""How much work a model is, counted so that the model does not notice."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vqnotes._threads import one_torch_thread

_counted = WeakKeyDictionary()  # of each model: its multiplications for one input, by the input's shape and its size


@contextmanager
def modes_kept(*models: nn.Module) -> Iterator[None]:
    """Afterwards each module of the models is in training or evaluation mode as it was before."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def multiplications(model: nn.Module, x: Tensor, batch_size: int) -> int:
    """How many a model needs, about, for a batch of x (N, ...): by matrix products, convolutions, and the search."""
    known = _counted.setdefault(model, {})
    layout = (x.shape[1:], codes_compared(model.quantizer), sum(one.numel() for one in model.parameters()))
    if layout not in known:
        known[layout] = _multiplications_of_one(model, x[:1])
    return min(batch_size, len(x)) * known[layout]


@torch.no_grad()
def _multiplications_of_one(model: nn.Module, x: Tensor) -> int:
    """Of one input (1, ...), in evaluation mode; nothing of the model or of PyTorch's random state changes."""
    random_state = torch.random.fork_rng([x.device] if x.is_cuda else [])
    with modes_kept(model), one_torch_thread(), random_state, FlopCounterMode(display=False) as counter:
        model.eval()
        latents = model.encode(x)
        model.decode(latents)
    return counter.get_total_flops() // 2 + latents.numel() * codes_compared(model.quantizer)


def codes_compared(quantizer: nn.Module) -> int:
    """How many codes a latent is compared with at a time: K, or of a quantiser in stages, the most that one has."""
    stages = getattr(quantizer, "stages", None)
    return max(map(_size, stages if isinstance(stages, nn.ModuleList) else [quantizer]))


def _size(quantizer: nn.Module) -> int:
    """K, or 0 for a quantiser of someone else's that has no list of codes."""
    if hasattr(quantizer, "codebook_size"):
        return cast(int, quantizer.codebook_size)
    codes = getattr(quantizer, "codes", None)
    return len(codes()) if callable(codes) else 0
