"""A claim prints one line or fails with its figures; seeds move with VQNOTES_SEED."""

import pytest
import torch

from vqnotes.checks import base_seed, claim, seeds


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
