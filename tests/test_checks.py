"""A claim prints one line or fails with its figures; seeds move with VQNOTES_SEED; all claims make a table."""

from unittest import mock

import nbformat
import pytest
import torch

from vqnotes.checks import base_seed, claim, claims_in, claims_table, main, seeds


def test_a_claim_that_holds_prints_one_line(capsys):
    claim("Two is less than three", torch.tensor(True), two=2)
    assert capsys.readouterr().out == "✓ Two is less than three\n"


def test_a_claim_that_fails_raises_with_its_figures(capsys):
    with pytest.raises(AssertionError, match=r"✗ Codes cover .* \[covered = 3\.5, arm = untrained\]"):
        claim("Codes cover nine modes", False, covered=3.5, arm="untrained")
    assert capsys.readouterr().out == ""
    with pytest.raises(RuntimeError, match="ambiguous"):
        claim("Not reduced", torch.tensor([True, False]))


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

SETUP = "from vqnotes.checks import base_seed, claim"
GOOD = [SETUP, "claim('One is less than two', 1 < 2)\nprint('✓', 'drawn by hand')", "claim('Five', base_seed() < 5)"]


@pytest.fixture
def notebook(tmp_path):
    def write(*sources, name="some.ipynb"):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / name)
        return tmp_path / name

    return write


def test_claims_are_collected_past_a_failure(notebook):
    path = notebook(SETUP, "claim('Small', base_seed() < 3, got=base_seed())", "1 / 0", "claim('Last', True)")
    before = path.read_bytes()
    assert claims_in(path, 2) == {"Small": "", "ZeroDivisionError: division by zero": mock.ANY, "Last": ""}
    found = claims_in(path, 7)
    assert found["Small"] == "✗ Small  [got = 7]" and found["Last"] == "" and path.read_bytes() == before


def test_a_kernel_that_dies_leaves_what_was_found(notebook):
    path = notebook(SETUP, "claim('First', True)", "import os\nos._exit(1)", "claim('Last', True)")
    found = claims_in(path, 0)
    assert found.pop("First") == "" and "DeadKernelError" in found.pop("The notebook runs to its end") and not found


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
