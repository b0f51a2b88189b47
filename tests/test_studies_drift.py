"""The study of drift: the ratio against movements worked by hand, its settings, and how predictions are judged."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import normal

from vqnotes import data, metrics
from vqnotes.course import playground
from vqnotes.quantizers import VectorQuantizer
from vqnotes.studies import drift
from vqnotes.studies.codebook_size import device_name
from vqnotes.studies.drift import Spreading, Trailing, collapse_predicted, examine

SPEED = 0.3


class Moving:
    """A stub of a model whose latents go at constant speed along the first axis, and of its quantiser."""

    def __init__(self, codes):
        self.steps, self.quantizer = 0, VectorQuantizer(len(codes), 2)
        self.quantizer.place_codes(codes, torch.zeros(len(codes)))

    def encode(self, x):
        return x + SPEED * self.steps * torch.tensor([1.0, 0.0])


@pytest.fixture
def cloud():
    return data.LabelledData(normal(1500, 2), torch.zeros(1500, dtype=torch.int64))


def followed(cloud, codes, rule, follow, steps=15, placed=0):
    """What is found of latents that move at constant speed for so many steps."""
    watch, model = Trailing([cloud], placed, rule, follow, None), Moving(codes)
    for step in range(steps + 1):
        model.steps = step
        watch(step, [model])
    return {name: figure.item() for name, figure in watch.found.items()}


def width(cloud, size):
    centroids, _ = drift.kmeans(cloud.x[: drift.PLACED], size)
    return math.sqrt(metrics.quantization_error(cloud.x, centroids, relative=False))


def test_a_moving_average_trails_by_its_memory(cloud):
    found = followed(cloud, cloud.x[:8], "EMA", 0.5)
    assert found["width"] == pytest.approx(width(cloud, 8), rel=1e-5) and found["memory"] == 2
    assert found["largest step"] == pytest.approx(SPEED, rel=1e-4)
    assert found["ratio"] == pytest.approx(SPEED / 0.5 / found["width"], rel=1e-3)


@pytest.mark.parametrize("follow, least, most", [(0.1, 14 * (SPEED - 0.1), 15 * SPEED), (5.0, 2.5, 15.0)])
def test_a_learning_rate_too_slow_falls_behind_and_one_too_fast_leaves_its_latent(cloud, follow, least, most):
    found = followed(cloud, cloud.x[:8], "gradient", follow)
    assert least < found["ratio"] * found["width"] < most
    assert found["memory"] == pytest.approx(found["width"] / follow / math.sqrt(2), rel=1e-5)


def test_a_learning_rate_near_the_speed_keeps_up(cloud):
    found = followed(cloud, cloud.x[:8], "gradient", 0.5)
    assert found["ratio"] * found["width"] < 3 * SPEED


def test_more_codes_have_narrower_regions(cloud):
    few, many = (followed(cloud, cloud.x[:size], "EMA", 0.1) for size in (4, 64))
    assert many["ratio"] > 3 * few["ratio"]


def test_what_moves_before_the_codes_are_placed_does_not_count(cloud):
    late, never = (followed(cloud, cloud.x[:8], "EMA", 0.1, placed=placed) for placed in (12, 15))
    assert late["ratio"] == pytest.approx(SPEED * (1 + 0.9 + 0.81) / late["width"], rel=1e-3)
    assert never["ratio"] == 0


def test_codes_in_the_wrong_place_count_as_movement(cloud):
    far = cloud.x[:8] * 0.01 + torch.tensor([50.0, 0.0])
    found = followed(cloud, far, "EMA", 0.5, steps=0)
    assert found["ratio"] == 0 and found["counting start"] == pytest.approx(50 / found["width"], rel=0.05)
    fits, _ = drift.kmeans(cloud.x, 8)
    assert followed(cloud, fits, "EMA", 0.5, steps=0)["counting start"] == pytest.approx(1, abs=0.15)


def test_the_early_figures_are_those_of_the_first_steps(cloud, monkeypatch):
    monkeypatch.setattr(drift, "_in_effect", lambda one, model: 0.25)
    watch, model = Trailing([cloud], 3, "EMA", 0.1, None), Moving(cloud.x[:8])
    for step in range(3 + drift.EARLY + 20):
        model.steps = step
        watch(step, [model])
    share = 1 - 0.9**drift.EARLY
    assert watch.found["early"].item() == pytest.approx(10 * SPEED * share / watch.found["width"].item(), rel=1e-3)
    assert watch.found["early in effect"].item() == 0.25 and watch.found["ratio"] > watch.found["early"]


def test_the_synthetic_drift_is_that_of_the_playground():
    given = playground.plane("drift", codebook_size=8)
    training = playground.Training(given, "EMA", 0.1)
    training.advance(7, 0.03)
    assert training.spread == pytest.approx(1 - (1 - drift.FIRST) * 0.97**7)
    encoder = Spreading()
    assert torch.equal(encoder(torch.ones(3, 2)), torch.full((3, 2), drift.FIRST))


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(drift, "STEPS", 40)


@pytest.mark.parametrize("moved", drift.MOVED)
@pytest.mark.parametrize("rule, follow", [("EMA", 0.1), ("gradient", 0.05)])
def test_a_setting_gives_a_row_a_seed(moved, rule, follow, short):
    rows = pd.DataFrame(examine(moved, 0.01, rule, follow, 16, "untrained k-means", seeds=(3, 4)))
    assert rows["seed"].tolist() == [3, 4] and set(rows["moved"]) == {moved}
    assert set(rows["device"]) == {device_name(torch.device("cpu"))}
    numbers = rows.drop(columns=["moved", "rule", "start", "device"])
    assert np.isfinite(numbers).all(axis=None) and (numbers > 0).all(axis=None)
    assert (rows["early"] <= rows["ratio"]).all() and (rows[["usage", "in effect", "modes"]] <= 1).all(axis=None)


def test_the_spread_of_synthetic_latents_goes_as_stated(short):
    fast, slow = (
        pd.DataFrame(examine("synthetic", speed, "EMA", 0.1, 16, "untrained k-means", seeds=[5]))
        for speed in (0.1, 0.001)
    )
    assert (fast["largest step"] > 50 * slow["largest step"]).all() and (fast["ratio"] > 5 * slow["ratio"]).all()


def test_after_a_warm_up_the_movement_is_over(short):
    now, later = (
        pd.DataFrame(examine("synthetic", 0.3, "EMA", 0.01, 16, start, seeds=[5]))
        for start in ("untrained k-means", "warm-up")
    )
    assert later["ratio"].item() < 0.1 < 5 < now["ratio"].item()
    assert later["in effect"].item() > now["in effect"].item()


@pytest.mark.parametrize("wrong", [{"moved": "decoder"}, {"rule": "Lloyd"}, {"start": "k-means"}])
def test_unknown_names_are_refused(wrong):
    setting = {"moved": "synthetic", "speed": 0.1, "rule": "EMA", "follow": 0.1, "K": 8, "start": "warm-up"}
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        examine(**setting | wrong)


def table(scale=1.0):
    """Runs of two movers and eight seeds that collapse where the ratio is above 1, of the second above `scale`."""
    ratios = np.geomspace(0.05, 20, 40)
    return pd.concat(
        pd.DataFrame({"moved": mover, "seed": seed, "ratio": ratios, "in effect": np.where(ratios > at, 0.2, 0.9)})
        for mover, at in (("a", 1.0), ("b", scale))
        for seed in range(8)
    ).reset_index(drop=True)


def test_a_threshold_is_judged_on_what_it_does_not_know():
    found = collapse_predicted(table(), "ratio").set_index("moved")
    assert (found["right"] == 1).all() and found["threshold"].between(0.8, 1.2).all()
    assert (found["constant"] == found["constant"].iloc[0]).all() and found["constant"].iloc[0] < 0.6
    apart = collapse_predicted(table(scale=5.0), "ratio").set_index("moved")
    assert (apart["right"] < 0.9).all() and apart.loc["a", "threshold"] > 4 and apart.loc["b", "threshold"] < 1.2


def test_it_may_collapse_below_a_threshold():
    runs = table()
    runs["spared"] = 1 / runs["ratio"]
    assert (collapse_predicted(runs, "spared", above=False)["right"] == 1).all()
    assert (collapse_predicted(runs, "spared")["right"] < 0.7).all()


def test_seeds_that_were_fitted_are_not_judged():
    runs = table()
    runs.loc[runs["seed"] >= 4, "in effect"] = 1.1 - runs["in effect"]  # the other half does the reverse
    assert (collapse_predicted(runs, "ratio")["right"] == 0).all()


@pytest.mark.parametrize("keep", ["seed < 3", "moved == 'a'"])
def test_a_table_that_cannot_be_split_is_refused(keep):
    with pytest.raises(ValueError, match="four seeds and two movers"):
        collapse_predicted(table().query(keep), "ratio")
    with pytest.raises(ValueError, match="speed"):
        collapse_predicted(table(), "speed")


def test_the_table_has_every_setting_with_every_seed():
    stored, settings = drift.stored_table(), drift.settings()
    names = list(settings[0])
    runs = stored.groupby(names)["seed"].agg(list)
    assert set(runs.index) == {tuple(one[name] for name in names) for one in settings}
    assert all(sorted(seeds) == list(drift.SEEDS) for seeds in runs) and stored["device"].unique().tolist() == ["CPU"]


def test_a_setting_of_the_table_comes_out_again():
    stored = drift.stored_table().query("moved == 'synthetic' and K == 16 and follow == 0.1 and speed == 0.1")
    stored = stored[stored["start"] == "untrained k-means"].set_index("seed")
    again = pd.DataFrame(examine("synthetic", 0.1, "EMA", 0.1, 16, "untrained k-means", seeds=drift.SEEDS[:3]))
    for name in ("width", "ratio", "early"):
        assert again[name].tolist() == pytest.approx(stored.loc[again["seed"], name].tolist(), rel=0.01), name
