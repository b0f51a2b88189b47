"""Odd input to nearest codes, metrics, quantisers, the diagnosis: each keeps its promise, or raises ValueError.

fuzz_tools.py says how to draw more examples.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fuzz_tools import COUNT, MIXED, ODD, REFUSED, SIZE, call, chosen, few, filled, pairs, quantizers, shapes, tensors
from hypothesis import assume, given
from hypothesis import strategies as st

from vqnotes import metrics
from vqnotes.diagnosis import diagnose, draw
from vqnotes.diagnosis.measures import measure
from vqnotes.diagnosis.observed import observe
from vqnotes.diagnosis.report import VERDICTS
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import INITS, kmeans
from vqnotes.remedies import DiVeQ
from vqnotes.remedies.residual import LevelDropout, Several

# ---------------------------------------------------------------- nearest codes


def check_nearest(latents, codebook, index):
    assert index.shape == latents.shape[:-1] and index.dtype == torch.int64
    z, e = (one.double().reshape(-1, one.shape[-1]).tolist() for one in (latents, codebook))
    d = np.array([[math.dist(a, b) for b in e] for a in z])  # which does not overflow
    assert (d[np.arange(len(d)), index.flatten()] <= d.min(1) * (1 + 1e-12) + 1e-149).all()


@given(st.one_of(pairs(), st.tuples(tensors(), tensors())), st.randoms(use_true_random=False))
def test_nearest_code_is_nearest(pair, random):
    index = call(nearest_code, *pair)
    fine = all(one.is_floating_point() and one.numel() and (one.abs() < 1e150).all() for one in pair)
    fine = fine and pair[0].ndim > 0 and pair[1].ndim == 2 and pair[0].shape[-1] == pair[1].shape[1]
    assert (index is not REFUSED) == fine or any(one.dtype == torch.float64 for one in pair)
    if index is not REFUSED:
        check_nearest(*pair, index)
        order = torch.tensor(random.sample(range(len(pair[1])), len(pair[1])))
        check_nearest(*pair, order[nearest_code(pair[0], pair[1][order])])


@given(pairs(["whole"]), chosen(-16, -1, 4), chosen(0.125, 2, 16))
def test_shift_and_scale_change_no_index(pair, shift, scale):
    """All of these are exact in every float type, so ties stay ties."""
    assume(pair[0].numel())
    index, error = nearest_code(*pair), metrics.quantization_error(*pair, relative=False)
    for changed, times in (([one + shift for one in pair], 1), ([one * scale for one in pair], scale)):
        assert torch.equal(nearest_code(*changed), index)
        assert metrics.quantization_error(*changed, relative=False) == pytest.approx(error * times**2, rel=1e-9)
        distances = [call(metrics.pairwise_distance, codes, "euclidean") for codes in (changed[1], pair[1])]
        assert REFUSED in distances or distances[0] == pytest.approx(distances[1] * times, rel=1e-7, abs=1e-9)


# ---------------------------------------------------------------- metrics


@given(tensors(dtypes=[torch.uint8] * 3 + MIXED[-5:], kinds=["whole", "normal"]), chosen(9, 255, 300, 1, 0, -1))
def test_usage_and_perplexity(index, size):
    used, effective = call(metrics.usage, index, size), call(metrics.perplexity, index, size)
    assert (used is REFUSED) == (effective is REFUSED)
    if used is not REFUSED:
        live, pieces = len(index.unique()), metrics.UsageMeter(size)
        assert used == live / size <= min(size, index.numel()) / size and 1 <= effective <= live * (1 + 1e-12)
        for piece in index.flatten().split(2):
            pieces.update(piece)
        assert (pieces.usage(), pieces.perplexity()) == (used, effective) and len(pieces.dead()) == size - live


@given(tensors(), chosen(0.99, *ODD))
def test_dimensions_are_in_their_range(x, share):
    found = call(metrics.effective_dimension, x, share)
    assert found is REFUSED or found in range(x.shape[-1] + 1)
    variances = call(metrics.principal_variances, x)
    if variances is not REFUSED:
        for measure in (metrics.effective_dimension, metrics.effective_rank, metrics.participation_ratio):
            found = measure(x)
            assert found == 0 if variances.sum() == 0 else 1 - 1e-9 <= found <= x.shape[-1] * (1 + 1e-9)
        flat = x.double().reshape(-1, x.shape[-1])
        total = flat.var(0, correction=0).sum().item()
        assert variances.sum() == pytest.approx(total, rel=1e-6, abs=1e-12 * flat.square().sum().item())
        assert (variances >= 0).all() and (np.diff(variances) <= 0).all()


@given(st.one_of(pairs(), st.tuples(tensors(), tensors())), st.booleans())
def test_errors_are_finite_and_not_negative(pair, relative):
    found = call(metrics.quantization_error, *pair, relative)
    assert found is REFUSED or 0 <= found < math.inf
    found = call(metrics.optimality_gap, *pair)
    assert found is REFUSED or found >= 0
    for other in (pair[1], pair[0].flip(0) if pair[0].ndim else pair[0]):
        found = call(metrics.reconstruction_error, other, pair[0])
        assert found is REFUSED or 0 <= found < math.inf


@given(tensors(st.one_of(st.tuples(SIZE, SIZE), shapes())), chosen("cosine", "cosine", "euclidean", "Cosine"))
def test_pairwise_distance(codebook, metric):
    found = call(metrics.pairwise_distance, codebook, metric)
    if found is not REFUSED:
        assert 0 <= found < math.inf and (metric == "euclidean" or found <= 2)
        assert metrics.pairwise_distance(codebook.flip(0), metric) == pytest.approx(found, rel=1e-6, abs=1e-7)


@given(pairs(), chosen(0, 0, 0, 0, 1, -1), st.data())
def test_labels(pair, more, data):
    latents, codebook = pair
    kinds, length = ["whole", "whole", "normal", "huge", "nan"], max(0, latents[..., 0].numel() + more)
    y = data.draw(tensors(st.just((length,)), MIXED[-5:], kinds))
    found = call(metrics.mode_entropy, latents, codebook, y)
    assert found is REFUSED or 0 <= found <= math.log(len(y.unique())) + 1e-12
    found = call(metrics.separability, latents.repeat(8, *[1] * (latents.ndim - 1)), y.repeat(8))
    assert found is REFUSED or 0 <= found <= 1


VARIANCES = st.lists(st.one_of(st.floats(0, 100), st.floats(0, 1), chosen(*ODD)), max_size=6)


@given(VARIANCES, st.one_of(st.floats(0, 50), chosen(*ODD)))
def test_water_filling_and_entropy(variances, bits):
    found = call(metrics.water_filling, variances, bits)
    if found is not REFUSED:
        paid = bits if max(variances) > 0 else 0
        assert found.bits.sum() == pytest.approx(paid, rel=1e-9, abs=1e-9) and (found.bits >= 0).all()
        assert 0 <= found.distortion <= sum(variances) * (1 + 1e-9)
        assert 0 <= found.level <= max(variances) * (1 + 1e-9)
        assert (found.bits > 0).sum() <= found.active <= len(variances)
    found = call(metrics.entropy, variances)
    assert found is REFUSED or 0 <= found <= math.log(len(variances)) + 1e-12


@given(st.lists(st.one_of(*[st.floats(-9, 9)] * 3, chosen(*ODD, "a", None)), max_size=6), chosen(0.95, 0.9, *ODD))
def test_confidence_interval(values, level):
    found = call(metrics.confidence_interval, values, level)
    if found is not REFUSED:
        assert min(values) - 1e-12 <= found[0] <= found[1] <= max(values) + 1e-12


# ---------------------------------------------------------------- quantisers


@given(quantizers(), st.data())
def test_every_quantizer_forward_and_backward(quantizer, data):
    size, dim = quantizer.codebook_size, quantizer.dim
    likely = st.one_of(*[tensors(shapes(dim))] * 5, tensors())
    call(quantizer.init_codes, data.draw(chosen(*INITS, "best")), data.draw(chosen(None, data.draw(likely))))
    if data.draw(st.booleans()):
        call(quantizer.init_codes, "normal")
    for mode in (True, False):
        latents = data.draw(likely).detach()
        latents.requires_grad_(latents.is_floating_point())
        codes = quantizer.train(mode).codes().detach().clone()
        quantized = call(quantizer, latents)
        if quantized is REFUSED:
            continue
        latents_q, index, loss = quantized
        index = quantizer.joint_index(index) if isinstance(quantizer, Several) else index
        assert latents.isfinite().all() and latents_q.shape == latents.shape and latents.shape[-1] == dim
        assert index.shape == latents.shape[:-1] and index.dtype == torch.int64
        assert 0 <= index.min() and index.max() < size and loss.shape == ()
        room = latents.abs().max() < torch.finfo(latents.dtype).max / 8  # else turning them overflows
        if room and not (mode and isinstance(quantizer, DiVeQ | LevelDropout)):
            close = 1e-2 if isinstance(quantizer, Several) else 1e-6
            assert torch.allclose(latents_q.double(), codes[index].double(), rtol=close, atol=close)
        limit = min(1e4, torch.finfo(codes.dtype).max ** 0.45)  # a variance must fit into the codes' type
        if all(one.abs().max() < limit for one in (latents, codes)):
            least = -getattr(quantizer, "entropy_weight", 0) * math.log(size)
            least -= getattr(quantizer, "orthogonal_weight", 0) / size  # if all codes are 0
            assert math.isfinite(loss.item()) and loss.item() >= least - 1e-5 * (1 + abs(least))
            (latents_q.sum() + loss).backward()
            gradients = [one.grad for one in (latents, *quantizer.parameters()) if one.grad is not None]
            assert all(one.isfinite().all() for one in gradients) and quantizer.codes().isfinite().all()


@given(tensors(), COUNT, chosen(0, 1, 2, -1))
def test_kmeans(latents, size, seed):
    found = call(kmeans, latents, size, seed)
    if found is not REFUSED:
        centroids, share = found
        assert centroids.shape == (size, latents.shape[-1]) and centroids.isfinite().all()
        assert share.sum().item() == pytest.approx(1, abs=0.02)


# ---------------------------------------------------------------- diagnosis


@few
@given(pairs(), chosen(1, 20, 30), st.data())
def test_diagnose(pair, times, data):
    latents = pair[0].repeat(times, *[1] * (pair[0].ndim - 1))
    if data.draw(st.booleans()):
        latents = latents + filled(latents.shape, latents.dtype, "small", 0)
    rows = data.draw(chosen(latents[..., 0].numel(), len(latents), len(latents), 3))
    inputs = data.draw(st.one_of(st.none(), tensors(shapes().map(lambda axes: (rows, *axes)))))
    labels = data.draw(st.one_of(st.none(), tensors(st.just((rows,)), [torch.int64] * 5 + MIXED[-5:], ["whole"])))
    back = data.draw(chosen(None, None, inputs, 3.0))
    grid, odd = latents.shape[:-1], chosen(*[None] * 60, *ODD)
    mask = data.draw(chosen(None, None, filled(grid, torch.bool, "whole", 1)))
    index = data.draw(chosen(None, None, filled(grid, torch.int64, "constant", 2)))
    options = {"mask": mask, "index": index, "reconstruction": back, "channel_axis": data.draw(odd)}
    options |= {"places": data.draw(odd), "seed": data.draw(chosen(*[0] * 60, *ODD))}
    found = call(diagnose, latents, pair[1], labels=labels, inputs=inputs, **options)
    if found is not REFUSED:
        assert found.verdict in VERDICTS and "nan" not in str(found)
        f = measure(observe(latents, pair[1], labels=labels, inputs=inputs, **options))
        assert f.usage <= min(f.codes, f.latents) / f.codes and 1 <= f.perplexity <= f.codes * (1 + 1e-12)
        figure, axes = plt.subplots(2, 2)
        call(draw, axes, found)
        plt.close(figure)
