"""Choices that are drawn or have a gradient: by their probabilities, by hand, and beside vector-quantize-pytorch."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import normal
from pytest import approx
from scipy import stats
from test_remedies import LATENTS, LEARNT, library

from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import GumbelVQ, IndexBackpropagation, StochasticVQ
from vqnotes.remedies.replacement import uniform

DRAWN = pytest.mark.parametrize("kind", [StochasticVQ, GumbelVQ])


def with_codes(quantizer, codes):
    quantizer.place_codes(torch.as_tensor(codes), torch.zeros(len(codes)))
    return quantizer


# ---------------------------------------------------------------- which code


@DRAWN
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_code_is_drawn_by_its_distance(kind, temperature):
    """Two latents, at squared distances 1, 2, 4 and 3, 1, 9 from the codes: T = temperature * (1 + 1) / 2."""
    codes = torch.tensor([[1.0, 0.0], [0.0, math.sqrt(2.0)], [-2.0, 0.0]])
    latents = torch.zeros(8000, 2)
    quantizer = with_codes(kind(3, 2, sampling_temperature=temperature), codes).train()
    expected = (-torch.tensor([1.0, 2.0, 4.0]) / temperature).softmax(0)
    found = torch.bincount(quantizer(latents).index, minlength=3)
    assert (
        stats.chisquare(found.numpy(), 8000 * expected.double().numpy() / expected.double().sum().item()).pvalue
        > 1e-3
    )
    scores = quantizer.scores(latents[:1], codes)
    assert scores[0].log_softmax(0).exp().tolist() == approx(expected.tolist(), rel=1e-4)


@DRAWN
def test_the_temperature_is_relative_to_the_distance_and_to_no_origin(kind):
    quantizer, latents, codes = kind(8, 3), normal(40, 3), normal(8, 3, seed=1)
    expected = quantizer.scores(latents, codes).log_softmax(-1)
    for moved in (quantizer.scores(5 * latents, 5 * codes), quantizer.scores(latents + 1000, codes + 1000)):
        assert torch.allclose(moved.log_softmax(-1), expected, atol=1e-2)
    assert quantizer.scores(latents.reshape(4, 10, 3), codes).shape == (4, 10, 8)


@DRAWN
def test_each_step_draws_anew_and_evaluation_takes_the_nearest(kind):
    torch.manual_seed(0)
    quantizer, latents = kind(16, 4), normal(200, 4)
    first, second = quantizer.train()(latents).index, quantizer(latents).index
    assert (first != second).double().mean() > 0.3
    nearest = torch.cdist(latents, quantizer.codes()).argmin(1)
    assert torch.equal(quantizer.eval()(latents).index, nearest)
    torch.manual_seed(0)
    again = kind(16, 4).train()
    torch.rand(100)
    assert torch.equal(again(latents).index, first)  # depends on the seed of the codebook alone
    torch.manual_seed(1)
    assert not torch.equal(kind(16, 4).train()(latents).index, first)


def test_two_stochastic_layers_draw_by_themselves():
    torch.manual_seed(0)
    one, other = StochasticVQ(16, 4).train(), StochasticVQ(16, 4).train()
    other.load_state_dict(one.state_dict() | {"chance": other.chance})
    assert not torch.equal(one(normal(200, 4)).index, other(normal(200, 4)).index)


def test_draws_are_as_likely_as_those_of_vector_quantize_pytorch():
    """Its scores are distances, not their squares, over an absolute temperature: here all squares are 1 or 4."""
    codes = torch.tensor([[1.0] + 7 * [0.0], [-2.0] + 7 * [0.0]])
    other = library(codebook_size=2, stochastic_sample_codes=True, sample_codebook_temp=1.0, **LEARNT)
    with torch.no_grad():
        other._codebook.embed.copy_(codes)
    ours = with_codes(StochasticVQ(2, 8, sampling_temperature=3.0), codes).train()  # (4 - 1) / 3 = (2 - 1) / 1
    torch.manual_seed(0)
    theirs = [one(torch.zeros(1, 20_000, 8))[1].double().mean().item() for one in (ours, other)]
    assert theirs[0] == approx(theirs[1], abs=0.015) and theirs[0] == approx(1 / (1 + math.e), abs=0.01)


def test_index_backpropagation_takes_the_largest_product():
    quantizer = with_codes(IndexBackpropagation(3, 2), [[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    assert quantizer(torch.tensor([[1.0, 0.0], [-1.0, 2.0], [-1.0, 0.0]])).index.tolist() == [2, 2, 1]


# ---------------------------------------------------------------- the gradient


def softly(scores, codes, chosen):
    """One-hot forward, softmax backward, times the codes: written out."""
    soft, hard = scores.softmax(-1), F.one_hot(chosen, len(codes)).to(codes)
    return (hard + soft - soft.detach()) @ codes


def gradients(value, weight, *inputs):
    return torch.autograd.grad((value * weight).sum(), inputs, retain_graph=True)


def test_index_backpropagation_is_its_formula():
    quantizer = with_codes(IndexBackpropagation(16, 4, beta=0.3), normal(16, 4, seed=1))
    z, weight = normal(50, 4).requires_grad_(), normal(50, 4, seed=2)
    latents_q, index, loss = quantizer(z)
    codes = quantizer.codebook
    expected = softly(z @ codes.T, codes, index)
    assert torch.equal(latents_q, codes[index]) and torch.allclose(latents_q, expected, atol=1e-5)
    for one, other in zip(gradients(latents_q, weight, z, codes), gradients(expected, weight, z, codes)):
        assert torch.allclose(one, other, atol=1e-5) and other.abs().sum() > 0
    assert (gradients(latents_q, weight, codes)[0] != 0).any(1).all()  # of all codes, not of the chosen ones alone
    written = (
        F.mse_loss(expected, z) + F.mse_loss(codes[index], z.detach()) + 0.3 * F.mse_loss(codes[index].detach(), z)
    )
    assert loss.item() == approx(written.item(), rel=1e-5)
    for one, other in zip(torch.autograd.grad(loss, [z, codes]), torch.autograd.grad(written, [z, codes])):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("softness", [1.0, 0.5])
def test_the_gumbel_gradient_goes_by_the_noise_that_decided(softness):
    quantizer = GumbelVQ(16, 4, softness=softness, sampling_temperature=0.7, kl_weight=0.5).train()
    quantizer = with_codes(quantizer, normal(16, 4, seed=1))
    z, weight, codes = normal(50, 4).requires_grad_(), normal(50, 4, seed=2), quantizer.codebook
    noise = -(-uniform(quantizer.chance.clone(), 50 * 16).log()).log().view(50, 16)
    latents_q, index, loss = quantizer(z)
    squares = (z[:, None] - codes).square().sum(-1)
    scores = -squares / (0.7 * squares.amin(1).mean().detach())
    assert torch.equal(index, (scores + noise).argmax(1))
    expected = softly((scores + noise) / softness, codes.detach(), index) + codes[index] - codes[index].detach()
    assert torch.equal(latents_q, codes[index])
    soft = ((scores + noise) / softness).softmax(-1) @ codes.detach()
    for one, other in zip(gradients(latents_q, weight, z, codes), gradients(soft + codes[index], weight, z, codes)):
        assert torch.allclose(one, other, atol=1e-4) and other.abs().sum() > 0
    assert torch.allclose(expected, latents_q, atol=1e-5)
    p = scores.softmax(-1)
    assert loss.item() == approx((0.5 * (p * (p * 16).log()).sum(1).mean()).item(), rel=1e-4)


def test_in_evaluation_the_gumbel_gradient_has_no_noise():
    quantizer = with_codes(GumbelVQ(16, 4), normal(16, 4, seed=1)).eval()
    z, codes, weight = normal(50, 4).requires_grad_(), quantizer.codebook, normal(50, 4, seed=2)
    found = [gradients(quantizer(z).latents_q, weight, z)[0] for _ in range(2)]
    soft = quantizer.scores(z, codes).softmax(-1) @ codes.detach()
    assert torch.equal(*found) and torch.allclose(found[0], gradients(soft, weight, z)[0], atol=1e-5)


def test_without_noise_the_gumbel_gradient_is_that_of_vector_quantize_pytorch():
    """It has codes by moving averages there, so the latents' gradient is compared: y of distances, not squared."""
    other = library(straight_through=True, sample_codebook_temp=1.0, codebook_size=2, rotation_trick=False)
    codes, direction = torch.tensor([[1.0] + 7 * [0.0], [-1.0] + 7 * [0.0]]), torch.eye(8)[0]
    with torch.no_grad():
        other._codebook.embed.copy_(codes)
    z = torch.zeros(1, 1, 8).requires_grad_()  # at equal distance 1 of both: d|z - e| = d|z - e|^2 / 2
    (other(z)[0] * direction).sum().backward()
    ours, own = (
        with_codes(GumbelVQ(2, 8, sampling_temperature=2.0), codes).eval(),
        torch.zeros(1, 1, 8).requires_grad_(),
    )
    (ours(own).latents_q * direction).sum().backward()
    assert z.grad.abs().sum() > 0 and torch.allclose(z.grad, own.grad, atol=1e-5)


def test_a_stochastic_choice_leaves_gradient_and_loss_as_they_are():
    torch.manual_seed(0)
    quantizer, z = StochasticVQ(32, 8).train(), LATENTS.clone().requires_grad_()
    latents_q, index, loss = quantizer(z)
    weight = normal(2, 50, 8, seed=3)
    assert torch.allclose(gradients(latents_q, weight, z)[0], weight)
    assert torch.allclose(latents_q, quantizer.codes()[index], atol=1e-6)
    expected = 1.25 * F.mse_loss(quantizer.codes()[index], LATENTS)
    assert loss.item() == approx(expected.item(), rel=1e-5)


# ---------------------------------------------------------------- what it is for, and bad input


def test_from_one_heap_stochastic_choices_use_all_codes_and_the_nearest_few():
    latents = 3 + normal(512, 4)
    used = [len(kind(64, 4).train()(latents).index.unique()) for kind in (VectorQuantizer, StochasticVQ)]
    assert used[0] < 32 and used[1] == 64


@pytest.mark.parametrize(
    "make, shown",
    [
        (lambda: StochasticVQ(8, 2, sampling_temperature=0), "sampling_temperature must be above 0, got 0"),
        (lambda: GumbelVQ(8, 2, softness=-1), "softness must be above 0, got -1"),
        (lambda: GumbelVQ(8, 2, kl_weight=-1), "kl_weight must be at least 0, got -1"),
        (lambda: GumbelVQ(8, 2, update="ema"), "GumbelVQ needs update='gradient'"),
        (lambda: IndexBackpropagation(8, 2, update="ema"), "IndexBackpropagation needs"),
        (lambda: StochasticVQ(8, 2).train()(torch.full((3, 2), torch.nan)), "NaN"),
        (lambda: IndexBackpropagation(8, 2)(torch.full((3, 2), torch.nan)), "NaN"),
        (lambda: StochasticVQ(8, 2).train()(torch.zeros(3, 5)), r"\(3, 5\)"),
    ],
)
def test_bad_input_is_refused(make, shown):
    with pytest.raises(ValueError, match=shown):
        make()
