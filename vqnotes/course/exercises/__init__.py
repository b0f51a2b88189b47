"""Exercises that check themselves: nb00, nb01, ... hold one `check_*` function for each exercise of a notebook.

A check runs the reader's answer beside a reference, on inputs drawn anew each time, and prints one line:
"Exercise 1.2: not attempted yet", "… correct" or "… wrong because …". It never raises and changes nothing.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqnotes._printing import say

__all__ = ["call", "check", "given", "replaced", "whole"]

NOT_YET, CORRECT, WRONG = "not attempted yet", "correct", "wrong because "


class _NotAttempted(Exception):
    """The stub's placeholder `...` is still there."""


def given(result: Any) -> Any:
    """What the reader's function returned, handed through. ValueError for None; the placeholder ends the check."""
    if any(one is ... for one in (result if isinstance(result, tuple) else [result])):
        raise _NotAttempted
    if result is None:
        raise ValueError("the function returns nothing, is a `return` missing?")
    return result


def call(answer: Callable, *case: object) -> object:
    """The plain way to measure an answer: its result on one case."""
    return given(answer(*case))


def whole(generator: torch.Generator, low: int, high: int) -> int:
    """A whole number, from low to high - 1."""
    return int(torch.randint(low, high, (), generator=generator))


def replaced(rows: Tensor, which: Tensor, fresh: Tensor) -> Tensor:
    """A copy of rows (K, D) in which those of the mask `which` (K,) are, in order, the first of the fresh ones."""
    return rows.masked_scatter(which[:, None], fresh)


def check(
    number: str,
    answer: object,
    reference: object,
    cases: Callable[[torch.Generator], Sequence[tuple]] | None = None,
    mistakes: Sequence[tuple[object, str]] = (),
    *,
    measure: Callable = call,
    tolerance: float = 1e-4,
) -> None:
    """Compares an answer with the reference and prints the verdict.

    number: of the exercise, such as "1.2". answer: the reader's function, or a value where `cases` is None.
    cases: from a freshly seeded generator, the argument tuples to try; their tensors are copied for each call.
    mistakes: typical wrong answers, each a function like the reference (or a value), with what to tell its author.
    The most typical comes first; one is recognised if it agrees with the answer in all cases.
    measure: measure(answer, *case) gives what is compared: numbers, tensors, strings, or tuples of them. One that
    does more than to call the answer passes the result of the call through `given` first.
    tolerance: relative, and absolute for numbers below 1.
    """
    try:
        verdict = _verdict(answer, reference, cases, mistakes, measure, tolerance)
    except Exception as error:  # a notebook goes on whatever its reader wrote
        verdict = f"{WRONG}the check could not read the answer ({type(error).__name__}: {error})"
    say(f"Exercise {number}: {verdict}")


def _verdict(
    answer: Any,
    reference: object,
    cases: Callable[[torch.Generator], Sequence[tuple]] | None,
    mistakes: Sequence[tuple[object, str]],
    measure: Callable,
    tolerance: float,
) -> str:
    if answer is ...:
        return NOT_YET
    asked_for_a_value = cases is None
    if cases is None:
        if callable(answer):
            return f"{WRONG}a value is asked for here, and this is {type(answer).__name__}"
        cases, measure = (lambda generator: [()]), (lambda value: value)
    elif not callable(answer):
        return f"{WRONG}the function itself is asked for: hand over its name, without calling it"
    generator = torch.Generator()
    generator.seed()
    inputs = cases(generator)
    found = []
    for case in inputs:
        own = copy.deepcopy(case)
        try:
            found.append(measure(answer, *own))
        except _NotAttempted:
            return NOT_YET
        except Exception as error:
            return f"{WRONG}it stops with {type(error).__name__}: {str(error).strip() or 'no message'}"
        if not _same(own, case, 0):
            return f"{WRONG}it changes its input in place: work on a copy"

    def agrees(other: object) -> bool:
        try:
            outcomes = (measure(other, *copy.deepcopy(case)) for case in inputs)
            return all(_same(result, outcome, tolerance) for result, outcome in zip(found, outcomes))
        except Exception:  # a mistake that cannot be made on these inputs
            return False

    if agrees(reference):
        return CORRECT
    for mistake, because in mistakes:
        if agrees(mistake):
            return f"{WRONG}{because}"
    if asked_for_a_value:
        return WRONG + _hint(answer, reference)
    for case, result in zip(inputs, found):
        right = measure(reference, *copy.deepcopy(case))
        if not _same(result, right, tolerance):
            return WRONG + _difference(result, right, tolerance)
    raise AssertionError("an answer that agrees in no way must differ in some case")


def _tensor(one: object) -> Tensor | None:
    """Tensors, arrays, numbers and lists of numbers as a tensor in double precision, None for anything else."""
    if isinstance(one, str | dict | set):
        return None
    try:
        return torch.as_tensor(one.detach() if isinstance(one, Tensor) else np.asarray(one)).double().cpu()
    except (TypeError, ValueError, RuntimeError):
        return None


def _same(one: object, other: object, tolerance: float) -> bool:
    first, second = _tensor(one), _tensor(other)
    if first is not None and second is not None:
        return first.shape == second.shape and torch.allclose(first, second, tolerance, tolerance, equal_nan=True)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(_same(*pair, tolerance) for pair in zip(one, other))
    if (first is None) != (second is None):
        return False
    return bool(one == other)


def _hint(found: object, right: object) -> str:
    """What a wrong value is told without being told the right one."""
    first, second = _tensor(found), _tensor(right)
    if first is None or second is None or first.numel() != 1 or second.numel() != 1:
        return f"{found!r} is not it"
    return f"{found!r} is too {'large' if first > second else 'small'}"


def _difference(found: object, right: object, tolerance: float) -> str:
    """Why two results are not the same, for an answer that matches no known mistake."""
    first, second = _tensor(found), _tensor(right)
    if first is None or second is None:
        if isinstance(found, tuple | list) and isinstance(right, tuple | list) and len(found) == len(right):
            pairs = (pair for pair in zip(found, right) if not _same(*pair, tolerance))
            return _difference(*next(pairs), tolerance)
        return f"its result is {found!r}, where {right!r} is right"
    if first.shape != second.shape:
        return f"its result has shape {tuple(first.shape)}, where {tuple(second.shape)} is right"
    place = (first - second).abs().nan_to_num(torch.inf).argmax()
    values = f"{first.flatten()[place]:.4g}, where {second.flatten()[place]:.4g} is right"
    if first.ndim == 0:
        return f"on a fresh input its result is {values}"
    where = tuple(int(axis) for axis in np.unravel_index(int(place), first.shape))
    return f"on a fresh input its result at {list(where)} is {values}"
