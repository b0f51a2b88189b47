"""Diagnoses kept and read again, and two of them side by side: what has changed from one checkpoint to the next."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from vqnotes._printing import in_digits
from vqnotes.diagnosis import keeping
from vqnotes.diagnosis.report import Diagnosis, Evidence, StackDiagnosis
from vqnotes.diagnosis.showing import in_columns, in_interval

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Change", "Comparison", "compare", "load", "save"]

Found = Diagnosis | StackDiagnosis | Mapping[str, Diagnosis]
HEAD = ("", "before", "95% interval", "after", "95% interval", "after - before", "changed", "holds")


def save(found: Found, path: str | os.PathLike) -> None:
    """Writes a diagnosis, or several by name as `diagnose_model` gives them, as JSON, whole or not at all.

    What is in it, `Diagnosis.to_dict` says. Raises OSError where the file cannot be written.
    """
    keeping.write(found, path)


def load(path: str | os.PathLike) -> Diagnosis | StackDiagnosis | dict[str, Diagnosis]:
    """What `save` wrote, without drawings. Raises ValueError, with the place, for a broken file, OSError for none."""
    kinds = {one.__name__: one for one in (Diagnosis, StackDiagnosis)}
    return keeping.loaded(path, {**kinds, keeping.SEVERAL: dict[str, Diagnosis]})


class Change(NamedTuple):
    """One figure, before and after; None where it was not measured.

    codebook: whose it is, "" where there is only one. interval: of after - before, at 95 %. changed: whether that
    leaves out 0; None where one of the two has no interval, so that it is not known what chance does.
    """

    codebook: str
    name: str
    before: Evidence | None
    after: Evidence | None
    interval: tuple[float, float] | None = None
    changed: bool | None = None

    @property
    def difference(self) -> float:
        """after - before; NaN where one of them was not measured, or both are infinite."""
        if self.before is None or self.after is None:
            return math.nan
        return self.after.value - self.before.value


@dataclass(frozen=True, repr=False)
class Comparison:
    """Two diagnoses side by side. Prints as a report, in plain ASCII, and shows as a table in a notebook.

    before, after: by the name of the codebook, "" where there is only one. changes: all figures of both, in their
    order. notes: what stands in the way of comparing them.
    """

    before: dict[str, Diagnosis]
    after: dict[str, Diagnosis]
    changes: list[Change]
    notes: list[str]

    @property
    def changed(self) -> bool:
        """Whether a verdict is another one, or a figure has moved beyond the intervals."""
        verdicts = any(one.verdict != self.after[name].verdict for name, one in self.before.items())
        return verdicts or any(one.changed for one in self.changes)

    def to_frame(self) -> "DataFrame":
        """A row each figure: codebook, evidence, before, after, difference, low, high (of it, at 95 %), changed."""
        from pandas import DataFrame

        columns = ["codebook", "evidence", "before", "after", "difference", "low", "high", "changed"]
        rows = []
        for one in self.changes:
            values = [math.nan if side is None else side.value for side in (one.before, one.after)]
            ends = one.interval or (math.nan, math.nan)
            rows.append((one.codebook, one.name, *values, one.difference, *ends, one.changed))
        return DataFrame(rows, columns=columns)

    def __str__(self) -> str:
        lines = []
        for name, rows in self._tables():
            lines += [
                f"{name}:" if name else "",
                *self._verdicts(name),
                "",
                *(f"  {one}" for one in in_columns(rows)),
            ]
        return "\n".join([*lines, "", *(f"Note: {one}" for one in self.notes)]).strip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = []
        for name, rows in self._tables():
            head, *body = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
            said = "".join(f"<p>{escape(one)}</p>" for one in self._verdicts(name))
            table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{one}</tr>' for one in body)}</tbody>"
            parts.append((f"<h4>{escape(name)}</h4>" if name else "") + f"{said}<table>{table}</table>")
        return "".join(parts) + "".join(f"<p><small>Note: {escape(one)}</small></p>" for one in self.notes)

    def _tables(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        return [
            (name, [HEAD, *(_cells(one) for one in self.changes if one.codebook == name)]) for name in self.before
        ]

    def _verdicts(self, name: str) -> list[str]:
        before, after = self.before[name], self.after[name]
        said = [
            f"First, {when}: {doubt}" for when, one in (("before", before), ("after", after)) for doubt in one.doubts
        ]
        if before.verdict == after.verdict:
            return [*said, f"Verdict: {after.verdict}, as before"]
        return [*said, f"Verdict: {before.verdict} -> {after.verdict}", f"  {after.reason}"]


def compare(before: Found, after: Found) -> Comparison:
    """Two diagnoses of one model side by side, such as of two checkpoints: what has changed, beyond the intervals.

    before, after: both a `Diagnosis`, both a `StackDiagnosis` of the same parts and levels, or both several by the
    same names, from `diagnose_model`.

    A figure has changed if the 95 % interval of its difference leaves out 0. That interval is put together of those
    of both figures (Zou and Donner 2008, doi:10.1002/sim.3095), as if the two were independent; on the same inputs
    they go together, and it is rather too wide. It tells what another sample of the data may do, not another
    training. Between two samples of 1,500 latents and the same codes, where nothing had changed, 18 of 480 figures
    counted as changed (60 pairs); where the encoder lost next to nothing 24, of which 11 were what it lost.
    Raises ValueError for what does not belong together.
    """
    sides = [dict(keeping.with_names(one)) for one in (before, after)]
    kinds = [
        type(one).__name__ if isinstance(one, Diagnosis | StackDiagnosis) else "several" for one in (before, after)
    ]
    if kinds[0] != kinds[1] or sides[0].keys() != sides[1].keys():
        told = [f"{kind} of {list(side)}" if any(side) else kind for kind, side in zip(kinds, sides)]
        raise ValueError(f"need two diagnoses of the same codebooks, got {told[0]} and {told[1]}")
    changes, notes = [], []
    for codebook, first in sides[0].items():
        second = sides[1][codebook]
        for name in [*first.evidence, *(name for name in second.evidence if name not in first.evidence)]:
            one = _change(codebook, name, first.evidence.get(name), second.evidence.get(name))
            changes.append(one)
            notes += _other_terms(one)
    if any(one.changed is None for one in changes):
        notes.append("where no answer stands under changed, one of the two has no interval, or was not measured")
    return Comparison(sides[0], sides[1], changes, notes)


def _change(codebook: str, name: str, before: Evidence | None, after: Evidence | None) -> Change:
    if before is None or after is None or before.interval is None or after.interval is None:
        return Change(codebook, name, before, after)
    (low, high), (new_low, new_high) = before.interval, after.interval
    if any(map(math.isnan, (low, high, new_low, new_high))):
        return Change(codebook, name, before, after)
    if not all(map(math.isfinite, (before.value, after.value, low, high, new_low, new_high))):
        return Change(codebook, name, before, after, None, high < new_low or new_high < low)
    by = after.value - before.value
    least = by - math.hypot(max(0, after.value - new_low), max(0, high - before.value))
    most = by + math.hypot(max(0, new_high - after.value), max(0, before.value - low))
    return Change(codebook, name, before, after, (least, most), not least <= 0 <= most)


def _other_terms(one: Change) -> list[str]:
    """A note where a figure stands beside something else than before."""
    if one.before is None or one.after is None or one.before.compared_with == one.after.compared_with:
        return []
    where = f"{one.codebook}, {one.name}" if one.codebook else one.name
    return [f"{where}: before beside those {one.before.compared_with}; after, {one.after.compared_with}"]


def _cells(one: Change) -> tuple[str, ...]:
    sides = [
        ("not measured", "") if side is None else (in_digits(side.value), in_interval(side.interval))
        for side in (one.before, one.after)
    ]
    by = one.difference
    moved = "" if math.isnan(by) else ("+" if by > 0 else "") + in_digits(by)
    held = [
        "" if side is None or side.holds is None else "yes" if side.holds else "no"
        for side in (one.before, one.after)
    ]
    crossed = f"{held[0]} -> {held[1]}" if all(held) and held[0] != held[1] else ""
    return (one.name, *sides[0], *sides[1], moved, {True: "yes", False: "no", None: ""}[one.changed], crossed)
