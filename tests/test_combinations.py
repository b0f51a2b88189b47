"""Every ordered pair of remedies works, with what both of them do, or says at construction why it cannot."""

import inspect
import itertools
import pydoc

import pytest
import torch
from helpers import brute_force, normal

from vqnotes import remedies
from vqnotes.metrics import quantization_error
from vqnotes.models import mlp_autoencoder
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import (
    BSQ,
    FSQ,
    LFQ,
    AffineCodes,
    CodeExpiry,
    CodeSplitting,
    CosineCodes,
    DecorrelatedCodes,
    DiVeQ,
    EntropyLoss,
    GumbelVQ,
    IndexBackpropagation,
    KernelLoss,
    LearntAffineCodes,
    LeastRecentlyUsed,
    OnlineClustering,
    OrthogonalCodes,
    RandomRestart,
    ResidualVQ,
    RotationTrick,
    SimVQ,
    SpreadLatents,
    StochasticVQ,
)
from vqnotes.remedies.codes import unit
from vqnotes.training import fit, fit_many

CODES, DIM = 16, 4
X = normal(300, 6) @ normal(6, 6, seed=1)
LATENTS = normal(64, DIM, seed=5) + 3
LOST = -50 * torch.ones(DIM)  # a code here is chosen by none of these latents, nor are they by its direction

# ---------------------------------------------------------------- what each remedy does, to be seen in a combination


def follows_its_map(quantizer):
    """All codes go through W, which has moved; C has not."""
    assert not torch.equal(quantizer.transform.data, torch.eye(DIM))
    assert not any(one is quantizer.codebook for one in quantizer.parameters())
    return depends_on(quantizer, quantizer.transform)


def depends_on(quantizer, tensor):
    """Whether another value of the tensor gives other codes, all of them."""
    before = quantizer.codes().detach().clone()
    with torch.no_grad():
        tensor.add_(normal(*tensor.shape, seed=3))
        after = quantizer.codes().clone()
        tensor.sub_(normal(*tensor.shape, seed=3))
    return ((after - before).abs().sum(1) > 1e-4).all()


def follows_the_latents(quantizer):
    """The mean of the latents as they are compared is heard."""
    before, compared = quantizer.latent_mean.clone(), quantizer.prepare(LATENTS)
    quantizer.train()(LATENTS)
    expected = 0.99 * before + 0.01 * compared.mean(0)
    return torch.allclose(quantizer.latent_mean, expected, atol=1e-4) and depends_on(quantizer, quantizer.latent_mean)


def has_learnt_scale_and_shift(quantizer):
    moved = quantizer.scale.abs().sum() > 0 and quantizer.shift.abs().sum() > 0
    return moved and depends_on(quantizer, quantizer.shift)


def compares_directions(quantizer):
    lengths = torch.cat([quantizer.codes(), quantizer.prepare(LATENTS)]).norm(dim=1)
    return torch.allclose(lengths, torch.ones(()), atol=1e-5)


def has_the_gradient_of(kind):
    def same(quantizer):
        plain, found = kind(CODES, DIM), []
        for one in (quantizer.eval(), plain.eval()):
            z, q = normal(20, DIM).requires_grad_(), normal(20, DIM, seed=1).requires_grad_()
            (one.estimate(z, q) * normal(20, DIM, seed=2)).sum().backward()
            found.append((z.grad, q.grad))
        (own, own_code), (expected, expected_code) = found
        alone = expected_code is None and own_code is None or torch.allclose(own_code, expected_code)
        return torch.allclose(own, expected, atol=1e-6) and alone

    return same


def has_its_own_loss(weight):
    """The loss is that without the remedy, plus its weight times something that is not 0."""

    def added(quantizer):
        z = quantizer.prepare(normal(64, quantizer.dim))
        chosen, losses, usual = (
            quantizer.codes()[quantizer.assign(z, quantizer.codes())],
            [],
            getattr(quantizer, weight),
        )
        for times in (0, 1, 2):
            setattr(quantizer, weight, times * usual)
            losses.append(quantizer.loss(z, chosen).item())
        setattr(quantizer, weight, usual)
        none, once, twice = losses
        return abs(once - none) > 1e-6 and twice - once == pytest.approx(once - none, rel=1e-3)

    return added


def brings_back_lost_codes(quantizer):
    """A code that nobody chooses stands, after some steps, where latents are or the codes that they choose."""
    with torch.no_grad():
        quantizer.codebook[3] = LOST
    for name in {"idle", "use", "steps", "chosen_in"} & set(dict(quantizer.named_buffers())):
        getattr(quantizer, name).zero_()
    before = quantizer.codes()[3].detach().clone()
    for _ in range(5):
        quantizer.train()(LATENTS)
    compared = quantizer.prepare(LATENTS)
    usual = (quantizer.codes()[quantizer.eval()(LATENTS).index] - compared).norm(dim=1).max()
    then, now = ((code - compared).norm(dim=1).min() for code in (before, quantizer.codes()[3]))
    return now < then and now < 1.1 * usual < then


def keeps_its_grid(quantizer):
    alone = next(kind for kind in (FSQ, BSQ, LFQ) if isinstance(quantizer, kind))
    return torch.equal(quantizer.codes(), made(alone).codes())


def draws_its_choice(quantizer):
    """From step to step others, in training; and by it all codes are reached from a heap."""
    z = normal(200, quantizer.dim) + 3
    first, second = (quantizer.train()(z).index for _ in range(2))
    return not torch.equal(first, second) and torch.equal(quantizer.eval()(z).index, quantizer(z).index)


def reaches_every_code(quantizer):
    """What the decoder makes of them moves all codes, those that nobody chose too."""
    quantizer.eval().zero_grad()
    (quantizer(normal(200, quantizer.dim)).latents_q * normal(200, quantizer.dim, seed=2)).sum().backward()
    gradients = [one.grad for one in quantizer.parameters()]
    return any((one.reshape(len(one), -1) != 0).any(1).all() for one in gradients)


def brings_codes_along(quantizer):
    """Without its weight the loss is less, and codes that nobody chose stand still."""
    return has_its_own_loss("kernel_weight")(quantizer) and quantizer.heat < quantizer.kernel_temperature


# class: (options for these small runs, what is to be seen)
EFFECTS = {
    SimVQ: ({}, follows_its_map),
    AffineCodes: ({}, follows_the_latents),
    LearntAffineCodes: ({}, has_learnt_scale_and_shift),
    CosineCodes: ({}, compares_directions),
    RotationTrick: ({}, has_the_gradient_of(RotationTrick)),
    DiVeQ: ({}, has_the_gradient_of(DiVeQ)),
    OrthogonalCodes: ({}, has_its_own_loss("orthogonal_weight")),
    EntropyLoss: ({}, has_its_own_loss("entropy_weight")),
    SpreadLatents: ({}, has_its_own_loss("spread_weight")),
    DecorrelatedCodes: ({"decorrelation_weight": 0.1}, has_its_own_loss("decorrelation_weight")),
    KernelLoss: ({"half_life": 10}, brings_codes_along),
    StochasticVQ: ({}, draws_its_choice),
    GumbelVQ: ({}, draws_its_choice),
    IndexBackpropagation: ({}, reaches_every_code),
    RandomRestart: ({"memory": 0.5}, brings_back_lost_codes),
    CodeExpiry: ({"memory": 0.5, "threshold": 0.1}, brings_back_lost_codes),
    LeastRecentlyUsed: ({"patience": 3}, brings_back_lost_codes),
    OnlineClustering: ({}, brings_back_lost_codes),
    CodeSplitting: ({"interval": 3, "threshold": 0.3}, brings_back_lost_codes),
    FSQ: ({"levels": (4, 4)}, keeps_its_grid),
    LFQ: ({"bits": DIM}, keeps_its_grid),
    BSQ: ({"bits": DIM}, keeps_its_grid),
}
PAIRS = [pair for pair in itertools.permutations(EFFECTS, 2) if not issubclass(*pair) and not issubclass(*pair[::-1])]
each_pair = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(kind.__name__ for kind in pair))


def made(*kinds, **options):
    """A quantiser of these kinds, in this order, or ValueError."""
    for kind in kinds:
        options = EFFECTS.get(kind, ({},))[0] | options
    size = () if {FSQ, LFQ, BSQ} & set(kinds) else (CODES, DIM)
    return type("Both", kinds, {})(*size, **options)


def allowed(*kinds, **options):
    try:
        made(*kinds, **options)
    except ValueError:
        return False
    return True


def trained(quantizer, seed=0):
    """Ten steps of a small model with it, and the parameters before."""
    torch.manual_seed(seed)
    model = mlp_autoencoder(6, quantizer, width=16)
    before = {name: value.detach().clone() for name, value in quantizer.named_parameters()}
    options = {"steps": 10, "seed": seed, "init": "data", "lr": 1e-2, "batch_size": 64, "progress": False}
    history = fit(model, X, **options)
    return model, history, before


# ---------------------------------------------------------------- the pairs


def test_no_remedy_is_left_out():
    found = {
        kind
        for module in (remedies, remedies, remedies)
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, VectorQuantizer) and not name.startswith("_")
    }
    assert found - {VectorQuantizer} == set(EFFECTS)


# EMA is in the base class, which comes last in either order: one order of each pair is enough, unless it matters.
ORDERED = {SimVQ, AffineCodes, LearntAffineCodes, CosineCodes}
UPDATED = [(pair, "gradient") for pair in PAIRS]
UPDATED += [(pair, "ema") for pair in PAIRS if PAIRS.index(pair) < PAIRS.index(pair[::-1]) or set(pair) <= ORDERED]


@pytest.mark.parametrize(
    "pair, update", UPDATED, ids=[f"{one.__name__}-{other.__name__}-{update}" for (one, other), update in UPDATED]
)
def test_a_pair_works_or_says_why_not(pair, update):
    try:
        quantizer = made(*pair, update=update)
    except ValueError as error:
        reason = str(error)  # a sentence that starts with the class that was made, and says more
        assert reason.startswith("Both") and len(reason.split()) > 3, reason
        return
    model, history, before = trained(quantizer)
    assert torch.isfinite(torch.tensor([*history.reconstruction, *history.quantizer])).all()

    # All that is learnt has a gradient, and has moved.
    quantizer.train().zero_grad()
    reconstruction, (latents_q, _, loss) = model(X)
    assert torch.isfinite(latents_q).all()
    ((reconstruction - X).square().mean() + loss).backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name
    for name, parameter in quantizer.named_parameters():
        assert not torch.equal(parameter.data, before[name]), name

    # The codes that are compared are those that are chosen, and the nearest.
    latents = model.encode(X).detach()
    latents_q, index, _ = quantizer.eval()(latents)
    assert torch.allclose(latents_q, quantizer.codes()[index], atol=1e-5)
    compared, codes = quantizer.prepare(latents), quantizer.codes()
    by_product = IndexBackpropagation in pair  # the nearest where codes have one length
    best = (compared @ codes.T).argmax(1) if by_product else brute_force(compared, codes)
    assert (index == best).double().mean() > 0.99

    # What each of them does is there.
    for kind in pair:
        if quantizer.dim == DIM or kind is FSQ:
            assert EFFECTS[kind][1](quantizer), kind.__name__


@each_pair
def test_the_order_matters_only_between_those_that_make_the_codes(pair):
    if not set(pair) <= ORDERED:
        assert allowed(*pair) == allowed(*pair[::-1])


@pytest.mark.parametrize(
    "pair, works",
    [
        ((CosineCodes, SimVQ), True),
        ((SimVQ, CosineCodes), False),
        ((CosineCodes, AffineCodes), True),
        ((AffineCodes, CosineCodes), False),
        ((AffineCodes, SimVQ), True),
        ((SimVQ, AffineCodes), False),
        ((DiVeQ, OrthogonalCodes), True),
        ((DiVeQ, EntropyLoss), True),
        ((CodeSplitting, DiVeQ), True),
        ((FSQ, EntropyLoss), True),
        ((RotationTrick, DiVeQ), False),
        ((GumbelVQ, RotationTrick), False),
        ((IndexBackpropagation, DiVeQ), False),
        ((IndexBackpropagation, StochasticVQ), False),
        ((IndexBackpropagation, EntropyLoss), True),
        ((CosineCodes, IndexBackpropagation), True),
        ((StochasticVQ, RotationTrick), True),
        ((DecorrelatedCodes, SimVQ), True),
        ((KernelLoss, LeastRecentlyUsed), True),
        ((FSQ, StochasticVQ), False),
        ((BSQ, KernelLoss), False),
        ((BSQ, RotationTrick), True),
        ((RandomRestart, LeastRecentlyUsed), False),
        ((LFQ, EntropyLoss), False),
        ((CodeExpiry, SimVQ), False),
        ((FSQ, CodeExpiry), False),
        ((FSQ, LFQ), False),
    ],
)
def test_these_pairs_are_allowed_and_these_are_not(pair, works):
    assert allowed(*pair) == works


def test_what_must_come_first_is_said():
    with pytest.raises(ValueError, match=r"CosineCodes must come before SimVQ; got class Both\(SimVQ, CosineCodes\)"):
        made(SimVQ, CosineCodes)


MANY = [(CosineCodes, SimVQ), (AffineCodes, EntropyLoss), (CodeSplitting, DiVeQ), (DiVeQ, OrthogonalCodes)]
MANY += [
    (FSQ, EntropyLoss),
    (RotationTrick, LearntAffineCodes),
    (SpreadLatents, LFQ),
    (OnlineClustering, CosineCodes),
    (StochasticVQ, CodeExpiry),
    (CosineCodes, IndexBackpropagation),
    (KernelLoss, DecorrelatedCodes),
]


@pytest.mark.parametrize("pair", MANY, ids=lambda pair: "-".join(kind.__name__ for kind in pair))
def test_pairs_train_many_at_once_as_one_by_one(pair):
    quiet = {"variance": 0} if DiVeQ in pair else {}  # noise is drawn for all runs together
    options = {"steps": 10, "init": "data", "lr": 1e-2, "batch_size": 64, "progress": False}

    def build(seed):
        torch.manual_seed(seed)
        return mlp_autoencoder(6, made(*pair, **quiet), width=16)

    for seed, (model, history) in zip((0, 3), fit_many(build, X, seeds=(0, 3), **options)):
        other = build(seed)
        assert history.reconstruction == pytest.approx(fit(other, X, seed=seed, **options).reconstruction, rel=1e-3)
        assert torch.allclose(model.quantizer.codes(), other.quantizer.codes(), atol=1e-3)


def test_three_together():
    quantizer = made(LeastRecentlyUsed, EntropyLoss, CosineCodes, OrthogonalCodes, RotationTrick)
    trained(quantizer)
    for kind in (EntropyLoss, CosineCodes, OrthogonalCodes, RotationTrick, LeastRecentlyUsed):
        assert EFFECTS[kind][1](quantizer), kind.__name__


# ---------------------------------------------------------------- what a combination takes and shows


BASICS = {"codebook_size": inspect.Parameter.empty, "dim": inspect.Parameter.empty}
COMMON = {"beta": 0.25, "update": "gradient", "decay": None}


@pytest.mark.parametrize(
    "kinds, expected",
    [
        ((VectorQuantizer,), BASICS | COMMON),
        ((CodeExpiry,), BASICS | {"threshold": 0.1, "memory": 0.99} | COMMON),
        ((RotationTrick, CodeExpiry), BASICS | {"threshold": 0.1, "memory": 0.99} | COMMON),
        ((OrthogonalCodes, DiVeQ), BASICS | {"orthogonal_weight": 10.0, "variance": 1e-6} | COMMON | {"beta": 0.0}),
        ((LFQ, SpreadLatents), {"bits": inspect.Parameter.empty, "spread_weight": 1.0} | COMMON),
    ],
)
def test_the_signature_has_the_options_of_all(kinds, expected):
    found = inspect.signature(type("Both", kinds, {})).parameters
    assert all(one.kind is not one.VAR_KEYWORD for one in found.values())
    assert {name: found[name].default for name in expected} == expected


def test_a_class_of_ones_own_need_not_pass_all_on():
    class Averaged(VectorQuantizer):
        def __init__(self, dim, beta=0.5, **options):
            super().__init__(8, dim, beta=beta, update="ema", **options)

    class Fixed(RotationTrick):
        def __init__(self, dim):
            super().__init__(8, dim)

    assert (
        str(inspect.signature(Averaged)) == "(dim, beta=0.5, *, update: str = 'gradient', decay: float | None = None)"
    )
    assert str(inspect.signature(Fixed)) == "(dim)"
    assert (
        repr(Averaged(2)) == "Averaged(dim=2, beta=0.5, update='ema', decay=0.99)"
        and repr(Fixed(2)) == "Fixed(dim=2)"
    )


def test_help_names_the_options():
    for kind, own in ((VectorQuantizer, ()), (CodeExpiry, ("threshold", "memory"))):
        page = pydoc.render_doc(kind, renderer=pydoc.plaintext)
        title = page.partition(kind.__doc__.splitlines()[0])[0]  # in several lines since Python 3.13
        assert all(name in title for name in ("codebook_size", "dim", *own, "beta", "update", "decay"))


@pytest.mark.parametrize("pair", [(VectorQuantizer,), *((kind,) for kind in EFFECTS), *MANY])
def test_what_is_shown_makes_the_same_quantiser_again(pair):
    quantizer = made(*pair, beta=0.7)
    again = eval(f"dict({quantizer.extra_repr()})")
    assert again["beta"] == 0.7 and again.keys() == inspect.signature(type(quantizer)).parameters.keys()
    assert repr(type(quantizer)(**again)) == repr(quantizer)


def test_an_option_that_no_class_has_is_refused():
    with pytest.raises(TypeError, match="memry"):
        made(RotationTrick, CodeExpiry, memry=0.9)


# ---------------------------------------------------------------- in the stages of a residual quantiser


@pytest.mark.parametrize("kind", [VectorQuantizer, *EFFECTS], ids=lambda kind: kind.__name__)
def test_stages_of_any_kind_code_better_than_one_of_them_or_are_refused(kind):
    options, latents = EFFECTS.get(kind, ({},))[0], normal(512, DIM, seed=7) + 1
    if kind in (GumbelVQ, IndexBackpropagation):
        with pytest.raises(ValueError, match=f"must not depend on one stage's codes, got kind={kind.__name__}"):
            ResidualVQ((16, 16), DIM, kind=kind, **options)
        return
    if kind in (CosineCodes, FSQ, LFQ, BSQ):
        with pytest.raises(ValueError, match=f"code what is left, got kind={kind.__name__}"):
            ResidualVQ((16, 16), DIM if kind is not FSQ else 2, kind=kind, **options)
        return
    errors = []
    for stages in ((16,), (16, 16)):
        torch.manual_seed(0)
        quantizer = ResidualVQ(stages, DIM, kind=kind, **options)
        quantizer.init_codes("kmeans", latents)
        for _ in range(5):
            quantizer.train()(latents)
        quantizer.zero_grad()
        z = latents.clone().requires_grad_()
        latents_q, _, loss = quantizer(z)
        ((latents_q * normal(512, DIM)).sum() + loss).backward()
        for name, parameter in quantizer.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        latents_q = quantizer.eval()(latents).latents_q
        errors.append(((latents_q - latents).square().sum() / (latents - latents.mean(0)).square().sum()).item())
    assert errors[1] < 0.6 * errors[0] < 0.6


@pytest.mark.parametrize("kind", [RotationTrick, DiVeQ])
def test_the_gradient_of_stages_is_that_of_the_sum(kind):
    options = {"variance": 0} if kind is DiVeQ else {}
    whole, alone = ResidualVQ((8, 8), DIM, kind=kind, **options), kind(64, DIM, **options)
    whole.init_codes("normal", seed=1)
    z, weight, found = normal(50, DIM), normal(50, DIM, seed=2), []
    index = whole(z).index
    for quantizer in (whole, alone):
        latents = z.clone().requires_grad_()
        chosen = whole.decode(index) if quantizer is alone else None
        out = quantizer.estimate(latents, chosen) if quantizer is alone else quantizer(latents).latents_q
        found.append(torch.autograd.grad((out * weight).sum(), latents)[0])
    assert torch.allclose(*found, atol=1e-6) and not torch.allclose(found[0], weight, atol=1e-2)
    if kind is DiVeQ:
        whole.zero_grad()
        (whole(z).latents_q * weight).sum().backward()
        assert all(stage.codebook.grad.abs().sum() > 0 for stage in whole.stages)


@pytest.mark.parametrize("stages, steps", [(3, 4), (8, 3)])
def test_stages_of_real_size_train_and_are_measured_in_little_memory(stages, steps):
    """3 x 1,024 sums would take 34 GB, 8 x 1,024 have no number in int64."""
    x, dim = normal(4096, 8), 4
    torch.manual_seed(0)
    quantizer = ResidualVQ([1024] * stages, dim)
    model = mlp_autoencoder(8, quantizer, width=16)
    fit(model, x, steps=steps, seed=0, init="data", batch_size=512, progress=False)
    latents = model.encode(x).detach()
    latents_q, index, loss = quantizer.eval()(latents)
    assert index.shape == (4096, stages) and index.min() >= 0 and index.max() < 1024 and torch.isfinite(loss)
    assert torch.allclose(quantizer.decode(index), latents_q, atol=1e-5)
    first = quantizer.stages[0].codes().detach()
    error = (latents_q - latents).square().sum() / (latents - latents.mean(0)).square().sum()
    assert error < 0.5 * quantization_error(latents, first)
    with pytest.raises(ValueError, match="too many to list"):
        quantizer.codes()
    if stages == 3:
        joint = quantizer.joint_index(index)
        assert torch.equal(joint[5], index[5, 0] + 1024 * index[5, 1] + 1024**2 * index[5, 2])
    else:
        with pytest.raises(ValueError, match="too many to number them"):
            quantizer.joint_index(index)


def test_stages_do_not_start_with_the_same_codes():
    quantizer = ResidualVQ((8, 8), DIM)
    quantizer.init_codes("normal", seed=3)
    assert not torch.allclose(quantizer.stages[0].codes(), quantizer.stages[1].codes())
    assert len(unit(quantizer.codes()).unique(dim=0)) == 64
