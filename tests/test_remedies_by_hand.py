"""Remedies against their formulas worked by hand, and against the pitfalls that are known from other code."""

import math

import pytest
import torch
from helpers import normal
from pytest import approx

from vqnotes.models import mlp_autoencoder
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import (
    FSQ,
    LFQ,
    AffineCodes,
    CodeExpiry,
    CosineCodes,
    DiVeQ,
    EntropyLoss,
    LeastRecentlyUsed,
    OnlineClustering,
    OrthogonalCodes,
    RandomRestart,
    ResidualVQ,
    RotationTrick,
    SimVQ,
    SpreadLatents,
)
from vqnotes.remedies.entropy import entropy_gap
from vqnotes.training import fit


def with_codes(quantizer, codes):
    with torch.no_grad():
        quantizer.codebook.copy_(torch.as_tensor(codes))
    return quantizer


# ---------------------------------------------------------------- formulas


def test_rotation_turns_and_scales_the_gradient():
    # z = (1, 0) is turned by a right angle and doubled: q = (0, 2). What arrives as g leaves as 2 R^T g.
    quantizer = with_codes(RotationTrick(1, 2, beta=0), [[0.0, 2.0]])
    z = torch.tensor([[1.0, 0.0]], requires_grad=True)
    latents_q = quantizer(z).latents_q
    (latents_q * torch.tensor([[3.0, 7.0]])).sum().backward()
    assert latents_q.tolist() == [[0, 2]] and z.grad.flatten().tolist() == approx([14, -6], abs=1e-5)


def test_diveq_moves_latent_and_code_along_the_line_between_them():
    quantizer = with_codes(DiVeQ(1, 2, variance=0), [[3.0, 4.0]]).train()
    z = torch.zeros(1, 2, requires_grad=True)
    quantized = quantizer(z)
    (quantized.latents_q * torch.tensor([[5.0, 10.0]])).sum().backward()
    along = (5 * 0.6 + 10 * 0.8) * torch.tensor([0.6, 0.8])  # u (u.g), u = (0.6, 0.8)
    assert quantized.latents_q.tolist() == [[3, 4]] and quantized.loss == 0
    assert quantizer.codebook.grad[0].tolist() == approx(along.tolist())
    assert z.grad[0].tolist() == approx((torch.tensor([5.0, 10.0]) - along).tolist())


@pytest.mark.parametrize("far", [10.0, 0.1])
def test_diveq_turns_by_noise_of_its_own_size_at_any_distance_and_keeps_the_distance(far):
    deviation = 1e-3
    latents = torch.tensor([[far, 0.0, 0.0]], dtype=torch.float64).repeat(20_000, 1)
    quantizer = with_codes(DiVeQ(1, 3), [[0.0, 0.0, 0.0]]).double()
    torch.manual_seed(0)
    off = quantizer.train()(latents).latents_q.detach()
    assert off[:, 1:].std().item() == approx(deviation, rel=0.03)  # of the default, as in the authors' code
    assert torch.allclose((latents - off).norm(dim=1), torch.full((), far, dtype=torch.float64))


def test_diveq_in_evaluation_is_the_code_and_passes_the_gradient_it_has_in_training_without_noise():
    weight, found = normal(50, 3, seed=2), []
    for variance, training in ((0.5, False), (0.0, True)):
        z = normal(50, 3).requires_grad_()
        quantizer = with_codes(DiVeQ(4, 3, variance=variance), normal(4, 3, seed=1)).train(training)
        latents_q, index, _ = quantizer(z)
        assert torch.equal(latents_q, quantizer.codebook[index])
        found.append(torch.autograd.grad((latents_q * weight).sum(), [z, quantizer.codebook]))
    for in_evaluation, in_training in zip(*found):
        assert in_evaluation.abs().sum() > 0 and torch.equal(in_evaluation, in_training)


def test_entropy_gap_of_known_choices():
    sure = 1000 * torch.eye(4)
    assert entropy_gap(sure).item() == approx(-math.log(4), abs=1e-5)  # each sure of its own code: the best
    assert entropy_gap(torch.zeros(9, 4)).item() == approx(0, abs=1e-6)  # all undecided
    assert entropy_gap(sure[:1].repeat(9, 1)).item() == approx(0, abs=1e-6)  # all sure of the same
    mixed = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])  # (1/4, 3/4) and (3/4, 1/4)
    of_each = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy_gap(mixed).item() == approx(of_each - math.log(2), rel=1e-5)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_entropy_of_halves_is_that_of_all_codes(dim):
    quantizer, latents = LFQ(dim, entropy_weight=1.0, inverse_temperature=0.7, beta=0.0), normal(50, dim)
    whole = entropy_gap(1.4 * latents @ quantizer.codes().T)
    assert quantizer(latents).loss.item() == approx(whole.item(), rel=1e-4)


def test_entropy_loss_means_the_same_at_any_scale():
    latents, codes = normal(50, 4), normal(8, 4, seed=1)
    extra = []
    for scale in (1, 8):
        z, quantizer = scale * latents, with_codes(EntropyLoss(8, 4, entropy_weight=1.0), scale * codes)
        chosen = quantizer.codebook[quantizer.assign(z, quantizer.codebook)]
        extra.append((quantizer.loss(z, chosen) - VectorQuantizer.loss(quantizer, z, chosen)).item())
    assert -math.log(8) < extra[0] < -0.1 and extra[0] == approx(extra[1], abs=1e-4)
    distances = torch.cdist(latents, codes).square()
    scores = -distances / (
        quantizer.temperature * distances.min(1).values.mean()
    )  # relative to the error of a latent
    assert extra[0] == approx(entropy_gap(scores).item(), rel=1e-4)


def test_orthogonality_is_zero_for_orthogonal_codes_and_largest_for_equal_ones():
    for codes, expected in ((torch.eye(4), 0), (torch.ones(4, 4), 1 - 1 / 4)):
        quantizer = with_codes(OrthogonalCodes(4, 4, orthogonal_weight=10.0), codes)
        assert quantizer.loss(codes, codes).item() == approx(10 * expected, abs=1e-6)


def test_spreading_costs_nothing_for_white_latents_and_by_hand_otherwise():
    quantizer = with_codes(SpreadLatents(2, 2, spread_weight=10.0), torch.zeros(2, 2))
    plain = with_codes(VectorQuantizer(2, 2), torch.zeros(2, 2))
    corners = 3**0.5 / 2 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # covariance 1, 0, 1
    for latents, variance, together in (
        (corners, (1, 1), 0),
        (5 + corners * torch.tensor([1.0, 0.5]), (1, 0.25), 0),
        (corners[[0, 0, 3, 3]], (1, 1), 1),
    ):
        lacking = sum(max(0, 1 - (one + 1e-4) ** 0.5) for one in variance) / 2
        found = quantizer.loss(latents, latents) - plain.loss(latents, latents)
        assert found.item() == approx(10 * (lacking + 2 * together**2 / 2), abs=1e-4)


def test_affine_codes_follow_the_latents_without_being_chosen():
    quantizer, latents = AffineCodes(16, 3, affine_decay=0.5), 5 + 3 * normal(500, 3)
    assert torch.allclose(quantizer.codes(), quantizer.codebook, atol=1e-6)  # starts as a plain codebook
    for _ in range(30):
        quantizer.train()(latents)
    codes = quantizer.codes()
    assert torch.allclose(codes.mean(0), latents.mean(0), atol=1e-3)
    assert torch.allclose(codes.var(0, correction=0), latents.var(0, correction=0), rtol=1e-2)
    slow = AffineCodes(16, 3, affine_decay=0.9)
    expected = 0.9 * slow.codebook.detach().mean(0) + 0.1 * latents.mean(0)
    slow.train()(latents)
    assert torch.allclose(slow.latent_mean, expected, atol=1e-5)


def test_simvq_moves_codes_that_nobody_chose():
    quantizer = SimVQ(16, 3)
    before = quantizer.codes().detach().clone()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    quantizer(normal(1, 3)).loss.backward()
    optimizer.step()
    assert ((quantizer.codes() - before).abs().sum(1) > 0).all() and quantizer.codebook.requires_grad is False


def test_restart_replaces_what_is_used_too_rarely_by_latents_of_the_batch():
    quantizer = with_codes(RandomRestart(4, 2, threshold=1.0, memory=0.5), [[0.0, 0], [1, 1], [99, 99], [77, 77]])
    latents = torch.tensor([[0.0, 0], [0.1, 0], [1, 1], [0.9, 1]])
    for expected in ([4 * 3 / 8, 4 * 3 / 8, 4 / 8, 4 / 8],):  # averages of 1 and 2, 2, 0, 0 latents
        quantizer.train()(latents)
        assert (4 * quantizer.use).tolist() == expected
    kept, placed = quantizer.codebook.tolist()[:2], quantizer.codebook.tolist()[2:]
    assert kept == [[0, 0], [1, 1]] and placed[0] != placed[1] and all(code in latents.tolist() for code in placed)


def test_expiry_gives_a_replaced_code_time_and_its_limit_fits_any_batch():
    assert CodeExpiry(4, 2, threshold=0.1, memory=0.9).limit(8) == CodeExpiry(4, 2, memory=0.9).limit(800) == 0.1 / 4
    quantizer = with_codes(CodeExpiry(4, 2, threshold=0.6, memory=0.5), [[0.0, 0], [9, 9], [99, 99], [77, 77]])
    quantizer.train()(torch.zeros(8, 2))
    assert quantizer.use.tolist() == [5 / 8, 1 / 4, 1 / 4, 1 / 4]


def test_least_recently_used_counts_steps_since_the_last_hit():
    quantizer = with_codes(LeastRecentlyUsed(3, 1, patience=2, noise=0), [[0.0], [5.0], [50.0]])
    first, second = torch.tensor([[0.0], [5.0]]), torch.tensor([[0.0], [0.5]])
    quantizer.train()(first)
    assert quantizer.idle.tolist() == [0, 0, 1] and quantizer.codebook[2] == 50
    quantizer(second)
    assert quantizer.idle.tolist() == [0, 1, 0] and quantizer.codebook[:2].flatten().tolist() == [0, 5]
    assert quantizer.codebook[2] in second
    quantizer(second)
    assert quantizer.codebook[1] in second and quantizer.codebook[0] == 0


@pytest.mark.parametrize("anchor", ["closest", "random", "probrandom"])
def test_online_clustering_is_its_formula(anchor):
    class Watched(OnlineClustering):
        def anchors(self, latents):
            self.seen = super().anchors(latents)
            return self.seen

    quantizer = with_codes(Watched(3, 1, memory=0.9, anchor=anchor), [[0.0], [4.0], [9.0]])
    latents = torch.tensor([[0.1], [0.2], [4.5], [4.1]])
    quantizer.train()(latents)
    anchors = quantizer.seen.flatten().tolist()
    if anchor == "closest":
        assert quantizer.seen.tolist() == latents[[0, 3, 2]].tolist()
    assert all(one in latents for one in anchors) and (anchor == "probrandom" or len(set(anchors)) == 3)
    use = [0.1 * 0.5, 0.1 * 0.5, 0.0]
    pull = [math.exp(-10 * 3 * u / 0.1 - 1e-3) for u in use]
    expected = [e + a * (anchor - e) for e, a, anchor in zip((0, 4, 9), pull, anchors)]
    assert quantizer.use.tolist() == approx(use, rel=1e-5) and quantizer.codebook.flatten().tolist() == approx(
        expected, rel=1e-4
    )


def test_residual_codes_are_all_sums_in_the_order_of_the_index():
    quantizer = ResidualVQ((2, 3), 2)
    with_codes(quantizer.stages[0], [[0.0, 0], [10, 10]])
    with_codes(quantizer.stages[1], [[0.0, 0], [1, 0], [0, 1]])
    assert quantizer.codes().tolist() == [[0, 0], [10, 10], [1, 0], [11, 10], [0, 1], [10, 11]]
    quantized = quantizer(torch.tensor([[10.9, 10.1], [0.1, 0.8]]))
    assert quantized.index.tolist() == [[1, 1], [0, 2]] and quantized.latents_q.tolist() == [[11, 10], [0, 1]]
    assert quantizer.joint_index(quantized.index).tolist() == [3, 4]
    assert torch.equal(quantizer.decode(quantized.index), quantized.latents_q)


def test_levels_that_start_at_random_all_start_elsewhere():
    for seed in range(20):
        quantizer = ResidualVQ((8,) * 6, 4)
        quantizer.init_codes("normal", seed=seed)
        codes = torch.stack([stage.codebook.detach() for stage in quantizer.stages])
        assert len(codes.unique(dim=0)) == 6


# ---------------------------------------------------------------- pitfalls


def test_rotation_survives_opposite_and_zero_vectors():
    quantizer = with_codes(RotationTrick(2, 2, beta=0), [[-1.0, 0.0], [0.0, 0.0]])
    for start, code in (([1.0, 0.0], 0), ([-1.0, 1e-9], 0), ([0.0, 0.0], 1)):
        z = torch.tensor([start], requires_grad=True)
        chosen = quantizer.codebook[code : code + 1]
        (quantizer.estimate(z, chosen) * torch.tensor([[3.0, 7.0]])).sum().backward()
        assert torch.isfinite(z.grad).all() and z.grad.norm() == approx(math.hypot(3, 7), rel=1e-5)
        assert z.grad.tolist()[0] == approx([3, 7])  # nothing is turned: opposite, or the same direction, or none


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("angle", [0, 1, 90, 179, 179.99, 180])
def test_rotation_turns_up_to_the_opposite_direction_where_it_is_straight_through(angle, length):
    turn = math.radians(angle)
    quantizer = with_codes(RotationTrick(1, 2, beta=0), [[length * math.cos(turn), length * math.sin(turn)]])
    z = torch.tensor([[length / 2, 0.0]], requires_grad=True)
    (quantizer(z).latents_q * torch.tensor([[3.0, 7.0]])).sum().backward()
    back = 2 * torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    expected = torch.tensor([3.0, 7.0]) if angle > 179.9 else back @ torch.tensor([3.0, 7.0])
    assert z.grad[0].tolist() == approx(expected.tolist(), rel=1e-3, abs=1e-3)


def test_fsq_indices_are_exact_in_half_precision():
    quantizer = FSQ(levels=(8, 5, 5, 5))
    grid = quantizer.codes()
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(quantizer.assign(grid.to(dtype), grid), torch.arange(1000))


def test_the_threshold_of_expiry_fits_any_batch_that_of_restart_does_not():
    """Codes that all are used alike: nothing is dead, whatever the batch."""
    codes = torch.arange(64.0)[:, None]
    for per_code in (1, 16):
        batch = codes.repeat(per_code, 1)
        quiet = with_codes(CodeExpiry(64, 1), codes).train()
        quiet(batch)
        assert torch.equal(quiet.codebook, codes)
    storm = with_codes(RandomRestart(64, 1, threshold=2.0), codes).train()
    storm(codes)
    assert (storm.use * 64 < 2).all()  # every code is below the threshold, so every code is replaced at every step


def test_a_replaced_code_is_not_carried_away_by_the_optimisers_memory():
    """Adam still remembers the gradients of the code that was there before: a few learning rates at most."""
    lr, seen = 1e-3, []

    class Watched(LeastRecentlyUsed):
        def replace(self, stale, latents):
            super().replace(stale, latents)
            seen.append((stale.clone(), self.codebook.detach().clone()))

    torch.manual_seed(0)
    model = mlp_autoencoder(4, Watched(32, 4, patience=2), width=16)
    fit(model, normal(500, 4), steps=60, seed=0, lr=lr, batch_size=16, progress=False)
    shifts = [(after - before)[stale].norm(dim=1) for (stale, before), (_, after) in zip(seen[:-1], seen[1:])]
    assert sum(map(len, shifts)) > 50 and torch.cat(shifts).max() < 10 * lr


def test_replacement_forgets_the_average_of_the_code_before():
    quantizer = CodeExpiry(2, 1, update="ema", threshold=0.6, memory=0.5)
    quantizer.place_codes(torch.tensor([[0.0], [50.0]]), torch.tensor([0.5, 0.5]))
    quantizer.train()(torch.zeros(4, 1))
    assert quantizer.codebook[1] == 0 and quantizer.share[1] == 0
    quantizer.codebook[1] = 3.0
    quantizer(torch.tensor([[0.0], [3.5]]))
    assert quantizer.codebook[1].item() == approx(3.5)  # its first latents determine it


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "make, shown",
    [
        (lambda: SimVQ(8, 2, update="ema"), "SimVQ needs update='gradient'"),
        (lambda: AffineCodes(8, 2, affine_decay=1.0), "affine_decay must be in .* got 1.0"),
        (lambda: AffineCodes(8, 2, update="ema"), "AffineCodes needs"),
        (lambda: DiVeQ(8, 2, variance=-1), "variance must be at least 0, got -1"),
        (lambda: DiVeQ(8, 2, update="ema"), "DiVeQ needs"),
        (lambda: OrthogonalCodes(8, 2, orthogonal_weight=-1), "orthogonal_weight .* -1"),
        (lambda: SpreadLatents(8, 2, spread_weight=-1), "spread_weight .* -1"),
        (lambda: EntropyLoss(8, 2, entropy_weight=math.nan), "entropy_weight .* nan"),
        (lambda: EntropyLoss(8, 2, temperature=0), "temperature must be above 0, got 0"),
        (lambda: RandomRestart(8, 2, threshold=-1), "threshold .* -1"),
        (lambda: CodeExpiry(8, 2, memory=1), r"memory must be in \[0, 1\), got 1"),
        (lambda: LeastRecentlyUsed(8, 2, patience=0), "patience .* got 0"),
        (lambda: OnlineClustering(8, 2, memory=-0.1), "memory .* -0.1"),
        (lambda: OnlineClustering(8, 2, anchor="far"), "anchor must be .* 'far'"),
        (lambda: type("Both", (CodeExpiry, SimVQ), {})(8, 2), "Both: codes that are computed"),
        (lambda: FSQ(levels=()), r"at least 3, got \[\]"),
        (lambda: FSQ(levels=(8, 8), bound="far"), "bound must be 'atanh' or 'tan', got 'far'"),
        (lambda: FSQ(levels=(2, 2)), r"at least 3, got \[2, 2\]"),
        (lambda: LFQ(0), "at least 1 bit, got 0"),
        (lambda: LFQ(6, inverse_temperature=0), "inverse_temperature must be above 0, got 0"),
        (lambda: ResidualVQ((), 2), r"at least one stage, each of at least one code, got \[\]"),
        (lambda: ResidualVQ((8, 0), 2), r"each of at least one code, got \[8, 0\]"),
        (lambda: CosineCodes(8, 2)(torch.zeros(3, 5)), r"\(3, 5\)"),
        (lambda: FSQ(levels=(3, 3))(torch.zeros(3, 5)), r"\(3, 5\)"),
        (lambda: LFQ(2)(torch.full((3, 2), torch.nan)), "NaN"),
        (lambda: RandomRestart(8, 2).init_codes("kmeans", normal(4, 2)), "4 latents are too few for 8"),
        (lambda: ResidualVQ((4, 4), 2).init_codes("best", normal(40, 2)), "best"),
        (lambda: VectorQuantizer(8, 2, beta=-1), "beta must be at least 0, got -1"),
    ],
)
def test_bad_input_is_refused(make, shown):
    with pytest.raises(ValueError, match=shown):
        make()


# ---------------------------------------------------------------- what a planted defect would change


def rotation(u, v):
    """The matrix that turns the direction u onto v and leaves alone what is orthogonal to both, in float64."""
    w = (u + v) / (u + v).norm()
    return torch.eye(len(u), dtype=torch.float64) - 2 * torch.outer(w, w) + 2 * torch.outer(v, u)


@pytest.mark.parametrize("degrees", [5.0, 60.0, 120.0, 151.0, 170.0, 179.0, 179.8])
def test_rotation_turns_by_any_angle_short_of_a_half_turn(degrees):
    angle, g = math.radians(degrees), torch.tensor([3.0, 7.0, -2.0])
    z = torch.tensor([[2.0, 0.0, 0.0]], requires_grad=True)
    q = torch.tensor([[3 * math.cos(angle), 3 * math.sin(angle), 0.0]])
    (RotationTrick(1, 3).estimate(z, q) * g).sum().backward()
    start, end = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), q[0].double() / q[0].double().norm()
    turn = rotation(start, end)
    assert torch.allclose(turn @ start, end)
    assert torch.allclose(z.grad[0].double(), 1.5 * turn.T @ g.double(), atol=1e-2)
    assert not torch.allclose(z.grad[0], g, atol=0.5)  # not straight through


def test_the_temperature_of_entropy_is_held_constant():
    """The gradient is that with the same temperature given as a number; one that flows into it is another."""
    codes, found = normal(8, 4, seed=1), []
    chosen = codes[torch.cdist(normal(50, 4), codes).argmin(1)]
    temperature = (normal(50, 4) - chosen).square().sum(1).mean().item()
    for options in ({}, {"temperature": temperature, "relative": False}):
        quantizer = with_codes(EntropyLoss(8, 4, entropy_weight=1.0, beta=0.0, **options), codes)
        z = normal(50, 4).requires_grad_()
        found.append(torch.autograd.grad(quantizer(z).loss, [z, quantizer.codebook]))
    for relative, absolute in zip(*found):
        assert torch.allclose(relative, absolute, atol=1e-6) and relative.abs().sum() > 1e-3


def test_the_entropy_of_signs_is_sure_a_twentieth_off_zero():
    """exp(2 * 100 * 2 * 0.05) = e^20 to 1: each latent is sure, all codes are in use, so the gap is -log 16."""
    quantizer = LFQ(4, entropy_weight=1.0, beta=0.0)
    assert quantizer(0.05 * quantizer.codes()).loss.item() == approx(-math.log(16), abs=1e-3)


@pytest.mark.parametrize("size, dim", [(64, 8), (8, 64), (1, 3), (3, 1)])
def test_orthogonality_is_the_sum_over_all_pairs_of_codes(size, dim):
    quantizer, z = with_codes(OrthogonalCodes(size, dim, orthogonal_weight=1.0), normal(size, dim)), normal(5, dim)
    unit = torch.nn.functional.normalize(normal(size, dim, dtype=torch.float64), dim=1)
    expected = (unit @ unit.T).square().sum().item() / size**2 - 1 / size
    extra = quantizer.loss(z, z) - VectorQuantizer.loss(quantizer, z, z)
    assert extra.item() == approx(expected, abs=1e-6)


def test_orthogonality_of_very_many_codes_needs_no_product_of_all_pairs():
    """131,072 codes: all pairs would take 69 GB."""
    quantizer = OrthogonalCodes(2**17, 4)
    quantizer(normal(8, 4)).loss.backward()
    assert (quantizer.codebook.grad != 0).any(dim=1).all()
