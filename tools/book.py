"""The course as a website, from the stored outputs: nothing is run, and nothing is fetched.

python tools/book.py     builds it anew in build/book, from a source laid out in build/book-source

The source has docs/ and notebooks/ side by side as in the repository, so that links between them hold, and api/ with
a page for each module of API, whose text is that of the docstrings. docs/index.md is its front page. Notebooks are
changed on the way: see `lay_out`. No page asks another server for anything: pictures, styles and scripts are its own.
"""

import base64
import json
import re
import shutil
from pathlib import Path

import nbformat
from notebook_tools import NOTEBOOKS, PICTURES, WIDGET, repository
from sphinx.cmd.build import main as sphinx

from vqnotes.course.playground import SCRIPT, plane

ROOT = Path(__file__).resolve().parent.parent

PAGES = sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "index.md"})
CONTENT = {".md", ".ipynb", ".png", ".jpg", ".svg"}
BADGE = (
    "https://colab.research.google.com/assets/colab-badge.svg"  # on the site a picture of ours is shown in its place
)
API = (
    "nearest kmeans quantizers models training metrics data plots remedies diagnosis diagnosis.callbacks "
    "diagnosis.conformance studies.sweeps course.claims course.explorers"
).split()
API_PAGE = """\
# `vqnotes.{name}`

```{{eval-rst}}
.. automodule:: vqnotes.{name}
   :members:
```
"""
ESCAPED = r"[\\\[\]*_`<>&!]"  # what has a meaning in Markdown
MOVE = "*Open this notebook in JupyterLab or Colab to move the controls.*"

PLAYGROUND = re.compile(r"\[Explorer: the playground, (\w+), seed (\d+)\.")  # as its __repr__ says
LIVE = """\
<div id="{name}"><p>The playground computes in this page, and needs JavaScript.</p></div>
<script type="module">
{script}
mount(document.getElementById("{name}"), {plane});
</script>
"""


def live(preset: str, seed: int) -> str:
    """A playground as a part of a page: its script stands in the page, so that it runs from a file, too."""
    given, script = json.dumps(plane(preset, seed=seed)), SCRIPT.read_text(encoding="utf-8")
    return LIVE.format(name=f"playground-{preset}-{seed}", script=script, plane=given)


def shown(output: nbformat.NotebookNode, cell: nbformat.NotebookNode, picture: Path) -> nbformat.NotebookNode | None:
    """An output as the website shows it. Pictures go into a file, and are shown with their alternative text."""
    for kind in PICTURES & output.get("data", {}).keys():
        picture = picture.with_suffix(f".{kind.split('/')[1]}")
        picture.write_bytes(base64.b64decode(output.data[kind]))
        alt = re.sub(ESCAPED, r"\\\g<0>", output.metadata.get(kind, {}).get("alt", ""))
        output.data, output.metadata = {"text/markdown": f"![{alt}]({picture.name})"}, {}
    if WIDGET in output.get("data", {}):
        if found := PLAYGROUND.match(output.data["text/plain"]):
            output.data, output.metadata = {"text/html": live(found[1], int(found[2]))}, {}
            return output
        if "explore(" not in cell.source:
            return None  # a progress bar
        output.data, output.metadata = {"text/markdown": MOVE}, {}
    return output


def linked(text: str, folder: Path) -> str:
    """Markdown with a badge of our own, whose links to files outside the website lead to the repository."""

    def target(match: re.Match) -> str:
        path = (folder / match[2]).resolve()
        inside = path.parent in (ROOT / "docs", ROOT / "notebooks") and path.suffix in CONTENT
        if inside or not path.exists() or not path.is_relative_to(ROOT):
            return match[0]
        return f"{match[1]}https://github.com/{repository()}/blob/main/{path.relative_to(ROOT).as_posix()}"

    text = re.sub(r"(\]\(|^\[[^\]^]+\]: +)(?!\w+:|[#/])([^)#\s]+)", target, text, flags=re.M)
    return text.replace(BADGE, "/docs/open_in_colab.svg")


def lay_out(source: Path) -> None:
    """Writes the source: pages, those of the modules, and notebooks without widgets, their pictures beside them."""
    (source / "docs").mkdir(parents=True)
    (source / "notebooks").mkdir()
    (source / "api").mkdir()
    for name in API:
        (source / "api" / f"{name}.md").write_text(API_PAGE.format(name=name), encoding="utf-8")
    shutil.copy(ROOT / "docs" / "index.md", source)
    for path in (ROOT / "docs").iterdir():
        if path.suffix in {".jpg", ".png", ".svg"}:
            shutil.copy(path, source / "docs")
    for path in PAGES:
        (source / "docs" / path.name).write_text(linked(path.read_text(encoding="utf-8"), path.parent), "utf-8")
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        for i, cell in enumerate(notebook.cells):
            if cell.cell_type == "markdown":
                cell.source = linked(cell.source, path.parent)
            else:
                names = [source / "notebooks" / f"{path.stem}-{i}-{j}" for j in range(len(cell.outputs))]
                outputs = [shown(output, cell, name) for output, name in zip(cell.outputs, names)]
                cell.outputs = [output for output in outputs if output]
        nbformat.write(notebook, source / "notebooks" / path.name)


def build(target: Path) -> int:
    """Builds the website beside `target`, and puts it in its place when it is whole.

    Returns Sphinx's exit status; a warning is an error, and then the website stays beside, with "-new" to its name.
    """
    source, beside = (target.with_name(target.name + ending) for ending in ("-source", "-new"))
    for folder in (source, beside):
        shutil.rmtree(folder, ignore_errors=True)
    lay_out(source)
    options = ["-q", "-W", "--keep-going", "-b", "html", "-c", ROOT / "docs", "-d", source / ".doctrees"]
    status = sphinx([str(option) for option in [*options, source, beside]])
    if status == 0:
        for path in NOTEBOOKS:  # what a reader downloads is the notebook as it is
            shutil.copy(path, beside / "_sources" / "notebooks")
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
    return status


if __name__ == "__main__":
    if build(ROOT / "build" / "book") != 0:
        raise SystemExit("There were warnings: the website in build/book-new is not to be published.")
    print(ROOT / "build" / "book" / "index.html")
