"""Items that share their whole tuple of indices: counted by hand, and beside what chance would make of them."""

import collections as counted

import numpy as np
import pytest
import torch

from vqnotes.diagnosis import collisions, diagnose_stack, diagnose_tokens


def test_counts_worked_by_hand():
    index = np.array([[0, 1], [0, 1], [2, 1], [0, 0], [0, 1], [2, 1], [1, 1]])
    found = collisions(index)
    assert (found.items, found.tuples, found.largest) == (7, 4, 3) and found.sharing == pytest.approx(5 / 7)
    assert found.expected_sharing is None is found.expected_tuples
    for same in (index.T[0], index.T[1]), (torch.from_numpy(index)[:, 0], index[:, 1].astype(np.uint16)):
        assert collisions(*same) == found
    assert collisions(index.reshape(7, 1, 2)) == found and collisions(index[:, :1]) == collisions(index[:, 0])
    assert collisions(np.zeros((1, 3), dtype=np.int64)).sharing == 0


@pytest.mark.parametrize("seed", range(4))
def test_counts_by_brute_force(seed):
    draws = np.random.default_rng(seed)
    levels = int(draws.integers(1, 5))
    index = draws.integers(0, [2**40, 5, 3, 2**62][:levels], (400, levels)) // draws.choice([1, 2**38])
    times = counted.Counter(map(tuple, index.tolist()))
    found = collisions(index)
    assert found.tuples == len(times) and found.largest == max(times.values())
    assert found.sharing == pytest.approx(sum(one for one in times.values() if one > 1) / 400)


def test_what_chance_would_make_of_it():
    draws = np.random.default_rng(0)
    found = [collisions(draws.integers(0, (8, 4, 8), (300, 3)), size=[8, 4, 8]) for _ in range(200)]
    assert np.mean([one.sharing for one in found]) == pytest.approx(found[0].expected_sharing, abs=0.01)
    assert np.mean([one.tuples for one in found]) == pytest.approx(found[0].expected_tuples, abs=1)
    assert found[0].expected_sharing == pytest.approx(1 - (255 / 256) ** 299)
    assert found[0].expected_tuples == pytest.approx(256 * (1 - (255 / 256) ** 300))
    one = collisions([0, 0, 0], size=1)
    assert (one.expected_sharing, one.expected_tuples) == (1, 1)
    many = collisions(draws.integers(0, 1024, (50, 200)), size=1024)
    assert (many.expected_sharing, many.expected_tuples, many.sharing) == (0, 50, 0)
    rare = collisions(draws.integers(0, 1024, (1000, 6)), size=1024)
    assert rare.expected_sharing == pytest.approx(999 / 1024**6, rel=1e-6)
    assert rare.expected_tuples == pytest.approx(1000)


def test_as_the_diagnosis_of_ids_counts_them():
    index = np.random.default_rng(1).integers(0, 16, (500, 2)) ** 2 // 16
    found = collisions(index, size=16)
    evidence = diagnose_tokens(index, 16, stages_axis=-1, collisions=True).whole.evidence
    assert evidence["items that share a tuple"].value == round(found.sharing * 500)
    assert evidence["different tuples"].value == found.tuples


@pytest.mark.parametrize(
    "given, size, message",
    [
        ([], None, "at least one index"),
        ([[0, 1], [0, 1, 2]], None, "same items"),
        ([[0.5, 1.0]], None, "integers"),
        ([[0, -1]], None, "level 0 has -1: leave padding out"),
        ([[[0, 1], [3, 4]]], 4, "level 1 must be in 0 .. 3, got 4"),
        ([[[0, 1], [3, 4]]], [8, 8, 8], "one for each of 2 levels"),
        ([[0, 1]], 0, "number of codes"),
        ([np.zeros((0, 2), dtype=np.int64)], None, "integers"),
    ],
)
def test_bad_indices_are_refused(given, size, message):
    with pytest.raises(ValueError, match=message):
        collisions(*given, size=size)


def test_a_stack_has_a_note_of_it():
    torch.manual_seed(0)
    latents = torch.randn(400, 2)
    first = latents[:4]
    index = torch.cdist(latents, first).argmin(1)
    left = latents - first[index]
    codes = torch.randn(3, 2)
    found = diagnose_stack([[(latents, first, None), (left, codes, None)]]).whole
    own = collisions(index, torch.cdist(left, codes).argmin(1), size=[4, 3])
    (note,) = [one for one in found.notes if "share their whole tuple of 2 codes" in one]
    assert f"{own.sharing:.1%} of the latents" in note and f"{own.largest} at most" in note
    assert f"{own.expected_sharing:.1%} would" in note
