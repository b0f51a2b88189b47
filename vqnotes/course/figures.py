"""Figures behind a claim in a few words: numbers to three digits, a few of them by name, many by their range."""

import math
import sys
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

__all__ = ["in_words", "short"]

MOST = 8  # values that are shown one by one
LONGEST = 60  # characters of a text


def in_words(figures: Mapping[str, object]) -> str:
    """All that can be said briefly, as "covered = 1.4 · of = 10"; what can not is left out.

    A name's low line stands for a blank.
    """
    said = {name.replace("_", " ").strip(): short(value) for name, value in figures.items()}
    return " · ".join(f"{name} = {text}" for name, text in said.items() if text)


def short(value: Any) -> str:
    """A number to three digits, a text, a verdict, or some of these; "" for anything else.

    Of a mapping, a Series, an array or a collection with up to eight elements each is shown, with its name if it has
    one; of more numbers the least, the median and the greatest. Of a table up to eight cells are shown.
    """
    if hasattr(value, "verdict"):
        return str(value.verdict)
    torch = sys.modules.get("torch")  # which takes seconds to import; without it nothing is a tensor
    if torch and isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, str | bool | Real):
        return _one(value)
    if hasattr(value, "items") and getattr(value, "ndim", 1) == 1:
        return _named(dict(value.items()))
    if hasattr(value, "stack"):  # a table: its columns may measure different things, so that no range is shown
        return _named(dict(value.stack().items())) if value.size <= MOST else ""
    return _many(list(value)) if isinstance(value, list | tuple | set | frozenset | range) else ""


def _one(value: object) -> str:
    if isinstance(value, str):
        text = " ".join(value.split())
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{value:,}"
    number = float(value)  # type: ignore[arg-type]
    return f"{number:,.0f}" if 1000 <= abs(number) < 1e6 else f"{number:.3g}"


def _named(values: Mapping) -> str:
    if len(values) > MOST:
        return _many(values.values())
    said = {_name(name): short(value) for name, value in values.items()}
    return ", ".join(f"{name} {text}" for name, text in said.items()) if all(said.values()) else ""


def _name(name: object) -> str:
    return (
        " ".join(map(_name, name)) if isinstance(name, tuple) else _one(name) if isinstance(name, Real) else str(name)
    )


def _many(values: Iterable) -> str:
    values = list(values)
    while values and all(isinstance(one, list | tuple | np.ndarray) for one in values):
        values = [one for some in values for one in some]
    if len(values) <= MOST:
        said = [short(one) for one in values]
        return ", ".join(said) if all(said) else ""
    if not all(isinstance(one, Real) for one in values):
        return ""
    numbers = np.array([float(one) for one in values if not math.isnan(one)])
    if not len(numbers):
        return ""
    least, middle, most = (_one(float(one)) for one in np.quantile(numbers, [0, 0.5, 1]))
    return f"{least} to {most}, median {middle}"
