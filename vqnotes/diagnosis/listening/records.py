"""What was heard of a model, kept in bounded memory, and the diagnosis of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqnotes._checks import check_codebook, dense_tensor, real_numbers
from vqnotes.diagnosis.inputs import Inputs, UnpairedInputs, Unused
from vqnotes.diagnosis.listening import Listener
from vqnotes.diagnosis.listening.calls import Call, by_example, without_calls
from vqnotes.diagnosis.listening.trials import depends_on_codes_alone, fed_by, moves_others, read_places, rebuilt
from vqnotes.diagnosis.listening.units import Level, Unit, units
from vqnotes.diagnosis.measures import Measures, measure
from vqnotes.diagnosis.observed import (
    AT_LEAST,
    AT_MOST,
    MOST_NUMBERS,
    PER_CODE,
    Observed,
    kind_of_all,
    observe,
    observe_stack,
)
from vqnotes.diagnosis.report import Diagnosis, not_started, report, report_call, report_stack
from vqnotes.diagnosis.stages import expect_stages

__all__ = ["Heard", "Record", "Sample"]

LEAST_PIECES = 512  # of what is heard so much is kept
MOST_CALLS = 16  # in a pass, of one quantiser, that get a verdict each
BY_HAND = "call diagnose(latents, codebook, inputs=...) with the input, or the piece of it, that each latent codes"
APART = f"let each input have latents of its own, (inputs, places ..., D), or {BY_HAND}"


class Heard:
    """All that was heard: a record for each unit of quantisers, and the inputs.

    cut: the modules that no gradient passes, as far as that was tried.
    """

    def __init__(self, listener: Listener, places: tuple | None, seed: int):
        self.listener, self.places, self.seed = listener, places, seed
        self.random = np.random.default_rng(seed)
        self.count = 0
        self.records: list[Record] = []
        self.labels: list[Tensor | None] = []
        self.inputs: Sample | None = None
        self.cut: set[str] = set()

    def add(self, x: Tensor, y: Tensor | None) -> None:
        """Calls the model on a batch of inputs x (N, ...), and takes in what is heard, and the labels y (N,).

        Raises ValueError for quantisers that are called otherwise than on the first batch, or not at all.
        """
        output = self.call(x)
        calls = self.listener.calls.copy()
        if not self.count:
            self.begin(x, calls)
        back = rebuilt(output, x) if self.by_codes else None
        if [call.name for call in calls] != self.names:
            raise ValueError(f"quantisers must be called alike on all batches, got {self.names} and then others")
        keys = self.random.random(len(x))
        for record in self.records:
            record.add(calls, x, keys, self.count)
        if any(record.axes is not None for record in self.records):
            self.inputs.add(keys, {"x": x} | ({} if back is None else {"rebuilt": back}))
        self.labels.append(y)
        self.count += len(x)

    def begin(self, x: Tensor, calls: list[Call]) -> None:
        """What the first batch tells: which quantisers belong together, and where their latents look."""
        self.first, self.names = x, [call.name for call in calls]
        if idle := set(self.listener.names) - set(self.names):
            traced = without_calls(self.listener.model)
            raise ValueError(f"quantisers were found but never called: {sorted(idle)}{traced and f'. {traced}'}")
        made = units(self.listener.model, calls, self.listener.entered)
        self.records = [Record(unit, calls, x, self.seed, self.listener.not_started) for unit in made]
        feeding = fed_by(self.listener, self.call, x, made) if len(made) > 1 else {}
        for record in self.records:
            if before := feeding.get(record.unit.name):
                record.leave_out(
                    f"what enters depends on what {before!r} returned",
                    f"the diagnosis of {before!r} judges the encoder before it; labels= may clear this one",
                    how="are not compared",
                )
            elif not record.rows:
                record.read_places(self.call, self.listener, x, calls, self.places)
        paired = [record for record in self.records if record.axes is not None]
        if self.places is not None and not any(record.axes for record in paired):
            why = [one.unused.why for one in self.records if one.unused] or ["each of the inputs has one latent"]
            raise ValueError(f"places={self.places}: {'; '.join(why)}")
        # With other ways for the inputs to its output, the model's error tells nothing of this encoder.
        self.by_codes = len(made) == 1 and depends_on_codes_alone(self.listener, self.call, x)
        numbers = x[0].numel() * (2 if self.by_codes else 1)
        needed = max((LEAST_PIECES // math.prod(record.places) + 1 for record in paired), default=0)
        most = max(needed, MOST_NUMBERS // numbers)
        self.inputs = Sample(min([most, *(record.sample.most for record in paired)]))

    def call(self, x: Tensor) -> Any:
        """What the model returns; ValueError, with the batch's shape, if it cannot take it."""
        model = self.listener.model
        try:
            return self.listener(x)
        except Exception as error:
            if isinstance(error, Warning) or _raised_here(error):
                raise
            reason = f"{type(model).__name__} cannot be called with a batch {x.dtype} {tuple(x.shape)}"
            how = "call= says how it takes one, as in call=lambda model, batch: model(*batch)"
            raise ValueError(f"{reason}: {type(error).__name__}: {error}. {how}") from error

    def labels_of(self, given: Any) -> Tensor | None:
        """One for each input that was heard, (N,): those given, or those that the batches brought; None if neither.

        Raises ValueError for fewer than were heard.
        """
        if given is not None:
            given = dense_tensor(given, "labels").cpu()
            if given.ndim != 1 or len(given) < self.count:
                raise ValueError(f"need a label for each of {self.count} inputs, got {tuple(given.shape)}")
            return given[: self.count]
        return torch.cat(self.labels) if all(y is not None for y in self.labels) else None


def _raised_here(error: Exception) -> bool:
    """Whether it is one of the diagnosis itself, and not of the model."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "").startswith("vqnotes.diagnosis.")


class Sample:
    """Of all examples that pass by, those with the smallest keys: a fair sample, however they are batched."""

    def __init__(self, most: int):
        self.most, self.keys = most, np.empty(0)
        self.tensors: dict[str, Tensor] = {}

    def add(self, keys: np.ndarray, tensors: dict[str, Tensor]) -> None:
        """Examples with their keys (n,): tensors (n, ...) by name. Shorter ones get zeros behind them.

        Raises ValueError for tensors of other axes than those before.
        """
        count, every = len(self.keys), np.concatenate([self.keys, keys])
        if count == self.most and not (keys < self.keys.max()).any():
            return
        stays = np.ones(len(every), dtype=bool)
        if len(every) > self.most:
            stays[np.argpartition(every, self.most)[self.most :]] = False
        rows = np.flatnonzero(stays[count:])
        free = np.concatenate([np.flatnonzero(~stays[:count]), np.arange(count, stays.sum())])
        self.keys = np.concatenate([self.keys, np.empty(stays.sum() - count)])
        self.keys[free] = keys[rows]
        new_rows, places = torch.from_numpy(rows), torch.from_numpy(free)
        for name, tensor in tensors.items():
            tensor, kept = tensor.detach()[new_rows.to(tensor.device)].cpu(), self.tensors.get(name)
            if kept is None:
                kept = torch.empty(self.most, *tensor.shape[1:], dtype=tensor.dtype)
            if tensor.ndim != kept.ndim:
                raise ValueError(f"batches must be of one shape but for lengths, got {tensor.shape} and {kept.shape}")
            if any(new > old for new, old in zip(tensor.shape[1:], kept.shape[1:])):
                kept = _padded(kept[:count], list(map(max, tensor.shape[1:], kept.shape[1:])), self.most)
            self.tensors[name] = kept
            kept[places] = _padded(tensor, kept.shape[1:], len(tensor))

    def of(self, name: str) -> Tensor:
        """What is kept under this name."""
        return self.tensors[name][: len(self.keys)]


def _padded(tensor: Tensor, sides: Sequence[int], most: int) -> Tensor:
    """The tensor (n, ...) in a larger one of these sides, zero beside it, in the first of so many rows."""
    if tuple(tensor.shape) == (most, *sides):
        return tensor
    larger = tensor.new_empty(most, *sides)
    larger[: len(tensor)] = 0
    larger[tuple(map(slice, tensor.shape))] = tensor
    return larger


def scaled(tensor: Tensor, level: Level) -> Tensor:
    """Latents or codes (..., D) of a level, at the scale of the first of its stack."""
    return tensor if level.scale is None else tensor * tensor.new_tensor(level.scale)


class Record:
    """What was heard of one unit of quantisers: how often each code was used, and a sample of the latents.

    axes: of the inputs, along which its places run; () if an input has one latent; None: they are not paired, and
    unused says why.
    sites: the names of the calls, where latents of several are taken as one set, in `Sample` by their numbers.
    entries: the names of the quantisers that its latents enter first. not_started: those whose codes were not in
    place when the model came; they are no codes to be judged, nor are those that make a token with them.
    """

    def __init__(self, unit: Unit, calls: list[Call], x: Tensor, seed: int, not_started: set[str]):
        self.unit, self.shape, batch = unit, tuple(x.shape), len(x)
        self.shapes = dict.fromkeys(tuple(calls[level.call].latents.shape[1:]) for level in unit.levels)
        heard = [calls[level.call].note for level in unit.levels]
        self.notes = [note for note in dict.fromkeys(heard) if note]
        self.unused: Unused | None = None
        self.axes: tuple | None = None
        self.places: tuple = ()
        self.heard, self.masked, self.random = 0, 0, np.random.default_rng(seed)
        self.entries = [calls[part[0].call].name for part in unit.parts]
        names = dict.fromkeys(calls[level.call].name for level in unit.levels)
        self.not_started = [name for name in names if name in not_started]
        self.rows = unit.loose or by_example(calls[unit.levels[0].call], batch) is None  # without order or inputs
        self.levels = (
            [unit.levels] if unit.loose else [[level] for level in unit.levels]
        )  # one list for each codebook
        self.codes = [scaled(calls[level.call].codes[level.head], level).cpu() for level, *_ in self.levels]
        self.kind = kind_of_all([calls[level.call].kind for level, *_ in self.levels])
        self.uses = [torch.zeros(len(codes), dtype=torch.int64) for codes in self.codes]
        self.sites = list(dict.fromkeys(level.name for level in unit.levels)) if unit.loose else []
        if len(self.sites) > MOST_CALLS:
            self.notes.append(f"{len(self.sites)} calls in a pass, over {MOST_CALLS}: there is no verdict on each")
            self.sites = []
        self.site_uses = torch.zeros(len(self.sites), len(self.codes[0]), dtype=torch.int64)
        latents = calls[unit.levels[0].call].latents[0]
        each = 1 if self.rows else latents[..., 0].numel() // batch
        numbers = sum(codes.shape[1] for codes in self.codes)
        needed = min(AT_MOST, max(AT_LEAST, PER_CODE * max(map(len, self.codes))))
        self.sample = Sample(min(AT_MOST, max(needed, MOST_NUMBERS // numbers)) // each + 1)
        if unit.loose:
            self.leave_out("latents of several calls in a pass are taken as one set", BY_HAND)
        elif self.rows:
            self.leave_out(f"these are not so many for each of {batch} inputs, and taken as one set", APART)

    def leave_out(self, why: str, remedy: str, how: str = "could not be paired") -> None:
        """The inputs are not used, for this reason."""
        self.axes = None
        shapes = " and ".join(map(str, self.shapes))
        said = f"inputs {self.shape} were given, but {how} with latents {shapes}: {why}"
        self.unused = Unused(said, remedy)

    def read_places(self, call: Callable, listener: Listener, x: Tensor, calls: list[Call], given: Any) -> None:
        """Finds out which piece of the inputs x belongs to which latent."""

        def hear(x: Tensor) -> tuple[Tensor, Tensor]:
            torch.manual_seed(0)  # the same noise each time, if there is any
            call(x)
            return self.entering(listener.calls, len(x))

        self.places = self.places_of(calls, len(x))
        try:
            if not self.places and moves_others(hear, x):
                self.rows = True
                self.leave_out("an input that is changed moves the latents of others, too", APART)
                return
            self.axes, note = read_places(hear, x, self.places, given)
        except UnpairedInputs as error:
            self.leave_out(str(error), f"pass labels=, or {BY_HAND}")
        else:
            self.notes += [note] if note else []

    def by_example(self, call: Call, batch: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `by_example`; UnpairedInputs if what was heard on the first batch does not hold of this one."""
        found = by_example(call, batch)
        if found is None:
            raise UnpairedInputs(
                f"latents {tuple(call.latents.shape[1:])} are not so many for each of {batch} inputs, as they were "
                f"for {self.shape[0]}: {APART}"
            )
        return found

    def places_of(self, calls: list[Call], batch: int) -> tuple:
        """The places of the latents, () if an input has one."""
        latents, _, _ = self.by_example(calls[self.unit.levels[0].call], batch)
        return tuple(latents.shape[2:-1]) if latents[0, 0, ..., 0].numel() > 1 else ()

    def entering(self, calls: list[Call], batch: int) -> tuple[Tensor, Tensor]:
        """What enters all parts together, (batch, places, D), and whether it counts, (batch, places)."""
        first = [(self.by_example(calls[part[0].call], batch), part[0].head) for part in self.unit.parts]
        latents = torch.cat([heard[0][head].reshape(batch, -1, heard[0].shape[-1]) for heard, head in first], dim=-1)
        mask = first[0][0][2]
        return latents, latents.new_ones(latents.shape[:2]) if mask is None else mask.reshape(batch, -1)

    def add(self, calls: list[Call], x: Tensor, keys: np.ndarray, count: int) -> None:
        """Takes in the calls of one pass on x; so many inputs came before."""
        if not self.rows:
            self.check(x, calls)
        kept = {}
        for i, same in enumerate(self.levels):
            heard = [self.of_one(calls[level.call], level, len(x)) for level in same]
            for name, tensors in zip(("latents", "index", "counts"), zip(*heard)):
                kept[f"{name} {i}"] = torch.cat(tensors)
        counts = kept["counts 0"]
        if self.sites:
            numbers = [(self.sites.index(one.name), calls[one.call].index[0].numel()) for one in self.unit.levels]
            kept["site"] = torch.cat([torch.full((many,), number) for number, many in numbers]).to(counts.device)
            for number, uses in enumerate(self.site_uses):
                here = kept["index 0"][counts & (kept["site"] == number)]
                uses += torch.bincount(here, minlength=len(uses)).cpu()
        if self.rows:
            keys = self.random.random(len(counts))
        else:
            kept["number"] = torch.arange(count, count + len(x))
        self.masked += int((~counts).sum())
        for i, uses in enumerate(self.uses):
            uses += torch.bincount(kept[f"index {i}"][kept[f"counts {i}"]], minlength=len(uses)).cpu()
        self.heard += int(counts.sum())
        self.sample.add(keys, kept)

    def of_one(self, call: Call, level: Level, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (batch, places ..., D), index and which of them count; or rows of them (n, D)."""
        latents, index, mask = (call.latents, call.index, call.mask) if self.rows else self.by_example(call, batch)
        latents, index = scaled(latents[level.head], level), index[level.head]
        mask = torch.ones_like(index, dtype=torch.bool) if mask is None else mask
        if self.rows:
            return latents.flatten(0, -2), index.flatten(), mask.flatten()
        return latents, index, mask

    def check(self, x: Tensor, calls: list[Call]) -> None:
        """ValueError unless batches differ at most in length along the places, in pieces of the same size."""
        if self.axes is None or x.shape[1:] == self.shape[1:]:
            return
        places, others = self.places_of(calls, len(x)), set(range(1, x.ndim)) - set(self.axes)
        same = x.ndim == len(self.shape) and all(x.shape[axis] == self.shape[axis] for axis in others)
        along = list(zip(self.axes, places, self.places))
        if not (same and len(self.axes) == len(places)) or any(
            x.shape[axis] * before != self.shape[axis] * now for axis, now, before in along
        ):
            raise ValueError(
                f"inputs must be of one size but for lengths, with as many latents for each length, got batches "
                f"{self.shape} with latents on {self.places} and {tuple(x.shape)} with {tuple(places)}"
            )

    def diagnoses(self, inputs: Sample, labels: Tensor | None, seed: int, **options: Any) -> dict[str, Diagnosis]:
        """The diagnosis of the whole and, if there are several codebooks, of each, by name. options: of `measure`."""
        if self.not_started:
            names = [self.unit.name, *(level.name for level in self.unit.levels if len(self.levels) > 1), *self.sites]
            return dict.fromkeys(names, not_started([name or self.unit.name for name in self.not_started]))
        try:
            observed = self.observed(inputs, labels, seed)
            expect_stages(observed)
            measures = measure(observed, **options)
            if not observed.stacked:
                found = {self.unit.name: report(observed, measures)}
            else:
                whole, parts = report_stack(observed, measures)
                found = {self.unit.name: whole}
                for level, one in zip(self.unit.levels, (one for part in parts for one in part)):
                    found.setdefault(level.name, one)  # heads of one codebook have one name, that of the whole
        except ValueError as error:
            raise ValueError(f"quantiser {self.unit.name!r}: {error}") from error
        whole = found[self.unit.name]
        found |= self.at_each_call(measures, seed)
        return found | {self.unit.name: replace(whole, notes=[*whole.notes, *self.notes])}

    def at_each_call(self, all_calls: Measures, seed: int) -> dict[str, Diagnosis]:
        """The codes as each of several calls uses them, by name: beside the codes that are best for all calls."""
        found, kept = {}, self.sample
        for number, name in enumerate(self.sites):
            here = (kept.of("site") == number) & kept.of("counts 0")
            if here.any():
                latents, index = kept.of("latents 0")[here], kept.of("index 0")[here]
                beside: dict[str, Any] = {"uses": self.site_uses[number], "kind": self.kind, "seed": seed}
                observed = observe(latents, self.codes[0], index=index, channel_axis=-1, **beside)
                found[name] = report_call(observed, measure(observed, all_calls.centroids))
        return found

    def observed(self, inputs: Sample, labels: Tensor | None, seed: int) -> Observed:
        """The sample as the diagnosis takes it. Raises ValueError for codes that are not finite."""
        for codes in self.codes:
            check_codebook(real_numbers(codes, "codebook"))  # before what they rebuild is looked at
        kept = self.sample
        order: Any = slice(None)
        if self.axes is not None:  # first those whose inputs are kept, in the order of these
            by_key = np.argsort(kept.keys)
            known = by_key[np.searchsorted(kept.keys, inputs.keys, sorter=by_key)]
            order = torch.from_numpy(np.concatenate([known, np.setdiff1d(by_key, known)]))

        def of(name: str) -> Tensor:
            tensor = kept.of(name)[order]
            if self.rows or self.places or name == "number":
                return tensor
            return tensor.flatten(0, -2) if name.startswith("latents") else tensor.flatten()  # one for each input

        counts = of("counts 0")
        if labels is not None and self.rows:
            self.notes.append("the labels were not used: it is not known which latents they belong to")
        beside: dict[str, Any] = {
            "labels": None if labels is None or self.rows else labels[of("number")],
            "inputs": self.paired(inputs, counts),
            "unused": self.unused,
            "mask": None if counts.all() else counts,
            "kind": self.kind,
            "seed": seed,
        }
        levels = [(of(f"latents {i}"), codes, of(f"index {i}")) for i, codes in enumerate(self.codes)]
        if len(levels) == 1:
            ((latents, codes, index),) = levels
            return observe(latents, codes, index=index, channel_axis=-1, uses=self.uses[0], **beside)
        one = iter(levels)
        return observe_stack([[next(one) for _ in part] for part in self.unit.parts], uses=self.uses, **beside)

    def paired(self, inputs: Sample, counts: Tensor) -> Inputs | None:
        """The inputs that are kept, beside the first of the latents; None, and a reason, if they do not belong."""
        if self.axes is None:
            return None
        x, back = inputs.of("x"), inputs.of("rebuilt") if "rebuilt" in inputs.tensors else None
        grid = (len(x), *counts.shape[1:])
        try:
            return Inputs(x, grid, self.axes or None, back, counts[: len(x)].flatten())
        except UnpairedInputs as error:
            self.leave_out(str(error), f"pass labels=, or {BY_HAND}")
            return None
