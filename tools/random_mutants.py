"""Random mutants of the module, by cosmic-ray's operators: which share do the unit tests not notice, file by file?

python tools/random_mutants.py [--sample N] [--seed S] [--workers W] [--out FOLDER] [MODULE ...]

A place in the code is drawn, then one of the changes that are possible there (another operator, number, comparison;
a condition always true; ...). What is no code to run, such as annotations and docstrings, is left alone. The tests
that should notice are those that run the statement, the quickest first, as one run of all of them tells; for what is
run at import, the tests named after the module and those that mention it. Needs the packages cosmic-ray and
pytest-cov. What is found is kept, a line a mutant, in FOLDER (build/mutants): the same call goes on where it stopped.
"""

import argparse
import ast
import difflib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

from mutants import NOT_OF_THE_MODULE, commands, copy_of_the_project, verdict
from notebook_tools import ROOT

from vqnotes._printing import say

try:
    import pytest_cov  # noqa: F401
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names
    from coverage import CoverageData
except ImportError:
    sys.exit("pip install cosmic-ray pytest-cov: one makes the random mutants, the other finds their tests")


MODULE = ROOT / "vqnotes"


def named(path: Path) -> str:
    """A file of the module as it is asked for and reported: "diagnosis/rules"."""
    return path.relative_to(MODULE).with_suffix("").as_posix()


def runs(source: str) -> str:
    """What of a source does something: its syntax tree without annotations and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None:
                setattr(node, name, ast.Constant(None))
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def changes(path: Path) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """All changes that are possible in a file, by place: the names of their operators, and which of theirs it is."""
    nodes, found = list(ast_nodes(get_ast(path.read_text(encoding="utf-8")))), defaultdict(list)
    for name in (one for one in operator_names() if not get_operator(one).arguments()):
        operator, count = get_operator(name)(), 0
        for place, _ in (one for node in nodes for one in operator.mutation_positions(node)):
            found[place].append((name, count))
            count += 1
    return found


def drawn_mutants(paths: list[Path], sample: int, seed: int) -> Iterator[tuple[Path, int, str, str]]:
    """So many mutants: path, the number of the line, the lines that change, the changed source."""
    generator, possible = random.Random(seed), {path: changes(path) for path in paths}
    places = [(path, place) for path in paths for place in sorted(possible[path])]
    generator.shuffle(places)
    for path, place in places:
        if sample == 0:
            return
        source = path.read_text(encoding="utf-8")
        name, occurrence = generator.choice(possible[path][place])
        try:  # some operators break on names with a dot, or make what is no Python
            changed = mutate_code(source, get_operator(name)(), occurrence)
            same = changed is None or runs(changed) == runs(source)
        except (AttributeError, SyntaxError):
            continue
        if not same:
            lines = difflib.unified_diff(source.splitlines(), changed.splitlines(), lineterm="", n=0)
            change = "\n".join(line for line in lines if not re.match(r"---|\+\+\+|@@", line))
            yield path, place[0], change, changed
            sample -= 1


class Coverage:
    """Which tests run which lines of the module, by one run of them all in a project; and how long each takes."""

    def __init__(self, project: Path, workers: int) -> None:
        options = ["-q", f"-n{workers}", "-p", "no:cacheprovider", "-o", "addopts=", "--durations=0", "-vv", "tests"]
        options += [f"--ignore=tests/{name}.py" for name in NOT_OF_THE_MODULE]
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "--cov=vqnotes", "--cov-context=test", "--cov-report=", *options],
            cwd=project,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(project), *sys.path]), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if run.returncode:
            raise RuntimeError(f"the tests fail without any mutant: {run.stdout[-2000:]}")
        self.seconds = Counter()
        for seconds, test in re.findall(r"^(\d+\.\d+)s (?:call|setup|teardown) +(\S.*)$", run.stdout, re.M):
            self.seconds[test] += float(seconds)
        data = CoverageData(str(project / ".coverage"))
        data.read()
        self.tests = {}
        for path in MODULE.rglob("*.py"):
            lines = data.contexts_by_lineno(str(project.resolve() / path.relative_to(ROOT)))
            self.tests[path] = {line: {one.split("|")[0] for one in found if one} for line, found in lines.items()}

    def of(self, path: Path, line: int) -> list[str]:
        """The tests that run the statement with this line, the quickest first; none for what is run at import."""
        enclosing = [
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno
        ]
        inside = any(isinstance(node, ast.FunctionDef) and node.body[0].lineno <= line for node in enclosing)
        if not inside:
            return []
        lines = range(max(node.lineno for node in enclosing), line + 1)
        tests = set().union(*(self.tests[path].get(line, set()) for line in lines))
        return sorted(tests, key=lambda test: (self.seconds[test], test))


def near(path: Path) -> list[str]:
    """The tests named after a module, and those that mention it."""
    word = re.compile(rf"\b{path.stem}\b")
    mention = [test for test in commands(path) if word.search((ROOT / test).read_text(encoding="utf-8"))]
    return mention or commands(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants")
    parser.add_argument("modules", metavar="MODULE", nargs="*")
    options = parser.parse_args()
    files = [path for path in sorted(MODULE.rglob("*.py")) if not options.modules or named(path) in options.modules]
    if not files:
        parser.error(f"no module of vqnotes is named {' or '.join(options.modules)}, as diagnosis/rules is")
    jobs = list(drawn_mutants(files, options.sample, options.seed))
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / f"{options.seed}.jsonl"
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    known = {(one["file"], one["change"]): one["noticed"] for one in map(json.loads, lines)}
    projects: SimpleQueue[Path] = SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.workers) as pool:
        for worker in range(options.workers):
            (Path(folder) / str(worker)).mkdir()
            projects.put(copy_of_the_project(Path(folder) / str(worker)))

        left = [job for job in jobs if (named(job[0]), job[2]) not in known]
        coverage = Coverage(Path(folder) / "0", options.workers) if left else None

        def one(path: Path, line: int, change: str, changed: str) -> tuple[str, str, str]:
            project = projects.get()
            try:
                tests = coverage.of(path, line) or near(path)
                return named(path), change, verdict(project, path.relative_to(ROOT), changed, tests)
            finally:
                projects.put(project)

        todo = [pool.submit(one, *job) for job in left]
        with open(results, "a", encoding="utf-8") as kept:
            for future in as_completed(todo):
                file, change, noticed = future.result()
                known[file, change] = noticed
                kept.write(json.dumps({"file": file, "change": change, "noticed": noticed}) + "\n")
                kept.flush()
                say(f"{noticed or 'SURVIVES'} | {file}\n{change}", flush=True)
    made = Counter(named(path) for path, *_ in jobs)
    lived = Counter(named(path) for path, _, change, _ in jobs if not known[named(path), change])
    for file, count in sorted(made.items()):
        say(f"{file}: {lived[file]} of {count} live")
    say(f"all: {lived.total()} of {made.total()} live")


if __name__ == "__main__":
    main()
