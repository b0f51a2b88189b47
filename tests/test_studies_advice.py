"""The study of the advice: its table is whole, what is advised has helped, and a table is gone on with."""

import math
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch

from vqnotes.diagnosis import advice
from vqnotes.diagnosis.advice import ADVISED
from vqnotes.diagnosis.observed import Kind
from vqnotes.studies import advice as study
from vqnotes.studies import judging, verdicts
from vqnotes.studies.advice import CASES, SEEDS, WAYS, outcomes


@pytest.fixture(scope="module")
def table():
    return study.models_advised()


@pytest.fixture(scope="module")
def said(table):
    return outcomes(table).set_index(["kind", "verdict", "advice"])


def test_cases_are_there_with_all_their_ways_and_seeds(table):
    there = table["case"].unique().tolist()
    assert there == [case for case in CASES if case in there] and len(there) == len(CASES)
    assert {CASES[case].kind for case in there} == {case.kind for case in CASES.values()}
    for (case, way), part in table.groupby(["case", "way"]):
        assert way in CASES[case].ways and part["seed"].tolist() == list(SEEDS)
    assert len(table) == len(SEEDS) * sum(len(CASES[case].ways) for case in there)
    assert table[["before", "control", "after"]].gt(0).all(axis=None)


ENOUGH = 6  # models
TOO_FEW = {  # verdicts that fewer models of the kind got
    (Kind.GRID, "embedding collapse"),
    (Kind.GRID, "rate limit"),
    (Kind.STACK, "token and embedding collapse"),
    *((kind, "dimensional collapse") for kind in ADVISED),
}
ELSEWHERE = (advice.MORE_DIMENSIONS, advice.MORE_DIRECTIONS)  # followed by the models of `verdicts`: see below


@pytest.mark.parametrize("kind", ADVISED)
def test_all_that_is_advised_has_helped(said, kind):
    for verdict, pieces in ADVISED[kind].items():
        if (kind, verdict) in TOO_FEW:
            assert not said.query("kind == @kind.value and verdict == @verdict and models >= @ENOUGH").size
            continue
        busy = [advice.STORM] if kind in advice.STORMS and verdict == "token collapse" else []
        for one in [*(piece for piece in pieces if piece not in ELSEWHERE), *busy]:
            row = said.loc[(kind.value, verdict, one.remedy)]
            assert row["advised"] and row["models"] >= ENOUGH and row["high"] < 1, (kind, verdict, one.remedy)


@pytest.mark.parametrize("kind", ADVISED)
def test_what_helps_most_is_advised_first(said, kind):
    for verdict, pieces in ADVISED[kind].items():
        if (kind, verdict) in TOO_FEW:
            continue
        ratios = [
            said.loc[(kind.value, verdict, one.remedy), "error ratio"] for one in pieces if one not in ELSEWHERE
        ]
        assert ratios == sorted(ratios), (kind, verdict)


def test_what_has_not_helped_is_not_advised(said):
    assert not said.query("high >= 1 and models >= @ENOUGH")["advised"].any()


def test_more_dimensions_help_encoders_that_are_at_fault():
    """Models of the other study: trained anew with more dimensions, in place of new codes alone."""
    made = verdicts.models_made()
    said = judging.Judge(verdicts.from_cells(made), judging.labels(made)).verdicts()
    rows = made[(said == "embedding collapse") & made["more dimensions"].notna()]
    ratio = rows["more dimensions"] / rows["new codes"]
    assert len(rows) >= 30 and ratio.median() < 0.7 and (ratio[rows["dim"] <= 4] < 0.7).all()


def test_only_models_with_the_verdict_count_and_the_median_is_that_of_ratios():
    case = "learnt codebook, misplaced, modes"
    rows = [
        # verdict, control, after, after verdict
        ("token collapse", 0.4, 0.2, "healthy"),
        ("token collapse", 0.4, 0.1, "healthy"),
        ("token collapse", 0.2, 0.2, "token collapse"),
        ("healthy", 0.1, 9.0, "token collapse"),
    ]
    names = ["verdict", "control", "after", "after verdict"]
    runs = pd.DataFrame(rows, columns=names).assign(case=case, way="warm-up, k-means")
    (row,) = outcomes(runs).to_dict("records")
    assert (row["kind"], row["verdict"], row["advice"]) == (Kind.LEARNT, "token collapse", advice.WARM_UP.remedy)
    assert row["models"] == 3 and row["error ratio"] == 0.5 and row["cured"] == pytest.approx(2 / 3)
    assert (row["low"], row["high"]) == (0.25, 1.0)  # the least and the greatest are each drawn twice or more often


def test_every_way_is_followed_in_some_case_and_changes_the_recipe():
    assert {way for case in CASES.values() for way in case.ways} == set(WAYS)
    for case in CASES.values():
        for way in case.ways:
            assert all(change(case.recipe) != case.recipe for change in WAYS[way].changes), (case, way)


def test_a_case_made_again_gets_its_verdict_and_the_advice_helps():
    torch.set_num_threads(1)
    rows = pd.DataFrame(study.examine([SEEDS[0]], "learnt codebook, few codes, modes"))
    assert rows["way"].tolist() == list(CASES["learnt codebook, few codes, modes"].ways)
    assert (rows["verdict"] == "rate limit").all() and (rows["after"] < rows["control"]).all()
    with pytest.raises(KeyError, match="magic"):
        study.examine([0], "magic")


def test_new_codes_stand_beside_a_decoder_that_trained_on_as_long(monkeypatch):
    trained = []

    def trained_on(entered, family, init, steps):
        trained.append((init, steps))
        return entered

    monkeypatch.setattr(study.sickened, "with_decoders_trained_on", trained_on)
    monkeypatch.setattr(study, "_judged", lambda entered: [("token collapse", 0.5)] * len(entered))
    monkeypatch.setattr(study, "made", lambda recipe, seeds: [(None, None)] * len(seeds))
    rows = study.examine([1, 2], "learnt codebook, storm, modes")
    assert [row["way"] for row in rows] == ["averaged expiry"] * 2 + ["k-means, decoder"] * 2
    assert trained == [(None, 150), ("kmeans", 150)]


def test_a_table_that_is_there_is_gone_on_with_and_a_limit_ends_it(monkeypatch, tmp_path, capsys):
    done = []

    def examine(seeds, case):
        done.append(case)
        row = {"verdict": CASES[case].verdict, "before": 0.4, "control verdict": "", "control": 0.4}
        row |= {"after verdict": "healthy", "after": 0.2}
        return [{"case": case, "way": way, "seed": seed} | row for way in CASES[case].ways for seed in seeds]

    monkeypatch.setattr(study, "processes", ThreadPoolExecutor)
    monkeypatch.setattr(study, "examine", examine)
    path = tmp_path / "found.csv"
    monkeypatch.setattr("sys.argv", ["advice", "--out", str(path), "--only", "stack", "--workers", "1"])
    study.main()
    some = list(done)
    assert some == [case for case in CASES if "stack" in case] and "warm-up" not in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["advice", "--out", str(path), "--limit-s", "0"])
    with pytest.raises(SystemExit, match=f"to be done: {len(CASES) - len(some)} cases"):
        study.main()
    assert done == some
    monkeypatch.setattr("sys.argv", ["advice", "--out", str(path)])
    study.main()
    assert sorted(done) == sorted(CASES) and len(done) == len(CASES)
    table = pd.read_csv(path)
    assert table["case"].unique().tolist() == list(CASES)
    assert math.isclose(outcomes(table)["error ratio"].max(), 0.5)
    assert [one.name for one in tmp_path.iterdir()] == ["found.csv"]
