"""Many latents take the plain stages in chunks: with the same values and gradients, and only where they are plain."""

import copy

import pytest
import torch
from torch import nn
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
    torch.set_num_threads(request.param)
    return request.param


def latents_of(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def in_chunks(monkeypatch, yes):
    monkeypatch.setattr(_in_chunks, "MANY", 1 if yes else 2**62)


def was_in_chunks(quantized):
    return type(quantized.loss.grad_fn).__name__ == "_LossBackward"


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


@pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode])
def test_without_a_gradient(inference, threads):
    quantizer, latents = VectorQuantizer(8, 16, update="ema"), latents_of((140_000, 16))
    expected = copy.deepcopy(quantizer)(latents)
    with inference():
        found = quantizer(latents)
    assert torch.equal(found.latents_q, expected.latents_q) and torch.equal(found.loss, expected.loss)


@pytest.mark.parametrize("shape", [(2**11, 16), (2**12 - 1, 16), (1, 70_000), (140_000, 16)])
def test_the_loss_is_the_same_with_any_number_of_threads(shape):
    losses, quantizer = set(), VectorQuantizer(2, shape[1])
    for number in (1, 2, 3, 4, 7):
        torch.set_num_threads(number)
        losses.add(quantizer(latents_of(shape)).loss.item())
    assert len(losses) == 1


# ---------------------------------------------------------------- what depends on what


def test_values_depend_on_the_latents_alone_and_the_loss_on_the_codes_too():
    quantizer, data = VectorQuantizer(8, 16), latents_of((3000, 16)).detach()
    found = quantizer(data)
    assert not found.latents_q.requires_grad and found.loss.requires_grad
    quantizer.codebook_loss = False
    assert not quantizer(data).loss.requires_grad


def test_only_one_of_the_two_results_is_used(monkeypatch):
    quantizer, latents = VectorQuantizer(8, 16), latents_of((3000, 16))
    given = latents, quantizer.codebook
    for name in ("latents_q", "loss"):
        found = []
        for yes in (False, True):
            in_chunks(monkeypatch, yes)
            found.append(torch.autograd.grad(getattr(quantizer(latents), name).sum(), given, allow_unused=True))
        (one, of_codes), (other, same) = found
        assert torch.equal(one, other), name
        assert (same is None) == (of_codes is None) == (name == "latents_q")


def test_two_ways_back_one_after_the_other(monkeypatch):
    found = []
    for yes in (False, True):
        in_chunks(monkeypatch, yes)
        torch.manual_seed(0)
        quantizer, latents = VectorQuantizer(8, 16), latents_of((3000, 16))
        quantized = quantizer(latents)
        quantized.loss.backward()
        quantized.latents_q.sin().sum().backward()
        found.append((latents.grad, quantizer.codebook.grad))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("beta", [0.3, torch.tensor(0.3), torch.tensor([0.1, 0.2])], ids=["one", "tensor", "two"])
def test_a_beta_that_is_learnt_gets_its_gradient(beta):
    quantizer = VectorQuantizer(8, 16)
    quantizer.beta = nn.Parameter(torch.as_tensor(beta))
    quantizer(latents_of((3000, 16))).loss.sum().backward()
    assert (quantizer.beta.grad > 0).all()


def test_the_default_device_moves_nothing():
    quantizer, latents = VectorQuantizer(8, 16), latents_of((3000, 16))
    with torch.device("meta"):
        found = quantizer(latents)
    assert {one.device.type for one in found} == {"cpu"} and torch.equal(found.loss, quantizer(latents).loss)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_an_index_of_another_shape_is_not_cut():
    class Twice(VectorQuantizer):
        def assign(self, latents, codes):
            return super().assign(latents, codes).expand(2, -1)

    quantizer, latents = Twice(8, 16), latents_of((3000, 16))
    assert quantizer(latents).latents_q.shape == (2, 3000, 16)


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
    monkeypatch.setattr(_in_chunks._Estimate, "apply", None)
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


def threads_seen(work):
    """The operations that `work` computes alone, and those that it shares with other threads, of three."""
    torch.set_num_threads(3)
    with Threads() as seen:
        work()
    assert torch.get_num_threads() == 3
    return seen.alone, seen.shared - COMPUTES_NOTHING


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_a_forward_pass_shares_no_operation(update):
    quantizer, latents = VectorQuantizer(1024, 64, update=update), latents_of((16_384, 64))
    alone, shared = threads_seen(lambda: quantizer(latents))
    assert {"aten.clone.default", "aten.index_select.out"} <= alone and not shared


@pytest.mark.parametrize("count", [2**9, 2**10 - 1, 2**14])  # the first two are one part
@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_nor_do_the_stages_both_ways(update, count):
    quantizer, latents = VectorQuantizer(1024, 64, update=update), latents_of((count, 64))
    index, found = torch.arange(count) % 1024, []
    quantizer.assign = lambda latents, codes: index
    alone, shared = threads_seen(lambda: found.extend(quantizer(latents)))
    assert "aten.index_select.out" in alone and not shared
    gradients = [torch.randn(count, 64), torch.tensor(1.0)]
    alone, shared = threads_seen(lambda: torch.autograd.backward(found[::2], gradients))
    assert "aten.sub.out" in alone
    assert shared <= {"aten.add.Tensor"}  # of both gradients of the latents, which autograd adds up itself
