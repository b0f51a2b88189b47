"""The lists of dependencies agree, imports go one way, and importing stays cheap."""

import ast
import importlib
import importlib.metadata
import json
import re
import sys
import textwrap

import pytest
import torch
import yaml
from defects import DEFECTS, NOTEBOOK_DEFECTS
from helpers import run_python
from mutants import planted
from notebook_tools import NOTEBOOKS, ROOT, project, repository
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vqnotes
from vqnotes import _checks

EXERCISES = sorted((ROOT / "vqnotes" / "course" / "exercises").glob("nb*.py"))


def requirements():
    """All requirements of the installed project, those of its extras included."""
    return [Requirement(line) for line in importlib.metadata.requires("vqnotes")]


def pinned(file="constraints.txt"):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = re.findall(r"^## \[([\d.]+)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert vqnotes.__version__ == project("version") == changes[0][0]
    assert (citation["version"], citation["date-released"]) == changes[0]
    assert json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))["version"] == vqnotes.__version__
    for path in [
        *NOTEBOOKS,
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]:  # what they install or launch
        text = path.read_text(encoding="utf-8")
        tags = re.findall(rf"(?:@|/gh/{re.escape(repository())}/)v(\d[\d.]*\d)", text)
        assert set(tags) <= {vqnotes.__version__} and len(tags) >= (path in NOTEBOOKS), path.name


def test_the_citation_says_what_the_project_says():
    """That it is in the format is for cffconvert to say, in `make lint`: it cannot be installed beside Jupyter."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= citation.keys()
    assert citation["repository-code"] == project("Repository") and citation["license"] == project("license")
    assert project("description").lower() in citation["title"].lower()
    (paper,) = citation["references"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"title   = {(.*)}", readme) == [paper["title"], citation["title"]]
    assert re.findall(r"version = {(.*)}", readme) == [citation["version"]]
    assert paper["doi"].endswith(paper["url"].removeprefix("https://arxiv.org/abs/"))


def test_hooks_and_lint_have_the_pinned_versions():
    pins, makefile = pinned(), (ROOT / "Makefile").read_text(encoding="utf-8")
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    for hook in repo["hooks"]:
        for name, version in (one.split("==") for one in hook.get("additional_dependencies", [])):
            pinned_here = f"{name}=={version}" in makefile
            assert pinned_here or pins[name].specifier.contains(version), name
        command = hook["entry"].removesuffix(" --force-exclude").removeprefix(".venv/bin/")
        assert f"bin/{command}\n" in makefile, command


def test_the_examples_of_how_to_contribute_run():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    remedy, metric = (textwrap.dedent(one) for one in re.findall(r"```python\n(.*?) *```", text, re.S))
    names = {"VectorQuantizer": vqnotes.VectorQuantizer} | vars(_checks)
    exec(remedy + metric, names)
    assert names["Louder"](8, 2, gain=0.5, update="ema").beta == 0.75
    assert names["shortest_code"]([[3.0, 4.0], [0.0, 2.0]]) == 2
    for call in (lambda: names["Louder"](8, 2, gain=-1), lambda: names["shortest_code"](torch.ones(2))):
        with pytest.raises(ValueError):
            call()


def test_requirements_have_a_lower_bound_and_no_cap():
    for requirement in requirements():
        assert re.fullmatch(r">=[\d.]+", str(requirement.specifier)), str(requirement)


def test_constraints_pin_every_requirement_within_its_bounds():
    pins = pinned()
    for requirement in requirements():
        (pin,) = pins[canonicalize_name(requirement.name)].specifier
        assert pin.operator == "==" and requirement.specifier.contains(pin.version), str(requirement)


def test_colab_has_what_the_module_needs():
    """The set-up cell installs the module alone: what the extra brings elsewhere is there too."""
    pins = pinned("tools/colab.txt")
    for requirement in requirements():
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": "course"})
        if needed and requirement.name != "torch":
            (pin,) = pins[canonicalize_name(requirement.name)].specifier
            assert requirement.specifier.contains(pin.version), str(requirement)


def test_installed_versions_are_the_pinned_ones():
    """Only where constraints.txt was used, as `make` does; other routes install what they find."""
    if not (ROOT / ".venv" / "ready").exists() or not sys.prefix.startswith(str(ROOT / ".venv")):
        return
    _, apart = (ROOT / "constraints.txt").read_text(encoding="utf-8").split("# Only for `make libraries-test`:")
    installed = {canonicalize_name(one.name): one.version for one in importlib.metadata.distributions()}
    for name, pin in pinned().items():
        if (pin.marker is None or pin.marker.evaluate()) and (name in installed or f"\n{pin.name}==" not in apart):
            found = installed.get(name, "none")
            assert found != "none" and pin.specifier.contains(found.split("+")[0]), f"{name} {found}"


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
    assert by_pip == {"pip": ["-c constraints.txt", "-e .[course,lab,test]"]}
    assert {"course", "lab", "test"} <= set(importlib.metadata.metadata("vqnotes").get_all("Provides-Extra"))


HEAVY = {"torch", "numpy", "sklearn", "matplotlib", "seaborn", "pandas", "pooch", "scipy"}


def test_a_bare_import_loads_nothing_claims_only_numpy_the_core_only_torch_and_names_load_when_used():
    notebooks = ", ".join(f"vqnotes.course.exercises.{path.stem}" for path in EXERCISES)
    code = (
        f"import sys, vqnotes; print(sorted({HEAVY} & sys.modules.keys()))\n"
        f"import vqnotes.course.claims; print(sorted({HEAVY} & sys.modules.keys()))\n"
        f"import vqnotes.training, vqnotes.metrics, vqnotes.data, {notebooks}\n"
        f"print(sorted({HEAVY - {'torch', 'numpy'}} & sys.modules.keys()))\n"
        "print(vqnotes.diagnosis.diagnose is vqnotes.diagnose, vqnotes.metrics.UsageMeter is vqnotes.UsageMeter)"
    )
    assert run_python(code).stdout.splitlines() == ["[]", "['numpy']", "[]", "True True"]


def test_the_public_names_are_there():
    assert {*vqnotes.__all__, *vqnotes._MODULES} <= {*dir(vqnotes)}
    for name in [*vqnotes.__all__, *vqnotes._MODULES]:
        assert getattr(vqnotes, name) is not None
    with pytest.raises(AttributeError, match="'vqnotes' has no attribute 'diagnos'"):
        vqnotes.diagnos  # noqa: B018


def test_every_module_says_what_it_offers():
    modules = {name: importlib.import_module(f"vqnotes.{name}") for name in ORDER if name[0] != "_"}
    for name, module in modules.items():
        assert len(set(module.__all__)) == len(module.__all__) > 0, name
        assert not [one for one in module.__all__ if not hasattr(module, one)], name


WITHOUT_THE_EXTRA = (
    "import sys; sys.modules |= dict.fromkeys(['matplotlib', 'seaborn', 'PIL', 'pooch', 'requests', 'ipywidgets'])\n"
)


def test_a_diagnosis_needs_no_package_of_the_extra():
    code = (
        "import torch, vqnotes; torch.manual_seed(0); x = torch.randn(2000, 4)\n"
        "print(vqnotes.diagnose(x, x[:16] / 99, inputs=x).verdict)\n"
        "model = vqnotes.models.mlp_autoencoder(4, vqnotes.VectorQuantizer(16, 2))\n"
        "vqnotes.fit(model, x, seed=0, steps=2, progress=False)\n"
        "print(len(vqnotes.diagnose_model(model, x)), vqnotes.UsageMeter(16).update(torch.arange(8)).usage())"
    )
    assert run_python(WITHOUT_THE_EXTRA + code).stdout.splitlines() == ["token collapse", "1 0.5"]


NEEDED = {
    "import vqnotes.plots": "matplotlib",
    "import vqnotes.course.explorers": "ipywidgets",
    "import vqnotes; vqnotes.diagnosis.draw([], None)": "matplotlib",
    "import vqnotes; vqnotes.diagnosis.draw_watch(None, None)": "matplotlib",
    "import vqnotes; vqnotes.diagnosis.draw_tree(None)": "matplotlib",
    "import vqnotes; vqnotes.data.photographs()": "PIL",
    "from vqnotes import _downloads; _downloads.download(_downloads.CIFAR10)": "pooch",
}


def test_what_needs_the_extra_says_how_to_install_it():
    code = (
        f"for use in {list(NEEDED)}:\n"
        "    try:\n        exec(use)\n        print('no error')\n"
        "    except ImportError as error:\n        print(' '.join(str(error).split()))"
    )
    said = run_python(WITHOUT_THE_EXTRA + code).stdout.splitlines()
    for (use, package), line in zip(NEEDED.items(), said, strict=True):
        assert f"needs {package}" in line and "pip install 'vqnotes[course]'" in line, use


# A module imports only from those before it: the core, then the wings. A package stands behind its modules.
ORDER = (
    "_files _printing _interrupts _progress _threads _workload _checks _extras _rounding _two_lowest _scores nearest "
    "_kmeans_start kmeans _combining _by_index _in_chunks quantizers models _batches _stacked _by_hand _optimizers "
    "training _water_filling _counts metrics _downloads data _images "
    "plots remedies.codes remedies.gradients remedies.entropy remedies.losses remedies.replacement remedies.choices "
    "remedies.residual remedies.product remedies.scalar remedies "
    "diagnosis.inputs diagnosis.observed diagnosis.on_disk diagnosis.stages diagnosis.stability diagnosis.collisions "
    "diagnosis.resampling diagnosis.readers diagnosis.references diagnosis.beside_inputs "
    "diagnosis.measures diagnosis.rules diagnosis.conditions "
    "diagnosis.advice diagnosis.showing diagnosis.drawing diagnosis.tree diagnosis.pages diagnosis.keeping "
    "diagnosis.report diagnosis.comparing "
    "diagnosis.ids diagnosis.estimates diagnosis.tokens "
    "diagnosis.listening.calls diagnosis.listening.ours diagnosis.listening.tracing diagnosis.listening.yours "
    "diagnosis.listening.vector_quantize_pytorch diagnosis.listening.vector_quantize_pytorch_grids "
    "diagnosis.listening.gumbel "
    "diagnosis.listening.compared diagnosis.listening.found "
    "diagnosis.listening diagnosis.listening.use diagnosis.listening.units diagnosis.listening.trials "
    "diagnosis.listening.records "
    "diagnosis.feeding diagnosis.model diagnosis.perturbation diagnosis.watch diagnosis.callbacks diagnosis.adapter "
    "diagnosis.defect_checks diagnosis.conformance diagnosis.arrays diagnosis __main__ "
    "studies.sweeps studies.parts studies.remedies studies.families studies.cases studies.interventions "
    "studies.judging studies.verdicts studies.sample_sizes studies.sickened studies.advice studies.watching "
    "studies.recreated studies.reports studies.peers studies.entrants studies.tuning "
    "studies.codebook_size studies.drift studies.dimensions studies.large_codebooks studies.generation "
    "studies.consequences "
    "studies.items studies.item_names studies.next_items studies.semantic_ids studies "
    "course.margins course.figures course.claims course.explorers course.playground course.exercises "
    "course.growing course"
).split()


def name_of(path):
    """Of a module's file, as it stands in ORDER; "" for the top of the package."""
    parts = path.relative_to(ROOT / "vqnotes").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted((ROOT / "vqnotes").rglob("*.py")) if path not in EXERCISES}


def imports(tree):
    """The modules of vqnotes that a program imports when it runs, in functions too: not those of `TYPE_CHECKING`."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING":
        return
    if isinstance(tree, ast.ImportFrom):
        for one in [f"{tree.module}.{alias.name}" for alias in tree.names]:
            _, _, name = one.partition("vqnotes.")
            if one.startswith("vqnotes."):
                yield name if name in FILES else name.rpartition(".")[0]
    elif isinstance(tree, ast.Import):
        yield from (alias.name[8:] for alias in tree.names if alias.name.startswith("vqnotes."))
    for child in ast.iter_child_nodes(tree):
        yield from imports(child)


def test_imports_are_found():
    source = (
        "from vqnotes import kmeans, metrics as m\nfrom vqnotes.data import digits\nimport vqnotes.plots as p, os\n"
        "if TYPE_CHECKING:\n    from vqnotes.diagnosis import Diagnosis\n"
        "def f():\n    from vqnotes.studies import sweeps\n    from vqnotes import diagnose"
    )
    assert list(imports(ast.parse(source))) == ["kmeans", "metrics", "data", "plots", "studies.sweeps", ""]


def test_modules_import_only_from_those_before_them():
    assert sorted(["", *ORDER]) == sorted(FILES)
    for place, name in enumerate(ORDER):
        tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
        later = set(imports(tree)) - set(ORDER[:place])
        assert not later, f"{name} imports {sorted(later)}"


def test_the_core_is_short_enough_to_be_read():
    """A student reads it from top to bottom, so a second idea is a file of its own: at most 1,600 lines in all."""
    core = "nearest kmeans quantizers models training metrics data plots".split()
    lines = {name: len(FILES[name].read_text(encoding="utf-8").splitlines()) for name in core}
    assert sum(lines.values()) <= 1600, lines
    assert f"at most {1600:,} lines" in (ROOT / "paper" / "paper.md").read_text(encoding="utf-8")


def test_each_defect_that_can_be_planted_has_its_place():
    """Where a line moves to another file, its defect goes with it."""
    for folder, kind, defects in (("vqnotes", "py", DEFECTS), ("notebooks", "ipynb", NOTEBOOK_DEFECTS)):
        for name, old, new, _ in defects:
            planted(ROOT / folder / f"{name}.{kind}", old, new)  # raises ValueError if not


def test_exercises_import_no_other_exercises():
    for path in EXERCISES:
        found = set(imports(ast.parse(path.read_text(encoding="utf-8"))))
        assert found <= set(ORDER) - {"course"}, path.stem


def test_every_notebook_has_its_exercises():
    assert [path.stem for path in EXERCISES] == [f"nb{path.name[:2]}" for path in NOTEBOOKS]


def undocumented(tree):
    """Public functions and classes of a module without a docstring, or with one that is silent on what they raise."""
    listed = [ast.literal_eval(one.value) for one in tree.body if ast.unparse(one).startswith("__all__ = ")]
    general = ast.get_docstring(tree) or ""
    for one in tree.body:
        if not (isinstance(one, ast.FunctionDef | ast.ClassDef) and listed and one.name in listed[0]):
            continue
        if "overload" in map(ast.unparse, one.decorator_list):  # types only: the function itself stands below
            continue
        own = ast.get_docstring(one) or ""
        own += " ".join(ast.get_docstring(part) or "" for part in ast.walk(one) if isinstance(part, ast.FunctionDef))
        raised = {
            part.exc.func.id for part in ast.walk(one) if isinstance(part, ast.Raise) and hasattr(part.exc, "func")
        }
        for error in raised & {"ValueError", "TypeError", "RuntimeError", "KeyError", "OSError"}:
            if error not in own and "aises as" not in own and error not in general:
                yield f"{one.name}: {error}"
        if not ast.get_docstring(one):
            yield one.name


def test_what_is_public_is_documented_with_its_errors():
    source = "__all__ = ['a', 'b', 'C']\ndef a():\n    raise ValueError('x')\ndef b():\n    'Raises ValueError.'\n"
    source += "    raise ValueError('x')\nclass C:\n    'Of no use.'\n    def d():\n        raise KeyError(3)\n"
    source += "@overload\ndef b() -> int: ..."
    assert list(undocumented(ast.parse(source))) == ["a: ValueError", "a", "C: KeyError"]
    for name, path in FILES.items():
        assert not list(undocumented(ast.parse(path.read_text(encoding="utf-8")))), name
