"""A watch on a training: the verdict on a model now and then, and a warning as soon as it turns bad."""

import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn

from vqnotes._checks import Array
from vqnotes.diagnosis.model import diagnose_model
from vqnotes.diagnosis.report import Diagnosis

__all__ = ["CollapseWarning", "CollapseWatch"]


class CollapseWarning(UserWarning):
    """The verdict on a model has turned during training."""


class CollapseWatch:
    """Looks at a model now and then, and warns as soon as the verdict on one of its quantisers turns bad.

        fit(model, x, callback=CollapseWatch(x[:1024]), ...)

    or, in a loop of your own, `watch(step, model)` before each step. `fit_many` gives it a list of models: their
    quantisers are named "run 0: quantizer", "run 1: quantizer", ...

    probe: inputs on which the model is judged, the same each time. labels: one for each, if there are any.
    every: steps between two looks. None: it times itself, and looks as often as costs a twentieth of the time.
    start: the first look; with a warm-up, its length, since there are no codes before.
    turns: [(step, name of the quantiser, verdict)], one entry for each change, the first verdict included.
    latest: the newest diagnoses by name.
    Raises ValueError for every < 1 or start < 0, and at its first look as `diagnose_model` does. Later it never ends
    a training: a model that cannot be diagnosed any more, as one that has become NaN, gets a warning.
    """

    def __init__(self, probe: Any, *, labels: Array | None = None, every: int | None = None, start: int = 0):
        if (every is not None and every < 1) or start < 0:
            raise ValueError(f"need every >= 1 and start >= 0, got every={every}, start={start}")
        self.probe = list(probe) if isinstance(probe, Iterator) else probe
        self.labels, self.every, self.start = labels, every, start
        self.rested = -math.inf  # when the time for the next look has come
        self.turns: list[tuple[int, str, str]] = []
        self.latest: dict[str, Diagnosis] = {}

    def __call__(self, step: int, model: nn.Module | list[nn.Module]) -> None:
        now = time.perf_counter()
        if step < self.start or (now < self.rested if self.every is None else (step - self.start) % self.every):
            return
        self.look(step, model)
        self.rested = time.perf_counter() + 19 * (time.perf_counter() - now)

    def look(self, step: int, model: nn.Module | list[nn.Module]) -> None:
        """Diagnoses the model or models now, notes what has changed, and warns if it is for the worse.

        step: the number that stands in `turns`. Raises as `diagnose_model` at the first look, and later only warns.
        """
        before = self.latest
        runs = {f"run {i}: ": one for i, one in enumerate(model)} if isinstance(model, list | tuple) else {"": model}
        try:
            found = {
                run: diagnose_model(one, self.probe, labels=self.labels, progress=False) for run, one in runs.items()
            }
        except Exception as error:
            if not before:  # the first look: the model or the probe is not what is needed
                raise
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"step {step}: no diagnosis, {reason}", CollapseWarning, stacklevel=3)
            return
        self.latest = {run + name: one for run, diagnoses in found.items() for name, one in diagnoses.items()}
        for name, now in self.latest.items():
            if name in before and before[name].verdict == now.verdict:
                continue
            self.turns.append((step, name, now.verdict))
            if "collapse" in now.verdict:
                warnings.warn(f"step {step}, {name}: {now.verdict}. {now.reason}", CollapseWarning, stacklevel=3)
