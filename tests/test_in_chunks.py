"""Many latents take the plain stages in chunks: with the same values and gradients, and only where they are plain."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vqnotes import _in_chunks, remedies
from vqnotes.quantizers import VectorQuantizer

DIM = 24
SHAPES = {"few": (2000, DIM), "maps": (3, 30, 31, DIM), "many": (90_000, DIM)}


class Committed(VectorQuantizer):
    """Its codes get no gradient, although they are parameters."""

    def __init__(self, *size):
        super().__init__(*size)
        self.codebook_loss = False


KINDS = {
    "commitment alone": lambda: Committed(50, DIM),
    "gradient": lambda: VectorQuantizer(50, DIM),
    "ema": lambda: VectorQuantizer(50, DIM, update="ema", beta=0.7),
    "SimVQ": lambda: remedies.SimVQ(50, DIM),
    "restart": lambda: remedies.RandomRestart(50, DIM),
}


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def latents_of(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def in_chunks(monkeypatch, yes):
    monkeypatch.setattr(_in_chunks, "MANY", 1 if yes else 2**62)


def was_in_chunks(quantized):
    return "_InChunks" in type(quantized.loss.grad_fn).__name__


def step(quantizer, latents, weight=1.7):
    """A step of a copy: values, gradients and buffers afterwards, and whether it went by chunks."""
    quantizer, latents = copy.deepcopy(quantizer), latents.detach().clone().requires_grad_()
    found = quantizer(latents)
    slopes = latents_of(latents.shape, seed=1).detach(), torch.tensor(weight)
    torch.autograd.backward([found.latents_q, found.loss], slopes)
    gradients = [one.grad for one in (latents, *quantizer.parameters())]
    return found.loss, [found.latents_q, found.index, *gradients, *quantizer.buffers()], was_in_chunks(found)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_the_stages(kind, shape, threads, monkeypatch):
    torch.manual_seed(0)
    quantizer, latents = KINDS[kind](), latents_of(SHAPES[shape])
    quantizer.init_codes("data", latents)
    in_chunks(monkeypatch, False)
    loss, others, chunks = step(quantizer, latents)
    in_chunks(monkeypatch, True)
    again, same, chunks_now = step(quantizer, latents)
    assert (chunks, chunks_now) == (False, True)
    assert abs(loss - again) <= 4 * torch.finfo(loss.dtype).eps * loss
    assert all(one is other or torch.equal(one, other) for one, other in zip(others, same, strict=True))


def test_it_begins_where_an_operation_takes_several_threads():
    quantizer = VectorQuantizer(8, 16)
    assert not was_in_chunks(quantizer(latents_of((2**11 - 1, 16)))) and was_in_chunks(
        quantizer(latents_of((2**11, 16)))
    )
    assert not was_in_chunks(quantizer.double()(latents_of((2**11, 16)).double()))


def test_frozen_codes_get_no_gradient():
    quantizer, latents = VectorQuantizer(8, 16), latents_of((3000, 16))
    quantizer.codebook.requires_grad_(False)
    (latents_q, _, loss) = quantizer(latents)
    (latents_q.sum() + loss).backward()
    assert quantizer.codebook.grad is None and latents.grad is not None


def test_only_one_of_the_two_results_is_used(monkeypatch):
    quantizer, latents = VectorQuantizer(8, 16), latents_of((3000, 16))
    for name in ("latents_q", "loss"):
        found = []
        for yes in (False, True):
            in_chunks(monkeypatch, yes)
            found.append(torch.autograd.grad(getattr(quantizer(latents), name).sum(), latents)[0])
        assert torch.equal(*found), name


def test_what_the_decoder_does_in_place_reaches_no_code():
    quantizer, latents = VectorQuantizer(8, 16), latents_of((3000, 16))
    before = quantizer.codebook.detach().clone()
    found = quantizer(latents)
    found.latents_q.relu_().sum().backward()
    assert torch.equal(quantizer.codebook, before)
    assert torch.equal(latents.grad, (before[found.index] > 0).float())


# ---------------------------------------------------------------- stages that are not plain


class Halved(VectorQuantizer):
    def estimate(self, latents, chosen):
        return super().estimate(latents, chosen) / 2


class Doubled(VectorQuantizer):
    def loss(self, latents, chosen):
        return 2 * super().loss(latents, chosen)


@pytest.mark.parametrize("kind", [Halved, Doubled])
def test_a_stage_that_a_remedy_changes_is_asked(kind):
    torch.manual_seed(0)
    plain, latents = VectorQuantizer(8, 16), latents_of((3000, 16))
    other = kind(8, 16)
    other.load_state_dict(plain.state_dict())
    usual, found = plain(latents), other(latents)
    assert was_in_chunks(usual) and not was_in_chunks(found)
    assert torch.equal(found.latents_q, usual.latents_q / (2 if kind is Halved else 1))
    assert torch.allclose(found.loss, usual.loss * (2 if kind is Doubled else 1))


@pytest.mark.parametrize("stage", ["estimate", "loss"])
def test_a_stage_that_is_replaced_in_the_class_or_on_one_object_is_asked(stage, monkeypatch):
    def other(*given):
        return given[-1].sum() * 0 + 3

    quantizer, latents = VectorQuantizer(8, 16), latents_of((3000, 16))
    at = 0 if stage == "estimate" else 2
    with monkeypatch.context() as patched:
        patched.setattr(VectorQuantizer, stage, other)
        assert quantizer(latents)[at].item() == 3
    setattr(quantizer, stage, other)
    assert quantizer(latents)[at].item() == 3


# ---------------------------------------------------------------- what PyTorch makes of it


def of_both(monkeypatch, work):
    """What `work` gives of a quantiser and latents (3, 3000, 16) by the stages, and in chunks."""
    torch.manual_seed(0)
    quantizer, latents, found = VectorQuantizer(8, 16), latents_of((3, 3000, 16)), []
    for yes in (False, True):
        in_chunks(monkeypatch, yes)
        found.append(work(quantizer, latents))
    return zip(*found, strict=True)


def are_close(one, other):
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max())


def summed(quantizer):
    """A scalar of latents whose second derivatives are not zero."""

    def value(latents):
        latents_q, _, loss = quantizer(latents)
        return latents_q.sin().sum() + loss**2

    return value


def test_vmap_and_functional_gradients(monkeypatch):
    def work(quantizer, latents):
        latents = latents.detach()
        each = torch.vmap(lambda one: quantizer(one)[::2])(latents)
        return (
            *each,
            torch.func.grad(summed(quantizer))(latents),
            torch.vmap(torch.func.grad(summed(quantizer)))(latents),
        )

    assert all(map(are_close, *zip(*of_both(monkeypatch, work), strict=True)))


def test_derivatives_of_the_gradient(monkeypatch):
    def work(quantizer, latents):
        given = latents, quantizer.codebook
        first = torch.autograd.grad(summed(quantizer)(latents), given, create_graph=True)
        return *first, *torch.autograd.grad(sum(one.square().sum() for one in first), given)

    assert all(map(are_close, *zip(*of_both(monkeypatch, work), strict=True)))


@pytest.mark.parametrize("of", ["loss", "latents_q"])
def test_gradients_of_a_batch(of, monkeypatch):
    def work(quantizer, latents):
        found = getattr(quantizer(latents), of)
        slopes = latents_of((2, *found.shape), seed=2).detach()
        return torch.autograd.grad(found, latents, slopes, is_grads_batched=True)

    assert all(map(torch.equal, *zip(*of_both(monkeypatch, work), strict=True)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["traced", "compiled"])
def test_a_program_has_the_stages(how, monkeypatch):
    quantizer, latents = VectorQuantizer(8, 16), latents_of((3000, 16)).detach()
    monkeypatch.setattr(_in_chunks._InChunks, "apply", None)
    if how == "traced":
        program = torch.jit.trace(quantizer, (latents,), check_trace=False)
    else:
        program = torch.compile(quantizer, backend="eager")
    found = program(latents)
    monkeypatch.undo()
    assert all(torch.allclose(one.float(), other.float()) for one, other in zip(found, quantizer(latents)))


# ---------------------------------------------------------------- threads


COMPUTES_NOTHING = {f"aten.{name}" for name in ("detach.default", "view.default", "select.int", "empty_like.default")}


class Threads(TorchDispatchMode):
    """Notes which operations on many numbers the thread that watches shares with others."""

    def __init__(self):
        super().__init__()
        self.alone, self.shared = set(), set()

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        result = operation(*given, **(named or {}))
        sizes = [one.numel() for one in (*given, result) if isinstance(one, torch.Tensor)]
        if max(sizes, default=0) >= 2**15:
            (self.alone if torch.get_num_threads() == 1 else self.shared).add(str(operation))
        return result


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_no_operation_of_a_step_takes_several_threads(update):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        quantizer, latents = VectorQuantizer(1024, 64, update=update), latents_of((16_384, 64))
        quantizer.init_codes("normal")
        with Threads() as seen:
            found = quantizer(latents)
        assert {"aten.clone.default", "aten.index_select.out"} <= seen.alone and seen.shared <= COMPUTES_NOTHING
        gradients = [torch.randn(16_384, 64), torch.tensor(1.0)]
        with Threads() as seen:
            torch.autograd.backward([found.latents_q, found.loss], gradients)
        assert "aten.sub.Tensor" in seen.alone and seen.shared <= COMPUTES_NOTHING
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
