"""Plants the defects of tools/defects.py in a copy of the project, one a time, and counts how many are noticed.

python tools/mutants.py [WORD ...]     all defects, or those whose file name or description contains one of the words

A defect in the module is for the unit tests to notice, one in a notebook for nbval. Fails if less than nine tenths of
the first or not all of the second are noticed. Takes about half an hour on two cores.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from defects import DEFECTS, NOTEBOOK_DEFECTS
from notebook_tools import ROOT
from tqdm import tqdm

from vqnotes._printing import say

WORKERS = 2
PARTS = [
    "vqnotes",
    "tests",
    "tools",
    "notebooks",
    "docs",
    "pyproject.toml",
    "constraints.txt",
    "environment.yml",
    "README.md",
    "PACKAGE.md",
]
PARTS += ["Makefile", ".ci", ".pre-commit-config.yaml", "conftest.py", "LICENSE"]
PARTS += ["CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", ".zenodo.json", ".devcontainer", ".github", "Dockerfile"]
PARTS += ["CODE_OF_CONDUCT.md", "LICENSE-CC-BY-4.0.txt", "SECURITY.md", "SUPPORT.md", "binder", "paper"]
NBVAL = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=900", "--nbval-sanitize-with=tests/sanitize.cfg"]
NOT_OF_THE_MODULE = ["test_book", "test_handouts", "test_names", "test_notebooks", "test_outside", "test_paper"]
NOT_OF_THE_MODULE += ["test_project", "test_releasing", "test_stamping", "test_without_make", "test_workflows"]


def copy_of_the_project(folder: Path) -> Path:
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / part)
    return folder


def planted(path: Path, old: str, new: str) -> str:
    """The text of a file with the defect in it. Raises ValueError unless `old` stands there exactly once."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":  # the defect is in the source of a code cell, which JSON writes in its own way
        notebook = json.loads(text)
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and old in "".join(cell["source"])]
        if len(cells) != 1 or "".join(cells[0]["source"]).count(old) != 1:
            raise ValueError(f"{path.name} has this not exactly once: {old!r}")
        cells[0]["source"] = "".join(cells[0]["source"]).replace(old, new)
        return json.dumps(notebook)
    if text.count(old) != 1:
        raise ValueError(f"{path.name} has this not exactly once: {old!r}")
    return text.replace(old, new)


def commands(path: Path) -> list[str]:
    """The arguments of pytest that should notice a defect in this file: the tests named after it come first."""
    if path.suffix == ".ipynb":
        return [*NBVAL, f"notebooks/{path.name}"]
    files = [file for file in sorted(ROOT.glob("tests/test_*.py")) if file.stem not in NOT_OF_THE_MODULE]
    name = path.stem if path.stem != "__init__" else path.parent.name
    files.sort(key=lambda file: (file.stem != f"test_{name}", name not in file.read_text(encoding="utf-8")))
    return [f"tests/{file.name}" for file in files]


def verdict(project: Path, path: Path, changed: str, tests: list[str]) -> str:
    """Which of the tests (arguments of pytest) fails with this text in the file, or "" if all pass."""
    original = (project / path).read_text(encoding="utf-8")
    (project / path).write_text(changed, encoding="utf-8")
    listed = project / "tests.txt"  # a file, since there can be more than a command line takes
    listed.write_text("\n".join(tests), encoding="utf-8")
    try:
        options = ["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts="]
        run = subprocess.run(
            [sys.executable, "-m", "pytest", *options, f"@{listed}"],
            cwd=project,
            env=os.environ | {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=1800,
        )
    except subprocess.TimeoutExpired:
        return "no answer in half an hour"
    finally:
        (project / path).write_text(original, encoding="utf-8")
    if run.returncode == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", run.stdout, re.M)
    if not failed:
        raise RuntimeError(f"pytest could not run the tests of {path}: {run.stdout[-1000:]}")
    return failed[1]


def main(words: list[str]) -> str | None:
    jobs = [(Path("vqnotes", f"{name}.py"), *rest) for name, *rest in DEFECTS]
    jobs += [(Path("notebooks", f"{name}.ipynb"), *rest) for name, *rest in NOTEBOOK_DEFECTS]
    jobs = [job for job in jobs if not words or any(word in f"{job[0]} {job[-1]}" for word in words)]
    for path, old, new, _ in jobs:
        planted(ROOT / path, old, new)
    projects: SimpleQueue[Path] = SimpleQueue()
    survivors = {".py": [], ".ipynb": []}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as pool:
        for worker in range(WORKERS):
            (Path(folder) / str(worker)).mkdir()
            projects.put(copy_of_the_project(Path(folder) / str(worker)))

        def one(path: Path, *change: str) -> str:
            project = projects.get()
            try:
                text = planted(project / path, *change) if change else (project / path).read_text(encoding="utf-8")
                return verdict(project, path, text, commands(path))
            finally:
                projects.put(project)

        whole = {path if path.suffix == ".ipynb" else Path("vqnotes/__init__.py") for path, *_ in jobs}
        for failed in pool.map(one, sorted(whole)):
            if failed:
                return f"fails without any defect: {failed}"
        noticed = [pool.submit(one, path, old, new) for path, old, new, _ in jobs]
        for (path, old, new, wrong), future in zip(tqdm(jobs, desc="defects"), noticed):
            say(f"{future.result() or 'SURVIVES'} | {path.name}: {wrong} | {old!r} -> {new!r}", flush=True)
            if not future.result():
                survivors[path.suffix].append(wrong)
    for kind, lost in survivors.items():
        total = sum(1 for path, *_ in jobs if path.suffix == kind)
        say(f"{kind}: {total - len(lost)} of {total} noticed; not: {lost}")
    in_module = sum(1 for path, *_ in jobs if path.suffix == ".py")
    too_many = len(survivors[".py"]) > in_module / 10 or survivors[".ipynb"]
    return "too many defects were not noticed" if too_many else None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
