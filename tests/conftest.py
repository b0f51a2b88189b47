"""Two workers share two cores: one thread each, for tests and notebooks' kernels. Measures the notebooks' minutes."""

import os
import signal

import pytest

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["VQNOTES_SCALE"] = "small"  # of notebook 10, on a machine with a GPU too
os.environ.pop("VQNOTES_RESULTS", None)  # no results of an earlier run
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it otherwise


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local server of small data sets, with nothing in the cache."""
    from served import serving

    with serving(tmp_path, monkeypatch) as running:
        yield running


def pytest_terminal_summary(terminalreporter):
    """How long each notebook ran, beside what is stamped on it."""
    from notebook_tools import NOTEBOOKS, minutes_to_run, stamped

    reports = [one for kind in terminalreporter.stats.values() for one in kind if hasattr(one, "duration")]
    for path in NOTEBOOKS:
        seconds = sum(one.duration for one in reports if f"{path.name}::" in one.nodeid)
        if seconds:
            run, *_ = stamped(path)
            line = f"{path.name} ran for {seconds:.0f} s = {minutes_to_run(seconds)} min, stamped {run}"
            terminalreporter.write_line(line)
