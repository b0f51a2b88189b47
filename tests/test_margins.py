"""The figures of claims are heard with their bounds, whatever stands around them; rooms say how near they come."""

import ast
import math

import numpy as np
import pandas as pd
import pytest
import torch

from vqnotes.course import margins
from vqnotes.course.margins import Listener, evidence, report, rooms
from vqnotes.diagnosis.report import Diagnosis, Evidence

TABLE = pd.DataFrame({"a": [1.0, 2.0, 30.0], "b": [4.0, 8.0, 1.0]}, index=["x", "y", "z"])
NAMES = {"np": np, "torch": torch, "table": TABLE, "t": torch.tensor([1.0, 5.0]), "five": 5, "math": math}


def heard(holds, monkeypatch, **names):
    """What `claim` is given for this source, and what is heard of it."""
    found, given = [], []
    monkeypatch.setattr(margins, "_publish", lambda record: found.append({"statement": margins._statement} | record))
    source = f"claim('It holds', {holds})"
    tree = ast.fix_missing_locations(Listener().visit(ast.parse(source)))
    space = (
        NAMES | {"__margins__": margins, "claim": lambda statement, holds: given.append((statement, holds))} | names
    )
    exec(compile(tree, "cell", "exec"), space)
    ((statement, outcome),) = given
    assert statement == "It holds" and all(one["statement"] == statement for one in found)
    return outcome, found


@pytest.mark.parametrize(
    "holds, expected",
    [
        ("five < 8", [("five < 8", 3, 5, 8)]),
        ("five > 8", [("five > 8", -3, 5, 8)]),
        ("4 <= five <= 8", [("4 <= five", 1, 4, 5), ("five <= 8", 3, 5, 8)]),
        ("9 < five < 8", [("9 < five", -4, 9, 5)]),  # Python looks no further
        ("five < 8 and five > 4.5", [("five < 8", 3, 5, 8), ("five > 4.5", 0.5, 5, 4.5)]),
        ("not five > 8", [("five > 8", 3, 5, 8)]),
        ("(t < 6).all()", [("t < 6", 1, 5, 6)]),
        ("(t < 2).any()", [("t < 2", 1, 1, 2)]),
        ("not (t > 6).any()", [("t > 6", 1, 5, 6)]),
        (
            "torch.ones(2, dtype=torch.bfloat16).max() < 3",
            [("torch.ones(2, dtype=torch.bfloat16).max() < 3", 2, 1, 3)],
        ),
        ("(table['a'] < table['b'])['x':'y'].all()", [("table['a'] < table['b']", 3, 1, 4)]),
        ("(table['a'] < table['b']).loc[['y']].all()", [("table['a'] < table['b']", 6, 2, 8)]),
        ("(table['a'] < table['b']).all()", [("table['a'] < table['b']", -29, 30, 1)]),
        ("(table > 0.5).loc['x', 'b']", [("table > 0.5", 3.5, 4, 0.5)]),
        ("all(one < 40 for one in table['a'])", [("one < 40", 40 - one, one, 40) for one in (1, 2, 30)]),
        ("(t > 2).sum() >= 1", [("(t > 2).sum() >= 1", 0, 1, 1)]),
        ("(t > 2).float().mean() > 0.4", [("(t > 2).float().mean() > 0.4", 0.1, 0.5, 0.4)]),
        ("table['b'].iloc[:2].is_monotonic_increasing", [("table['b'].iloc[:2].diff().iloc[1:] >= 0", 4, 4, 0)]),
        ("five == 5 and torch.equal(t, t) and 'a' in 'ab' and t is not None", []),
        ("'a' < 'b'", []),
        ("five < 8 or five > 100", []),
        ("math.nan < 8", []),
    ],
)
def test_figures_are_heard_and_the_claim_is_what_it_was(holds, expected, monkeypatch):
    outcome, found = heard(holds, monkeypatch)
    plain = eval(holds, dict(NAMES))
    assert type(outcome) is type(plain) and bool(outcome) == bool(plain)
    assert [one["comparison"] for one in found] == [text for text, *_ in expected]
    for one, (_, difference, left, right) in zip(found, expected):
        np.testing.assert_allclose([one["difference"], one["left"], one["right"]], [difference, left, right])
        assert one["ratio"] is None or np.sign(one["ratio"]) == np.sign(one["difference"])


def test_operands_are_computed_once(monkeypatch):
    calls = []

    def figure():
        calls.append(1)
        return len(calls)

    _, found = heard("0.5 < figure() < 1.5", monkeypatch, figure=figure)
    assert calls == [1] and len(found) == 2


def test_what_a_verdict_rests_on_is_heard(monkeypatch):
    found = Diagnosis("healthy", "because", {"gap": Evidence(1.2, 1.0, "k-means", "")}, [])
    outcome, records = heard("found.verdict == 'healthy' and 'token' not in found.verdict", monkeypatch, found=found)
    assert outcome and [one["evidence"] for one in records] == ["found: gap"] * 2
    table = evidence({seed: [{**records[0], "left": left}] for seed, left in enumerate((1.2, 1.3, 2.4))})
    assert table.loc[0].tolist() == ["found: gap", 1.2, 1.3, 2.4, "-"]


def record(left, right, text="a < b", statement="A", most=False):
    ratio = math.log(right / left) if left > 0 and right > 0 else None
    sides = {"left": left, "right": right, "symbol": "<", "most": most}
    return {"statement": statement, "comparison": text, "difference": right - left, "ratio": ratio, **sides}


def test_room_is_the_distance_to_the_bound_in_deviations_between_seeds():
    claims = {seed: {"A": "", "B": ""} for seed in range(3)}
    heard = {
        seed: [record(figure, 0.0), record(10.0, 20.0, "c", "B")] for seed, figure in enumerate((-1.0, -2.0, -3.0))
    }
    near, same = rooms(claims, heard).to_dict("records")
    assert (near["room"], near["nearest"], near["seed"], near["left"]) == (2.0, 1.0, 0, -1.0)
    assert near["scale"] == "difference" and same["room"] == math.inf and near["falls"] == same["falls"] == []


def test_figures_that_vary_by_factors_are_compared_by_factors():
    heard = {seed: [record(100.0, figure)] for seed, figure in enumerate((1e3, 1e4, 1e5))}
    row = rooms({seed: {"A": ""} for seed in heard}, heard).loc[0]
    assert row["scale"] == "ratio" and row["room"] == pytest.approx(2) and row["nearest"] == pytest.approx(1)
    heard[3] = [record(100.0, -5.0)]
    assert rooms({seed: {"A": ""} for seed in heard}, heard).loc[0, "scale"] == "difference"


def test_what_falls_comes_first_then_what_is_near_then_what_has_room_then_what_has_no_figure():
    seeds = range(20)
    claims = {seed: {"roomy": "", "near": "", "truth": "", "falls": "✗" if seed == 7 else ""} for seed in seeds}
    del claims[3]["truth"]
    figures = np.random.default_rng(0).normal(size=20)
    bounds = {"roomy": 40.0, "near": 2.0, "falls": figures[7] - 0.1}
    heard = {
        seed: [record(float(figures[seed]), bound, "f < b", name) for name, bound in bounds.items()] for seed in seeds
    }
    table = rooms(claims, heard)
    assert table["statement"].tolist() == ["falls", "truth", "near", "roomy"]
    assert table["falls"].tolist() == [[7], [3], [], []]  # 3: it was not reached there
    text = report(claims, heard)
    assert "FALLS for 7: falls" in text and "NEAR: near" in text and "NEAR: roomy" not in text
    assert "only its truth is known" in text


def test_in_a_loop_the_nearest_counts_and_in_any_the_farthest():
    claims = {0: {"A": ""}, 1: {"A": ""}}
    for most, nearest in ((False, 1.0), (True, 5.0)):
        heard = {seed: [record(1.0, 2.0 + seed, most=most), record(-5.0, seed, most=most)] for seed in claims}
        row = rooms(claims, heard).loc[0]
        assert row["right"] - row["left"] == nearest


def test_one_seed_has_no_room_to_tell():
    row = rooms({0: {"A": ""}}, {0: [record(1.0, 2.0)]}).loc[0]
    assert math.isnan(row["room"]) and row["left"] == 1.0
