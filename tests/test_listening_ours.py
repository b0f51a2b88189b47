"""Our quantisers in a model, sick and healthy: what the diagnosis hears where choice or codes are not plain."""

import pytest
import torch
from helpers import normal
from torch import nn

from vqnotes import data
from vqnotes.diagnosis import diagnose_model
from vqnotes.diagnosis.advice import ADVISED
from vqnotes.diagnosis.observed import Kind
from vqnotes.models import VQAutoencoder
from vqnotes.remedies import (
    BSQ,
    CosineCodes,
    DecorrelatedCodes,
    GumbelVQ,
    IndexBackpropagation,
    KernelLoss,
    LevelDropout,
    ResidualVQ,
    SimVQ,
    StochasticVQ,
)


class CosineIndex(CosineCodes, IndexBackpropagation):
    pass


class DimVQ(DecorrelatedCodes, SimVQ):
    pass


CODES = {  # quantisers of 64 codes, with their kind
    "stochastic": (lambda: StochasticVQ(64, 16), Kind.LEARNT),
    "stochastic, EMA": (lambda: StochasticVQ(64, 16, update="ema"), Kind.EMA),
    "Gumbel": (lambda: GumbelVQ(64, 16), Kind.LEARNT),
    "index backpropagation": (lambda: CosineIndex(64, 16), Kind.LEARNT),
    "kernel": (lambda: KernelLoss(64, 16), Kind.LEARNT),
    "DimVQ": (lambda: DimVQ(64, 16, bias=True), Kind.COMPUTED),
}


@pytest.fixture(scope="module")
def modes():
    return data.gaussian_modes(modes=32, per_mode=150, dim=16, seed=7).x


def around(quantizer):
    return VQAutoencoder(nn.Identity(), quantizer, nn.Identity())


@pytest.mark.parametrize("name", CODES)
def test_codes_are_heard_sick_and_healthy(name, modes):
    build, kind = CODES[name]
    torch.manual_seed(0)
    quantizer = build()
    quantizer.init_codes("kmeans", modes)
    model = around(quantizer).train()
    assert not diagnose_model(model, modes)["quantizer"].verdict.endswith("collapse")
    assert quantizer.training  # it was heard in evaluation, where nothing is drawn
    lost = normal(64, 16) * 0.01 + (0 if name == "index backpropagation" else 30)
    quantizer.place_codes(lost + torch.eye(16)[0], torch.zeros(64))
    found = diagnose_model(model, modes)["quantizer"]
    assert found.verdict == "token collapse" and found.advice[0] in ADVISED[kind]["token collapse"]


def test_the_grid_on_the_sphere_is_heard_as_a_grid():
    torch.manual_seed(0)
    healthy = normal(4000, 6)
    for latents, sick in ((healthy, False), (healthy * 0.05 + 1, True)):
        found = diagnose_model(around(BSQ(6)), latents)["quantizer"]
        assert (found.verdict == "token collapse") == sick
        if sick:
            assert found.advice[0] in ADVISED[Kind.GRID]["token collapse"]


def test_levels_that_are_left_out_in_training_are_heard_all(modes):
    torch.manual_seed(0)
    quantizer, plain = LevelDropout((16, 16), 16), ResidualVQ((16, 16), 16)
    quantizer.init_codes("kmeans", modes)
    plain.load_state_dict(quantizer.state_dict())
    found, expected = (diagnose_model(around(one).train(), modes) for one in (quantizer, plain))
    assert list(found) == ["quantizer", "quantizer.stages.0", "quantizer.stages.1"]
    assert [str(one) for one in found.values()] == [str(one) for one in expected.values()]
