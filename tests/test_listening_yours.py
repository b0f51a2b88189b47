"""A quantiser of any kind is described in ten lines; batches of any kind are taken by a call."""

import re

import pytest
import torch
import torch.nn.functional as F
from helpers import normal
from notebook_tools import ROOT
from test_listening_found import DIM, SIZE, Around, Maps, crowded, inputs, inputs_of, model_of, placed
from torch import nn
from torch.utils.data import DataLoader, Dataset

from vqnotes.diagnosis import CollapseWatch, diagnose_model
from vqnotes.diagnosis.listening import Listener
from vqnotes.diagnosis.listening.calls import TEN_LINES
from vqnotes.diagnosis.watch import CollapseWarning


def code():
    """The lines of the message, as a user copies them."""
    return "\n".join(line[4:] for line in TEN_LINES.splitlines()[1:]).strip()


def test_the_lines_run_as_they_stand_and_are_ten(capsys):
    lines = [line for line in code().splitlines() if line]
    assert len(lines) <= 10
    model, _ = model_of(Maps, placed)
    names = {"model": model, "data": inputs_of(Maps)}
    exec(code(), names)
    assert "healthy" in capsys.readouterr().out
    latents = names["latents_of"](model.vq, normal(2, DIM, 3, 3))
    assert latents.shape == (2, 3, 3, DIM) and names["codes_of"](model.vq).shape == (SIZE, DIM)


def test_the_readme_has_the_same_lines():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert [block.strip() for block in blocks].count(code()) == 1


class Secret(nn.Module):
    """What cannot be watched: it searches and looks up outside of torch, with numbers that are no tensor."""

    layout, returns = "last", "index"

    def __init__(self):
        super().__init__()
        self.numbers = normal(SIZE, DIM).numpy()

    def forward(self, z):
        flat = 2 * z.detach().reshape(-1, DIM).numpy()
        index = ((flat[:, None] - self.numbers[None]) ** 2).sum(-1).argmin(1)
        q = torch.from_numpy(self.numbers[index]).view(z.shape)
        index = torch.from_numpy(index)
        out = {
            "index": (q / 2, index),
            "codes": (q,),
            "both": (q, index, index.roll(1)),
            "places": (q, torch.arange(len(index)), index),
            "nothing": (z + q,),
        }
        return out[self.returns]

    def place(self, codes):
        self.numbers = 2 * codes.numpy()


def latents_of(module, entered):
    return 2 * entered


def codes_of(module):
    return torch.from_numpy(module.numbers)


SAID = {
    "index": "those that it returned",
    "places": "those that it returned",  # numbers of the places are no indices
    "codes": "those of the codes that it returned",
    "nothing": "the nearest codes",
}


@pytest.mark.parametrize("returns", SAID)
def test_two_functions_say_how_it_works(returns):
    for place, verdict in (placed, "healthy"), (crowded, "token collapse"):
        model, _ = model_of(Secret, place)
        model.vq.returns = returns
        with pytest.raises(ValueError, match=re.escape(TEN_LINES)):
            diagnose_model(model, inputs())
        found = diagnose_model(model, inputs(), quantizers={"vq": (latents_of, codes_of)})
        assert list(found) == ["vq"] and found["vq"].verdict == verdict
        assert any(f"indices: {SAID[returns]}" in note for note in found["vq"].notes)


def test_a_third_function_says_which_of_two_are_the_indices():
    model, _ = model_of(Secret, placed)
    model.vq.returns = "both"
    two = r"returned torch.int64 \(4096,\) or torch.int64 \(4096,\): either may be its indices; a third function"
    with pytest.raises(ValueError, match=two):
        diagnose_model(model, inputs(), quantizers={"vq": (latents_of, codes_of)})
    found = {}
    for number in (1, 2):
        functions = (latents_of, codes_of, lambda module, returned, number=number: returned[number])
        found[number] = diagnose_model(model, inputs(), quantizers={"vq": functions})["vq"]
    assert found[1].verdict == "healthy" and found[2].verdict == "cannot tell"
    with pytest.raises(ValueError, match=r"one index for each latent \(256, 16\), got \(256, 16, 4\)"):
        diagnose_model(
            model, inputs(), quantizers={"vq": (latents_of, codes_of, lambda module, returned: returned[0])}
        )


@pytest.mark.parametrize(
    "quantizers, message",
    [
        ([latents_of, codes_of], "quantizers must be a dict, got list. Ten lines"),
        ({"qv": (latents_of, codes_of)}, "Around has no module 'qv'; it has 'encoder', 'decoder', 'vq'"),
        ({"vq": latents_of}, r"quantizers\['vq'\] must be two or three functions, got <function"),
        ({"vq": (latents_of,)}, "must be two or three functions"),
        (
            {"vq": (lambda module, entered: entered[..., :3], codes_of)},
            r"got \(256, 16, 3\) and \(32, 4\). Ten",
        ),
        ({"vq": (latents_of, lambda module: module.numbers)}, r"got \(256, 16, 4\) and ndarray"),
    ],
)
def test_what_describes_no_quantiser_is_refused(quantizers, message):
    model, _ = model_of(Secret, placed)
    with pytest.raises(ValueError, match=message):
        diagnose_model(model, inputs(), quantizers=quantizers)


class Staged(Secret):
    """Has the stages of ours, and is none of ours."""

    def prepare(self, z):
        return 2 * z

    def codes(self):
        return torch.from_numpy(self.numbers)


def test_a_class_with_prepare_and_codes_is_heard_by_itself():
    for place, verdict in (placed, "healthy"), (crowded, "token collapse"):
        model, latents = model_of(Staged, place)
        found = diagnose_model(model, inputs())
        assert list(found) == ["vq"] and found["vq"].verdict == verdict
        listener = Listener(model)
        with torch.no_grad(), listener.listening():
            listener(inputs())
        assert torch.allclose(listener.calls[0].latents.reshape(-1, DIM), 2 * latents)


class Square(nn.Module):
    """Latents (N, 4, 4) meet a table of equal codes of four dimensions: along which axis, nothing tells."""

    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.ones(8, 4))

    def forward(self, x):
        index = (x[:, None] - self.codes[:, :, None]).square().sum(2).argmin(1)
        return self.codes[index].movedim(-1, 1)


def test_what_can_be_read_in_two_ways_is_asked_for():
    model = Square()
    with pytest.raises(
        ValueError, match=r"\(8, 4\) can be read in two ways, with their dimensions along axis"
    ) as said:
        diagnose_model(model, normal(300, 4, 4))
    assert TEN_LINES in str(said.value)
    model.codes.data += 1e-3 * normal(8, 4)
    by_hand = {"": (lambda module, entered: entered.movedim(1, -1), lambda module: module.codes)}
    assert "token" in diagnose_model(model, normal(300, 4, 4), quantizers=by_hand)["Square"].verdict
    model.codes.data.copy_(normal(8, 4, seed=2))
    (found,) = diagnose_model(model, normal(300, 4, 4)).values()
    assert any("(256, 4) x 4 numbers" in note and "100%" in note for note in found.notes)


# ---------------------------------------------------------------- batches of any kind


class Keywords(nn.Module):
    """Takes pixels and a mask by name, and returns a dict."""

    def __init__(self, around):
        super().__init__()
        self.around = around

    def forward(self, *, pixel_values, scale=None):
        return {"sample": self.around(pixel_values if scale is None else pixel_values * scale)}


class Items(Dataset):
    """Examples as dicts."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"pixel_values": self.x[i], "scale": torch.ones(1, 1, 1), "name": f"number {i}"}


def by_name(model, batch):
    return model(pixel_values=batch["pixel_values"], scale=batch.get("scale"))


@pytest.mark.parametrize("place, verdict", [(placed, "healthy"), (crowded, "token collapse")])
def test_models_that_take_keywords_dicts_and_several_tensors(place, verdict):
    around, _ = model_of(Maps, place)
    model, x = Keywords(around).double(), inputs_of(Maps)
    plain = diagnose_model(around, x)["vq"]
    for data, call, given in [
        ([{"pixel_values": x[:200]}, {"pixel_values": x[200:].numpy()}], by_name, None),
        (DataLoader(Items(x), 64), by_name, "pixel_values"),
        (Items(x), by_name, "pixel_values"),
        ([(x, torch.ones(len(x), 1, 1, 1))], lambda model, batch: model(pixel_values=batch[0], scale=batch[1]), None),
        (x, lambda model, batch: model(pixel_values=batch), None),
    ]:
        (found,) = diagnose_model(model, data, call=call, inputs=given).values()
        assert found.verdict == verdict == plain.verdict
        assert found.evidence["codes in use"].compared_with.endswith("4,800 latents")
        assert found.evidence.keys() == plain.evidence.keys() and found.doubts == plain.doubts


def test_a_call_with_labels_in_its_batches():
    around, _ = model_of(Maps, placed)
    x, y = inputs_of(Maps), torch.arange(300) % 3
    (found,) = diagnose_model(around, [(x, y)], call=lambda model, batch: model(batch[0])).values()
    assert "labels read off" in found.evidence


@pytest.mark.parametrize(
    "data, options, message",
    [
        ([{"x": normal(5, 4), "y": normal(5, 4)}], {}, r"got dict .*call=lambda model, batch: model\(\*\*batch\)"),
        ({"x": normal(5, 4)}, {"call": by_name}, "got dict; one batch that is a dict goes into a list"),
        (
            [{"x": normal(5, 4), "y": normal(5, 2)}],
            {"call": by_name},
            r"a batch holds {'x': \(5, 4\), 'y': \(5, 2\)}: say with inputs= .* as in inputs='x'",
        ),
        (
            [{"x": normal(5, 4)}],
            {"call": by_name, "inputs": "z"},
            r"inputs='z' is no part of a batch, .*'x': ",
        ),
        ([{"x": "text"}], {"call": by_name, "inputs": "x"}, "inputs must be a tensor with an example a row"),
        ([normal(5, 4)], {"call": 3}, "call must be a function of a model and a batch, got int"),
        ([normal(5, 4)], {"inputs": "x"}, "inputs='x' names a part of a batch: pass call= too"),
    ],
)
def test_batches_that_are_not_understood(data, options, message):
    model, _ = model_of(Maps, placed)
    with pytest.raises(ValueError, match=message):
        diagnose_model(model, data, **options)


# ---------------------------------------------------------------- in training


def test_a_watch_hears_what_is_found_described_and_called():
    around, _ = model_of(Maps, crowded)
    secret, _ = model_of(Secret, crowded)
    x = inputs_of(Maps)
    for model, watch in [
        (around, CollapseWatch(x, every=1)),
        (secret, CollapseWatch(inputs(), every=1, quantizers={"vq": (latents_of, codes_of)})),
        (Keywords(around), CollapseWatch([{"pixel_values": x}], every=1, call=by_name)),
    ]:
        model.train()
        watch(0, model)
        (name,) = watch.latest
        assert watch.turns == [(0, name, "token collapse")]
        watch(1, model)  # not used since: what the first look found is not confirmed
        assert watch.turns[1:] == [(1, name, "not started")]
        watch.call = None
        by_name(model, {"pixel_values": x}) if isinstance(model, Keywords) else model(
            x if model is around else inputs()
        )
        with pytest.warns(CollapseWarning, match=f"{name}: token collapse, confirmed at step 3"):
            watch(2, model)
            watch(3, model)


def test_a_training_of_a_home_made_model_is_watched():
    torch.manual_seed(0)
    model, x = Around(Maps(), "maps"), inputs_of(Maps)
    model.vq.place(torch.rand(SIZE, DIM) / SIZE)
    watch, optimizer = CollapseWatch(x, every=10), torch.optim.Adam(model.parameters(), 1e-3)
    with pytest.warns(CollapseWarning, match="vq: token"):
        for step in range(31):
            watch(step, model)
            out = model(x[step * 8 : step * 8 + 8])
            F.mse_loss(out, x[step * 8 : step * 8 + 8]).backward()
            optimizer.step(), optimizer.zero_grad()
    assert {verdict for _, _, verdict in watch.turns} & {"token collapse", "token and embedding collapse"}
