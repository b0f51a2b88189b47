"""What an instructor hands out, and takes back.

python tools/handouts.py student [FOLDER]   notebooks without their solutions, and the solutions beside them
python tools/handouts.py slides [FOLDER]    slides for the lecture, from the cells tagged "slide"
python tools/handouts.py grade FOLDER [OUT] what each exercise's check says of each student's answers, as a table

The first two write into build/ unless told otherwise, the last into FOLDER. Grading runs the readers' code: do it
where it can do no harm (SECURITY.md).
"""

import ast
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from uuid import uuid4

import nbformat
import pandas as pd
from answers import Attempt, HandIn
from exercise_tools import FOLDED, exercises
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert import SlidesExporter
from notebook_tools import NOTEBOOKS

from vqnotes._files import replaced
from vqnotes._printing import say

ROOT = Path(__file__).resolve().parent.parent

PATIENCE = 600  # seconds for an answer, which takes none: only an endless loop gets there, or a very slow machine
LONGEST = 3600  # seconds for all cells above an answer
NOT_FOUND = "not found"
STYLE = """<style>.reveal .jp-RenderedImage img { width: 100%; max-height: 450px; object-fit: contain }
.reveal .jp-OutputPrompt { display: none } .reveal li { font-size: 0.9em; line-height: 1.3 }</style>"""
REVEAL = os.environ.get("REVEAL_PREFIX")  # where reveal.js lies, for a lecture room without a network


# ---------------------------------------------------------------- notebooks for students


def student(target: Path) -> None:
    """Notebooks for students into target/notebooks, what was folded in them into target/solutions, one page each."""
    for folder in ("notebooks", "solutions"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        found = exercises(notebook.cells)
        for cell in notebook.cells:
            cell.source = FOLDED.sub(lambda fold: fold[0] if fold[1] == "Hint" else "", cell.source).rstrip()
        notebook.cells = [cell for cell in notebook.cells if cell.source]
        with replaced(target / "notebooks" / path.name) as beside:
            nbformat.write(notebook, beside)
        title = notebook.cells[0].source.splitlines()[0]
        parts = [f"{one.kind} {one.number} · {one.title}\n\n{one.solution}\n" for one in found]
        page = "\n## ".join([f"{title}\n", *parts])
        with replaced(target / "solutions" / f"{path.stem}.md") as beside:
            beside.write_text(page, encoding="utf-8")
    say(f"{len(NOTEBOOKS)} notebooks in {target / 'notebooks'}, their solutions in {target / 'solutions'}")


# ---------------------------------------------------------------- slides


def placed(kind: str, source: str = "", outputs: Iterable = ()) -> nbformat.NotebookNode:
    """A cell with its place in the deck: "slide" begins one, "-" goes on, "notes" is for the speaker."""
    metadata = {"slideshow": {"slide_type": kind}}
    if outputs:
        return nbformat.v4.new_code_cell(outputs=outputs, metadata=metadata)
    return nbformat.v4.new_markdown_cell(source, metadata=metadata)


def deck() -> Iterator[nbformat.NotebookNode]:
    """A tagged figure comes under the heading of its section, with the claims that stand next to it.

    The text that follows it in the notebook becomes the speaker's notes. Tagged text is a slide as it is.
    """
    yield placed("slide", f"{STYLE}\n\n# Where do the codes go?\n\nCollapse in vector quantisation")
    for path in NOTEBOOKS:
        heading, cells = "", nbformat.read(path, as_version=4).cells
        for place, cell in enumerate(cells):
            if cell.cell_type == "markdown":
                heading = (re.findall(r"^##? (.+)", cell.source, re.M) or [heading])[-1]
            if "slide" not in cell.metadata.get("tags", []):
                continue
            if cell.cell_type == "markdown":
                yield placed("slide", cell.source)
                continue
            yield placed("slide", f"## {heading}")
            yield placed("-", outputs=[one for one in cell.outputs if one.output_type != "stream"])
            near = [cell, *(one for one in cells[place + 1 : place + 2] if one.cell_type == "code")]
            lines = [line for one in near for out in one.outputs for line in out.get("text", "").splitlines()]
            claims = [f"- {line.removeprefix('✓ ')}" for line in lines if line.startswith("✓ ")]
            yield placed("-", "\n".join(claims))
            after = next((one.source for one in cells[place + 1 :] if one.cell_type == "markdown"), "")
            yield placed("notes", f"Notebook {path.stem[:2]}. {after.split('## ')[0]}")


def slides(target: Path) -> None:
    """One deck for the lecture, as a page that any browser opens; S shows the speaker's notes."""
    notebook = nbformat.v4.new_notebook(cells=list(deck()))
    options = {"reveal_width": "1280", "reveal_height": "720"} | ({"reveal_url_prefix": REVEAL} if REVEAL else {})
    exporter = SlidesExporter(exclude_input=True, exclude_output_prompt=True, **options)
    page, _ = exporter.from_notebook_node(notebook)
    target.mkdir(parents=True, exist_ok=True)
    with replaced(target / "lecture.html") as beside:
        beside.write_text(page, encoding="utf-8")
    count = sum(cell.metadata.slideshow.slide_type == "slide" for cell in notebook.cells)
    say(f"{count} slides in {target / 'lecture.html'}")


# ---------------------------------------------------------------- grading


def check_of(stub: str) -> str:
    """The last lines of a stub: the import of its check, and the call."""
    nodes = ast.parse(stub).body
    imports = [
        one for one in nodes if isinstance(one, ast.ImportFrom) and one.module.startswith("vqnotes.course.exercises")
    ]
    return "\n".join(map(ast.unparse, [*imports, *(one for one in nodes if isinstance(one, ast.Expr))]))


@cache
def lesson() -> frozenset[str]:
    """The code cells of the course that are no exercise: a student who leaves one as it is has answered nothing."""
    cells = [nbformat.read(path, as_version=4).cells for path in NOTEBOOKS]
    stubs = {one.stub for some in cells for one in exercises(some)}
    return frozenset(cell.source for some in cells for cell in some if cell.cell_type == "code") - stubs


def verdicts(path: Path, checks: dict[str, str]) -> dict[str, str]:
    """What each check says of one notebook, exercise to verdict: the best of all copies, of all ways to run them.

    "not found" where nothing has the name that is asked for. A notebook that holds headings or checks of some of the
    course's notebooks is searched for the exercises of these alone.
    """
    cells = nbformat.read(path, as_version=4).cells
    text, parts = "\n".join(cell.source for cell in cells), {part_of(number) for number in checks}
    held = {one for one in parts if re.search(rf"^### Exercise {one}\.|exercises\.nb{one:0>2}\b", text, re.M)}
    hand_in, best = HandIn(cells, lesson()), dict.fromkeys(checks, NOT_FOUND)
    ways = {number: hand_in.attempts(checks[number]) for number in checks if part_of(number) in (held or parts)}
    for patience, worth_it in (
        (PATIENCE, lambda verdict: True),
        (PATIENCE, lambda verdict: verdict != "correct"),
        (LONGEST, lambda verdict: "NameError" in verdict),
    ):
        attempts = [(number, one) for number, way in ways.items() for one in next(way) if worth_it(best[number])]
        for (number, _), verdict in zip(attempts, tried(attempts, patience)):
            best[number] = min(best[number], verdict, key=rank)
    return best


def part_of(number: str) -> str:
    """The notebook that an exercise is from: 8 of 8.2."""
    return number.split(".")[0]


def rank(verdict: str) -> int:
    """The place of a verdict among those on copies of one answer, the best first; errors come in the middle."""
    order = {"correct": 0, "wrong because": 1, "not attempted yet": 3, NOT_FOUND: 4}
    return next((place for start, place in order.items() if verdict.startswith(start)), 2)


def tried(attempts: list[tuple[str, Attempt]], patience: float) -> list[str]:
    """The verdicts on attempts at exercises. They share a kernel and no names; after one that dies comes another."""
    said: list[str] = []
    while len(said) < len(attempts):
        left = [(number, one, uuid4().hex) for number, one in attempts[len(said) :]]
        cells = [nbformat.v4.new_code_cell(cell_for(one, mark)) for _, one, mark in left]
        place, stopped = executed(cells, patience)
        said += [said_in(cell, number, mark) for cell, (number, _, mark) in zip(cells[:place], left)]
        said += [stopped] if stopped else []
    return said


def executed(cells: list, patience: float) -> tuple[int, str]:
    """Runs cells in a kernel of their own, past errors: how many came to an end, and what stopped the next one."""
    begun: list[int] = []
    with tempfile.TemporaryDirectory() as folder:  # the student's may hold a file torch.py
        client = NotebookClient(
            nbformat.v4.new_notebook(cells=cells),
            timeout=patience,
            allow_errors=True,
            kernel_name="python3",
            shutdown_kernel="immediate",
            resources={"metadata": {"path": folder}},
            on_cell_start=lambda cell, cell_index: begun.append(cell_index),
        )
        try:
            client.execute(env=os.environ | {"PYTHONPATH": str(ROOT)})
        except CellTimeoutError:
            return begun[-1], f"stopped after {patience:g} seconds"
        except DeadKernelError:
            return begun[-1], "the kernel died"
    return len(cells), ""


def cell_for(attempt: Attempt, mark: str) -> str:
    """What runs an attempt: sources that cannot see each other's attempts, a line that nobody foresees, the check."""
    return f"""space = {{"__name__": "__main__"}}
for source in {attempt.sources!r}:
    try:
        exec(compile(source, "<answer>", "exec"), space)
    except Exception:
        if not {attempt.past_errors}:
            raise
print("\\n{mark}")
exec({attempt.call!r}, space)"""


def said_in(cell: nbformat.NotebookNode, number: str, mark: str) -> str:
    """The verdict in a cell's outputs, behind the mark; before it students may have printed what they like to see."""
    printed = "".join(one.get("text", "") for one in cell.outputs if one.get("name") == "stdout")
    said = re.findall(rf"^Exercise {re.escape(number)}: (.*)$", printed.partition(mark)[2], re.M)
    stopped = [f"{one.ename}: {one.evalue}" for one in cell.outputs if one.output_type == "error"]
    return said[-1] if said else (stopped or ["the check was not reached"])[0]


def as_text(entry):
    """An entry of a table, with a quotation mark before what a spreadsheet would take for a formula and compute."""
    return f"'{entry}" if isinstance(entry, str) and re.match(r"[=+\-@\s]", entry) else entry


def handed_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """(student, notebook): all under a folder of FOLDER are one student's, and so is one that lies in FOLDER itself.

    What Jupyter and archives keep for themselves is left out.
    """
    for path in sorted(folder.rglob("*.ipynb")):
        parts = path.relative_to(folder).parts
        if not any(part.startswith((".", "__MACOSX")) for part in parts):
            yield (parts[0] if len(parts) > 1 else path.stem), path


def grade(folder: Path, out: Path | None = None) -> pd.DataFrame:
    """Prints and stores one row a student and exercise: the best verdict on all that they handed in.

    The table is grades.csv in the folder `out`, or in `folder` itself. Everybody has the same rows: all exercises of
    each notebook of the course that somebody handed in.
    """
    checks = {}
    for path in NOTEBOOKS:
        for one in exercises(nbformat.read(path, as_version=4).cells):
            if one.stub:
                checks[one.number] = check_of(one.stub)
    best: dict[str, dict[str, tuple[str, str]]] = {}
    asked = set()
    for name, path in handed_in(folder):
        where = str(path.relative_to(folder))
        try:
            found = verdicts(path, checks)
            asked |= {part_of(number) for number, verdict in found.items() if verdict != NOT_FOUND}
        except Exception as error:  # a broken file: the others are graded all the same
            found = dict.fromkeys(checks, f"could not be read: {error!r}")
        student_has = best.setdefault(name, {})
        for number, verdict in found.items():
            before = student_has.get(number, (NOT_FOUND, where))
            student_has[number] = min(before, (verdict, where), key=lambda one: rank(one[0]))
        say(f"{where}: {sum(verdict == 'correct' for verdict in found.values())} correct", flush=True)
    numbers = [number for number in checks if part_of(number) in asked]
    if not numbers:
        raise SystemExit(f"no notebook under {folder} holds an exercise of this course")
    rows = []
    for name, found in best.items():
        for number in numbers:
            verdict, where = found[number]
            row = {"student": name, "exercise": number, "verdict": verdict, "points": int(verdict == "correct")}
            rows.append(row | {"notebook": "" if verdict == NOT_FOUND else where})
    table = pd.DataFrame(rows)
    target = (out or folder) / "grades.csv"
    with replaced(target) as beside:
        table.map(as_text).to_csv(beside, index=False)
    say(table.groupby("student", sort=False)["points"].agg(["sum", "count"]).to_string())
    say(f"each verdict is in {target}")
    return table


if __name__ == "__main__":
    command, folders = (sys.argv[1:2] or [""])[0], [Path(one) for one in sys.argv[2:] if one]
    if command in ("student", "slides") and len(folders) <= 1:
        {"student": student, "slides": slides}[command](*folders or [ROOT / "build" / command])
    elif command == "grade" and len(folders) in (1, 2):
        grade(*folders)
    else:
        raise SystemExit(__doc__)
