"""Quantisers are found in models as people have them, and nothing in them changes."""

import copy

import pytest
import torch
import vector_quantize_pytorch as theirs
from helpers import normal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vqnotes import data, models
from vqnotes.diagnosis import diagnose, diagnose_model
from vqnotes.diagnosis.listening import Listener
from vqnotes.diagnosis.listening.calls import TEN_LINES
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import CosineCodes, ResidualVQ
from vqnotes.training import fit


class Own(nn.Module):
    """An autoencoder as somebody else writes it, around a quantiser of vector-quantize-pytorch."""

    def __init__(self, quantizer, dim, grid=False):
        super().__init__()
        self.encoder, self.vq, self.decoder = models.mlp(64, 32, dim), quantizer, models.mlp(dim, 32, 64)
        self.noise, self.norm, self.grid = nn.Dropout(0.5), nn.BatchNorm1d(64), grid

    def forward(self, x):
        latents = self.encoder(self.noise(self.norm(x)))
        if self.grid:
            latents = latents.reshape(len(x), 4, 2, 2)
        latents, *_ = self.vq(latents)
        return self.decoder(latents.reshape(len(x), -1))


THEIRS = {  # name: quantiser, latent dimensions, what is found
    "VectorQuantize": (lambda: theirs.VectorQuantize(dim=8, codebook_size=32), 8, ["vq"]),
    "k-means at the first batch": (
        lambda: theirs.VectorQuantize(dim=8, codebook_size=32, kmeans_init=True),
        8,
        ["vq"],
    ),
    "projected, cosine": (
        lambda: theirs.VectorQuantize(dim=16, codebook_size=32, codebook_dim=4, use_cosine_sim=True),
        16,
        ["vq"],
    ),
    "learnable": (
        lambda: theirs.VectorQuantize(dim=8, codebook_size=32, learnable_codebook=True, ema_update=False),
        8,
        ["vq"],
    ),
    "heads": (
        lambda: theirs.VectorQuantize(
            dim=8, codebook_size=32, codebook_dim=4, heads=2, separate_codebook_per_head=True
        ),
        8,
        ["vq", "vq[head 0]", "vq[head 1]"],
    ),
    "shared heads": (lambda: theirs.VectorQuantize(dim=8, codebook_size=32, codebook_dim=4, heads=2), 8, ["vq"]),
    "SimVQ": (lambda: theirs.SimVQ(dim=8, codebook_size=32), 8, ["vq"]),
    "ResidualVQ": (
        lambda: theirs.ResidualVQ(dim=8, codebook_size=16, num_quantizers=3),
        8,
        ["vq", "vq.layers.0", "vq.layers.1", "vq.layers.2"],
    ),
    "shared levels": (
        lambda: theirs.ResidualVQ(dim=8, codebook_size=16, num_quantizers=2, shared_codebook=True),
        8,
        ["vq", "vq.layers.0", "vq.layers.1"],
    ),
}


def assert_same(found, expected):
    assert found.verdict == expected.verdict and found.evidence.keys() == expected.evidence.keys()
    for name, (value, reference, *_) in expected.evidence.items():
        assert found.evidence[name][:2] == pytest.approx((value, reference), rel=0.05), name


def made(name):
    build, dim, found = THEIRS[name]
    torch.manual_seed(0)
    return Own(build(), dim), found


@pytest.mark.parametrize("name", THEIRS)
def test_quantisers_of_the_other_library_are_found_and_left_as_they_are(name):
    model, names = made(name)
    model.train()
    model.vq.eval()  # a mixture of modes must come back too
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = diagnose_model(model, data.digit_vectors().x[:700])
    assert list(found) == names
    assert torch.equal(torch.rand(3), expected), "the random state has moved"
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert [module.training for module in model.modules()] == modes
    assert all(one.grad is None for one in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_is_heard_is_what_the_quantiser_compares():
    model, _ = made("projected, cosine")
    x = data.digit_vectors().x[:600]
    model.eval()
    latents = nn.functional.normalize(model.vq.project_in(model.encoder(model.norm(x))), dim=-1).detach()
    expected = diagnose(latents, model.vq.codebook, inputs=x)
    assert_same(diagnose_model(model, x)["vq"], expected)
    x, quantizer = normal(300, 4), CosineCodes(8, 4)
    directions = nn.functional.normalize(x, dim=-1)
    assert_same(diagnose_model(quantizer, x)["CosineCodes"], diagnose(directions, quantizer.codes(), inputs=x))


class Pictures(nn.Module):
    """A convolutional autoencoder around their quantiser of maps."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 6, 4, stride=4), nn.ConvTranspose2d(6, 3, 4, stride=4)
        self.vq = theirs.VectorQuantize(dim=6, codebook_size=16, accept_image_fmap=True)

    def forward(self, x):
        return self.decoder(self.vq(self.encoder(x))[0])


def test_maps_of_the_other_library_meet_their_patches():
    images = data.random_crops(data.photographs(), 60, 16)
    torch.manual_seed(0)
    model = Pictures().eval()
    expected = diagnose(model.encoder(images).detach(), model.vq.codebook, inputs=images)
    assert_same(diagnose_model(model, images)["vq"], expected)
    torch.manual_seed(0)
    unrelated = Own(theirs.VectorQuantize(dim=4, codebook_size=16, accept_image_fmap=True), 16, grid=True)
    found = diagnose_model(unrelated, normal(300, 64))["vq"]
    assert "lost by the encoder" not in found.evidence
    said = "inputs (256, 64) were given, but could not be paired with latents (256, 2, 2, 4): no sides of inputs"
    assert any(said in note for note in found.notes)


@pytest.mark.parametrize(
    "given",
    [
        lambda x, y: x.double().numpy(),
        lambda x, y: (x, y),
        lambda x, y: [x[:300], x[300:]],
        lambda x, y: TensorDataset(x, y),
        lambda x, y: iter([(x[:400], y[:400]), [x[400:], y[400:]]]),
    ],
)
def test_data_in_the_forms_that_people_have(given):
    x, y, _ = data.digit_vectors()
    model, _ = made("VectorQuantize")
    found = diagnose_model(model, given(x[:600], y[:600]))["vq"]
    assert found.evidence["codes in use"].compared_with.endswith("600 latents")


@pytest.mark.parametrize(
    "batches, message",
    [
        ([{"x": normal(5, 64)}], "got dict"),
        ([normal(5, 63)], r"Own cannot be called with a batch torch.float32 \(5, 63\)"),
        ([normal(5, 64), normal(5, 65)], "cannot be called"),
        ([torch.zeros(5, 64, dtype=torch.uint8)], "torch.uint8"),
        ([torch.zeros(0, 64)], r"a batch must be .* got Tensor \(0, 64\)"),
        ([torch.tensor(1.0)], r"a batch must be .* got Tensor \(\)"),
        ([[]], "a batch must be .* got list"),
        ([normal(5, 64).to_sparse()], "a batch must be a dense tensor"),
        (None, "data must be .* got NoneType"),
        (3.0, "data must be .* got float"),
        (torch.tensor(3.0), r"data must have inputs along their first axis, got \[\(\)\]"),
        ((normal(5, 64), normal(4)), r"first axis, got \[\(5, 64\), \(4,\)\]"),
        ((normal(5, 64), None), "data must be a tensor or an array of numbers, got NoneType"),
        (normal(5, 64).to_sparse(), "data must be a dense tensor"),
    ],
)
def test_data_that_a_model_cannot_take(batches, message):
    model, _ = made("VectorQuantize")
    with pytest.raises(ValueError, match=message):
        diagnose_model(model, batches)


class Twice(nn.Module):
    """Calls its quantiser by name, and twice."""

    def __init__(self):
        super().__init__()
        self.vq = VectorQuantizer(8, 4)

    def forward(self, x):
        return self.vq(latents=self.vq(latents=x).latents_q + x)


def test_a_quantiser_called_twice_and_by_name_is_judged_without_inputs():
    found = diagnose_model(Twice(), normal(300, 4))["vq"]
    assert found.evidence["codes in use"].compared_with.endswith("600 latents")
    assert any("could not be paired with latents (256, 4): latents of several calls" in one for one in found.notes)


def test_our_models_with_labels_from_a_loader():
    x, y, _ = data.digit_vectors()
    torch.manual_seed(0)
    model = models.mlp_autoencoder(64, CosineCodes(32, 4))
    fit(model, x, steps=60, seed=0, init="kmeans", warmup=30, progress=False)
    by_loader = diagnose_model(model, DataLoader(TensorDataset(x, y), batch_size=500))["quantizer"]
    by_hand = diagnose_model(model, x.numpy(), labels=y)["quantizer"]
    assert "labels read off" in by_hand.evidence
    assert_same(by_loader, by_hand)


def test_images_and_levels_of_our_own():
    images = data.random_crops(data.photographs(), 40, 32)
    torch.manual_seed(0)
    model = models.image_autoencoder(3, ResidualVQ((8, 8), 8))
    fit(model, images, steps=40, seed=0, warmup=20, batch_size=8, progress=False)
    found = diagnose_model(model, images)
    assert list(found) == ["quantizer", "quantizer.stages.0", "quantizer.stages.1"]
    whole, *alone = found.values()
    assert "lost by the encoder" in whole.evidence
    assert not any("lost by the encoder" in one.evidence for one in alone)


def test_models_without_a_quantiser_or_that_never_use_it():
    with pytest.raises(ValueError, match=r"no quantiser found in Sequential") as refused:
        diagnose_model(models.mlp(4, 4), normal(10, 4))
    assert TEN_LINES in str(refused.value)
    lonely = models.mlp(4, 4)
    lonely.extra = VectorQuantizer(4, 4)
    lonely.forward = lambda x: x
    with pytest.raises(ValueError, match=r"found but never called: \['extra'\]"):
        diagnose_model(lonely, normal(10, 4))
    with pytest.raises(ValueError, match="not a single batch"):
        diagnose_model(VectorQuantizer(4, 4), [])
    broken = VectorQuantizer(4, 4)
    broken.codebook.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        diagnose_model(broken, normal(100, 4))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"seed": -1}, "seed must be in 0"),
        ({"places": 1.5}, "places must be axes of the inputs, whole numbers, got 1.5"),
        ({"places": (1,)}, r"places=\(1,\): each of the inputs has one latent"),
        ({"labels": "digits"}, "labels must be a tensor or an array of numbers, got str"),
        ({"labels": 3}, r"need a label for each of 60 inputs, got \(\)"),
    ],
)
def test_options_that_say_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        diagnose_model(VectorQuantizer(8, 4), normal(60, 4), **options)


def test_what_is_no_model():
    with pytest.raises(ValueError, match=r"the model must be a torch.nn.Module, got function"):
        diagnose_model(normal, normal(60, 4))


def test_an_error_on_the_way_leaves_nothing_behind():
    model, _ = made("VectorQuantize")
    with pytest.raises(ValueError, match="cannot be called"):
        diagnose_model(model, normal(10, 63))
    assert model.training and not any(module._forward_hooks for module in model.modules())


# ---------------------------------------------------------------- codes that are not started yet

LATE = {"kmeans_init": True, "codebook_size": 16}


@pytest.mark.parametrize(
    "build, dim, names, quantisers",
    [
        (lambda: theirs.VectorQuantize(dim=8, **LATE), 8, ["vq"], ["vq"]),
        (
            lambda: theirs.VectorQuantize(dim=8, codebook_dim=4, heads=2, separate_codebook_per_head=True, **LATE),
            8,
            ["vq", "vq[head 0]", "vq[head 1]"],
            ["vq"],
        ),
        (
            lambda: theirs.ResidualVQ(dim=8, num_quantizers=2, **LATE),
            8,
            ["vq", "vq.layers.0", "vq.layers.1"],
            ["vq.layers.0", "vq.layers.1"],
        ),
    ],
)
def test_codes_that_are_placed_at_the_first_batch_are_not_judged_before(build, dim, names, quantisers):
    torch.manual_seed(0)
    x, model = data.digit_vectors().x[:700], Own(build(), dim).train()
    for found in diagnose_model(model, x).items():
        assert found[0] in names and found[1].verdict == "cannot tell" and not found[1].started
        assert found[1].reason.startswith(f"The codes of {', '.join(quantisers)} have not been started yet")
        assert not found[1].evidence and "train for a step" in str(found[1]) and "yours" not in str(found[1])
        assert "<table>" not in found[1]._repr_html_() and "train for a step" in found[1]._repr_html_()
    model(x)
    found = diagnose_model(model, x)
    assert list(found) == names and all(one.started and one.evidence for one in found.values())


def test_a_level_that_is_not_started_leaves_the_whole_unjudged():
    torch.manual_seed(0)
    x, model = data.digit_vectors().x[:700], Own(theirs.ResidualVQ(dim=8, num_quantizers=2, **LATE), 8)
    model(x)
    model.vq.layers[1]._codebook.initted.fill_(False)
    found = diagnose_model(model, x)
    assert list(found) == ["vq", "vq.layers.0", "vq.layers.1"] and not any(one.started for one in found.values())
    assert found["vq"].reason.startswith("The codes of vq.layers.1 have")


def test_a_quantiser_that_is_the_model_is_not_started_either():
    found = diagnose_model(theirs.VectorQuantize(dim=8, **LATE), normal(300, 8))
    assert found["VectorQuantize"].reason.startswith("The codes of VectorQuantize have not been started")


class Copied(nn.Module):
    """What a copy of their quantiser has, as encodec's: a flag of another name and type."""

    def __init__(self, name, value):
        super().__init__()
        self._codebook = nn.Module()
        self._codebook.register_buffer("embed", torch.zeros(1, 4, 2))
        self._codebook.register_buffer(name, value)


@pytest.mark.parametrize("name", ["initted", "inited", "initialized"])
@pytest.mark.parametrize("kind", [torch.tensor, lambda one: torch.Tensor([one])])
def test_flags_of_copies_are_known(name, kind):
    assert Listener(Copied(name, kind(False))).not_started == {""}
    assert Listener(Copied(name, kind(True))).not_started == set()
    assert Listener(Copied("cluster_size", torch.zeros(4))).not_started == set()


def test_a_drawing_shows_the_codes_as_they_were():
    x, quantizer = normal(300, 4), VectorQuantizer(8, 4)
    found, before = diagnose_model(quantizer, x)["VectorQuantizer"], quantizer.codes().detach().clone()
    quantizer.init_codes("normal")
    assert torch.equal(found.drawing.codebook, before)
