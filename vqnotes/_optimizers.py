"""The optimiser of a training: with a learning rate for the quantiser, and fused where it can be."""

import inspect
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def optimizer_of(
    kind: Callable[..., torch.optim.Optimizer],
    named_parameters: Iterable[tuple[str, Tensor]],
    lr: float,
    codebook_lr: float | None,
) -> torch.optim.Optimizer:
    """The optimiser of a run's parameters, in its fused form (one kernel for all tensors) if it has one.

    kind: a class of torch.optim or what stands for one. named_parameters: of a `training.Run`, or of R of them.
    codebook_lr: the learning rate of the quantiser's, None for `lr`.
    Raises ValueError if `kind` has a learning rate of its own, or if its steps need a closure.
    """
    codebook_lr = lr if codebook_lr is None else codebook_lr
    by_rate: dict[float, list[Tensor]] = {lr: [], codebook_lr: []}
    for name, parameter in named_parameters:
        by_rate[codebook_lr if name.startswith("model.quantizer.") else lr].append(parameter)
    groups = [{"params": group, "lr": rate} for rate, group in by_rate.items() if group]
    own = getattr(kind, "keywords", {})  # of a functools.partial
    if "lr" in own:
        raise ValueError(f"the learning rate is fit's own: give lr={own['lr']} to fit, not to the optimiser")
    try:
        optimizer = kind(groups) if "fused" in own else kind(groups, fused=True)
    except (TypeError, RuntimeError):  # it does not know the word; it cannot be fused here, or with its options
        optimizer = kind(groups)
    check_closure(optimizer)
    return optimizer


def check_closure(optimizer: object) -> None:
    """ValueError if its steps must be given a closure, to measure the loss several times, as LBFGS does."""
    step = getattr(optimizer, "step", None)
    closure = step and inspect.signature(step).parameters.get("closure")
    if closure and closure.default is inspect.Parameter.empty:
        name = getattr(optimizer, "__name__", type(optimizer).__name__)
        raise ValueError(f"{name} needs a closure that measures the loss again: take one that steps by a gradient")
