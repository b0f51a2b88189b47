"""In the loops of others: a `CollapseWatch` as callback of Lightning and transformers, usage as torchmetrics has it.

No library is imported before what is made for it. No callback ends a training: a model that cannot be watched
is warned of and trains on unwatched. Only a `CollapseWarning` that is made an error passes. Of several processes
the first one looks; a model whose parameters are split over them (FSDP, DeepSpeed's stage 3) is not watched.
"""

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from vqnotes._checks import Array
from vqnotes.diagnosis.watch import CollapseWarning, CollapseWatch
from vqnotes.metrics import UsageMeter

__all__ = ["lightning_callback", "transformers_callback", "usage_metric"]


FIGURES = ("perplexity", "usage")


def lightning_callback(watch: CollapseWatch) -> Any:
    """A Lightning callback: asks the watch before each step, and logs `watch.scalars()` to all the trainer's loggers.

        watch = CollapseWatch(probe)
        trainer = Trainer(callbacks=[lightning_callback(watch)])
        trainer.fit(model, batches)

    Steps are counted as Lightning counts them for its own logs: one for each batch after which an optimiser stepped.
    Works with the Trainer of either package, lightning or pytorch_lightning.
    Raises ValueError for anything but a `CollapseWatch`, and ImportError if neither package is installed.
    """
    base = _imported("lightning_callback", "lightning", ("lightning.pytorch", "pytorch_lightning")).Callback
    return type("LightningCallback", (_InLightning, base), {})(watch)


def transformers_callback(watch: CollapseWatch, log: Callable[[dict[str, float]], Any] | None = None) -> Any:
    """A callback of transformers: asks the watch before each step, and logs `watch.scalars()`.

        watch = CollapseWatch(probe, call=lambda model, batch: model(**batch))
        trainer.add_callback(transformers_callback(watch, trainer.log))
        trainer.train()

    log: the trainer's; a callback does not know its trainer. None: nothing is logged by the callback.
    Steps are those of `state.global_step`, updates of the model.
    Raises ValueError for anything but a `CollapseWatch`, and ImportError if transformers is not installed.
    """
    base = _imported("transformers_callback", "transformers", ("transformers",)).TrainerCallback
    return type("TransformersCallback", (_InTransformers, base), {})(watch, log)


def usage_metric(size: int, figure: str = "perplexity") -> Any:
    """A metric of torchmetrics that counts indices as `UsageMeter` does, over batches and over processes.

        metric = usage_metric(1024)
        metric.update(index)  # whole numbers of any shape
        self.log("perplexity", metric)  # Lightning computes it over the epoch, and resets it

    figure: what `compute` gives, a scalar: "usage", the share of the `size` codes that came at least once, or
    "perplexity", from 1 to `size`. Its state is `counts`, (size,) int64, summed over processes.
    Raises ValueError for another figure and as `UsageMeter` does, and ImportError if torchmetrics is not installed.
    """
    if figure not in FIGURES:
        raise ValueError(f"figure must be one of {FIGURES}, got {figure!r}")
    metric = _new_metric()
    metric.__init__(len(UsageMeter(size).counts), figure)
    return metric


def _new_metric() -> Any:
    base = _imported("usage_metric", "torchmetrics", ("torchmetrics",)).Metric
    made: Any = type("UsageMetric", (_InTorchmetrics, base), {})
    return made.__new__(made)


def _imported(what: str, package: str, names: tuple[str, ...]) -> Any:
    """The first of these modules that is imported already, or else that can be."""
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):  # it is there, and something that it needs is not
                raise
    raise ImportError(f"{what} needs {package}, which is not installed: pip install {package}", name=package)


class _Asking:
    """What both callbacks do."""

    def __init__(self, watch: CollapseWatch):
        if not isinstance(watch, CollapseWatch):
            raise ValueError(f"need a CollapseWatch, got {type(watch).__name__}: CollapseWatch(probe) makes one")
        self.watch = watch
        self._off = False

    def _ask(self, step: int, model: nn.Module, logs: list[Callable[[dict[str, float], int], Any]]) -> None:
        if self._off:
            return
        before = self.watch.latest
        try:
            if not before and _is_split(model):
                raise ValueError("its parameters are split over processes, and one alone cannot run it")
            self.watch(step, model)
        except CollapseWarning:
            raise
        except Exception as error:  # at its first look
            self._off = True
            said = f"step {step}: the model is not watched, {type(error).__name__}: {error}"
            warnings.warn(said, CollapseWarning, stacklevel=3)
        if self.watch.latest is not before:
            for log in logs:
                self.watch.send(log, step)


def _is_split(model: nn.Module) -> bool:
    """Whether no process has it whole, by the marks on its parameters."""
    marks = ("device_mesh", "_fsdp_flattened", "ds_id")  # tensor parallel and FSDP, FSDP's first version, DeepSpeed
    return any(hasattr(one, mark) for one in model.parameters() for mark in marks)


class _InLightning(_Asking):
    """The hooks of a Lightning callback."""

    def on_train_batch_start(self, trainer: Any, module: nn.Module, *_: Any) -> None:
        self._before_step(trainer, module)

    def on_train_end(self, trainer: Any, module: nn.Module) -> None:
        self._before_step(trainer, module)

    def _before_step(self, trainer: Any, module: nn.Module) -> None:
        if trainer.is_global_zero:
            # With several optimisers `global_step` counts the steps of each, and Lightning logs at another number.
            step = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step)
            self._ask(step, module, [one.log_metrics for one in trainer.loggers])

    def __reduce__(self) -> Any:
        return lightning_callback, (self.watch,)


class _InTorchmetrics:
    """What a metric does with its counts, which torchmetrics keeps, resets and sums over processes."""

    full_state_update, is_differentiable = False, False
    counts: Tensor

    def __init__(self, size: int, figure: str):
        super().__init__()
        self.figure = figure
        self.add_state("counts", torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")  # type: ignore[attr-defined]

    def update(self, index: Array) -> None:
        self.counts += UsageMeter(len(self.counts)).update(index).counts.to(self.counts.device)

    def compute(self) -> Tensor:
        meter = UsageMeter(len(self.counts))
        meter.counts = self.counts.cpu()
        return torch.tensor(getattr(meter, self.figure)(), device=self.counts.device)

    def __reduce__(self) -> Any:
        return _new_metric, (), self.__getstate__()  # type: ignore[attr-defined]


class _InTransformers(_Asking):
    """The hooks of a callback of transformers."""

    def __init__(self, watch: CollapseWatch, log: Callable[[dict[str, float]], Any] | None):
        super().__init__(watch)
        self.log = log

    def on_step_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        self._before_step(state, model)

    def on_train_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        self._before_step(state, model)

    def _before_step(self, state: Any, model: nn.Module) -> None:
        if state.is_world_process_zero:
            log = self.log
            self._ask(state.global_step, model, [] if log is None else [lambda scalars, step: log(scalars)])

    def __reduce__(self) -> Any:
        return transformers_callback, (self.watch, self.log)
