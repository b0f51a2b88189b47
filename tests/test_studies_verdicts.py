"""The validation of `diagnose`: the table is whole, thresholds come from one half, the other half is judged well."""

import math
import re

import pandas as pd
import pytest
import torch

from vqnotes.diagnosis.observed import observe
from vqnotes.diagnosis.report import VERDICTS
from vqnotes.diagnosis.rules import THRESHOLDS
from vqnotes.studies import verdicts


@pytest.fixture(scope="module")
def table():
    return verdicts.models_made()


def test_every_setting_is_there_three_times(table):
    made = table.groupby(["half", "family", "case", "codes"]).size()
    todo = [(one["half"], one["family"], one["case"], one["codes"]) for one in verdicts.settings()]
    assert sorted(made.index) == sorted(todo) and (made == 3).all() and len(table) >= 400
    seeds = table.groupby("half")["seed"].unique().map(set)
    assert seeds["set"] == set(verdicts.SEEDS["set"]) and seeds["judged"] == set(verdicts.SEEDS["judged"])
    assert not seeds["set"] & seeds["judged"]


def test_thresholds_are_those_that_the_first_half_gives(table):
    found = verdicts.thresholds(table[table["confirmed"] & (table["half"] == "set")])
    assert {name: found[name] for name in verdicts.FIRST_GUESS} == pytest.approx(
        {name: THRESHOLDS[name] for name in verdicts.FIRST_GUESS}
    )


@pytest.mark.parametrize("labels", [False, True])
def test_unseen_models_are_judged_well(table, labels):
    judged = table[table["confirmed"] & (table["half"] == "judged")]
    found = verdicts.verdicts(judged, labels=labels)
    assert (found == judged["label"]).mean() >= 0.95
    assert found[judged["label"] == "healthy"].str.contains("collapse").mean() <= 0.02
    assert set(judged["label"]) == set(verdicts.LABELS) == set(VERDICTS) - {"cannot tell"}
    for _, part in (found == judged["label"]).groupby(judged["label"]):
        assert len(part) >= 10 and part.mean() >= 0.8


def test_a_setting_made_again_is_judged_the_same(table):
    torch.set_num_threads(1)
    for case in ("plain", "U(±1/K)"):
        rows = pd.DataFrame(verdicts.examine(list(verdicts.SEEDS["judged"])[:2], "judged", "modes", case, 64))
        stored = table.query("half == 'judged' and family == 'modes' and case == @case and codes == 64").head(2)
        assert verdicts.confirmed(rows).all()
        assert verdicts.verdicts(rows).tolist() == verdicts.verdicts(stored).tolist() == stored["label"].tolist()
        assert rows["gap"].to_numpy() == pytest.approx(stored["gap"].to_numpy(), rel=0.5)


def test_an_intervention_confirms_or_sets_aside():
    sound = {"same codes": 0.1, "new codes": 0.1, "floor": 0.1}
    cured, spoilt = sound | {"same codes": 0.2}, sound | {"same codes": 0.3, "new codes": 0.3}
    read, lost = ({"separability": s, "separability_inputs": 1.0, "chance": 0.1} for s in (1.0, 0.4))
    unknown = dict.fromkeys(read, math.nan)
    for label, outcome, labels, holds in [
        ("healthy", sound, read, True),
        ("healthy", cured, read, False),
        ("healthy", sound, unknown, True),
        ("token collapse", cured, read, True),
        ("token collapse", sound, read, False),
        ("token collapse", cured, lost, False),
        ("embedding collapse", spoilt, lost, True),
        ("embedding collapse", spoilt, read, False),
        ("embedding collapse", spoilt, unknown, True),
        ("embedding collapse", sound, lost, False),
        ("dimensional collapse", spoilt, read, True),
        ("dimensional collapse", cured, read, False),
        ("rate limit", sound | {"floor": 0.5, "same codes": 0.5, "new codes": 0.5}, read, True),
        ("rate limit", sound, read, False),
        ("healthy", dict.fromkeys(sound, 0.3), read, False),  # nothing can do better: a rate limit
        ("healthy", spoilt, read, False),
        ("healthy", sound | {"new codes": 0.12}, read, False),  # new codes are worse: so were these
        ("healthy", sound | {"same codes": 0.104}, read, True),
        ("healthy", sound | {"same codes": 0.108}, read, False),  # neither
        ("token collapse", sound | {"same codes": 0.108}, read, False),
        ("token collapse", sound | {"same codes": 0.112}, read, True),
        ("rate limit", sound | {"floor": 0.5, "same codes": 0.7, "new codes": 0.7}, read, False),
        ("rate limit", sound | {"floor": 0.5, "same codes": 0.55, "new codes": 0.5}, read, False),
        ("dimensional collapse", spoilt, lost, False),
        ("dimensional collapse", sound, read, False),
        ("token and embedding collapse", spoilt | {"same codes": 0.4}, lost, True),
        ("token and embedding collapse", spoilt | {"same codes": 0.4}, read, False),
        ("token and embedding collapse", spoilt, lost, False),
        ("token and embedding collapse", cured, lost, False),
        ("no such label", sound, read, False),
    ]:
        row = pd.DataFrame([{"label": label} | outcome | labels])
        assert verdicts.confirmed(row).tolist() == [holds], (label, outcome, labels)


def test_cases_are_what_their_names_say():
    starts = {"U(±1/K)": "uniform", "N(0, 1)": "normal"}
    for name, case in verdicts.CASES.items():
        width, dim = re.match(r"width (\d+)", name), re.match(r"(\d+) dimensions", name)
        assert case.width == (int(width[1]) if width else 64) and case.dim == (int(dim[1]) if dim else 8), name
        assert (case.options.get("update") == "ema") == ("EMA" in name), name
        assert case.init == next((init for start, init in starts.items() if start in name), "kmeans"), name
        assert (case.warmup == 0) == (case.label == "token collapse" and "warm-up" not in name), name


def test_decoders_learn_on_for_half_as_long_with_old_codes_and_with_new_ones(monkeypatch):
    plans = []

    def watched(entered, family, init, steps):
        plans.append((init, steps))
        return [0.1] * len(entered)

    monkeypatch.setattr(verdicts, "decoders_trained_on", watched)
    monkeypatch.setattr(verdicts, "observe", lambda latents, codes, **_: observe(latents, codes))
    (row,) = verdicts.examine([0], "set", "digits", "plain", 64, steps=8)
    assert plans == [(None, 4), ("kmeans", 4)] and row["label"] == "healthy"
    assert row["same codes"] == row["new codes"] == 0.1 and 0 < row["floor"] < 1


def test_an_unknown_family_or_case_is_refused():
    with pytest.raises(ValueError, match="family must be one of .* got 'circles'"):
        verdicts.inputs_of("circles", 0)
    with pytest.raises(KeyError, match="ill"):
        verdicts.made([0], "digits", "ill", 64)
