"""A progress bar over the stages of a piece of work, seen only where somebody waits.

Whether work is long is told by its multiplications and not by a clock, so that any machine prints the same.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

LONG = 2**38  # multiplications: a core takes some ten seconds for them


class _Stages:
    """How far a piece of work has come. shown: whether it has a bar; None: if the work is long."""

    def __init__(self, title: str, shown: bool | None):
        self.title, self.shown, self.total, self.begun, self.work = title, shown, 0, 0, 0.0
        self.bar: Any = None

    def expect(self, stages: int, multiplications: float) -> None:
        self.total, self.work = self.total + stages, self.work + multiplications
        if self.bar is None and (self.work > LONG if self.shown is None else self.shown):
            form = "{l_bar}{bar}| {elapsed}"
            self.bar = tqdm(total=self.total, initial=self.begun, desc=self.title, leave=False, bar_format=form)
        if self.bar is not None:
            self.bar.total = self.total

    def begin(self, name: str) -> None:
        self.begun += 1
        if self.bar is not None:
            self.reach(self.begun - 1)
            self.bar.set_description(f"{self.title}: {name}")

    def reach(self, stages: float) -> None:
        """So many stages are done; a part of one counts too."""
        self.bar.update(max(0, stages - self.bar.n))


_current: ContextVar[_Stages | None] = ContextVar("current", default=None)


@contextmanager
def progress_bar(title: str, shown: bool | None) -> Iterator[None]:
    """A bar for the stages that begin inside.

    shown: True, False, or None for a bar where `expect` hears of long work.
    A bar inside another one hides it until it is closed; so does one that is not shown.
    """
    stages = _Stages(title, shown)
    before = _current.set(stages)
    try:
        yield
    finally:
        _current.reset(before)
        if stages.bar is not None:
            stages.bar.close()


def expect(stages: int, multiplications: float) -> None:
    """So many more stages will come, and about so much work. Does nothing where there is no bar to be shown."""
    if (current := _current.get()) is not None:
        current.expect(stages, multiplications)


def stage(name: str) -> None:
    """The stage of this name begins, and the one before is done. Does nothing where there is no bar to be shown."""
    if (current := _current.get()) is not None:
        current.begin(name)


def first_half(items: Any) -> Iterable:
    """The items one after another, while the bar moves through the first half of the stage."""
    current = _current.get()
    return items if current is None or current.bar is None else _half(items, current)


def _half(items: Any, current: _Stages) -> Iterator:
    for number, item in enumerate(items):
        yield item
        current.reach(current.begun - 1 + (number + 1) / (2 * len(items)))
