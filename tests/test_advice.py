"""What to try fits the kind of the quantiser: a model says it, arrays cannot; what cannot be done is not advised."""

import pytest
import torch
from helpers import normal
from torch import nn

from vqnotes import data, models
from vqnotes.diagnosis import advice, diagnose, diagnose_model, diagnose_stack
from vqnotes.diagnosis.advice import ADVISED, advice_for
from vqnotes.diagnosis.listening import Listener
from vqnotes.diagnosis.observed import Kind, kind_of_all
from vqnotes.diagnosis.report import VERDICTS
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies.choices import GumbelVQ, IndexBackpropagation, StochasticVQ
from vqnotes.remedies.codes import AffineCodes, CosineCodes, LearntAffineCodes, SimVQ
from vqnotes.remedies.losses import DecorrelatedCodes, KernelLoss
from vqnotes.remedies.product import ProductVQ
from vqnotes.remedies.replacement import CodeExpiry, LeastRecentlyUsed, OnlineClustering, RandomRestart
from vqnotes.remedies.residual import LevelDropout, ResidualVQ
from vqnotes.remedies.scalar import BSQ, FSQ, LFQ

PLACED = {advice.WIDER_PLACED, advice.WARM_UP, advice.RESTART, advice.REPAIR, advice.REPAIR_EACH, advice.STORM}


def advised(verdict, kind, busy=False, needs=()):
    return advice_for(verdict, kind=kind, busy=busy, needs=list(needs))


@pytest.mark.parametrize("kind", Kind)
def test_each_verdict_has_advice_for_each_kind(kind):
    for verdict in VERDICTS:
        found = advised(verdict, kind)
        assert bool(found) == (verdict not in ("healthy", "cannot tell")) and len(found) == len(set(found))
        assert advised(verdict, kind, needs=[advice.INPUTS]) == [*found, advice.INPUTS]


def test_a_fixed_grid_is_not_told_to_place_codes():
    for verdict in VERDICTS:
        assert not PLACED.intersection(advised(verdict, Kind.GRID, busy=True))
        assert not {advice.RESTART, advice.STORM}.intersection(advised(verdict, Kind.COMPUTED, busy=True))


def test_a_storm_is_named_first_where_codes_are_busy_and_can_be_restarted():
    for kind in (Kind.LEARNT, Kind.EMA):
        busy = advised("token collapse", kind, busy=True)
        assert busy == [advice.STORM, *advised("token collapse", kind)]


def test_of_unknown_codes_it_is_said_what_holds_of_learnt_ones_only():
    known, unknown = (advised("token collapse", kind) for kind in (Kind.LEARNT, Kind.UNKNOWN))
    for one, other in zip(known, unknown, strict=True):
        prefix = "if your codes are learnt: " if one in PLACED else ""
        assert other.remedy == prefix + one.remedy and other[1:] == one[1:]
    assert advised("embedding collapse", Kind.UNKNOWN) == advised("embedding collapse", Kind.LEARNT)


@pytest.mark.parametrize(
    "kinds, expected",
    [
        ([Kind.EMA], Kind.EMA),
        ([Kind.EMA, Kind.EMA], Kind.STACK),
        ([Kind.EMA, Kind.COMPUTED], Kind.STACK),
        ([Kind.COMPUTED, Kind.COMPUTED], Kind.COMPUTED),
        ([Kind.GRID, Kind.GRID], Kind.GRID),
    ],
)
def test_codes_that_cannot_be_placed_cannot_in_a_stack_either(kinds, expected):
    assert kind_of_all(kinds) is expected


# ---------------------------------------------------------------- who knows the kind


def kinds_heard(quantizer, dim):
    """Of each call, in a model that is the quantiser alone."""
    model = nn.Sequential(nn.Identity(), quantizer).eval()
    listener = Listener(model)
    with listener.listening(), torch.no_grad():
        listener(normal(64, dim))
    return [call.kind for call in listener.calls]


@pytest.mark.parametrize(
    "quantizer, expected",
    [
        (lambda: VectorQuantizer(8, 4), Kind.LEARNT),
        (lambda: VectorQuantizer(8, 4, update="ema"), Kind.EMA),
        (lambda: CosineCodes(8, 4), Kind.LEARNT),
        (lambda: CodeExpiry(8, 4, update="ema"), Kind.EMA),
        (lambda: SimVQ(8, 4), Kind.COMPUTED),
        (lambda: AffineCodes(8, 4), Kind.COMPUTED),
        (lambda: LearntAffineCodes(8, 4), Kind.COMPUTED),
        (lambda: FSQ([4, 4, 4, 4]), Kind.GRID),
        (lambda: LFQ(4), Kind.GRID),
        (lambda: BSQ(4), Kind.GRID),
        (lambda: GumbelVQ(8, 4), Kind.LEARNT),
        (lambda: IndexBackpropagation(8, 4), Kind.LEARNT),
        (lambda: StochasticVQ(8, 4, update="ema"), Kind.EMA),
        (lambda: KernelLoss(8, 4), Kind.LEARNT),
        (lambda: type("DimVQ", (DecorrelatedCodes, SimVQ), {})(8, 4), Kind.COMPUTED),
        (lambda: ProductVQ((8, 8), 4), Kind.LEARNT),  # of each group
        (lambda: LevelDropout((8, 8), 4), Kind.LEARNT),
        (lambda: ResidualVQ((8, 8), 4), Kind.LEARNT),  # of each level
    ],
)
def test_our_quantisers_say_their_kind(quantizer, expected):
    assert set(kinds_heard(quantizer(), 4)) == {expected}


def test_quantisers_of_the_library_say_their_kind():
    vqp = pytest.importorskip("vector_quantize_pytorch")
    for quantizer, expected in [
        (vqp.VectorQuantize(4, 8), Kind.EMA),
        (vqp.VectorQuantize(4, 8, learnable_codebook=True, ema_update=False), Kind.LEARNT),
        (vqp.SimVQ(dim=4, codebook_size=8), Kind.COMPUTED),
    ]:
        assert kinds_heard(quantizer, 4) == [expected]


@pytest.fixture(scope="module")
def modes():
    return data.gaussian_modes(modes=32, per_mode=150, dim=16, seed=7).x


def test_a_model_that_is_a_stack_is_advised_as_one(modes):
    torch.manual_seed(0)
    model = models.VQAutoencoder(nn.Identity(), ResidualVQ((16, 16), 16), nn.Identity())
    for name, one in diagnose_model(model, modes).items():
        assert one.verdict == "token collapse" and one.advice[:1] == advised("token collapse", Kind.STACK), name
    far = 30 + normal(16, 16)
    for one in (found := diagnose_stack([[(modes, far, None), (modes - far[0], far, None)]])).whole, *found.parts[0]:
        assert one.advice[:1] == advised("token collapse", Kind.STACK)


def test_whoever_brings_arrays_says_the_kind_or_is_told_that_it_depends(modes):
    far = 30 + normal(64, 16)
    for kind in ADVISED:
        for given in (kind, kind.value):
            found = diagnose(modes, far, kind=given).advice
            assert found == advised("token collapse", kind, needs=[advice.INPUTS])
    assert diagnose(modes, far).advice == diagnose(modes, far, kind="unknown").advice
    assert diagnose(modes, far).advice[0].remedy.startswith("if your codes are learnt")
    for wrong in ("FSQ", 3, ["EMA codebook"]):
        with pytest.raises(ValueError, match=r"kind must be one of 'learnt codebook', .*'fixed grid'.*got") as error:
            diagnose(modes, far, kind=wrong)
        assert repr(wrong) in str(error.value)


# ---------------------------------------------------------------- what was advised once, and could not be done


@pytest.mark.parametrize("grid, dim", [(lambda: FSQ([4, 4, 4]), 3), (lambda: LFQ(6), 6)])
def test_a_grid_beside_its_latents_gets_advice_that_a_grid_can_follow(grid, dim, modes):
    """Latents that huddle in one cell: token collapse of codes that nobody can move."""
    encoder = nn.Linear(16, dim)
    with torch.no_grad():
        encoder.weight.copy_(0.02 * normal(dim, 16))
        encoder.bias.fill_(0.3)
    model = models.VQAutoencoder(encoder, grid(), nn.Linear(dim, 16))
    (found,) = diagnose_model(model, modes).values()
    assert "token" in found.verdict and not PLACED.intersection(found.advice)
    assert found.advice[0] == ADVISED[Kind.GRID][found.verdict][0]


@pytest.mark.parametrize("replacing", [CodeExpiry, LeastRecentlyUsed, OnlineClustering, RandomRestart])
@pytest.mark.parametrize("grid, size", [(FSQ, [4, 4]), (LFQ, 4)])
def test_codes_of_a_grid_cannot_be_restarted(replacing, grid, size):
    for bases in ((replacing, grid), (grid, replacing)):
        with pytest.raises(ValueError, match="the codes are a fixed grid, which cannot be moved"):
            type("Restarted", bases, {})(size)
