"""Renews tools/colab.txt from the list of packages that Colab publishes.

python tools/colab_versions.py [FILE]     from a list that was downloaded, else from the published one

The packages stay those that the file lists: what the course needs there. One that Colab has no longer is dropped, and
said. Nothing else is changed: look at the difference, then `make colab-test`.
"""

import datetime
import re
import sys
from pathlib import Path

import requests
from notebook_tools import ROOT

from vqnotes._files import replaced
from vqnotes._printing import say

PUBLISHED = "https://raw.githubusercontent.com/googlecolab/backend-info/main/pip-freeze.txt"
LIST = ROOT / "tools" / "colab.txt"
HEAD = """\
# What Colab had installed on {date}, by its own published list, of what the course needs there. `make colab-test`
# takes the Python that it is started with and the PyTorch of constraints.txt. Renewed by `make colab-versions`.
"""


def plain(name: str) -> str:
    """A package's name as it can be compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def renewed(ours: str, theirs: str, date: datetime.date) -> tuple[str, list[str]]:
    """The new text of the list, and the names of those that Colab has no longer. ValueError for another text."""
    there = dict(re.findall(r"^([\w.-]+)==([\w.+!-]+)$", theirs, re.M))
    there = {plain(name): version for name, version in there.items()}
    if "numpy" not in there:
        raise ValueError(f"not Colab's list of packages, but what starts with {theirs[:60]!r}")
    names = re.findall(r"^([\w.-]+)==", ours, re.M)
    lines = [f"{name}=={there[plain(name)]}" for name in names if plain(name) in there]
    return HEAD.format(date=date) + "\n".join(lines) + "\n", [name for name in names if plain(name) not in there]


def published() -> str:
    """The list as it stands on the network now. Raises SystemExit if it cannot be had."""
    try:
        answer = requests.get(PUBLISHED, timeout=60)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise SystemExit(f"{PUBLISHED} cannot be had: {error}. Download it and name the file.") from error
    return answer.text


if __name__ == "__main__":
    if len(sys.argv) > 2:
        raise SystemExit(__doc__)
    theirs = Path(sys.argv[1]).read_text(encoding="utf-8") if len(sys.argv) == 2 else published()
    before = LIST.read_text(encoding="utf-8")
    text, gone = renewed(before, theirs, datetime.date.today())
    with replaced(LIST) as beside:
        beside.write_text(text, encoding="utf-8")
    changed = len(set(text.splitlines()) - set(before.splitlines()) - set(HEAD.splitlines()))
    say(f"{changed} lines changed.", *[f"Colab has {name} no longer." for name in gone])
