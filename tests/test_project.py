"""The lists of dependencies agree, the module stays small, and importing it stays cheap."""

import importlib.metadata
import re
import sys

import yaml
from helpers import run_python
from notebook_tools import NOTEBOOKS, ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXERCISES = sorted((ROOT / "vqnotes" / "course" / "exercises").glob("nb*.py"))


def requirements():
    """All requirements of the installed project, those of its extras included."""
    return [Requirement(line) for line in importlib.metadata.requires("vqnotes")]


def pinned(file="constraints.txt"):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def test_requirements_have_a_lower_bound_and_no_cap():
    for requirement in requirements():
        assert re.fullmatch(r">=[\d.]+", str(requirement.specifier)), str(requirement)


def test_constraints_pin_every_requirement_within_its_bounds():
    pins = pinned()
    for requirement in requirements():
        (pin,) = pins[canonicalize_name(requirement.name)].specifier
        assert pin.operator == "==" and requirement.specifier.contains(pin.version), str(requirement)


def test_colab_has_what_the_module_needs():
    """The set-up cell installs the module alone."""
    pins = pinned("tools/colab.txt")
    for requirement in requirements():
        if requirement.marker is None and requirement.name != "torch":
            (pin,) = pins[canonicalize_name(requirement.name)].specifier
            assert requirement.specifier.contains(pin.version), str(requirement)


def test_installed_versions_are_the_pinned_ones():
    """Only where constraints.txt was used, as `make` does; other routes install what they find."""
    if not (ROOT / ".venv" / "ready").exists() or not sys.prefix.startswith(str(ROOT / ".venv")):
        return
    for name, pin in pinned().items():
        if pin.marker is None or pin.marker.evaluate():
            installed = importlib.metadata.version(name).split("+")[0]
            assert pin.specifier.contains(installed), f"{name} {installed}"


def test_an_installed_copy_has_all_packages():
    listed = re.search(r"^packages = (\[.*\])$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    found = [file.parent.relative_to(ROOT) for file in (ROOT / "vqnotes").rglob("__init__.py")]
    assert sorted(yaml.safe_load(listed)) == sorted(".".join(folder.parts) for folder in found)


def test_environment_takes_python_from_conda_and_the_project_by_pip():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge"]
    python, pip, by_pip = environment["dependencies"]
    declared = re.search(r'requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    assert python == f"python{declared}" and pip == "pip"
    assert by_pip == {"pip": ["-c constraints.txt", "-e .[lab,test]"]}
    assert {"lab", "test"} <= set(importlib.metadata.metadata("vqnotes").get_all("Provides-Extra"))


def test_import_loads_nothing_heavy_but_torch():
    notebooks = ", ".join(f"vqnotes.course.exercises.{path.stem}" for path in EXERCISES)
    code = (
        f"import sys, vqnotes.training, vqnotes.metrics, vqnotes.data, vqnotes.course.claims, {notebooks}\n"
        "heavy = {'sklearn', 'matplotlib', 'seaborn', 'pandas', 'pooch', 'scipy'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    run = run_python(code)
    assert run.stdout.strip() == "[]"


def test_modules_import_only_from_those_before_them():
    order = ["printing", "files", "interrupts", "threads", "downloads", "data"]
    order += [
        "search",
        "kmeans",
        "quantizers",
        "remedies",
        "replacement",
        "structured",
        "models",
        "loop",
        "training",
        "metrics",
    ]
    order += ["priors", "samples", "experiments", "league", "scale"]
    order += ["pairing", "readers", "figures", "verdicts", "diagnosis", "listening", "trials", "records", "probing"]
    order += ["validation", "plots", "widgets", "margins", "checks"]
    assert sorted(order) == sorted(path.stem for path in (ROOT / "vqnotes").glob("[!_]*.py"))
    for name in order:
        source = (ROOT / "vqnotes" / f"{name}.py").read_text(encoding="utf-8")
        for imported in re.findall(r"^\s*from vqnotes\.(\w+)[\w.]* import", source, re.M):
            assert order.index(imported) < order.index(name), f"{name} imports {imported}"


def test_every_notebook_has_its_exercises_and_they_stand_alone():
    assert [path.stem for path in EXERCISES] == [f"nb{path.name[:2]}" for path in NOTEBOOKS]
    for path in EXERCISES:
        imported = re.findall(r"^\s*from vqnotes\.exercises\.(\w+) import", path.read_text(encoding="utf-8"), re.M)
        assert not imported, f"{path.stem} imports {imported}"
