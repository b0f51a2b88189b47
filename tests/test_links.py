"""Every link between files of the project leads to one: in the repository, and in JupyterLab as `make lab` starts it.

(In the website: test_book.py. In JupyterLab with a browser, where each is clicked on: `make browser-test`.)
"""

import posixpath
import re
import subprocess
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import requests
from browser import command, lab
from mutants import copy_of_the_project
from notebook_tools import HOURS, NOTEBOOKS, ROOT

LINK = re.compile(r'\]\(\s*([^)\s]+)|^\[[^\]^]+\]:\s+(\S+)|\b(?:href|src)="([^"]*)"', re.M)
BLOCK, CODE = re.compile(r"^( *)(`{3,}).*?^\1\2", re.M | re.S), re.compile("`[^`\n]+`")
TEXTS = [*NOTEBOOKS, *sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def prose(path):
    """The Markdown of a file, without blocks of code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return BLOCK.sub("", text)


def links(text):
    """(path, anchor) of each link that stays within the project."""
    for match in LINK.finditer(CODE.sub("", text)):
        parts = urlsplit(next(filter(None, match.groups()), ""))
        assert parts.scheme in ("", "https"), match[0]
        if not parts.scheme:
            yield unquote(parts.path), unquote(parts.fragment)


def anchors(text):
    """The anchors of a text's headings, as the code host makes them."""
    headings = re.findall(r"^#+ (.+?) *$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def wrong(path, text):
    """The links of this text, as it stands in the file `path`, that lead nowhere or to what is not published."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    published = set(listed.stdout.splitlines()) if listed.returncode == 0 else None  # a copy without its history
    found = []
    for link, anchor in links(text):
        target = (ROOT / link.lstrip("/") if link.startswith("/") else path.parent / link).resolve() if link else path
        inside = target.is_file() and target.is_relative_to(ROOT)
        if not inside or (published and target.relative_to(ROOT).as_posix() not in published):
            found.append(link)
        elif anchor and anchor not in anchors(prose(target) if link else text):
            found.append(f"{link}#{anchor}")
    return found


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_to_files_of_the_repository(path):
    assert wrong(path, prose(path)) == []


def test_a_wrong_link_of_any_form_is_noticed():
    text = (
        "# A *b*, c\n[a](gone.md) [b](00_start_here.ipynb) [c](#a-b-c) [d](#b) [e](../docs/glossary.md#measures)\n"
        '[f](../docs/glossary.md#nothing) [g][1] <a href="no.html">h</a> [i](../../x) [j](/LICENSE) `[k](code.md)`\n'
        "[1]: nowhere.md\n"
    )
    expected = ["gone.md", "#b", "../docs/glossary.md#nothing", "no.html", "../../x", "nowhere.md"]
    assert wrong(NOTEBOOKS[0], text) == expected


# ---------------------------------------------------------------- JupyterLab


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """What `make lab` opens first; and a function that says whether the server has a file."""
    pytest.importorskip("jupyterlab", reason="needs the extra `lab`")
    folder = tmp_path_factory.mktemp("lab")
    (folder / "project").mkdir()
    copy_of_the_project(folder / "project")
    with lab(folder) as (first, address):
        yield first, lambda path: requests.get(address.format(f"api/contents/{path}"), timeout=HOURS).ok


def test_make_lab_opens_the_first_notebook_and_serves_every_link(served):
    first, there = served
    assert urlsplit(first).path == f"/lab/tree/notebooks/{NOTEBOOKS[0].name}"
    assert not there("notebooks/gone.ipynb")
    for path in TEXTS:
        for link in {link for link, _ in links(prose(path)) if link and not link.startswith("/")}:
            assert there(posixpath.normpath(f"{path.parent.relative_to(ROOT).as_posix()}/{link}")), (path.name, link)


def test_the_readme_starts_jupyterlab_as_make_does():
    assert f"\n{' '.join(command())}\n" in (ROOT / "README.md").read_text(encoding="utf-8")
