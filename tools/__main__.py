"""What a reader needs of the Makefile, for where there is no `make`: on Windows, for example.

python -m tools setup             installs everything into .venv, if that was not done yet
python -m tools lab               opens the course in JupyterLab
python -m tools test [ARG ...]    tests the module and runs every notebook; with arguments, what pytest understands
python -m tools run NOTEBOOK ...  runs notebooks and stores their outputs
python -m tools book              the course as a website, in build/book
python -m tools student           notebooks without solutions, in build/student
python -m tools slides            the lecture, in build/slides
python -m tools grade FOLDER      grades what students hand in
python -m tools stamp [OWNER/NAME]   writes the address of the git remote into all texts

To be started in the folder of the project, with Python 3.10 or newer; on Windows that may be called `py`.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
READY = ENVIRONMENT / "ready"  # as in the Makefile: either can go on with what the other has set up
LISTS = ("pyproject.toml", "constraints.txt")
EXTRAS = ".[course,lab,test,lint,book,browser]"
COMMANDS = {  # what .venv's Python is started with; tests/test_without_make.py compares them with the Makefile
    "setup": [],
    "lab": [
        *("-m", "jupyterlab", "--ServerApp.root_dir=.", "--LabApp.extra_labextensions_path=tools/labextensions"),
        "notebooks/00_start_here.ipynb",
    ],
    "test": ["-m", "pytest"],
    "run": ["tools/notebook_tools.py", "run"],
    "book": ["tools/book.py"],
    "student": ["tools/handouts.py", "student"],
    "slides": ["tools/handouts.py", "slides"],
    "grade": ["tools/handouts.py", "grade"],
    "stamp": ["tools/stamping.py"],
}


def python() -> Path:
    """The environment's own."""
    return ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def set_up() -> None:
    """Makes .venv with all that is needed, unless it is there and no older than the lists of packages."""
    if READY.exists() and READY.stat().st_mtime >= max((ROOT / one).stat().st_mtime for one in LISTS):
        return
    venv.create(ENVIRONMENT, clear=True, with_pip=True)
    pip = [python(), "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt", "--editable", EXTRAS]
    subprocess.run(pip, cwd=ROOT, check=True)
    READY.touch()


def main(words: list[str]) -> int:
    """Runs a command of COMMANDS with what follows it; its exit status, 2 for a command that there is not."""
    if not words or words[0] not in COMMANDS:
        print(__doc__)
        return 2
    set_up()
    if not COMMANDS[words[0]]:
        return 0
    return subprocess.run([python(), *COMMANDS[words[0]], *words[1:]], cwd=ROOT).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
