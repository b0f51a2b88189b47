"""The league: every competitor can compete, on every bed; ranks, their intervals and groups are what they say."""

import numpy as np
import pandas as pd
import pytest

from vqnotes.studies import remedies as league


@pytest.mark.parametrize("remedy", league.REMEDIES)
def test_every_remedy_competes(remedy):
    rows = league.compete([0, 5], remedy, "tokens", steps=4)
    assert len(rows) == 2 and all(set(row) == set(rows[0]) for row in rows)
    for row in rows:
        assert row["gap"] > 0.9 and 0 < row["relative error"] < 5
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


def entered(**errors):
    """Runs of one bed: the errors of each remedy, by seed."""
    rows = [
        {"bed": "tokens", "remedy": name, "seed": seed, "relative error": error}
        for name, each in errors.items()
        for seed, error in enumerate(each)
    ]
    return pd.DataFrame(rows)


SEEDS = np.arange(9.0)  # what the seed adds to all errors
FOUR = entered(worst=SEEDS + 20, close=SEEDS + 0.1, best=SEEDS, other=SEEDS + [4, -1, 4, -1, 0.2, -1, 4, -1, 4])


def test_standings_by_hand():
    """Seed by seed "close" is always above "best": told apart, though their medians are 4.1 and 4. "other" is above
    or below it by turns, and so cannot be told apart, though its median of 4.2 is the larger."""
    found = league.standings(FOUR, "tokens")
    assert found.index.tolist() == ["best", "other", "close", "worst"] and found["group"].tolist() == [1, 1, 2, 3]
    assert found["error"].tolist() == pytest.approx([4, 4.2, 4.1, 24]) and found["rank"].tolist() == [1, 3, 2, 4]
    assert found.loc["worst", ["low", "high"]].tolist() == [4, 4], "by whatever seeds"
    assert found.loc["other", ["low", "high"]].tolist() == [1, 3] and found.loc["best", "high"] == 2
    assert found.equals(league.standings(FOUR.sample(frac=1, random_state=0), "tokens")), "in any order of rows"


def test_equals_share_their_rank_and_their_group():
    found = league.standings(entered(one=SEEDS, two=SEEDS, three=SEEDS + 1), "tokens")
    assert found["rank"].tolist() == [1.5, 1.5, 3] and found["group"].tolist() == [1, 1, 2]
    assert (found["low"] == found["rank"]).all() and (found["high"] == found["rank"]).all()


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(KeyError, match="magic"):
        league.compete([0], "magic", "tokens", steps=3)
    runs = FOUR.assign(gap=1.0)
    with pytest.raises(ValueError, match=r"runs of the bed 'starved', got those of \['tokens'\]"):
        league.table(runs, "starved")
    with pytest.raises(ValueError, match="need rows with columns .*'gap'"):
        league.table(FOUR, "tokens")
    with pytest.raises(ValueError, match=r"of the bed 'starved', got 0 runs of \['tokens'\]"):
        league.standings(FOUR, "starved")
    with pytest.raises(ValueError, match="need each seed once of the bed 'tokens', got 37 runs"):
        league.standings(pd.concat([FOUR, FOUR[:1]]), "tokens")
    with pytest.raises(ValueError, match="every remedy needs every seed"):
        league.standings(FOUR[1:], "tokens")
    with pytest.raises(ValueError, match="need rows with columns .*'seed'"):
        league.standings(FOUR.drop(columns="seed"), "tokens")
