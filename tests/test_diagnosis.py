"""Diagnosis: the figures by hand, every verdict from latents made for it, and what people pass by mistake."""

import dataclasses
import math
import os
import re

import numpy as np
import psutil
import pytest
import torch
from helpers import normal

from vqnotes import data
from vqnotes.diagnosis import diagnose
from vqnotes.diagnosis.beside_inputs import bits_of_directions, dimensions_filled
from vqnotes.diagnosis.measures import measure
from vqnotes.diagnosis.observed import AT_LEAST, AT_MOST, PER_CODE, around, observe
from vqnotes.diagnosis.readers import left_over
from vqnotes.diagnosis.report import VERDICTS
from vqnotes.diagnosis.rules import THRESHOLDS, Answer, codebook_at_fault, decide, encoder_at_fault, labels_lost
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code
from vqnotes.studies import sample_sizes


@pytest.fixture(scope="module")
def modes():
    return data.gaussian_modes(modes=32, per_mode=150, dim=16, seed=7)


def placed(latents, codes=64):
    return kmeans(latents, codes)[0]


# ---------------------------------------------------------------- figures


def test_figures_worked_by_hand():
    latents = torch.tensor([[-2.0], [-2.0], [-2.0], [2.0]]).repeat(64, 1)
    f = measure(observe(latents, torch.tensor([[-2.0], [1.0], [9.0]])))
    assert (f.latents, f.codes, f.sample, f.distinct) == (256, 3, 256, 3)
    assert f.usage == pytest.approx(2 / 3) and f.counts.tolist() == [192, 64, 0]
    assert f.perplexity == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert f.different == 2 and f.ceiling == pytest.approx(2 / 3)  # two different latents need two codes
    assert f.spread == pytest.approx(3.0)  # 16 * 3/4 * 1/4
    assert f.error == pytest.approx(0.25 / 3, abs=0.03) and f.best < 1e-12  # a quarter is off by 1
    assert f.inputs_loss is None and f.separability is None


def test_parts_of_the_figures_worked_by_hand():
    few = measure(observe(normal(20, 2), normal(16, 2, seed=1)))
    assert few.ceiling == pytest.approx(1 - (15 / 16) ** 20)  # twenty draws of sixteen codes
    latents = torch.arange(40.0)[:, None]
    f = measure(observe(latents, torch.tensor([[0.0], [-1.0]])))  # every latent gets the code 0
    second_half = latents[torch.randperm(40, generator=torch.Generator().manual_seed(0))[20:]].double()
    errors = second_half.square() / latents.var(correction=0).item()
    assert f.error == pytest.approx(errors.mean().item(), rel=1e-5)
    assert f.draws["error"].std() == pytest.approx(errors.std().item() / math.sqrt(20), rel=0.3)
    x = torch.tensor([[0.0, 50.0], [2.0, 50.0]])  # each entry varies around a mean of its own
    assert left_over(x, torch.tensor([[1.0, 50.0], [2.0, 50.0]])) == pytest.approx(0.5)
    assert around(torch.arange(3.0)[:, None], (1, 3), torch.tensor([0, 1, 2]))[..., 0].tolist() == [
        [0, 0, 1],
        [0, 1, 2],
        [1, 2, 2],  # over the edge the latent at the edge counts
    ]


def test_bits_of_directions_and_the_dimensions_that_they_fill():
    bits = bits_of_directions(np.array([4.0, 4.0, 1.0, 0.0]), np.array([1.0, 0.25, 2.0, 0.0]))
    assert bits.tolist() == [1, 2, 0, 0]  # the third got worse, the fourth never varied
    assert dimensions_filled(bits) == pytest.approx(9 / 5)
    assert dimensions_filled(np.array([[2.0, 2.0, 2.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])).tolist() == [3, 1, 0]
    assert math.isfinite(dimensions_filled(bits_of_directions(np.ones(2), np.zeros(2))))


def test_dimensions_depend_on_who_gets_which_code_alone(modes):
    """Turned, scaled or mapped by any invertible linear map, latents and codes tell the same of the inputs."""
    codes = placed(modes.x, 64)
    index = nearest_code(modes.x, codes)
    turned = torch.linalg.qr(normal(16, 16, seed=5))[0]
    maps = [torch.eye(16), 1e3 * turned, normal(16, 16, seed=6), turned @ torch.diag(torch.logspace(-1, 1, 16))]
    found = [measure(observe(modes.x @ one, codes @ one, inputs=modes.x, index=index)) for one in maps]
    assert np.ptp([f.dimensions for f in found]) < 0.05 * found[0].dimensions
    assert np.ptp([f.own_loss for f in found]) < 0.05 * found[0].own_loss
    assert all(f.best_dimensions == found[0].best_dimensions for f in found)
    assert found[0].dimensions == pytest.approx(found[0].best_dimensions, rel=0.02)


def test_directions_that_are_too_weak_for_codes_are_missing():
    """As after slow learning: all can be read off the latents, but three directions of sixteen are as large."""
    x = normal(4800, 16, seed=3)
    weak = x * torch.cat([torch.ones(3), torch.full((13,), 0.01)])
    f = measure(observe(weak, placed(weak), inputs=x))
    assert f.encoder_loss < 0.01 and f.gap < 1.1
    assert f.dimensions == pytest.approx(3, abs=0.3) and f.best_dimensions > 12
    found = diagnose(weak, placed(weak), inputs=x)
    assert found.verdict == "dimensional collapse" and "tell of 3.0 dimensions" in found.reason


def test_latents_that_are_the_inputs_lose_nothing(modes):
    f = measure(observe(modes.x, placed(modes.x), inputs=modes.x, labels=modes.y))
    assert f.encoder_loss < 1e-3 < f.inputs_loss and f.codes_loss == pytest.approx(f.inputs_loss, rel=0.3)
    assert f.separability == f.separability_inputs == pytest.approx(1, abs=0.01)
    assert 0.9 < f.gap < 1.2 and f.inputs_codes == 64


def test_figures_do_not_change_with_origin_and_scale(modes):
    codes = placed(modes.x, 16)
    here = measure(observe(modes.x, codes, inputs=modes.x))
    there = measure(observe(1e-6 * modes.x.double() + 5, 1e-6 * codes.double() + 5, inputs=100 * modes.x + 3))
    for name in ("usage", "error", "best", "gap", "dimensions", "best_dimensions", "codes_loss", "inputs_loss"):
        assert getattr(there, name) == pytest.approx(getattr(here, name), rel=0.02), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type_and_numpy(modes, dtype):
    latents, codes = modes.x.to(dtype), placed(modes.x, 16).to(dtype)
    expected = measure(observe(modes.x, placed(modes.x, 16))).gap
    assert measure(observe(latents, codes)).gap == pytest.approx(expected, rel=0.1)
    if dtype != torch.bfloat16:
        assert measure(observe(latents.numpy(), codes.numpy())).gap == measure(observe(latents, codes)).gap


def test_maps_and_their_patches():
    images = normal(50, 3, 8, 12, seed=1)
    patches = images.reshape(50, 3, 2, 4, 3, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 48)  # grid of 2 x 3
    latents = patches[:, :5].reshape(50, 2, 3, 5)
    codes = placed(latents, 16)
    last = measure(observe(latents, codes, inputs=images))
    first = measure(observe(latents.movedim(-1, 1), codes, inputs=images))
    rows = measure(observe(latents.reshape(-1, 5), codes, inputs=patches))
    unrolled = measure(observe(latents.flatten(1, 2), codes, inputs=images))
    assert unrolled == last
    for f in (first, rows):
        assert (f.inputs_loss, f.gap) == pytest.approx((last.inputs_loss, last.gap))
    gray = measure(observe(latents, codes, inputs=images[:, 0]))
    assert gray.inputs_loss is not None
    sequences = measure(observe(normal(40, 10, 5), codes, inputs=normal(40, 2, 30, seed=2)))
    assert sequences.encoder_loss > 0.9  # unrelated


@pytest.mark.parametrize("count", [1, 7, 8, 400])
def test_of_a_few_inputs_nothing_is_said(count):
    images = normal(count, 3, 64, 64, seed=1) if count < 400 else normal(count, 3, 8, 8, seed=1)
    side = images.shape[-1] // 4
    patches = images.unflatten(-1, (side, 4)).unflatten(-3, (side, 4)).permute(0, 2, 4, 1, 3, 5).flatten(3)
    latents, codes = patches[..., :6], placed(patches[..., :6], 16)
    found = diagnose(latents, codes, inputs=images)
    if count >= 8:
        assert found.path[-1][0] != "inputs" and "alike" not in found.reason
        return
    assert found.verdict == "cannot tell" and found.path[-1][0] == "inputs" and found.confidence == 1
    assert f"of {count} input" in found.reason and any("more inputs" in one.remedy for one in found.advice)
    alone = diagnose(latents.flatten(0, 2), codes, inputs=patches.flatten(0, 2))  # each stands for itself
    assert alone.path[-1][0] != "inputs"


def test_masked_inputs_do_not_count(modes):
    latents, mask = modes.x.reshape(100, 48, 16), torch.zeros(100, 48, dtype=torch.bool)
    mask[:5] = True
    few = diagnose(latents, placed(modes.x, 16), mask=mask)
    assert few.verdict == "cannot tell" and "of 5 inputs" in few.reason


def test_labels_of_latents_or_of_inputs(modes):
    codes = placed(modes.x, 16)
    pairs = modes.x.reshape(2400, 2, 16)
    assert measure(observe(pairs, codes, labels=modes.y)).separability > 0.95
    assert measure(observe(pairs, codes, labels=modes.y[::2], inputs=pairs, places=(1,))).separability_inputs > 0.7
    assert measure(observe(pairs, codes, labels=torch.arange(2400))).separability is None  # classes of one


# ---------------------------------------------------------------- verdicts


def sick(kind, modes):
    """Latents, codebook and inputs that have what the verdict says."""
    x, noise = modes.x, normal(4800, 16, seed=3)
    flat = x[:, :1] + 0.01 * noise[:, :1]
    weak = noise * torch.cat([torch.ones(2), torch.full((14,), 0.01)])
    return {
        "healthy": (x, placed(x), x),
        "token collapse": (x, x[modes.y == 0][:64], x),
        "embedding collapse": (flat, placed(flat), x),
        "token and embedding collapse": (flat, 0.01 * noise[:64, :1], x),
        "dimensional collapse": (weak, placed(weak), noise),
        "rate limit": (x, placed(x, 4), x),
        "cannot tell": (x, placed(x), None),
    }[kind]


@pytest.mark.parametrize("kind", VERDICTS)
def test_every_verdict(kind, modes):
    latents, codebook, inputs = sick(kind, modes)
    for seed in range(2):
        found = diagnose(latents, codebook, inputs=inputs, seed=seed)
        assert found.verdict == kind, str(found)
    text, html = str(found), found._repr_html_()
    assert text.startswith(f"Diagnosis: {kind} (confidence ") and f"Diagnosis: {kind}" in html
    assert 0.5 < found.confidence <= 1 and html.count("<tr>") > 5
    assert found.reason in text and (kind == "healthy") == (not found.advice)
    for name, evidence in found.evidence.items():
        assert name in text and math.isfinite(evidence.value) and math.isfinite(evidence.reference)
    for advice in found.advice:
        assert advice.remedy in text and int(advice.notebook) in range(1, 11) and advice.stage


def test_labels_alone_show_a_sound_encoder_but_no_sick_one(modes):
    found = diagnose(modes.x, placed(modes.x), labels=modes.y)
    read = found.evidence["labels read off"]
    assert found.verdict == "healthy" and read.compared_with == "by guessing"
    assert read.value > 0.9 and read.reference == pytest.approx(1 / 32, abs=0.01)
    read = diagnose(modes.x, placed(modes.x), labels=modes.y, inputs=modes.x[:, :1]).evidence["labels read off"]
    assert read.compared_with == "from the inputs" and 1 / 32 < read.reference < 0.5 < read.value
    latents = modes.x[:, :1]
    assert diagnose(latents, placed(latents), labels=modes.y).verdict == "cannot tell"
    assert diagnose(latents, placed(latents), labels=modes.y, inputs=modes.x).verdict == "embedding collapse"


def test_twelve_codes_of_1024_are_token_collapse_even_with_few_latents(modes):
    found = diagnose(modes.x[:600], torch.cat([placed(modes.x, 12), 50 + normal(1012, 16)]), inputs=modes.x[:600])
    assert found.verdict == "token collapse" and found.evidence["codes in use"].value == 12


def test_few_codes_are_a_fault_by_what_they_cost_the_inputs_if_that_is_known():
    """One direction hides what a few codes cost the latents. The inputs say whether it counts."""
    latents = normal(8192, 6) * torch.tensor([40.0, 1, 1, 1, 1, 1])
    codebook = torch.cat([placed(latents, 20), 500 + normal(492, 6)])
    f = measure(observe(latents, codebook))
    assert f.error - f.best < THRESHOLDS["excess of latents"] and f.gap > 2
    assert diagnose(latents, codebook).verdict == "token collapse"
    assert decide(f, THRESHOLDS | {"effect": 0})[0] != "token collapse"
    assert diagnose(latents, codebook, inputs=latents).verdict == "healthy"  # of them nearly all is told
    alike = latents / latents.std(0)  # here the other directions count as much
    assert diagnose(latents, codebook, inputs=alike).verdict == "token collapse"


def test_clones_and_storms_are_named_when_all_codes_are_busy(modes):
    homes = placed(modes.x, 8)
    clones = homes.repeat(8, 1) + 0.001 * normal(64, 16)
    found = diagnose(modes.x, clones, inputs=modes.x)
    assert found.verdict == "token collapse" and "clones" in found.advice[0].remedy
    assert diagnose(modes.x, homes.repeat(8, 1), inputs=modes.x).evidence["different codes"].value == 8


def test_too_few_latents_cannot_clear_a_codebook():
    latents = normal(100, 8)
    found = diagnose(latents, placed(latents), inputs=latents)
    assert found.verdict == "cannot tell" and "100 latents" in found.reason
    assert any(f"{PER_CODE} for each code" in advice.remedy for advice in found.advice)
    unjudged = "the codebook is not judged: 100 latents for 64 codes"
    assert unjudged in found.notes
    for other in (torch.ones(100, 8), placed(latents)), (latents, latents[:1]), (latents, latents[:2]):
        assert not any("the codebook is not judged" in note for note in diagnose(*other).notes)
    assert diagnose(latents[:1], latents[:4]).verdict == diagnose(latents[:9], latents[:4]).verdict == "cannot tell"


def test_more_codes_than_the_sample_can_clear_are_said_to_be_that():
    latents = normal(4000, 2)
    f = measure(observe(latents, placed(latents, 200)))
    f = dataclasses.replace(f, sample=AT_MOST, gap_high=math.inf, codes=65_536)
    verdict, reason = decide(dataclasses.replace(f, error=0.9, best=0.8, best_low=0.7))
    assert verdict == "cannot tell" and "the most that are looked at" in reason


@pytest.mark.parametrize("scale", [1e-18, 1e30])
def test_numbers_of_any_size(modes, scale):
    found = diagnose(scale * modes.x, scale * placed(modes.x), inputs=scale * modes.x, labels=modes.y - 40)
    assert found.verdict == "healthy"
    eight_bits = (modes.x * 20 + 128).clamp(0, 255).to(torch.uint8)
    assert diagnose(modes.x, placed(modes.x), inputs=eight_bits).verdict == "healthy"


def test_strange_codebooks_and_latents_get_a_verdict(modes):
    constant = torch.ones(500, 4)
    for codebook in (normal(16, 4), constant[:16]):
        found = diagnose(constant, codebook, inputs=modes.x[:500])
        assert found.verdict == "embedding collapse" and not any("without inputs" in note for note in found.notes)
    assert "all latents are equal" in diagnose(constant, normal(16, 4)).reason
    assert diagnose(modes.x, modes.x.mean(0, keepdim=True), inputs=modes.x).verdict == "rate limit"
    assert diagnose(modes.x, modes.x[:1].repeat(64, 1), inputs=modes.x).verdict == "token collapse"
    assert diagnose(modes.x, 1e6 + placed(modes.x), inputs=modes.x).verdict == "token collapse"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"latents": torch.full((100, 16), torch.nan)}, "NaN"),
        ({"latents": torch.zeros(0, 16)}, "empty"),
        ({"latents": normal(100, 15)}, "15 dimensions, codes have 16"),
        ({"latents": torch.ones(100, 16, dtype=torch.int64)}, "int64"),
        ({"codebook": torch.full((64, 16), torch.inf)}, "codebook holds NaN or infinite"),
        ({"codebook": torch.zeros(0, 16)}, r"\(0, 16\)"),
        ({"codebook": normal(16)}, r"\(16,\)"),
        ({"labels": torch.zeros(99, dtype=torch.int64)}, "100 latents"),
        ({"labels": torch.zeros(100)}, "whole number"),
        ({"inputs": normal(99, 5)}, r"\(99, 5\)"),
        ({"inputs": torch.ones(100, 5)}, "do not vary"),
        ({"inputs": torch.eye(100)[:1].T.expand(100, 5)}, "do not vary"),
        ({"inputs": torch.tensor(3.0)}, r"shape \(\)"),
        ({"labels": ["a"] * 100}, "labels must be a tensor or an array of numbers, got list"),
        ({"codebook": torch.nn.Embedding(64, 16)}, "codebook must be a tensor or an array of numbers, got Embedding"),
        ({"inputs": torch.full((100, 5), torch.nan)}, "NaN"),
        ({"inputs": normal(100, 3, 7, 7), "latents": normal(100, 2, 2, 16)}, r"\(100, 3, 7, 7\)"),
    ],
)
def test_bad_input_is_refused_with_what_is_wrong(change, message):
    given = {"latents": normal(100, 16), "codebook": normal(64, 16)} | change
    with pytest.raises(ValueError, match=message):
        diagnose(**given)


def test_either_answer_convicts_and_chance_does_not_count(modes):
    sound = measure(observe(modes.x, placed(modes.x), inputs=modes.x, labels=modes.y))
    assert encoder_at_fault(sound) is Answer.NO
    for change in ({"encoder_loss": 1.0, "codes_loss": 1.0}, {"separability": 0.1}):
        assert encoder_at_fault(dataclasses.replace(sound, **change)) is Answer.YES
    coin = dataclasses.replace(sound, separability=0.8, separability_inputs=1.0, chance=0.5)
    assert (
        labels_lost(coin) is Answer.YES and labels_lost(dataclasses.replace(coin, chance=0.05)) is Answer.NO
    )  # 3/5, 15/19


def test_the_rule_reads_its_thresholds(modes):
    f = measure(observe(modes.x, placed(modes.x), inputs=modes.x))
    assert decide(f)[0] == "healthy"
    assert decide(f, THRESHOLDS | {"gap": 0.5, "excess": -1, "errs": 0})[0] == "token collapse"
    assert decide(f, THRESHOLDS | {"loss": 0, "before": 0, "extra": -1})[0] != "healthy"
    assert decide(f, THRESHOLDS | {"dimensions": 3, "costs": -1})[0] == "dimensional collapse"
    assert decide(f, THRESHOLDS | {"rate": 1e-4})[0] == "rate limit"


# ---------------------------------------------------------------- answers


def test_an_answer_is_no_truth_value():
    with pytest.raises(TypeError, match="Answer.NO is no truth value"):
        bool(Answer.NO)


def test_why_the_encoder_is_not_judged_is_said(modes):
    codes, noise = placed(modes.x), normal(4800, 300)
    given = {
        "nothing was given to judge the encoder by": {},
        r"the inputs do not tell: codes placed on them leave \d+% of their variance\.": {"inputs": noise},
        "labels alone clear an encoder only where": {"labels": torch.arange(4800) % 3},
        "the labels do not tell: no two of them have five": {"labels": torch.arange(4800)},
        r"the inputs do not tell: .* variance, and the labels do not tell: they are hardly read off the inputs": {
            "inputs": noise,
            "labels": torch.arange(4800) % 3,
        },
    }
    for reason, beside in given.items():
        found = diagnose(modes.x, codes, **beside)
        assert found.verdict == "cannot tell" and re.search(reason, found.reason), found.reason
        by_inputs = "inputs" in beside
        assert by_inputs == any("pass labels= that can be read off" in advice.remedy for advice in found.advice)
        assert by_inputs == any("not judged: the inputs do not tell" in note for note in found.notes)
        assert by_inputs != any("pass inputs= (or labels=)" in advice.remedy for advice in found.advice)


def test_the_sample_is_as_large_as_it_is_said_to_be():
    said = f"of {PER_CODE} latents a code, at least {AT_LEAST:,} and at most {AT_MOST:,}"
    assert said in " ".join(diagnose.__doc__.split())
    latents = normal(10_000, 2)
    assert [measure(observe(latents, latents[:size])).sample for size in (4, 600)] == [AT_LEAST, 600 * PER_CODE]
    assert measure(observe(latents[:5000], latents[:4])).sample == 5000


def test_many_latents_and_codes_in_bounded_memory():
    latents, codes = normal(100_000, 8), normal(2500, 8, seed=1)
    process = psutil.Process(os.getpid())
    before = process.memory_info().rss
    found = diagnose(latents, codes)
    peak = process.memory_info().rss - before
    assert found.verdict == "cannot tell" and peak < 100_000 * 2500  # a quarter of the distances in float32
    assert any("40,000 of 100,000" in note for note in found.notes)


@pytest.mark.parametrize("count, at_fault", [(1, Answer.UNKNOWN), (2, Answer.YES), (3, Answer.YES)])
def test_equal_latents_are_a_fault_of_the_encoder_if_there_are_several(count, at_fault):
    assert encoder_at_fault(measure(observe(torch.ones(count, 4), normal(8, 4)))) is at_fault


def test_the_reason_says_what_coincides(modes):
    f = measure(observe(modes.x, placed(modes.x), inputs=modes.x, labels=modes.y))
    by_inputs = dataclasses.replace(f, inputs_loss=0.1, encoder_loss=0.42, codes_loss=0.5, inputs_codes=64)
    by_labels = dataclasses.replace(f, separability=0.2, separability_inputs=1.0)
    equal = dataclasses.replace(by_inputs, spread=0.0)
    for found, said in [
        (by_inputs, "the encoder alone loses 4.2 times what as many codes placed on the inputs would lose"),
        (dataclasses.replace(by_inputs, separability=0.2), "the encoder alone loses 4.2 times"),
        (by_labels, "labels cannot be read off the latents as off the inputs"),
        (equal, "all latents are equal"),
    ]:
        verdict, reason = decide(found)
        assert verdict == "embedding collapse" and said in reason
        crowded = dataclasses.replace(found, gap=3.0, gap_high=3.0, error=0.6, best=0.2, own_loss=0.9, codes_loss=0.5)
        verdict, reason = decide(crowded)
        assert verdict == "token and embedding collapse" and said in reason and "lose 1.8 times what" in reason


def test_codes_that_leave_less_than_k_means_are_not_at_fault():
    """With few latents in many dimensions, centroids are nearly latents, and more is read off them than off codes."""
    for seed in range(3):
        z, c, x = sample_sizes.latents_and_codes(64, 16, 64, "none", seed)
        m = measure(observe(z, c, inputs=x, seed=seed))
        assert m.gap < 1 and codebook_at_fault(m) is not Answer.YES
        worse = dataclasses.replace(m, own_loss=0.9, codes_loss=0.1)
        assert codebook_at_fault(worse) is not Answer.YES
        assert codebook_at_fault(dataclasses.replace(worse, gap=1.5)) is Answer.YES
