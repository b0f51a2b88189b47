"""Models have the shapes they promise; a run is repeatable, and survives an interrupt."""

import signal
import threading
from itertools import islice

import numpy as np
import pytest
import torch
from helpers import normal, run_python

from vqnotes.loop import batches_of
from vqnotes.models import FromPatches, ToPatches, VQAutoencoder, evaluate, image_autoencoder, mlp_autoencoder
from vqnotes.quantizers import VectorQuantizer
from vqnotes.training import fit


def small_model(seed=0, **options):
    torch.manual_seed(seed)
    return mlp_autoencoder(4, VectorQuantizer(8, 2, **options), width=16)


def test_models_have_the_shapes_they_promise():
    reconstruction, quantized = small_model()(normal(5, 4))
    assert reconstruction.shape == (5, 4) and quantized.index.shape == (5,) and quantized.latents_q.shape == (5, 2)
    model = image_autoencoder(3, VectorQuantizer(8, 6), patch=4)
    images = torch.rand(2, 3, 20, 32)
    reconstruction, quantized = model(images)
    assert reconstruction.shape == images.shape and quantized.index.shape == (2, 5, 8)
    assert model.encode(images).shape == quantized.latents_q.shape == (2, 5, 8, 6)
    assert torch.equal(model.decode(quantized.latents_q), reconstruction)
    with pytest.raises(ValueError, match=r"multiples of 4, got \(2, 3, 20, 30\)"):
        model(torch.rand(2, 3, 20, 30))


def test_patches_are_the_picture_cut_up_and_put_together_again():
    images = torch.rand(2, 3, 8, 12)
    patches = ToPatches(4)(images)
    assert patches.shape == (2, 2, 3, 48) and torch.allclose(FromPatches(4)(patches), images, atol=1e-6)
    assert sorted(patches[0, 1, 2].tolist()) == sorted((images[0, :, 4:, 8:] - 0.5).flatten().tolist())


def test_width_is_the_encoders_alone():
    def parameters(module):
        return sum(p.numel() for p in module.parameters())

    for build in (mlp_autoencoder, image_autoencoder):
        narrow, wide = (build(3, VectorQuantizer(8, 2), width=w) for w in (2, 64))
        assert parameters(narrow.encoder) < parameters(wide.encoder)
        assert parameters(narrow.decoder) == parameters(wide.decoder)


def test_training_trains_where_gradients_are_off():
    """As they stay, unseen, where two interrupts tore `torch.no_grad`."""
    errors = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            errors.append(fit(small_model(), normal(300, 4), steps=30, seed=0, progress=False).reconstruction)
            assert torch.is_grad_enabled() == grad
    assert errors[0] == errors[1]


def test_batches_in_order_go_on_and_random_ones_are_drawn_by_each_seed():
    in_order = islice(batches_of(10, 4, [3, 5], torch.device("cpu"), shuffle=False), 40)
    assert torch.equal(torch.cat(list(in_order), dim=1), (torch.arange(160) % 10).expand(2, -1))
    drawn = torch.stack(list(islice(batches_of(1000, 4, [3, 5], torch.device("cpu")), 40)))
    for run, seed in enumerate((3, 5)):
        generator = torch.Generator().manual_seed(seed)
        one_by_one = [torch.randint(1000, (4,), generator=generator) for _ in range(40)]
        assert torch.equal(drawn[:, run], torch.stack(one_by_one))


def test_the_codebook_has_a_learning_rate_of_its_own():
    model = small_model()
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    fit(model, normal(300, 4), steps=5, seed=0, init=None, lr=1e-2, codebook_lr=1e-9, progress=False)
    moved = {name: (one - before[name]).abs().max().item() for name, one in model.named_parameters()}
    assert 0 < moved.pop("quantizer.codebook") < 1e-7 and min(moved.values()) > 1e-3


@pytest.mark.parametrize("seed", [1, 2])
def test_the_seed_starts_the_codes(seed):
    found = []
    watch = lambda step, model: found.append(model.quantizer.codes().detach().clone())  # noqa: E731
    fit(small_model(), normal(300, 4), steps=1, seed=seed, init="uniform", callback=watch, progress=False)
    expected = VectorQuantizer(8, 2)
    expected.init_codes("uniform", seed=seed)
    assert torch.equal(found[0], expected.codes())


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_the_same_seed_gives_the_same_run(update):
    x, results = normal(300, 4), []
    for seed in (1, 1, 2):
        model = small_model(update=update)
        history = fit(model, x, steps=20, seed=seed, warmup=5, progress=False)
        results.append((history.reconstruction, model.quantizer.codebook.detach().clone()))
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])
    assert results[0][0] != results[2][0]


def test_a_run_learns_and_records_every_step():
    model, x = small_model(), normal(500, 4)
    seen = []
    history = fit(
        model, x, steps=200, seed=0, warmup=100, lr=3e-3, progress=False, callback=lambda step, _: seen.append(step)
    )
    assert seen == list(range(201)) and len(history) == 200 and not history.interrupted
    assert np.isnan(history.quantizer[:100]).all() and np.isfinite(history.quantizer[100:]).all()
    assert np.mean(history.reconstruction[:10]) > 0.9 > 0.7 > np.mean(history.reconstruction[90:100])


def test_one_step_of_plain_gradient_descent_by_hand():
    """One linear layer a -> a * w * v, error relative to the variance: each weight moves against its gradient."""
    x = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]])
    encoder, decoder = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    model = VQAutoencoder(encoder, VectorQuantizer(2, 1), decoder)
    w, v = encoder.weight.item(), decoder.weight.item()
    options = {"batch_size": 4, "shuffle": False, "optimizer": torch.optim.SGD, "lr": 0.1, "progress": False}
    fit(model, x, steps=1, warmup=1, init=None, seed=0, **options)
    assert encoder.weight.item() == pytest.approx(w - 0.1 * 2 * (w * v - 1) * v, abs=1e-6)
    assert decoder.weight.item() == pytest.approx(v - 0.1 * 2 * (w * v - 1) * w, abs=1e-6)


def test_the_codebook_is_started_at_the_switch_from_the_latents_of_then():
    model, x, codebooks = small_model(), normal(500, 4), {}

    def remember(step, now):
        codebooks[step] = now.quantizer.codebook.detach().clone()

    fit(model, x, steps=12, seed=0, warmup=10, progress=False, callback=remember)
    assert torch.equal(codebooks[0], codebooks[9]) and not torch.equal(codebooks[9], codebooks[10])
    model, untouched = small_model(), small_model().quantizer.codebook.detach()
    fit(model, x, steps=1, seed=0, init=None, progress=False, callback=remember)
    assert torch.equal(codebooks[0], untouched)


def test_the_batches_do_not_depend_on_when_or_how_the_codebook_starts():
    x, seen = normal(500, 4), []
    for init, warmup in (("uniform", 0), ("kmeans", 0), ("kmeans", 3)):
        model, batches = small_model(), []
        model.encoder.register_forward_hook(lambda _, inputs, __, to=batches: to.append(inputs[0].clone()))
        fit(model, x, steps=6, seed=0, warmup=warmup, init=init, batch_size=32, progress=False)
        seen.append(torch.stack([batch for batch in batches if len(batch) == 32]))
    assert len(seen[0]) == 6 and torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


def test_evaluate_is_whole_and_changes_nothing():
    model, x = small_model(update="ema").train(), normal(300, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outcome = evaluate(model, x, batch_size=64)
    assert outcome.latents.shape == (300, 2) and outcome.index.shape == (300,)
    assert outcome.reconstruction.shape == x.shape
    assert not outcome.reconstruction.requires_grad and model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_interrupt_returns_the_history_so_far_and_a_usable_model():
    model, x = small_model(update="ema").eval(), normal(300, 4)

    def stop(step, _):
        if step == 7:
            signal.raise_signal(signal.SIGINT)

    history = fit(model, x, steps=100, seed=0, progress=False, callback=stop)
    assert history.interrupted and len(history) == len(history.quantizer) == 7 and not model.training
    assert torch.isfinite(evaluate(model, x).reconstruction).all()
    assert len(fit(model, x, steps=5, seed=0, progress=False)) == 5


def test_an_interrupt_at_any_moment_leaves_a_whole_history():
    model, x = small_model(), normal(300, 4)
    for delay in (0.01, 0.03, 0.06, 0.1):
        timer = threading.Timer(delay, signal.raise_signal, [signal.SIGINT])

        def start(step, _, timer=timer):
            if step == 1:
                timer.start()

        history = fit(model, x, steps=1_000_000, seed=0, progress=False, callback=start)
        timer.join()
        assert history.interrupted and 0 < len(history.quantizer) == len(history.reconstruction) < 1_000_000


def test_progress_is_shown_on_a_terminal_and_leaves_nothing_on_stdout():
    code = (
        "import torch; from vqnotes import models, quantizers, training\n"
        "model = models.mlp_autoencoder(2, quantizers.VectorQuantizer(4, 2))\n"
        "training.fit(model, torch.rand(64, 2), steps=30, seed=0)"
    )
    run = run_python(code)
    assert "training" in run.stderr and "30" in run.stderr and run.stdout == ""


@pytest.mark.parametrize(
    "options, shown",
    [
        ({"steps": 0}, "steps=0"),
        ({"warmup": 11}, "warmup=11"),
        ({"warmup": -1}, "warmup=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"init": "kmeens"}, "kmeens"),
        ({"x": torch.zeros(0, 4)}, r"\(0, 4\)"),
        ({"x": torch.ones(9, 4)}, "variance 0"),
        ({"x": torch.full((9, 4), torch.nan)}, "nan"),
        ({"x": torch.arange(36).reshape(9, 4)}, "int64"),
        ({"x": normal(7, 4)}, "7 latents are too few for 8"),
    ],
)
def test_bad_input_is_refused(options, shown):
    x = options.pop("x", normal(100, 4))
    with pytest.raises(ValueError, match=shown):
        fit(small_model(), x, **{"steps": 10, "seed": 0, "progress": False, **options})
