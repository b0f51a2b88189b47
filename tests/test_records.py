"""What is heard of a model is kept in bounded memory, in the order of its inputs, and said to be what it is."""

import pytest
import torch
from helpers import normal
from torch import nn

from vqnotes.diagnosis import diagnose, diagnose_model
from vqnotes.diagnosis.listening import records
from vqnotes.kmeans import kmeans
from vqnotes.quantizers import VectorQuantizer


class Calls(nn.Module):
    """A quantiser that is called as it is told."""

    def __init__(self, call, size=8, dim=4):
        super().__init__()
        self.vq, self.call = VectorQuantizer(size, dim), call

    def forward(self, x):
        return self.call(self.vq, x)


CALLS = {  # name: the call on x (N, 6, 4), how many latents it makes of an input
    "a place each": (lambda vq, x: vq(x), 6),
    "one for an input": (lambda vq, x: vq(x[:, 0]), 1),
    "rows, six an input": (lambda vq, x: vq(x.reshape(-1, 4)), 6),
    "several calls": (lambda vq, x: (vq(x[:, :2]), vq(x[:, 2:])), 6),
    "not so many for each input": (lambda vq, x: vq(x.reshape(-1, 4)[1:]), 6),
}


@pytest.mark.parametrize("name", CALLS)
def test_as_many_latents_are_kept_however_they_are_called(name, monkeypatch):
    monkeypatch.setattr(records, "MOST_NUMBERS", 4000)
    monkeypatch.setattr(records, "AT_LEAST", 1200)
    call, each = CALLS[name]
    found, *_ = diagnose_model(Calls(call), [normal(700, 6, 4, seed=seed) for seed in range(4)]).values()
    (note,) = (note for note in found.notes if note.startswith("references are measured on"))
    kept = int(note.split()[4].replace(",", ""))
    assert 1200 < kept <= 1200 + each


def test_the_shapes_of_what_is_taken_as_one_set_are_named():
    x = normal(60, 6, 4)
    start = "the encoder is not judged: inputs (60, 6, 4) were given, but could not be paired with latents "
    for call, said in [
        (lambda vq, x: (vq(x[:, :2]), vq(x[:, 2:])), "(60, 2, 4) and (60, 4, 4): latents of several calls in a pass"),
        (lambda vq, x: (vq(x[:, 0]), vq(x[:, 1])), "(60, 4): latents of several calls in a pass"),
        (lambda vq, x: vq(x.reshape(-1, 4)[1:]), "(359, 4): these are not so many for each of 60 inputs, and"),
    ]:
        found, *_ = diagnose_model(Calls(call), (x, torch.arange(60) % 2)).values()
        assert any(note.startswith(start + said) for note in found.notes)
        assert "the labels were not used: it is not known which latents they belong to" in found.notes


class Embedded(nn.Module):
    """Codes what ids are embedded to."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.vq = nn.Embedding(5000, 4), VectorQuantizer(16, 4)

    def forward(self, x):
        return self.vq(self.embedding(x))


IDS, BY_LABELS = (
    torch.arange(12000).reshape(2000, 6) % 5000,
    "pass labels=, or call diagnose(latents, codebook, inputs=",
)
UNPAIRED = {  # name: the model, its inputs, and what is said: inputs, latents, why, what to do
    "means over pairs of inputs": (
        Calls(lambda vq, x: vq(x.unflatten(0, (-1, 2)).mean(1)), 16),
        normal(2000, 6, 4),
        (
            "(256, 6, 4)",
            "(128, 6, 4)",
            "these are not so many for each of 256 inputs",
            "let each input have latents of",
        ),
    ),
    "as many latents as inputs, in another order": (
        Calls(lambda vq, x: vq(x[:, 0].flip(0)), 16),
        normal(2000, 6, 4),
        ("(256, 6, 4)", "(256, 4)", "an input that is changed moves", "let each input have latents of"),
    ),
    "sides that are no multiples": (
        Calls(lambda vq, x: vq(x[:, :5]), 16),
        normal(2000, 6, 4),
        ("(256, 6, 4)", "(256, 5, 4)", "no sides of inputs", BY_LABELS),
    ),
    "ids": (Embedded(), IDS, ("(256, 6)", "(256, 6, 4)", "inputs torch.int64 (2000, 6) look like ids", BY_LABELS)),
}


@pytest.mark.parametrize("name", UNPAIRED)
def test_inputs_that_were_given_but_cannot_be_paired_are_not_said_to_be_missing(name):
    model, x, (inputs, latents, why, remedy) = UNPAIRED[name]
    heard = []
    with model.vq.register_forward_pre_hook(lambda _, arguments: heard.append(arguments[0])):
        model(x)
    model.vq.load_state_dict({"codebook": kmeans(heard[0].detach().reshape(-1, 4), 16)[0]})
    found = diagnose_model(model, x)["vq"]
    said = f"inputs {inputs} were given, but could not be paired with latents {latents}: {why}"
    assert found.verdict == "cannot tell" and f"k-means; {said}" in found.reason
    assert any(note.startswith(f"the encoder is not judged: {said}") for note in found.notes)
    (advice,) = found.advice
    assert advice.remedy.startswith(f"inputs were given, but not used: {remedy}")
    assert not any("nothing was given" in one or "without inputs" in one for one in [found.reason, *found.notes])


def test_too_few_inputs_are_not_said_to_be_missing():
    x = normal(20, 6)
    said = "the encoder is not judged: inputs (20, 6) were given, but belong to 20 latents that count: it takes 32"
    for found in diagnose(x, x[:4], inputs=x), diagnose_model(Calls(lambda vq, x: vq(x), dim=6), x)["vq"]:
        assert said in found.notes
        assert any("pass inputs for 32 latents or more" in one.remedy for one in found.advice)


def test_batches_of_another_kind_are_refused():
    def alternating(vq, x):
        return (vq(x), vq(x)) if len(x) == 7 else vq(x)

    with pytest.raises(ValueError, match=r"alike on all batches, got \['vq'\] and then others"):
        diagnose_model(Calls(alternating), [normal(50, 4), normal(7, 4)])
    for other in normal(50, 7, 4, 1), normal(50, 6, 8):
        flat = Calls(lambda vq, x: vq(x.flatten(2)[..., :4] if x.ndim > 3 else x[..., :4]))
        with pytest.raises(ValueError, match=r"inputs must be of one size but for lengths.*\(50, 6, 4\)"):
            diagnose_model(flat, [normal(50, 6, 4), other])


def test_places_are_given_in_vain_to_what_has_no_places():
    with pytest.raises(ValueError, match=r"places=\(1,\): inputs \(60, 6, 4\) were .* several calls in a pass"):
        diagnose_model(Calls(CALLS["several calls"][0]), normal(60, 6, 4), places=(1,))


def test_a_sample_keeps_each_row_beside_its_key():
    """Whatever is kept under two names, or added in whatever order, belongs together."""
    sample, x = records.Sample(20), normal(90, 3)
    keys = torch.rand(90, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    for part in torch.arange(90).split(13):
        sample.add(keys[part.numpy()], {"x": x[part], "number": part})
    number = sample.of("number")
    assert torch.equal(sample.of("x"), x[number]) and (sample.keys == keys[number.numpy()]).all()
    assert sorted(sample.keys) == sorted(keys)[:20]
    with pytest.raises(ValueError, match=r"of one shape but for lengths, got .*\[1, 3, 1\].* and .*\[20, 3\]"):
        sample.add(keys[:1] * 0, {"x": x[:1, :, None]})


def test_an_input_with_a_single_place_is_one_that_has_none():
    x = normal(400, 6)

    class Linear(nn.Module):
        def __init__(self, places):
            super().__init__()
            torch.manual_seed(0)
            self.encoder, self.vq, self.places = nn.Linear(6, 4), VectorQuantizer(8, 4), places

        def forward(self, x):
            return self.vq(self.encoder(x).reshape(len(x), *self.places, 4))

    (plain, *others) = (diagnose_model(Linear(places), x)["vq"] for places in ((), (1,), (1, 1)))
    for one in others:
        assert one.evidence == plain.evidence and one.notes == plain.notes and "lost by the encoder" in one.evidence
