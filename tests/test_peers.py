"""Options that give what the authors' code or vector-quantize-pytorch does, beside them or their formulas."""

import inspect
import re

import numpy as np
import pytest
import torch
import vector_quantize_pytorch as theirs
from helpers import normal
from pytest import approx
from test_combinations import EFFECTS, made
from test_remedies import LATENTS, LEARNT, compare, library, same_codes
from torch import nn

from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import (
    FSQ,
    LFQ,
    DiVeQ,
    EntropyLoss,
    LearntAffineCodes,
    LevelDropout,
    ProductVQ,
    ResidualVQ,
    RotationTrick,
    SimVQ,
    SpreadLatents,
)
from vqnotes.remedies.entropy import entropy_gap


class TurnedSimVQ(RotationTrick, SimVQ):
    pass


# ---------------------------------------------------------------- beside vector-quantize-pytorch


def with_the_same_noise(forward):
    def seeded(latents):
        torch.manual_seed(0)
        return forward(latents)

    return seeded


@pytest.mark.parametrize("variance", [5e-3, 1e-6])
def test_diveq_agrees_noise_included(variance):
    ours = DiVeQ(32, 8, variance=variance).train()
    options = {"directional_reparam": True, "directional_reparam_variance": variance, "threshold_ema_dead_code": 1e-9}
    other = same_codes(ours, library(**options, **LEARNT))
    pair = [ours.codebook], [other._codebook.embed]
    loss, their_loss = compare(with_the_same_noise(ours), with_the_same_noise(other), LATENTS, *pair)
    assert loss == their_loss == 0


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind, turned", [(SimVQ, False), (TurnedSimVQ, True)])
def test_simvq_started_as_a_linear_layer_agrees(kind, turned, bias):
    torch.manual_seed(0)
    ours = kind(32, 8, bias=bias, start="linear")
    other = theirs.SimVQ(8, 32, rotation_trick=turned, codebook_transform=nn.Linear(8, 8, bias=bias))
    own, linear = [one for one in (ours.transform, ours.offset) if one is not None], other.code_transform
    with torch.no_grad():
        other.frozen_codebook.copy_(ours.codebook)
        for one, value in zip(linear.parameters(), own, strict=True):
            one.copy_(value)
    loss, their_loss = compare(ours, other, LATENTS, own, list(linear.parameters()))
    assert loss == approx(their_loss, rel=1e-5)
    for parameter in own:  # as nn.Linear starts, U(-1/sqrt(8), 1/sqrt(8))
        assert 0.8 * 8**-0.5 < parameter.abs().max() <= 8**-0.5
    ours.init_codes("data", LATENTS)
    assert all((LATENTS.reshape(-1, 8) - code).norm(dim=1).min() < 1e-5 for code in ours.codes())


def test_rotation_on_moving_averages_agrees():
    ours = RotationTrick(32, 8, update="ema", beta=1.0, decay=0.8)
    ours.init_codes("kmeans", LATENTS)
    other = same_codes(ours, library(decay=0.8, eps=1e-9, rotation_trick=True))
    other._codebook.cluster_size.copy_(100 * ours.share)
    other._codebook.embed_avg.copy_(100 * ours.share[:, None] * ours.codebook)
    for seed in range(3):
        loss, their_loss = compare(ours, other, normal(2, 50, 8, seed=seed))
        assert loss == approx(their_loss, rel=1e-5) and torch.allclose(ours.codes(), other.codebook, atol=1e-5)


# ---------------------------------------------------------------- beside the formulas of the authors' code


def test_the_authors_loss_of_simvq_is_a_fourth_of_ours_with_beta_4():
    quantizer, latents = SimVQ(32, 8, beta=4.0), normal(50, 8)
    code = quantizer.codes()[quantizer(latents).index]
    parts = [(latents.detach() - code).square().mean(), (latents - code.detach()).square().mean()]
    assert quantizer(latents).loss.item() / 4 == approx((0.25 * parts[0] + parts[1]).item(), rel=1e-5)


def test_learnt_affine_codes_are_scaled_and_shifted_by_what_is_learnt():
    quantizer = LearntAffineCodes(16, 3, affine_lr=10.0)
    codes = quantizer.codebook.detach().clone()
    assert torch.equal(quantizer.codes(), codes)  # s = b = 0
    with torch.no_grad():
        quantizer.scale.copy_(torch.tensor([0.1, 0.0, -0.3]))
        quantizer.shift.copy_(torch.tensor([0.0, 0.5, 0.2]))
    expected = codes * torch.tensor([2.0, 1.0, -2.0]) + torch.tensor([0.0, 5.0, 2.0])
    assert torch.allclose(quantizer.codes(), expected)
    quantizer(normal(1, 3)).loss.backward()
    assert (quantizer.shift.grad != 0).all() and (quantizer.codebook.grad != 0).any(1).sum() == 1
    quantizer.init_codes("data", normal(50, 3))
    assert torch.equal(quantizer.codes(), quantizer.codebook)


def in_the_paper(z, levels):
    """FSQ's appendix A.1, in NumPy: the digits."""
    levels = np.array(levels)
    half, offset = (levels - 1) * (1 - 1e-3) / 2, np.where(levels % 2 == 1, 0.0, 0.5)
    return np.round(np.tanh(z + np.tan(offset / half)) * half - offset) + levels // 2


@pytest.mark.parametrize("levels", [(8, 5, 5), (4, 4, 4), (3, 7)])
def test_fsq_with_tan_is_that_of_the_paper(levels):
    dim = len(levels)
    quantizer, usual = (FSQ(levels, bound=bound) for bound in ("tan", "atanh"))
    z = 2 * normal(5000, dim, dtype=torch.float64)
    digits = in_the_paper(z.numpy(), levels)
    index = quantizer(z).index
    assert index.tolist() == (digits * np.cumprod([1, *levels[:-1]])).sum(1).astype(int).tolist()
    half, far = torch.tensor(levels) // 2, torch.tensor([[-30.0] * dim, [30.0] * dim])
    for one, reach, moved in ((quantizer, 0.999, 0.001), (usual, 1.001, 1e-6)):
        assert (one.prepare(torch.zeros(1, dim)) * half).abs().max() <= moved
        lowest, highest = one.prepare(far) * half
        assert torch.allclose(highest - lowest, reach * (torch.tensor(levels) - 1.0))


def test_the_parts_of_spreading_have_weights_of_their_own():
    latents, codes = 0.1 * normal(50, 4) @ normal(4, 4, seed=1), torch.zeros(50, 4)
    losses = {
        (weight, part): SpreadLatents(8, 4, beta=0, spread_weight=weight, variance_weight=part).loss(latents, codes)
        for weight, part in ((0, 1), (1, 0), (1, 25), (2, 25))
    }
    covariance = torch.cov(latents.T)
    lacking = (1 - (covariance.diagonal() + 1e-4).sqrt()).relu().mean()
    shared = (covariance.square().sum() - covariance.diagonal().square().sum()) / 4
    assert (losses[1, 0] - losses[0, 1]).item() == approx(shared.item(), rel=1e-3)
    assert (losses[1, 25] - losses[1, 0]).item() == approx(25 * lacking.item(), rel=1e-4)
    assert (losses[2, 25] - losses[0, 1]).item() == approx(2 * (25 * lacking + shared).item(), rel=1e-4)


def test_the_temperature_of_entropy_can_be_absolute():
    quantizer, latents = EntropyLoss(8, 4, entropy_weight=1.0, temperature=0.3, relative=False), normal(50, 4)
    chosen = quantizer.codes()[quantizer.assign(latents, quantizer.codes())]
    scores = -torch.cdist(latents, quantizer.codes()).square() / 0.3
    extra = quantizer.loss(latents, chosen) - VectorQuantizer.loss(quantizer, latents, chosen)
    assert extra.item() == approx(entropy_gap(scores).item(), rel=1e-4)


# ---------------------------------------------------------------- options: documented, accepted, used


KINDS = [VectorQuantizer, *EFFECTS, ResidualVQ, LevelDropout, ProductVQ]
OTHERS = {  # every option with another value than the default
    "beta": 0.7,
    "bias": True,
    "start": "linear",
    "affine_decay": 0.5,
    "affine_lr": 1.0,
    "variance": 0.1,
    "orthogonal_weight": 1.0,
    "entropy_weight": 0.7,
    "temperature": 3.0,
    "relative": False,
    "spread_weight": 3.0,
    "variance_weight": 25.0,
    "bound": "tan",
    "inverse_temperature": 3.0,
    "decorrelation_weight": 1.0,
    "kernel_weight": 0.5,
    "kernel_temperature": 3.0,
    "half_life": 1,
    "sampling_temperature": 0.01,
    "softness": 3.0,
    "kl_weight": 1.0,
    "levels": (8, 2 * 4),
    "update": "ema",
}


def own_options(kind):
    parameters = inspect.signature(kind.__init__).parameters if "__init__" in vars(kind) else {}
    return [name for name, one in parameters.items() if one.kind == one.KEYWORD_ONLY]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_option_is_documented(kind):
    text = inspect.getdoc(kind)
    for name in own_options(kind):
        assert re.search(rf"\b{name}\b", text), name


OURS = [kind for kind in KINDS if kind.__module__.startswith("vqnotes.")]
USED = [(kind, name) for kind in OURS for name in own_options(kind) if name in OTHERS and name != "levels"]


@pytest.mark.parametrize("kind, option", USED, ids=lambda value: getattr(value, "__name__", value))
def test_every_option_changes_what_comes_out(kind, option):
    found = []
    for options in ({}, {option: OTHERS[option]}):
        torch.manual_seed(0)
        quantizer = made(kind, **options).train()
        latents = normal(64, quantizer.dim).requires_grad_()
        torch.manual_seed(1)
        for _ in range(3):
            latents_q, _, loss = quantizer(latents)
            (latents_q.sum() + loss).backward()
            with torch.no_grad():
                for parameter in quantizer.parameters():
                    parameter.sub_(0.1 * parameter.grad)
        found.append((latents_q.detach(), latents.grad, loss.detach()))
    assert not all(torch.equal(one, other) for one, other in zip(*found))


@pytest.mark.parametrize("kind", [VectorQuantizer, *EFFECTS], ids=lambda kind: kind.__name__)
def test_an_option_that_would_be_ignored_is_refused(kind):
    with pytest.raises(ValueError, match="decay is that of update='ema'"):
        made(kind, decay=0.5)
    with pytest.raises(TypeError, match="unheard_of"):
        made(kind, unheard_of=1)


def test_stages_hand_their_options_on():
    with pytest.raises(TypeError, match="variance"):
        ResidualVQ((4, 4), 4, variance=0.1)
    with pytest.raises(ValueError, match="update must be"):
        ResidualVQ((4, 4), 4, update="sgd")
    assert ResidualVQ((4, 4), 4, kind=DiVeQ, variance=0.1).stages[1].variance == 0.1


@pytest.mark.parametrize("kind, size", [(FSQ, (4, 4)), (LFQ, 4)])
def test_a_grid_refuses_moving_averages(kind, size):
    with pytest.raises(ValueError, match="needs update='gradient'"):
        kind(size, update="ema")
