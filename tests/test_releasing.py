"""No release goes out while a name or the address is to be filled in, or while files name different authors."""

import os
import subprocess
import sys

import pytest
from notebook_tools import ROOT
from releasing import PLACEHOLDERS, authors, missing
from tools_by_hand import targets

FILLED = {
    "CITATION.cff": "authors: [{family-names: van Doe, given-names: Jane}, {family-names: Roe, given-names: Max}]\n",
    ".zenodo.json": '{"creators": [{"name": "van Doe, Jane", "orcid": "0"}, {"name": "Roe, Max"}]}',
    "paper/paper.md": "---\nauthors:\n- name: Jane van Doe\n- name: Max Roe\naffiliations:\n- name: A school\n---\n",
    "pyproject.toml": 'authors = [{ name = "Jane van Doe" }, { name = "Max Roe" }]\nRepository = "github.com/a/b"\n',
    "README.md": "@article{a,\n author = {Poe, Ann},\n}\n@software{b,\n author  = {van Doe, Jane and Roe, Max},\n}\n",
}


@pytest.fixture
def filled(tmp_path):
    """A project in which nothing is missing, as far as it is read here."""
    for name, text in FILLED.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_same_people_are_found_in_every_format(filled):
    assert authors(filled) == dict.fromkeys(FILLED, ["Jane van Doe", "Max Roe"])
    assert missing(filled) == []


@pytest.mark.parametrize("name", FILLED)
@pytest.mark.parametrize("placeholder", PLACEHOLDERS)
def test_a_placeholder_is_named_with_its_file_and_what_to_do(filled, name, placeholder):
    old = "github.com/a/" if placeholder.startswith("github.com") and name == "pyproject.toml" else "Max"
    (filled / name).write_text(FILLED[name].replace(old, placeholder), encoding="utf-8")
    assert f"{name}: {PLACEHOLDERS[placeholder].format(placeholder)}" in missing(filled)


@pytest.mark.parametrize("name", FILLED)
def test_files_that_name_different_authors_are_told(filled, name):
    (filled / name).write_text(FILLED[name].replace("Max", "Moritz"), encoding="utf-8")
    (said,) = missing(filled)
    assert said.startswith("The files name different authors: ") and "Moritz Roe" in said


def test_the_project_names_one_list_of_authors():
    assert authors().keys() == FILLED.keys()
    assert len({tuple(names) for names in authors().values()}) == 1, authors()


def test_the_command_refuses_until_all_is_filled_in():
    command = [sys.executable, *targets()["release-check"][0].split()[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr.splitlines()[1:]) == (bool(missing()), missing())


def test_the_workflow_asks_before_it_builds():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    assert text.count("run: make release-check\n") == 1
    assert text.index("run: make release-check\n") < text.index("run: make dist\n")
