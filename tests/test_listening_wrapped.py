"""Quantisers are heard in models that are wrapped, compiled, traced or of mixed precision, healthy or ill."""

import itertools
import warnings

import pytest
import torch
import vector_quantize_pytorch as theirs
from helpers import normal
from test_diagnose_model_units import Linear, low_rank
from test_listening_found import Likeness, Maps, Turned, crowded, inputs_of, model_of, placed
from torch import nn
from torch.utils.data import IterableDataset

from vqnotes.diagnosis import CollapseWatch, diagnose_model
from vqnotes.quantizers import VectorQuantizer


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


def in_place(model):
    model.compile(backend="aot_eager")
    model(inputs_of(Maps))
    return model


def in_bfloat16(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return model(batch)


WRAPPED = {
    "DataParallel": (nn.DataParallel, "module.vq", Maps, {}),
    "compiled": (compiled, "_orig_mod.vq", Maps, {}),
    "inference mode": (Inference, "model.vq", Maps, {}),
    "inference mode, cosine": (Inference, "model.vq", Likeness, {}),
    "bfloat16": (lambda model: model.bfloat16(), "vq", Maps, {}),
    "float16": (lambda model: model.half(), "vq", Maps, {}),
    "float64": (lambda model: model.double(), "vq", Maps, {}),
    "compiled in place": (lambda model: in_place(model), "vq", Maps, {}),
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


# ---------------------------------------------------------------- quantisers that are known

X = low_rank(600, 12)


def known(kind, sick):
    """A model around a quantiser of this module, or of vector-quantize-pytorch, in evaluation mode."""
    torch.manual_seed(0)
    model = Linear(VectorQuantizer(32, 4) if kind == "ours" else theirs.VectorQuantize(4, 32, kmeans_init=True), X)
    if sick:
        codes = crowded(model.encoder(X).detach(), 32)
        (model.vq.codebook if kind == "ours" else model.vq._codebook.embed[0]).data.copy_(codes)
    return model.eval()


def compiled_inside(model):
    """Its quantiser alone is compiled, which then has all attributes of the quantiser."""
    model.vq = torch.compile(model.vq, backend="aot_eager")
    model(X)
    return model


KNOWN = {
    "DataParallel": (nn.DataParallel, "module.vq", {}),
    "compiled": (lambda model: torch.compile(model, backend="aot_eager"), "_orig_mod.vq", {}),
    "compiled inside": (compiled_inside, "vq._orig_mod", {}),
    "float16": (lambda model: model.half(), "vq", {}),
    "bfloat16": (lambda model: model.bfloat16(), "vq", {}),
    "autocast": (lambda model: model, "vq", {"call": in_bfloat16}),
}


@pytest.mark.parametrize("kind", ["ours", "theirs"])
@pytest.mark.parametrize("name", KNOWN)
def test_a_quantiser_that_is_known_is_heard_in_a_wrapped_model(name, kind):
    wrap, expected, options = KNOWN[name]
    for sick, verdict in (False, "healthy"), (True, "token collapse"):
        found = diagnose_model(wrap(known(kind, sick)), X, **options)
        assert {path: one.verdict for path, one in found.items()} == {expected: verdict}


# ---------------------------------------------------------------- without calls: traced, scripted, exported


class Plain(nn.Module):
    """A quantiser that torch.jit can read."""

    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(normal(8, 4))

    def forward(self, x):
        return self.codes[torch.cdist(x, self.codes).argmin(1)]


class Scripted(nn.Module):
    """A part that is scripted, around a quantiser that is not."""

    def __init__(self, sick):
        super().__init__()
        self.before, self.inner = torch.jit.script(nn.Linear(12, 12)), known("ours", sick)
        with torch.no_grad():
            self.before.weight.copy_(torch.eye(12)), self.before.bias.zero_()

    def forward(self, x):
        return self.inner(self.before(x))


@pytest.mark.filterwarnings("ignore")  # torch says that it will give up torch.jit
@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_a_traced_model_is_refused_for_what_it_is(kind):
    model = known(kind, False)
    with pytest.raises(
        ValueError, match="torch.jit has traced or scripted the model .*Give the model as it was"
    ) as said:
        diagnose_model(torch.jit.trace(model, X, check_trace=False), X)
    assert "diagnose(latents, codebook)" in str(said.value)
    model.encoder = torch.jit.trace(model.encoder, X)
    assert diagnose_model(model, X)["vq"].verdict == "healthy"
    around = nn.Sequential(torch.jit.trace(known(kind, False), X, check_trace=False))
    with pytest.raises(ValueError, match=r"has traced or scripted 0 \(TopLevelTracedModule\)"):
        diagnose_model(around, X)


@pytest.mark.filterwarnings("ignore")
def test_a_part_that_is_scripted_is_no_hindrance():
    for sick, verdict in (False, "healthy"), (True, "token collapse"):
        assert diagnose_model(Scripted(sick), X)["inner.vq"].verdict == verdict


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_model_is_refused_for_what_it_is():
    with pytest.raises(ValueError, match="torch.jit has traced or scripted the model .RecursiveScriptModule"):
        diagnose_model(torch.jit.script(nn.Sequential(nn.Linear(4, 4))), normal(50, 4))


def test_an_exported_model_is_refused_for_what_it_is():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.export.export(Plain(), (normal(50, 4),)).module()
    with pytest.raises(ValueError, match="has no evaluation mode: .*give the model as it was before"):
        diagnose_model(made, normal(50, 4))


# ---------------------------------------------------------------- modules of Lightning


@pytest.mark.parametrize("batches", [False, True])
def test_a_lightning_module_is_a_model(batches):
    """Also one whose forward takes the whole batch, as its training step does."""
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, batch):
            x, _ = batch if batches else (batch, None)
            return self.model(x)

    data = [(X[:400], torch.zeros(400)), (X[400:], torch.zeros(200))]
    for sick, verdict in (False, "healthy"), (True, "token collapse"):
        module = Module(known("ours", sick)).train()
        if batches:
            with pytest.raises(ValueError, match=r"Module cannot be called with a batch .*call=lambda model, batch"):
                diagnose_model(module, data)
        options = {"call": lambda model, batch: model(batch)} if batches else {}
        found = diagnose_model(module, data, **options)
        assert {path: one.verdict for path, one in found.items()} == {"model.vq": verdict} and module.training


# ---------------------------------------------------------------- data without end


class Endless(IterableDataset):
    """Inputs one by one, without end."""

    def __iter__(self):
        return itertools.cycle(X)


@pytest.mark.parametrize(
    "data",
    [
        lambda: (X[i : i + 100 + i] for i in (0, 100, 300)),  # batches of different sizes
        lambda: itertools.cycle([X[:64].repeat(40, 1), X[64:].repeat(40, 1)]),
        lambda: torch.utils.data.DataLoader(Endless(), batch_size=4096),
    ],
)
def test_generators_and_loaders_without_end(data):
    for sick, verdict in (False, "healthy"), (True, "token collapse"):
        (found,) = diagnose_model(known("ours", sick), data()).values()
        assert found.verdict == verdict


def test_a_watch_keeps_the_beginning_of_a_generator(monkeypatch):
    monkeypatch.setattr("vqnotes.diagnosis.watch.MOST_NUMBERS", X.numel())
    endless = itertools.cycle([{"x": X[:200]}, {"x": X[200:400]}, {"x": X[400:]}])
    watch = CollapseWatch(endless, every=1, call=lambda model, batch: model(batch["x"]))
    assert len(watch.probe) == 3
    watch(0, known("ours", True))
    assert watch.turns == [(0, "vq", "token collapse")]


# ---------------------------------------------------------------- home-made beside known


class Beside(nn.Module):
    """A known quantiser, and one that no file knows, each with its own encoder and decoder."""

    def __init__(self, known, own):
        super().__init__()
        self.known, self.own = known, own

    def forward(self, x):
        return (self.own(x) + self.known(x)) / 2


@pytest.mark.parametrize("sick_known", [False, True])
@pytest.mark.parametrize("sick_own", [False, True])
def test_a_home_made_quantiser_beside_a_known_one_is_judged_too(sick_known, sick_own):
    x = inputs_of(Turned)
    known, (own, _) = Linear(VectorQuantizer(32, 4), x), model_of(Turned, crowded if sick_own else placed)
    if sick_known:
        known.vq.codebook.data.copy_(crowded(known.encoder(x).detach().reshape(-1, 4), 32))
    found = diagnose_model(Beside(known, own), x)
    said = {False: "healthy", True: "token collapse"}
    verdicts = {name: one.verdict for name, one in found.items()}
    assert verdicts == {"own.vq": said[sick_own], "known.vq": said[sick_known]}
    assert list(found) == ["own.vq", "known.vq"], "not in the order of their calls"
    assert any(note.startswith("found by watching") for note in found["own.vq"].notes)
    assert not any(note.startswith("found by watching") for note in found["known.vq"].notes)


class Farther(Turned):
    """Takes the code that is farthest."""

    def forward(self, z):
        rows = z.reshape(-1, 4)
        index = torch.cdist(rows, self.embed.T).argmax(1).view(z.shape[:-1])
        return nn.functional.embedding(index, self.embed.T)


def test_a_table_beside_a_known_quantiser_that_may_be_one_is_named():
    x = inputs_of(Turned)
    own, _ = model_of(Farther, placed)
    (found,) = diagnose_model(Beside(Linear(VectorQuantizer(32, 4), x), own), x).values()
    assert found.verdict == "healthy"
    (said,) = [note for note in found.notes if note.startswith("not judged: ")]
    assert "rows of own.vq.embed (32, 4) come out, too" in said and "quantizers=" in said
