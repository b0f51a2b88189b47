"""Small work is done on one thread, large work on all; whatever happens, as many are allowed afterwards as before."""

import threading
from contextlib import nullcontext

import numpy as np
import pytest
import scipy.linalg  # noqa: F401  has a BLAS of its own
import torch
from helpers import normal, press, run_python
from sklearn.cluster import KMeans  # noqa: F401  has an OpenMP of its own
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from vqnotes import _threads, models
from vqnotes._threads import alone_but_for_parts, is_small, one_thread, one_torch_thread, shared_out, worth_threads
from vqnotes._workload import multiplications
from vqnotes.metrics import effective_rank, separability
from vqnotes.models import VQAutoencoder, evaluate, image_autoencoder, mlp, mlp_autoencoder
from vqnotes.quantizers import VectorQuantizer
from vqnotes.studies.generation import fit_priors
from vqnotes.training import fit, fit_many


def pools():
    """The number of threads of each library, and PyTorch's."""
    return {one["filepath"]: one["num_threads"] for one in threadpool_info()} | {"torch": torch.get_num_threads()}


@pytest.fixture(autouse=True)
def three_threads():
    """As on a machine with three cores, whatever the environment says; all are allowed again at the end."""
    with threadpool_limits(limits=3):
        torch.set_num_threads(3)
        yield
        assert set(pools().values()) == {3}


def test_one_thread_is_one_thread_of_every_library_and_only_meanwhile():
    with one_thread():
        assert set(pools().values()) == {1} and len(pools()) >= 4
        with one_thread():
            assert set(pools().values()) == {1}
        assert set(pools().values()) == {1}
    assert set(pools().values()) == {3}
    with pytest.raises(ZeroDivisionError), one_thread():
        raise ZeroDivisionError
    assert set(pools().values()) == {3}


@pytest.mark.parametrize("last", ["this", "the other"])
def test_several_python_threads_do_not_leave_each_others_limit_behind(last):
    """The other is started under a limit, which PyTorch gives it for its own number."""
    entered, leave, found = threading.Event(), threading.Event(), []

    def second():
        with one_thread():
            entered.set()
            leave.wait(60)
            found.append(torch.get_num_threads())
        found.append(torch.get_num_threads())

    other = threading.Thread(target=second)
    with one_thread():
        other.start()
        entered.wait(60)
        if last == "this":
            leave.set()
            other.join()
            assert set(pools().values()) == {1}
    leave.set()
    other.join()
    assert found == [1, 3] and set(pools().values()) == {3}


def test_libraries_are_looked_for_again_when_a_module_has_been_imported(monkeypatch):
    with one_thread(), one_torch_thread():
        found = _threads._pools.cache_info().misses
    with one_thread():
        assert _threads._pools.cache_info().misses == found
    monkeypatch.setitem(_threads.sys.modules, "vqnotes_test_new_module", _threads)
    with one_thread():
        assert _threads._pools.cache_info().misses == found + 1


# ---------------------------------------------------------------- one thread a part

CPU = torch.device("cpu")


def test_parts_are_shared_out_among_as_many_threads_and_each_is_done_once():
    together, done = threading.Barrier(3), []

    def work(parts):
        together.wait(60)  # three at once, or this raises
        assert torch.get_num_threads() == 1 and not torch.is_grad_enabled()
        for part in parts:
            done.append(part)

    shared_out(work, range(1000), CPU)
    assert sorted(done) == list(range(1000))
    assert torch.is_grad_enabled() and torch.get_num_threads() == 3


@pytest.mark.parametrize("parts, device", [([1], CPU), ([1, 2, 3], torch.device("meta"))])
def test_one_part_or_another_device_stays_with_the_calling_thread(parts, device):
    found = []
    shared_out(lambda left: found.append((threading.get_ident(), list(left))), parts, device)
    assert found == [(threading.get_ident(), parts)]
    with one_torch_thread():
        shared_out(lambda left: found.append((threading.get_ident(), list(left))), [1, 2], CPU)
    assert found[1] == (threading.get_ident(), [1, 2])


@pytest.mark.parametrize("where", ["here", "there"])
def test_an_error_in_any_thread_is_raised_and_nobody_begins_another_part(where):
    me, done, failed = threading.get_ident(), [], threading.Event()

    def work(parts):
        if (threading.get_ident() == me) == (where == "here"):
            failed.set()
            raise ZeroDivisionError
        failed.wait(60)
        for part in parts:
            done.append(part)

    with pytest.raises(ZeroDivisionError):
        shared_out(work, range(3), CPU)
    assert torch.get_num_threads() == 3 and torch.is_grad_enabled()


def threads_of(parts, **options):
    """How many threads share in the parts, and how many PyTorch has in each."""
    together, found = threading.Barrier(min(len(parts), options.get("threads", 3))), {}

    def work(left):
        for _ in left:
            found[threading.get_ident()] = torch.get_num_threads()
            together.wait(60)

    shared_out(work, parts, CPU, **options)
    return sorted(found.values())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_work_is_given_to_no_more_threads_than_it_is_worth(threads):
    assert threads_of(range(6), threads=threads) == [1] * threads
    assert torch.get_num_threads() == 3


def test_beside_parts_there_is_one_thread_and_for_parts_there_are_all():
    with alone_but_for_parts():
        assert torch.get_num_threads() == 1
        assert threads_of(range(3)) == [1, 1, 1]
        assert threads_of(range(1)) == [3]  # one part alone is computed by all of them
        with alone_but_for_parts():
            assert torch.get_num_threads() == 1 and threads_of(range(3)) == [1, 1, 1]
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError), alone_but_for_parts():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3 and threads_of(range(3)) == [1, 1, 1]


def test_who_has_one_thread_keeps_it_while_others_have_one_for_a_while():
    """PyTorch has told it that there is one; `alone_but_for_parts` of others gets theirs back and not its own."""
    found = []

    def other():
        torch.set_num_threads(1)
        with alone_but_for_parts():
            pass
        found.append(torch.get_num_threads())

    with alone_but_for_parts():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(60)
    assert found == [1] and torch.get_num_threads() == 3


def test_parts_inherit_inference_mode_and_have_no_gradient():
    found = []

    def work(left):
        found.extend((torch.is_inference_mode_enabled(), torch.is_grad_enabled()) for _ in left)

    for parts in (range(1), range(6)):
        with torch.inference_mode():
            shared_out(work, parts, CPU)
        shared_out(work, parts, CPU)
    assert found == [(True, False), (False, False)] + 6 * [(True, False)] + 6 * [(False, False)]


def test_who_has_one_thread_has_one_for_parts_too():
    found = []
    with one_torch_thread(), alone_but_for_parts():
        shared_out(lambda left: found.append((threading.get_ident(), len(list(left)))), range(3), CPU)
    assert found == [(threading.get_ident(), 3)]


def test_a_million_numbers_are_worth_a_thread():
    assert [worth_threads(numbers) for numbers in (1, 2**21 - 1, 2**21, 2**24)] == [1, 1, 2, 16]


# ---------------------------------------------------------------- which work is small


class ToMaps(nn.Module):
    def forward(self, x):
        return x.movedim(-1, 1)


class FromMaps(nn.Module):
    def forward(self, x):
        return x.movedim(1, -1).contiguous()


def convolutional(width, size=32):
    """Of the form that users have: two convolutions that halve, one more, and the same back."""
    encoder = nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(width, width, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(width, 16, 3, 1, 1),
    )
    decoder = nn.Sequential(
        ToMaps(), nn.Conv2d(16, width, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(width, width, 4, 2, 1), nn.ReLU()
    )
    decoder.append(nn.ConvTranspose2d(width, 3, 4, 2, 1))
    return VQAutoencoder(encoder.append(FromMaps()), VectorQuantizer(256, 16), decoder)


def test_multiplications_are_those_of_a_forward_pass():
    model = mlp_autoencoder(5, VectorQuantizer(16, 3), width=7, decoder_width=11)
    by_hand = (5 * 7 + 7 * 7 + 7 * 3) + 16 * 3 + (3 * 11 + 11 * 11 + 11 * 5)
    assert multiplications(model, normal(300, 5), 256) == 256 * by_hand
    assert multiplications(model, normal(30, 5), 256) == 30 * by_hand
    width, places = 8, (16 * 16, 8 * 8)
    encoder = 3 * width * 16 * places[0] + width * width * 16 * places[1] + width * 16 * 9 * places[1]
    decoder = 16 * width * 9 * places[1] + width * width * 16 * places[1] + width * 3 * 16 * places[0]
    assert multiplications(convolutional(width), torch.rand(9, 3, 32, 32), 2) == 2 * (
        encoder + decoder + 64 * 16 * 256
    )


def test_counting_leaves_no_trace():
    model = VQAutoencoder(
        nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Dropout()), VectorQuantizer(8, 2), mlp(2, 4)
    )
    before, state = {name: one.clone() for name, one in model.state_dict().items()}, torch.get_rng_state()
    multiplications(model, normal(20, 4), 8)
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert all(one.training for one in model.modules()) and torch.equal(torch.get_rng_state(), state)


def test_a_model_is_counted_once_and_anew_if_it_has_changed():
    model, x, calls = mlp_autoencoder(4, VectorQuantizer(8, 2), width=8), normal(20, 4), []
    model.decoder.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        evaluate(model, x)
    assert len(calls) == 3 + 1
    before = multiplications(model, x, 1)
    model.quantizer = VectorQuantizer(9, 2)
    assert multiplications(model, x, 1) == before + 2
    model.encoder = mlp(4, 2)
    assert multiplications(model, x, 1) == 4 * 2 + 9 * 2 + (2 * 64 + 64 * 64 + 64 * 4)


def test_what_the_course_does_is_small_and_a_users_convolutional_model_is_not():
    small = [
        (mlp_autoencoder(64, VectorQuantizer(256, 16), width=64), torch.rand(2000, 64), 256, 16),
        (image_autoencoder(1, VectorQuantizer(256, 8)), torch.rand(64, 1, 28, 28), 32, 8),
        (image_autoencoder(3, VectorQuantizer(1024, 8)), torch.rand(64, 3, 32, 32), 16, 1),
    ]
    large = [
        (convolutional(128), torch.rand(64, 3, 32, 32), 64, 1),
        (convolutional(64), torch.rand(9, 3, 256, 256), 8, 1),
    ]
    assert all(is_small(multiplications(model, x, batch) * runs) for model, x, batch, runs in small)
    assert not any(is_small(multiplications(model, x, batch) * runs) for model, x, batch, runs in large)


# ---------------------------------------------------------------- where it is applied


def heard(module, found):
    """The number of threads at each call of the module, and of its way back."""
    module.register_forward_hook(lambda *_: found.append(torch.get_num_threads()))
    module.register_full_backward_hook(lambda *_: found.append(torch.get_num_threads()))


@pytest.mark.parametrize("small", [True, False])
def test_a_step_is_on_one_thread_if_it_is_small_and_a_callback_on_all(small, monkeypatch):
    monkeypatch.setattr(_threads, "SMALL", np.inf if small else 0)
    model, steps, callbacks = mlp_autoencoder(4, VectorQuantizer(8, 2)), [], []
    heard(model.decoder[0], steps)
    watch = lambda step, _: callbacks.append(torch.get_num_threads())  # noqa: E731
    fit(model, normal(300, 4), steps=5, warmup=2, seed=0, callback=watch, progress=False)
    assert steps[-10:] == [1 if small else 3] * 10 and callbacks == [3] * 6


@pytest.mark.parametrize("small", [True, False])
def test_many_runs_are_as_small_as_all_together(small, monkeypatch):
    x, found = normal(300, 4), []
    one_run = multiplications(mlp_autoencoder(4, VectorQuantizer(8, 2)), x, 64)
    monkeypatch.setattr(_threads, "SMALL", 3 * one_run + small)

    def build(seed):
        model = mlp_autoencoder(4, VectorQuantizer(8, 2))
        model.decoder[0].register_forward_hook(lambda *_: found.append(torch.get_num_threads()))
        return model

    fit_many(build, x, seeds=range(3), steps=5, batch_size=64, init="uniform", progress=False)
    assert found[-5:] == [1 if small else 3] * 5


def test_the_start_of_the_codes_is_on_one_thread_if_it_is_small(monkeypatch):
    found = []

    class Placed(VectorQuantizer):
        def init_codes(self, how, latents=None, seed=0):
            found.append(set(pools().values()))
            super().init_codes(how, latents, seed)

    x = normal(500, 4)
    for limit in (32 * 8 * 2 * 8 + 1, 32 * 8 * 2 * 8):  # latents, of how many numbers, times codes
        monkeypatch.setattr(_threads, "SMALL", limit)
        fit(mlp_autoencoder(4, Placed(8, 2)), x, steps=1, seed=0, init="data", progress=False)
    assert found == [{1}, {3}]


@pytest.mark.parametrize("small", [True, False])
def test_an_evaluation_is_on_one_thread_if_a_batch_is_small(small, monkeypatch):
    model, x, found = mlp_autoencoder(4, VectorQuantizer(8, 2)), normal(300, 4), []
    monkeypatch.setattr(_threads, "SMALL", multiplications(model, x, 100) + small)
    model.quantizer.register_forward_hook(lambda *_: found.append(torch.get_num_threads()))
    evaluate(model, x, batch_size=100)
    assert found == [1 if small else 3] * 3


@pytest.mark.parametrize("large", [True, False])
def test_priors_are_small_by_rows_and_parameters(large, monkeypatch):
    monkeypatch.setattr(_threads, "SMALL", 0 if large else 2**29)
    found, backward = [], torch.Tensor.backward
    monkeypatch.setattr(
        torch.Tensor, "backward", lambda one: (found.append(torch.get_num_threads()), backward(one))[1]
    )
    fit_priors([torch.arange(24).reshape(6, 4) % 5], 5, seeds=[0], steps=3, progress=False)
    assert found == [3 if large else 1] * 3


@pytest.mark.parametrize("end", ["interrupt", "error in the callback", "error in a step"])
def test_all_threads_are_back_however_a_run_ends(end):
    model = mlp_autoencoder(4, VectorQuantizer(8, 2))

    def spoil(step, now):
        if step == 3 and end == "interrupt":
            press()
        elif step == 3 and end == "error in the callback":
            raise ZeroDivisionError
        elif step == 3:
            model.encoder[0].weight.data.fill_(torch.nan)

    expected = {"interrupt": nullcontext(), "error in the callback": pytest.raises(ZeroDivisionError)}
    with expected.get(end, pytest.raises(ValueError, match="NaN")):
        fit(model, normal(300, 4), steps=5, seed=0, callback=spoil, progress=False)
    assert set(pools().values()) == {3}


def test_an_error_in_an_evaluation_lifts_the_limit():
    model, x = mlp_autoencoder(4, VectorQuantizer(8, 2)), normal(30, 4)
    with pytest.raises(ValueError, match="NaN"):
        evaluate(model, x.index_fill(0, torch.tensor([7]), torch.nan))
    assert set(pools().values()) == {3} and models.evaluate(model, x).index.shape == (30,)


@pytest.mark.parametrize("small", [True, False])
def test_metrics_of_few_latents_are_on_one_thread(small, monkeypatch):
    """Of few that vary in a few dimensions, by all libraries; of many, on as many threads as there are."""
    latents, labels, found = normal(100, 6), torch.arange(100) % 4, []

    class Reader(KNeighborsClassifier):
        def fit(self, x, y):
            found.append(set(pools().values()))
            return super().fit(x, y)

    eigvalsh = np.linalg.eigvalsh
    monkeypatch.setattr(np.linalg, "eigvalsh", lambda x: (found.append(set(pools().values())), eigvalsh(x))[1])
    monkeypatch.setattr(_threads, "SMALL", 100 * 100 * 6 + small)
    separability(latents, labels, Reader(5))
    monkeypatch.setattr(_threads, "SMALL", 106 * 36 + small)
    effective_rank(latents)
    assert found == [{1} if small else {3}] * 6


def test_every_number_of_threads_is_back_afterwards():
    """That of MKL too, and that which new threads get: PyTorch's own number does not tell."""
    code = """
import re, threading, torch
from vqnotes._threads import one_thread

def found():
    new = []
    thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    mkl = re.findall(r"mkl_get_max_threads\\(\\) : (\\d+)", torch.__config__.parallel_info())
    return torch.get_num_threads(), mkl, new

torch.set_num_threads(3)
before = found()
for _ in range(2):
    with one_thread():
        assert torch.get_num_threads() == 1
    assert found() == before, (before, found())
"""
    run_python(code)
