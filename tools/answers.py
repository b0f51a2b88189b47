"""Where the answer to an exercise stands in a notebook that a student hands in, and what must be run to have it.

Students split a cell, copy it, retype it, put a helper above it, delete the call of the check, turn code into text.
So an answer is found by its name, wherever it is defined, and what it needs by the names that stand in it.
"""

import ast
import re
import symtable
from collections.abc import Iterable, Iterator
from typing import NamedTuple

MAGIC = re.compile(r"^(\s*)[%!?].*$", re.M)


class Statement(NamedTuple):
    """A statement at the top level of a cell. binds: names it gives a value; changes: names whose value it changes in
    place; uses: names that must be there; anew: whether what its names were before does not matter."""

    cell: int
    source: str
    node: ast.stmt
    binds: frozenset[str]
    changes: frozenset[str]
    uses: frozenset[str]
    anew: bool


class Attempt(NamedTuple):
    """Sources to run in turn, then `call`, the check. past_errors: whether one that stops lets the next ones run."""

    sources: tuple[str, ...]
    call: str
    past_errors: bool = False


class HandIn:
    """The cells of a notebook as statements. lesson: sources of cells as students got them, which hold no answers."""

    def __init__(self, cells: Iterable, lesson: Iterable[str] = ()) -> None:
        self.sources: list[str] = []
        self.statements: list[Statement] = []
        self.broken: list[str] = []  # code that Python cannot read
        self.theirs: set[int] = set()  # cells that the student wrote or changed
        lesson = {source.strip() for source in lesson}
        for place, cell in enumerate(cells):
            source = MAGIC.sub(r"\1pass", cell.source)
            try:
                nodes = ast.parse(source).body
                self.statements += [_statement(place, node) for node in nodes]
                self.sources.append(source if cell.cell_type == "code" else "")
            except (SyntaxError, ValueError):
                self.sources.append("")
                if cell.cell_type == "code":
                    self.broken.append(cell.source)
                continue
            if cell.source.strip() not in lesson:
                self.theirs.add(place)

    def attempts(self, check: str) -> Iterator[list[Attempt]]:
        """Ways to have the answer that a check asks for: a list is tried if nothing in those before it was right.

        First what the answer's name depends on, and nothing else. Then the same with what else has these names at the
        end of the notebook, since cells may have been run in another order, and its cell as it stands. Then all cells
        from the top, past their errors, which takes as long as the notebook: only for what no name leads to.
        check: the import of the check, then its call, as `check_of` gives them.
        """
        start, ours = check.rsplit("\n", 1)
        name = ours.split("(")[0]
        calls = {ours: set()} | {call: set() for _, call in self._calls(name)}
        for cell, call in self._calls(name):
            calls[call].add(cell)
        slices, wholes, all_above = [], [], []
        for call, called_in in calls.items():
            wanted = _uses(call) - {name}
            bound_in = {one.cell for one in self.statements if one.binds & wanted and one.cell in self.theirs}
            for cell in sorted(bound_in | called_in):
                last = f"{start}\n{call}"
                mine = [place for place, one in enumerate(self.statements) if one.cell == cell and not _is_check(one)]
                slices.append(Attempt((self._source(self._needed(wanted, cell, wanted)),), last))
                wholes.append(Attempt((self._source(self._needed(wanted, cell, wanted, len(self.sources))),), last))
                uses = {used for place in mine for used in self.statements[place].uses} | wanted
                wholes.append(Attempt((self._source({*mine} | self._needed(uses, cell, wanted)),), last))
                all_above.append(Attempt(tuple(filter(None, self.sources[: cell + 1])), last, past_errors=True))
        wholes += [Attempt((source,), check) for source in self.broken if _mentions(source, {name} | _uses(ours))]
        yield [*dict.fromkeys(slices)]
        yield [one for one in dict.fromkeys(wholes) if one not in slices]
        yield [*dict.fromkeys(all_above)]

    def _calls(self, name: str) -> Iterator[tuple[int, str]]:
        """Where a check is called, and with what: the answer may have a name of their own."""
        for one in self.statements:
            for node in ast.walk(one.node):
                if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
                    yield one.cell, ast.unparse(ast.Call(ast.Name(name), node.args, node.keywords))

    def _needed(self, names: Iterable[str], cell: int, answer: set[str], end: int | None = None) -> set[int]:
        """The statements that `names` depend on, with the answer in this cell, from those above it or else below it.

        answer: the names that are asked for; where the cell binds one, copies of it elsewhere do not count.
        end: the last cell that counts as above, if it is not this one.
        """
        end = cell if end is None else end
        chosen = {place for place, one in enumerate(self.statements) if one.cell <= end and _from_all(one.node)}
        waiting, seen = list(names), set()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            touching = [place for place, one in enumerate(self.statements) if name in one.binds | one.changes]
            if any(_imports(self.statements[place].node) for place in touching):  # plt.show() changes no answer
                touching = [place for place in touching if name in self.statements[place].binds]
            above = [place for place in touching if self.statements[place].cell <= end]
            if name in answer and any(self.statements[place].cell == cell for place in touching):
                above = [place for place in touching if self.statements[place].cell == cell]
            taken = []
            for place in reversed(above):
                taken.append(place)
                if name in self.statements[place].binds and self.statements[place].anew:
                    break
            chosen.update(taken or touching)
            waiting += [used for place in taken or touching for used in self.statements[place].uses]
        return chosen

    def _source(self, places: Iterable[int]) -> str:
        return "\n".join(self.statements[place].source for place in sorted(places))


def _statement(cell: int, node: ast.stmt) -> Statement:
    source = ast.unparse(node)
    table = symtable.symtable(source, "cell", "exec")
    binds = {one.get_name() for one in table.get_symbols() if one.is_assigned() or one.is_imported()}
    uses = _uses(source)
    changes: set[str] = set()
    whole = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom)
    for one in [] if whole else ast.walk(node):
        base = one
        if isinstance(one, ast.Expr) and isinstance(one.value, ast.Call):
            base = one.value.func
        elif not isinstance(getattr(one, "ctx", None), ast.Store | ast.Del):
            continue
        while isinstance(base, ast.Attribute | ast.Subscript | ast.Starred):
            base = base.value
        if isinstance(base, ast.Name) and base is not getattr(getattr(one, "value", None), "func", None):
            changes.add(base.id)
    anew = whole or isinstance(node, ast.Assign | ast.AnnAssign) and not binds & uses
    return Statement(cell, source, node, frozenset(binds), frozenset(changes - binds), frozenset(uses), anew)


def _uses(source: str) -> set[str]:
    """The names that a source looks up outside of itself when it is run, or when its functions are."""
    tables, found = [symtable.symtable(source, "cell", "exec")], set()
    for table in tables:
        tables += table.get_children()
        outside = (lambda one: True) if table.get_type() == "module" else symtable.Symbol.is_global
        found |= {one.get_name() for one in table.get_symbols() if one.is_referenced() and outside(one)}
    return found


def _imports(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _from_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.names[0].name == "*"


def _is_check(statement: Statement) -> bool:
    """Whether it only calls or imports a check: ours comes after it."""
    node = statement.node
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func).split(".")[-1].startswith("check_")
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vqnotes.course.exercises")


def _mentions(source: str, names: Iterable[str]) -> bool:
    return any(re.search(rf"\b{re.escape(name)}\b", source) for name in names)
