"""What is done to notebooks by script, and what the tests know about them.

python tools/notebook_tools.py run NOTEBOOK ...      runs each from a fresh kernel, in order, and stores its outputs
python tools/notebook_tools.py minutes NOTEBOOK ...  writes the minutes to read anew, after a change of text alone
"""

import base64
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from exercise_tools import exercises
from figure_faults import watched
from nbclient import NotebookClient

from vqnotes._files import replaced

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = {"image/png", "image/jpeg"}
SHOWN = {  # figures that stand in docs/ too: notebook, file, and how the alternative text starts
    "00_start_here": {"collapse.jpg": "Top: the temple photograph"},
    "09_diagnose_your_own": {"decision_tree.png": "Decision tree."},
}
HOURS = 3 * 3600  # seconds: what tests and tools wait for at most, so that no machine is too slow or too busy
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {  # what an export to a script needs; no version, so that files do not change with the machine
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
}
FOLDED = "hide-input"  # tag of a cell whose code is folded: in JupyterLab, in Colab and on the website
TITLE = "# @title "  # and how its first line starts: Colab shows the rest in its place
SETUP = """\
# @title Set-up: on Colab this installs the course's module, elsewhere it only imports it
try:
    import vqnotes
except ImportError:
    import os

    source = os.environ.get("VQNOTES_SOURCE", "git+https://github.com/{repo}@v{version}")
    %pip install --quiet --no-deps "{{source}}"
    try:
        import vqnotes
    except ImportError:
        raise SystemExit(
            f"vqnotes could not be installed from {{source}}. Connect to the network and run "
            "this again, or set VQNOTES_SOURCE to a folder or a wheel of vqnotes."
        ) from None"""


def project(field: str) -> str:
    """The first value of a field of pyproject.toml, read as text so that Python 3.10 can do it too."""
    return re.search(rf'^{field} = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]


def repository() -> str:
    return project("Repository").removeprefix("https://github.com/")


def without_pip(source: str) -> str:
    """A cell's source as plain Python: its one magic, %pip, becomes a comment."""
    return source.replace("%pip", "pass  # pip")


def setup_cell() -> str:
    return SETUP.format(repo=repository(), version=project("version"))


def badge(path: Path) -> str:
    """The "Open in Colab" badge of one notebook."""
    address = f"https://colab.research.google.com/github/{repository()}/blob/main/notebooks/{path.name}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"


def pictures(notebook: nbformat.NotebookNode) -> Iterator[tuple[bytes, str]]:
    """Each stored figure, as its file's bytes and its alternative text."""
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        for kind in PICTURES & output.get("data", {}).keys():
            yield base64.b64decode(output.data[kind]), output.metadata.get(kind, {}).get("alt", "")


def picture(notebook: nbformat.NotebookNode, start_of_alt: str) -> bytes:
    """The stored figure whose alternative text starts so."""
    (content,) = (content for content, alt in pictures(notebook) if alt.startswith(start_of_alt))
    return content


# ---------------------------------------------------------------- minutes, measured and stamped

ROUNDED = {0.5: "½", 1: "1", 1.5: "1½", 2: "2", 3: "3", 5: "5", 10: "10"}
PART = "part"  # tag of a Markdown cell that begins another sitting: a sentence that says what is known so far
LONGEST = 30  # minutes to read, of a sitting
COUNTED = {2: "two", 3: "three", 4: "four"}
TIMES = re.compile(
    r"\*\*Time:\*\* (\S+) min to run on two cores · (\d+(?: \+ \d+)*) min to read(?:, in \w+ sittings)?"
    r" · (\d+) min for the exercises$",
    re.M,
)
MARK = re.compile(r"^---\n\n\*\*Part .*?\*\*So far:\*\* ")
UNREAD = re.compile(rf"(?s:<details>.*?</details>)|^\*\*Time:\*\* .*|{MARK.pattern}", re.M)  # folded, or stamped


def minutes_to_run(seconds: float) -> str:
    """Rounded up to a value of ROUNDED."""
    return next((text for most, text in ROUNDED.items() if seconds <= 60 * most), "over 10")


def is_figure(output: nbformat.NotebookNode) -> bool:
    """Whether an output is looked at as a figure is: a picture, an explorer, or a table."""
    data = output.get("data", {})
    explorer = WIDGET in data and data.get("text/plain", "").startswith("[Explorer")
    return explorer or bool((PICTURES | {"text/html"}) & data.keys())


def minutes_of(cell: nbformat.NotebookNode) -> float:
    """What a first reader takes for a cell: a minute for 150 words, 25 lines or one figure.

    Words are those of Markdown that is not folded, a quiz's too. Lines are those of open code, and what a cell prints
    beside its claims, whose statements stand in the code; blank ones do not count.
    """
    if cell.cell_type == "markdown":
        return len(re.findall(r"\S*\w\S*", UNREAD.sub("", cell.source))) / 150
    source = "" if FOLDED in cell.metadata.get("tags", []) else cell.source
    printed = "".join(output.get("text", "") for output in cell.outputs)
    lines = [line for line in source.splitlines() + printed.splitlines() if line.strip() and line[:2] != "✓ "]
    return len(lines) / 25 + sum(map(is_figure, cell.outputs))


def minutes_to_read(notebook: nbformat.NotebookNode) -> list[int]:
    """Of each sitting, rounded up. The section "Exercises" does not count: it is practised."""
    minutes, practice = [0.0], False
    for cell in notebook.cells:
        if PART in cell.metadata.get("tags", []):
            minutes.append(0.0)
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            practice = cell.source.startswith("## Exercises\n")
        minutes[-1] += 0 if practice else minutes_of(cell)
    return [math.ceil(one) for one in minutes]


def stamp_times(notebook: nbformat.NotebookNode, run: str) -> None:
    """Writes the minutes into a notebook's opening, and into the mark of each part."""
    read, practice = minutes_to_read(notebook), sum(one.minutes for one in exercises(notebook.cells))
    sittings = f", in {COUNTED[len(read)]} sittings" if len(read) > 1 else ""
    line = (
        f"**Time:** {run} min to run on two cores · {' + '.join(map(str, read))} min to read{sittings}"
        f" · {practice} min for the exercises"
    )
    notebook.cells[0].source = re.sub(r"\*\*Time:\*\* .+", line, notebook.cells[0].source)
    marks = [cell for cell in notebook.cells if PART in cell.metadata.get("tags", [])]
    for number, (cell, minutes) in enumerate(zip(marks, read[1:]), 2):
        known = MARK.sub("", cell.source)
        cell.source = f"---\n\n**Part {number} of {len(read)}** · {minutes} min to read · **So far:** {known}"


def stamp_minutes(path: Path) -> None:
    """Writes the minutes to read of a notebook anew, where nothing but text has changed since its run."""
    if not stamped(path):
        raise SystemExit(f"{path.name} has no minutes yet: run it.")
    notebook = nbformat.read(path, as_version=4)
    stamp_times(notebook, stamped(path)[0])
    with replaced(path) as beside:
        nbformat.write(notebook, beside)
    print(f"{path.name}: {' + '.join(map(str, minutes_to_read(notebook)))} min to read")


def stamped(path: Path) -> tuple[str, ...]:
    """Minutes to run, read and practise as they stand in a notebook's opening; nothing before its first run."""
    times = TIMES.search(nbformat.read(path, as_version=4).cells[0].source)
    return times.groups() if times else ()


def stamp_readme() -> None:
    """Writes the minutes of all notebooks into the README's table."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    for notebook in NOTEBOOKS:
        if times := stamped(notebook):
            row = rf"(\(notebooks/{re.escape(notebook.name)}\) \| [^|]+ \| )[^|]+( \|)"
            text = re.sub(row, rf"\g<1>{' · '.join(times)}\g<2>", text)
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8")


# ---------------------------------------------------------------- running


def clean(notebook: nbformat.NotebookNode) -> None:
    """Removes what depends on the machine or on a live kernel: widget state, timings, ids of progress bars."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        folded = {"jupyter": {"source_hidden": True}, "cellView": "form"} if FOLDED in tags else {}
        cell.metadata = nbformat.from_dict(({"tags": tags} if tags else {}) | folded)
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):  # without a live kernel nothing shows, or an explorer's line of text
                text = output.data["text/plain"]
                view = {"model_id": "", "version_major": 2, "version_minor": 0}
                kept = text if text.startswith("[Explorer") else ""
                output.data = nbformat.from_dict({WIDGET: view, "text/plain": kept})


def run(path: Path) -> None:
    """Executes one notebook and replaces its file, only if every cell ran without an error or a warning."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=HOURS,
        startup_timeout=HOURS,
        iopub_timeout=HOURS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": path.parent}},
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        client.execute(env=os.environ | watched(folder))
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise RuntimeError(f"{path.name} writes to stderr: {output.text}")
    seconds = time.perf_counter() - start
    clean(notebook)
    stamp_times(notebook, minutes_to_run(seconds))
    with replaced(path) as beside:
        nbformat.write(notebook, beside)
    for name, start_of_alt in SHOWN.get(path.stem, {}).items():
        with replaced(ROOT / "docs" / name) as beside:
            beside.write_bytes(picture(notebook, start_of_alt))
    print(f"{path.name}: {seconds:.0f} s")


if __name__ == "__main__":
    command, arguments = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if command in ("run", "minutes") and arguments:
        for argument in arguments:
            {"run": run, "minutes": stamp_minutes}[command](Path(argument))
        stamp_readme()
    else:
        raise SystemExit(__doc__)
