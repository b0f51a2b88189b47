"""Asks every https address in texts, notebooks and docstrings whether it is still there.

python tools/outside_links.py [WORD ...]     all of them, or those that contain one of the words

One address at a time for each host, so that nobody is bothered. An address counts as gone if the server says so (404,
410), or if there is no such server; other answers ("too many requests", "robots not welcome") prove nothing and are
listed. Addresses of this project are left out until it is published.
"""

import re
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urldefrag, urlsplit

import nbformat
import requests
from notebook_tools import NOTEBOOKS, ROOT, repository
from stamping import site

from vqnotes._printing import say

ADDRESS = re.compile(r"https://(?:\([^\s()]*\)|[^\s<>\"'`()\]}\\])+")  # with pairs of brackets
MADE_UP = ("https://e.org", "https://example", "http://127.", "https://user")
PLACES = (
    "*.md",
    "*.cff",
    "docs/*.md",
    "paper/*.md",
    "docs/*.bib",
    "vqnotes/**/*.py",
    ".github/**/*.yml",
    ".github/**/*.md",
)
WHO = {"User-Agent": "vqnotes-link-check (a course; asks once a week)"}
TIMEOUT = 30  # seconds
GONE = {404, 410}


def addresses(text: str) -> set[str]:
    """The https addresses in a text, without the part after # and without the full stop of a sentence."""
    found = {urldefrag(one).url.rstrip(".,;:*") for one in ADDRESS.findall(text)}
    return {one for one in found if not one.startswith(MADE_UP) and "{" not in one}


def listed() -> dict[str, set[str]]:
    """Each address of the project, and the files that it stands in."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in [*NOTEBOOKS, *(path for place in PLACES for path in sorted(ROOT.glob(place)))]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = nbformat.reads(text, as_version=4).cells
            text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        for one in addresses(text):
            found[one].add(path.relative_to(ROOT).as_posix())
    if repository().startswith("OWNER/"):
        own = (repository(), site(repository()))
        return {one: files for one, files in found.items() if not any(name in one for name in own)}
    return found


def answer(address: str) -> str:
    """ "" if the address is there, "gone: ..." if not, else what was answered."""
    try:
        with requests.get(address, headers=WHO, timeout=TIMEOUT, stream=True) as said:
            if said.ok:
                return ""
            return f"{'gone' if said.status_code in GONE else 'unclear'}: {said.status_code} {said.reason}"
    except requests.exceptions.ConnectionError as error:
        return f"gone: {type(error).__name__}"
    except requests.RequestException as error:
        return f"unclear: {type(error).__name__}"


def asked(every: list[str]) -> dict[str, str]:
    """The answers of all addresses: hosts beside each other, addresses of one host in turn."""
    hosts = defaultdict(list)
    for one in every:
        hosts[urlsplit(one).netloc].append(one)
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda some: [(one, answer(one)) for one in some], hosts.values())
        return {one: said for some in answers for one, said in some}


def main(words: list[str]) -> int:
    """Prints what did not answer well, with the files that name it: how many addresses are gone."""
    files = {one: names for one, names in listed().items() if not words or any(word in one for word in words)}
    answers = asked(sorted(files))
    for one, said in sorted(answers.items(), key=lambda pair: pair[1]):
        if said:
            say(f"{said}  {one}  in {', '.join(sorted(files[one]))}")
    gone = sum(said.startswith("gone") for said in answers.values())
    say(f"{len(answers)} addresses, {gone} gone")
    return gone


if __name__ == "__main__":
    raise SystemExit(1 if main(sys.argv[1:]) else 0)
