"""k-means: as good as scikit-learn's at any number of codes, for any latents it can be given, on their device."""

import warnings

import numpy as np
import pytest
import torch
from helpers import brute_force, normal
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from vqnotes import _kmeans_start
from vqnotes import kmeans as module
from vqnotes.kmeans import kmeans
from vqnotes.metrics import quantization_error


def clusters(count, per_cluster, dim=8, deviation=0.02, seed=0):
    """Latents around `count` centres far from each other: latents, centres."""
    centers = normal(count, dim, seed=seed)
    around = normal(count * per_cluster, dim, seed=seed + 1000)
    return centers.repeat(per_cluster, 1) + deviation * around, centers


def uneven(count, latents, dim=8, seed=0):
    """Clusters of sizes in proportion to 1, 1/2, 1/3, ..."""
    rng = np.random.default_rng(seed)
    sizes = 1 / np.arange(1, count + 1)
    y = rng.choice(count, latents, p=sizes / sizes.sum())
    return normal(count, dim, seed=seed)[torch.from_numpy(y)] + 0.05 * normal(latents, dim, seed=seed + 1)


def error(latents, codes):
    return quantization_error(latents, codes.to(latents), relative=False)


def of_scikit_learn(latents, codes, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(codes, n_init=1, max_iter=50, random_state=seed).fit(latents.double().numpy())
    return torch.from_numpy(found.cluster_centers_)


BEDS = {
    "Gaussian": lambda codes, per_code: normal(codes * per_code, 8),
    "a cluster a code": lambda codes, per_code: clusters(codes, per_code)[0],
    "four codes a cluster": lambda codes, per_code: clusters(codes // 4, 4 * per_code, deviation=0.05)[0],
    "clusters of uneven sizes": lambda codes, per_code: uneven(codes, codes * per_code),
}


@pytest.mark.parametrize("bed", BEDS)
@pytest.mark.parametrize("codes, per_code, seeds", [(16, 128, 8), (64, 32, 5), (320, 16, 1), (1100, 6, 1)])
def test_the_error_is_that_of_scikit_learn_for_few_codes_and_for_many(bed, codes, per_code, seeds):
    latents = BEDS[bed](codes, per_code)
    ours = np.mean([error(latents, kmeans(latents, codes, seed)[0]) for seed in range(seeds)])
    theirs = np.mean([error(latents, of_scikit_learn(latents, codes, seed)) for seed in range(seeds)])
    assert ours < 1.05 * theirs


@pytest.mark.parametrize("bed", BEDS)
def test_codes_that_are_drawn_eight_at_once_are_as_good(bed, monkeypatch):
    latents = BEDS[bed](320, 16)
    alone = np.mean([error(latents, kmeans(latents, 320, seed)[0]) for seed in range(4)])
    monkeypatch.setattr(_kmeans_start, "PER_DRAW", 40)  # as for 16,384 codes, but of fewer, where it matters more
    together = [kmeans(latents, 320, seed)[0] for seed in range(4)]
    assert np.mean([error(latents, codes) for codes in together]) < 1.05 * alone
    assert all(len(codes.unique(dim=0)) == 320 for codes in together)


def test_one_code_more_changes_the_error_little():
    latents, _ = clusters(1040, 6)
    before, after = (error(latents, kmeans(latents, codes)[0]) for codes in (1024, 1025))
    assert 0.8 * before < after < 1.1 * before


def test_it_goes_on_until_centroids_are_the_means_of_their_latents():
    latents = normal(3000, 2)  # one step from the start leaves 1.1 times as much
    codes, _ = kmeans(latents, 40)
    index = brute_force(latents, codes)
    means = torch.stack([latents[index == code].mean(0) for code in range(40)])
    assert error(latents, codes) < 1.002 * error(latents, means)
    assert (codes - means).norm(dim=1).mean() < 0.05 * torch.pdist(codes).min()


def test_the_share_is_that_of_the_latents_nearest_to_each_centroid():
    latents = normal(5, 100, 3, dtype=torch.float64)
    codes, share = kmeans(latents, 20, seed=3)
    assert codes.shape == (20, 3) and codes.dtype == share.dtype == torch.float64
    counts = brute_force(latents.reshape(-1, 3), codes).bincount(minlength=20)
    assert torch.equal(share, counts.double() / 500) and (counts > 0).all()


def test_one_centroid_is_the_mean_and_as_many_as_latents_are_the_latents(monkeypatch):
    latents = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
    assert [one.tolist() for one in kmeans(latents, 1)] == [[[6]], [1]]
    codes, share = kmeans(latents, 4)
    assert sorted(codes[:, 0].tolist()) == [0, 2, 10, 12] and share.tolist() == [0.25] * 4
    monkeypatch.setattr(_kmeans_start, "FEW", 100)
    assert torch.equal(kmeans(normal(300, 2), 300)[1], torch.full((300,), 1 / 300))


def test_of_fewer_different_latents_than_codes_each_has_a_centroid():
    latents = torch.tensor([[1.0], [1.0], [1.0], [7.0]])
    codes, share = kmeans(latents, 4)
    assert codes[:, 0].unique().tolist() == [1, 7] and sorted(share.tolist()) == [0, 0, 0.25, 0.75]
    for repeated in (normal(10, 3).repeat(1000, 1), torch.ones(6000, 3), torch.zeros(20, 3)):
        codes, share = kmeans(repeated, 16)
        assert error(repeated, codes) < 1e-12 and share.sum().item() == pytest.approx(1)


def test_a_centroid_without_latents_moves_to_the_farthest_latent():
    latents = torch.tensor([[0.0], [1.0], [9.0], [20.0]])
    codes, index = torch.tensor([[0.5], [14.0], [500.0]]), torch.tensor([0, 0, 1, 1])
    moved = module._means(latents, index.clone(), (latents - codes[index]).square().sum(1), codes)
    assert moved[:, 0].tolist() == [0.5, 9, 20]


@pytest.mark.parametrize("offset, size", [(1e4, 1), (0, 1e-20), (0, 1e20), (0, 1e-3), (-1e30, 1e28)])
def test_neither_the_origin_nor_the_unit_matters(offset, size):
    latents, centers = clusters(50, 30, deviation=0.01)
    shifted = offset + size * latents.double()
    for points in (shifted, shifted.float()):
        codes, share = kmeans(points, 50)
        best = error(points, (offset + size * centers.double()).to(points))
        assert codes.dtype == points.dtype and error(points, codes) < 1.01 * best
        assert torch.allclose(share, torch.full_like(share, 1 / 50))


def test_far_from_the_origin_no_digit_is_lost():
    latents, _ = clusters(50, 30, deviation=0.01)
    near, far = (kmeans(offset + latents.double(), 50)[0] - offset for offset in (0, 2**30))
    assert torch.allclose(near, far, atol=1e-6)


def test_half_precision_counts_in_single():
    latents = clusters(30, 400)[0].half()
    codes, share = kmeans(latents, 30)
    assert codes.dtype == share.dtype == torch.float16 and share.float().sum().item() == pytest.approx(1, abs=0.01)
    assert error(latents, codes) < 1.02 * error(latents, of_scikit_learn(latents, 30, 0))


def test_the_seed_and_nothing_else_decides():
    for latents in (normal(500, 3), normal(_kmeans_start.FEW + 500, 3)):
        torch.manual_seed(5)
        one = kmeans(latents, 20, seed=1)
        torch.manual_seed(6)
        other = kmeans(latents, 20, seed=1)
        assert all(torch.equal(*pair) for pair in zip(one, other))
        assert not torch.equal(one[0], kmeans(latents, 20, seed=2)[0])
        assert torch.equal(one[0], kmeans(latents.clone().requires_grad_(), 20, seed=1)[0])


def test_nothing_leaves_the_latents_device(monkeypatch):
    def leaves(*_, **__):
        raise AssertionError("to numpy")

    monkeypatch.setattr(torch.Tensor, "numpy", leaves)
    monkeypatch.setattr(torch.Tensor, "cpu", leaves)
    for latents in (normal(500, 3), normal(_kmeans_start.FEW + 500, 3)):
        kmeans(latents, 16)


@pytest.mark.parametrize(
    "latents, codes, shown",
    [
        (normal(5, 2), 6, "5 latents are too few for 6 codes"),
        (normal(5, 2), 0, "got 0"),
        (normal(0, 2), 1, r"\(0, 2\)"),
        (normal(5, 2).fill_(torch.nan), 2, "10 NaN"),
        (torch.ones(5, 2, dtype=torch.int64), 2, "int64"),
    ],
)
def test_it_refuses_what_it_cannot_use(latents, codes, shown):
    with pytest.raises(ValueError, match=shown):
        kmeans(latents, codes)
