"""Interrupts (Ctrl-C, a notebook's stop button): kept from where they would tear something, and never lost."""

import signal
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from vqnotes._printing import say

_cut_off: dict[Hashable, str] = {}  # what was cut off in this process and has not run whole since


def cut_off() -> str:
    """What was cut off in this process and has not run to its end since, after how much: one sentence, or ""."""
    return "; ".join(_cut_off.values())


def note_cut(run: Hashable, name: str, done: int, of: int, unit: str) -> None:
    """Prints that a run was cut off, and after how much; `cut_off` says so until the same run is noted as whole.

    run: what makes it the same run, such as its options; name, done, of, unit: as in "fit ... after 3 of 10 steps".
    """
    _cut_off[run] = f"{name} was cut off after {done:,} of {of:,} {unit}"
    say(f"Interrupted: {_cut_off[run]}. What follows from it is not the whole result; run it again.", flush=True)


def note_whole(run: Hashable) -> None:
    """Forgets that the run was cut off: it has finished now."""
    _cut_off.pop(run, None)


@contextmanager
def handled(handler: Callable) -> Iterator[None]:
    """Meanwhile the handler gets every interrupt; then the one before it does again.

    Nothing changes outside the main thread, which alone gets signals, or where interrupts do not lead to Python.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    try:
        signal.signal(signal.SIGINT, handler)
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def held() -> Iterator[Callable[[], None]]:
    """Holds an interrupt back until the end, or until the function is called that this gives: one may land there.

    A second one is passed on at once, since what it waits for may hang. Both go to the handler from before. An error
    comes before an interrupt that is still held: it ends things too.
    """
    before, waiting = signal.getsignal(signal.SIGINT), []

    def hold(*arguments) -> None:
        waiting.append(arguments)
        if len(waiting) > 1:
            before(*arguments)

    def let_in() -> None:
        if waiting:
            arguments = waiting[0]
            waiting.clear()
            before(*arguments)
            if getattr(before, "waiting", None):  # held back outside of this too: both end
                raise KeyboardInterrupt

    hold.waiting = waiting
    with handled(hold):
        yield let_in
    let_in()


@contextmanager
def noticed() -> Iterator[None]:
    """Raises KeyboardInterrupt at the end if one came, even if it was taken as the end of a run, as `fit` does."""
    came = []

    def note(*_) -> None:
        came.append(True)
        raise KeyboardInterrupt

    try:
        with handled(note):
            yield
    finally:
        if came:
            raise KeyboardInterrupt
