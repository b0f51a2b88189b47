"""Small problems on one thread: BLAS and OpenMP threads that wait for each other lose to any busy neighbour."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache

import torch
from threadpoolctl import ThreadpoolController

SMALL = 2**29  # multiplications: below it one thread takes some tens of milliseconds
PER_THREAD = 2**20  # numbers: a few passes over so many take one thread some milliseconds
_lock = threading.Lock()  # of _torch_threads
_torch_threads: dict[int, int] = {}  # of each Python thread that is limited now, by its identity: what it gets back
_for_parts = threading.local()  # .threads: within `alone_but_for_parts`, how many parts are shared out among
_blas = threading.Lock()  # held by whoever limits it: its limit is the whole process's


def is_small(multiplications: float) -> bool:
    """Whether a piece of work, such as a training step's forward pass, is better done on one thread: below 2^29.

    A second thread saves at most half of its tens of milliseconds. But a step is a hundred parallel regions, and in
    each all threads wait for the last: where another program keeps a core busy, for a time slice of the scheduler.
    """
    return multiplications < SMALL


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Meanwhile PyTorch computes on the calling thread alone; afterwards on as many as before. May be nested."""
    me = threading.get_ident()
    if me in _torch_threads:
        yield
        return
    with _lock:
        # A Python thread gets the number that was set last in any other. If that was a limit, it is not this one's.
        found, others = torch.get_num_threads(), _torch_threads.values()
        _torch_threads[me] = max(others) if found == 1 and others else found
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            torch.set_num_threads(_torch_threads.pop(me))


@contextmanager
def _torch_threads_set(number: int) -> Iterator[None]:
    """Meanwhile PyTorch computes on so many threads."""
    before = torch.get_num_threads()
    if number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Meanwhile BLAS (NumPy's, SciPy's), OpenMP (scikit-learn's) and PyTorch compute on the calling thread alone.

    For problems that are small beside the cost of a parallel region, see `is_small`. As many threads as before are
    allowed again at the end, also after an error. May be nested, and entered from several Python threads: the limits
    of OpenMP and PyTorch hold for the calling thread; BLAS has one for the whole process, which the thread that has
    set it lifts, since threadpoolctl lets no other do so.
    Libraries that are first loaded meanwhile keep their own number.
    """
    pools = _pools(len(sys.modules))
    first = _blas.acquire(blocking=False)
    try:
        mine = pools if first else pools.select(user_api="openmp")
        with one_torch_thread(), mine.limit(limits=1):  # in this order: the limit is OpenMP's too, that torch has
            yield
    finally:
        if first:
            _blas.release()


@contextmanager
def alone_but_for_parts() -> Iterator[None]:
    """Meanwhile PyTorch computes on the calling thread alone; `shared_out` still has as many threads as before.

    For small operations around large ones. A Python thread that starts meanwhile gets one thread, see
    `one_torch_thread`, and keeps it unless it asks for more.
    """
    there = torch.get_num_threads()
    if there == 1 or torch.compiler.is_compiling():
        yield
        return
    with one_torch_thread():
        try:
            _for_parts.threads = there
            yield
        finally:
            del _for_parts.threads


def shared_out(
    work: Callable[[Iterator], None], parts: Sequence, device: torch.device, threads: int = sys.maxsize
) -> None:
    """Has `work` done on all parts by as many Python threads as PyTorch would use, each with one of its own.

    work: takes parts from an iterator until there are none. Where several threads compute one part, each operation
    ends when the last of them does, and beside a busy neighbour that is late each time; here they wait once, at the
    end. Another device than the processor gets all parts from the calling thread. No gradient is recorded.
    threads: how many the work is worth at most.
    """
    left, there = iter(parts), getattr(_for_parts, "threads", torch.get_num_threads())
    if device.type != "cpu" or (len(parts) == 1 and threads > 1):
        with torch.no_grad(), _torch_threads_set(there):
            work(left)
        return
    inference = torch.is_inference_mode_enabled()  # which each Python thread has for itself, as it has the others

    def alone() -> None:
        with torch.inference_mode(inference), torch.no_grad(), one_torch_thread():
            work(left)  # the next of a list's iterator is given to one thread only

    more = min(threads, there, len(parts)) - 1
    if more == 0:
        alone()
        return
    with ThreadPoolExecutor(more) as pool:
        others = [pool.submit(alone) for _ in range(more)]
        try:
            alone()
        finally:
            list(left)  # after an error: nobody begins another part
    for other in others:
        other.result()


def threads_for(multiplications: float) -> AbstractContextManager:
    """`one_thread()` for work that is small, by `is_small`; as many as there are for the rest."""
    return one_thread() if is_small(multiplications) else nullcontext()


def torch_threads_for(multiplications: float) -> AbstractContextManager:
    """The same for work that PyTorch alone does: `one_torch_thread()`, or as many as there are."""
    return one_torch_thread() if is_small(multiplications) else nullcontext()


def worth_threads(numbers: int) -> int:
    """How many threads a few passes over so many numbers are worth."""
    return max(1, numbers // PER_THREAD)


def torch_threads_for_passes(numbers: int) -> AbstractContextManager:
    """`one_torch_thread()` for passes over few numbers, by `worth_threads`; as many as there are for more."""
    return one_torch_thread() if worth_threads(numbers) == 1 else nullcontext()


@lru_cache(maxsize=1)
def _pools(modules: int) -> ThreadpoolController:
    """The libraries' pools of threads, looked for anew (3 ms) only if more modules have been imported."""
    return ThreadpoolController()
