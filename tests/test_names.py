"""What a text names is there: modules, what they hold, files. No name is left from before it was renamed."""

import functools
import importlib
import re

import pytest
from notebook_tools import ROOT

PLACES = (
    "*",
    ".ci/*",
    ".github/**/*",
    "binder/*",
    "docs/*",
    "paper/*",
    "notebooks/*",
    "tests/**/*",
    "tools/*",
    "vqnotes/**/*",
)
KINDS = {".bib", ".cff", ".cfg", ".css", ".ipynb", ".js", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted({one for place in PLACES for one in ROOT.glob(place)})
    if path.is_file() and (path.suffix in KINDS or path.name in ("Makefile", "run"))
}
TEXTS.pop("tests/test_names.py")  # has wrong names as examples
TEXTS = {name: re.sub(r'"image/\w+": ".*"', '""', text) for name, text in TEXTS.items()}  # figures name nothing
# The table of renames is the one place where old names stand. Below its head:
_, *RENAMES = re.findall(r"^\| (.*) \| (.*) \|$", TEXTS["CHANGELOG.md"], re.M)
TEXTS["CHANGELOG.md"] = re.sub(r"^\|.*\n", "", TEXTS["CHANGELOG.md"], flags=re.M)
DEFINED = {
    name
    for path, text in TEXTS.items()
    if path[:8] == "vqnotes/"
    for name in re.findall(r"(?:def|class) (\w+)", text)
}
MADE_UP = {  # by tests
    "docs/cheatsheet.html",
    "docs/glossary.html",
    "docs/references.html",
    "notebooks/99_example.html",
    "notebooks/gone.ipynb",
    "vqnotes.diagnos",
}

DOTTED = re.compile(r"(?<![\w./-])vqnotes(?:\.[A-Za-z_]\w*)+")
IMPORTED = re.compile(r"\bfrom (vqnotes[\w.]*) import (\([^)]*\)|[\w, ]+)")
FILE = re.compile(r"(?<![\w./-])(?:docs|notebooks|tests|tools|vqnotes)/[\w./-]+\.[a-z]+\b")


def found(name):
    """The module of this dotted name, or what a module holds; None if there is no such thing in this project."""
    path, held = ROOT, name.split(".")
    while held and ((path / held[0] / "__init__.py").is_file() or (path / f"{held[0]}.py").is_file()):
        path /= held.pop(0)
    here = importlib.import_module(".".join(path.relative_to(ROOT).parts))
    for one in held:
        here = getattr(here, one, None)
    return here


def missing(text):
    """What a text names of the package and of the project's files, and is not there."""
    names = set(DOTTED.findall(text))
    for module, listed in IMPORTED.findall(text):
        names |= {f"{module}.{one.split()[0]}" for one in listed.strip("()").split(",") if one.strip()}
    wrong = {name for name in names if found(name) is None}
    return sorted((wrong | {file for file in FILE.findall(text) if not (ROOT / file).exists()}) - MADE_UP)


@functools.cache
def old_names():
    """What no text may say, as patterns: by the table of renames. A module that only moved keeps its short name."""
    return [re.compile(pattern) for pattern in patterns_of_old_names()]


def patterns_of_old_names():
    for before, now in RENAMES:
        homes = re.findall(r"`(vqnotes[\w.]*)`", now)
        held = [name for home in homes for name in getattr(found(home), "__all__", [])]
        short = {home.rpartition(".")[2] for home in homes}
        for code in re.findall(r"`([^`]+)`", before):
            last = re.match(r"(?:\w+\.)*(\w+)", code)[1]
            if not code.startswith("vqnotes"):
                yield from [] if last in DEFINED else [rf"(?<!\w){last}\("]
            elif held and found(code) is None and last not in short:
                yield rf"(?<![\w.]){last}\.(?:{'|'.join(held)})\b"


def old(text):
    """The old names in a text, but for those that it has given to something itself."""
    hits = {match[0] for pattern in old_names() for match in pattern.finditer(text)}
    return sorted(hit for hit in hits if not re.search(rf"\bas {re.escape(hit.partition('.')[0])}\b", text))


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_text_names_is_there(name):
    assert missing(TEXTS[name]) == [] and old(TEXTS[name]) == []


def test_the_table_of_renames_leads_from_what_is_gone_to_what_is_there():
    assert len(RENAMES) > 20
    for before, now in RENAMES:
        assert not re.match("`vqnotes", before) or "(one file)" in before or found(before.split("`")[1]) is None
        assert all(found(one) for one in re.findall(r"`(vqnotes[\w.]*)`", now)), now


def test_a_wrong_name_of_any_form_is_noticed():
    assert missing(
        "`vqnotes.checks` is `vqnotes.course.claims`; from vqnotes import league, metrics\n"
        "from vqnotes.plots import (\n    curves,\n    nothing,\n)\n"
        "python -m vqnotes.validation; tests/notebook_tools.py, tools/notebook_tools.py"
    ) == [
        "tests/notebook_tools.py",
        "vqnotes.checks",
        "vqnotes.league",
        "vqnotes.plots.nothing",
        "vqnotes.validation",
    ]
    text = "`scale.run_sweep`, scale.copy_(), figures_of(x), z = quantizer.lookup(index), league.table(x)"
    assert old(text) == ["figures_of(", "league.table", "lookup(", "scale.run_sweep"]
    assert old("from vqnotes.studies import remedies as league\nleague.table(x)") == []
