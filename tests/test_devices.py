"""On a GPU nothing comes back to the processor, no step waits, the search is exact. Most of it is seen without one.

Operations whose result the host must know are the same on every device, so they are looked for in a step on the
processor; tensors without values, on the device "meta", show where two devices would be mixed.
"""

import contextlib

import pytest
import torch
from helpers import between_neighbours, brute_force, normal
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vqnotes import _rounding, _scores, nearest
from vqnotes._batches import AHEAD
from vqnotes.models import mlp_autoencoder
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import entropy
from vqnotes.studies import remedies as league
from vqnotes.studies.generation import fit_priors
from vqnotes.training import fit, fit_many

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
WAITS = ("_local_scalar_dense", "nonzero.default", "masked_select", "unique", "equal.default", "item", "is_nonzero")


class Watch(TorchDispatchMode):
    """Names the operations, while it watches, whose result the host has to wait for, or that mix devices."""

    def __init__(self):
        super().__init__()
        self.watching, self.seen = False, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        tensors = [one for one in tree_leaves(args) if isinstance(one, torch.Tensor) and one.ndim]
        mixes = len({one.device for one in tensors}) > 1
        if self.watching and (mixes or any(name in str(operation) for name in WAITS)):
            self.seen.append(str(operation))
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch):
    """Watched steps are as on a GPU, where the search may not wait."""
    watched, to_list = Watch(), torch.Tensor.tolist

    def noted(x):
        if watched.watching:
            watched.seen.append("tolist")
        return to_list(x)

    monkeypatch.setattr(nearest, "_may_wait", lambda latents: not watched.watching)
    monkeypatch.setattr(torch.Tensor, "tolist", noted)
    return watched


def quantizer_of(remedy):
    chosen = league.REMEDIES[remedy]
    size = chosen.size if remedy in ("residual", "LFQ", "FSQ") else (16, *chosen.size[1:])
    return chosen.kind(*size, **chosen.options)


def train(remedy, many, device, steps, callback):
    """A training with the remedy, of one run or of two at once."""
    plan = {"steps": steps, "batch_size": 64, "init": "normal", "progress": False, "callback": callback}
    build = lambda seed=0: mlp_autoencoder(5, quantizer_of(remedy)).to(device)  # noqa: E731
    x = normal(200, 5).to(device)
    if many:
        fit_many(build, x, seeds=[0, 1], **plan)
    else:
        fit(build(), x, seed=0, **plan)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("remedy", league.REMEDIES)
def test_no_step_of_a_training_waits_for_the_device(remedy, many, waits):
    def watch(step, _):
        waits.watching = 2 <= step < 6

    with waits:
        train(remedy, many, "cpu", 8, watch)
    assert waits.seen == []


def test_no_step_of_a_prior_waits_and_the_watch_would_see_it(waits):
    def run(steps):
        waits.seen.clear()
        waits.watching = True
        with waits:
            fit_priors([torch.arange(64).reshape(16, 4) % 8], 8, seeds=[0], steps=steps, progress=False)
        waits.watching = False
        return len(waits.seen)

    assert run(2) == run(9) > 0  # some before and after the steps


@pytest.mark.parametrize("remedy", league.REMEDIES)
def test_a_quantizer_mixes_no_devices(remedy, waits, monkeypatch):
    for module in (_scores, entropy):  # autocast does not know this device
        monkeypatch.setattr(module, "full_precision", lambda device: contextlib.nullcontext())
    quantizer = quantizer_of(remedy).to("meta")
    latents = torch.randn(96, quantizer.dim, device="meta", requires_grad=True)
    waits.watching = True
    with waits:
        latents_q, index, loss = quantizer(latents)
        (latents_q.mean() + loss).backward()
    assert waits.seen == []
    assert {one.device.type for one in (latents_q, index, loss)} == {"meta"}


# ---------------------------------------------------------------- the search


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(nearest, "_may_wait", lambda latents: False)


@pytest.mark.parametrize("size", [60, 64, 300])
def test_without_waiting_the_search_is_exact_for_64_latents_in_doubt(as_on_a_gpu, size):
    codebook = 10 + normal(size, 3)
    latents = torch.cat([10 + normal(60, 3, seed=1), between_neighbours(codebook, 60)])
    assert torch.equal(nearest_code(latents, codebook), brute_force(latents, codebook))
    assert torch.equal(
        torch.vmap(nearest_code)(torch.stack([latents, latents + 1]), torch.stack([codebook, codebook + 1])),
        torch.stack([brute_force(latents, codebook), brute_force(latents + 1, codebook + 1)]),
    )


def test_without_waiting_more_latents_in_doubt_get_codes_that_are_equal_up_to_rounding(as_on_a_gpu):
    latents, codebook = normal(2000, 8), 1 + 1e-7 * normal(100, 8, seed=1)  # collapsed
    found = (latents - codebook[nearest_code(latents, codebook)]).norm(dim=1)
    best = (latents - codebook[brute_force(latents, codebook)]).norm(dim=1)
    assert (found - best).max() < 1e-6
    assert nearest_code(latents.index_fill(0, torch.tensor([3]), torch.nan), codebook).max() < 100  # and no error


@pytest.mark.parametrize("name, value", [("allow_tf32", True), ("allow_tf32", False), ("fp32_precision", "tf32")])
def test_the_product_has_full_precision_and_the_setting_is_put_back(name, value):
    settings = torch.backends.cuda.matmul
    if not hasattr(settings, name):
        pytest.skip("this torch has no such setting")
    read = (lambda: settings.fp32_precision) if hasattr(settings, "fp32_precision") else (lambda: settings.allow_tf32)
    before = read()
    try:
        setattr(settings, name, value)
        chosen = read()
        with contextlib.suppress(ZeroDivisionError), _rounding.full_precision("cuda"):
            assert read() in ("ieee", False) and not torch.is_autocast_enabled("cuda")
            raise ZeroDivisionError
        assert read() == chosen
    finally:
        settings.allow_tf32 = False
        if hasattr(settings, "fp32_precision"):
            settings.fp32_precision = before


# ---------------------------------------------------------------- where there is one


@GPU
@pytest.mark.parametrize("remedy", league.REMEDIES)
def test_a_step_on_a_gpu_does_not_synchronise(remedy):
    quantizer = quantizer_of(remedy).cuda()
    latents = torch.randn(512, quantizer.dim, device="cuda", requires_grad=True)
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            latents_q, _, loss = quantizer(latents)
            (latents_q.mean() + loss).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert latents.grad.is_cuda


@GPU
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("remedy", league.REMEDIES)
def test_no_step_of_a_training_on_a_gpu_synchronises(remedy, many):
    def watch(step, _):
        torch.cuda.set_sync_debug_mode(
            "error" if 2 <= step < AHEAD + 2 else "default"
        )  # new batches are fetched, too

    try:
        train(remedy, many, "cuda", AHEAD + 4, watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@GPU
@pytest.mark.parametrize("wait", [True, False])
def test_the_search_on_a_gpu_is_exact_under_tf32_and_autocast(wait, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    latents, codebook = normal(5000, 32).cuda() + 100, normal(700, 32, seed=1).cuda() + 100
    with torch.autocast("cuda"):
        found = nearest_code(latents.requires_grad_(not wait), codebook)
    assert found.is_cuda and torch.equal(found.cpu(), brute_force(latents.detach().cpu(), codebook.cpu()))


@GPU
def test_a_training_on_a_gpu_stays_there():
    torch.manual_seed(0)
    model = mlp_autoencoder(5, VectorQuantizer(16, 8)).cuda()
    history = fit(model, normal(200, 5).cuda(), steps=30, seed=0, progress=False)
    assert history.reconstruction[-1] < history.reconstruction[0] and model.quantizer.codebook.is_cuda
