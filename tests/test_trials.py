"""The model is asked: which piece of its inputs moves which latent, and whether a gradient passes its quantisers."""

import copy

import pytest
import torch
import vector_quantize_pytorch as theirs
from helpers import normal
from torch import nn

from vqnotes import models
from vqnotes.diagnosis.inputs import UnpairedInputs
from vqnotes.diagnosis.listening import Listener
from vqnotes.diagnosis.listening.trials import moves_others, read_places, readings, rebuilt, without_gradient
from vqnotes.quantizers import VectorQuantizer, straight_through
from vqnotes.remedies import FSQ, DiVeQ


@pytest.mark.parametrize(
    "shape, inner, expected",
    [
        ((9, 16, 64), (16,), [(1,), (2,)]),  # steps, or pieces of the channels
        ((9, 15, 64), (15,), [(1,)]),
        ((9, 64, 100), (25,), [(2,)]),
        ((9, 3, 32, 32), (8, 8), [(2, 3)]),
        ((9, 32, 32, 3), (8, 8), [(1, 2)]),
        ((9, 3, 32, 32), (16,), [(2,), (3,), (2, 3)]),  # rows, columns, or square patches
        ((9, 3, 4, 32), (8,), [(3,)]),
        ((9, 64), (3,), []),
    ],
)
def test_readings_of_inputs(shape, inner, expected):
    assert readings(shape, inner) == expected


def latents_of(encode):
    """What `read_places` asks: latents (N, places, D), all of which count."""

    def hear(x):
        latents = encode(x)
        latents = latents.reshape(len(x), -1, latents.shape[-1])
        return latents, torch.ones(latents.shape[:2])

    return hear


def mixing(layer):
    """A convolution over steps (N, T, C)."""
    return lambda x: layer(x.movedim(1, 2)).movedim(2, 1)


ENCODERS = {  # name: inputs, encoder, places, axes
    "step by step": ((40, 16, 64), nn.Linear(64, 8), (16,), (1,)),
    "pieces of the channels": (
        (40, 16, 64),
        lambda x: x.unflatten(2, (16, 4)).movedim(1, 2).flatten(2) ** 2,
        (16,),
        (2,),
    ),
    "two steps": ((40, 2, 64), nn.Linear(64, 8), (2,), (1,)),
    "with neighbours": ((40, 16, 64), mixing(nn.Conv1d(64, 8, 5, padding=2)), (16,), (1,)),
    "only what came before": (
        (40, 16, 64),
        lambda x: mixing(nn.Conv1d(64, 8, 4))(nn.functional.pad(x, (0, 0, 3, 0))),
        (16,),
        (1,),
    ),
    "causal, two strides wide": (
        (40, 8, 64),
        lambda x: nn.Conv1d(8, 8, 8, stride=4)(nn.functional.pad(x, (4, 0))).movedim(1, 2),
        (16,),
        (2,),
    ),
    "attention": (
        (40, 16, 64),
        nn.TransformerEncoderLayer(64, 4, 64, dropout=0, batch_first=True).eval(),
        (16,),
        (1,),
    ),
    "square patches in a row": (
        (40, 3, 16, 16),
        lambda x: nn.Conv2d(3, 8, 4, 4)(x).flatten(2).movedim(1, 2),
        (16,),
        (2, 3),
    ),
    "rows of a picture": ((40, 3, 16, 16), lambda x: x.movedim(2, 1).flatten(2), (16,), (2,)),
    "maps": ((40, 8, 32, 32), lambda x: nn.Conv2d(8, 8, 4, 4)(x).permute(0, 2, 3, 1), (8, 8), (2, 3)),
    "a single example": ((1, 16, 64), nn.Linear(64, 8), (16,), (1,)),
    "a constant": ((40, 15, 64), lambda x: x[..., :8] * 0, (15,), (1,)),
    "one latent": ((40, 16, 64), lambda x: x.flatten(1), (), ()),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_latents_move_where_the_inputs_are_changed(name):
    shape, encode, inner, expected = ENCODERS[name]

    def same(x):
        torch.manual_seed(0)
        return encode(x)

    with torch.no_grad():
        axes, note = read_places(latents_of(same), normal(*shape), inner)
    assert axes == expected
    assert (note is not None) == (inner != () and len(readings(shape, inner)) > 1)


@pytest.mark.parametrize(
    "name, shape, encode",
    [
        ("a constant", (40, 16, 64), lambda x: x[..., :8] * 0),
        ("each latent sees all", (40, 16, 64), lambda x: (x.flatten(1) @ normal(1024, 128)).unflatten(1, (16, 8))),
        (
            "each sees all, one reading",
            (40, 15, 64),
            lambda x: (x.flatten(1) @ normal(960, 120)).unflatten(1, (15, 8)),
        ),
        ("time before batch", (16, 16, 64), lambda x: x.movedim(1, 0)),
        ("the other way round", (40, 16, 16), lambda x: x.flip(1).cumsum(1)),
    ],
)
def test_what_does_not_show_is_not_guessed(name, shape, encode):
    inner = (shape[1],)
    with torch.no_grad(), pytest.raises(UnpairedInputs, match="more than elsewhere; say places=") as caught:
        read_places(latents_of(encode), normal(*shape), inner)
    assert all(f"places={one}" in str(caught.value) for one in readings(shape, inner))


def test_places_that_are_given_decide():
    x, hear = normal(40, 16, 64), latents_of(nn.Linear(64, 8))
    assert read_places(hear, x, (16,), (2,)) == ((2,), None)
    with pytest.raises(UnpairedInputs, match=r"\(40, 15, 64\) cannot be cut along axes \(2,\) into places \(15,\)"):
        read_places(hear, normal(40, 15, 64), (15,), (2,))
    with pytest.raises(UnpairedInputs, match=r"no sides of inputs \(40, 16, 64\) are multiples of .* places \(15,\)"):
        read_places(hear, x, (15,))
    for nonsense in (0,), (3,), (1, 1):
        with pytest.raises(ValueError, match="different axes of inputs"):
            read_places(hear, x, (16,), nonsense)


@pytest.mark.parametrize(
    "encode, moved",
    [
        (lambda x: x @ normal(8, 4), False),
        (lambda x: x.flip(0) @ normal(8, 4), True),
        (lambda x: x.mean(0).expand(len(x), -1) @ normal(8, 4), True),
        (lambda x: x @ normal(8, 4) + 0.1 * x.mean(0) @ normal(8, 4), False),  # a little of the others
        (lambda x: x[:, :4] * 0, False),
    ],
)
@pytest.mark.parametrize("count", [1, 7, 40])
def test_latents_that_mix_the_inputs_of_a_batch_are_told(encode, moved, count):
    assert moves_others(latents_of(encode), normal(count, 8)) == (moved and count > 1)


@pytest.mark.parametrize("by_latents, by_inputs", [(1e-6, 1), (1e6, 1), (1, 1e-6), (1, 1e6)])
def test_the_unit_of_latents_and_inputs_does_not_count(by_latents, by_inputs):
    layer, x = nn.Linear(64, 8, bias=False), normal(40, 16, 64)
    with torch.no_grad():
        axes, note = read_places(latents_of(lambda x: by_latents * layer(x)), by_inputs * x, (16,))
    assert axes == (1,) and "latents move with (1,)" in note


# ---------------------------------------------------------------- gradients


class Bare(VectorQuantizer):
    """Hands on the bare code."""

    def estimate(self, latents, chosen):
        return chosen


class Reversed(VectorQuantizer):
    """Straight-through the wrong way round."""

    def estimate(self, latents, chosen):
        return straight_through(latents, chosen)


class Outside(nn.Module):
    """Its own straight-through estimator, around one that has none."""

    def __init__(self):
        super().__init__()
        self.encoder, self.quantizer, self.decoder = models.mlp(6, 4), Bare(8, 4), models.mlp(4, 6)

    def forward(self, x):
        latents = self.encoder(x)
        codes = self.quantizer(latents[:, None].contiguous() + 0).latents_q[:, 0]
        return self.decoder(latents + (codes - latents).detach())


def autoencoder(quantizer, **changed):
    model = models.mlp_autoencoder(6, quantizer)
    for name, value in changed.items():
        setattr(model, name, value)
    return model


class Theirs(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.encoder, self.decoder = models.mlp(6, 4), models.mlp(4, 6)
        self.quantizer = theirs.VectorQuantize(4, 8, **options)

    def forward(self, x):
        return self.decoder(self.quantizer(self.encoder(x))[0])


def frozen(model):
    model.encoder.requires_grad_(False)
    return model


class NoGradients(Outside):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Moody(VectorQuantizer):
    """Passes a gradient in one mode only, or fails in one."""

    def __init__(self, *, passes=None, fails=None):
        super().__init__(8, 4)
        self.passes, self.fails = passes, fails

    def estimate(self, latents, chosen):
        if self.training == self.fails:
            raise RuntimeError("not in this mode")
        return straight_through(chosen, latents) if self.training == self.passes else chosen


class Returning(nn.Module):
    """Returns other things before what it makes of its codes, and nothing of the inputs' shape."""

    def __init__(self, kind):
        super().__init__()
        self.encoder, self.quantizer, self.decoder = models.mlp(6, 4), kind(8, 4), models.mlp(4, 3)

    def forward(self, x):
        quantized = self.quantizer(self.encoder(x))
        back = self.decoder(quantized.latents_q)
        return {"loss": quantized.loss, "index": quantized.index[:, None], "back": back}, None, (x[0], [back])


class LossOnly(Outside):
    def forward(self, x):
        return (super().forward(x) - x).square().mean()


CUT = {  # name: the model, whether no gradient passes
    "straight-through": (lambda: autoencoder(VectorQuantizer(8, 4)), False),
    "EMA": (lambda: autoencoder(VectorQuantizer(8, 4, update="ema")), False),
    "bare codes": (lambda: autoencoder(Bare(8, 4)), True),
    "bare EMA codes": (lambda: autoencoder(Bare(8, 4, update="ema")), True),
    "the wrong way round": (lambda: autoencoder(Reversed(8, 4)), True),
    "its own estimator outside": (Outside, False),
    "noise, in training only": (lambda: autoencoder(DiVeQ(8, 4)), False),
    "a grid": (lambda: autoencoder(FSQ(levels=(3, 3))), False),
    "theirs": (Theirs, False),
    "theirs, by k-means": (lambda: Theirs(kmeans_init=True), False),
    "theirs, cut": (lambda: Theirs(route_gradients_to_input=False), True),
    "nothing to learn before it": (lambda: frozen(autoencoder(Bare(8, 4))), False),
    "cannot be differentiated": (NoGradients, False),
    "returns a loss": (LossOnly, False),
    "a loss and indices first": (lambda: Returning(VectorQuantizer), False),
    "a loss and indices first, cut": (lambda: Returning(Bare), True),
    "in training only": (lambda: autoencoder(Moody(passes=True)), False),
    "in evaluation only": (lambda: autoencoder(Moody(passes=False)), False),
    "cannot be trained": (lambda: autoencoder(Moody(fails=True)), False),
    "cannot be evaluated, cut": (lambda: autoencoder(Moody(fails=False)), True),
    "cannot be evaluated": (lambda: autoencoder(Moody(fails=False, passes=True)), False),
}


@pytest.mark.parametrize("name", CUT)
def test_a_gradient_that_does_not_pass(name):
    torch.manual_seed(0)
    build, cut = CUT[name]
    model = build().eval()
    before = copy.deepcopy(model.state_dict())
    assert without_gradient(Listener(model), normal(20, 6), ["quantizer"]) == ({"quantizer"} if cut else set())
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before) and not model.training
    assert all(one.grad is None for one in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_reconstruction_is_of_the_inputs_shape_and_not_the_inputs():
    x, back = normal(5, 3), normal(5, 3, seed=1)
    assert rebuilt({"loss": x.mean(), "inputs": x, "output": [back]}, x) is back
    assert rebuilt((normal(5, 4), None), x) is None
    assert rebuilt(back, x.long()) is None
