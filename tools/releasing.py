"""Says what is to be filled in before a release: the names of its authors, and its address.

python tools/releasing.py     exits with 1 while something is missing
"""

import json
import re
from pathlib import Path

import yaml
from notebook_tools import ROOT

from vqnotes._printing import say

PLACEHOLDERS = {
    "The vqnotes authors": "instead of {!r}, the names of the authors, as persons",
    "to be filled in before submission": "instead of {!r}, the affiliations of the authors",
    "github.com/OWNER/": "instead of {!r}, the address of your repository: `make stamp` writes it",
}


def authors(root: Path = ROOT) -> dict[str, list[str]]:
    """The authors as each file names them, by the file: given names first, whatever its format puts first."""

    def read(name: str) -> str:
        return (root / name).read_text(encoding="utf-8")

    citation = yaml.safe_load(read("CITATION.cff"))["authors"]
    paper = yaml.safe_load(read("paper/paper.md").split("---\n")[1])["authors"]
    entry = re.search(r"@software\{.*?author\s*= \{(.*?)\},\n", read("README.md"), re.S)[1]
    project = re.search(r"^authors = \[(.*)\]$", read("pyproject.toml"), re.M)[1]
    return {
        "CITATION.cff": [one.get("name") or f"{one['given-names']} {one['family-names']}" for one in citation],
        ".zenodo.json": [given_first(one["name"]) for one in json.loads(read(".zenodo.json"))["creators"]],
        "paper/paper.md": [one["name"] for one in paper],
        "pyproject.toml": re.findall(r'name = "(.*?)"', project),
        "README.md": [given_first(one.strip("{}")) for one in entry.split(" and ")],
    }


def given_first(name: str) -> str:
    return " ".join(reversed(name.split(", ")))


def missing(root: Path = ROOT) -> list[str]:
    """What stands between the project and a release, a sentence each."""
    named = authors(root)
    texts = {name: (root / name).read_text(encoding="utf-8") for name in named}
    found = [
        f"{name}: {what.format(one)}"
        for name, text in texts.items()
        for one, what in PLACEHOLDERS.items()
        if one in text
    ]
    if len({tuple(names) for names in named.values()}) > 1:
        found.append(f"The files name different authors: {named}")
    return found


if __name__ == "__main__":
    if found := missing():
        raise SystemExit("Before a release:\n" + "\n".join(found))
    say("Nothing is left to fill in.")
