"""Models have the shapes they promise; a run is repeatable."""

import copy
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from helpers import normal, run_python
from torch.utils._python_dispatch import TorchDispatchMode

from vqnotes._batches import batches_of
from vqnotes.models import (
    FromPatches,
    ToPatches,
    VQAutoencoder,
    evaluate,
    image_autoencoder,
    latents_for_codes,
    mlp,
    mlp_autoencoder,
    sample_latents,
)
from vqnotes.quantizers import Quantized, VectorQuantizer
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


def test_batches_in_order_go_on():
    in_order = islice(batches_of(10, 4, [3, 5], torch.device("cpu"), shuffle=False), 40)
    assert torch.equal(torch.cat(list(in_order), dim=1), (torch.arange(160) % 10).expand(2, -1))


@pytest.mark.parametrize("length, batch_size", [(1000, 48), (10, 4), (7, 30), (1, 3), (64, 64)])
def test_shuffled_batches_are_epochs_one_after_the_other(length, batch_size):
    """Every input once before any twice, in batches that are full across the border; each pass in another order."""
    steps = 3 * length // batch_size + 20
    drawn = torch.cat(list(islice(batches_of(length, batch_size, [3, 5], torch.device("cpu")), steps)), dim=1)
    assert drawn.shape == (2, steps * batch_size)
    passes = drawn[:, : drawn.shape[1] // length * length].view(2, -1, length)
    assert torch.equal(passes.sort(dim=2).values, torch.arange(length).expand_as(passes))
    orders = passes.flatten(0, 1)
    if length >= 64:
        assert len(orders.unique(dim=0)) == len(orders)  # of each seed and of each pass
        assert (orders[:, 0].float().mean() - length / 2).abs() < length / 4


def test_batches_depend_on_the_seed_alone_and_not_on_the_sample_that_codes_start_from():
    alone = [torch.stack(list(islice(batches_of(300, 256, [s], torch.device("cpu")), 40))) for s in (3, 5, 3)]
    together = torch.stack(list(islice(batches_of(300, 256, [3, 5], torch.device("cpu")), 40)))
    assert torch.equal(together, torch.cat(alone[:2], dim=1)) and torch.equal(alone[0], alone[2])
    started = latents_for_codes(VQAutoencoder(torch.nn.Identity(), VectorQuantizer(8, 1), None), normal(300, 1), 3)
    first = normal(300, 1)[alone[0][0, 0]]
    assert len(started) == 256 == len(first) and not torch.equal(started.sort(0).values, first.sort(0).values)


def test_a_large_data_set_is_permuted_once_a_pass():
    """Of a million inputs, and not for every sixteen steps."""
    permuted = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            permuted.extend([args[0]] * ("randperm" in str(operation)))
            return operation(*args, **(kwargs or {}))

    with Watch():
        drawn = torch.cat(list(islice(batches_of(10**6, 256, [0], torch.device("cpu")), 320)))
    assert 1 <= permuted.count(10**6) <= 2 and len(drawn.unique()) == 320 * 256


# ---------------------------------------------------------------- optimisers


class SignDescent(torch.optim.Optimizer):
    """One of the reader's own: a step of the learning rate against the sign of the gradient."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for one in group["params"]:
                if one.grad is not None:
                    one.sub_(group["lr"] * one.grad.sign())


def momentum_from_a_function(groups):
    return torch.optim.SGD(groups, momentum=0.9)


ANY_OPTIMIZER = [
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adamax,
    SignDescent,
    partial(torch.optim.SGD, momentum=0.9),
    partial(torch.optim.Adam, foreach=True),
    momentum_from_a_function,
]


@pytest.mark.parametrize("optimizer", ANY_OPTIMIZER, ids=lambda one: getattr(one, "__name__", repr(one)))
def test_any_optimizer_takes_its_own_steps(optimizer):
    """The same as by hand, with each part's learning rate."""
    x, options = normal(64, 4), {"lr": 1e-2, "codebook_lr": 1e-3}
    model, by_hand = small_model(), small_model()
    fit(
        model,
        x,
        steps=8,
        seed=0,
        init=None,
        batch_size=64,
        shuffle=False,
        optimizer=optimizer,
        progress=False,
        **options,
    )
    codes = list(by_hand.quantizer.parameters())
    others = [*by_hand.encoder.parameters(), *by_hand.decoder.parameters()]
    own = optimizer([{"params": others, "lr": 1e-2}, {"params": codes, "lr": 1e-3}])
    for _ in range(8):
        reconstruction, (_, _, loss) = by_hand(x)
        own.zero_grad()
        ((reconstruction - x).square().mean() / x.var(correction=0) + loss).backward()
        own.step()
    for one, other in zip(model.parameters(), by_hand.parameters()):
        assert torch.allclose(one, other, atol=1e-5)


def test_an_optimizer_is_fused_where_it_can_be():
    made = []

    def kept(groups, **options):
        made.append(torch.optim.Adam(groups, **options))
        return made[-1]

    fit(small_model(), normal(64, 4), steps=1, seed=0, init=None, optimizer=kept, progress=False)
    assert made[0].defaults["fused"]


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, partial(torch.optim.LBFGS, history_size=5)])
@pytest.mark.parametrize("codebook_lr", [None, 0.1])
def test_an_optimizer_that_needs_a_closure_is_refused(optimizer, codebook_lr):
    with pytest.raises(ValueError, match="LBFGS needs a closure"):
        options = {"optimizer": optimizer, "codebook_lr": codebook_lr, "progress": False}
        fit(small_model(), normal(64, 4), steps=1, seed=0, init=None, **options)


def test_an_optimizers_own_error_is_shown():
    with pytest.raises(TypeError, match="momentun"):
        fit(
            small_model(),
            normal(64, 4),
            steps=1,
            seed=0,
            optimizer=partial(torch.optim.SGD, momentun=1),
            progress=False,
        )


# ---------------------------------------------------------------- encoders that are different in training


def with_layers(*layers, seed=0):
    torch.manual_seed(seed)
    encoder = torch.nn.Sequential(torch.nn.Linear(4, 16), *layers, torch.nn.ReLU(), torch.nn.Linear(16, 2))
    return VQAutoencoder(encoder, VectorQuantizer(8, 2), mlp(2, 16, 4))


@pytest.mark.parametrize("batch_size", [64, 300])
def test_batch_norm_has_seen_the_batches_of_the_training_and_nothing_else(batch_size):
    x, model, seen = normal(300, 4), with_layers(torch.nn.BatchNorm1d(16)), []
    norm = model.encoder[1]
    expected = copy.deepcopy(norm)
    norm.register_forward_pre_hook(lambda now, inputs: seen.append(inputs[0].clone()) if now.training else None)
    fit(model, x, steps=12, seed=0, warmup=4, init="kmeans", batch_size=batch_size, progress=False)
    assert len(seen) == 12 == norm.num_batches_tracked and {len(batch) for batch in seen} == {batch_size}
    for batch in seen:
        expected(batch.detach())
    assert torch.allclose(norm.running_mean, expected.running_mean, atol=1e-6)
    assert torch.allclose(norm.running_var, expected.running_var, atol=1e-6)


@pytest.mark.parametrize("layers", [(torch.nn.BatchNorm1d(16),), (torch.nn.Dropout(0.5),)], ids=["norm", "dropout"])
def test_codes_start_from_latents_in_evaluation_mode_that_leave_no_trace(layers):
    model, x = with_layers(*layers), normal(300, 4)
    for _ in range(5):
        model.encoder(x + 1)
    model.train().decoder.eval()
    modes, before = [one.training for one in model.modules()], copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    found = sample_latents(model, x, 300, torch.Generator().manual_seed(0))
    assert [one.training for one in model.modules()] == modes and torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    expected = evaluate(model, x).latents
    assert torch.allclose(found.sort(dim=0).values, expected.sort(dim=0).values, atol=1e-6)
    assert [one.training for one in model.modules()] == modes


def test_modes_that_differ_are_as_before_after_a_run():
    model = with_layers(torch.nn.BatchNorm1d(16))
    model.encoder[1].eval()
    modes = [one.training for one in model.modules()]
    fit(model, normal(300, 4), steps=3, seed=0, progress=False)
    assert [one.training for one in model.modules()] == modes


def test_latents_to_start_from_are_a_wide_choice():
    """Of images with 16 latents each, 64 latents come from many images, not from the four that would do."""
    model = VQAutoencoder(ToPatches(2), VectorQuantizer(8, 4), FromPatches(2))
    x = torch.arange(500.0)[:, None, None, None].expand(-1, 1, 8, 8)  # the picture's number at each place
    latents = sample_latents(model, x, 64, torch.Generator().manual_seed(0))
    assert latents.shape == (64, 4) and 12 <= len(latents[:, 0].unique()) <= 17
    assert len(sample_latents(model, x[:3], 64, torch.Generator().manual_seed(0))) == 48


class Sums(torch.nn.Module):
    """Codes that are sums of two stages', too many to list."""

    def __init__(self):
        super().__init__()
        self.stages = torch.nn.ModuleList([VectorQuantizer(4, 2), VectorQuantizer(6, 2)])

    def codes(self):
        raise AssertionError("the sums are listed")

    def forward(self, latents):
        first, second = self.stages[0](latents), self.stages[1](latents)
        return first._replace(loss=first.loss + second.loss)

    def init_codes(self, how, latents, seed):
        self.given = len(latents)
        self.stages[0].init_codes(how, latents, seed)


class Bare(torch.nn.Module):
    """A quantiser of the reader's own, with no attribute but what `fit` calls."""

    def __init__(self):
        super().__init__()
        self.inner = [VectorQuantizer(5, 2)]  # out of sight

    def codes(self):
        return self.inner[0].codes()

    def forward(self, latents):
        return self.inner[0](latents)

    def init_codes(self, how, latents, seed):
        self.given = len(latents)


@pytest.mark.parametrize("quantizer, wanted", [(Sums(), 32 * 6), (Bare(), 32 * 5)])
def test_latents_to_start_from_are_as_many_as_the_codes_that_are_placed_need(quantizer, wanted):
    model, x = VQAutoencoder(mlp(4, 2), quantizer, mlp(2, 4)), normal(500, 4)
    assert len(fit(model, x, steps=2, seed=0, init="data", progress=False)) == 2
    assert quantizer.given == wanted and evaluate(model, x).index.shape == (500,)


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


def test_an_optimisers_own_options_are_kept_or_refused():
    made = []

    class Seen(torch.optim.Adam):
        def __init__(self, *arguments, **options):
            made.append(options)
            super().__init__(*arguments, **options)

    x, model = torch.randn(64, 3), mlp_autoencoder(3, VectorQuantizer(4, 2), width=4)
    fit(model, x, steps=1, seed=0, progress=False, optimizer=partial(Seen, fused=False))
    assert made == [{"fused": False}]
    with pytest.raises(ValueError, match="lr=0.5"):
        fit(model, x, steps=1, seed=0, progress=False, optimizer=partial(Seen, lr=0.5))


def test_evaluate_takes_a_quantiser_without_a_list_of_codes_and_draws_nothing_of_its_own():
    class Same(torch.nn.Module):
        def forward(self, z):
            return Quantized(z, torch.zeros(z.shape[:-1], dtype=torch.long), z.sum() * 0)

    class Noisy(torch.nn.Module):
        def forward(self, x):
            return x[:, :2] + torch.randn(len(x), 2)

    model, x = VQAutoencoder(Noisy(), Same(), torch.nn.Linear(2, 3)), torch.randn(9, 3)
    torch.manual_seed(0)
    latents = evaluate(model, x).latents
    torch.manual_seed(0)
    assert torch.equal(latents, model.encode(x))
