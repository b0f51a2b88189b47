"""What every remedy must do; and those that vector-quantize-pytorch has too agree with it."""

import pytest
import torch
import torch.nn.functional as F
import vector_quantize_pytorch as theirs
from helpers import normal

from vqnotes import metrics
from vqnotes.models import evaluate, mlp_autoencoder
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import (
    BSQ,
    FSQ,
    LFQ,
    AffineCodes,
    CodeExpiry,
    CosineCodes,
    DecorrelatedCodes,
    DiVeQ,
    EntropyLoss,
    GumbelVQ,
    IndexBackpropagation,
    KernelLoss,
    LeastRecentlyUsed,
    OnlineClustering,
    OrthogonalCodes,
    ProductVQ,
    RandomRestart,
    ResidualVQ,
    RotationTrick,
    SimVQ,
    SpreadLatents,
    StochasticVQ,
)
from vqnotes.remedies.residual import Several
from vqnotes.training import fit, fit_many


class ExpiryRotation(CodeExpiry, RotationTrick):
    pass


class EntropyCosineUsed(LeastRecentlyUsed, EntropyLoss, CosineCodes):
    pass


class CosineIndex(CosineCodes, IndexBackpropagation):
    pass


# name: a quantiser of 16 codes, in 4 dimensions where that is free
EVERY = {
    "plain": lambda: VectorQuantizer(16, 4),
    "EMA": lambda: VectorQuantizer(16, 4, update="ema"),
    "SimVQ": lambda: SimVQ(16, 4),
    "affine": lambda: AffineCodes(16, 4),
    "cosine": lambda: CosineCodes(16, 4),
    "cosine, EMA": lambda: CosineCodes(16, 4, update="ema"),
    "rotation": lambda: RotationTrick(16, 4),
    "DiVeQ": lambda: DiVeQ(16, 4, variance=0),
    "orthogonal": lambda: OrthogonalCodes(16, 4),
    "entropy": lambda: EntropyLoss(16, 4),
    "spread": lambda: SpreadLatents(16, 4),
    "restart": lambda: RandomRestart(16, 4),
    "expiry": lambda: CodeExpiry(16, 4, threshold=0.5),
    "expiry, EMA": lambda: CodeExpiry(16, 4, update="ema", threshold=0.5),
    "LRU": lambda: LeastRecentlyUsed(16, 4, patience=3),
    "CVQ": lambda: OnlineClustering(16, 4),
    "CVQ, closest": lambda: OnlineClustering(16, 4, anchor="closest"),
    "expiry, rotation": lambda: ExpiryRotation(16, 4),
    "LRU, entropy, cosine": lambda: EntropyCosineUsed(16, 4),
    "FSQ": lambda: FSQ(levels=(4, 4)),
    "LFQ": lambda: LFQ(4),
    "BSQ": lambda: BSQ(4),
    "decorrelated": lambda: DecorrelatedCodes(16, 4),
    "kernel": lambda: KernelLoss(16, 4),
    "stochastic": lambda: StochasticVQ(16, 4, sampling_temperature=0.1),
    "stochastic, EMA": lambda: StochasticVQ(16, 4, sampling_temperature=0.1, update="ema"),
    "Gumbel": lambda: GumbelVQ(16, 4, sampling_temperature=0.1),
    "index backpropagation, cosine": lambda: CosineIndex(16, 4),
    "product": lambda: ProductVQ((4, 4), 4),
    "product, rotation": lambda: ProductVQ((2, 8), 4, kind=RotationTrick),
    "residual": lambda: ResidualVQ((4, 4), 4),
    "residual, rotation": lambda: ResidualVQ((2, 8), 4, kind=RotationTrick),
    "residual, DiVeQ": lambda: ResidualVQ((4, 4), 4, kind=DiVeQ, variance=0),
}
every = pytest.mark.parametrize("name", EVERY)


def made(name, seed=0):
    torch.manual_seed(seed)
    return EVERY[name]()


def one_number(quantizer, index):
    """The index into all 16 codes: that of several quantisers has a number of each."""
    return quantizer.joint_index(index) if isinstance(quantizer, Several) else index


# ---------------------------------------------------------------- what holds for every one


@every
def test_the_code_of_an_index_is_what_the_decoder_gets(name):
    quantizer = made(name)
    latents = normal(5, 20, quantizer.dim)
    quantizer.train()(latents)
    quantized = quantizer.eval()(latents)
    index = one_number(quantizer, quantized.index)
    assert quantized.latents_q.shape == latents.shape and index.shape == (5, 20)
    assert index.dtype == torch.int64 and quantized.loss.shape == ()
    assert torch.allclose(quantizer.codes()[index], quantized.latents_q, atol=1e-6)
    assert torch.allclose(quantizer.decode(quantized.index), quantized.latents_q, atol=1e-6)
    distances = torch.cdist(quantizer.prepare(latents).reshape(-1, quantizer.dim), quantizer.codes())
    if not name.startswith("residual"):  # stage by stage is not the nearest of all sums
        assert (distances.argmin(1) == index.flatten()).double().mean() > 0.99


@every
def test_gradients_reach_the_latents_and_are_finite(name):
    quantizer = made(name).train()
    latents = normal(64, quantizer.dim).requires_grad_()
    quantized = quantizer(latents)
    ((quantized.latents_q * normal(64, quantizer.dim, seed=1)).sum() + quantized.loss).backward()
    assert torch.isfinite(latents.grad).all() and latents.grad.abs().sum() > 0
    for parameter in quantizer.parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0


@every
def test_a_model_with_it_learns(name):
    torch.manual_seed(0)
    quantizer, x = made(name), normal(500, 6) @ normal(6, 6, seed=1)
    history = fit(
        mlp_autoencoder(6, quantizer, width=32), x, steps=60, seed=0, init="normal", lr=1e-2, progress=False
    )
    first, last = (torch.tensor(history.reconstruction[part]).mean() for part in (slice(5), slice(-5, None)))
    assert last < 0.9 * first and torch.isfinite(quantizer.codes()).all()


@every
def test_many_runs_at_once_are_the_runs_one_by_one(name):
    x, options = normal(300, 6), {"steps": 12, "warmup": 4, "batch_size": 32, "init": "data", "progress": False}

    def build(seed):
        return mlp_autoencoder(6, EVERY[name](), width=16)

    for seed, (model, history) in zip((0, 3), fit_many(build, x, seeds=(0, 3), **options)):
        torch.manual_seed(seed)
        alone = build(seed)
        other = fit(alone, x, seed=seed, **options)
        assert history.reconstruction == pytest.approx(other.reconstruction, rel=1e-3)
        assert history.quantizer == pytest.approx(other.quantizer, rel=1e-3, abs=1e-6, nan_ok=True)
        numbers = (one_number(m.quantizer, evaluate(m, x).index) for m in (model, alone))
        ours, own = (metrics.perplexity(index, 16) for index in numbers)
        assert ours == pytest.approx(own, rel=0.02)


@every
def test_codes_can_be_placed_by_kmeans(name):
    quantizer = made(name)
    latents = normal(400, quantizer.dim) + 1
    before = quantizer(latents).index.clone()
    quantizer.init_codes("kmeans", latents)
    after = one_number(quantizer, quantizer.eval()(latents).index)
    if name in ("FSQ", "LFQ", "BSQ"):
        assert torch.equal(before, after)  # nothing to place
    else:
        error = metrics.quantization_error(quantizer.prepare(latents), quantizer.codes().detach())
        best = metrics.quantization_error(quantizer.prepare(latents), VectorQuantizer(16, 4).codes().detach())
        assert metrics.usage(after, 16) == 1 and error < best


# ---------------------------------------------------------------- beside vector-quantize-pytorch


def compare(ours, their_forward, latents, parameters=(), their_parameters=(), scale=1.0):
    """Values, indices and gradients of sum(w * latents_q) + loss agree to 1e-5; returns the two losses."""
    weight, gradients, losses = normal(*latents.shape, seed=9), [], []
    for forward, own in ((ours, parameters), (their_forward, their_parameters)):
        z = latents.clone().requires_grad_()
        latents_q, index, loss = forward(z)
        total = (latents_q * weight).sum() * (1 if forward is ours else scale) + loss.sum()
        gradients.append(torch.autograd.grad(total, [z, *own]))
        losses.append((latents_q.detach(), index, loss.detach()))
    (q, index, loss), (their_q, their_index, their_loss) = losses
    assert torch.equal(index, their_index.long()) and torch.allclose(q, their_q, atol=1e-5)
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other.reshape(one.shape), atol=1e-5)
    return loss.item(), their_loss.sum().item()


def library(**options):
    defaults = {"rotation_trick": False, "commitment_weight": 1.0, "codebook_size": 32}
    return theirs.VectorQuantize(8, **(defaults | options)).train()


LEARNT = {"learnable_codebook": True, "ema_update": False}
LATENTS = normal(2, 50, 8)


def same_codes(ours, other):
    with torch.no_grad():
        other._codebook.embed.copy_(ours.codebook)
    return other


@pytest.mark.parametrize("kind, options", [(VectorQuantizer, {}), (CosineCodes, {"use_cosine_sim": True})])
def test_ema_and_cosine_agree_over_several_steps(kind, options):
    ours = kind(32, 8, update="ema", beta=1.0, decay=0.9)
    ours.init_codes("kmeans", LATENTS)
    ours.codebook.copy_(ours.codes())
    other = same_codes(ours, library(decay=0.9, eps=1e-9, **options))
    other._codebook.cluster_size.copy_(100 * ours.share)
    other._codebook.embed_avg.copy_(100 * ours.share[:, None] * ours.codebook)
    for seed in range(3):
        loss, their_loss = compare(ours, other, normal(2, 50, 8, seed=seed))
        assert loss == pytest.approx(their_loss, rel=1e-5)
        assert torch.allclose(ours.codes(), other.codebook, atol=1e-5)


def test_rotation_agrees():
    ours = RotationTrick(32, 8, beta=1.0)
    other = same_codes(ours, library(rotation_trick=True, **LEARNT))
    compare(ours, other, LATENTS, [ours.codebook], [other._codebook.embed])


def test_orthogonality_agrees():
    ours = OrthogonalCodes(32, 8, beta=1.0, orthogonal_weight=3.0)
    other = same_codes(ours, library(orthogonal_reg_weight=3.0, **LEARNT))
    loss, their_loss = compare(ours, other, LATENTS, [ours.codebook], [other._codebook.embed])
    commitment = F.mse_loss(ours(LATENTS).latents_q, LATENTS).item()  # the library counts it once for both sides
    assert loss - commitment == pytest.approx(their_loss, rel=1e-4)


def test_affine_agrees():
    ours = AffineCodes(32, 8, beta=1.0, affine_decay=0.99)
    ours.latent_mean.copy_(normal(8, seed=2))
    ours.latent_variance.copy_(normal(8, seed=3).square() + 0.1)
    other = same_codes(ours, library(affine_param=True, affine_param_batch_decay=1.0, **LEARNT))
    other._codebook.batch_mean = ours.latent_mean.clone()[None, None]
    other._codebook.batch_variance = ours.latent_variance.clone()[None, None]
    compare(ours, other, LATENTS, [ours.codebook], [other._codebook.embed])


def test_simvq_agrees():
    ours = SimVQ(32, 8)
    other = theirs.SimVQ(8, 32, rotation_trick=False)
    with torch.no_grad():
        ours.transform.copy_(normal(8, 8, seed=4))
        other.frozen_codebook.copy_(ours.codebook)
        other.code_transform.weight.copy_(ours.transform)
    loss, their_loss = compare(ours, other, LATENTS, [ours.transform], [other.code_transform.weight])
    assert loss == pytest.approx(their_loss, rel=1e-5)


@pytest.mark.parametrize("levels", [(8, 5, 5), (4, 4, 4), (3, 7)])
def test_fsq_agrees(levels):
    ours, other = FSQ(levels), theirs.FSQ(list(levels))
    compare(ours, lambda z: (*other(z), torch.zeros(1)), 2 * normal(2, 500, len(levels)))
    assert torch.allclose(ours.codes(), other.implicit_codebook)


def test_lfq_agrees():
    ours, other = LFQ(6, beta=0.3, inverse_temperature=3.0), theirs.LFQ(dim=6, commitment_loss_weight=0.3)
    # Softer than usual: the library's entropies leave out what has a probability below 1e-5.
    loss, their_loss = compare(ours, lambda z: other(z, inv_temperature=3.0), 0.3 * normal(2, 50, 6))
    assert loss == pytest.approx(their_loss, rel=1e-4) and torch.equal(ours.codes(), other.codebook)


def test_residual_agrees():
    ours = ResidualVQ((8, 8), 8, beta=1.0)
    options = {"rotation_trick": False, "commitment_weight": 1.0, **LEARNT}
    other = theirs.ResidualVQ(dim=8, num_quantizers=2, codebook_size=8, **options).train()
    with torch.no_grad():
        for stage, layer in zip(ours.stages, other.layers):
            layer._codebook.embed.copy_(stage.codebook)

    def forward(z):  # the library sums the stages' losses and their straight-through gradients: twice the latents'
        latents_q, index, loss = other(z)
        return latents_q, index, loss / 2

    stages, layers = [s.codebook for s in ours.stages], [layer._codebook.embed for layer in other.layers]
    compare(ours, forward, LATENTS, stages, layers, scale=0.5)
