"""Statements of the course as lines of code that fail when they are wrong.

python -m vqnotes.checks --seeds N [NOTEBOOK ...]   runs notebooks for N base seeds and prints claims x seeds
"""

import argparse
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TICK, CROSS = "✓", "✗"


def claim(statement: str, holds, **figures) -> None:
    """Prints the statement with a tick if it holds; otherwise raises AssertionError with the figures behind it.

    holds: a truth value; arrays and tensors of one element count, larger ones must be reduced first. NaN is none.
    figures: whatever the statement rests on, shown only on failure, so that the printed text is the same anywhere.
    """
    if not bool(holds) or holds != holds:
        shown = ", ".join(f"{name} = {value}" for name, value in figures.items())
        raise AssertionError(f"{CROSS} {statement}" + (f"  [{shown}]" if shown else ""))
    print(f"{TICK} {statement}")


def base_seed() -> int:
    """The whole number in the environment variable VQNOTES_SEED, 0 without it: shifts every seed of a notebook.

    Raises ValueError if the variable holds anything else.
    """
    text = os.environ.get("VQNOTES_SEED", "0")
    if not text.isdecimal():
        raise ValueError(f"VQNOTES_SEED must be a whole number, at least 0, got {text!r}")
    return int(text)


def seeds(count: int) -> range:
    """`count` different seeds, all others for another VQNOTES_SEED: 1000 * VQNOTES_SEED + 0, 1, 2, ..."""
    if not 1 <= count <= 1000:
        raise ValueError(f"count must be in 1 .. 1000, got {count}")
    start = 1000 * base_seed()
    return range(start, start + count)


# ---------------------------------------------------------------- all claims, for several base seeds


def claims_in(path: Path, seed: int, timeout: int = 1800) -> dict[str, str]:
    """Runs a notebook with VQNOTES_SEED=seed, past its failures: each statement met, with "" or what is wrong.

    A cell that fails for another reason than a claim counts as a statement of its own.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    options = {"timeout": timeout, "kernel_name": "python3", "allow_errors": True}
    client = NotebookClient(notebook, resources={"metadata": {"path": str(path.parent)}}, **options)
    found: dict[str, str] = {}
    try:
        client.execute(env={**os.environ, "VQNOTES_SEED": str(seed)})
    except Exception as error:  # the kernel died, or a cell took too long: what ran so far still counts
        found["The notebook runs to its end"] = repr(error)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for line in output.get("text", "").splitlines():
                if line.startswith(TICK):
                    found.setdefault(line.removeprefix(TICK).strip(), "")
            if output.output_type == "error":
                wrong = output.evalue if output.evalue.startswith(CROSS) else f"{output.ename}: {output.evalue}"
                statement = wrong.removeprefix(CROSS).split("  [")[0].strip()
                found[statement] = wrong
    return found


def claims_table(results: dict[int, dict[str, str]]) -> str:
    """Claims x seeds as text, from the answers of `claims_in` by seed: ✓ holds, ✗ does not, · was not reached."""
    statements = list(dict.fromkeys(statement for found in results.values() for statement in found))
    lines = ["  ".join(f"{seed:>3}" for seed in results)]
    for statement in statements:
        marks = [(CROSS if found[statement] else TICK) if statement in found else "·" for found in results.values()]
        lines.append("  ".join(f"{mark:>3}" for mark in marks) + f"   {statement}")
    return "\n".join(lines)


def main(arguments: Iterable[str] | None = None) -> int:
    """The command line. Returns 0 if every claim was reached and holds for every base seed, otherwise 1."""
    parser = argparse.ArgumentParser(prog="python -m vqnotes.checks", description=__doc__.splitlines()[-1])
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="how many base seeds (default: 5)")
    parser.add_argument("--first", type=int, default=0, metavar="S", help="the first of them (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="W", help="notebooks run at a time")
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: notebooks/*.ipynb")
    options = parser.parse_args(arguments)
    paths = options.notebooks or sorted(Path("notebooks").glob("*.ipynb"))
    missing = [str(path) for path in paths if not path.is_file()]
    if min(options.seeds, options.workers) < 1 or options.first < 0 or missing or not paths:
        parser.error(f"need N >= 1, S >= 0, W >= 1 and notebooks that exist; missing: {missing or paths}")
    if options.workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores
    base = range(options.first, options.first + options.seeds)
    with ThreadPoolExecutor(options.workers) as pool:
        running = {path: {seed: pool.submit(claims_in, path, seed) for seed in base} for path in paths}
        good = True
        for path, by_seed in running.items():
            results = {seed: future.result() for seed, future in by_seed.items()}
            print(f"\n{path}\n{claims_table(results)}", flush=True)
            for seed, found in results.items():
                for wrong in filter(None, found.values()):
                    print(f"seed {seed}: {wrong}")
            reached = [found.keys() for found in results.values()]
            good = good and not any(wrong for found in results.values() for wrong in found.values())
            good = good and bool(reached[0]) and all(one == reached[0] for one in reached)
    print("\nEvery claim holds for every seed." if good else "\nNot every claim holds for every seed.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
