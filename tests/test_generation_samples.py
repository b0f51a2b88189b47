"""Coverage, density, spread and histograms, by hand, by their definitions, and against what theory expects."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers import normal
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.neighbors import NearestNeighbors

from vqnotes.studies.generation import coverage, density, expected_coverage, histograms, spread

LINE = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # with k = 1, neighbourhoods of radius 1, 1, 2 and 4


@pytest.mark.parametrize(
    "samples, covered, dense",
    [
        ([0.5], 2 / 4, 2),  # in those of 0 and 1
        ([0.5, 0.5], 2 / 4, 2),  # a copy covers nothing new
        ([4.0], 2 / 4, 2),  # in those of 3 and 7
        ([0.5, 4.0], 1, 2),
        ([11.0, 12.0], 1 / 4, 1 / 2),  # the edge belongs to the neighbourhood
        ([100.0], 0, 0),
    ],
)
def test_coverage_and_density_by_hand(samples, covered, dense):
    samples = torch.tensor(samples)[:, None]
    assert coverage(LINE, samples, k=1) == pytest.approx(covered)
    assert density(LINE, samples, k=1) == pytest.approx(dense)


@pytest.mark.parametrize("k", [1, 3, 5, 20])
def test_coverage_and_density_by_their_definitions(k):
    real, samples = normal(80, 2, 3, seed=1), normal(50, 2, 3, seed=2) + 1
    x, y = real.flatten(1).double().numpy(), samples.flatten(1).double().numpy()
    radii = NearestNeighbors(n_neighbors=k).fit(x).kneighbors()[0][:, -1]
    reached = [any(math.dist(one, other) <= radius for other in y) for one, radius in zip(x, radii)]
    around = [sum(math.dist(one, other) <= radius for one, radius in zip(x, radii)) for other in y]
    assert 0 < np.mean(reached) < 1
    assert coverage(real, samples, k) == pytest.approx(np.mean(reached))
    assert density(real, samples, k) == pytest.approx(np.mean(around) / k)


@pytest.mark.parametrize("sizes", [(60, 60, 5), (80, 20, 3)])
def test_one_distribution_on_both_sides_gives_what_is_expected(sizes):
    n, m, k = sizes
    pairs = [(normal(n, 4, seed=seed), normal(m, 4, seed=1000 + seed)) for seed in range(300)]
    assert np.mean([coverage(*pair, k) for pair in pairs]) == pytest.approx(expected_coverage(n, m, k), abs=0.01)
    assert np.mean([density(*pair, k) for pair in pairs]) == pytest.approx(1, abs=0.03)


def test_expected_coverage_by_counting_orders():
    """A point is left out if its k nearest, among n - 1 real ones and m samples in random order, are all real."""
    for n, m, k in [(4, 2, 1), (4, 2, 3), (5, 3, 2)]:
        orders = list(combinations(range(n - 1 + m), k))  # which of them come first
        missed = sum(all(one < n - 1 for one in order) for order in orders) / len(orders)
        assert expected_coverage(n, m, k) == pytest.approx(1 - missed)
    assert expected_coverage(10**6, 10**6, 5) == pytest.approx(1 - 2**-5, abs=1e-5)


def test_they_do_not_depend_on_unit_origin_or_order():
    real, samples = normal(60, 3, dtype=torch.float64), normal(40, 3, seed=1, dtype=torch.float64)
    for measure in (coverage, density):
        found = measure(real, samples)
        assert measure(8 * real + 1000, 8 * samples + 1000) == found == measure(real.flip(0), samples.flip(0))
    assert spread(8 * real + 1000) == pytest.approx(8 * spread(real))


def test_spread_is_the_root_mean_square_over_all_pairs():
    points = normal(30, 2, 4)
    squares = [(one - other).square().sum().item() for one, other in combinations(points, 2)]
    assert spread(points) == pytest.approx(math.sqrt(np.mean(squares)))
    assert spread(torch.ones(5, 3)) == 0 and spread(torch.tensor([[0.0], [3.0]])) == pytest.approx(3)


def test_histograms_count_codes_as_words_are_counted():
    index = torch.randint(0, 7, (20, 3, 4), generator=torch.Generator().manual_seed(0))
    texts = [" ".join(f"code{code}" for code in grid.flatten().tolist()) for grid in index]
    counter = CountVectorizer(vocabulary=[f"code{code}" for code in range(9)])
    found = histograms(index, 9)
    assert found.dtype == torch.float32 and found.tolist() == counter.transform(texts).toarray().tolist()


@pytest.mark.parametrize("measure", [coverage, density])
@pytest.mark.parametrize(
    "real, samples, k, shown",
    [
        (normal(10, 3), normal(10, 4), 5, r"\(10, 3\) and \(10, 4\)"),
        (normal(5, 3), normal(10, 3), 5, "k=5"),
        (normal(10, 3), normal(10, 3), 0, "k=0"),
        (normal(10), normal(10), 1, r"\(10,\)"),
        (normal(10, 3), normal(0, 3), 5, r"\(0, 3\)"),
        (normal(10, 3) / 0, normal(10, 3), 5, r"NaN or infinite.*\(10, 3\)"),
        (normal(10, 3), normal(10, 3).log(), 5, r"NaN or infinite.*\(10, 3\)"),
        (torch.ones(10, 3, dtype=torch.int64), normal(10, 3), 5, "int64"),
    ],
)
def test_coverage_and_density_refuse_what_they_cannot_judge(measure, real, samples, k, shown):
    with pytest.raises(ValueError, match=shown):
        measure(real, samples, k)


def test_points_may_be_arrays():
    real, samples = normal(40, 3), normal(30, 3, seed=1)
    for measure in coverage, density:
        assert measure(real.numpy(), samples.numpy()) == measure(real, samples)
    assert spread(real.numpy()) == spread(real)


def test_the_others_refuse_bad_input_too():
    for call, shown in [
        (lambda: spread(normal(1, 3)), r"\(1, 3\)"),
        (lambda: spread(normal(4)), r"\(4,\)"),
        (lambda: spread(normal(4, 2) / 0), "NaN or infinite"),
        (lambda: expected_coverage(5, 5, 5), "k=5, real=5"),
        (lambda: expected_coverage(5, 0, 1), "samples=0"),
        (lambda: histograms(torch.tensor([[0, 3]]), 3), r"0 \.\. 2, got 0 \.\. 3"),
        (lambda: histograms(torch.tensor([[-1, 2]]), 3), r"got -1 \.\. 2"),
        (lambda: histograms(torch.tensor([0, 1]), 3), r"\(2,\)"),
        (lambda: histograms(torch.ones(2, 2), 3), "integers"),
    ]:
        with pytest.raises(ValueError, match=shown):
            call()
