"""A home-made quantiser is found in a model that is wrapped, compiled, or of mixed precision, healthy or ill."""

import pytest
import torch
from test_listening_found import Likeness, Maps, crowded, inputs_of, model_of, placed
from torch import nn

from vqnotes.diagnosis import diagnose_model


class Inference(nn.Module):
    """Calls a model in inference mode, where operations come whole."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    @torch.inference_mode()
    def forward(self, x):
        return self.model(x)


def compiled(model):
    """A model that has been compiled, and called before."""
    made = torch.compile(model, backend="aot_eager")
    made(inputs_of(Maps))
    return made


def in_bfloat16(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return model(batch)


WRAPPED = {
    "DataParallel": (nn.DataParallel, "module.vq", Maps, {}),
    "compiled": (compiled, "_orig_mod.vq", Maps, {}),
    "inference mode": (Inference, "model.vq", Maps, {}),
    "inference mode, cosine": (Inference, "model.vq", Likeness, {}),
    "bfloat16": (lambda model: model.bfloat16(), "vq", Maps, {}),
    "float64": (lambda model: model.double(), "vq", Maps, {}),
    "autocast": (lambda model: model, "vq", Maps, {"call": in_bfloat16}),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_model_gets_the_same_verdict(name):
    wrap, expected, kind, options = WRAPPED[name]
    for place, verdict in (placed, "healthy"), (crowded, "token collapse"):
        model, _ = model_of(kind, place)
        found = diagnose_model(wrap(model), inputs_of(kind), **options)
        assert list(found) == [expected] and found[expected].verdict == verdict
        assert any("100% of the indices are the code that is nearest" in note for note in found[expected].notes)
