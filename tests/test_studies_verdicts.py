"""The validation of `diagnose`: what is made, what interventions say of it, and how verdicts are counted."""

import dataclasses
import io
import time

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import normal, random_measures

from vqnotes.diagnosis.inputs import Unused
from vqnotes.diagnosis.measures import measure
from vqnotes.diagnosis.observed import observe
from vqnotes.diagnosis.report import VERDICTS
from vqnotes.diagnosis.rules import decide
from vqnotes.metrics import quantization_error
from vqnotes.nearest import nearest_code
from vqnotes.studies import interventions, judging, parts, sample_sizes, verdicts
from vqnotes.studies.cases import CASES, seeds_of, settings
from vqnotes.studies.families import BEDS


def test_many_models_are_made_and_many_of_them_have_large_codebooks():
    sizes = [one["codebook_size"] for one in settings() for _ in seeds_of(**one)]
    assert len(sizes) >= 1200 and np.mean(np.array(sizes) >= 1024) >= 0.3 and max(sizes) >= 4096
    assert {CASES[one["case"]].made for one in settings()} == set(VERDICTS) - {"cannot tell"}
    assert len({BEDS[one["bed"]].family for one in settings()}) >= 6
    assert len({parts.name_of(one) for one in settings()}) == len(settings())


def test_no_two_settings_share_a_seed():
    seeds = [seed for one in settings() for seed in seeds_of(**one)]
    assert len(seeds) == len(set(seeds))


# ---------------------------------------------------------------- measures in a table


def in_a_table(found):
    """Written and read again."""
    written = pd.DataFrame([verdicts.to_cells(m) for m in found]).to_csv(index=False)
    return verdicts.from_cells(pd.read_csv(io.StringIO(written)))


def test_measures_come_back_from_a_table():
    latents, codes = normal(600, 4), normal(16, 4, seed=1)
    found = random_measures(300) + [measure(observe(latents, codes, inputs=latents))]
    found += [dataclasses.replace(found[0], unused=Unused("they are ids", "pass floats"))]
    back = in_a_table(found)
    for m, again in zip(found, back, strict=True):
        assert decide(again) == decide(m)
        assert (again.latents, again.unused, len(again.codebooks)) == (m.latents, m.unused, len(m.codebooks))
    assert any(m.codebooks for m in found) and back[-1].unused.remedy == "pass floats"


def test_a_model_that_is_made_gets_a_row():
    torch.set_num_threads(1)
    (row,) = verdicts.examine("digits", "plain", 64, seeds=[0], share=0.05)
    assert row["made"] == "healthy" and row["family"] == "digits" and row["verdict"] in VERDICTS
    assert row["all latents"] < row["as made"] and row["s making"] > 0 and row["draws"]
    (m,) = in_a_table(verdicts.from_cells(pd.DataFrame([row])))
    assert decide(m)[0] == row["verdict"]
    with pytest.raises(KeyError, match="magic"):
        verdicts.examine("digits", "magic", 64)


# ---------------------------------------------------------------- what models have

NOTHING = dict.fromkeys(["same codes", "new codes", "wider encoder", "longer training", "longer warm-up"], 0.1)
NOTHING |= {"more codes": 0.09, "all latents": 0.08}
DIMENSIONAL = {"dimensional collapse"}
LIMIT = dict.fromkeys(NOTHING, 0.6) | {"all latents": 0.1}


@pytest.mark.parametrize(
    "errors, expected",
    [
        (NOTHING, {"healthy"}),
        (NOTHING | {"same codes": 0.3}, {"token collapse"}),
        (NOTHING | {"same codes": 0.12}, {"token collapse", "healthy"}),  # by a sixth: a little
        (NOTHING | {"same codes": 0.012, "new codes": 0.008}, {"healthy"}),  # a trifle
        (NOTHING | {"wider encoder": 0.05}, {"embedding collapse"}),
        (NOTHING | {"wider encoder": float("nan")}, {"healthy"}),  # could not be made
        (NOTHING | {"same codes": 0.2, "wider encoder": 0.02}, {"token and embedding collapse"}),
        (NOTHING | {"same codes": 0.6, "wider encoder": 0.05}, {"token collapse"}),  # a tenth of what codes win
        (NOTHING | {"longer warm-up": 0.04}, {"dimensional collapse"}),
        (NOTHING | {"longer training": 0.04, "longer warm-up": 0.04}, {"healthy"}),  # the time helped
        (NOTHING | {"longer warm-up": 0.04, "longer decoder": 0.04}, {"healthy"}),  # the decoder's time helped
        (NOTHING | {"longer warm-up": 0.04, "longer decoder": float("nan")}, {"dimensional collapse"}),
        (
            NOTHING | {"longer warm-up": 0.04, "longer warm-up alone": 0.1, "more dimensions": 0.04},
            {"embedding collapse"},
        ),
        (NOTHING | {"longer warm-up": 0.04, "longer warm-up alone": 0.04, "more dimensions": 0.1}, DIMENSIONAL),
        (LIMIT, {"rate limit"}),
        (LIMIT | {"all latents": 0.35}, {"rate limit", "healthy"}),
        (LIMIT | {"new codes": 0.3}, {"token collapse"}),  # before the rate
    ],
)
def test_a_model_has_what_helps_it(errors, expected):
    assert judging.labels(pd.DataFrame([errors])).tolist() == [expected]


def test_a_longer_warm_up_that_helps_is_taken_apart():
    torch.set_num_threads(1)
    (row,) = verdicts.examine("digits", "2 dimensions", 256, seeds=[0])
    assert row["longer warm-up"] < row["longer training"] / 1.25  # for else nothing is taken apart
    assert all(row[part] > 0 for part in interventions.PARTS)
    # Two dimensions are too few, however long the training.
    assert row["more dimensions"] < row["longer warm-up alone"] and row["more dimensions"] < row["longer decoder"]
    assert "embedding collapse" in judging.labels(pd.DataFrame([row]))[0]
    assert not interventions.has_room("modes", "FSQ") and not interventions.has_room("slow", "slow, no warm-up")
    with pytest.raises(ValueError, match="more time"):
        interventions.made([0], [torch.zeros(8, 2)], "modes", "plain", 64, change="more time")


def test_a_table_without_interventions_is_refused():
    with pytest.raises(ValueError, match="wider encoder"):
        judging.labels(pd.DataFrame([{"same codes": 0.1, "new codes": 0.1}]))


def test_verdicts_are_counted():
    table = pd.DataFrame({"latents": [640, 640, 130, 130], "codebook_size": [64] * 4})
    right = pd.Series([{"healthy"}, {"healthy"}, {"token collapse", "healthy"}, {"token collapse"}])
    rows = judging.judged(table, ["healthy", "token collapse", "token collapse", "cannot tell"], right)
    assert rows["outcome"].tolist() == ["right", "wrong", "right", "withheld"]
    assert rows["ill"].tolist() == [False, True, False, False] and rows["border"].tolist() == [
        False,
        False,
        True,
        False,
    ]
    found = judging.shares(rows, "N/K")
    assert found.index.tolist() == [2.0, 8.0]  # of 2.03 and 10 the nearest powers of two
    assert found.loc[8.0, ["models", "right", "wrong", "withheld", "sound", "ill"]].tolist() == [2, 1, 1, 0, 2, 1]
    assert found.loc[8.0, ["wrong low", "wrong high"]].tolist() == pytest.approx([0.0945, 0.9055], abs=1e-4)  # Wilson
    assert judging.confusion(rows).loc["healthy", "token collapse"] == 1
    with pytest.raises(ValueError, match="outcome"):
        judging.shares(table, "latents")


def test_how_often_the_seeds_of_a_setting_have_the_same():
    table = pd.DataFrame({"bed": "modes", "case": [*"aaabc"], "codebook_size": [8, 8, 8, 8, 8]})
    right = pd.Series([{"healthy"}, {"healthy", "rate limit"}, {"token collapse"}, {"healthy"}, {"healthy"}])
    found = judging.recurrence(table, right)
    assert found[:3].tolist() == [0.25, 0.5, 0] and found[3:].isna().all()
    same = judging.recurrence(table.assign(case="a"), pd.Series([{"healthy"}] * 5))
    assert (same == 1).all()
    with pytest.raises(ValueError, match="codebook_size"):
        judging.recurrence(table[["bed", "case"]], right)


def test_which_models_show_enough():
    table = pd.DataFrame({"latents": [1024, 1024, 256, 1024], "codebook_size": 64, "inputs": [np.nan, 4, 64, 16]})
    table = table.assign(inputs_low=[0.1, 0.1, 0.1, 0.1], inputs_high=[0.1, 0.1, 0.1, 0.2])
    assert judging.shows_enough(table).tolist() == [True, False, False, False]


def test_a_family_is_judged_by_thresholds_from_the_others(monkeypatch):
    found = [m for m in random_measures(60) if m.gap is not None]
    families, used = np.arange(len(found)) % 3, []
    judge = judging.Judge(found, pd.Series([{decide(m)[0]} for m in found]))
    assert judge.is_right().all() and judge.is_right({**judging.rules.THRESHOLDS, "gap": 1e9}).mean() < 1

    def thresholds(rows):
        used.append(rows)
        return judging.rules.THRESHOLDS

    kept = np.arange(len(found)) % 2 == 0

    monkeypatch.setattr(judge, "thresholds", thresholds)
    said, chosen = judge.left_out(families, kept)
    assert said.tolist() == judge.verdicts().tolist() and list(chosen) == [0, 1, 2]
    assert all((rows == ((families != one) & kept)).all() for one, rows in enumerate(used))


# ---------------------------------------------------------------- a study in parts


def tried(name, seconds=0.0):
    """A setting of a study, for processes to import."""
    if name == "bad ± one":
        raise ValueError("it cannot be made")
    time.sleep(seconds)
    return [{"name": name, "figure": 0.5, "draws": {"gap": np.ones(3)}}, {"name": name, "figure": 0.25}]


def test_parts_are_written_and_errors_stop_no_other(tmp_path, capsys):
    todo = [{"name": "one"}, {"name": "bad ± one"}]
    parts.examine_all(tried, todo, tmp_path, workers=1)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["bad_+-_one.error", "one.csv", "one.npz"]
    assert "it cannot be made" in (tmp_path / files[0]).read_text()
    table = parts.gathered(tmp_path, todo)
    assert table.to_dict("list") == {"name": ["one", "one"], "figure": [0.5, 0.25]}
    assert np.load(tmp_path / "one.npz")["0 gap"].tolist() == [1, 1, 1]
    assert "2/2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no setting is done"):
        parts.gathered(tmp_path, todo[1:])


def test_a_limit_begins_no_other(tmp_path, capsys):
    parts.examine_all(tried, [{"name": "one", "seconds": 600}], tmp_path, workers=1, limit=0)
    assert "the time is up: 0 of 1 settings were done" in capsys.readouterr().out and not [*tmp_path.iterdir()]


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch, capsys):
    asked, todo = [], [{"name": name} for name in ("one", "two", "three")]

    def run(examine, left, folder, workers, limit):
        asked.append(sorted(one["name"] for one in left))
        for one in left[:1]:
            (folder / f"{one['name']}.csv").write_text(f"name,s making\n{one['name']},1\n")

    monkeypatch.setattr(parts, "examine_all", run)
    monkeypatch.setattr("sys.argv", ["study", "--out", str(tmp_path), "--table", str(tmp_path / "table")])
    for _ in range(4):
        parts.command("study", "", tried, todo)
    assert [len(names) for names in asked] == [3, 2, 1] and set(asked[2]) < set(asked[1]) < set(asked[0])
    assert (tmp_path / "table").read_text().split() == ["name", "one", "two", "three"]
    assert "3 of 3 settings were done before" in capsys.readouterr().out


# ---------------------------------------------------------------- how many latents it takes


def test_cells_of_sample_sizes():
    cells = pd.DataFrame(sample_sizes.cells())
    assert not cells.duplicated().any() and (cells["latents"] >= 64).all()
    assert (cells["latents"] <= 64 * cells["codes"].clip(lower=16)).all() and cells["codes"].max() == 8192
    assert set(cells["fault"]) == set(sample_sizes.FAULTS) and set(cells["dim"]) == {2, 16, 256}
    seeds = [len(sample_sizes.sizes_tried(**one)) for one in sample_sizes.cells()]
    assert min(seeds) == 2 and max(seeds) == len(sample_sizes.SEEDS)
    with pytest.raises(ValueError, match="got 'magic'"):
        sample_sizes.latents_and_codes(64, 16, 2, "magic", 0)


@pytest.mark.parametrize("codes, dim", [(16, 2), (64, 16)])
def test_faults_are_what_they_are_called(codes, dim):
    def of(fault):
        return sample_sizes.latents_and_codes(4096, codes, dim, fault, 0)

    kept, best, _ = of("none")
    latents, half_dead, _ = of("codes die")
    assert torch.equal(latents, kept) and half_dead.shape == best.shape == (codes, dim)
    assert len(nearest_code(latents, half_dead).unique()) <= max(2, codes // 8)
    assert quantization_error(latents, half_dead) > 1.5 * quantization_error(latents, best)
    thin, codes_of_it, _ = of("latents coincide")
    assert quantization_error(thin, codes_of_it) < 0.5 * quantization_error(kept, best)


def test_dead_codes_that_cost_next_to_nothing_are_spare():
    table = pd.DataFrame(
        [
            {"codes": codes, "dim": 2, "fault": fault, "error": error, "latents": 64, "verdict": "healthy"}
            for codes, dead in ((16, 0.1), (64, 0.011))
            for fault, error in (("none", 0.004), ("codes die", dead), ("latents coincide", 0.5))
        ]
    ).assign(confidence=1.0)
    assert sample_sizes.costs_little(table).tolist() == [False] * 4 + [True, False]
    found = sample_sizes.shares(table).set_index("codes")["wrong"]
    assert found[16] == pytest.approx(2 / 3) and found[64] == pytest.approx(1 / 3)
    assert not sample_sizes.costs_little(table[table["fault"] != "none"]).any()


def test_a_cell_is_judged_and_counted():
    torch.set_num_threads(1)
    rows = [row for fault in sample_sizes.FAULTS for row in sample_sizes.judged(1024, 16, 16, fault, seeds=[0])]
    assert [row["fault"] for row in rows] == list(sample_sizes.FAULTS)
    (found,) = sample_sizes.shares(pd.DataFrame(rows)).to_dict("records")
    right = [row["verdict"] in sample_sizes.RIGHT[row["fault"]] for row in rows]
    withheld = sum(row["verdict"] == "cannot tell" for row in rows)
    assert found["verdicts"] == 3 and found["withheld"] == pytest.approx(withheld / 3)
    assert found["wrong"] == pytest.approx((3 - sum(right) - withheld) / 3)
    with pytest.raises(ValueError, match="no rows"):
        sample_sizes.shares(pd.DataFrame())
