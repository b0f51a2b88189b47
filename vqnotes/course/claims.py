"""Statements of the course as lines of code that fail when they are wrong.

python -m vqnotes.course.claims --seeds N [NOTEBOOK ...]   runs notebooks for N base seeds: which claims hold?
"""

import argparse
import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from vqnotes import _interrupts
from vqnotes._files import replaced
from vqnotes._printing import say
from vqnotes.course.figures import in_words

__all__ = [
    "Run",
    "base_seed",
    "claim",
    "claims_table",
    "key_of",
    "minutes_of",
    "run_all",
    "run_notebook",
    "seeds",
    "statement_of",
    "stored",
]

TICK, CROSS = "✓", "✗"


def claim(statement: str, holds: Any, **figures: object) -> None:
    """Prints the statement with a tick, and its figures, if it holds; otherwise raises AssertionError with them.

    holds: a truth value; arrays and tensors of one element count, larger ones must be reduced first. NaN is none.
    figures: what the statement rests on. What can be said briefly is printed between ⟨ and ⟩, see `figures`; there
    machines may differ, and tests of notebooks leave it out. On failure all is shown as it is. After a run that was
    cut off, both say so: the statement may rest on a part of it. Where sys.stdout cannot encode the tick, "ok" stands
    for it.
    """
    cut = _interrupts.cut_off()
    if not bool(holds) or holds != holds:
        shown = ", ".join([f"{name} = {value}" for name, value in figures.items()] + ([cut] if cut else []))
        raise AssertionError(f"{CROSS} {statement}" + (f"  [{shown}]" if shown else ""))
    said = in_words(figures)
    say(f"{TICK} {statement}" + (f"  ⟨{said}⟩" if said else "") + (f"  [{cut}]" if cut else ""))


def statement_of(line: str) -> str:
    """The statement in a line that `claim` printed or raised, without its mark and its figures."""
    return re.split(r"  [\[⟨]", line)[0].removeprefix(TICK).removeprefix(CROSS).strip()


def base_seed() -> int:
    """The whole number in the environment variable VQNOTES_SEED, 0 without it: shifts every seed of a notebook.

    Raises ValueError if the variable holds anything else.
    """
    text = os.environ.get("VQNOTES_SEED", "0")
    if not text.isdecimal():
        raise ValueError(f"VQNOTES_SEED must be a whole number, at least 0, got {text!r}")
    return int(text)


def seeds(count: int) -> range:
    """`count` different seeds, all others for another VQNOTES_SEED: 1000 * VQNOTES_SEED + 0, 1, 2, ...

    Raises ValueError for a count not in 1 .. 1000, or as `base_seed`.
    """
    if not 1 <= count <= 1000:
        raise ValueError(f"count must be in 1 .. 1000, got {count}")
    start = 1000 * base_seed()
    return range(start, start + count)


# ---------------------------------------------------------------- all claims, for several base seeds

HOURS = 6  # for one cell, and only so that an endless loop ends
CARRIED = {
    name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
}


class Run(NamedTuple):
    """One run of a notebook. claims: each statement met, with "" or what is wrong.

    heard: what `margins` heard of their figures. ended: False if the kernel died, or a cell took hours.
    """

    claims: dict[str, str]
    heard: list[dict]
    ended: bool


def run_notebook(path: Path, seed: int, running: list | None = None) -> Run:
    """Runs a notebook with VQNOTES_SEED=seed, past its failures, on one thread; its file stays as it is.

    A cell that fails for another reason than a claim counts as a statement of its own.
    running: its kernel is in this list meanwhile.
    """
    import nbformat
    from nbclient import NotebookClient

    from vqnotes.course.margins import MIME

    notebook = nbformat.read(path, as_version=4)
    listens = "from vqnotes.course import margins\n\nmargins.listen()"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(listens))
    limits = dict.fromkeys(("timeout", "startup_timeout", "iopub_timeout"), 3600 * HOURS)
    options: dict[str, Any] = {**limits, "kernel_name": "python3", "allow_errors": True}
    client = NotebookClient(notebook, resources={"metadata": {"path": str(path.parent)}}, **options)
    module = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {"VQNOTES_SCALE": "small", **os.environ, **CARRIED, "PYTHONPATH": module, "VQNOTES_SEED": str(seed)}
    environment.pop("VQNOTES_RESULTS", None)  # what another seed has left there
    running = [] if running is None else running
    running.append(client)
    claims: dict[str, str] = {}
    try:
        client.execute(env=environment)
    except Exception as error:  # the kernel died, or a cell took too long: what ran so far still counts
        claims["The notebook runs to its end"] = repr(error)
    finally:
        running.remove(client)
    ended, heard = not claims, []
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        for line in output.get("text", "").splitlines():
            if line.startswith(TICK):
                claims.setdefault(statement_of(line), "")
        if output.output_type == "error":
            wrong = output.evalue if output.evalue.startswith(CROSS) else f"{output.ename}: {output.evalue}"
            claims[statement_of(wrong)] = wrong
        if MIME in output.get("data", {}):
            heard.append(output.data[MIME])
    return Run(claims, heard, ended)


def key_of(path: Path) -> str:
    """Names the code of a notebook and of all that it calls here: results for another key are of something else."""
    import nbformat

    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    module = Path(__file__).resolve().parents[1]
    files = sorted(one for kind in ("*.py", "*.csv") for one in module.rglob(kind))
    sources += [f"{one.relative_to(module).as_posix()}\n{one.read_text(encoding='utf-8')}" for one in files]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def stored(path: Path, seed: int, key: str, folder: Path) -> Run | None:
    """The result of an earlier call, if it is of this code."""
    try:
        found = json.loads((folder / path.stem / f"{seed}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Run(found["claims"], found["heard"], True) if found["key"] == key else None


def minutes_of(path: Path) -> float:
    """How long a notebook runs by what is stamped on it, 0 if nothing is."""
    stamp = re.search(r"\*\*Time:\*\* (?:over )?(\d*)(½?) min to run", path.read_text(encoding="utf-8"))
    return int(stamp[1] or 0) + 0.5 * bool(stamp[2]) if stamp else 0


def run_all(paths: list[Path], base: Iterable[int], folder: Path, workers: int, train: bool = True) -> dict:
    """Results by notebook and seed: those in the folder, and with `train` all others, each stored when it is done.

    The longest notebooks begin first. After an interrupt kernels are ended, and the next call goes on from there. A
    run that did not come to its end is not stored: it may have been the machine.
    """
    keys = {path: key_of(path) for path in paths}
    done = {(path, seed): stored(path, seed, keys[path], folder) for path in paths for seed in base}
    queue = sorted((one for one in done if done[one] is None), key=lambda one: -minutes_of(one[0])) if train else []
    running: list = []

    def work(path: Path, seed: int) -> Run:
        run = run_notebook(path, seed, running)
        if run.ended:
            (folder / path.stem).mkdir(parents=True, exist_ok=True)
            with replaced(folder / path.stem / f"{seed}.json") as beside:
                text = json.dumps({"key": keys[path], "claims": run.claims, "heard": run.heard}, indent=1)
                beside.write_text(text, encoding="utf-8")
        return run

    with ThreadPoolExecutor(workers) as pool:
        waiting = {pool.submit(work, *one): one for one in queue}
        try:
            for count, future in enumerate(as_completed(waiting), 1):
                path, seed = waiting[future]
                done[path, seed] = run = future.result()
                wrong = [*filter(None, run.claims.values())]
                say(f"{count} of {len(queue)}: {path.name}, seed {seed}: {len(wrong)} wrong", *wrong, flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            while running:  # each is found dead, and its run not stored
                for client in [*running]:
                    _end_kernel(client)
                time.sleep(0.2)
            raise
    return {path: {seed: done[path, seed] for seed in base if done[path, seed]} for path in paths}


def _end_kernel(client: Any) -> None:
    """Ends the kernel of a notebook that another thread runs, if it has one by now."""
    pid = getattr(getattr(client.km, "provisioner", None), "pid", None)
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))


def claims_table(results: dict[int, dict[str, str]]) -> str:
    """Claims x seeds as text, from the claims of each run by seed: ✓ holds, ✗ does not, · was not reached."""
    statements = list(dict.fromkeys(statement for found in results.values() for statement in found))
    lines = ["  ".join(f"{seed:>3}" for seed in results)]
    for statement in statements:
        marks = [(CROSS if found[statement] else TICK) if statement in found else "·" for found in results.values()]
        lines.append("  ".join(f"{mark:>3}" for mark in marks) + f"   {statement}")
    return "\n".join(lines)


def main(arguments: Iterable[str] | None = None) -> int:
    """The command line. Returns 0 if every claim was reached and holds for every base seed, otherwise 1."""
    parser = argparse.ArgumentParser(prog="python -m vqnotes.course.claims", description=__doc__.splitlines()[-1])
    parser.add_argument("--seeds", type=int, default=30, metavar="N", help="how many base seeds (default: 30)")
    parser.add_argument("--first", type=int, default=0, metavar="S", help="the first of them (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="W", help="notebooks run at a time")
    parser.add_argument(
        "--out", type=Path, default=Path("build/claims"), metavar="FOLDER", help="where results are kept"
    )
    parser.add_argument("--report", action="store_true", help="run nothing, report what is in the folder")
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: notebooks/*.ipynb")
    options = parser.parse_args(arguments)
    paths = options.notebooks or sorted(Path("notebooks").glob("*.ipynb"))
    missing = [str(path) for path in paths if not path.is_file()]
    if min(options.seeds, options.workers) < 1 or options.first < 0 or missing or not paths:
        parser.error(f"need N >= 1, S >= 0, W >= 1 and notebooks that exist; missing: {missing or paths}")
    if len({path.stem for path in paths}) < len(paths):
        parser.error("two notebooks of one name would share their results: run them one after the other")
    base = range(options.first, options.first + options.seeds)
    good = True
    try:
        results = run_all(paths, base, options.out, options.workers, train=not options.report)
    except KeyboardInterrupt:
        say(f"\nInterrupted. What is finished is in {options.out}; the same command goes on from there.")
        return 130
    for path, runs in results.items():
        good = _reported(path, runs, len(base), options.out) and good
    say("\nEvery claim holds for every seed." if good else "\nNot every claim holds for every seed.")
    return 0 if good else 1


def _reported(path: Path, runs: dict[int, Run], of: int, folder: Path) -> bool:
    """Prints the tables of one notebook, and writes that of its figures. Whether all claims were reached and hold."""
    from vqnotes.course.margins import report, rooms

    claims, heard = {seed: one.claims for seed, one in runs.items()}, {seed: one.heard for seed, one in runs.items()}
    say(f"\n{path}: {len(runs)} of {of} seeds")
    if not runs:
        return False
    say(claims_table(claims), "", report(claims, heard), flush=True)
    for seed, found in claims.items():
        for wrong in filter(None, found.values()):
            say(f"seed {seed}: {wrong}")
    folder.mkdir(parents=True, exist_ok=True)
    with replaced(folder / f"{path.stem}.csv") as beside:
        rooms(claims, heard).to_csv(beside, index=False)
    reached = [found.keys() for found in claims.values()]
    same = bool(reached[0]) and all(one == reached[0] for one in reached)
    return len(runs) == of and same and not any(wrong for found in claims.values() for wrong in found.values())


if __name__ == "__main__":
    sys.exit(main())
