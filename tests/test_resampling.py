"""Resamples: the first is what was measured, units stay together, and the spread is that of fresh samples."""

import math

import numpy as np
import pytest
import torch
from helpers import normal

from vqnotes.diagnosis.measures import Measures, measure
from vqnotes.diagnosis.observed import observe
from vqnotes.diagnosis.resampling import DRAWS, Resampled, perplexities, spread_of_share, units_of
from vqnotes.diagnosis.rules import confidence
from vqnotes.kmeans import kmeans
from vqnotes.metrics import perplexity


def test_units_are_inputs_with_all_their_latents():
    rows = torch.arange(40 * 6)
    assert units_of(rows, (40, 2, 3)).tolist() == [row // 6 for row in range(240)]
    assert units_of(rows, (31, 2, 3)).tolist() == rows.tolist()  # with fewer than 32 inputs, latents
    assert units_of(rows, (240,)).tolist() == rows.tolist()


def test_the_first_is_the_mean_and_a_unit_has_one_weight_everywhere():
    units, numbers = torch.arange(500), normal(500).double()
    whole = Resampled(units, 3, {"one": numbers, "pair": torch.stack([numbers, numbers**2], dim=1)}).means
    assert whole["one"].shape == (1 + DRAWS,) and whole["pair"].shape == (1 + DRAWS, 2)
    assert whole["one"][0] == pytest.approx(numbers.mean().item()) and np.allclose(whole["pair"][:, 0], whole["one"])
    again = Resampled(units.flip(0), 3, {"one": numbers.flip(0)}).means["one"]
    other = Resampled(units, 4, {"one": numbers}).means["one"]
    assert np.allclose(again, whole["one"]) and not np.allclose(other[1:], whole["one"][1:])


def test_errors():
    with pytest.raises(ValueError, match=r"3 units, \[2\] rows"):
        Resampled(torch.arange(3), 0, {"one": torch.zeros(2)})
    with pytest.raises(ValueError, match="0 units"):
        Resampled(torch.arange(0), 0, {})


@pytest.mark.parametrize("count", [100, 5000])
def test_the_spread_is_the_standard_error(count):
    numbers = normal(count).double().exp()
    spread = Resampled(torch.arange(count), 0, {"one": numbers}).means["one"][1:].std()
    assert spread == pytest.approx(numbers.std().item() / math.sqrt(count), rel=0.2)


def test_latents_of_one_input_do_not_count_as_many():
    """Sixteen equal latents an input tell no more than one."""
    numbers = normal(400).double().repeat_interleave(16)
    units = torch.arange(400).repeat_interleave(16)
    together = Resampled(units, 0, {"one": numbers}).means["one"][1:].std()
    apart = Resampled(torch.arange(6400), 0, {"one": numbers}).means["one"][1:].std()
    assert together == pytest.approx(4 * apart, rel=0.25)


def test_perplexities_are_ratios_around_one():
    index = torch.randint(32, (2000,), generator=torch.Generator().manual_seed(0)) ** 2 % 32
    found = perplexities(torch.arange(2000), index, 32, 0)
    assert found.shape == (DRAWS,) and found.mean() == pytest.approx(1)
    fresh = [perplexity(index[torch.randint(2000, (2000,))], 32) for _ in range(200)]
    assert found.std() == pytest.approx(np.std(fresh) / np.mean(fresh), rel=0.3)


def test_a_share_spreads_as_a_binomial_does():
    found = spread_of_share(0.3, 400, 0)
    assert found[0] == 0.3 and len(found) == 1 + DRAWS
    assert found[1:].std() == pytest.approx(math.sqrt(0.3 * 0.7 / 400), rel=0.2)


@pytest.mark.parametrize("places", [1, 16])
def test_intervals_hold_what_other_samples_show(places):
    """Each sample of 2,048 latents, of 16 alike in an input or of one, against the mean of twenty."""
    turn = normal(8, 8, seed=1)

    def drawn(seed):
        base = normal(2048 // places, 8, seed=seed).repeat_interleave(places, 0)
        return ((base + (places > 1) * 0.3 * normal(2048, 8, seed=1000 + seed)) @ turn).reshape(-1, places, 8)

    codes = kmeans(drawn(0).flatten(0, 1), 32)[0]
    found = [measure(observe(z, codes, inputs=z, places=(1,), channel_axis=-1)) for z in map(drawn, range(1, 21))]
    for name in ("error", "best", "gap", "codes_loss", "inputs_loss", "own_loss", "dimensions", "perplexity"):
        values, ends = np.array([getattr(one, name) for one in found]), [one.interval(name) for one in found]
        held = np.mean([low <= values.mean() <= high for low, high in ends])
        assert held >= 0.8, (name, held)
        widths = np.array([high - low for low, high in ends]) / (2 * 1.96)
        assert 0.6 < widths.mean() / values.std(ddof=1) < 2.2, name


def test_confidence_is_the_share_of_resamples_with_the_same_verdict():
    m = Measures(100, 4, 100, 1.0, 4, 1.0, 1.0, 4.0, draws={"gap": np.array([1.0, 2.0, 3.0, 4.0])})
    assert confidence(m, "over two", lambda one: ("over two" if one.gap > 2 else "no", "")) == 0.5
    assert confidence(Measures(100, 4, 100, 1.0, 4, 1.0, 1.0, 4.0), "any") is None
    assert m.interval("gap") == (1.0, 4.0) and m.interval("error") is None and m.resample(2).gap == 3.0
