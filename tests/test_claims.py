"""A claim prints one line or fails with its figures; seeds move with VQNOTES_SEED; all claims make a table."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import nbformat
import pytest
import torch

from vqnotes import _interrupts
from vqnotes.course import claims
from vqnotes.course.claims import base_seed, claim, claims_table, key_of, main, minutes_of, run_notebook, seeds


def test_a_claim_that_holds_prints_one_line(capsys):
    claim("Two is less than three", torch.tensor(True), two=2)
    assert capsys.readouterr().out == "✓ Two is less than three  ⟨two = 2⟩\n"
    claim("It rests on what is long", True, all=object())
    assert capsys.readouterr().out == "✓ It rests on what is long\n"


def test_the_statement_comes_back_from_what_was_printed():
    for line in ("✓ A is 1", "✓ A is 1  ⟨a = 1⟩", "✓ A is 1  ⟨a = 1⟩  [cut off]", "✗ A is 1  [a = 2]"):
        assert claims.statement_of(line) == "A is 1"


def test_a_claim_that_fails_raises_with_its_figures(capsys):
    with pytest.raises(AssertionError, match=r"✗ Codes cover .* \[covered = 3\.5, arm = untrained\]"):
        claim("Codes cover nine modes", False, covered=3.5, arm="untrained")
    assert capsys.readouterr().out == ""
    with pytest.raises(RuntimeError, match="ambiguous"):
        claim("Not reduced", torch.tensor([True, False]))


def test_a_claim_after_a_run_that_was_cut_off_says_so(capsys, monkeypatch):
    monkeypatch.setattr(_interrupts, "cut_off", lambda: "sweep was cut off after 3 of 66 settings")
    claim("Two is less than three", True)
    assert capsys.readouterr().out == "✓ Two is less than three  [sweep was cut off after 3 of 66 settings]\n"
    with pytest.raises(AssertionError, match=r"✗ All .* \[n = 1, sweep was cut off after 3 of 66 settings\]"):
        claim("All settings were run", False, n=1)
    with pytest.raises(AssertionError, match=r"✗ All .* \[sweep was cut off after 3 of 66 settings\]"):
        claim("All settings were run", False)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_claim_is_printed_into_any_file(encoding):
    code = "from vqnotes.course.claims import claim\nclaim('β is 3', True, β=3)\nclaim('It is 4', False)"
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.stdout.decode(encoding).strip() == (
        "✓ β is 3  ⟨β = 3⟩" if encoding == "utf-8" else "ok beta is 3  <beta = 3>"
    )
    assert b"AssertionError" in done.stderr and b"It is 4" in done.stderr and b"Unicode" not in done.stderr


def test_seeds_move_with_the_environment(monkeypatch):
    monkeypatch.delenv("VQNOTES_SEED", raising=False)
    assert base_seed() == 0 and list(seeds(3)) == [0, 1, 2]
    monkeypatch.setenv("VQNOTES_SEED", "7")
    assert list(seeds(2)) == [7000, 7001]
    for wrong in ("-1", "x", ""):
        monkeypatch.setenv("VQNOTES_SEED", wrong)
        with pytest.raises(ValueError, match="VQNOTES_SEED"):
            seeds(2)
    with pytest.raises(ValueError, match="1001"):
        seeds(1001)


# ---------------------------------------------------------------- all claims, for several base seeds

SETUP = "from vqnotes.course.claims import base_seed, claim"
GOOD = [SETUP, "claim('One is less than two', 1 < 2)\nprint('✓', 'drawn by hand')", "claim('Five', base_seed() < 5)"]


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # results go into build/claims here

    def write(*sources, name="some.ipynb"):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / name)
        return tmp_path / name

    return write


def test_claims_are_collected_past_a_failure(notebook):
    path = notebook(SETUP, "claim('Small', base_seed() < 3, got=base_seed())", "1 / 0", "claim('Last', True)")
    before = path.read_bytes()
    assert run_notebook(path, 2).claims == {"Small": "", "ZeroDivisionError: division by zero": mock.ANY, "Last": ""}
    found = run_notebook(path, 7).claims
    assert found["Small"] == "✗ Small  [got = 7]" and found["Last"] == "" and path.read_bytes() == before


def test_a_kernel_that_dies_leaves_what_was_found(notebook):
    path = notebook(SETUP, "claim('First', True)", "import os\nos._exit(1)", "claim('Last', True)")
    found, _, ended = run_notebook(path, 0)
    assert (
        not ended
        and found.pop("First") == ""
        and "DeadKernelError" in found.pop("The notebook runs to its end")
        and not found
    )


def test_the_table_shows_what_holds_what_does_not_and_what_was_not_reached():
    table = claims_table({0: {"A": "", "B": ""}, 12: {"A": "✗ A [x = 1]"}})
    assert table.splitlines() == ["  0   12", "  ✓    ✗   A", "  ✓    ·   B"]


def test_the_command_line_says_whether_all_hold(notebook, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = str(notebook(*GOOD))
    assert main(["--seeds", "2", "--first", "3", path]) == 0
    printed = capsys.readouterr().out
    assert "  ✓    ✓   One is less than two" in printed and "Every claim holds for every seed." in printed
    assert main(["--seeds", "2", "--first", "4", path]) == 1
    printed = capsys.readouterr().out
    assert "  ✓    ✗   Five" in printed and "seed 5: ✗ Five" in printed and "Not every claim" in printed
    assert main(["--seeds", "1", str(notebook("1 + 1", name="silent.ipynb"))]) == 1  # nothing was claimed


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--first", "-1"], ["--workers", "0"], ["missing.ipynb"]])
def test_the_command_line_refuses_nonsense(wrong, notebook, capsys):
    with pytest.raises(SystemExit):
        main([*wrong, str(notebook(*GOOD))])
    assert "missing" in capsys.readouterr().err


def executed(monkeypatch):
    """Which runs are made: (notebook, seed), in order."""
    made, run = [], claims.run_notebook

    def counted(path, seed, running):
        made.append((path.stem, seed))
        return run(path, seed, running)

    monkeypatch.setattr(claims, "run_notebook", counted)
    return made


def test_what_is_finished_is_not_run_again_until_the_code_changes(notebook, monkeypatch, capsys):
    made, path = executed(monkeypatch), notebook(*GOOD)
    arguments = ["--workers", "1", "--out", "kept", str(path)]
    assert main(["--seeds", "1", *arguments]) == 0 and made == [("some", 0)]
    assert main(["--seeds", "2", *arguments]) == 0 and made == [("some", 0), ("some", 1)]
    assert main(["--seeds", "2", "--report", *arguments]) == 0 and len(made) == 2
    capsys.readouterr()
    assert main(["--seeds", "3", "--report", *arguments]) == 1 and len(made) == 2  # a seed is missing
    assert "2 of 3 seeds" in capsys.readouterr().out
    assert sorted(one.name for one in Path("kept/some").iterdir()) == ["0.json", "1.json"]
    notebook(*GOOD, "claim('One more', True)")
    assert main(["--seeds", "2", "--report", *arguments]) == 1 and len(made) == 2
    assert main(["--seeds", "1", *arguments]) == 0 and len(made) == 3


def test_results_belong_to_the_code_that_made_them(notebook, monkeypatch, tmp_path):
    keys = [key_of(notebook(*GOOD)), key_of(notebook(*GOOD[:2]))]
    (tmp_path / "module").mkdir()
    monkeypatch.setattr(claims, "__file__", str(tmp_path / "module" / "checks.py"))
    for source in ("a = 1", "a = 2"):
        (tmp_path / "module" / "data.py").write_text(source)
        keys.append(key_of(notebook(*GOOD)))
    assert len(set(keys)) == 4
    path = notebook(*GOOD)
    cells = nbformat.read(path, as_version=4)
    cells.cells.append(nbformat.v4.new_markdown_cell("Only prose."))
    nbformat.write(cells, path)
    assert key_of(path) == keys[-1]


def test_a_run_that_did_not_end_is_reported_and_tried_again(notebook, monkeypatch, capsys):
    made, path = executed(monkeypatch), notebook(*GOOD, "import os\nos._exit(1)")
    for _ in range(2):
        assert main(["--seeds", "1", str(path)]) == 1
        assert "DeadKernelError" in capsys.readouterr().out
    assert made == [("some", 0)] * 2 and not Path("build/claims/some").exists()


def test_an_interrupted_call_ends_its_kernels_and_goes_on_where_it_stopped(notebook, tmp_path):
    path = notebook(
        SETUP, "claim('One', 0 < 1)", "import time, os\nif base_seed() and not os.path.exists('go'): time.sleep(600)"
    )
    command = [sys.executable, "-m", "vqnotes.course.claims", "--seeds", "3", "--workers", "2", str(path)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment = buffered | {"PYTHONPATH": str(Path(claims.__file__).parents[2])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    kept = tmp_path / "build" / "claims" / "some"
    assert process.stdout.readline().startswith("1 of 3")  # seed 0; the others sleep, in two kernels
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from there" in printed
    assert [one.name for one in kept.iterdir()] == ["0.json"]
    before = (kept / "0.json").stat().st_mtime_ns
    (tmp_path / "go").touch()
    assert main(["--seeds", "3", str(path)]) == 0
    assert sorted(one.name for one in kept.iterdir()) == ["0.json", "1.json", "2.json"]
    assert (kept / "0.json").stat().st_mtime_ns == before


def test_long_notebooks_begin_first(notebook, monkeypatch):
    made, paths = executed(monkeypatch), []
    for name, stamp in (("a", "½"), ("b", "1"), ("c", "over 10"), ("d", "1½"), ("e", "")):
        paths.append(notebook(*GOOD, name=f"{name}.ipynb"))
        cells = nbformat.read(paths[-1], as_version=4)
        opening = f"**Time:** {stamp} min to run on two cores" if stamp else "Not run yet"
        cells.cells.insert(0, nbformat.v4.new_markdown_cell(opening))
        nbformat.write(cells, paths[-1])
    assert [minutes_of(path) for path in paths] == [0.5, 1, 10, 1.5, 0]
    monkeypatch.setattr(
        claims, "run_notebook", lambda path, *_: made.append(path.stem) or claims.Run({"A": ""}, [], True)
    )
    main(["--seeds", "1", "--workers", "1", *map(str, paths)])
    assert made == ["c", "d", "b", "a", "e"]


@pytest.mark.parametrize("reached", [("A", "AB"), ("AB", "A"), ("AB", "AC"), ("", ""), ("", "A")])
def test_a_claim_that_some_seeds_do_not_reach_is_not_held_for_every_seed(reached, notebook, monkeypatch, capsys):
    runs = [claims.Run(dict.fromkeys(names, ""), [], True) for names in reached]
    monkeypatch.setattr(claims, "run_notebook", lambda path, seed, *_: runs[seed])
    path = str(notebook(*GOOD))
    assert main(["--seeds", "2", "--workers", "1", path]) == 1
    assert "Not every claim holds for every seed." in capsys.readouterr().out
    runs[:] = [runs[0]] * 2
    assert main(["--seeds", "2", "--workers", "1", "--out", "again", path]) == (0 if reached[0] else 1)


def test_each_worker_has_one_thread_and_nobody_elses_results(notebook, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("VQNOTES_RESULTS", "elsewhere")
    look = (
        "import os, torch\nclaim('One thread', torch.get_num_threads() == 1 and 'VQNOTES_RESULTS' not in os.environ)"
    )
    assert run_notebook(
        notebook(SETUP, look, "claim('Small', os.environ['VQNOTES_SCALE'] == 'small')"), 0
    ).claims == {
        "One thread": "",
        "Small": "",
    }


def test_the_command_needs_no_installed_copy_and_prints_into_any_file(notebook, tmp_path):
    """As on another machine: the folder of the module is all there is, and the output is a file on Windows."""
    path = notebook(*GOOD)
    root = Path(claims.__file__).resolve().parent.parent
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONIOENCODING": "ascii"}
    command = [
        sys.executable,
        "-m",
        "vqnotes.course.claims",
        "--seeds",
        "1",
        "--out",
        str(tmp_path / "out"),
        str(path),
    ]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"ok   One is less than two" in done.stdout and json.loads((tmp_path / "out/some/0.json").read_text())


def test_the_command_shows_how_near_each_figure_comes(notebook, capsys):
    near = "figure = [1, 2, 3, 2.5][base_seed()]\nclaim('Less than 3.2', figure < 3.2)"
    assert main(["--seeds", "4", str(notebook(SETUP, near, "claim('Less than 40', figure < 40)"))]) == 0
    printed = capsys.readouterr().out.splitlines()
    (first,), (second,) = ([i for i, line in enumerate(printed) if f"{c} [figure" in line] for c in ("3.2 ", "40 "))
    assert first < second and "NEAR" in printed[first] and "NEAR" not in printed[second]
    with Path("build/claims/some.csv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["statement"] for row in rows] == ["Less than 3.2", "Less than 40"]
    assert rows[0]["seed"] == "2" and float(rows[0]["left"]) == 3 and float(rows[0]["right"]) == 3.2
