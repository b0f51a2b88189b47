"""What is read off latents: an encoder that can be inverted is not convicted, one that lost something is."""

import numpy as np
import pytest
import torch
from helpers import normal
from sklearn.linear_model import RidgeCV

from vqnotes import data
from vqnotes.diagnosis import diagnose
from vqnotes.diagnosis.measures import Measures, measure
from vqnotes.diagnosis.observed import observe
from vqnotes.diagnosis.readers import by_network, by_regression, left_over
from vqnotes.diagnosis.rules import Answer, decide, encoder_at_fault, inputs_lost, labels_lost
from vqnotes.kmeans import kmeans


def coupled(x, strength, layers):
    """Coupling layers: each adds to one half what depends on the other, so that it can be taken off again."""
    first, second = x.chunk(2, dim=1)
    for layer in range(layers):
        shift = (first @ normal(first.shape[1], 8, seed=10 + layer)).abs() @ normal(
            8, first.shape[1], seed=20 + layer
        )
        first, second = second + strength * shift, first
    return torch.cat([first, second], dim=1)


@pytest.fixture(scope="module")
def clouds():
    """Flat clouds around sixteen centres, in eight dimensions."""
    return normal(16, 8, seed=5).repeat(400, 1) + 0.2 * normal(6400, 2) @ normal(2, 8, seed=1)


def test_an_invertible_encoder_is_cleared_by_a_network(clouds):
    latents = coupled(clouds, 0.5, 3)
    f = measure(observe(latents, kmeans(latents, 256)[0], inputs=clouds))
    assert f.reader == "a network" and decide(f)[0] == "healthy"
    order = torch.randperm(6400, generator=torch.Generator().manual_seed(0))
    x, near = clouds[order], ((latents - latents.mean(0)) / latents.var(0).sum().sqrt())[order, None]
    weaker = left_over(x[3200:], by_regression(near, x, 0))
    assert weaker > 2 * f.inputs_loss and f.encoder_loss < weaker / 2  # who would have convicted it


def test_the_network_reads_what_is_not_linear_and_only_from_the_first_half():
    seen = normal(2000, 1, 2)
    x = torch.cat([seen[:, 0].abs(), normal(2000, 1, seed=1)], dim=1)
    guess = x.mean(0).expand(1000, 3)
    random = torch.get_rng_state()
    read = by_network(seen, x, guess, seed=0)
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(read, by_network(seen, x, guess, seed=0))
    assert left_over(x[1000:, :2], read[:, :2]) < 0.02 and 0.9 < left_over(x[1000:, 2:], read[:, 2:]) < 1.2
    changed = x.clone()
    changed[1000:] += 0.3  # the mean of all is known, and nothing else of the second half
    assert left_over(x[1000:, :2], by_network(seen, changed, guess, seed=0)[:, :2]) < 0.5
    with torch.inference_mode():
        assert torch.allclose(by_network(seen.clone(), x.clone(), guess.clone(), seed=0), read)


def test_the_network_is_heard_only_where_an_encoder_would_be_convicted(clouds):
    assert measure(observe(clouds, kmeans(clouds, 64)[0], inputs=clouds)).reader != "a network"
    assert measure(observe(clouds[:, :1], kmeans(clouds[:, :1], 64)[0], inputs=clouds)).reader is not None
    found = diagnose(clouds[:, :1], kmeans(clouds[:, :1], 64)[0], inputs=clouds)
    assert found.verdict == "embedding collapse"
    assert any("lost by the encoder is what a" in note and "leaves of the inputs" in note for note in found.notes)


def test_the_regression_reads_what_bends_slowly_and_what_bends_fast():
    """Without its far kernel it leaves .4 of the first, without its close one .9 of the second."""
    slow, fast = normal(3000, 1, 6), torch.rand(3000, 1, 1, generator=torch.Generator().manual_seed(0))
    for seen, x in ((slow, slow[:, 0].norm(dim=1, keepdim=True)), (fast, torch.sin(40 * fast[:, 0]))):
        assert left_over(x[1500:], by_regression(seen, x, 0)) < 0.02


# ---------------------------------------------------------------- what the model itself tells


def test_an_encoder_has_not_lost_what_the_model_rebuilds(clouds):
    latents = clouds[:, :1]
    codes = kmeans(latents, 256)[0]
    rebuilt = clouds + 0.03 * normal(6400, 8, seed=9)
    f = measure(observe(latents, codes, inputs=clouds, reconstruction=rebuilt))
    assert f.reader == "the model's decoder" and encoder_at_fault(f) is Answer.NO
    share = (0.03**2 * 8) / clouds.var(0).sum().item()
    assert f.encoder_loss == f.model_loss == pytest.approx(share, rel=0.1)
    assert encoder_at_fault(measure(observe(latents, codes, inputs=clouds))) is Answer.YES
    poor = measure(observe(latents, codes, inputs=clouds, reconstruction=torch.zeros_like(clouds)))
    assert poor.model_loss > 0.9 and poor.encoder_loss < poor.model_loss
    found = diagnose(latents, codes, inputs=clouds, reconstruction=rebuilt)
    assert any("the model as a whole leaves 0.00" in note for note in found.notes)


def test_a_reconstruction_is_cut_as_the_inputs_are():
    x = normal(300, 2, 12)
    back = x.clone()
    back[..., :3] = 0  # the first of four places is not rebuilt
    f = measure(observe(normal(300, 4, 3), normal(8, 3), inputs=x, reconstruction=back))
    assert f.model_loss == pytest.approx(0.25, abs=0.05)


# ---------------------------------------------------------------- labels


def with_labels(read_off, inputs=1.0, chance=0.1):
    usual = {
        "latents": 9999,
        "codes": 64,
        "sample": 9999,
        "spread": 1.0,
        "distinct": 64,
        "usage": 1.0,
        "ceiling": 1.0,
    }
    at_codes = {"perplexity": 60.0, "error": 0.1, "best": 0.1, "best_low": 0.1, "gap": 1.0, "gap_high": 1.0}
    at_labels = {"separability": read_off, "separability_inputs": inputs, "chance": chance}
    return Measures(**usual, **at_codes, **at_labels)


@pytest.mark.parametrize(
    "read_off, inputs, expected",
    [
        (0.74, 1.0, Answer.YES),  # (.74 - .1) / (1 - .1) = .71 of what the inputs give, above chance
        (0.40, 1.0, Answer.YES),
        (0.80, 1.0, Answer.NO),  # .78
        (0.60, 0.7, Answer.NO),  # .83
        (0.50, 0.7, Answer.YES),  # .67
        (0.95, None, Answer.NO),  # alone, labels clear an encoder from nine tenths on: .94
        (0.88, None, Answer.UNKNOWN),  # .87
        (0.50, None, Answer.UNKNOWN),  # and convict none
        (0.15, 0.18, Answer.UNKNOWN),  # nobody reads them
    ],
)
def test_how_well_labels_must_be_read(read_off, inputs, expected):
    f = with_labels(read_off, inputs)
    assert labels_lost(f) is expected and encoder_at_fault(f) is expected and inputs_lost(f) is Answer.UNKNOWN
    verdict = {Answer.YES: "embedding collapse", Answer.NO: "healthy", Answer.UNKNOWN: "cannot tell"}[expected]
    assert decide(f)[0] == verdict


def test_an_encoder_that_confuses_a_third_of_the_classes_is_convicted_by_labels_alone():
    x, y = data.gaussian_modes(modes=12, per_mode=100, dim=8, seed=3)[:2]
    confused = torch.where(y < 4, 0, y)  # four classes of twelve coincide
    latents = 5 * normal(12, 4, seed=1)[confused] + 0.05 * normal(1200, 4, seed=2)
    codes = kmeans(latents, 16)[0]
    f = measure(observe(latents, codes, labels=y, inputs=x))
    assert f.separability == pytest.approx(0.75, abs=0.05) and f.separability_inputs > 0.97
    assert labels_lost(f) is Answer.YES
    assert measure(observe(latents, codes, labels=y)).separability == f.separability
    assert diagnose(latents, codes, labels=y).verdict == "cannot tell"


def test_a_regression_guesses_in_the_inputs_own_type(monkeypatch):
    """Older versions of scikit-learn answer in float64, which a network's float32 cannot be joined with."""
    predict = RidgeCV.predict
    monkeypatch.setattr(RidgeCV, "predict", lambda *arguments: predict(*arguments).astype(np.float64))
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    guess = by_regression(x[:, None, :2], x, seed=0)
    assert guess.dtype == x.dtype and by_network(x[:, None, :2], x, guess, seed=0).shape == guess.shape
