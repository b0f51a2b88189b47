"""Bring your own quantiser: ours passes what applies, each defect of the museum fails its own check and no other."""

import re
import sys
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from types import ModuleType

import conformance_page as page
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from test_museum import show
from torch import nn

from vqnotes.diagnosis.conformance import NAMES, Adapter, check, ours
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import FSQ, CodeExpiry, ResidualVQ, RotationTrick, SimVQ
from vqnotes.studies.peers import checks_passed

SEARCH = {"off centre", "bfloat16"}


def failed(adapter, **options):
    return {one.name for one in check(adapter, **options) if one.status == "failed"}


def from_normal(kind, update="gradient", **fields):
    """The adapter of a quantiser of the museum, from normal codes or from k-means."""

    def build(codebook_size, dim, beta=0.25, kmeans_on=None):
        quantizer = kind(codebook_size, dim, beta=beta)
        quantizer.init_codes(*("normal",) if kmeans_on is None else ("kmeans", kmeans_on))
        return quantizer

    return replace(ours(), build=build, update=update, **fields)


# ---------------------------------------------------------------- ours


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "kind, options",
    [
        (VectorQuantizer, {}),
        (VectorQuantizer, {"update": "ema"}),
        (CodeExpiry, {}),
        (CodeExpiry, {"update": "ema"}),
        (SimVQ, {}),
        (RotationTrick, {}),
    ],
)
def test_ours_passes_all_that_applies(kind, options, seed):
    results = check(ours(kind, **options), seed=seed)
    status = {one.name: one.status for one in results}
    left_out = {"averages", "k-means start"} if "update" not in options else {"codebook loss"}
    left_out |= set() if kind is CodeExpiry else {"expiry", "threshold"}
    assert status == {name: "not applicable" if name in left_out else "passed" for name in NAMES}
    assert all(one.says and one.claim and "def " in one.lines for one in results)


# ---------------------------------------------------------------- each defect, alone


class NothingCounted(show["NothingCounted"]):
    """The defect is in the blind start; with k-means the counts are there."""

    def place_codes(self, codes, share):
        place = show["place_with_counts"] if share.any() else show["place_uncounted"]
        place(self, codes, share)


class Drowning(VectorQuantizer):
    """Far from the centre only: always in float32."""

    def assign(self, latents, codes):
        return show["search_by_expansion"](self, latents.float(), codes.float())


class Half(VectorQuantizer):
    """In half precision only: centred first."""

    def assign(self, latents, codes):
        center = codes.mean(0)
        return show["search_by_expansion"](self, latents - center, codes - center)


class NoStraightThrough(VectorQuantizer):
    def estimate(self, latents, chosen):
        return chosen


class CommitmentMovesCodes(VectorQuantizer):
    def loss(self, latents, chosen):
        return F.mse_loss(chosen, latents.detach()) + self.beta * F.mse_loss(latents, chosen)


class CodebookLossMovesLatents(VectorQuantizer):
    def loss(self, latents, chosen):
        return F.mse_loss(chosen, latents) + self.beta * F.mse_loss(latents, chosen.detach())


class NoCodebookLoss(VectorQuantizer):
    def loss(self, latents, chosen):
        return self.beta * F.mse_loss(latents, chosen.detach())


forgotten, nothing = (partial(kind, batch=1000) for kind in (show["ForgottenCounts"], NothingCounted))
undone = partial(show["ExpiryUndone"], batch=256, decay=0.9)
DEFECTS = [
    ("beta", from_normal(show["SwappedBeta"])),
    ("codebook loss", from_normal(show["LossAfterEstimate"])),
    ("codebook loss", from_normal(CodebookLossMovesLatents)),
    ("codebook loss", from_normal(NoCodebookLoss)),
    ("commitment loss", from_normal(CommitmentMovesCodes)),
    ("gradient", from_normal(NoStraightThrough)),
    ("k-means start", from_normal(forgotten, "ema")),
    ("averages", from_normal(nothing, "ema")),
    ("expiry", from_normal(undone, "ema", expires=True)),
    ("threshold", from_normal(show["ExpiryInHits"], expires=True)),
    ("off centre", from_normal(Drowning)),
    ("bfloat16", from_normal(Half)),
    ("decoding", replace(ours(SimVQ), decode=show["entries_stored"])),
    ("usage", replace(ours(), usage=show["usage_by_the_batch"])),
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name, adapter", DEFECTS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(DEFECTS)])
def test_a_defect_fails_its_own_check_alone(name, adapter, seed):
    assert failed(adapter, seed=seed) == {name}


def test_each_check_has_a_defect():
    assert {name for name, _ in DEFECTS} == set(NAMES)


def test_a_search_that_is_wrong_in_both_ways_fails_both_checks():
    assert failed(from_normal(show["DrowningDistances"])) == failed(from_normal(show["HalfDistances"])) == SEARCH


def test_the_usual_averages_pass():
    assert failed(from_normal(partial(show["TwoAverages"], batch=1000), "ema")) == set()


def test_without_beta_the_whole_loss_is_judged():
    def build(codebook_size, dim, kind=VectorQuantizer):
        return kind(codebook_size, dim)

    adapter = replace(ours(), build=lambda codebook_size, dim: build(codebook_size, dim))
    late = replace(ours(), build=lambda codebook_size, dim: build(codebook_size, dim, show["LossAfterEstimate"]))
    beta, commitment, codebook = check(adapter, only=NAMES[:3])
    assert (beta.status, commitment.status, codebook.status) == ("not applicable", "passed", "passed")
    assert failed(late) == {"commitment loss", "codebook loss"}


# ---------------------------------------------------------------- what it says


def test_a_failure_shows_its_figures_and_its_lines():
    (result,) = check(from_normal(show["SwappedBeta"]), only=["beta"])
    said = str(result)
    assert said.startswith("beta: failed. Raising beta draws latents harder to their codes. ")
    assert "Latents are drawn with 1.00 + 0.00 * beta, codes with 0.00 + 1.00 * beta." in said
    assert "return weighed.on_latents > 0, says" in said
    (passed,) = check(ours(), only=["beta"])
    assert "\n" not in str(passed)


def test_an_error_in_a_check_is_a_failure_and_the_rest_goes_on():
    def decode(quantizer, index):
        raise KeyError("no table")

    results = {one.name: one for one in check(replace(ours(), decode=decode))}
    assert results["decoding"].status == "failed" and results["decoding"].says == "It raises KeyError: 'no table'"
    assert results["usage"].status == "passed"


def test_random_numbers_are_as_they_were():
    adapter = ours(CodeExpiry)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    check(adapter, only=["expiry"])
    assert torch.equal(torch.rand(2), expected)


def test_a_check_comes_to_the_same_each_time():
    adapter, said = ours(update="ema"), set()
    for state in range(4):
        torch.manual_seed(state)
        said.add(check(adapter, only=["averages"])[0].says)
    assert len(said) == 1 and check(adapter, only=["averages"], seed=1)[0].says not in said


def test_codes_that_cannot_be_placed_are_said_to_be_so():
    results = {one.name: one for one in check(replace(ours(SimVQ), place=None))}
    assert "do not stay where they are put" in results["off centre"].says
    assert results["off centre"].status == results["bfloat16"].status == "not applicable"


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"build": lambda size, dim: object()}, "must return a torch.nn.Module, got object"),
        ({"call": lambda quantizer, z: quantizer(z)[:2]}, "latents_q, index and loss, got 2 values"),
        ({"call": lambda quantizer, z: (z[:3], *quantizer(z)[1:])}, r"latents_q must be \(1000, 4\).*got \(3, 4\)"),
        ({"call": lambda quantizer, z: (z, z[:, 0], None)}, r"index must be whole.*got \(1000,\)"),
        ({"call": lambda quantizer, z: (z, quantizer(z).index, z)}, r"scalar or None, got \(1000, 4\)"),
        ({"codes": lambda quantizer: quantizer.codebook[:3]}, r"codes must be \(16, 4\).*got \(3, 4\)"),
        ({"codes": lambda quantizer: quantizer.codebook.detach()}, "without detach"),
        ({"update": "averages"}, "one of .*got 'averages'"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        check(replace(ours(), **fields))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"no check is called \['decode'\]; there are beta, "):
        check(ours(), only=["decode"])
    assert [one.name for one in check(ours(), only=["usage", "beta"])] == ["beta", "usage"]


def test_a_quantiser_that_needs_no_more_than_four_fields():
    adapter = Adapter(ours().build, ours().call, lambda quantizer: quantizer.codebook, "gradient")
    status = {one.name: one.status for one in check(adapter)}
    assert {name for name, one in status.items() if one == "not applicable"} == {
        *("averages", "k-means start", "expiry", "threshold", "usage")
    }
    assert "failed" not in status.values()


def stack(codebook_size, dim, beta=0.25, kmeans_on=None, update="gradient"):
    return ResidualVQ((codebook_size, codebook_size), dim, beta=beta, update=update)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_a_stack_is_checked_without_its_codes(update):
    adapter = replace(ours(), build=partial(stack, update=update), codes=None, update=update)
    status = {one.name: one.status for one in check(adapter)}
    applies = {"beta", "commitment loss", "gradient", "bfloat16", "decoding", "usage"}
    applies |= {"k-means start"} if update == "ema" else set()
    assert status == {name: "passed" if name in applies else "not applicable" for name in NAMES}
    assert failed(replace(adapter, decode=lambda quantizer, index: quantizer.stages[0].decode(index[:, 0]))) == {
        *("decoding", "bfloat16")
    }


def test_a_fixed_grid_without_a_loss_is_checked():
    adapter = Adapter(
        lambda codebook_size, dim: FSQ([3] * dim),
        lambda quantizer, latents: (*quantizer(latents)[:2], None),
        codes=None,
        update="fixed",
        decode=lambda quantizer, index: quantizer.decode(index),
        by_distance=False,
    )
    results = {one.name: one for one in check(adapter, only=["commitment loss", "gradient", "decoding", "averages"])}
    assert [one.status for one in results.values()] == ["not applicable", "passed", "not applicable", "passed"]
    assert results["commitment loss"].says == "There is no loss."


# ---------------------------------------------------------------- the page


class MyQuantizer(nn.Module):
    """As many have written it."""

    def __init__(self, codebook_size, dim, beta):
        super().__init__()
        self.embedding, self.beta = nn.Embedding(codebook_size, dim), beta

    def forward(self, latents):
        index = torch.cdist(latents, self.embedding.weight, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        chosen = self.embedding(index)
        loss = self.loss(latents, chosen)
        return latents + (chosen - latents).detach(), index, loss

    def loss(self, latents, chosen):
        return F.mse_loss(chosen, latents.detach()) + self.beta * F.mse_loss(latents, chosen.detach())


class MySwapped(MyQuantizer):
    loss = show["beta_on_the_codebook"]


@pytest.mark.parametrize("kind, wrong", [(MyQuantizer, []), (MySwapped, ["beta"])])
def test_the_test_to_copy_runs(kind, wrong, monkeypatch):
    (source,) = re.findall(r"```python\n(import pytest\n.*?)```", page.PAGE.read_text(encoding="utf-8"), re.S)
    module = ModuleType("my_model")
    module.MyQuantizer = kind
    monkeypatch.setitem(sys.modules, "my_model", module)
    names = {}
    exec(source, names)
    test, outcome = names["test_my_quantiser"], {}
    (mark,) = test.pytestmark
    assert mark.args == ("name", NAMES)
    for name in NAMES:
        try:
            test(name)
            outcome[name] = "passed"
        except pytest.skip.Exception:
            outcome[name] = "skipped"
        except AssertionError:
            outcome[name] = "failed"
    assert [name for name, one in outcome.items() if one == "failed"] == wrong
    assert "passed" in outcome.values() and outcome["usage"] == "skipped"


def test_the_page_has_every_check():
    said = re.findall(r"^\| ([\w -]+) \| [^|]+ \| \d? ?\|$", page.PAGE.read_text(encoding="utf-8"), re.M)
    assert tuple(said) == NAMES


def test_the_table_of_the_page_is_what_comes_out():
    (made_with,) = re.findall(r"^Version ([\d.]+)\.", page.stored(), re.M)
    if version("vector-quantize-pytorch") != made_with:
        pytest.skip(f"the page is of version {made_with}")
    found = {row: check(make()) for row, make in page.ROWS.items()}
    assert page.table(found) in page.stored()
    made, known = page.as_table(found), checks_passed()
    assert list(known.columns) == ["library", "version", "class", "check", "passed", "detail"]
    pd.testing.assert_frame_equal(made.drop(columns="detail"), known.drop(columns="detail"), check_dtype=False)
    assert {cause.says for cause in page.CAUSES if cause.says in page.failures(found)} == {
        cause.says for cause in page.CAUSES
    }


def test_a_failure_without_its_line_stops_the_page(monkeypatch):
    with pytest.raises(LookupError, match="FSQ fails 'gradient', and CAUSES does not say why"):
        page.cause_of("FSQ", "gradient")
    changed = [page.CAUSES[0]._replace(line="return torch.cdist(x, y)")]
    monkeypatch.setattr(page, "CAUSES", changed)
    with pytest.raises(LookupError, match="cdist has no longer the line"):
        page.cause_of("VectorQuantize", "off centre")
