"""Small problems on one thread: BLAS and OpenMP threads that wait for each other lose to any busy neighbour."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Meanwhile BLAS (NumPy's, SciPy's), OpenMP (scikit-learn's) and torch compute on the calling thread alone.

    For problems that are small beside the cost of a parallel region. Threads of a pool spin while they wait; beside
    other busy processes each region then takes as long as the scheduler's time slice. As many threads as before
    are allowed again at the end. Libraries that are first loaded meanwhile keep their own number, torch's limit
    holds for the calling thread.
    """
    before = torch.get_num_threads()
    with threadpool_limits(limits=1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
