"""What several tests know of the Makefile and of commands in a shell."""

import re
import shlex

from notebook_tools import ROOT


def targets() -> dict[str, list[str]]:
    """The targets of the Makefile that are commands, and the lines that each runs."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n\t", "").replace("\\\n", "")
    listed = re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split()
    rules = {
        name: recipe
        for names, recipe in re.findall(r"^([\w -]+):.*\n((?:\t.*\n)*)", text, re.M)
        for name in names.split()
    }
    return {name: re.findall(r"^\t@?(.*)$", rules[name], re.M) for name in listed}


def commands_of(script: str) -> list[list[str]]:
    """The commands of a shell script, each in words."""
    found: list[list[str]] = []
    for line in script.splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        words.whitespace_split = True
        found.append([])
        for word in words:
            if set(word) <= set(";&|"):
                found.append([])
            else:
                found[-1].append(word)
    return [command for command in found if command]
