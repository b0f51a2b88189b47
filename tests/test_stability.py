"""Indices that stay: by brute force, by formulas worked by hand, beside k-means; and of a whole model."""

import math

import numpy as np
import pytest
import torch
from helpers import brute_force, normal
from scipy.stats import binomtest, norm
from torch import nn

from vqnotes import data, models
from vqnotes.diagnosis import diagnose, index_stability, input_stability
from vqnotes.diagnosis.stability import NOISE, Moved, moved_by, stability_of, wilson
from vqnotes.kmeans import kmeans
from vqnotes.quantizers import VectorQuantizer


def test_the_interval_is_wilsons():
    for count, total in [(0, 1), (1, 1), (0, 30), (7, 30), (30, 30), (999, 1000)]:
        expected = binomtest(count, total).proportion_ci(0.95, method="wilson")
        assert wilson(count, total) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_two_codes_and_normal_latents_by_the_formula():
    """A standard normal number and itself with noise of s have different signs with a chance of arctan(s) / pi."""
    for noise in (0.05, 0.5, 2.0):
        found = index_stability(normal(20_000, 1), torch.tensor([[-1.0], [1.0]]), noise=noise)
        expected = 1 - math.atan(noise) / math.pi
        low, high = found.interval
        slack = 0.005  # the reach of the sample of latents, and half of another interval
        assert low - slack < expected < high + slack and low < found.share < high
        assert found.moved == pytest.approx(noise, rel=0.03) and found.latents == 8192


def test_figures_by_brute_force():
    z, codes = normal(300, 3).double() * torch.tensor([3.0, 1, 1]) + 7, normal(8, 3, seed=1) + 7
    after = moved_by(z, 0.4, torch.Generator().manual_seed(5))
    found = stability_of([Moved(z, after, codes, brute_force(z, codes), brute_force(after, codes))], seed=0)
    stay = (brute_force(z, codes) == brute_force(after, codes)).double().mean().item()
    assert found.share == pytest.approx(stay) and 0.5 < stay < 1 and found.latents == 300
    vectors = (after - z, z - z.mean(0), z - codes[brute_force(z, codes)])
    lengths = [one.square().sum(1).mean().sqrt() for one in vectors]
    assert found.moved == pytest.approx((lengths[0] / lengths[1]).item())
    assert found.moved_in_errors == pytest.approx((lengths[0] / lengths[2]).item())
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    half, others = order[:150], order[150:]  # k-means is fitted to the one, and judged on the other
    placed = kmeans(((z[half] - z.mean(0)) / lengths[1]).float(), 8, 0)[0].double() * lengths[1] + z.mean(0)
    reference = (brute_force(z[others], placed) == brute_force(after[others], placed)).double().mean().item()
    assert found.reference == pytest.approx(reference, abs=0.01)
    assert found.reference_interval[0] < found.reference < found.reference_interval[1]
    several = stability_of([Moved(z, after, codes, brute_force(z, codes), brute_force(after, codes))] * 2, seed=0)
    assert several.share == found.share and several.latents == 600 and several.moved == pytest.approx(found.moved)


def test_the_noise_has_the_length_that_is_asked_for_in_either_unit():
    z, codes = 1e-6 * normal(6000, 5) + 3e-5, 1e-6 * normal(32, 5, seed=1) + 3e-5
    for noise in (0.03, 0.7):
        assert index_stability(z, codes, noise=noise).moved == pytest.approx(noise, rel=0.03)
        found = index_stability(z, codes, noise=noise, relative_to="error")
        assert found.moved_in_errors == pytest.approx(noise, rel=0.03) and found.moved < noise
    large = index_stability(z * 1e6, codes * 1e6, seed=3)
    assert large.share == pytest.approx(index_stability(z, codes, seed=3).share, abs=1e-3)


def test_more_noise_moves_more_indices_and_the_seed_decides():
    z = normal(3000, 4)
    codes, _ = kmeans(z, 64)
    shares = [index_stability(z, codes, noise=noise).share for noise in (0.01, 0.1, 0.5)]
    assert shares[0] > shares[1] > shares[2]
    assert index_stability(z, codes) == index_stability(z.numpy(), codes.numpy())
    assert index_stability(z, codes, seed=1) != index_stability(z, codes)


def test_a_collapsed_codebook_is_the_most_stable_and_k_means_tells():
    z = normal(3000, 4)
    collapsed = index_stability(z, torch.cat([z[:1], 90 + normal(63, 4)]))
    assert collapsed.share == 1 and collapsed.reference < 0.9
    sound = index_stability(z, kmeans(z, 64)[0])
    assert sound.share == pytest.approx(sound.reference, abs=0.06)
    assert index_stability(z[:500], z[:64]).reference is None  # under 8 latents a code


@pytest.mark.parametrize(
    "change, message",
    [
        ({"noise": 0}, "noise must be above 0"),
        ({"noise": math.nan}, "noise must be above 0"),
        ({"relative_to": "codes"}, "'latents' or 'error', got 'codes'"),
        ({"latents": torch.ones(50, 3)}, "do not vary"),
        ({"latents": normal(4, 3), "codebook": normal(4, 3), "relative_to": "error"}, "each latent is a code"),
        ({"latents": normal(50, 2)}, "2 dimensions, codes have 3"),
        ({"latents": normal(50, 3) * math.nan}, "NaN"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        index_stability(**({"latents": normal(50, 3), "codebook": normal(4, 3)} | change))
    with pytest.raises(ValueError, match="no latents"):
        stability_of([], 0)


def test_the_report_has_a_row_of_it():
    modes = data.gaussian_modes(modes=16, per_mode=200, dim=8, seed=3).x
    found = diagnose(modes, kmeans(modes, 64)[0], inputs=modes).evidence["indices that stay"]
    alone = index_stability(modes, kmeans(modes, 64)[0], noise=NOISE)
    assert found.value == pytest.approx(alone.share, abs=0.03) and found.speaks_for == "a symptom only"
    assert found.reference == pytest.approx(alone.reference, abs=0.05)
    assert found.interval[0] < found.value < found.interval[1] and found.condition is None
    few = diagnose(modes[:200], kmeans(modes, 64)[0], inputs=modes[:200])
    assert "indices that stay" not in few.evidence  # k-means has fewer codes there


# ---------------------------------------------------------------- of a model


def linear_model(codes=8, dim=2):
    torch.manual_seed(0)
    return models.mlp_autoencoder(4, VectorQuantizer(codes, dim))


def test_a_model_by_brute_force():
    model, x = linear_model(), normal(700, 4) * 2 + 1
    (found,) = input_stability(model, x, noise=0.2, seed=4).values()
    random, spread = torch.Generator().manual_seed(4), (x - x.mean(0)).square().sum(1).mean().sqrt()
    moved = torch.cat([part + 0.2 * spread / 2 * torch.randn(part.shape, generator=random, dtype=torch.float64)
                       for part in x.split(256)]).float()  # fmt: skip
    with torch.no_grad():
        codes, here, there = model.quantizer.codes(), model.encode(x), model.encode(moved)
    stay = (brute_force(here, codes) == brute_force(there, codes)).double().mean().item()
    assert found.share == pytest.approx(stay, abs=2 / 700) and found.latents == 700 and 0.3 < stay < 1
    expected = (there - here).square().sum() / (here - here.mean(0)).square().sum()
    assert found.moved == pytest.approx(expected.sqrt().item(), rel=1e-3)
    assert found.reference is not None and found.reference_interval[0] < found.reference


def test_a_model_is_left_as_it_was():
    model, x = linear_model(), normal(300, 4)
    model.train()
    before, state = {name: one.clone() for name, one in model.state_dict().items()}, torch.random.get_rng_state()
    assert list(input_stability(model, (x, torch.zeros(300, dtype=torch.int64)))) == ["quantizer"]
    assert model.training and torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert not any(one._forward_hooks for one in model.modules())


def test_a_model_with_places_and_loaded_batches():
    crops = data.random_crops(data.photographs(), 24, 16, seed=0)
    torch.manual_seed(0)
    model = models.image_autoencoder(3, VectorQuantizer(16, 4), width=8)
    (found,) = input_stability(model, list(crops.split(8))).values()
    assert found.latents == 24 * 16 and 0 < found.share <= 1


@pytest.mark.parametrize(
    "given, message",
    [
        (torch.ones(40, 4), "do not vary"),
        (torch.ones(40, 4, dtype=torch.int64), "float type"),
        ([], "no data"),
        ([normal(4, 4), normal(4, 5)], "one shape"),
    ],
)
def test_bad_inputs_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        input_stability(linear_model(), given)
    with pytest.raises(ValueError, match="noise must be above 0"):
        input_stability(linear_model(), normal(40, 4), noise=-1)
    with pytest.raises(ValueError, match="no quantiser found"):
        input_stability(nn.Linear(4, 2), normal(40, 4))
    with pytest.raises(ValueError, match=r"cannot be called with a batch torch.float32 \(40, 5\)"):
        input_stability(linear_model(), normal(40, 5))
    idle = nn.Identity()
    idle.quantizer = VectorQuantizer(4, 2)
    with pytest.raises(ValueError, match="never called: .'quantizer'."):
        input_stability(idle, normal(40, 5))


def test_the_chance_to_stay_between_two_codes():
    """At a distance d from the border, noise of s leaves an index with a chance of Phi(d / s)."""
    codes = torch.tensor([[-1.0], [1.0]])
    z = torch.cat([torch.full((4000, 1), 0.3), torch.full((4000, 1), -0.3)])
    found = index_stability(z, codes, noise=1.0)  # the latents' spread is 0.3
    expected = norm.cdf(1.0)
    assert found.share == pytest.approx(expected, abs=0.02) and np.isfinite(found.moved_in_errors)
