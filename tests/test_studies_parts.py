"""A study that is killed in the middle and begun again has every run, once, and leaves no process behind."""

import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import psutil
import pytest
from notebook_tools import HOURS, ROOT

from vqnotes.studies import parts

SETTINGS, SEEDS = 250, 4  # 1,000 runs
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "tools")}  # where this file, run by itself, finds its helpers


def rows_of(number):
    time.sleep(0.01)
    return [{"number": number, "seed": seed, "figure": number * SEEDS + seed} for seed in range(SEEDS)]


def in_files(folder):
    sys.argv = ["study", "--out", str(folder / "parts"), "--workers", "1", "--table", str(folder / "table.csv")]
    parts.command("study", "", rows_of, [{"number": number} for number in range(SETTINGS)])


def in_one_table(folder):
    out = folder / "table.csv"
    known = set(pd.read_csv(out)["number"]) if out.exists() else set()
    todo = [(number,) for number in range(SETTINGS) if number not in known]
    with parts.processes(1) as pool:
        parts.completed(out, todo, rows_of, pool, 1)


STUDIES = {"a file each": in_files, "one table": in_one_table}


def settings_done(folder):
    if (folder / "table.csv").exists():
        return len(pd.read_csv(folder / "table.csv")) // SEEDS
    return len([*(folder / "parts").glob("[!.]*.csv")])


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_that_is_killed_and_begun_again_loses_nothing(study, tmp_path):
    command, at_least = [sys.executable, __file__, study, tmp_path], random.randint(1, SETTINGS // 4)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT) as running:
        while settings_done(tmp_path) < at_least:
            assert running.poll() is None
            time.sleep(0.01)
        workers = psutil.Process(running.pid).children(recursive=True)
        running.kill()
    assert workers and psutil.wait_procs(workers, timeout=HOURS)[1] == []
    done = settings_done(tmp_path)
    assert at_least <= done < SETTINGS, "killed in the middle"
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout
    lines = [line for line in said.splitlines() if " left" in line or f"/{SETTINGS - done} " in line]
    assert len(lines) == SETTINGS - done, f"what was done after {at_least} is not done again"
    found = pd.read_csv(tmp_path / "table.csv").sort_values("figure")
    assert found["figure"].tolist() == list(range(SETTINGS * SEEDS))


def test_what_is_begun_is_finished_and_nothing_else_begun_when_time_is_up(tmp_path, monkeypatch, capsys):
    """By a clock of its own, on which each setting takes a second."""
    now, begun = [0.0], []
    monkeypatch.setattr(parts.time, "monotonic", lambda: now[0])

    class AtOnce(ThreadPoolExecutor):
        def submit(self, work, setting):
            begun.append(now[0])
            now[0] += 1
            return super().submit(work, setting)

    monkeypatch.setattr(parts, "processes", AtOnce)
    settings, out = [{"number": number} for number in range(50)], tmp_path / "parts"
    out.mkdir()
    parts.examine_all(rows_of, settings, out, workers=2, limit=6.5)
    assert begun == [0, 1, 2, 3, 4, 5, 6]
    assert len(parts.gathered(out, settings)) == 7 * SEEDS
    assert "the time is up: 7 of 50 settings were done" in capsys.readouterr().out


def interrupted_at_once(number):
    raise KeyboardInterrupt


def test_after_an_interrupt_nothing_that_waits_is_done(tmp_path, monkeypatch):
    begun = []

    class Counted(ThreadPoolExecutor):
        def submit(self, *given):
            begun.append(given)
            return super().submit(*given)

    monkeypatch.setattr(parts, "processes", Counted)
    with pytest.raises(KeyboardInterrupt):
        parts.examine_all(interrupted_at_once, [{"number": number} for number in range(50)], tmp_path, workers=2)
    assert len(begun) == 2


if __name__ == "__main__":
    STUDIES[sys.argv[1]](Path(sys.argv[2]))
