"""One quantiser that is called several times in a pass: a verdict on all its latents, and one on each call."""

import pytest
import torch
import vector_quantize_pytorch as theirs
from helpers import normal
from test_listening_found import DIM, SIZE, Maps
from torch import nn

from vqnotes.diagnosis import CollapseWatch, diagnose_model
from vqnotes.diagnosis.listening import records
from vqnotes.kmeans import kmeans
from vqnotes.quantizers import VectorQuantizer

SPLIT = 20 * torch.eye(DIM)[0]  # how far the latents of the second call are from those of the first


class Twice(nn.Module):
    """Calls one quantiser with each half of its inputs (N, 2 D): latents in two places."""

    def __init__(self, vq, kind="last"):
        super().__init__()
        self.vq, self.kind = vq, kind

    def forward(self, x):
        return torch.cat([self.coded(x[:, :DIM]), self.coded(0.8 * x[:, DIM:] + SPLIT)], dim=1)

    def coded(self, latents):
        if self.kind == "maps":
            latents = latents[:, :, None, None]
        out = self.vq(latents)
        return (out if isinstance(out, torch.Tensor) else out[0]).reshape(len(latents), DIM)


def both(x):
    return torch.cat([x[:, :DIM], 0.8 * x[:, DIM:] + SPLIT])


X = normal(3000, 2 * DIM)
CODES = {
    "sound": lambda: kmeans(both(X), SIZE)[0],
    "of the first call only": lambda: kmeans(X[:, :DIM], SIZE)[0],
    "of the second call only": lambda: kmeans(0.8 * X[:, DIM:] + SPLIT, SIZE)[0],
    "crowded": lambda: both(X)[:1] + 0.02 * normal(SIZE, DIM, seed=5),
}
SICK = {"sound": [], "of the first call only": [1], "of the second call only": [0], "crowded": [0, 1]}


def quantiser(kind, codes):
    if kind == "ours":
        made = VectorQuantizer(SIZE, DIM)
        made.codebook.data.copy_(codes)
        return Twice(made)
    if kind == "theirs":
        made = theirs.VectorQuantize(DIM, SIZE)
        made._codebook.embed.copy_(codes[None])
        return Twice(made)
    made = Maps()
    made.place(codes)
    return Twice(made, "maps")


@pytest.mark.parametrize("kind", ["ours", "theirs", "found by watching"])
@pytest.mark.parametrize("codes", CODES)
def test_each_call_gets_a_verdict(kind, codes):
    found = diagnose_model(quantiser(kind, CODES[codes]()), X)
    assert list(found) == ["vq", "vq[call 0]", "vq[call 1]"]
    for number, one in enumerate(list(found.values())[1:]):
        assert one.verdict == ("token collapse" if number in SICK[codes] else "healthy"), one
        assert one.evidence["codes in use"].compared_with.endswith("with 3,000 latents")
        assert any(note.startswith("of several calls each is judged") for note in one.notes)
    assert ("token" in found["vq"].verdict) == bool(SICK[codes])
    assert found["vq"].evidence["codes in use"].compared_with.endswith("with 6,000 latents")


class Scales(nn.Module):
    """The means of maps at each scale, coded by one quantiser: 1, 16 and 256 latents an image."""

    def __init__(self):
        super().__init__()
        self.vq = VectorQuantizer(16, DIM)

    def forward(self, x):
        return [self.vq(nn.functional.adaptive_avg_pool2d(x, side).movedim(1, -1)) for side in (1, 4, 16)]


def test_scales_of_few_latents_are_not_blamed_for_codes_that_others_need():
    x = normal(600, DIM, 16, 16) + 0.5 * normal(600, DIM, 1, 1, seed=1)
    model = Scales()
    sides = [nn.functional.adaptive_avg_pool2d(x, side).movedim(1, -1).reshape(-1, DIM) for side in (1, 4, 16)]
    model.vq.codebook.data.copy_(kmeans(torch.cat(sides), 16)[0])
    found = diagnose_model(model, x)
    assert list(found) == ["vq", *(f"vq[call {i}]" for i in range(3))]
    assert {one.verdict for one in list(found.values())[1:]} == {"healthy"}
    model.vq.codebook.data.copy_(model.vq.codebook.data[:1] + 0.01 * normal(16, DIM))
    assert {one.verdict for one in list(diagnose_model(model, x).values())[1:]} == {"token collapse"}


def test_more_calls_than_can_be_read_are_judged_together(monkeypatch):
    monkeypatch.setattr(records, "MOST_CALLS", 1)
    (found,) = diagnose_model(quantiser("ours", CODES["sound"]()), X).values()
    assert "2 calls in a pass, over 1: there is no verdict on each" in found.notes


def test_a_watch_says_which_call():
    model = quantiser("ours", CODES["of the first call only"]())
    watch = CollapseWatch(X, every=1)
    watch(0, model)
    assert watch.scalars()["vqnotes/vq_call_0/collapse"] == 0 and watch.scalars()["vqnotes/vq_call_1/collapse"] == 1
