"""What cannot be is said before any verdict; spare codes are no fault; nothing printed needs more than ASCII."""

import dataclasses
import math

import pytest
import torch
from helpers import normal
from threadpoolctl import threadpool_info

from vqnotes import data, metrics
from vqnotes.diagnosis import advice, beside_inputs, diagnose, diagnose_stack, readers, references
from vqnotes.diagnosis.advice import Advice
from vqnotes.diagnosis.measures import measure
from vqnotes.diagnosis.observed import Kind, observe, observe_stack
from vqnotes.diagnosis.report import VERDICTS, Diagnosis
from vqnotes.diagnosis.rules import THRESHOLDS, Answer, codebook_at_fault, decide
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code


@pytest.fixture(scope="module")
def modes():
    return data.gaussian_modes(modes=32, per_mode=150, dim=16, seed=7)


@pytest.fixture(scope="module")
def codes(modes):
    return kmeans(modes.x, 64)[0]


# ---------------------------------------------------------------- what cannot be


def test_a_quantiser_that_compares_otherwise_is_not_judged_by_distance(modes, codes):
    by_logits = (modes.x @ normal(16, 64)).argmax(1)  # as with Gumbel-softmax
    found = diagnose(modes.x, codes, inputs=modes.x, index=by_logits)
    assert found.verdict == "cannot tell" and "chooses other codes than the nearest" in found.reason
    assert str(found).startswith("First: for ") and "compares otherwise than by distance" in found.doubts[0]
    assert found.evidence["optimality gap"].speaks_for == "not compared by distance"
    own = nearest_code(modes.x, codes)
    found = diagnose(modes.x, codes, inputs=modes.x, index=own)
    assert found.verdict == "healthy" and not found.doubts and str(found).startswith("Diagnosis")


def test_rounding_makes_no_other_choice(modes, codes):
    half = torch.cdist(modes.x.half().float(), codes.half().float()).argmin(1)
    f = measure(observe(modes.x, codes, index=half))
    assert f.own_ratio < 1.01 and not diagnose(modes.x, codes, inputs=modes.x, index=half).doubts
    tight = modes.x.round(decimals=1)  # latents that codes hit exactly: any choice of equal ones is right
    distinct = tight[:64]
    index = torch.cdist(tight, distinct).argmin(1)
    assert measure(observe(tight, distinct, index=index)).own_differs == 0


@pytest.mark.parametrize("scale, shift", [(0.01, 0), (30, 0), (0.1, 50)])
def test_codes_at_another_scale_are_said_to_be_that(modes, codes, scale, shift):
    """What they tell of the inputs may be all right: latents of another length find their code by its direction."""
    found = diagnose(modes.x, scale * codes + shift)
    assert "codes are at another scale than the latents" in found.doubts[0] and len(found.doubts) == 1
    assert f"{1 / scale:.2g}"[:1] in found.doubts[0] and found.verdict == "token collapse"


def test_a_codebook_that_collapsed_is_not_at_another_scale(modes):
    crowded = modes.x[modes.y < 2][:64]
    for codebook in (crowded, crowded.mean(0) + 0.01 * (crowded - crowded.mean(0)), modes.x[:1].repeat(64, 1)):
        found = diagnose(modes.x, codebook, inputs=modes.x)
        assert found.verdict == "token collapse" and not found.doubts


def test_directions_are_recognised(modes):
    lengths = 1 + 4 * torch.rand(len(modes.x), 1, generator=torch.Generator().manual_seed(0))
    directions = torch.nn.functional.normalize(modes.x)
    codes = torch.nn.functional.normalize(kmeans(directions, 64)[0])
    found = diagnose(lengths * directions, codes, inputs=modes.x)
    assert "does the quantiser compare directions?" in found.doubts[0]
    assert not diagnose(directions, codes, inputs=modes.x).doubts


@pytest.mark.parametrize("dtype, offset, doubtful", [(torch.float32, 50, False), (torch.float32, 2000, True)])
def test_latents_that_hardly_vary_beside_their_size(modes, codes, dtype, offset, doubtful):
    latents = (modes.x + offset).to(dtype)
    found = diagnose(latents, codes + offset, inputs=modes.x)
    assert found.verdict == "healthy"
    assert any("hardly vary beside their size" in doubt for doubt in found.doubts) == doubtful
    exact = measure(observe(modes.x.double() + offset, codes.double() + offset))
    assert exact.size == pytest.approx(math.sqrt(1 + 16 * offset**2 / modes.x.var(0).sum().item()), rel=0.05)


def test_latents_that_differ_by_rounding_alone_are_equal(modes, codes):
    latents = torch.full((4800, 16), 3.0) + 1e-7 * normal(4800, 16)
    assert len(latents.unique(dim=0)) > 1 and measure(observe(latents, codes)).spread == 0
    assert diagnose(latents, codes, inputs=modes.x).verdict == "embedding collapse"
    small = measure(observe(1e-7 * modes.x, 1e-7 * codes))  # small is not the same as equal
    assert small.spread > 0 and small.gap == pytest.approx(measure(observe(modes.x, codes)).gap, rel=0.05)


# ---------------------------------------------------------------- spare codes


@pytest.mark.parametrize("noise", [0, 1e-3])
def test_fewer_different_inputs_than_codes_are_no_fault(noise):
    x = normal(40, 8)[torch.randint(40, (4000,), generator=torch.Generator().manual_seed(0))]
    x = x + noise * normal(4000, 8, seed=1)
    codebook = torch.cat([x[:400].unique(dim=0)[:40] if noise == 0 else kmeans(x, 40)[0], 9 + normal(216, 8, seed=2)])
    found = diagnose(x, codebook, inputs=x)
    assert found.verdict == "healthy", str(found)
    if noise == 0:
        used = found.evidence["codes in use"]
        assert (used.value, used.reference) == (40, 40) and "with 40 different latents" in used.compared_with
        assert found.evidence["codes in effect"].reference == 40
        assert "40 codes would do, one for each latent that differs" in found.findings[-1]
    assert found.findings[-1].startswith("Spare codes: of 256 codes 40 are in use and")
    assert "Nothing is lost by it" in found.findings[-1] and "the encoder is sound" in found.findings[-1]


def test_no_codes_are_spare_where_something_is_lost_or_most_are_in_effect(modes, codes):
    assert not [one for one in diagnose(modes.x, codes, inputs=modes.x).findings if "Spare" in one]
    live = kmeans(modes.x, 8)[0]
    found = diagnose(modes.x, torch.cat([live, 50 + normal(248, 16)]), inputs=modes.x)
    assert found.verdict == "token collapse" and not [one for one in found.findings if "Spare" in one]
    places = kmeans(modes.x, 32)[0][modes.y] + 1e-3 * normal(4800, 16)
    crowded = torch.cat([kmeans(places, 32)[0], 90 + normal(200, 16)])
    spare = diagnose(places, crowded, inputs=places)
    assert spare.verdict == "healthy" and "the 32 in use would do without the others" in spare.findings[-1]
    live, *_ = diagnose_stack([[(places, crowded, None)]]).parts[0]
    assert "Spare codes: of 232" in live.findings[-1] and "encoder" not in live.findings[-1]


def test_few_codes_that_cost_something_are_still_a_fault(modes):
    live = kmeans(modes.x, 8)[0]
    f = measure(observe(modes.x, torch.cat([live, 50 + normal(248, 16)]), inputs=modes.x))
    assert f.different is None and f.error > 0.05 and codebook_at_fault(f) is Answer.YES
    assert codebook_at_fault(f, THRESHOLDS | {"excess": 1}) is Answer.NO


def test_codes_in_effect_are_counted_beside_what_so_few_latents_could_show(modes, codes):
    f = measure(observe(modes.x, codes))
    f = dataclasses.replace(f, perplexity=10.0, gap=2.0, best=0.02, best_low=0.02, error=0.04, gap_high=2.0)
    assert codebook_at_fault(f) is Answer.YES  # 10 of 64, at little cost
    assert codebook_at_fault(dataclasses.replace(f, ceiling=0.3)) is Answer.NO  # of 19 that could be


def test_a_trifle_convicts_no_encoder():
    x = normal(16, 8, seed=5).repeat(300, 1) + 0.01 * normal(4800, 8)
    latents = normal(16, 4, seed=6).repeat(300, 1) + 0.01 * normal(4800, 4, seed=7)  # the place, and not the rest
    f = measure(observe(latents, kmeans(latents, 64)[0], inputs=x))
    assert f.encoder_loss < 0.001 and decide(f)[0] != "embedding collapse"


def test_inputs_of_one_half_that_are_equal_are_refused():
    """Readers learn on one half and are judged on the other, and each must vary; by chance rare inputs are in one."""
    latents, codes = normal(64, 4), normal(2, 4)
    for odd in range(0, 64, 7):
        inputs = torch.zeros(64, 3)
        inputs[odd] = 1
        with pytest.raises(ValueError, match="the inputs do not vary: 32 of 64, chosen at random, are equal"):
            measure(observe(latents, codes, inputs=inputs))


# ---------------------------------------------------------------- beside k-means


def test_true_centres_do_worse_than_kmeans_on_the_half_that_it_knows_and_better_on_the_other():
    centres = 9 * torch.eye(8)
    latents = centres.repeat(20, 1) + normal(160, 8)
    f = measure(observe(latents, centres))
    assert f.gap < 0.97 and 1.03 < f.gap_high < 1.5 and f.reference_codes == 8
    assert f.left == pytest.approx((f.best_low + f.best) / 2) and f.gap == pytest.approx(f.error / f.best)
    few = measure(observe(latents[:50], centres))  # 25 latents to fit to, 4 at least for each code
    assert few.reference_codes == 6 and few.gap_high == math.inf and 0 < few.gap < 1


def test_nothing_left_is_as_good_as_kmeans_and_anything_else_is_infinitely_worse():
    latents = torch.tensor([[-1.0], [1.0]]).repeat(200, 1)
    exact, moved = (measure(observe(latents, shift + latents[:2])) for shift in (0, 1e-3))
    assert exact.best == exact.best_low == exact.error == 0 and exact.gap == exact.gap_high == 1
    assert moved.best == 0 < moved.error and moved.gap == moved.gap_high == math.inf


def test_levels_of_parts_add_up_in_their_own_dimensions():
    latents = normal(3000, 5) * torch.tensor([2.0, 1, 1, 1, 1]) + 3
    parts, left = [], []
    for part in latents.split([2, 3], dim=1):
        levels, rest = [], part
        for size in (8, 4):
            codes = kmeans(rest, size)[0]
            levels.append((rest, codes, None))
            rest = rest - codes[nearest_code(rest, codes)]
        parts.append(levels)
        left.append(rest.square().sum(1).mean())
    f = measure(observe_stack(parts))
    assert f.error == pytest.approx((sum(left) / latents.var(0).sum()).item(), rel=0.05) and 0.9 < f.gap < 1.1
    assert f.bits == 10 and f.codes == 24 and len(f.codebooks) == 4


# ---------------------------------------------------------------- threads, and what is printed


def test_small_problems_run_on_one_thread(modes, codes, monkeypatch):
    seen, regression, separability = [], readers.by_regression, metrics.separability

    def watched(function):
        def watching(*given):
            seen.append([pool["num_threads"] for pool in threadpool_info()] + [torch.get_num_threads()])
            return function(*given)

        return watching

    monkeypatch.setattr(readers, "by_regression", watched(regression))
    monkeypatch.setattr(metrics, "separability", watched(separability))
    monkeypatch.setattr(references, "kmeans", watched(kmeans))
    torch.set_num_threads(2)
    diagnose(modes.x, codes, inputs=modes.x, labels=modes.y)
    assert torch.get_num_threads() == 2
    assert len(seen) == 8 and all(set(one) == {1} for one in seen)


def test_all_that_is_printed_is_ascii(modes, codes):
    advices = [one for one in vars(advice).values() if isinstance(one, Advice)]
    assert len(advices) > 15 and all("".join(one).isascii() for one in advices)
    for verdict in VERDICTS:
        for kind in Kind:
            found = advice.advice_for(verdict, kind=kind, busy=True, needs=advices)
            assert str(Diagnosis(verdict, "", {}, found)).isascii()
    latents, stretched = modes.x[:, :1], 0.001 * codes
    mask = torch.arange(len(latents)) % 7 > 0
    for found in (
        diagnose(modes.x, stretched, inputs=modes.x, labels=modes.y, mask=mask),
        diagnose(latents, kmeans(latents, 64)[0], inputs=modes.x),
        diagnose(modes.x, codes),
        diagnose(modes.x, codes, index=torch.zeros(len(latents), dtype=torch.int64), mask=mask),
        diagnose(modes.x[:60], codes),
        diagnose(torch.ones(100, 16), codes),
        diagnose(normal(500, 3, 4) + 9999, kmeans(normal(1500, 4) + 9999, 5)[0], inputs=normal(500, 6, 5)),
    ):
        text = str(found)
        assert text.isascii() and text.encode("cp1252") and found.reason in text


def test_doubts_stand_first_in_text_and_html():
    found = Diagnosis("healthy", "why", {}, [], [], doubts=["a < b"])
    assert str(found).splitlines()[0] == "First: a < b" and found._repr_html_().startswith("<p><b>First: a &lt; b")


@pytest.mark.parametrize(
    "latents, codes, size",
    [(400, 16, 3), (9001, 16, 3), (20000, 1024, 3), (9000, 16, 2**14), (60000, 2048, 3)],  # size: of an input
)
def test_readers_are_judged_by_latents_that_no_reference_was_fitted_to(latents, codes, size):
    z = normal(latents, 2)
    x = normal(latents, 1, seed=1).expand(latents, size)
    observed = observe(z, z[:codes], inputs=x)
    rows = observed.beside
    read = rows[beside_inputs._to_read(observed, rows)]
    half = len(read) // 2
    assert len(read) == min(beside_inputs.READ, len(rows)) == len(read.unique())
    assert not torch.isin(read[half:], observed.fitted).any()


def test_a_sound_codebook_of_many_codes_tells_as_much_as_the_best():
    """More latents are in the sample than are read: those that k-means has learnt by heart must not judge it."""
    z, others = normal(16384, 4), normal(32768, 4, seed=1)
    m = measure(observe(z, kmeans(others, 1024)[0], inputs=z))
    assert m.sample > beside_inputs.READ and m.own_loss / m.codes_loss == pytest.approx(1, abs=0.1)
    assert decide(m)[0] == "healthy"
