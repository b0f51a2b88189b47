"""Codes that start anew: on which latents, how often, and the same in every way to run them."""

import pytest
import torch
from helpers import normal
from scipy import stats

from vqnotes.models import image_autoencoder
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import (
    FSQ,
    LFQ,
    AffineCodes,
    CodeExpiry,
    CodeSplitting,
    CosineCodes,
    LeastRecentlyUsed,
    OnlineClustering,
    RandomRestart,
    ResidualVQ,
    SimVQ,
)
from vqnotes.remedies.replacement import near_at_random, uniform
from vqnotes.training import fit, fit_many

STORM = {  # all codes, or all but those that the batch chose, start anew at every step
    "restart": lambda size, dim, **options: RandomRestart(size, dim, threshold=1e9, **options),
    "expiry": lambda size, dim, **options: CodeExpiry(size, dim, threshold=1e9, **options),
    "LRU": lambda size, dim, **options: LeastRecentlyUsed(size, dim, patience=1, noise=0, **options),
    "CVQ": lambda size, dim, **options: OnlineClustering(size, dim, **options),
}
QUICK = {  # often at work in a run of thirty steps
    "restart": lambda: RandomRestart(32, 4, memory=0.9),
    "expiry": lambda: CodeExpiry(32, 4, memory=0.8, threshold=0.5),
    "expiry, EMA": lambda: CodeExpiry(32, 4, memory=0.8, threshold=0.5, update="ema"),
    "LRU": lambda: LeastRecentlyUsed(32, 4, patience=4),
    "CVQ": lambda: OnlineClustering(32, 4, memory=0.9),
    "CVQ, EMA": lambda: OnlineClustering(32, 4, memory=0.9, update="ema"),
    "CVQ, probrandom": lambda: OnlineClustering(32, 4, memory=0.9, anchor="probrandom"),
}


def made(make, *arguments, seed=0, **options):
    torch.manual_seed(seed)
    return make(*arguments, **options)


def distances(one, other):
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")  # exact where they are equal


# ---------------------------------------------------------------- which latents


def drawn_places(count: int, codes: int, steps: int, seed: int = 0) -> torch.Tensor:
    """Where in a batch of `count` latents the codes of a restart storm come from, (steps, codes)."""
    latents = torch.arange(float(count))[:, None]  # each says where it stands
    quantizer = made(RandomRestart, codes, 1, threshold=1e9, seed=seed).train()
    found = []
    for _ in range(steps):
        quantizer(latents)
        found.append(quantizer.codebook.detach().flatten().long())
    return torch.stack(found)


@pytest.mark.parametrize(
    "images, places, codes", [(16, 64, 1), (128, 64, 128), (128, 64, 8), (8, 64, 8), (16, 49, 5), (100, 3, 64)]
)
@pytest.mark.parametrize("order", ["images first", "places first"])
def test_codes_start_anew_on_every_place_and_every_image_alike(images, places, codes, order):
    drawn = drawn_places(images * places, codes, steps=max(60, 20 * max(images, places) // codes))
    inner = places if order == "images first" else images
    for which, among in ((drawn % inner, inner), (drawn // inner, images * places // inner)):
        uses = torch.bincount(which.flatten(), minlength=among)
        assert stats.chisquare(uses.numpy()).pvalue > 1e-3


def test_no_place_says_which_comes_next():
    drawn = drawn_places(8 * 64, 2, steps=1000) % 8
    for one, other in ((drawn[:, 0], drawn[:, 1]), (drawn[1:, 0], drawn[:-1, 0]), (drawn[8:, 0], drawn[:-8, 0])):
        together = torch.bincount(8 * one + other, minlength=64).view(8, 8)
        assert stats.chi2_contingency(together.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("name", STORM)
def test_no_latent_is_given_twice_and_codes_are_latents(name):
    """A batch of 16 images, 4 x 4 places each, whose latents are much alike at one place, as at a border."""
    places = torch.arange(16.0).expand(16, 16)
    latents = torch.stack([10 * places, normal(16, 16)], dim=2)
    quantizer, found = made(STORM[name], 64, 2).train(), []
    for _ in range(12):
        before = quantizer.codebook.detach().clone()
        quantizer(latents)
        fresh = quantizer.codebook.detach()[(quantizer.codebook != before).any(dim=1)]
        nearest = distances(fresh, latents.view(-1, 2)).min(dim=1)
        if name != "CVQ":  # which draws codes to their anchors, never all the way
            assert nearest.values.max() == 0 and nearest.indices.unique().numel() == len(fresh)
        found.append(nearest.indices % 16)
        quantizer.place_codes(normal(64, 2) - 100, torch.zeros(64))  # all are dead again but one or two
    uses = torch.bincount(torch.cat(found), minlength=16)
    assert len(torch.cat(found)) > 12 * 60 and stats.chisquare(uses.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("update", ["gradient", "ema"])
@pytest.mark.parametrize("name", STORM)
def test_more_stale_codes_than_latents_make_no_clones(name, update):
    latents = 3 + normal(64, 8)
    quantizer = made(STORM[name], 256, 8, update=update).train()
    chosen = quantizer(latents).index
    codes = quantizer.codebook.detach()[~torch.isin(torch.arange(256), chosen)]
    assert len(codes) > 200
    assert distances(codes, codes).fill_diagonal_(torch.inf).min() > 1e-3
    assert distances(codes, latents).min(dim=1).values.max() < 0.05 * latents.norm(dim=1).max()


def test_noise_of_lru_is_relative_to_the_length_of_the_latent():
    latents = torch.tensor([[100.0, 0, 0, 0]]).repeat(2000, 1)
    for noise in (0.01, 0.1):
        quantizer = made(LeastRecentlyUsed, 1000, 4, patience=1, noise=noise).train()
        quantizer(latents)
        off = quantizer.codebook.detach() - latents[0]
        spread = off[off[:, 0].abs() < 99]  # those that were replaced: all but the one that was chosen
        assert len(spread) == 999
        assert spread.std(dim=0).numpy() == pytest.approx(100 * noise, rel=0.1)
        assert spread.mean(dim=0).abs().max() < 15 * noise


@pytest.mark.parametrize("shift", [0, 1000])
def test_probrandom_draws_a_latent_by_its_distance(shift):
    latents, code = torch.tensor([[0.0, 0], [1, 0], [0, 2], [3, 3]]) + shift, torch.tensor([[0.5, 0.25]]) + shift
    expected = (-(latents - code).square().sum(1)).softmax(0)
    numbers = uniform(torch.tensor(7), 20_000)
    places = near_at_random(latents, code.expand(20_000, 2), numbers)
    found = torch.bincount(places, minlength=4)[:3]
    assert found.numpy() / 20_000 == pytest.approx(expected[:3].numpy(), abs=0.012)
    assert torch.equal(places, near_at_random(latents, code.expand(20_000, 2), numbers, at_once=999))
    far = near_at_random(latents * 1e3, code, numbers[:1])  # all but one are as good as impossible
    assert far.tolist() == [(latents * 1e3 - code).norm(dim=1).argmin()]


def test_probrandom_draws_for_each_code_by_itself():
    latents = torch.cat([normal(500, 2), 50 + normal(500, 2, seed=1)])
    quantizer = made(OnlineClustering, 64, 2, anchor="probrandom")
    quantizer.place_codes(torch.cat([torch.zeros(32, 2), torch.full((32, 2), 50.0)]), torch.zeros(64))
    first, second = quantizer.anchors(latents), quantizer.anchors(latents)
    assert (first[:32] < 25).all() and (first[32:] > 25).all() and not torch.equal(first, second)
    assert first.unique(dim=0).shape[0] > 40


# ---------------------------------------------------------------- the same in every way to run them


def test_numbers_are_uniform_and_differ_from_state_to_state():
    numbers = torch.stack([uniform(torch.tensor(state), 5000) for state in (0, 1, 2, 2**32 - 1, 2**32 + 5)])
    assert ((numbers > 0) & (numbers < 1)).all()
    for row in numbers:
        assert stats.kstest(row.numpy(), "uniform").pvalue > 1e-3
        assert abs(torch.corrcoef(torch.stack([row[1:], row[:-1]]))[0, 1]) < 0.05
    assert (torch.corrcoef(numbers) - torch.eye(5)).abs().max() < 0.06
    at_once = torch.vmap(lambda state: uniform(state, 5000), randomness="different")(torch.tensor([0, 1]))
    assert torch.equal(at_once, numbers[:2])


def test_draws_depend_on_the_seed_of_the_codebook_and_on_nothing_else():
    one, other = (drawn_places(512, 16, steps=3, seed=seed) for seed in (0, 1))
    assert not torch.equal(one, other)
    torch.rand(100)
    assert torch.equal(one, drawn_places(512, 16, steps=3))


def test_weights_made_after_a_quantiser_do_not_depend_on_its_remedy():
    after = []
    for kind in (VectorQuantizer, CodeExpiry, LeastRecentlyUsed):
        made(kind, 8, 2)
        after.append(torch.rand(3).tolist())
    assert after[0] == after[1] == after[2]


def test_stages_of_a_residual_quantiser_draw_by_themselves():
    stages = made(ResidualVQ, (8, 8), 2, kind=RandomRestart, threshold=1e9).train().stages
    latents = torch.arange(512.0)[:, None].expand(512, 2)
    for stage in stages:
        stage(latents)
    assert not torch.equal(stages[0].codebook, stages[1].codebook)


@pytest.mark.parametrize("name", QUICK)
def test_a_run_is_the_same_alone_and_beside_others(name):
    images = normal(60, 1, 8, 8).sigmoid()
    options = {"steps": 30, "batch_size": 8, "init": "uniform", "progress": False}

    def build(seed):
        return image_autoencoder(1, QUICK[name](), width=8, decoder_width=8)

    torch.manual_seed(3)
    alone = build(3)
    start = alone.quantizer.draws.item()
    fit(alone, images, seed=3, **options)
    (_, _), (beside, _) = fit_many(build, images, seeds=(0, 3), **options)
    assert start < alone.quantizer.draws.item() == beside.quantizer.draws.item()
    assert torch.allclose(beside.quantizer.codebook, alone.quantizer.codebook, atol=1e-4)
    for own, other in zip(alone.parameters(), beside.parameters()):
        assert torch.allclose(own, other, atol=1e-4)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("count", [8, 500])
def test_a_step_reads_no_value(name, count):
    """On the meta device there are none: whatever would wait for a GPU, or branch on a value, raises."""
    quantizer = QUICK[name]().to("meta")
    quantizer.after_step(torch.empty(count, 4, device="meta"), torch.empty(count, dtype=torch.int64, device="meta"))
    assert quantizer.codebook.shape == (32, 4)


# ---------------------------------------------------------------- when


def fresh_batches(dim):
    """Batches of four equal latents of length 1, each at a right angle to those before: nearer to 0 than to any."""
    for row in torch.eye(dim):
        yield row.expand(4, dim)


def test_lru_gives_a_replaced_code_its_whole_patience_again():
    quantizer, moved = LeastRecentlyUsed(2, 20, patience=4).train(), []
    quantizer.place_codes(torch.tensor([[0.0], [99.0]]).expand(2, 20), torch.zeros(2))
    for step, batch in enumerate(fresh_batches(20), start=1):
        before = quantizer.codebook[1].clone()
        assert quantizer(batch).index.unique().tolist() == [0]
        if not torch.equal(quantizer.codebook[1], before):
            moved.append(step)
            assert (quantizer.codebook[1] - batch[0]).norm() < 0.1
    assert moved == [4, 8, 12, 16, 20]


def test_lru_gives_a_placed_code_its_whole_patience_again():
    quantizer, codes = LeastRecentlyUsed(2, 20, patience=4).train(), torch.tensor([[0.0], [99.0]]).expand(2, 20)
    for step, batch in enumerate(fresh_batches(20)):
        if step % 3 == 0:  # placed once more before its patience is over
            quantizer.place_codes(codes, torch.zeros(2))
        quantizer(batch)
        assert torch.equal(quantizer.codebook, codes)


def test_patience_fits_batches_with_fewer_latents_than_codes():
    """256 codes that all are used alike, 16 latents a step: each is idle for 16 steps in the mean."""
    codes = torch.arange(256.0)[:, None]

    def after(steps, **options):
        quantizer, generator = LeastRecentlyUsed(256, 1, **options).train(), torch.Generator().manual_seed(0)
        quantizer.place_codes(codes, torch.zeros(256))
        for _ in range(steps):
            quantizer(codes[torch.randint(256, (16,), generator=generator)])
        return quantizer.codebook

    assert torch.equal(after(600), codes)
    assert not torch.equal(after(600, patience=20), codes)
    assert [LeastRecentlyUsed(256, 1).limit(batch) for batch in (16, 255, 256, 10_000)] == [320, 21, 20, 20]
    assert LeastRecentlyUsed(256, 1, patience=7).limit(16) == 7


def test_patience_by_itself_still_replaces_dead_codes():
    quantizer = LeastRecentlyUsed(2, 40).train()
    quantizer.place_codes(torch.tensor([[0.0], [99.0]]).expand(2, 40), torch.zeros(2))
    for step, batch in enumerate(fresh_batches(40), start=1):
        quantizer(batch)
        assert (quantizer.codebook[1].norm() < 2) == (step >= 20)


@pytest.mark.parametrize("name", [*QUICK, "LRU, cosine"])
def test_codes_that_are_placed_begin_anew(name):
    both = type("Both", (LeastRecentlyUsed, CosineCodes), {})
    make = QUICK.get(name, lambda: both(32, 4, patience=4))
    used, unused = made(make), made(make)
    for seed in range(5):
        used.train()(normal(100, 4, seed=seed))
    for quantizer in (used, unused):
        quantizer.init_codes("kmeans", normal(400, 4, seed=9), seed=1)
    states = used.state_dict(), unused.state_dict()
    for key in states[0].keys() - {"draws"}:
        assert torch.equal(states[0][key], states[1][key]), key


def test_online_clustering_leaves_codes_of_kmeans_in_place_and_draws_others_to_their_anchors():
    latents = normal(2000, 2)
    quantizer = made(OnlineClustering, 64, 2).train()
    quantizer.init_codes("kmeans", latents)
    before = quantizer.codebook.detach().clone()
    quantizer(latents[:16])  # most codes have no latent in it
    assert torch.equal(quantizer.codebook, before)
    quantizer.init_codes("normal", seed=1)
    before = quantizer.codebook.detach().clone()
    index = quantizer(latents[:16]).index
    moved = (quantizer.codebook - before).norm(dim=1) > 0.01
    assert moved.sum() >= 48 and not moved[index.unique()].any()


def test_online_clustering_keeps_as_much_of_an_ema_share_as_of_the_code():
    quantizer = OnlineClustering(2, 1, update="ema", memory=0.5, decay=0.5).train()
    quantizer.place_codes(torch.tensor([[0.0], [50.0]]), torch.tensor([0.5, 0.5]))
    quantizer.use.zero_()
    quantizer(torch.zeros(4, 1))
    kept = 1 - torch.tensor(-1e-3).exp()
    assert quantizer.codebook[1, 0].item() == pytest.approx(50 * kept.item(), rel=1e-4)
    assert quantizer.share.tolist() == pytest.approx([0.75, 0.25 * kept.item()], rel=1e-4)


# ---------------------------------------------------------------- splitting


@pytest.mark.parametrize("interval, threshold, least", [(5, 0.01, 1), (5, 0.5, 3), (1, 0.01, 1), (8, 0.25, 2)])
def test_splitting_waits_for_its_interval_and_counts_steps(interval, threshold, least):
    """Code 3 is far from all latents, code 2 is chosen in some steps of each interval, and codes 0 and 1 in all."""
    far = torch.tensor([100.0, 100.0])
    quantizer = made(CodeSplitting, 4, 2, interval=interval, threshold=threshold, noise=0).train()
    for chosen in range(interval + 1):
        for step in range(1, interval + 1):
            if step == 1:
                quantizer.codebook.data.copy_(torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.0, 0.0]]))
                quantizer.codebook.data[3] = far
            latents = torch.tensor([[0.1, 0.0], [9.1, 0.0], [0.1, 9.0]])
            quantizer(latents if step <= chosen else latents[:2])
            replaced = (quantizer.codebook.detach() - torch.stack([latents[2], far])[:, None]).norm(dim=2) > 1
            assert replaced[1, 3] == (step == interval)
            assert replaced[0, 2] == (step == interval and chosen < least)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("remedy", [RandomRestart, CodeExpiry, LeastRecentlyUsed, OnlineClustering])
@pytest.mark.parametrize("kind, size", [(FSQ, ((4, 4),)), (LFQ, (4,)), (SimVQ, (16, 2)), (AffineCodes, (16, 2))])
def test_codes_that_are_not_free_are_not_replaced(remedy, kind, size):
    for bases in ((remedy, kind), (kind, remedy)):
        with pytest.raises(ValueError, match="Both: (codes that are computed|the codes are a fixed grid)"):
            type("Both", bases, {})(*size)


@pytest.mark.parametrize(
    "make, shown",
    [
        (lambda: LeastRecentlyUsed(8, 2, patience=0.5), "patience must be at least 1 step, got 0.5"),
        (lambda: LeastRecentlyUsed(8, 2, patience=float("nan")), "patience .* got nan"),
        (lambda: LeastRecentlyUsed(8, 2, noise=-1), "noise must be at least 0, got -1"),
        (lambda: OnlineClustering(8, 2, anchor="cosine"), "'random', 'probrandom' or 'closest', got 'cosine'"),
    ],
)
def test_bad_options_are_refused(make, shown):
    with pytest.raises(ValueError, match=shown):
        make()


@pytest.mark.parametrize(
    "kind, options", [(LeastRecentlyUsed, {"patience": 300}), (CodeSplitting, {"interval": 300})]
)
def test_steps_are_counted_in_half_precision_too(kind, options):
    """bfloat16 counts to 256 only: a code far away would never be replaced."""
    torch.manual_seed(0)
    quantizer = kind(4, 2, **options).to(torch.bfloat16).train()
    with torch.no_grad():
        quantizer.codebook[3] = 1000
    for _ in range(301):
        quantizer(torch.randn(64, 2, dtype=torch.bfloat16))
    assert quantizer.codebook[3].abs().max() < 100
