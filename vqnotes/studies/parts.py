"""A study in parts, a file each or in one table: run again, it goes on, and a part that fails stops no other."""

import argparse
import math
import multiprocessing
import os
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from vqnotes._files import replaced
from vqnotes._printing import say

__all__ = ["command", "completed", "examine_all", "gathered", "name_of", "processes"]

Examine = Callable[..., Sequence[dict[str, Any]]]


def name_of(setting: dict[str, Any]) -> str:
    """A name for a setting, which a file can have."""
    words = " ".join(map(str, setting.values())).replace("±", "+-").replace("/", " by ")
    return "_".join("".join(one if one.isalnum() or one in "+-." else " " for one in words).split())


def _kept(setting: dict[str, Any], examine: Examine, folder: Path) -> tuple[str, str, float]:
    """Examines one setting and writes its rows; its name, what went wrong if anything did, and the seconds."""
    name, start = name_of(setting), time.perf_counter()
    trouble = folder / f"{name}.error"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = list(examine(**setting))
        drawn = [row.pop("draws", {}) for row in rows]
        if arrays := {f"{n} {key}": one.astype("f4") for n, each in enumerate(drawn) for key, one in each.items()}:
            np.savez_compressed(folder / f"{name}.npz", **arrays)
        with replaced(folder / f"{name}.csv") as beside:
            pd.DataFrame(rows).to_csv(beside, index=False, float_format="%.6g")
        trouble.unlink(missing_ok=True)
        return name, "", time.perf_counter() - start
    except Exception as error:
        trouble.write_text(traceback.format_exc(), encoding="utf-8")
        return name, repr(error), time.perf_counter() - start


def examine_all(
    examine: Examine, todo: list[dict[str, Any]], folder: Path, workers: int, limit: float = math.inf
) -> None:
    """Examines settings in so many processes of one thread each, and begins none after `limit` seconds.

    examine: called with a setting as keywords; returns a row of the table for each of its runs. A dict of arrays in
    it, "draws", is kept beside the table. What fails is written to a file NAME.error. A process that is killed ends
    the study (BrokenProcessPool), and what was under way then is lost.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "LOGURU_LEVEL": "ERROR"}  # of the workers
    work, done = partial(_kept, examine=examine, folder=folder), 0
    with processes(workers) as pool:
        for _, future in _finished(pool, work, [(one,) for one in todo], workers, limit):
            name, wrong, seconds = future.result()
            done += 1
            say(f"{done}/{len(todo)} {seconds:5.1f} s  {name}  {wrong}", flush=True)
    if done < len(todo):
        say(f"the time is up: {done} of {len(todo)} settings were done", flush=True)


def _finished(
    pool: Executor, work: Callable, todo: Sequence[tuple], at_once: int, limit_s: float
) -> Iterator[tuple[tuple, Future]]:
    """Each of the arguments with its future, as it is done. Only so many are given to the pool at once.

    So an interrupt leaves nothing behind that would still be done, and none is begun after so many seconds.
    """
    began, waiting = time.monotonic(), list(todo)
    running: dict[Future, tuple] = {}
    while True:
        while waiting and len(running) < at_once and time.monotonic() - began < limit_s:
            one = waiting.pop(0)
            running[pool.submit(work, *one)] = one
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future


def gathered(folder: Path, settings: list[dict[str, Any]]) -> pd.DataFrame:
    """The table of all settings that are done, in their order. Raises ValueError if there is none."""
    files = [folder / f"{name_of(setting)}.csv" for setting in settings]
    parts = [pd.read_csv(file) for file in files if file.exists()]
    if not parts:
        raise ValueError(f"no setting is done in {folder}")
    return pd.concat(parts, ignore_index=True)


def processes(workers: int, threads: int = 1) -> ProcessPoolExecutor:
    """So many processes, of so many threads each, that end with this one, even if it is killed.

    They are not forked, as each may use a GPU. Those of Python's own pool would wait for ever: each keeps open the
    queue whose end would tell it.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(threads,))


def _begin_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def completed(
    out: Path,
    todo: Sequence[tuple],
    examine: Examine,
    pool: Executor,
    at_once: int,
    limit_s: float = math.inf,
    ordered: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table,
) -> tuple[pd.DataFrame, list[tuple]]:
    """The table in a file with the rows that it lacked, and what could not be done.

    todo: what it lacks, each as the arguments of `examine`, which returns rows. So many are done at once, and none is
    begun after so many seconds. The file is written anew after each, with the rows as `ordered` puts them. What fails
    is said, and left to another call.
    """
    table = pd.read_csv(out) if out.exists() else pd.DataFrame()
    left, began = list(todo), time.monotonic()
    for one, future in _finished(pool, examine, todo, at_once, limit_s):
        try:
            rows = pd.DataFrame(future.result())
        except BrokenExecutor:  # a RuntimeError, too: no worker is left
            raise
        except (ValueError, RuntimeError) as error:  # it diverged, or a GPU's memory is full
            say(f"{one} failed: {error!r}", flush=True)
            continue
        left.remove(one)
        table = ordered(pd.concat([table, rows], ignore_index=True) if len(table) else rows)
        with replaced(out) as beside:
            table.to_csv(beside, index=False, float_format="%.5g")
        say(f"{time.monotonic() - began:6.1f} s  {one}, {len(left)} left", flush=True)
    return table, left


def command(prog: str, description: str, examine: Examine, settings: list[dict[str, Any]]) -> None:
    """The command line of a study."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each (default: 2)")
    parser.add_argument("--out", type=Path, required=True, help="a folder, of a file a setting")
    parser.add_argument("--limit-s", type=float, default=math.inf, help="begin none after so many seconds")
    parser.add_argument("--match", default="", help="only settings whose name has this in it")
    parser.add_argument("--few", type=int, help="only so many of them")
    parser.add_argument("--table", type=Path, help="where to write the table of what is done")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    todo = [one for one in settings if options.match in name_of(one)]
    left = [one for one in todo if not (options.out / f"{name_of(one)}.csv").exists()]
    say(f"{len(todo) - len(left)} of {len(todo)} settings were done before", flush=True)
    left = [left[number] for number in np.random.default_rng(0).permutation(len(left))][: options.few]
    if left:
        examine_all(examine, left, options.out, options.workers, options.limit_s)
    if options.table:
        table = gathered(options.out, settings)
        with replaced(options.table) as beside:
            table.drop(columns=[name for name in table if name.startswith("s ")]).to_csv(beside, index=False)
        say(f"{len(table)} rows are in {options.table}")
