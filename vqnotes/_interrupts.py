"""Interrupts (Ctrl-C, a notebook's stop button): they end a run between two steps, and what was cut off is known."""

import signal
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from vqnotes._printing import say

_cut_off: dict[Hashable, str] = {}  # what was cut off in this process and has not run whole since


class _Flag:
    """A handler of interrupts that only takes note of the first."""

    up = False

    def __call__(self, *_: object) -> None:
        if self.up:
            raise KeyboardInterrupt
        self.up = True


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether an interrupt came: `with interruptible() as stopped:`, read once a step.

    A first interrupt changes nothing else. A second one ends the block at once, since what the first waits for may
    hang; so does any KeyboardInterrupt, and none comes out. A block inside another shares its flag: both end.
    Afterwards Python's own handler is back. Another program's stays in place all the time, and so does any outside
    the main thread, which alone gets signals.
    """
    before, main = signal.getsignal(signal.SIGINT), threading.current_thread() is threading.main_thread()
    flag = before if main and isinstance(before, _Flag) else _Flag()
    ours = main and before is signal.default_int_handler
    try:
        if ours:
            signal.signal(signal.SIGINT, flag)
        yield lambda: flag.up
    except KeyboardInterrupt:
        flag.up = True
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def cut_off() -> str:
    """What was cut off in this process and has not run to its end since, after how much: one sentence, or ""."""
    return "; ".join(_cut_off.values())


def note_end(run: Hashable, name: str, done: int, of: int, unit: str, *, cut: bool) -> None:
    """Takes note for `cut_off` of how a run ended; if it was cut off, prints so, and after how much.

    run: what makes it the same run when it is run again, such as its options and its data.
    name, done, of, unit: as in "fit (seed 0) was cut off after 3 of 10 steps".
    """
    if not cut:
        _cut_off.pop(run, None)
        return
    _cut_off[run] = f"{name} was cut off after {done:,} of {of:,} {unit}"
    say(f"Interrupted: {_cut_off[run]}. What follows from it is not the whole result; run it again.", flush=True)
