"""What an instructor hands out, and takes back.

python docs/handouts.py student [FOLDER]   notebooks without their solutions, and the solutions beside them
python docs/handouts.py slides [FOLDER]    slides for the lecture, from the cells tagged "slide"
python docs/handouts.py grade FOLDER       what each exercise's check says of each notebook under FOLDER, as a table

The first two write into build/ unless told otherwise. Grading runs the readers' code: do it where it can do no harm.
"""

import ast
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import nbformat
import pandas as pd
from nbclient import NotebookClient
from nbconvert import SlidesExporter

from vqnotes.files import replaced

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from exercise_tools import FOLDED, exercises  # noqa: E402
from notebook_tools import NOTEBOOKS  # noqa: E402

PATIENCE = 60  # seconds for an exercise
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
    print(f"{len(NOTEBOOKS)} notebooks in {target / 'notebooks'}, their solutions in {target / 'solutions'}")


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
    print(f"{count} slides in {target / 'lecture.html'}")


# ---------------------------------------------------------------- grading


def check_of(stub: str) -> str:
    """The last lines of a stub: the import of its check, and the call."""
    nodes = ast.parse(stub).body
    imports = [one for one in nodes if isinstance(one, ast.ImportFrom) and one.module.startswith("vqnotes.exercises")]
    return "\n".join(map(ast.unparse, [*imports, *(one for one in nodes if isinstance(one, ast.Expr))]))


def verdicts(path: Path, checks: dict[str, str]) -> dict[str, str]:
    """Runs the exercises' cells of one notebook, each followed by the check as we wrote it: exercise to verdict."""
    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    calls = {number: check.splitlines()[-1] for number, check in checks.items()}
    theirs = {number: source for number, call in calls.items() for source in sources if call in source}
    cells = [nbformat.v4.new_code_cell(f"{source}\n\n{checks[number]}") for number, source in theirs.items()]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(
        notebook, timeout=PATIENCE, interrupt_on_timeout=True, allow_errors=True, kernel_name="python3"
    ).execute()
    found = {}
    for number, cell in zip(theirs, notebook.cells):
        lines = "\n".join(one.get("text", "") for one in cell.outputs).splitlines()
        said = [line.split(": ", 1)[1] for line in lines if line.startswith(f"Exercise {number}: ")]
        stopped = [f"{one.ename}: {one.evalue}" for one in cell.outputs if one.output_type == "error"]
        found[number] = stopped[0] if stopped else (said or ["the check was not reached"])[-1]
    return found


def as_text(entry):
    """An entry of a table, with a quotation mark before what a spreadsheet would take for a formula and compute."""
    return f"'{entry}" if isinstance(entry, str) and re.match(r"[=+\-@\s]", entry) else entry


def grade(folder: Path) -> pd.DataFrame:
    """Prints and stores, as grades.csv, one row a notebook and exercise: what the check says."""
    checks = {}
    for path in NOTEBOOKS:
        for one in exercises(nbformat.read(path, as_version=4).cells):
            if one.stub:
                checks[one.number] = check_of(one.stub)
    rows = []
    for path in sorted(folder.rglob("*.ipynb")):
        try:
            found = verdicts(path, checks)
        except Exception as error:  # a broken file, a kernel that died: the others are graded all the same
            found = {"all": f"could not be run: {error!r}"}
        for number, verdict in found.items():
            row = {"notebook": str(path.relative_to(folder)), "exercise": number, "verdict": verdict}
            rows.append(row | {"points": int(verdict == "correct")})
    if not rows:
        raise SystemExit(f"no notebook under {folder} holds an exercise of this course")
    table = pd.DataFrame(rows)
    with replaced(folder / "grades.csv") as beside:
        table.map(as_text).to_csv(beside, index=False)
    print(table.groupby("notebook")["points"].agg(["sum", "count"]).to_string())
    print(f"each verdict is in {folder / 'grades.csv'}")
    return table


if __name__ == "__main__":
    command, folders = (sys.argv[1:2] or [""])[0], [Path(one) for one in sys.argv[2:]]
    if command in ("student", "slides") and len(folders) <= 1:
        {"student": student, "slides": slides}[command](*folders or [ROOT / "build" / command])
    elif command == "grade" and len(folders) == 1:
        grade(*folders)
    else:
        raise SystemExit(__doc__)
