"""A study that is killed in the middle and begun again has every run, once, and leaves no process behind."""

import os
import random
import subprocess
import sys
import time
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


def slowly(number):
    (Path(os.environ["BEGUN"]) / str(number)).touch()
    time.sleep(2)
    return [{"number": number}]


def test_when_time_is_up_what_is_under_way_is_finished_and_nothing_else_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BEGUN", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tools"), str(ROOT / "tests")]))
    settings, out = [{"number": number} for number in range(50)], tmp_path / "parts"
    out.mkdir()
    parts.examine_all(slowly, settings, out, workers=1, limit=1)
    done = len(parts.gathered(out, settings))
    assert done == len([*tmp_path.glob("[0-9]*")]) < 50
    assert f"the time is up: {done} of 50 settings were done" in capsys.readouterr().out


if __name__ == "__main__":
    STUDIES[sys.argv[1]](Path(sys.argv[2]))
