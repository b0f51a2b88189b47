"""A watch on a training: the verdict on a model now and then, and a warning once it has turned bad and stays so."""

import math
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from vqnotes._checks import Array
from vqnotes.diagnosis.beside_inputs import KnownInputs
from vqnotes.diagnosis.listening import quantisers
from vqnotes.diagnosis.listening.units import modules_of, named_by
from vqnotes.diagnosis.listening.use import Use
from vqnotes.diagnosis.model import diagnoses_of, hear
from vqnotes.diagnosis.observed import MOST_NUMBERS
from vqnotes.diagnosis.report import Diagnosis
from vqnotes.diagnosis.rules import settled
from vqnotes.metrics import entropy

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["NOT_STARTED", "NO_DIAGNOSIS", "CollapseWarning", "CollapseWatch"]

NOT_STARTED, NO_DIAGNOSIS = "not started", "no diagnosis"  # what stands in the place of a verdict
BUDGET = 20  # a watch that times itself spends one part in so many of the time
SOON = 4  # the look that is to confirm a verdict comes after one part in so many of the usual wait


class CollapseWarning(UserWarning):
    """A model in training has a quantiser that has collapsed, or can no longer be diagnosed."""


class CollapseWatch:
    """Looks at a model now and then, and warns if the verdict on one of its quantisers turns bad and stays so.

        fit(model, x, callback=CollapseWatch(x[:2048]), ...)  # 32 inputs for each of 64 codes

    or, in a loop of your own, `watch(step, model)` before each step. `fit_many` gives it a list of models: their
    quantisers are named "run 0: quantizer", "run 1: quantizer", ...

    probe: inputs on which the model is judged, the same each time; with fewer than 32 for each code, its encoder may
    stay unjudged, and a sound codebook then gets "cannot tell". Of a generator it is the first 2^25 numbers.
    labels: one for each input, if there are any.
    quantizers, call, inputs: as for `diagnose_model`, which finds or is told the quantisers in the same way.
    every: steps between two looks. None: it times itself, and looks as often as costs a twentieth of the time.
    start: the first look; with a warm-up, its length, since there are no codes before.
    confirm: how many looks in a row must find a collapse before there is a warning. After the first of them the next
    comes soon, after a quarter of the usual wait. What only the last look finds is noted, but nothing confirms it.
    log: called as log(scalars, step) after each look, with what `scalars()` gives, so that any logger can hear of it.
    `vqnotes.diagnosis.callbacks` has callbacks for Lightning and transformers, which log where their trainers do.
    turns: [(step, name of the quantiser, verdict)], one entry for each change at once, the first verdict included.
    latest: the newest diagnoses by name, as `diagnose_model` makes them; but where the verdict is the same without,
    no network has read the latents, and the encoder may lose less than is said. `looks()`: all looks, as `draw_watch`
    draws them.

    Two entries stand in the place of a verdict, and neither is a collapse.
    "not started": the codes are not in use yet. Some libraries say so (see `diagnose_model`). For all others the
    first look cannot know it, unless `start` spares it. Later looks say it instead of a collapse if, since the first,
    the quantiser was never called in training mode and not a number in it has moved, as in the warm-up of `fit`: the
    collapse of the first look is then not confirmed. A hook on the quantiser hears the first such call, and goes.
    "no diagnosis": it failed, as it does for a model that has become NaN. One warning says so, until one succeeds.

    Measured by `studies.watching`, with every=30 and no start, in runs of 300 steps: of 100 healthy trainings 0 got a
    warning (Wilson's 95 % interval: 0.0 to 3.7 %), though 4 had a look that found a collapse of codes in use. Of 32
    that collapsed 32 did, in the median 7 steps after their codes came into use. A codebook that collapses with the
    first steps and recovers by itself is warned of as well: 8 of 8.

    Raises ValueError for every < 1, start < 0 or confirm < 1, and at its first look as `diagnose_model` does. Later
    looks never end a training, whatever fails in them. An interrupt passes, and so do warnings that are made errors.
    """

    def __init__(
        self,
        probe: Any,
        *,
        labels: Array | None = None,
        quantizers: dict | None = None,
        call: Callable[[Any, Any], Any] | None = None,
        inputs: str | int | None = None,
        every: int | None = None,
        start: int = 0,
        confirm: int = 2,
        log: Callable[[dict[str, float], int], Any] | None = None,
    ):
        if (every is not None and every < 1) or start < 0 or confirm < 1:
            found = f"every={every}, start={start}, confirm={confirm}"
            raise ValueError(f"need every >= 1, start >= 0 and confirm >= 1, got {found}")
        self.probe = _first_of(probe) if isinstance(probe, Iterator) else probe
        self.labels, self.every, self.start, self.confirm, self.log = labels, every, start, confirm, log
        given = {"quantizers": quantizers, "call": call, "inputs": inputs}
        self._options: dict[str, Any] = {name: one for name, one in given.items() if one is not None}
        self._known = KnownInputs()
        self.turns: list[tuple[int, str, str]] = []
        self.latest: dict[str, Diagnosis] = {}
        self._called = start - 1  # the step of the last call, if it is not before the start
        self._rested = -math.inf  # when the time for the next look has come
        self._owed = 0.0  # seconds that looks which came soon still owe
        self._soon = math.inf  # the step of the next look, if it is out of turn
        self._rows: list[tuple[int, str, str, float, float, float]] = []
        self._first = 0  # row of the last look
        self._log_failed = False
        self._states: dict[str, _State] = {}
        self._failed: set[str] = set()  # the models of which there was no diagnosis at the last look
        self._use: Use | None = None  # since the first look

    def __call__(self, step: int, model: nn.Module | list[nn.Module]) -> None:
        now = time.perf_counter()
        if step < self.start or not self._has_come(step, now):
            return
        self.look(step, model)
        soon = any(self._states[name].unsure for name in self.latest)
        self._soon = step + max(1, (self.every or 0) // SOON) if soon else math.inf
        rest = (BUDGET - 1) * (time.perf_counter() - now) + self._owed
        self._owed = rest * (1 - 1 / SOON) if soon else 0.0
        self._rested = time.perf_counter() + rest - self._owed

    def _has_come(self, step: int, now: float) -> bool:
        """Whether it is time for a look. A loop may skip steps, ask twice at one, or begin again at a lower one."""
        before = self._called if self._called <= step else self.start - 1
        self._called = step
        if self.every is None:
            return now >= self._rested
        last, this = ((one - self.start) // self.every for one in (before, step))
        return last < this or step >= self._soon

    def look(self, step: int, model: nn.Module | list[nn.Module]) -> None:
        """Diagnoses the model or models now, notes what was found, and warns of what is confirmed.

        step: the number that stands in `turns`. Raises as `diagnose_model` at the first look, and later only warns.
        """
        if isinstance(model, list | tuple):
            runs = {f"run {i}: ": one for i, one in enumerate(model)}
        else:
            runs = {"": model}
        latest: dict[str, Diagnosis] = {}
        names: dict[str, list[str]] = {}  # of the quantisers that were found
        said: list[str] = []
        self._first = len(self._rows)
        for run, one in runs.items():
            try:
                found = self._judged(run, one)
            except Exception as error:
                if self._use is None:  # the first look: the model or the probe is not what is needed
                    raise
                known = {name: old for name, old in self.latest.items() if name.startswith(run)}
                latest |= known
                said += self._note_failure(step, run, known, f"{type(error).__name__}: {error}")
            else:
                self._failed.discard(run)
                names[run] = self._names(one, [name.removeprefix(run) for name in found])
                latest |= {name: diagnosis for name, (_, diagnosis) in found.items()}
                for name, judged in found.items():
                    said += self._note(step, name, *judged)
        self._use = self._use or Use(runs, names)
        self.latest = latest
        if self.log is not None:
            self.send(self.log, step)
        for message in said:
            warnings.warn(message, CollapseWarning, stacklevel=3)

    def _judged(self, run: str, model: nn.Module) -> dict[str, tuple[str, Diagnosis]]:
        """The verdicts on a model's quantisers, or what stands in the place of one, with the diagnoses."""
        unused = self._use.unused(run, model) if self._use else set()
        found = {}
        diagnosed = self._diagnosed(model)
        names = self._names(model, diagnosed)
        for name, one in diagnosed.items():
            idle = unused and unused.issuperset(modules_of(name, names))
            waits = not one.started or (idle and _is_bad(one.verdict))
            found[run + name] = (NOT_STARTED if waits else one.verdict, one)
        return found

    def _diagnosed(self, model: nn.Module) -> dict[str, Diagnosis]:
        """As `diagnose_model`, at less cost: see `latest`, and `KnownInputs` for what is measured once."""
        heard = hear(model, self.probe, **self._options)
        return diagnoses_of(heard, self.labels, settled=settled, known=self._known)

    def _names(self, model: nn.Module, diagnosed: Iterable[str]) -> list[str]:
        """The names of the model's quantisers, those that were found by watching among them."""
        known = list(quantisers(model, self._options.get("quantizers")))
        others = [one for one in named_by(diagnosed, model) if one or not known]  # a whole of known ones is no other
        return known + [one for one in others if not any(f"{name}.".startswith(f"{one}.") for name in known)]

    def _note(self, step: int, name: str, verdict: str, found: Diagnosis) -> list[str]:
        """Notes a verdict; returns the warning that it confirms, if any."""
        state = self._turn(step, name, verdict, NOT_JUDGED if verdict == NOT_STARTED else _figures(found))
        if not state.confirmed(self.confirm):
            return []
        state.warned.add(verdict)
        again = f", confirmed at step {step}" if step > state.began else ""
        return [f"step {state.began}, {name}: {verdict}{again}. {found.reason}"]

    def _note_failure(self, step: int, run: str, names: Iterable[str], reason: str) -> list[str]:
        """Notes that there is no diagnosis of these quantisers; returns the warning of it, unless there was one."""
        for name in names:
            self._turn(step, name, NO_DIAGNOSIS, NOT_JUDGED)
        if run in self._failed:
            return []
        self._failed.add(run)
        return [f"step {step}{', ' + run if run else ': '}no diagnosis, {reason}"]

    def _turn(self, step: int, name: str, verdict: str, figures: "_Figures") -> "_State":
        """Notes a row of `looks()`, and in `turns` what is new in it."""
        state = self._states.setdefault(name, _State())
        if verdict != state.verdict:
            self.turns.append((step, name, verdict))
        state.add(step, verdict)
        self._rows.append((step, name, verdict, *figures))
        return state

    def looks(self) -> "DataFrame":
        """All looks, one row each and quantiser: step, name, verdict as in `turns`, gap, usage, perplexity.

        gap (the optimality gap), usage (the share of the codes that the probe uses) and perplexity (how many are in
        effect, from 1 to K) are NaN where the codes were not judged; the last two also for codes that are put
        together, as the levels of a residual quantiser, which have rows of their own.
        """
        from pandas import DataFrame

        return DataFrame(self._rows, columns=["step", "name", "verdict", "gap", "usage", "perplexity"])

    def scalars(self) -> dict[str, float]:
        """Figures of the last look, by names for a logger: "vqnotes/vq/optimality_gap" for the quantiser "vq", ...

        optimality_gap, usage, perplexity: as in `looks()`; what is NaN or infinite is left out.
        collapse: 1 if the verdict is one, else 0, as for "cannot tell" or "not started".
        Of what could not be diagnosed there are none.
        Some loggers refuse names with brackets or colons, so "vq[head 0]" is "vq_head_0".
        """
        found: dict[str, float] = {}
        for _, name, verdict, *figures in self._rows[self._first :]:
            found_here = dict(zip(("optimality_gap", "usage", "perplexity"), figures))
            if verdict != NO_DIAGNOSIS:
                found_here["collapse"] = float(_is_bad(verdict))
            place = re.sub(r"[^\w./-]+", "_", name).rstrip("_")
            found |= {f"vqnotes/{place}/{one}": value for one, value in found_here.items() if math.isfinite(value)}
        return found

    def send(self, log: Callable[[dict[str, float], int], Any], step: int) -> None:
        """Calls log(scalars, step) with those of the last look. A RuntimeWarning says so once if it fails."""
        try:
            log(self.scalars(), step)
        except Exception as error:
            if not self._log_failed:
                self._log_failed = True
                said = f"step {step}: nothing was logged, {type(error).__name__}: {error}"
                warnings.warn(said, RuntimeWarning, stacklevel=3)


def _first_of(batches: Iterator) -> list:
    """The batches of a generator, which may have no end: up to that by which there are 2^25 numbers."""
    kept, numbers = [], 0
    while numbers < MOST_NUMBERS and (batch := next(batches, None)) is not None:
        kept.append(batch)
        numbers += _numbers_in(batch)
    return kept


def _numbers_in(batch: Any) -> int:
    if isinstance(batch, Mapping | list | tuple):
        return sum(map(_numbers_in, batch.values() if isinstance(batch, Mapping) else batch))
    return math.prod(getattr(batch, "shape", ()))


_Figures = tuple[float, float, float]  # optimality gap, usage, perplexity
NOT_JUDGED = (math.nan, math.nan, math.nan)


def _figures(found: Diagnosis) -> _Figures:
    gap = found.evidence["optimality gap"].value if "optimality gap" in found.evidence else math.nan
    if not found.drawing:
        return gap, math.nan, math.nan
    counts = found.drawing.counts
    return gap, (counts > 0).double().mean().item(), math.exp(entropy(counts))


def _is_bad(verdict: str) -> bool:
    return "collapse" in verdict


@dataclass
class _State:
    """How the verdicts on one quantiser have come one after another."""

    verdict: str = ""
    began: int = 0  # the step of the first of the looks in a row that found it
    looks: int = 0  # how many they are
    bad: int = 0  # looks in a row that found any collapse
    warned: set[str] = field(default_factory=set)  # of which verdicts, since the last look that found none

    def add(self, step: int, verdict: str) -> None:
        if verdict != self.verdict:
            self.verdict, self.began, self.looks = verdict, step, 0
        self.looks += 1
        self.bad = self.bad + 1 if _is_bad(verdict) else 0
        if not self.bad:
            self.warned.clear()

    @property
    def unsure(self) -> bool:
        """Whether the verdict is one that the next look may confirm."""
        return self.bad > 0 and self.verdict not in self.warned

    def confirmed(self, looks: int) -> bool:
        """Whether it is time to warn: a first time of any collapse, later of another one that stays as long."""
        return self.unsure and (self.looks if self.warned else self.bad) >= looks
