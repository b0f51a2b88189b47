"""What every test and every notebook's kernel runs with: two workers share two cores, so one thread each."""

import os
import signal
import tempfile

from figure_faults import watched

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["VQNOTES_SCALE"] = "small"  # of notebook 10, on a machine with a GPU too
os.environ.pop("VQNOTES_RESULTS", None)  # no results of an earlier run
for kind in ("CONNECT", "TCP"):  # of Dask's workers, which take longer than its half a minute on a busy machine
    os.environ.setdefault(f"DASK_DISTRIBUTED__COMM__TIMEOUTS__{kind}", "3h")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers have it from the process that starts them
    FOLDER = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    os.environ |= watched(FOLDER.name)  # a figure that cannot be read is an error in its cell
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it otherwise

pytest_plugins = [
    "notebook_reports"
]  # here and not in tests/, so that `pytest notebooks/05_remedies.ipynb` has it too
