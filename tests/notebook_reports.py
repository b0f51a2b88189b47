"""A plugin of pytest beside nbval: notebooks are waited for patiently, and a failed cell is named at the very end.

- nbval waits for 5 to 60 seconds in places, which a busy machine exceeds. Here all waits are of hours, and a kernel
  that dies ends them at once.
- A cell that the time limit cuts off fails, also if what it ran took the interrupt as a wish to stop.
- The notebooks come first, the longest before the others: one that began last would leave a worker idle.
- Cells after a failed one are not run, since what they say would be about that one: they are skipped, and say why.
- The last lines of a run that fails are one line a failed cell: notebook, cell, and why.
"""

import re
import time
from itertools import zip_longest
from queue import Empty

import nbval.plugin
import pytest
from nbval.kernel import RunningKernel
from notebook_tools import HOURS, NOTEBOOKS, ROUNDED, minutes_to_run, stamped

SLOWEST = 3  # cells of a run that are named


class PatientKernel(RunningKernel):
    """nbval's kernel, without its haste."""

    def get_message(self, stream, timeout=None):
        """The next message of a stream. Raises Empty after `timeout` seconds, RuntimeError if the kernel is dead."""
        began = time.monotonic()
        while True:
            try:
                return super().get_message(stream, timeout=min(1, timeout))
            except Empty:
                if not self.is_alive():
                    raise RuntimeError("the kernel died") from None
                if time.monotonic() - began > timeout:
                    raise

    def _ensure_iopub_up(self):
        """Asks until an answer comes on the stream of outputs: what was sent before it was open is lost."""
        while True:
            asked = self.kc.kernel_info()
            self.await_reply(asked, timeout=HOURS)
            try:
                return self.await_idle(asked, timeout=1)
            except Empty:
                continue


nbval.plugin.RunningKernel = PatientKernel


def is_cell(item) -> bool:
    return isinstance(item, nbval.plugin.IPyNbCell)


def pytest_itemcollected(item):
    if is_cell(item):
        item.output_timeout = HOURS


def pytest_collection_modifyitems(items):
    minutes = {text: most for most, text in ROUNDED.items()}
    stamps = {path: stamped(path)[:1] for path in {item.path for item in items if is_cell(item)}}
    longest = {path: minutes.get(*stamp, max(minutes.values())) for path, stamp in stamps.items() if stamp}
    items.sort(key=lambda item: -longest.get(item.path, 0))  # in a file the order stays


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    failed = getattr(item.parent, "failed_cell", None)
    if is_cell(item) and failed is not None:
        pytest.skip(f"not judged, since cell {failed} failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    error = None
    try:
        yield
    except nbval.plugin.NbCellError as caught:
        error = caught
    if is_cell(item) and item.parent.timed_out:
        limit = f"--nbval-cell-timeout={item.config.option.nbval_cell_timeout:g}"
        item.raise_cell_error(
            f"cut off: it did not end within {limit} seconds", getattr(error, "inner_traceback", None)
        )
    if error:
        raise error


# ---------------------------------------------------------------- why a cell failed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Gives the report of a failed cell its first line and the reason, in a form that travels between processes."""
    report = yield
    if is_cell(item) and report.failed:
        item.parent.failed_cell = item.cell_num
        first = next(iter(item.cell.source.splitlines()), "")
        report.user_properties += [
            ("cell", item.cell_num),
            ("first line", first),
            ("why", why(item, call.excinfo.value)),
        ]
    return report


def why(item, error: BaseException) -> str:
    """One line about what went wrong in a cell."""
    if str(error) == "Cell execution caused an exception":
        raised = item.test_outputs[-1]
        reason = f"{raised.ename}: {raised.evalue}"
    elif str(error) == "Cell outputs differ":
        reason = different(item) or uncoloured(error.inner_traceback)
    else:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, nbval.plugin.NbCellError) else str(error)
    return " ".join(uncoloured(reason).split())


def different(item) -> str:
    """The first line of text that is not the stored one, beside it. Nothing if the difference is not in the text."""
    shown = [item.sanitize(text_of(outputs)).splitlines() for outputs in (item.test_outputs, item.cell.outputs)]
    for now, stored in zip_longest(*shown):
        if now != stored:
            now, stored = ("nothing" if line is None else repr(line) for line in (now, stored))
            return f"another output than the stored one: {now} instead of {stored}"
    return ""


def text_of(outputs: list) -> str:
    """What a cell printed, and its results as plain text."""
    return "\n".join(one.get("text", one.get("data", {}).get("text/plain", "")) for one in outputs)


def uncoloured(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


# ---------------------------------------------------------------- what stands at the end


def pytest_terminal_summary(terminalreporter):
    """How long each notebook ran, beside what is stamped on it, and which cells took longest."""
    reports = [
        one for kind in terminalreporter.stats.values() for one in kind if ".ipynb::" in getattr(one, "nodeid", "")
    ]
    for path in NOTEBOOKS:
        cells = [one for one in reports if f"{path.name}::" in one.nodeid]
        seconds = sum(one.duration for one in cells)
        if seconds:
            ended = "stopped after" if any(one.failed for one in cells) else "ran for"
            stamp = "".join(f", stamped {run}" for run in stamped(path)[:1])
            line = f"{path.name} {ended} {seconds:.0f} s = {minutes_to_run(seconds)} min{stamp}"
            terminalreporter.write_line(line)
    slowest = sorted(reports, key=lambda one: -one.duration)[:SLOWEST]
    if slowest:
        named = [f"{name_of(one)} {one.duration:.0f} s" for one in slowest]
        terminalreporter.write_line(f"slowest: {', '.join(named)}")


def name_of(report) -> str:
    path, cell = report.nodeid.rsplit("::", 1)
    return f"{path.rsplit('/', 1)[-1]}, {cell.lower()}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    """Below all else that pytest prints: each failed cell."""
    result = yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    stats = reporter.stats if reporter else {}  # a worker of xdist has none
    failed = [one for kind in ("failed", "error") for one in stats.get(kind, [])]
    for report in failed:
        found = dict(getattr(report, "user_properties", []))
        if "why" in found:
            shown = f"[{found['cell'] + 1}] in JupyterLab"
            reporter.write_line(f"{name_of(report)} ({shown}: {found['first line']}): {found['why']}", red=True)
    return result
