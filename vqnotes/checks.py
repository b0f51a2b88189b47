"""Statements of the course as lines of code that fail when they are wrong."""

import os


def claim(statement: str, holds, **figures) -> None:
    """Prints the statement with a tick if it holds; otherwise raises AssertionError with the figures behind it.

    holds: a truth value; arrays and tensors of one element count, larger ones must be reduced first.
    figures: whatever the statement rests on, shown only on failure, so that the printed text is the same anywhere.
    """
    if not bool(holds):
        shown = ", ".join(f"{name} = {value}" for name, value in figures.items())
        raise AssertionError(f"✗ {statement}" + (f"  [{shown}]" if shown else ""))
    print(f"✓ {statement}")


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
