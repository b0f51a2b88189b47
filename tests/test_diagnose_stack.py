"""Codes that are put together: the whole is judged by all levels and parts, each codebook by its codes alone."""

import math

import pytest
import torch
from helpers import normal

from vqnotes.diagnosis import diagnose, diagnose_stack
from vqnotes.diagnosis.measures import measure
from vqnotes.diagnosis.observed import observe_stack
from vqnotes.diagnosis.report import VERDICTS
from vqnotes.diagnosis.rules import THRESHOLDS
from vqnotes.kmeans import kmeans
from vqnotes.metrics import quantization_error
from vqnotes.nearest import nearest_code


@pytest.fixture(scope="module")
def latents():
    """Smooth latents in eight dimensions, one an input and away from the origin; the inputs are a turn of them."""
    return 5 + normal(6000, 8) * torch.tensor([3.0, 3, 2, 2, 1, 1, 1, 1])


@pytest.fixture(scope="module")
def inputs(latents):
    return latents @ torch.linalg.qr(normal(8, 8, seed=4)).Q


def levels_of(latents, sizes, spoilt=None):
    """A residual stack whose levels are placed by k-means, but for one whose codes crowd in one place."""
    levels, left = [], latents
    for number, size in enumerate(sizes):
        codes = kmeans(left, size)[0] if number != spoilt else left[:1] + 0.01 * normal(size, left.shape[1])
        levels.append((left, codes, None))
        left = left - codes[nearest_code(left, codes)]
    return levels


def test_measures_of_a_stack_are_those_of_the_sum(latents):
    levels = levels_of(latents, (32, 16, 8))
    f = measure(observe_stack([levels]))
    codes = [codes for _, codes, _ in levels]
    left = latents
    for some in codes:
        left = left - some[nearest_code(left, some)]
    assert f.error == pytest.approx((left.square().sum(1).mean() / latents.var(0).sum()).item(), rel=0.05)
    assert f.bits == f.rate == 5 + 4 + 3 and f.codes == 56 and len(f.codebooks) == 3
    assert 0.9 < f.gap < 1.1 and f.usage == 1
    assert f.perplexity == pytest.approx(sum(one.perplexity for one in f.codebooks))
    for one, (reaches, some, _) in zip(f.codebooks, levels):
        assert one.error == pytest.approx(quantization_error(reaches, some), rel=0.05) and 0.9 < one.gap < 1.15


def test_measures_of_parts_are_those_of_all_side_by_side(latents):
    parts = [[(part, kmeans(part, 16)[0], None)] for part in latents.split([2, 3, 3], dim=1)]
    f = measure(observe_stack(parts))
    errors = sum(quantization_error(part, codes, relative=False) for [(part, codes, _)] in parts)
    assert f.error == pytest.approx(errors / latents.var(0).sum().item(), rel=0.05) and 0.9 < f.gap < 1.1
    assert f.bits == 12 and f.spread == pytest.approx(latents.var(0).sum().item(), rel=0.01)


def test_a_healthy_stack_is_healthy_at_every_level(latents, inputs):
    found = diagnose_stack([levels_of(latents, (64,) * 4)], inputs=inputs)
    assert found.whole.verdict == "healthy" and [one.verdict for one in found.parts[0]] == ["healthy"] * 4
    assert found.whole.evidence["left by k-means"].value < 0.1 and not found.whole.advice
    for one in found.parts[0]:  # no level is judged by its rate, or by an encoder that it has not
        assert not one.advice and "left by k-means" not in one.evidence and "lost by the encoder" not in one.evidence
    assert any("24.0 bits" in note for note in found.whole.notes)
    alone = diagnose(latents, levels_of(latents, (16,))[0][1], inputs=inputs)
    assert alone.verdict == "rate limit"  # what a single level would be


def test_a_stack_with_too_few_bits_is_told_to_have_more_of_them(latents, inputs):
    found = diagnose_stack([levels_of(latents, (4, 4))], inputs=inputs)
    assert found.whole.verdict == "rate limit" and "codes of 4 bits" in found.whole.reason
    assert "more levels" in found.whole.advice[0].remedy and "second stage" not in str(found.whole)
    assert [one.verdict for one in found.parts[0]] == ["healthy", "healthy"]


@pytest.mark.parametrize("spoilt", [0, 1, 2])
def test_a_level_that_collapsed_is_named(latents, inputs, spoilt):
    found = diagnose_stack([levels_of(latents, (32, 32, 32), spoilt)], inputs=inputs)
    verdicts = [one.verdict for one in found.parts[0]]
    assert [verdict == "token collapse" for verdict in verdicts] == [level == spoilt for level in range(3)]
    assert found.whole.verdict == "token collapse"
    for one in (found.whole, found.parts[0][spoilt]):
        assert any("place the codes by k-means" in advice.remedy for advice in one.advice)


def test_a_late_level_that_uses_few_codes_is_a_fault_of_the_whole_if_it_may_cost_something(latents, inputs):
    levels = levels_of(latents, (64,) * 4)
    left, codes, _ = levels[3]
    levels[3] = (left, torch.cat([kmeans(left, 3)[0], 99 + normal(61, 8)]), None)
    f = measure(observe_stack([levels]))
    assert f.gap > THRESHOLDS["gap"] and THRESHOLDS["trifle"] < f.error - f.best < THRESHOLDS["excess of latents"]
    for given, expected in ((None, "token collapse"), (inputs, "healthy")):  # of the inputs nearly all is told
        found = diagnose_stack([levels], inputs=given)
        assert found.whole.verdict == expected and found.parts[0][3].verdict == "token collapse"
        assert [one.verdict for one in found.parts[0][:3]] == ["healthy"] * 3


def test_heads_are_judged_by_all_of_them_together(latents, inputs):
    heads = [[(part, kmeans(part, 64)[0], None)] for part in latents.split(2, dim=1)]
    found = diagnose_stack(heads, inputs=inputs)
    assert found.whole.verdict == "healthy" and found.whole.evidence["lost by the encoder"].value < 0.01
    assert [[one.verdict for one in part] for part in found.parts] == [["healthy"]] * 4
    assert diagnose(*heads[3][0][:2], inputs=inputs).verdict == "embedding collapse"  # a head alone
    narrow = [[(latents[:, :1] + 0.01 * normal(6000, 1, seed=seed), normal(16, 1), None)] for seed in (1, 2)]
    narrow = [[(z, kmeans(z, 16)[0], None)] for [(z, _, _)] in narrow]
    assert diagnose_stack(narrow, inputs=inputs).whole.verdict == "embedding collapse"


def test_a_shared_codebook_is_judged_by_all_that_reaches_it(latents, inputs):
    heads = latents.split(4, dim=1)
    codes = kmeans(torch.cat(heads), 128)[0]
    found = diagnose_stack([[(head, codes, None)] for head in heads], inputs=inputs)
    (first,), (second,) = found.parts
    assert first is second and first.verdict == "healthy" and first.evidence["codes in use"].reference == 128
    assert found.whole.evidence["codes in use"].reference == 128 and found.whole.verdict == "healthy"
    # Heads far from each other: each uses its half of the codes, and none is at fault.
    apart = [heads[0] - 20, heads[0].flip(0) + 20]
    codes = kmeans(torch.cat(apart), 128)[0]
    found = diagnose_stack([[(head, codes, None)] for head in apart])
    assert found.parts[0][0].verdict == "healthy"
    assert found.whole.evidence["optimality gap"].value < 1.2
    # Levels that share one: it serves latents and what is left of them.
    left, levels, codes = latents, [], kmeans(torch.cat([latents, 0.5 * (latents[:3000] - 5)]), 256)[0]
    for _ in range(2):
        levels.append((left, codes, None))
        left = left - codes[nearest_code(left, codes)]
    found = diagnose_stack([levels], inputs=inputs)
    assert found.parts[0][0] is found.parts[0][1] and "collapse" not in found.whole.verdict
    assert found.whole.evidence["optimality gap"].value < 1.3


def test_levels_in_spaces_of_their_own_are_judged_one_by_one(latents, inputs):
    first = levels_of(latents, (64,))[0]
    left = latents - first[1][nearest_code(latents, first[1])]
    for second in (left[:, :4], left / left.norm(dim=1, keepdim=True)):
        sound, crowded = kmeans(second, 64)[0], second[:1] + 0.001 * normal(64, second.shape[1])
        found = diagnose_stack([[first, (second, sound, None)]], inputs=inputs)
        assert found.whole.verdict in ("healthy", "rate limit") and "error / variance" not in found.whole.evidence
        assert any("the whole has no error" in note for note in found.whole.notes)
        assert diagnose_stack([[first, (second, crowded, None)]], inputs=inputs).whole.verdict == "token collapse"


def test_nothing_left_for_a_level_is_no_fault(latents):
    few = latents[:32].repeat(100, 1)
    codes = few[:32].clone()
    left = few - codes[nearest_code(few, codes)]
    found = diagnose_stack([[(few, codes, None), (left, normal(16, 8), torch.zeros(3200, dtype=torch.int64))]])
    assert found.parts[0][0].verdict == "healthy"
    assert found.parts[0][1].verdict == "healthy" and "Nothing is left" in found.parts[0][1].reason


def test_places_inputs_masks_and_indices_of_parts(latents, inputs):
    z, x = latents.reshape(600, 10, 8), inputs.reshape(600, 10, 8)
    mask = torch.arange(10).expand(600, 10) < 7
    levels = levels_of(z[mask], (32, 32))
    codes = [some for _, some, _ in levels]
    index = nearest_code(z, codes[0])
    padded = torch.where(mask[..., None], z, torch.nan)
    parts = [[(padded, codes[0], index), (padded - codes[0][index], codes[1], None)]]
    found = diagnose_stack(parts, inputs=x, mask=mask, places=(1,))
    assert found.whole.verdict == "healthy" and found.whole.evidence["lost by the encoder"].value < 0.01
    assert any("1,800 of 6,000 latents are masked" in note for note in found.whole.notes)
    assert found.parts[0][1].evidence["optimality gap"].value == pytest.approx(1, abs=0.15)


def test_one_codebook_alone_is_a_stack_too(latents, inputs):
    codes = kmeans(latents, 16)[0]
    found = diagnose_stack([[(latents, codes, None)]], inputs=inputs)
    alone = diagnose(latents, codes, inputs=inputs)
    assert found.whole.verdict == alone.verdict == "rate limit" and found.parts[0][0].verdict == "healthy"
    for name, evidence in found.whole.evidence.items():
        assert evidence.value == pytest.approx(alone.evidence[name].value)


@pytest.mark.parametrize(
    "parts, message",
    [
        ([], "at least one part"),
        ([[]], "at least one level"),
        ([[(normal(20, 4), normal(8, 4), None)], [(normal(19, 4), normal(8, 4), None)]], r"\(20,\), \(19,\)"),
        ([[(normal(20, 4), normal(8, 3), None)]], "4 dimensions, codes have 3"),
        ([[(normal(20, 4), normal(8, 4), torch.full((20,), 8))]], "0 .. 7"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        diagnose_stack(parts)


def test_reports_of_stacks_are_plain_and_whole(latents, inputs):
    for spoilt in (None, 1):
        found = diagnose_stack([levels_of(latents, (32, 32), spoilt)], inputs=inputs)
        for one in (found.whole, *found.parts[0]):
            assert one.verdict in VERDICTS and str(one).isascii() and one._repr_html_()
            assert all(math.isfinite(evidence.value) for evidence in one.evidence.values())
