"""`python -m tools`: the same as the Makefile's targets, on any system, in a folder of any name."""

import os
import subprocess
import sys
import venv
from types import SimpleNamespace

import pytest
from mutants import copy_of_the_project
from notebook_tools import ROOT, repository
from tools_by_hand import targets

import tools.__main__ as without_make

BARE = {"PATH": "", "SYSTEMROOT": os.environ.get("SYSTEMROOT", ""), "PYTHONUTF8": "1"}


def test_each_command_is_what_make_runs():
    for name, words in without_make.COMMANDS.items():
        recipe = targets()[name]
        here = " ".join(words).replace("-m jupyterlab", "jupyter lab").replace("-m pytest", "pytest")
        made = [line.removeprefix("OMP_NUM_THREADS=1 ").replace(".venv/bin/", "") for line in recipe]
        made = [
            line.replace("python -m pytest", "pytest").removeprefix("python ").replace("$@", name) for line in made
        ]
        for option in (" $(ARGS)", " $(NOTEBOOKS)", " $(REPO)", ' "$(FOLDER)"'):
            made = [line.replace(option, "") for line in made]
        assert made == ([here] if words else []), name


def test_the_environment_is_the_one_that_make_sets_up():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f'--constraint constraints.txt --editable "{without_make.EXTRAS}"' in makefile
    assert f"$(ready): {' '.join(without_make.LISTS)}\n" in makefile and "ready = .venv/ready\n" in makefile


def test_help_names_every_command_and_needs_no_package():
    said = subprocess.run(
        [sys.executable, "-S", "-m", "tools"], cwd=ROOT, capture_output=True, encoding="utf-8", env=BARE
    )
    assert said.returncode == 2
    for name in without_make.COMMANDS:
        assert f"python -m tools {name} " in said.stdout, said.stderr


@pytest.mark.parametrize("system, place", [("nt", "Scripts/python.exe"), ("posix", "bin/python")])
def test_the_python_of_the_environment_is_where_the_system_puts_it(monkeypatch, system, place):
    monkeypatch.setattr(without_make, "os", SimpleNamespace(name=system))
    assert without_make.python() == ROOT / ".venv" / place


@pytest.fixture
def awkward(tmp_path):
    """A copy of the project in a folder with blanks and umlauts, with an environment that is set up."""
    copy = copy_of_the_project(tmp_path / "Kurs für Übungen (1)")
    return with_environment(copy)


def with_environment(copy):
    folder = copy / ".venv"
    venv.create(folder)
    (own,) = [path for path in folder.rglob("site-packages") if "lib64" not in path.parts]
    paths = [one for one in sys.path if one and one != str(ROOT) and ("packages" in one)]
    (own / "ours.pth").write_text("\n".join([*paths, str(copy)]), encoding="utf-8")
    (folder / "ready").touch()
    return copy


def ask(folder, *words):
    command = [sys.executable, "-m", "tools", *words]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", env=environment)


def test_commands_work_in_a_folder_with_blanks_and_umlauts(awkward):
    said = ask(awkward, "stamp", "some/other")
    assert (said.returncode, said.stderr) == (0, "") and said.stdout.startswith("some/other: ")
    assert repository() not in (awkward / "README.md").read_text(encoding="utf-8")
    ready = (awkward / ".venv" / "ready").stat().st_mtime
    assert ready >= (awkward / "pyproject.toml").stat().st_mtime, "it would be set up anew"
    said = ask(awkward, "test", "-o", "addopts=", "-p", "no:cacheprovider", "-q", "tests/test_workflows.py")
    assert said.returncode == 0 and " passed" in said.stdout, said.stdout + said.stderr


def test_a_command_that_fails_says_so_by_its_status(awkward):
    said = ask(awkward, "stamp", "nonsense")
    assert said.returncode == 1 and "owner/name" in said.stderr
    assert ask(awkward, "setup").returncode == 0
    assert ask(awkward, "laboratory").returncode == 2


def test_it_is_set_up_anew_when_a_list_of_packages_has_changed(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(without_make, "ROOT", tmp_path)
    monkeypatch.setattr(without_make, "ENVIRONMENT", tmp_path / ".venv")
    monkeypatch.setattr(without_make, "READY", tmp_path / ".venv" / "ready")
    monkeypatch.setattr(
        without_make.venv, "create", lambda folder, **_: (done.append("made"), folder.mkdir(exist_ok=True))
    )
    monkeypatch.setattr(without_make.subprocess, "run", lambda words, **_: done.append("installed"))
    for name in without_make.LISTS:
        (tmp_path / name).touch()
    without_make.set_up()
    without_make.set_up()
    assert done == ["made", "installed"]
    later = without_make.READY.stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    without_make.set_up()
    assert done == ["made", "installed"] * 2
