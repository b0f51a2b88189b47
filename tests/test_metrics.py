"""Each metric against a case whose answer is known in closed form."""

import math

import numpy as np
import pytest
import torch
from helpers import normal

from vqnotes import diagnose, metrics
from vqnotes.data import gaussian_modes
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code

# ---------------------------------------------------------------- usage


def test_uniform_index_gives_perplexity_K_and_one_code_gives_1():
    assert metrics.perplexity(torch.arange(16).repeat(5), 16) == pytest.approx(16)
    assert metrics.perplexity(torch.full((3, 4), 7), 16) == pytest.approx(1)
    # half on one code, a quarter on two: H = 1.5 bits
    assert metrics.perplexity(torch.tensor([0, 0, 1, 2]), 16) == pytest.approx(2**1.5)


def test_usage_is_the_share_of_codes_that_occur():
    assert metrics.usage(torch.tensor([[0, 3], [3, 0]]), 8) == 0.25


def test_usage_meter_over_batches_equals_one_pass():
    index = torch.from_numpy(np.random.default_rng(0).integers(0, 40, (50, 20)))
    meter = metrics.UsageMeter(64)
    for batch in index:
        meter.update(batch)
    assert meter.usage() == metrics.usage(index, 64)
    assert meter.perplexity() == metrics.perplexity(index, 64)
    assert meter.dead().tolist() == [k for k in range(64) if k not in set(index.flatten().tolist())]


def test_usage_of_one_batch_is_bounded_by_its_size():
    index = torch.from_numpy(np.random.default_rng(0).integers(0, 16_384, 1024))
    expected = 1 - (1 - 1 / 16_384) ** 1024  # the chance that a code is drawn at least once
    assert metrics.usage(index, 16_384) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    "index, shown",
    [
        (torch.tensor([0, 8]), r"in 0 \.\. 7, got 0 \.\. 8"),
        (torch.tensor([-1]), r"in 0 \.\. 7, got -1 \.\. -1"),
        (torch.tensor([], dtype=torch.int64), r"\(0,\)"),
        (torch.tensor([0.5]), "float32"),
    ],
)
def test_wrong_indices_are_refused(index, shown):
    with pytest.raises(ValueError, match=shown):
        metrics.usage(index, 8)
    with pytest.raises(ValueError, match=shown):
        metrics.perplexity(index, 8)


def test_an_empty_meter_says_so():
    with pytest.raises(ValueError, match="update first"):
        metrics.UsageMeter(4).usage()
    with pytest.raises(ValueError, match="0"):
        metrics.UsageMeter(0)


def test_a_meter_forgets_and_two_meters_add_up():
    first, second = metrics.UsageMeter(5).update([0, 0, 1]), metrics.UsageMeter(5).update([1, 4])
    both = first + second
    assert both.counts.tolist() == [2, 2, 0, 0, 1] and both.usage() == 0.6
    assert sum([first, second], metrics.UsageMeter(5)).counts.tolist() == both.counts.tolist()
    assert first.counts.tolist() == [2, 1, 0, 0, 0]
    first.reset()
    assert first.update([3]).dead().tolist() == [0, 1, 2, 4] and both.counts.sum() == 5
    with pytest.raises(ValueError, match="5 and 6 codes"):
        first + metrics.UsageMeter(6)


# ---------------------------------------------------------------- tensors and arrays


def read_only(x):
    array = x.numpy().copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "as_given",
    [torch.Tensor.numpy, read_only, torch.Tensor.tolist, lambda x: x.numpy()[::-1].copy()[::-1]],
    ids=["array", "read-only", "list", "backwards"],
)
def test_arrays_are_measured_as_tensors(as_given):
    modes = gaussian_modes(modes=4, per_mode=50)
    x, codes, y, index = modes.x.double(), modes.centers.double(), modes.y, modes.y.reshape(2, 100)
    back = x + 0.1
    for measure, *given in (
        (lambda index: metrics.usage(index, 4), index),
        (lambda index: metrics.perplexity(index, 8), index),
        (metrics.mode_entropy, x, codes, y),
        (metrics.pairwise_distance, codes),
        (metrics.effective_dimension, x),
        (metrics.effective_rank, x),
        (metrics.participation_ratio, x),
        (metrics.quantization_error, x, codes),
        (metrics.optimality_gap, x, codes),
        (metrics.reconstruction_error, back, x),
        (metrics.separability, x, y),
        (lambda x, codes: nearest_code(x, codes).tolist(), x, codes),
    ):
        assert measure(*map(as_given, given)) == measure(*given)


@pytest.mark.parametrize("given", [None, "latents", np.array(["a"]), np.array([None]), [[1.0], [2.0, 3.0]]])
def test_what_is_neither_tensor_nor_array_is_refused(given):
    with pytest.raises(ValueError, match="latents must be a tensor or an array of numbers, got <class"):
        metrics.principal_variances(given)


def test_entropy_is_that_of_the_formula():
    weights = np.random.default_rng(0).exponential(size=50) * 1e100
    weights[7] = 0
    shares = weights[weights > 0] / weights.sum()
    assert metrics.entropy(weights) == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-12)
    for bad in ([], [0, 0], [1, -1], [1, np.nan], [1, np.inf], [1e308, 1e308]):
        with pytest.raises(ValueError, match="weights must be finite, not negative and not all 0"):
            metrics.entropy(bad)


# ---------------------------------------------------------------- where the codes are


def test_mode_entropy_counts_the_modes_that_hold_codes():
    modes = gaussian_modes(modes=10, per_mode=50)
    assert math.exp(metrics.mode_entropy(modes.x, modes.centers, modes.y)) == pytest.approx(10)
    assert metrics.mode_entropy(modes.x, modes.centers[:1].repeat(32, 1), modes.y) == 0
    half = torch.cat([modes.centers[:1].repeat(2, 1), modes.centers[1:3]])  # shares 1/2, 1/4, 1/4
    assert metrics.mode_entropy(modes.x, half, modes.y) == pytest.approx(1.5 * math.log(2))


def test_pairwise_distance_of_orthogonal_codes():
    assert metrics.pairwise_distance(torch.eye(5)) == pytest.approx(1)
    assert metrics.pairwise_distance(torch.eye(5), "euclidean") == pytest.approx(math.sqrt(2))
    assert metrics.pairwise_distance(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(2)
    codes = normal(100, 6)
    loop = [1 - torch.cosine_similarity(codes[i], codes[j], dim=0) for i in range(100) for j in range(i)]
    assert metrics.pairwise_distance(codes) == pytest.approx(torch.stack(loop).mean().item(), abs=1e-5)
    assert metrics.pairwise_distance(codes, "euclidean") == pytest.approx(torch.pdist(codes).mean().item(), rel=1e-5)


def test_pairwise_distance_refuses_what_has_no_distance():
    for codebook, metric, shown in [
        (torch.ones(1, 3), "cosine", "two codes"),
        (torch.zeros(3, 2), "cosine", "code 0"),
        (torch.ones(3, 2), "manhattan", "manhattan"),
        (torch.ones(3), "cosine", r"\(3,\)"),
    ]:
        with pytest.raises(ValueError, match=shown):
            metrics.pairwise_distance(codebook, metric)


# ---------------------------------------------------------------- dimensions


def test_isotropic_gaussian_fills_its_dimensions():
    x = normal(20_000, 10)
    assert metrics.effective_dimension(x) == 10
    assert metrics.effective_rank(x) == pytest.approx(10, rel=0.01)
    assert metrics.participation_ratio(x) == pytest.approx(10, rel=0.01)


def test_dimensions_of_known_variances():
    x = torch.cat([torch.diag(torch.tensor([3.0, 4.0, 0.0])), -torch.diag(torch.tensor([3.0, 4.0, 0.0]))]) + 7
    # variances 3, 16/3, 0 (18/6, 32/6): shares .36, .64; deviations in the ratio 3 : 4
    assert metrics.effective_dimension(x, 0.6) == 1 and metrics.effective_dimension(x, 0.7) == 2
    assert metrics.participation_ratio(x) == pytest.approx((9 + 16) ** 2 / (81 + 256), rel=1e-5)
    p = np.array([3, 4]) / 7
    assert metrics.effective_rank(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-3)


def test_dimensions_do_not_depend_on_shift_scale_rotation_or_leading_axes():
    x = normal(500, 6) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1, 0.01])
    turned = torch.linalg.qr(normal(6, 6, seed=1)).Q
    for measure in (metrics.effective_dimension, metrics.effective_rank, metrics.participation_ratio):
        assert measure((5 + 100 * x @ turned).reshape(5, 100, 6)) == pytest.approx(measure(x), rel=1e-3)


def test_the_effective_dimension_is_the_least_that_holds_the_share():
    sides = torch.tensor([4.0, 2.0, 2.0, 1.0]).diag()
    x = torch.cat([sides, -sides])
    shares = [16 / 25, 20 / 25, 24 / 25, 1.0]  # of the variance, by the first components
    for components, share in enumerate(shares, start=1):
        assert metrics.effective_dimension(x, share) == components
        assert metrics.effective_dimension(x, share - 0.01) == components
        if share < 1:
            assert metrics.effective_dimension(x, share + 0.01) == components + 1
    assert metrics.effective_dimension(x[:, [0, 1, 0, 1]], 1.0) == 2
    for wrong in 0, -0.5, 1.01, float("nan"):
        with pytest.raises(ValueError, match=r"share must be in \(0, 1\]"):
            metrics.effective_dimension(x, wrong)


def test_constant_x_fills_no_dimension():
    x = torch.full((9, 4), 0.1)
    assert metrics.effective_dimension(x) == metrics.effective_rank(x) == metrics.participation_ratio(x) == 0


@pytest.mark.parametrize(
    "measure", [metrics.effective_dimension, metrics.effective_rank, metrics.participation_ratio]
)
@pytest.mark.parametrize("x", [torch.zeros(0, 3), torch.full((4, 3), torch.nan), torch.ones(1, 3)])
def test_dimensions_refuse_bad_input(measure, x):
    with pytest.raises(ValueError, match=r"\(\d, 3\)"):
        measure(x)


def test_water_filling_closed_forms():
    equal = metrics.water_filling([2.0] * 4, bits=8)  # 2 bits each: distortion 2 / 2^4 each
    assert equal.distortion == pytest.approx(4 * 2 / 16) and equal.active == 4
    assert equal.bits.tolist() == pytest.approx([2] * 4)
    # 16 and 1 at 1 bit: the first takes it all, level 16 / 4 = 4 > 1
    uneven = metrics.water_filling([1.0, 16.0], bits=1)
    assert (uneven.distortion, uneven.level, uneven.active) == (pytest.approx(5), pytest.approx(4), 1)
    assert uneven.bits.tolist() == [0, pytest.approx(1)]
    # 16 and 1 at 4 bits: (log2 16 - log2 t) / 2 + (0 - log2 t) / 2 = 4, so t = 1/4
    both = metrics.water_filling([16.0, 1.0], bits=4)
    assert both.level == pytest.approx(0.25) and both.distortion == pytest.approx(0.5) and both.active == 2
    assert metrics.water_filling([3.0, 1.0, 0.0], bits=0).distortion == 4
    assert metrics.water_filling(np.geomspace(1, 1e-3, 32), bits=8).distortion == pytest.approx(1.745, abs=1e-3)


@pytest.mark.parametrize("variances, bits", [([], 1), ([-1.0], 1), ([1.0], -1), ([math.nan], 1), ([[1.0]], 1)])
def test_water_filling_refuses_bad_input(variances, bits):
    with pytest.raises(ValueError):
        metrics.water_filling(variances, bits)


# ---------------------------------------------------------------- quality


def test_quantization_error_of_one_code_at_the_mean_is_1():
    x = 3 + 2 * normal(5000, 4)
    assert metrics.quantization_error(x, x.mean(0, keepdim=True)) == pytest.approx(1, rel=1e-4)
    assert metrics.quantization_error(x, x[:5000]) == 0
    assert metrics.quantization_error(10 * x, 10 * x[:50]) == pytest.approx(
        metrics.quantization_error(x, x[:50]), rel=1e-4
    )
    assert metrics.quantization_error(torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0]]), relative=False) == 5
    with pytest.raises(ValueError, match="equal"):
        metrics.quantization_error(torch.ones(5, 2), torch.zeros(1, 2))


def test_optimality_gap_is_1_for_kmeans_and_large_for_a_shrunk_codebook():
    modes = gaussian_modes(per_mode=100)
    assert metrics.optimality_gap(modes.x, modes.centers) == pytest.approx(1, abs=0.05)
    assert metrics.optimality_gap(modes.x, 0.01 * modes.centers) > 10
    with pytest.raises(ValueError, match="too few"):
        metrics.optimality_gap(modes.x[:5], modes.centers)


def perfect_and_latents(per_code, noise, codes=64, dim=8, seed=0):
    """The centres of clusters and latents around them. No noise: codes for a Gaussian, and other latents of it."""
    centers, rng = normal(codes, dim, seed=seed), np.random.default_rng(seed)
    if noise is None:
        return kmeans(normal(256 * codes, dim, seed=seed), codes)[0], normal(per_code * codes, dim, seed=seed + 50)
    y = torch.from_numpy(rng.integers(0, codes, per_code * codes))
    return centers, centers[y] + noise * normal(per_code * codes, dim, seed=seed + 50)


@pytest.mark.parametrize("noise", [0.02, 0.3, None])
@pytest.mark.parametrize("per_code, off", [(16, 0.2), (64, 0.1)])
def test_optimality_gap_of_a_perfect_codebook_is_1(per_code, off, noise):
    for seed in range(4):
        codebook, latents = perfect_and_latents(per_code, noise, seed=seed)
        assert metrics.optimality_gap(latents, codebook, seed) == pytest.approx(1, abs=off)


@pytest.mark.parametrize("per_code", [1, 2, 4, 15])
def test_optimality_gap_says_how_many_latents_it_needs(per_code):
    codebook, latents = perfect_and_latents(per_code, 0.02)
    with pytest.raises(ValueError, match=f"{64 * per_code} latents are too few .* 64 codes by: need 16 a code, 1024"):
        metrics.optimality_gap(latents, codebook)


@pytest.mark.parametrize("per_code, most", [(16, 0.2), (64, 0.1)])
def test_optimality_gap_of_a_codebook_that_knows_all_latents_is_a_little_below_1(per_code, most):
    _, latents = perfect_and_latents(per_code, None)
    fitted = kmeans(latents, 64, seed=7)[0]
    assert 1 - most < metrics.optimality_gap(latents, fitted) < 1
    fresh = normal(64 * 64, 8, seed=99)
    assert metrics.optimality_gap(fresh, fitted) > 1.05, "on latents that it does not know it loses what it learnt"


def test_optimality_gap_of_collapsed_codebooks_is_large_and_falls_back_to_1():
    codebook, latents = perfect_and_latents(16, 0.02)
    for collapsed in (codebook[:1].repeat(64, 1), codebook[:32].repeat(2, 1), codebook.mean(0) + 1e-3 * codebook):
        assert metrics.optimality_gap(latents, collapsed) > 100
    assert metrics.optimality_gap(torch.ones(64, 2), torch.ones(4, 2)) == 1
    assert metrics.optimality_gap(torch.ones(64, 2), torch.zeros(4, 2)) == math.inf
    assert metrics.optimality_gap(latents.view(4, 16, 16, 8), codebook) == metrics.optimality_gap(latents, codebook)


def test_optimality_gap_depends_on_its_seed():
    codebook, latents = perfect_and_latents(32, 0.3)
    gaps = [metrics.optimality_gap(latents, codebook, seed) for seed in (0, 0, 1)]
    assert gaps[0] == gaps[1] != gaps[2]


def test_reconstruction_error_is_a_share_of_the_variance():
    x = torch.tensor([[0.0, 2.0], [4.0, 6.0]])  # mean 3, variance 5
    assert metrics.reconstruction_error(x, x) == 0
    assert metrics.reconstruction_error(torch.full_like(x, 3), x) == 1
    assert metrics.reconstruction_error(x + 1, x) == pytest.approx(1 / 5)
    for wrong, right in ((x[:1], x), (x, torch.ones(2, 2)), (x * torch.nan, x), (x[:0], x[:0])):
        with pytest.raises(ValueError, match="shapes must be equal|must be finite"):
            metrics.reconstruction_error(wrong, right)


@pytest.mark.parametrize("kind", ["bool", "int8", "uint8", "uint16", "uint32", "uint64", "int64", "float32"])
def test_labels_may_be_of_any_type_that_holds_whole_numbers(kind):
    x = normal(200, 2)
    y = (x[:, 0] > 0).numpy().astype(kind)
    assert metrics.separability(x, y) == metrics.separability(x, y.astype("int64")) > 0.9
    if kind != "float32":
        found = diagnose(x, x[:2], labels=y)
        assert found.evidence == diagnose(x, x[:2], labels=y.astype("int64")).evidence
        assert "labels read off" in found.evidence


def test_separability_is_1_for_separate_modes_and_chance_for_noise():
    from sklearn.linear_model import LogisticRegression

    modes = gaussian_modes(per_mode=100, dim=8)
    assert metrics.separability(modes.x, modes.y) == 1
    assert metrics.separability(modes.x, modes.y, LogisticRegression()) == 1
    assert metrics.separability(torch.zeros_like(modes.x), modes.y) <= 0.1
    assert metrics.separability(normal(1000, 3), modes.y) < 0.2


def test_labels_of_another_length_are_refused():
    x, y = normal(20, 3), torch.arange(21) % 2
    for measure in (lambda: metrics.separability(x, y), lambda: metrics.mode_entropy(x, x[:4], y)):
        with pytest.raises(ValueError, match=r"21 labels for latents of shape \(20, 3\)"):
            measure()
    with pytest.raises(ValueError, match="5 members"):
        metrics.separability(x, torch.arange(20))


def test_confidence_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        low, high = metrics.confidence_interval(rng.normal(3, 1, 16), seed=trial)
        inside += low <= 3 <= high
    assert 0.87 <= inside / 200 <= 0.99  # the percentile bootstrap is a little too narrow for 16 runs
    for wrong in [1.0], 1.0, [[1.0, 2.0], [3.0, 4.0]], [], [1.0, np.nan], [1.0, np.inf]:
        with pytest.raises(ValueError, match="two finite"):
            metrics.confidence_interval(wrong)
    for level in 0, 1, -0.5, 95:
        with pytest.raises(ValueError, match=r"a level in \(0, 1\)"):
            metrics.confidence_interval([1.0, 2.0], level)
    assert metrics.confidence_interval([1.0, 3.0]) == (1, 3)  # two runs are enough
    assert metrics.confidence_interval([2.0, 2.0, 2.0]) == (2, 2)
    (wide, narrow), values = ((0.99, 0.5), rng.normal(3, 1, 50))
    (low, high), (lower, higher) = (metrics.confidence_interval(values, level) for level in (narrow, wide))
    assert lower < low < values.mean() < high < higher
