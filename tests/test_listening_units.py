"""What belongs together in a model is told by the tensors of one pass: levels, heads, groups, several calls."""

import pytest
import torch
import vector_quantize_pytorch as theirs
from helpers import normal
from torch import nn

from vqnotes.diagnosis import diagnose_model
from vqnotes.diagnosis.listening import Listener
from vqnotes.diagnosis.listening.calls import Call, by_example
from vqnotes.diagnosis.listening.units import modules_of, units
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import ProductVQ, ResidualVQ


class Around(nn.Module):
    """A quantiser somewhere in a model."""

    def __init__(self, quantizer):
        super().__init__()
        self.before, self.vq = nn.Linear(16, 16), quantizer

    def forward(self, x):
        return self.vq(self.before(x))


def heard(model, x):
    """(name, names of the levels by parts, loose) of each unit."""
    torch.manual_seed(0)
    listener = Listener(model.eval())
    with torch.no_grad(), listener.listening():
        listener(x)
    found = units(model, listener.calls, listener.entered)
    return [(one.name, [[level.name for level in part] for part in one.parts], one.loose) for one in found]


def levels(*names):
    return [list(names)]


def heads(count):
    return [[f"vq[head {head}]"] for head in range(count)]


MADE = {  # name: the quantiser, its parts with their levels
    "ours": (lambda: VectorQuantizer(8, 16), levels("vq")),
    "our stages": (lambda: ResidualVQ((8, 8), 16), levels("vq.stages.0", "vq.stages.1")),
    "our groups": (lambda: ProductVQ((8, 8), 16), [["vq.stages.0"], ["vq.stages.1"]]),
    "VectorQuantize": (lambda: theirs.VectorQuantize(16, 32), levels("vq")),
    "heads": (
        lambda: theirs.VectorQuantize(16, 32, heads=4, codebook_dim=4, separate_codebook_per_head=True),
        heads(4),
    ),
    "heads of one codebook": (lambda: theirs.VectorQuantize(16, 32, heads=4, codebook_dim=4), [["vq"]] * 4),
    "ResidualVQ": (
        lambda: theirs.ResidualVQ(dim=16, codebook_size=32, num_quantizers=3),
        levels("vq.layers.0", "vq.layers.1", "vq.layers.2"),
    ),
    "projected, one codebook": (
        lambda: theirs.ResidualVQ(dim=16, codebook_dim=8, codebook_size=32, num_quantizers=2, shared_codebook=True),
        levels("vq.layers.0", "vq.layers.1"),
    ),
    "ResidualSimVQ": (
        lambda: theirs.ResidualSimVQ(dim=16, codebook_size=32, num_quantizers=2),
        levels("vq.layers.0", "vq.layers.1"),
    ),
    "groups": (
        lambda: theirs.GroupedResidualVQ(dim=16, groups=2, codebook_size=32, num_quantizers=2),
        [["vq.rvqs.0.layers.0", "vq.rvqs.0.layers.1"], ["vq.rvqs.1.layers.0", "vq.rvqs.1.layers.1"]],
    ),
    "projected groups": (
        lambda: theirs.GroupedResidualVQ(dim=16, groups=2, codebook_size=32, num_quantizers=1, codebook_dim=4),
        [["vq.rvqs.0.layers.0"], ["vq.rvqs.1.layers.0"]],
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_what_makes_a_token_together_is_one_unit(name):
    build, parts = MADE[name]
    assert heard(Around(build()), normal(40, 10, 16)) == [("vq", parts, False)]


class Several(nn.Module):
    """Quantisers side by side; how they are called decides what they are."""

    def __init__(self, call, count=2, dim=16):
        super().__init__()
        self.quantizers, self.call = nn.ModuleList(VectorQuantizer(8, dim) for _ in range(count)), call

    def forward(self, x):
        return self.call(self.quantizers, x)


class ResidualSeveral(Several):
    """The same with another name."""


def one_after_another(quantizers, x):
    for quantizer in quantizers:
        x = x - quantizer(x).latents_q
    return x


def each_on_its_own(quantizers, x):
    return [quantizer(x * (i + 1)) for i, quantizer in enumerate(quantizers)]


def the_same(quantizers, x):
    return [quantizer(x) for quantizer in quantizers]


def dimensions_shared(quantizers, x):
    return [quantizer(part) for quantizer, part in zip(quantizers, x.chunk(2, dim=-1))]


def examples_shared(quantizers, x):
    return [quantizer(part) for quantizer, part in zip(quantizers, x.chunk(2, dim=0))]


def steps_shared(quantizers, x):
    return [quantizer(part) for quantizer, part in zip(quantizers, x.chunk(2, dim=1))]


@pytest.mark.parametrize("kind", [Several, ResidualSeveral])
def test_no_name_decides_what_a_level_is(kind):
    x, names = normal(40, 6, 16), ["quantizers.0", "quantizers.1"]
    for call in each_on_its_own, the_same:
        assert heard(kind(call), x) == [(name, [[name]], False) for name in names]
    assert heard(kind(one_after_another), x) == [("quantizers", [names], False)]


def test_pieces_of_the_dimensions_are_parts_and_pieces_of_the_data_are_not():
    x, names = normal(40, 6, 16), ["quantizers.0", "quantizers.1"]
    assert heard(Several(dimensions_shared, dim=8), x) == [("quantizers", [[names[0]], [names[1]]], False)]
    for call in examples_shared, steps_shared:
        assert heard(Several(call), x) == [(name, [[name]], False) for name in names]


def test_one_quantiser_called_twice():
    def twice(quantizers, x):
        return [quantizers[0](x[:, :side]) for side in (2, 6)]

    calls = [["quantizers.0[call 0]"], ["quantizers.0[call 1]"]]
    assert heard(Several(twice, 1), normal(40, 6, 16)) == [("quantizers.0", calls, True)]

    def levels_of_one(quantizers, x):
        return one_after_another([quantizers[0]] * 2, x)

    together = [["quantizers.0[call 0]", "quantizers.0[call 1]"]]
    assert heard(Several(levels_of_one, 1), normal(40, 6, 16)) == [("quantizers.0", together, False)]


def at_scales(step):
    def call(quantizers, x):
        for level, quantizer in enumerate(quantizers):
            x = x - step**level * quantizer(x / step**level).latents_q
        return x

    return call


def test_levels_may_be_given_what_was_left_at_another_scale():
    x, names = normal(40, 6, 16), ["quantizers.0", "quantizers.1", "quantizers.2"]
    step = 1 / torch.arange(2.0, 18.0)  # of each dimension
    model = Several(at_scales(step), 3)
    assert heard(model, x) == [("quantizers", [names], False)]
    listener = Listener(model.eval())
    with torch.no_grad(), listener.listening():
        listener(x)
    (unit,) = units(model, listener.calls, listener.entered)
    assert unit.levels[0].scale is None
    for level, power in zip(unit.levels[1:], (1, 2)):
        assert torch.allclose(torch.tensor(level.scale), step**power, rtol=1e-3)


def test_levels_at_another_scale_are_judged_as_at_their_own():
    x, model, same = normal(400, 16), Several(at_scales(0.25), 2), Several(one_after_another, 2)
    with torch.no_grad():
        for level, (own, other) in enumerate(zip(model.quantizers, same.quantizers)):
            own.init_codes("normal")
            other.codebook.copy_(own.codebook * 0.25**level)
    found, expected = (diagnose_model(one, x, progress=False)["quantizers"] for one in (model, same))
    assert found.verdict == expected.verdict
    for name, one in expected.evidence.items():
        assert found.evidence[name].value == pytest.approx(one.value, rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("separate", [False, True])
def test_heads_of_a_quantiser_called_twice(separate):
    """Each codebook is one unit: with one for all heads, both calls and all heads make a single set."""
    quantizer = theirs.VectorQuantize(16, 32, heads=2, codebook_dim=4, separate_codebook_per_head=separate)
    model = Several(lambda quantizers, x: [quantizers[0](x[:, :side]) for side in (2, 6)])
    model.quantizers = nn.ModuleList([quantizer])
    calls = [f"quantizers.0[call {call}]" for call in (0, 1)]
    apart = [(f"quantizers.0[head {head}]", [[f"{call}[head {head}]"] for call in calls], True) for head in (0, 1)]
    together = [("quantizers.0", [[call] for call in calls for _ in range(2)], True)]
    assert heard(model, normal(40, 6, 16)) == (apart if separate else together)


def test_layouts_masks_and_indices_of_the_call():
    listener = Listener(theirs.VectorQuantize(8, 32, accept_image_fmap=True).eval())
    with torch.no_grad(), listener.listening():
        maps = normal(5, 8, 3, 2)
        _, index, _ = listener(maps)
    (call,) = listener.calls
    assert torch.equal(call.latents[0], maps.permute(0, 2, 3, 1)) and torch.equal(call.index[0], index)
    assert call.mask is None
    model = theirs.VectorQuantize(8, 32).eval()
    listener = Listener(model)
    kept = torch.arange(6) < torch.tensor([2, 6, 3])[:, None]
    with torch.no_grad(), listener.listening():
        _, index, _ = listener.model(normal(3, 6, 8), lens=torch.tensor([2, 6, 3]))
    (call,) = listener.calls
    assert torch.equal(call.mask, kept) and torch.equal(call.index[0][kept], index[kept])
    shared = theirs.VectorQuantize(8, 32, heads=2, codebook_dim=3).eval()
    listener = Listener(shared)
    with torch.no_grad(), listener.listening():
        _, index, _ = listener(x := normal(3, 6, 8))
        inside = shared.project_in(x)
    (call,) = listener.calls
    assert torch.equal(call.latents, torch.stack([inside[..., :3], inside[..., 3:]]))
    assert torch.equal(call.index, index.movedim(-1, 0)) and call.shared


def test_maps_and_places_in_any_layout_are_heard_with_their_dimensions_last():
    maps, places = normal(5, 8, 3, 2), normal(5, 8, 6)
    for quantizer, x in [
        (theirs.SimVQ(8, 16, channel_first=True), maps),
        (theirs.SimVQ(8, 16, channel_first=True), places),
        (theirs.SimVQ(8, 16), maps.movedim(1, -1)),
        (theirs.VectorQuantize(8, 16, channel_last=False), places),
        (theirs.VectorQuantize(8, 16, accept_image_fmap=True), maps),
        (theirs.VectorQuantize(8, 16), places.mT),
        (VectorQuantizer(16, 8), maps.movedim(1, -1)),
    ]:
        listener = Listener(quantizer.eval())
        with torch.no_grad(), listener.listening():
            listener(x)
        (call,) = listener.calls
        axis = 1 if x.shape[1] == 8 else -1
        assert torch.equal(call.latents[0], x.movedim(axis, -1)) and call.channel_axis == axis
        assert torch.equal(call.index[0], nearest_code(call.latents[0], call.codes[0]))


@pytest.mark.parametrize("shape", [(40, 16, 1, 1), (40, 16, 1, 3), (40, 16, 2, 2), (1, 16, 2, 2)])
def test_pieces_of_maps_of_any_size_are_parts(shape):
    model = Several(lambda quantizers, x: [one(part) for one, part in zip(quantizers, x.chunk(2, dim=1))])
    model.quantizers = nn.ModuleList(theirs.VectorQuantize(8, 16, accept_image_fmap=True) for _ in range(2))
    assert heard(model, normal(*shape)) == [("quantizers", [["quantizers.0"], ["quantizers.1"]], False)]


def test_rows_belong_to_examples_if_they_are_so_many_for_each():
    listener = Listener(VectorQuantizer(8, 4).eval())
    with torch.no_grad(), listener.listening():
        listener(x := normal(30, 4))
    latents, index, mask = by_example(listener.calls[0], 10)
    assert torch.equal(latents[0], x.reshape(10, 3, 4)) and index.shape == (1, 10, 3) and mask is None
    assert by_example(listener.calls[0], 30)[0].shape == (1, 30, 4)
    assert by_example(listener.calls[0], 7) is None


@pytest.mark.parametrize(
    "shape, places",
    [
        ((10, 2, 3), (2, 3)),
        ((1, 60), (6,)),
        ((20, 3), (6,)),  # frames, batch before time
        ((1, 1, 10), ()),
        ((4, 5, 3), None),  # so many, but their first axis is none of the batch
        ((5, 2), None),
        ((6, 10), None),  # time before batch
        ((), None),
    ],
)
def test_the_first_axis_tells_whether_latents_belong_to_examples(shape, places):
    latents = torch.arange(float(torch.Size(shape).numel() * 4)).reshape(1, *shape, 4)
    call = Call("vq", latents[0], latents[0], -1, latents, normal(1, 8, 4), latents[..., 0].long(), None, True)
    found = by_example(call, 10)
    assert (found is None) == (places is None)
    if found is not None:
        assert torch.equal(found[0], latents.reshape(1, 10, *places, 4)) and found[1].shape == (1, 10, *places)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("vq", ["vq", "vq.layers.0", "vq.layers.1"]),
        ("vq[head 1]", ["vq", "vq.layers.0", "vq.layers.1"]),
        ("vq.layers.1", ["vq.layers.1"]),
        ("vq.layers.1[call 0][head 2]", ["vq.layers.1"]),
        ("vq.layers.0 + vq2", ["vq.layers.0", "vq2"]),
        ("vq2", ["vq2"]),
        ("TheModel", ["", "vq", "vq.layers.0", "vq.layers.1", "vq2"]),
    ],
)
def test_a_name_says_which_quantisers_it_is_about(name, expected):
    assert modules_of(name, ["", "vq", "vq.layers.0", "vq.layers.1", "vq2"]) == expected


@pytest.mark.parametrize("name", MADE)
def test_the_names_of_units_and_levels_lead_to_their_quantisers(name):
    model, x = Around(MADE[name][0]()).eval(), normal(40, 10, 16)
    listener = Listener(model)
    with torch.no_grad(), listener.listening():
        listener(x)
    (unit,) = units(model, listener.calls, listener.entered)
    called = {listener.calls[level.call].name for level in unit.levels}
    assert called <= set(modules_of(unit.name, listener.names)) <= set(listener.names)
    for level in unit.levels:
        assert modules_of(level.name, listener.names) == [listener.calls[level.call].name]
