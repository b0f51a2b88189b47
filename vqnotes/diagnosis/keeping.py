"""A diagnosis that is kept: as plain data, as a table, in a file, as a page. Latents are not: none is in any of them
but as a dot in a page's picture.

What is plain is what JSON has. Numbers that JSON has no word for are the words "NaN", "Infinity" and "-Infinity".
"""

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import Enum
from inspect import Parameter, isclass, signature
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from vqnotes._files import replaced
from vqnotes.diagnosis.conditions import QUESTIONS
from vqnotes.diagnosis.pages import as_page
from vqnotes.diagnosis.rules import TREE

if TYPE_CHECKING:
    from pandas import DataFrame

    from vqnotes.diagnosis.report import Diagnosis, Evidence

__all__ = ["VERSION", "Kept", "as_dict", "as_frame", "loaded", "with_names", "write", "write_page"]

FORMAT, VERSION = "vqnotes diagnosis", 1
NOT_KEPT = {"drawing"}  # it holds latents
WORDS = {math.inf: "Infinity", -math.inf: "-Infinity"}
SEVERAL = "diagnoses"  # by name, as `diagnose_model` gives them

Own = TypeVar("Own", bound="Kept")


class Kept:
    """What can be done with a diagnosis of one codebook or of several: keep it, show it, read it again."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """All that the report says, as dicts, lists, words and numbers that any JSON takes; no latents.

        "format", "version" and "kind" say how to read it. NaN and infinities are the words "NaN", "Infinity" and
        "-Infinity".
        """
        return as_dict(self)

    def to_frame(self) -> "DataFrame":
        """The evidence, a row each: evidence, value, reference, compared_with, speaks_for, low, high, and of what is
        compared with a threshold question, answer, figure, unit, threshold, holds, close.

        low, high: the 95 % interval, NaN where there is none. Of several codebooks, codebook and verdict stand first.
        """
        return as_frame(self)

    def to_html(self, path: str | os.PathLike, *, figures: bool = True) -> None:
        """Writes one file that holds the report and its figures, and asks no network for anything.

        figures: whether the panels of `draw` and the tree of `draw_tree` are in it. What was loaded from a file has
        no panels. Raises ImportError without what draws, `pip install 'vqnotes[course]'`, and OSError where the file
        cannot be written; an older one is then as it was.
        """
        write_page(self, path, figures=figures)

    def save(self, path: str | os.PathLike) -> None:
        """Writes `to_dict()` as JSON, whole or not at all. Raises OSError where the file cannot be written."""
        write(self, path)

    @classmethod
    def load(cls: type[Own], path: str | os.PathLike) -> Own:
        """What `save` wrote, without `drawing`.

        Raises ValueError, with the place, for a file that is broken, of another version or of something else; and
        OSError where it cannot be read.
        """
        return loaded(path, {cls.__name__: cls})


def with_names(found: Any) -> list[tuple[str, "Diagnosis"]]:
    """The diagnoses in one, in several by name, or in that of a stack, each with what to call it."""
    if isinstance(found, Mapping):
        return list(found.items())
    if not hasattr(found, "parts"):
        return [("", found)]
    several = len(found.parts) > 1
    parts = [
        (f"part {i}, level {j}" if several else f"level {j}", one)
        for i, part in enumerate(found.parts)
        for j, one in enumerate(part)
    ]
    return [("whole", found.whole), *parts]


# ---------------------------------------------------------------- a table, a page


def as_frame(found: Any) -> "DataFrame":
    """See `Kept.to_frame`; of several, the name of each is its codebook."""
    from pandas import DataFrame

    columns = [*_row("", None)]
    several = not hasattr(found, "evidence")
    rows = [
        {"codebook": name, "verdict": one.verdict} | _row(evidence, figures)
        for name, one in with_names(found)
        for evidence, figures in one.evidence.items()
    ]
    return DataFrame(rows, columns=["codebook", "verdict", *columns] if several else columns)


def _row(name: str, one: "Evidence | None") -> dict[str, Any]:
    low, high = getattr(one, "interval", None) or (math.nan, math.nan)
    condition = getattr(one, "condition", None)
    row: dict[str, Any] = {"evidence": name}
    row |= {key: getattr(one, key, None) for key in ("value", "reference", "compared_with", "speaks_for")}
    row |= {"low": low, "high": high}
    for key in ("question", "answer", "figure", "unit", "threshold", "holds", "close"):
        value = getattr(condition, key, None)
        row[key] = value.value if isinstance(value, Enum) else value
    return row


def write_page(found: Any, path: str | os.PathLike, *, figures: bool) -> None:
    """See `Kept.to_html`."""
    text = as_page(with_names(found), figures=figures)
    with replaced(Path(path)) as beside:
        beside.write_text(text, encoding="utf-8")


# ---------------------------------------------------------------- to plain data


def as_dict(found: Any) -> dict[str, Any]:
    """See `Kept.to_dict`; of several by name, they stand under "diagnoses"."""
    head = {"format": FORMAT, "version": VERSION}
    if isinstance(found, Mapping):
        return head | {"kind": SEVERAL, SEVERAL: plain(found)}
    return head | {"kind": type(found).__name__} | plain(found)


def plain(value: Any) -> Any:
    """As JSON has it. TypeError for what has no place in a file, such as a tensor."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else WORDS.get(number, "NaN")
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    fields = getattr(value, "_fields", None) or getattr(value, "__dataclass_fields__", None)
    if fields is not None:
        return {name: plain(getattr(value, name)) for name in fields if name not in NOT_KEPT}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    raise TypeError(f"a diagnosis keeps words and numbers, got {type(value).__name__}")


def write(found: Any, path: str | os.PathLike) -> None:
    """See `Kept.save`."""
    text = json.dumps(as_dict(found), indent=1, allow_nan=False)
    with replaced(Path(path)) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


# ---------------------------------------------------------------- and back


def loaded(path: str | os.PathLike, kinds: Mapping[str, Any]) -> Any:
    """What `write` wrote, if it is one of these kinds: types by name, under SEVERAL that of several.

    Raises as `Kept.load`.
    """
    given = _read(path)
    kind = given.pop("kind", None)
    if not (isinstance(kind, str) and kind in kinds):
        raise ValueError(f"{path} holds the kind {kind!r:.80}, and what is asked for is {' or '.join(kinds)}")
    try:
        found = built(kinds[kind], given.get(SEVERAL) if kind == SEVERAL else given, "")
        for _, one in with_names(found):
            _check_conditions(one)
    except ValueError as error:
        raise ValueError(f"{path} is broken: {error}") from error
    return found


def _read(path: str | os.PathLike) -> dict[str, Any]:
    """The dict in a file, without its head."""
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is broken, or no JSON: {error}") from error
    if not isinstance(given, dict) or given.pop("format", None) != FORMAT:
        raise ValueError(f"{path} holds no diagnosis: write one by found.save(path)")
    version = given.pop("version", None)
    if version != VERSION or isinstance(version, bool):
        raise ValueError(
            f"{path} has version {version!r:.80} of a diagnosis, and this vqnotes reads version {VERSION}: read it "
            f"with the vqnotes that wrote it, or diagnose again"
        )
    return given


def built(kind: Any, given: Any, place: str) -> Any:
    """The value that `plain` made this of, by its type; ValueError, with the place, for what is none of that type."""
    origin, of = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        others = [one for one in of if one is not NoneType]
        return None if given is None and len(others) < len(of) else built(others[0], given, place)
    if origin is dict and isinstance(given, dict):
        return {key: built(of[1], one, f"{place}.{key}") for key, one in given.items()}
    if origin is list and isinstance(given, list):
        return [built(of[0], one, f"{place}[{i}]") for i, one in enumerate(given)]
    if origin is tuple and isinstance(given, list) and len(given) == len(of):
        return tuple(built(*pair, f"{place}[{i}]") for i, pair in enumerate(zip(of, given)))
    if kind is float and (given in ("NaN", *WORDS.values()) or _is_number(given)):
        return float(given) if isinstance(given, str) else given
    if kind in (str, bool) and isinstance(given, kind):
        return given
    if isclass(kind) and issubclass(kind, Enum) and given in [one.value for one in kind]:
        return kind(given)
    if isclass(kind) and (is_dataclass(kind) or hasattr(kind, "_fields")) and isinstance(given, dict):
        return _record(kind, given, place)
    raise ValueError(f"{place or 'the file'} is no {getattr(kind, '__name__', kind)}: {given!r:.80}")


def _is_number(given: Any) -> bool:
    """A whole number may be larger than any other in Python, and none here is."""
    number = isinstance(given, int | float) and not isinstance(given, bool)
    return number and (isinstance(given, float) or abs(given) <= sys.float_info.max)


def _record(kind: type, given: dict, place: str) -> Any:
    hints = {name: one for name, one in get_type_hints(kind).items() if name not in NOT_KEPT}
    parameters = signature(kind).parameters
    missing = [name for name in hints if name not in given and parameters[name].default is Parameter.empty]
    unknown = [name for name in given if name not in hints]
    if missing or unknown:
        wrong = f"lacks {missing}" if missing else f"has {unknown}, which are unknown"
        raise ValueError(f"{place or 'the file'} {wrong:.200}")
    inside = f"{place}." if place else ""
    return kind(**{name: built(hints[name], one, inside + name) for name, one in given.items()})


def _check_conditions(found: "Diagnosis") -> None:
    """ValueError for a question that nobody asks, and for a figure or threshold that has no place on a bar."""
    asked = [name for name, _ in found.path if name not in TREE]
    compared = {name: one.condition for name, one in found.evidence.items() if one.condition is not None}
    asked += [one.question for one in compared.values() if one.question not in QUESTIONS]
    if asked:
        raise ValueError(f"there is no question {asked[0]!r:.80}")
    for name, one in compared.items():
        if math.isnan(one.figure) or not 0 < one.threshold < math.inf:
            raise ValueError(f"evidence.{name} has a condition with {one.figure:g} beside {one.threshold:g}")
