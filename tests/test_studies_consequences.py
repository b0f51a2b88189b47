"""The study of what a collapse costs a generator: its table is whole, and a run goes on where another ended."""

import math
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch

from vqnotes import data
from vqnotes.studies import consequences
from vqnotes.studies.consequences import ARMS, EVERY, KEPT, PRIOR_STEPS, SEEDS, WIDTHS, consequences_of, parts_of

PRIORS = [("kept", float(share)) for share in KEPT] + [("width", float(width)) for width in WIDTHS]


@pytest.fixture(scope="module")
def table():
    return consequences.stored_table()


def test_every_arm_is_there_with_all_its_seeds_and_priors(table):
    assert table.equals(consequences.in_order(table))
    assert table["arm"].unique().tolist() == list(ARMS)
    for arm, part in table.groupby("arm"):
        assert part["codes"].unique().tolist() == [ARMS[arm][0]]
        for seed, own in part.groupby("seed"):
            assert seed in SEEDS and own.iloc[0]["prior"] == "real"
            assert list(own.iloc[1:][["prior", "value"]].itertuples(index=False, name=None)) == PRIORS
            assert own[["live", "bits", "error"]].nunique().tolist() == [1, 1, 1]
        assert sorted(part["seed"].unique()) == sorted(SEEDS)


def test_its_figures_are_possible(table):
    learnt = table["prior"] == "width"
    assert (table["NLL"].notna() == learnt).all() and (table["step"].notna() == learnt).all()
    assert (table["live"] <= table["codes"]).all() and table["coverage"].between(0, 1).all()
    assert (table["density"] > 0).all() and (table["spread"] > 0).all() and table["error"].between(0, 1).all()
    assert (table["NLL"][learnt] < table["bits"][learnt]).all()
    assert (table["step"][learnt] % EVERY == 0).all() and table["step"][learnt].between(EVERY, PRIOR_STEPS).all()


def test_the_partners_have_the_bits_of_the_collapsed_one(table):
    """Within a tenth of them, as the docstring says by "about": so few codes were chosen for that."""
    bits = table.groupby("arm")["bits"].mean()
    for arm in list(ARMS)[2:]:
        assert abs(bits[arm] / bits["random start"] - 1) < 0.1, bits


def test_parts_are_disjoint_and_all_there():
    x = torch.arange(50.0)[:, None]
    one, again, other = parts_of(x, 3), parts_of(x, 3), parts_of(x, 4)
    assert [len(part) for part in one] == [30, 5, 15]
    assert torch.equal(torch.cat(one).sort(dim=0).values, x)
    assert all(torch.equal(*pair) for pair in zip(one, again)) and not torch.equal(one[0], other[0])


def test_a_small_one_end_to_end():
    """One seed more does not change the others, and the ideal prior is the grids that were learnt from."""
    x = data.digits().x[:200]
    options = {"widths": (8,), "kept": (0.0, 1.0), "steps": 8, "prior_steps": 6, "every": 2}
    rows = pd.DataFrame(consequences_of(x, 6, "kmeans", 2, seeds=[5, 6], **options))
    assert rows["seed"].tolist() == [5] * 4 + [6] * 4
    assert rows["prior"].tolist() == ["real", "kept", "kept", "width"] * 2
    assert rows["step"].dropna().isin([2, 4, 6]).all() and rows["NLL"].notna().sum() == 2
    alone = pd.DataFrame(consequences_of(x, 6, "kmeans", 2, seeds=[5], **options))
    shown = ["live", "bits", "error", "NLL"]
    assert alone[shown].to_numpy() == pytest.approx(rows[:4][shown].to_numpy(), rel=1e-3, nan_ok=True)
    assert alone["coverage"].between(0, 1).all() and (alone["error"] > 0).all()


def scripted(monkeypatch, done, cut_at=None):
    """Arms that take no time, noted by name."""

    def one_arm(arm):
        done.append(arm)
        if len(done) == cut_at:
            raise KeyboardInterrupt
        row = {"arm": arm, "seed": 0, "prior": "real", "value": math.nan}
        return [row | dict.fromkeys(["bits", "error", "NLL", "coverage", "density"], 0.5)]

    monkeypatch.setattr(consequences, "one_arm", one_arm)
    monkeypatch.setattr(consequences, "processes", ThreadPoolExecutor)


def test_a_table_that_is_there_is_gone_on_with(monkeypatch, tmp_path, capsys):
    done, out = [], tmp_path / "found.csv"
    wanted = list(ARMS)
    monkeypatch.setattr("sys.argv", ["consequences", "--out", str(out)])
    scripted(monkeypatch, done, cut_at=3)
    with pytest.raises(KeyboardInterrupt):
        consequences.main()
    assert len(pd.read_csv(out)) == 2
    consequences.main()
    assert done == wanted[:3] + wanted[2:]
    consequences.main()
    assert len(done) == len(wanted) + 1
    assert pd.read_csv(out)["arm"].tolist() == wanted
    assert "10 codes, random start" in capsys.readouterr().out


def test_it_stops_by_itself_and_says_what_is_missing(monkeypatch, tmp_path):
    done, out = [], tmp_path / "found.csv"
    scripted(monkeypatch, done)
    monkeypatch.setattr("sys.argv", ["consequences", "--out", str(out), "--limit-s", "0"])
    with pytest.raises(SystemExit, match=f"^0 of {len(ARMS)} arms are in .*: run it again"):
        consequences.main()
    assert not done
