"""Interrupts (Ctrl-C, a notebook's stop button): kept from where they would tear something, and never lost."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def cut_off() -> str:
    """What was cut off in this process and has not run to its end since, after how much: one sentence, or ""."""
    return ""


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
