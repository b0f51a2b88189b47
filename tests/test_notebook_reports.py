"""A failed run of the tests says at its very end which notebook, which cell and why, and judges nothing after it.

Each test runs pytest as `make test` does, with the project's own settings, on small broken notebooks.
"""

import re
import shutil
import subprocess
import sys
from itertools import groupby
from types import SimpleNamespace

import nbformat
import notebook_reports
import pytest
from notebook_tools import METADATA, NOTEBOOKS, ROOT, ROUNDED, stamped

CELLS = {
    "claim": [
        ("covered = 4", ""),
        (
            "# Coverage\nfrom vqnotes.course.claims import claim\n"
            "claim('Most modes are covered', covered > 5, covered=covered)",
            "✓ Most modes are covered\n",
        ),
        ("print(covered)", "4\n"),
        ("print('no')", "yes\n"),
    ],
    "output": [("print('a\\nb\\nc')", "a\nB\nc\n"), ("print('no')", "yes\n")],
    "table": [("from IPython.display import display\ndisplay({'text/html': '<b>'}, raw=True)", ""), ("1 + 1", "")],
    "dead": [("import os\nos.kill(os.getpid(), 9)", ""), ("1", "")],
    "good": [("print('fine')", "fine\n"), ("print('well')", "well\n")],
}
ENDLESS = {
    "interrupted": [("import time\nwhile True: time.sleep(0.01)", ""), ("print('no')", "yes\n")],
    "went_on": [  # takes the interrupt as a wish to stop, as `fit` and `sweep` do
        (
            "import time\ntry:\n    while True: time.sleep(0.01)\nexcept KeyboardInterrupt: print('stopped')",
            "stopped\n",
        ),
        ("print('yes')", "yes\n"),
    ],
}


def notebook(cells):
    """A notebook with these sources, and what each is stored to have printed."""
    made = []
    for count, (source, text) in enumerate(cells, 1):
        outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []
        made.append(nbformat.v4.new_code_cell(source, outputs=outputs, execution_count=count))
    return nbformat.v4.new_notebook(cells=made, metadata=METADATA)


def pytest_on(folder, notebooks, *options):
    """What pytest prints of these notebooks, in a copy of the project that holds no others."""
    for name in ("pyproject.toml", "conftest.py"):
        shutil.copy(ROOT / name, folder)
    for name in ("tests", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "notebooks").mkdir()
    for name, cells in notebooks.items():
        nbformat.write(notebook(cells), folder / "notebooks" / f"{name}.ipynb")
    command = [sys.executable, "-m", "pytest", "--color=yes", *options, "notebooks"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


def last_lines(printed, count):
    return [re.sub(r"\x1b\[[\d;]*m", "", line) for line in printed.splitlines()[-count:]]


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    return pytest_on(tmp_path_factory.mktemp("project"), CELLS, "-n1")  # reports come from another process


def test_the_last_lines_name_each_failed_cell_and_the_reason(printed):
    lines = last_lines(printed, 5)
    assert "4 failed, 3 passed, " in lines[0]
    assert sorted(lines[1:]) == [
        "claim.ipynb, cell 1 ([2] in JupyterLab: # Coverage): AssertionError: ✗ Most modes are covered [covered = 4]",
        "dead.ipynb, cell 0 ([1] in JupyterLab: import os): RuntimeError: the kernel died",
        "output.ipynb, cell 0 ([1] in JupyterLab: print('a\\nb\\nc')): "
        "another output than the stored one: 'b' instead of 'B'",
        "table.ipynb, cell 0 ([1] in JupyterLab: from IPython.display import display): "
        "Unexpected output fields from running code: {'text/html'}",
    ]


def test_cells_after_a_failed_one_are_skipped_with_it_as_the_reason(printed):
    assert ", 5 skipped" in last_lines(printed, 5)[0] and "xpassed" not in printed and "xfailed" not in printed


def test_the_slowest_cells_are_named_with_their_seconds(printed):
    assert re.search(r"^slowest: (\w+\.ipynb, cell \d \d+ s(, |$)){3}", printed, re.M)


def test_a_cell_that_is_cut_off_says_so(tmp_path):
    printed = pytest_on(tmp_path, ENDLESS, "--nbval-cell-timeout=1", "-n0", "-rs")
    lines = last_lines(printed, 3)
    cut_off = "cut off: it did not end within --nbval-cell-timeout=1 seconds"
    assert "2 failed, 2 skipped" in lines[0]
    assert sorted(lines[1:]) == [
        f"{name}.ipynb, cell 0 ([1] in JupyterLab: import time): {cut_off}" for name in ("interrupted", "went_on")
    ]
    assert "not judged, since cell 0 failed" in printed
    assert "KeyboardInterrupt" in printed, "where it was"


def test_the_longest_notebook_comes_first_with_its_cells_in_order(monkeypatch):
    monkeypatch.setattr(notebook_reports, "is_cell", lambda item: item.path.suffix == ".ipynb")
    files = [ROOT / "tests" / "test_metrics.py", *NOTEBOOKS]
    items = [SimpleNamespace(path=path, cell=cell) for path in files for cell in range(3)]
    notebook_reports.pytest_collection_modifyitems(items)
    groups = [(path, [one.cell for one in each]) for path, each in groupby(items, key=lambda one: one.path)]
    assert len(groups) == len(files) and groups[-1][0] == files[0] and all(cells == [0, 1, 2] for _, cells in groups)
    places = [list(ROUNDED.values()).index(stamped(path)[0]) for path, _ in groups[:-1]]
    assert places == sorted(places, reverse=True)
