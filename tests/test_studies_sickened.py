"""Small models that are made ill: what their names say, what was done to confirm it, and what is refused."""

import re

import pandas as pd
import pytest
import torch

from vqnotes.studies import sickened
from vqnotes.studies.sickened import CASES, confirmed


def test_an_intervention_confirms_or_sets_aside():
    sound = {"same codes": 0.1, "new codes": 0.1, "floor": 0.1}
    for label, outcome, holds in [
        ("healthy", sound, True),
        ("healthy", sound | {"same codes": 0.2}, False),
        ("healthy", sound | {"new codes": 0.12}, False),  # new codes are worse: so were these
        ("healthy", dict.fromkeys(sound, 0.3), False),  # nothing can do better: a rate limit
        ("healthy", {"same codes": 0.3, "new codes": 0.3, "floor": 0.1}, False),
        ("healthy", sound | {"same codes": 0.104}, True),
        ("healthy", sound | {"same codes": 0.108}, False),  # neither
        ("token collapse", sound | {"same codes": 0.108}, False),
        ("token collapse", sound | {"same codes": 0.112}, True),
        ("token collapse", sound, False),
        ("no such label", sound, False),
    ]:
        row = pd.DataFrame([{"label": label} | outcome])
        assert confirmed(row).tolist() == [holds], (label, outcome)


def test_cases_are_what_their_names_say():
    starts = {"U(±1/K)": "uniform", "N(0, 1)": "normal"}
    for name, case in CASES.items():
        assert (case.options.get("update") == "ema") == ("EMA" in re.split(r"\W+", name)), name
        assert case.init == next((init for start, init in starts.items() if start in name), "kmeans"), name
        assert (case.warmup == 0) == (case.label == "token collapse" and "warm-up" not in name), name


def test_only_the_decoder_learns_on_and_new_codes_help_a_collapsed_codebook():
    torch.set_num_threads(1)
    entered = sickened.made([0], "U(±1/K)", 16, steps=40)
    ((one, model),) = entered
    kept, renewed = (sickened.with_decoders_trained_on(entered, "modes", init, 20)[0] for init in (None, "kmeans"))
    for copied, same_codes in ((kept[1], True), (renewed[1], False)):
        before, after = model.state_dict(), copied.state_dict()
        same = {name.split(".")[0]: True for name in before}
        for name, value in before.items():
            same[name.split(".")[0]] &= torch.equal(value, after[name])
        assert same["encoder"] and not same["decoder"] and copied is not model
        assert torch.equal(model.quantizer.codes(), copied.quantizer.codes()) == same_codes
    errors = [sickened.decoders_trained_on(entered, "modes", init, 20)[0] for init in (None, "kmeans")]
    assert errors[1] < errors[0] and 0 < sickened.floor(one.x, 16) < errors[1]


def test_an_unknown_family_or_case_is_refused():
    with pytest.raises(ValueError, match="family must be one of .* got 'circles'"):
        sickened.inputs_of("circles", 0)
    with pytest.raises(KeyError, match="ill"):
        sickened.made([0], "ill", 64)
