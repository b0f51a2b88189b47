"""The entropy loss goes over chunks of latents; its value and derivatives are those of the plain formula."""

import pytest
import torch
from helpers import normal
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vqnotes._threads import one_torch_thread
from vqnotes.models import mlp_autoencoder
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import LFQ, EntropyLoss, entropy
from vqnotes.remedies.entropy import entropy_gap, entropy_gap_of_products

SIZES = [(1, 1, 1), (1, 5, 2), (7, 1, 3), (50, 9, 3), (300, 65, 4)]  # latents, codes, dimensions


@pytest.fixture(params=[60, 2**18], ids=["many chunks", "one chunk"])
def chunks(request, monkeypatch):
    monkeypatch.setattr(entropy, "SCORES_PER_CHUNK", request.param)


def gap(scores):
    """mean_n H(p_n) - H(mean of p_n), as it is written."""
    shares = scores.softmax(1)
    mean = shares.mean(0)
    return -torch.xlogy(shares, shares).sum(1).mean() + torch.xlogy(mean, mean).sum()


def of_products(z, weights):
    return entropy_gap(z @ weights.T)


def doubles(*shape, seed=0):
    return normal(*shape, seed=seed, dtype=torch.float64).requires_grad_()


def same(found, expected):
    return all(torch.allclose(one, other, rtol=1e-9, atol=1e-12) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("count, size, dim", SIZES)
@pytest.mark.parametrize("relative", [True, False])
def test_value_and_gradients_are_those_of_the_formula(count, size, dim, relative, chunks):
    quantizer = EntropyLoss(size, dim, entropy_weight=0.7, temperature=0.4, relative=relative).double()
    z, codes = doubles(count, dim), quantizer.codebook
    codes.data = normal(size, dim, seed=1, dtype=torch.float64)
    distances = (z[:, None] - codes).square().sum(2)
    scale = distances.detach().amin(1).mean() if relative else 1
    expected = 0.7 * gap(-distances / (0.4 * scale))
    chosen = codes[quantizer.assign(z, codes)]
    found = quantizer.loss(z, chosen) - VectorQuantizer.loss(quantizer, z, chosen)
    assert same([found], [expected])
    assert same(torch.autograd.grad(found, [z, codes]), torch.autograd.grad(expected, [z, codes]))


@pytest.mark.parametrize("count, size, dim", SIZES)
def test_derivatives_are_those_of_differences(count, size, dim, chunks):
    count, size = min(count, 20), min(size, 9)
    given = doubles(count, dim), doubles(size, dim, seed=1)
    assert torch.autograd.gradcheck(entropy_gap_of_products, given, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(entropy_gap_of_products, given)


@pytest.mark.parametrize("dims", [(0, 0), (0, None), (None, 0), (1, 2)])
def test_runs_at_once_are_the_runs_one_by_one(dims, chunks):
    given = [
        doubles(20, 3, seed=seed) if dim is None else doubles(4, 20, 3, seed=seed).movedim(0, dim)
        for seed, dim in enumerate(dims)
    ]
    found, expected = (torch.vmap(work, dims)(*given) for work in (entropy_gap_of_products, of_products))
    assert found.shape == (4,) and same([found], [expected])
    assert same(*(torch.autograd.grad(values.square().sum(), given) for values in (found, expected)))
    of_each = [torch.func.grad(work, argnums=(0, 1)) for work in (entropy_gap_of_products, of_products)]
    assert same(*(torch.vmap(work, dims)(*given) for work in of_each))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_finds_the_same(threads, monkeypatch):
    monkeypatch.setattr(entropy, "SCORES_PER_CHUNK", 60)
    torch.set_num_threads(threads)
    given = doubles(70, 3), doubles(9, 3, seed=1)
    found, again, expected = entropy_gap_of_products(*given), entropy_gap_of_products(*given), of_products(*given)
    gradients, same_gradients = (torch.autograd.grad(value, given) for value in (found, again))
    assert torch.equal(found, again) and all(torch.equal(*pair) for pair in zip(gradients, same_gradients))
    assert same([found, *gradients], [expected, *torch.autograd.grad(expected, given)])
    assert torch.get_num_threads() == threads


def test_nothing_that_a_step_makes_grows_with_latents_times_codes():
    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            made = operation(*args, **(kwargs or {}))
            self.largest = max([self.largest, *(one.numel() for one in tree_leaves(made) if torch.is_tensor(one))])
            return made

    def largest(count, work):
        z, watch = normal(count, 2).requires_grad_(), Watch()
        with watch, one_torch_thread():  # it watches this thread alone
            work(z).backward()
        return watch.largest

    quantizer, codes = EntropyLoss(512, 2), normal(512, 2).requires_grad_()
    for work in (lambda z: entropy_gap_of_products(z, codes), lambda z: quantizer(z).loss):
        few, many = largest(2**13, work), largest(2**15, work)
        assert few == many <= 2**20 < 2**13 * 512
    assert largest(2**13, lambda z: of_products(z, codes)) == 2**13 * 512  # the watch would see it


def test_it_counts_in_float32_whatever_comes_in():
    quantizer, latents = EntropyLoss(64, 8, entropy_weight=1.0), normal(500, 8)
    quantizer.init_codes("data", latents)
    expected = quantizer(latents).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(latents).loss, expected)
    for dtype in (torch.bfloat16, torch.float16):
        half = latents.to(dtype).requires_grad_()
        loss = quantizer(half).loss
        loss.backward()
        assert loss.dtype == torch.float32 and torch.allclose(loss, quantizer(half.detach().float()).loss, atol=1e-5)
        assert half.grad.dtype == dtype and half.grad.isfinite().all()


def test_a_model_with_it_is_exported_for_any_batch_size():
    model, x = mlp_autoencoder(5, EntropyLoss(128, 3)).eval(), normal(40, 5)
    sizes = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(model, (x[:16],), dynamic_shapes=sizes).module()
    for batch in (x[:16], x[16:]):
        assert torch.allclose(program(batch)[1].loss, model(batch)[1].loss, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 5])
def test_lfq_has_the_same_value_and_gradient_without_chunks(bits):
    quantizer, z = LFQ(bits, entropy_weight=0.3, inverse_temperature=0.7, beta=0.0).double(), doubles(50, bits)
    found, expected = quantizer(z).loss, 0.3 * gap(1.4 * z @ quantizer.codes().T)
    assert same([found], [expected])
    assert same(torch.autograd.grad(found, [z]), torch.autograd.grad(expected, [z]))
