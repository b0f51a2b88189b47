"""How much work a model is, counted so that the model does not notice."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vqnotes._threads import one_torch_thread


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards each module of the model is in training or evaluation mode as it was before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def multiplications(model: Any, x: Tensor, batch_size: int) -> int:
    """How many a model needs, about, for a batch of x (N, ...): by its matrix products, convolutions, and the search.

    Counted on a single input, in evaluation mode.
    """
    devices = [x.device] if x.is_cuda else []
    random_state = torch.random.fork_rng(devices)  # counting draws nothing that is missed later
    with modes_kept(model), one_torch_thread(), random_state, FlopCounterMode(display=False) as counter:
        model.eval()
        latents = model.encode(x[:1])
        model.decode(latents)
    search = latents.numel() * codes_compared(model.quantizer)
    return min(batch_size, len(x)) * (counter.get_total_flops() // 2 + search)


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
