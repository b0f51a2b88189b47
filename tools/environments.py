"""Runs the project with other versions than those of constraints.txt, each time in an environment of its own.

python tools/environments.py colab     each notebook alone in an empty folder, with Colab's versions (tools/colab.txt)
python tools/environments.py lowest    the unit tests with the lowest versions that pyproject.toml allows
python tools/environments.py latest    the unit tests with the newest versions that pip finds
python tools/environments.py newest    every notebook with the newest versions that pip finds, PyTorch too
But for the last, PyTorch is that of constraints.txt: on Linux, others come with several gigabytes of CUDA libraries.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from notebook_tools import HOURS, NOTEBOOKS, ROOT
from packaging.requirements import Requirement

from vqnotes._printing import say
from vqnotes.course.claims import statement_of

BUILD = ROOT / "build" / "environments"
RUN = """\
import json, sys
from importlib.metadata import distributions

import google.colab, nbformat
from nbclient import NotebookClient

def versions():
    return {one.metadata["Name"].lower(): one.version for one in reversed(list(distributions()))}

notebook, before = nbformat.read(sys.argv[1], as_version=4), versions()
patience = dict.fromkeys(["timeout", "startup_timeout", "iopub_timeout"], int(sys.argv[2]))
NotebookClient(notebook, kernel_name="python3", allow_errors=True, **patience).execute()
nbformat.write(notebook, sys.argv[1])
print(json.dumps([before, versions()]))
"""
NO_NETWORK = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
INSTALLS = {
    "09_diagnose_your_own": {"einx", "loguru", "torch-einops-utils", "vector-quantize-pytorch"}
}  # by the network
OWN_WARNINGS = "filterwarnings=error::DeprecationWarning:vqnotes"  # old libraries also warn of each other


def pins(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]


TORCH = next(pin for pin in pins(ROOT / "constraints.txt") if pin.startswith("torch=="))


def environment(name: str, constraints: list[str], *requirements: str | Path) -> Path:
    """The folder of a new virtual environment with these packages, as far as constrained."""
    folder = BUILD / name
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    listed = folder / "constraints.txt"
    listed.write_text("\n".join(constraints), encoding="utf-8")
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", listed]
    subprocess.run([*pip, *requirements], check=True)
    return folder


# ---------------------------------------------------------------- Colab


def colab() -> list[str]:
    """What goes wrong in notebooks opened alone, with the module in a wheel; and in those that lack a network."""
    shutil.rmtree(BUILD, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", BUILD, ROOT], check=True)
    (wheel,) = BUILD.glob("vqnotes-*.whl")
    base = environment(
        "colab",
        [*pins(ROOT / "tools" / "colab.txt"), TORCH],
        f"{wheel}[course]",
        "ipykernel",
        "nbclient",
        "einops",
        "frozendict",
    )
    subprocess.run([base / "bin" / "python", "-m", "pip", "uninstall", "-q", "-y", "vqnotes"], check=True)
    (packages,) = base.glob("lib/python*/site-packages")
    (packages / "google" / "colab").mkdir(parents=True)
    (packages / "google" / "colab" / "__init__.py").touch()
    source = {"VQNOTES_SOURCE": str(wheel)}
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(complete, path, packages, source) for path in NOTEBOOKS]
        jobs += [pool.submit(stopped, path, packages, source) for path in NOTEBOOKS if path.stem in INSTALLS]
        jobs.append(pool.submit(stopped, NOTEBOOKS[0], packages, {}))
        return [problem for job in jobs for problem in job.result()]


def complete(path: Path, packages: Path, variables: dict[str, str]) -> list[str]:
    """Problems of a notebook that should run to its end, claim what the stored outputs claim, and keep versions."""
    extra = INSTALLS.get(path.stem, set())
    notebook, before, after = run_alone(path, packages, variables if extra else variables | NO_NETWORK)
    problems = [f"{kind}: {text}" for kind, text in printed(notebook) if kind != "stdout"]
    claims, stored = (
        [statement_of(line) for line in re.findall("✓ .*", "\n".join(text for _, text in printed(one)))]
        for one in (notebook, read(path))
    )
    if claims != stored:
        problems.append(f"claims that were not made, or are not stored: {set(claims) ^ set(stored)}")
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    if changed != {"vqnotes"} | extra or changed & before.keys():
        problems.append(f"installed, changed or removed: {sorted(changed)}")
    print(f"{path.name}: {len(claims)} claims hold, {', '.join(sorted(changed))} installed", flush=True)
    return [f"{path.name}: {problem}" for problem in problems]


def stopped(path: Path, packages: Path, variables: dict[str, str]) -> list[str]:
    """Problems of a notebook that needs a network and has none: it should say so in a sentence, not a traceback."""
    notebook, *_ = run_alone(path, packages, variables | NO_NETWORK)
    message = next((text for kind, text in printed(notebook) if kind == "error"), "no error at all")
    say(f"{path.name} without a network: {message}", flush=True)
    good = re.search(r"SystemExit: .* could not be installed.* network", message) and "Traceback" not in message
    return [] if good else [f"{path.name} without a network: {message}"]


def run_alone(path: Path, packages: Path, variables: dict[str, str]) -> tuple:
    """Runs a copy in an empty folder, past errors: the notebook, and the versions installed before and after."""
    with tempfile.TemporaryDirectory() as folder:
        env, copy = Path(folder) / "env", Path(folder) / "empty" / path.name
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
        (own,) = env.glob("lib/python*/site-packages")
        (own / "colab.pth").write_text(str(packages), encoding="utf-8")  # what is there, but nothing new goes there
        copy.parent.mkdir()
        shutil.copy(path, copy)
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("VQNOTES", "PYTHON", "MPL"))
        }
        python = env / "bin" / "python"
        subprocess.run([python, "-m", "ipykernel", "install", "--sys-prefix"], check=True, capture_output=True)
        command = [python, "-c", RUN, copy, str(HOURS)]
        options = {"env": kept | {"OMP_NUM_THREADS": "1"} | variables, "cwd": copy.parent}
        run = subprocess.run(command, check=True, capture_output=True, text=True, **options)
        return read(copy), *json.loads(run.stdout)


def printed(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """What its cells wrote: (stdout, stderr or error, text), without colours."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = [
        (one.get("name", one.output_type), one.get("text", "\n".join(one.get("traceback", [])))) for one in outputs
    ]
    return [(kind, re.sub(r"\x1b\[[\d;]*m", "", text)) for kind, text in kinds if text]


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


# ---------------------------------------------------------------- lowest and newest versions


def tested(name: str, constraints: list[str], *arguments: str) -> list[str]:
    """Installs the project, what tests and the website need, and runs pytest: what then fails, as a sentence."""
    python = environment(name, constraints, "--editable", f"{ROOT}[course,lab,test,book]") / "bin" / "python"
    subprocess.run([python, "-m", "pip", "freeze", "--exclude-editable"], check=True)
    tests = subprocess.run([python, "-m", "pytest", *arguments], cwd=ROOT)
    return [f"tests fail with the {name} versions"] if tests.returncode else []


def lowest() -> list[str]:
    """Each lower bound of pyproject.toml as a pin. Raises if pip cannot install them together."""
    project = importlib.metadata.requires("vqnotes")
    bounds = [Requirement(line) for line in project]
    return [f"{one.name}=={next(iter(one.specifier)).version}" for one in bounds if one.name != "torch"]


if __name__ == "__main__":
    commands = {
        "colab": colab,
        "lowest": lambda: tested("lowest", [*lowest(), TORCH], "tests", "-o", OWN_WARNINGS),
        "latest": lambda: tested("latest", [TORCH], "tests"),
        "newest": lambda: tested("newest", [], "notebooks"),
    }
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        raise SystemExit(__doc__)
    problems = commands[sys.argv[1]]()
    raise SystemExit("\n".join(problems) if problems else None)
