"""Many runs at once give what one run at a time gives; the models stay plain; what fails is named."""

import signal

import numpy as np
import pytest
import torch
from helpers import normal

from vqnotes import data, metrics
from vqnotes.models import evaluate, image_autoencoder, mlp_autoencoder
from vqnotes.quantizers import VectorQuantizer
from vqnotes.training import fit, fit_many

SEEDS = [3, 0, 11]


def small(seed, **options):
    return mlp_autoencoder(4, VectorQuantizer(8, 2, **options), width=16)


def convolutional(seed, **options):
    return image_autoencoder(3, VectorQuantizer(8, 3, **options), width=8, decoder_width=8)


def one_by_one(build, xs, seeds, **options):
    """What fit_many stands for, by its docstring."""
    results = []
    for seed, x in zip(seeds, xs):
        torch.manual_seed(seed)
        model = build(seed)
        results.append((model, fit(model, x, seed=seed, **options)))
    return results


def assert_same(many, single, x):
    for (model, history), (other, other_history) in zip(many, single, strict=True):
        assert history.reconstruction == pytest.approx(other_history.reconstruction, rel=1e-3)
        assert history.quantizer == pytest.approx(other_history.quantizer, rel=1e-3, nan_ok=True)
        size = model.quantizer.codebook_size
        ours, theirs = (metrics.perplexity(evaluate(m, x).index, size) for m in (model, other))
        assert ours == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("update", ["gradient", "ema"])
@pytest.mark.parametrize("init, warmup", [("uniform", 0), ("kmeans", 0), ("data", 20), ("kmeans", 25), (None, 0)])
def test_vectors_train_as_one_by_one(update, init, warmup):
    x, options = normal(400, 4), {"steps": 50, "init": init, "warmup": warmup, "batch_size": 64, "progress": False}
    many = fit_many(lambda seed: small(seed, update=update), x, seeds=SEEDS, **options)
    assert_same(many, one_by_one(lambda seed: small(seed, update=update), [x] * 3, SEEDS, **options), x)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_images_train_as_one_by_one(update):
    x = data.random_crops(data.photographs(), 64, 16, seed=0)
    options = {"steps": 50, "warmup": 10, "batch_size": 16, "progress": False}
    many = fit_many(lambda seed: convolutional(seed, update=update), x, seeds=SEEDS, **options)
    assert_same(many, one_by_one(lambda seed: convolutional(seed, update=update), [x] * 3, SEEDS, **options), x)


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": False},
        {"codebook_lr": 0.1},
        {"batch_size": 7},
        {"lr": 0.03, "warmup": 50},
        {"optimizer": torch.optim.SGD, "lr": 0.03, "codebook_lr": 0.1},
    ],
)
def test_the_other_options_mean_the_same(options):
    x, options = normal(300, 4), {"steps": 50, "progress": False} | options
    many = fit_many(small, x, seeds=SEEDS, **options)
    assert_same(many, one_by_one(small, [x] * 3, SEEDS, **options), x)


def test_each_seed_may_have_its_own_data():
    xs = [normal(200, 4, seed=seed) * (seed + 1) for seed in SEEDS]
    many = fit_many(small, xs, seeds=SEEDS, steps=30, progress=False)
    assert_same(many, one_by_one(small, xs, SEEDS, steps=30, progress=False), xs[0])


def test_a_run_does_not_depend_on_the_runs_beside_it():
    x = normal(300, 4)
    together = fit_many(small, x, seeds=SEEDS, steps=40, progress=False)
    for seed, (model, history) in zip(SEEDS, together):
        ((alone, own),) = fit_many(small, x, seeds=[seed], steps=40, progress=False)
        assert history.reconstruction == pytest.approx(own.reconstruction, rel=1e-4)
        assert torch.allclose(model.quantizer.codebook, alone.quantizer.codebook, atol=1e-3)


def test_the_models_are_plain_and_stand_on_their_own():
    x = normal(300, 4)
    (first, _), (second, _) = fit_many(small, x, seeds=[0, 1], steps=5, progress=False)
    codes = second.quantizer.codebook.detach().clone()
    assert all(isinstance(p, torch.nn.Parameter) and p.is_leaf and p.is_contiguous() for p in first.parameters())
    assert first.quantizer.codebook.untyped_storage().nbytes() == codes.nbytes
    assert len(fit(first, x, steps=5, seed=0, progress=False)) == 5
    assert torch.equal(second.quantizer.codebook, codes) and not torch.equal(first.quantizer.codebook, codes)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    fit_many(small, normal(100, 4), seeds=SEEDS, steps=2, progress=False)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_the_callback_sees_the_models_as_they_are_and_may_hold_a_part(update):
    x, codebooks, encoders = normal(300, 4), [], []

    def watch(step, now):
        codebooks.append(torch.stack([m.quantizer.codebook.detach().clone() for m in now]))
        encoders.append(torch.stack([m.encoder[0].weight.detach().clone() for m in now]))
        for model in now:
            model.encoder.requires_grad_(not 4 <= step < 8)
            model.quantizer.train(not 12 <= step < 16)
            if update == "gradient":
                model.quantizer.requires_grad_(not 12 <= step < 16)

    fit_many(lambda seed: small(seed, update=update), x, seeds=SEEDS, steps=20, progress=False, callback=watch)
    still = [torch.equal(a, b) for a, b in zip(encoders[:-1], encoders[1:])]
    assert [step for step, same in enumerate(still) if same] == [4, 5, 6, 7]
    still = [torch.equal(a, b) for a, b in zip(codebooks[:-1], codebooks[1:])]
    assert [step for step, same in enumerate(still) if same] == [12, 13, 14, 15]


def test_holding_and_placing_anew_mean_the_same_as_in_fit():
    x = normal(300, 4)

    def act(step, model):
        model.encoder.requires_grad_(step < 10)
        if step == 20:
            model.quantizer.init_codes("kmeans", model.encode(x).detach(), seed=step)

    def act_on_all(step, now):
        for model in now:
            act(step, model)

    many = fit_many(small, x, seeds=SEEDS, steps=40, progress=False, callback=act_on_all)
    assert_same(many, one_by_one(small, [x] * 3, SEEDS, steps=40, progress=False, callback=act), x)


def test_an_interrupt_leaves_whole_histories_of_one_length_and_usable_models():
    x = normal(300, 4)

    def stop(step, _):
        if step == 7:
            signal.raise_signal(signal.SIGINT)

    results = fit_many(small, x, seeds=SEEDS, steps=100, progress=False, callback=stop)
    for model, history in results:
        assert history.interrupted and len(history) == len(history.quantizer) == 7
        assert np.isfinite(history.reconstruction).all() and torch.isfinite(evaluate(model, x).reconstruction).all()


def test_seeds_that_diverge_are_named_and_no_others():
    xs = [normal(100, 4), normal(100, 4, seed=1)]

    def spoil(step, now):
        if step == 3:
            now[1].encoder[0].weight.data.fill_(torch.nan)

    with pytest.raises(ValueError, match=r"NaN.*seeds that diverged: \[9\]"):
        fit_many(small, xs, seeds=[8, 9], steps=10, progress=False, callback=spoil)


def shapes_by_seed(seed):
    return mlp_autoencoder(4, VectorQuantizer(8, 2), width=16 + seed)


ONE_MODEL = small(0)


@pytest.mark.parametrize(
    "options, shown",
    [
        ({"seeds": []}, r"at least one seed.*\[\]"),
        ({"seeds": [1, 2, 1]}, r"\[1, 2, 1\]"),
        ({"x": [normal(50, 4)]}, r"each of 2 seeds.*\(50, 4\)"),
        ({"x": [normal(50, 4), normal(60, 4)]}, r"\(50, 4\), \(60, 4\)"),
        ({"x": [normal(50, 4), torch.ones(50, 4)]}, "variance 0"),
        ({"x": torch.arange(36).reshape(9, 4)}, "int64"),
        ({"build": shapes_by_seed}, r"encoder.0.bias is \(\(16,\).*seed 0 and \(\(17,\).*seed 1"),
        ({"build": lambda seed: small(seed, update=("ema", "gradient")[seed])}, "quantizer.share"),
        ({"build": lambda seed: ONE_MODEL}, "same one twice"),
        ({"steps": 0}, "steps=0"),
        ({"warmup": 11}, "warmup=11"),
        ({"codebook_lr": 0.0}, "codebook_lr=0.0"),
        ({"init": "kmeens"}, "kmeens"),
    ],
)
def test_bad_input_is_refused(options, shown):
    options = {"build": small, "x": normal(100, 4), "seeds": [0, 1], "steps": 10, "progress": False} | options
    with pytest.raises(ValueError, match=shown):
        fit_many(options.pop("build"), options.pop("x"), **options)
