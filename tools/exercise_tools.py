"""What tests and hand-outs know about exercises: how they stand in a notebook, and how an answer is put in."""

import ast
import re
from collections.abc import Iterable
from typing import NamedTuple

FOLDED = re.compile(r"<details><summary>(Hint|Solution|Answer)</summary>\n\n(.*?)\n\n</details>", re.S)
HEADING = re.compile(
    r"^### (Exercise|Think) (\d+\.\d+) · (.+)\n\n> \*\*Difficulty:\*\* (●○○|●●○|●●●) · \*\*Time:\*\* (\d+) minutes?$",
    re.M,
)


class Exercise(NamedTuple):
    """kind: "Exercise", with a stub to fill in and a check, or "Think", with an answer to unfold."""

    kind: str
    number: str
    title: str
    difficulty: int
    minutes: int
    stub: str
    solution: str


def exercises(cells: Iterable) -> list[Exercise]:
    """The exercises among a notebook's cells, in order: the task, in the next cell its stub, then its solution."""
    cells, found = list(cells), []
    for place, cell in enumerate(cells):
        heading = HEADING.search(cell.source) if cell.cell_type == "markdown" else None
        if heading is None:
            continue
        kind, number, title, stars, minutes = heading.groups()
        task, stub = cell.source, ""
        if kind == "Exercise":
            stub, task = cells[place + 1].source, cells[place + 2].source
        folded = dict(FOLDED.findall(task))
        solution = folded.get("Solution" if kind == "Exercise" else "Answer", "")
        found.append(Exercise(kind, number, title, stars.count("●"), int(minutes), stub, solution))
    return found


def code_of(solution: str) -> str:
    """The code block of a folded solution."""
    (code,) = re.findall(r"```python\n(.*?)```", solution, re.S)
    return code


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []


def filled(stub: str, answer: str) -> str:
    """The stub with the functions, classes and values that `answer` defines put in the place of its own."""
    lines, new = stub.splitlines(), {name: node for node in ast.parse(answer).body for name in _names(node)}
    found = set()
    for node in reversed(ast.parse(stub).body):
        for name in _names(node):
            if name in new:
                lines[node.lineno - 1 : node.end_lineno] = ast.unparse(new[name]).splitlines()
                found.add(name)
    if found != new.keys():
        raise ValueError(f"the stub has no place for {sorted(new.keys() - found)}")
    imports = [ast.unparse(node) for node in ast.parse(answer).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(imports + lines)
