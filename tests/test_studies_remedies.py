"""The league: every competitor can compete, on every bed; ranks are what they say; the long table is whole."""

import pandas as pd
import pytest

from vqnotes.studies import remedies as league


@pytest.mark.parametrize("remedy", league.REMEDIES)
def test_every_remedy_competes(remedy):
    rows = league.compete([0, 5], remedy, "tokens", steps=4)
    assert len(rows) == 2 and all(set(row) == set(rows[0]) for row in rows)
    for row in rows:
        assert row["gap"] > 0.9 and 0 < row["relative error"] < 5 and row["ms a step"] > 0
        assert 0 < row["codes in effect"] <= 1 and 0 < row["usage"] <= 1 and 0 <= row["separability"] <= 1


def test_a_season_repeats_with_its_seeds():
    one, same, other = (league.compete(seeds, "expiry", "digits", steps=3)[0] for seeds in ([1], [1], [2]))
    assert one["relative error"] == same["relative error"] != other["relative error"]


def test_the_larger_encoder_and_the_beds_differ_in_width_alone():
    for remedy, bed, width in (("plain", "tokens", 64), ("plain", "starved", 2), ("larger encoder", "starved", 8)):
        ((one, model),) = league.trained(remedy, bed, [0], steps=1)
        assert model.encoder[0].out_features == width and model.decoder[0].out_features == 64
        assert one.x.shape == (4800, 16)


def test_the_table_ranks_by_gap_and_error():
    rows = [
        {"bed": bed, "seed": seed, "remedy": name, "gap": gap, "relative error": error, "usage": 1.0}
        for bed in ("tokens", "digits")
        for seed in range(3)
        for name, gap, error in (("worst", 9 + seed, 0.9), ("best", 1 + seed, 0.2), ("middle", 2 + seed, 0.1))
    ]
    table = league.table(pd.DataFrame(rows), "digits")
    assert table.index.tolist()[2] == "worst" and table["rank"].tolist() == [1.5, 1.5, 3]
    assert table.loc["best", "gap"] == 2 and list(table) == ["rank", "gap", "relative error", "usage"]


def test_the_long_table_holds_every_remedy_32_times_a_bed():
    runs = league.long_table()
    counts = runs.groupby(["bed", "remedy"]).size()
    assert set(counts.index) == {(bed, remedy) for bed in league.RANKED for remedy in league.REMEDIES}
    assert (counts == 32).all() and runs[["gap", "relative error"]].notna().all().all()
    assert len(league.table(runs, "tokens")) == len(league.REMEDIES)


def test_an_unknown_name_is_refused():
    with pytest.raises(KeyError, match="magic"):
        league.compete([0], "magic", "tokens", steps=3)
    with pytest.raises(ValueError, match=r"runs of the bed 'starved', got those of \['digits', 'tokens'\]"):
        league.table(league.long_table(), "starved")
    with pytest.raises(ValueError, match="need rows with columns .*'gap'"):
        league.table(league.long_table().drop(columns="gap"), "tokens")
