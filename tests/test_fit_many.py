"""Many runs at once give what one run at a time gives; the models stay plain; what fails is named."""

import copy
import dataclasses
import inspect
from functools import partial

import numpy as np
import pytest
import torch
from helpers import normal

from vqnotes import data, metrics, remedies
from vqnotes._stacked import Stacked
from vqnotes.models import FromPatches, VQAutoencoder, evaluate, image_autoencoder, mlp, mlp_autoencoder
from vqnotes.quantizers import VectorQuantizer
from vqnotes.training import Plan, fit, fit_many

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
@pytest.mark.parametrize("init, warmup", [("uniform", 0), ("kmeans", 0), ("data", 10), ("kmeans", 15), (None, 0)])
def test_vectors_train_as_one_by_one(update, init, warmup):
    x, options = normal(400, 4), {"steps": 30, "init": init, "warmup": warmup, "batch_size": 64, "progress": False}
    many = fit_many(lambda seed: small(seed, update=update), x, seeds=SEEDS, **options)
    assert_same(many, one_by_one(lambda seed: small(seed, update=update), [x] * 3, SEEDS, **options), x)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_images_train_as_one_by_one(update):
    x = data.random_crops(data.photographs(), 64, 16, seed=0)
    options = {"steps": 30, "warmup": 10, "batch_size": 16, "progress": False}
    many = fit_many(lambda seed: convolutional(seed, update=update), x, seeds=SEEDS, **options)
    assert_same(many, one_by_one(lambda seed: convolutional(seed, update=update), [x] * 3, SEEDS, **options), x)


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": False},
        {"codebook_lr": 0.1},
        {"batch_size": 7},
        {"lr": 0.03, "warmup": 30},
        {"optimizer": torch.optim.SGD, "lr": 0.03, "codebook_lr": 0.1},
    ],
)
def test_the_other_options_mean_the_same(options):
    x, options = normal(300, 4), {"steps": 30, "progress": False} | options
    many = fit_many(small, x, seeds=SEEDS, **options)
    assert_same(many, one_by_one(small, [x] * 3, SEEDS, **options), x)


def test_the_options_that_both_share_are_the_same():
    """They are spelled out twice, for help() and completion."""
    one, many = (inspect.signature(function).parameters for function in (fit, fit_many))
    shared = [field.name for field in dataclasses.fields(Plan)]
    assert all(one[name] == many[name] for name in shared)
    assert set(one) - set(shared) == {"model", "x", "seed", "callback"}
    assert set(many) - set(shared) == {"build", "x", "seeds", "callback"}


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


def with_layer(layer):
    """A model whose encoder has a layer that is different in training, or looks at several units.

    No bias before it: a norm makes its gradient zero up to rounding, of which Adam would take the sign.
    """

    def build(seed):
        encoder = torch.nn.Sequential(
            torch.nn.Linear(4, 16, bias=False), layer(), torch.nn.ReLU(), torch.nn.Linear(16, 2)
        )
        return VQAutoencoder(encoder, VectorQuantizer(8, 2), mlp(2, 16, 4))

    return build


def with_layer_on_maps(layer):
    def build(seed):
        encoder = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 4, 4, bias=False), layer(), torch.nn.ReLU(), ChannelsLast()
        )
        return VQAutoencoder(
            encoder, VectorQuantizer(8, 8), torch.nn.Sequential(torch.nn.Linear(8, 16), FromPatches(4))
        )

    return build


class ChannelsLast(torch.nn.Module):
    def forward(self, x):
        return x.movedim(1, -1).contiguous()


LAYERS = {
    "BatchNorm1d": (with_layer, lambda: torch.nn.BatchNorm1d(16)),
    "LayerNorm": (with_layer, lambda: torch.nn.LayerNorm(16)),
    "GroupNorm": (with_layer, lambda: torch.nn.GroupNorm(4, 16)),
    "BatchNorm2d": (with_layer_on_maps, lambda: torch.nn.BatchNorm2d(8)),
    "GroupNorm on maps": (with_layer_on_maps, lambda: torch.nn.GroupNorm(2, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("init, warmup", [("kmeans", 0), ("data", 10)])
def test_encoders_with_norms_train_as_one_by_one(name, init, warmup):
    at, layer = LAYERS[name]
    x = normal(300, 4) if at is with_layer else normal(300, 1, 8, 8)
    options = {"steps": 30, "warmup": warmup, "init": init, "batch_size": 32, "progress": False}
    many = fit_many(at(layer), x, seeds=SEEDS, **options)
    single = one_by_one(at(layer), [x] * 3, SEEDS, **options)
    assert_same(many, single, x)
    for (model, _), (other, _) in zip(many, single):
        for kept, expected in zip(model.encoder.buffers(), other.encoder.buffers(), strict=True):
            assert torch.allclose(kept.double(), expected.double(), rtol=1e-3, atol=1e-4)
        if "Batch" in name:
            assert model.encoder[1].num_batches_tracked == 30
        assert torch.allclose(evaluate(model, x).latents, evaluate(other, x).latents, rtol=1e-2, atol=1e-2)


class Twice(VQAutoencoder):
    """A model with a way of its own from input to output."""

    def forward(self, x):
        return super().forward(2 * x)


class Negated(VectorQuantizer):
    def estimate(self, latents, chosen):
        return -super().estimate(latents, chosen)


class Reads(torch.nn.Module):
    """A decoder that reads the encoder's first layer, which is not its own."""

    def __init__(self, encoder):
        super().__init__()
        self.read, self.last = [encoder[0]], mlp(2, 16, 4)

    def forward(self, codes):
        return self.last(codes) + codes @ self.read[0].weight[:2]


def of(encoder, quantizer=VectorQuantizer, kind=VQAutoencoder):
    def build(seed):
        return kind(encoder(), quantizer(8, 2), mlp(2, 16, 4))

    return build


def with_layers(*layers):
    """Activations between an encoder's linear layers."""
    return of(lambda: torch.nn.Sequential(torch.nn.Linear(4, 16), *layers, torch.nn.Linear(16, 2)))


def changed(change):
    def build(seed):
        model = mlp_autoencoder(4, VectorQuantizer(8, 2), width=16, decoder_width=16)
        change(model)
        return model

    return build


def one_weight_twice(model):
    model.decoder[2].weight = model.encoder[2].weight


def a_hook_within(model):
    model.encoder[0].register_forward_hook(lambda layer, given, result: 2 * result)


def a_hook_on_all(model):
    model.register_forward_pre_hook(lambda layer, given: (given[0] - 1,))


def a_stage_of_its_own(model):
    model.quantizer.loss = lambda latents, chosen: (latents - chosen).abs().mean()


def a_way_of_its_own(model):
    model.encode = lambda x: model.encoder(2 * x)


def a_tensor_of_its_own(model):
    del model.encoder[0].bias
    model.encoder[0].bias = torch.full((16,), 0.5)


def another_ones_tensor(model):
    model.decoder = Reads(model.encoder)


def a_weight_that_is_learnt(model):
    model.quantizer.beta = torch.nn.Parameter(torch.tensor(0.25))


TANH = torch.nn.Tanh()
WHOLE, QUANTIZER = {""}, {"model.quantizer"}
PARTS = {  # a model, and what of it torch.vmap does
    "plain": (small, set()),
    "moving averages": (partial(small, update="ema"), set()),
    "activations": (with_layers(torch.nn.GELU(), torch.nn.ReLU(inplace=True), torch.nn.Tanh()), set()),
    "one activation twice": (
        of(lambda: torch.nn.Sequential(*mlp(4, 16), TANH, *mlp(16, 16), TANH, *mlp(16, 2))),
        set(),
    ),
    "no slope": (with_layers(torch.nn.LeakyReLU(0.0)), set()),
    "another slope": (with_layers(torch.nn.LeakyReLU(-0.5)), set()),
    "in place after a slope": (with_layers(torch.nn.LeakyReLU(0.1), torch.nn.ReLU(inplace=True)), set()),
    "bare layers": (of(lambda: torch.nn.Linear(4, 2, bias=False)), set()),
    "another layer": (with_layers(torch.nn.Softmax(-1)), {"model.encoder.1"}),
    "a remedy": (of(lambda: mlp(4, 16, 2), remedies.CodeExpiry), QUANTIZER),
    "a weight that is learnt": (changed(a_weight_that_is_learnt), QUANTIZER),
    "another quantiser": (of(lambda: mlp(4, 16, 2), Negated), WHOLE),
    "another model": (of(lambda: mlp(4, 16, 2), kind=Twice), WHOLE),
    "one weight twice": (changed(one_weight_twice), WHOLE),
    "a hook within": (changed(a_hook_within), WHOLE),
    "a hook on all": (changed(a_hook_on_all), WHOLE),
    "a stage of its own": (changed(a_stage_of_its_own), WHOLE),
    "a way of its own": (changed(a_way_of_its_own), WHOLE),
    "a tensor of its own": (changed(a_tensor_of_its_own), WHOLE),
    "another one's tensor": (changed(another_ones_tensor), WHOLE),
}


@pytest.fixture
def by_vmap(monkeypatch):
    """The names of the parts that torch.vmap does; the whole has none."""
    names, part = set(), Stacked.part
    monkeypatch.setattr(Stacked, "part", lambda self, name, *rest: names.add(name) or part(self, name, *rest))
    return names


OPTIONS = {"steps": 30, "warmup": 10, "batch_size": 64, "progress": False}


@pytest.mark.parametrize("name", PARTS)
def test_known_parts_are_computed_by_hand_and_others_by_vmap(name, by_vmap):
    """By hand where that means the same, and there it saves time; the result is that of one by one anyway."""
    build, others = PARTS[name]
    x = normal(300, 4)
    many = fit_many(build, x, seeds=SEEDS, **OPTIONS)
    assert by_vmap == others
    assert_same(many, one_by_one(build, [x] * 3, SEEDS, **OPTIONS), x)


def test_a_stage_that_is_replaced_in_the_class_counts(monkeypatch, by_vmap):
    """As in a notebook, where a reader tries a loss of their own."""
    monkeypatch.setattr(VectorQuantizer, "loss", lambda self, latents, chosen: (latents - chosen).abs().mean())
    x = normal(300, 4)
    many = fit_many(small, x, seeds=SEEDS, **OPTIONS)
    assert by_vmap == WHOLE
    assert_same(many, one_by_one(small, [x] * 3, SEEDS, **OPTIONS), x)


def test_what_listens_to_all_modules_hears_those_of_fit_many(by_vmap):
    heard = []
    listening = torch.nn.modules.module.register_module_forward_hook(lambda one, given, result: heard.append(one))
    try:
        fit_many(small, normal(300, 4), seeds=SEEDS, **OPTIONS)
    finally:
        listening.remove()
    assert by_vmap == WHOLE and any(type(one) is torch.nn.Linear for one in heard)


def test_a_callback_may_change_how_a_model_computes(by_vmap):
    """A hook from step 15 on, a loss from step 20 on; each takes effect at once."""

    def change(step, model):
        if step == 15:
            a_hook_within(model)
        if step == 20:
            a_stage_of_its_own(model)

    def change_all(step, models):
        assert step > 15 or not by_vmap
        for model in models:
            change(step, model)

    x = normal(300, 4)
    many = fit_many(small, x, seeds=SEEDS, callback=change_all, **OPTIONS)
    assert by_vmap == WHOLE
    assert_same(many, one_by_one(small, [x] * 3, SEEDS, callback=change, **OPTIONS), x)


def test_dropout_trains_and_each_run_drops_its_own():
    """Three runs with equal weights, batches and data part ways by what they drop, and are whole in evaluation."""
    x, states = normal(300, 4), []

    def build(seed):
        torch.manual_seed(0)
        return with_layer(lambda: torch.nn.Dropout(0.5))(0)

    def watch(step, models):
        states.append([model.encoder[0].weight.detach().clone() for model in models])

    options = {"steps": 200, "lr": 5e-3, "init": "kmeans", "warmup": 100, "shuffle": False, "progress": False}
    many = fit_many(build, x, seeds=SEEDS, callback=watch, **options)
    assert torch.equal(states[0][0], states[0][1]) and not torch.equal(states[2][0], states[2][1])
    single = fit(build(0), x, seed=0, **options)
    for model, history in [*many, (None, single)]:
        assert np.mean(history.reconstruction[90:100]) < 0.95 * np.mean(history.reconstruction[:5])
        assert model is None or torch.equal(evaluate(model, x).latents, evaluate(model, x).latents)


@pytest.mark.parametrize(
    "optimizer", [torch.optim.NAdam, torch.optim.Adagrad, partial(torch.optim.SGD, momentum=0.9)]
)
def test_other_optimizers_train_as_one_by_one(optimizer):
    x, options = normal(300, 4), {"steps": 30, "optimizer": optimizer, "codebook_lr": 1e-2, "progress": False}
    assert_same(fit_many(small, x, seeds=SEEDS, **options), one_by_one(small, [x] * 3, SEEDS, **options), x)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_the_models_are_whole_models_to_a_callback(update):
    """It may evaluate, copy and save them while they train: nothing of the training changes, and copies stay."""
    x, copies = normal(300, 4), {}

    def watch(step, models):
        for model in models:
            assert model.training and all(one.is_leaf for one in model.parameters())
        if step == 5:
            for seed, model in zip(SEEDS, models):
                twin, saved = copy.deepcopy(model), copy.deepcopy(model.state_dict())
                outcome = evaluate(model, x)
                assert torch.equal(evaluate(twin, x).reconstruction, outcome.reconstruction) and model.training
                copies[seed] = twin, saved, outcome.reconstruction
                fit(twin, x, steps=1, seed=0, init=None, progress=False)
                twin.load_state_dict(saved)

    options = {"steps": 12, "progress": False}
    watched = fit_many(lambda seed: small(seed, update=update), x, seeds=SEEDS, callback=watch, **options)
    alone = fit_many(lambda seed: small(seed, update=update), x, seeds=SEEDS, **options)
    for (model, history), (other, expected), seed in zip(watched, alone, SEEDS):
        assert history.reconstruction == expected.reconstruction
        for (name, one), two in zip(model.state_dict().items(), other.state_dict().values()):
            assert torch.equal(one, two), name
        twin, saved, reconstruction = copies[seed]
        assert torch.equal(evaluate(twin, x).reconstruction, reconstruction)
        assert not torch.equal(evaluate(model, x).reconstruction, reconstruction)
        other.load_state_dict(saved)
        assert torch.equal(evaluate(other, x).reconstruction, reconstruction)


def test_a_part_that_stands_still_still_does_after_a_look_in_the_callback():
    """`evaluate` puts each module back into its own mode: EMA codes held in eval mode stay where they are."""
    x, codes = normal(300, 4), []

    def hold(step, models):
        for model in models:
            model.quantizer.eval()
            evaluate(model, x)
        codes.append(models[1].quantizer.codebook.clone())

    fit_many(lambda seed: small(seed, update="ema"), x, seeds=SEEDS, steps=3, callback=hold, progress=False)
    assert torch.equal(codes[0], codes[-1])


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
