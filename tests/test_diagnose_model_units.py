"""Whole models, healthy and ill by surgery: sequences, masks, heads, levels, groups, calls, lost gradients."""

import numpy as np
import pytest
import torch
import vector_quantize_pytorch as theirs
from helpers import normal
from test_listening_found import Maps, inputs_of, model_of, placed
from torch import nn

from vqnotes.diagnosis import diagnose, diagnose_model
from vqnotes.diagnosis.listening import records
from vqnotes.diagnosis.listening.records import Sample
from vqnotes.quantizers import VectorQuantizer


def low_rank(*shape, rank=4, seed=0):
    """Inputs (..., C) that a few numbers determine, but for a little noise."""
    *leading, channels = shape
    return normal(*leading, rank, seed=seed) @ normal(rank, channels, seed=99) + 0.05 * normal(*shape, seed=seed + 1)


class Linear(nn.Module):
    """A perfect linear autoencoder of the last axis around a quantiser, or one that keeps a single number."""

    def __init__(self, quantizer, x, dim=4, kept=4):
        super().__init__()
        self.encoder, self.decoder, self.vq = nn.Linear(x.shape[-1], dim), nn.Linear(dim, x.shape[-1]), quantizer
        rows = x.reshape(-1, x.shape[-1])
        axes = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:dim]
        with torch.no_grad():
            weight = axes * torch.where(torch.arange(dim) < kept, 1.0, 0.0)[:, None]
            self.encoder.weight.copy_(weight), self.encoder.bias.zero_()
            self.decoder.weight.copy_(weight.T), self.decoder.bias.zero_()
        place_codes(quantizer, self.encoder(x).detach())

    def forward(self, x):
        return self.decoder(self.quantized(self.encoder(x), x))

    def quantized(self, latents, x):
        return self.vq(latents)[0]


def place_codes(quantizer, latents):
    """Codes as good as k-means makes them."""
    if isinstance(quantizer, VectorQuantizer):
        quantizer.init_codes("kmeans", latents)
    else:
        quantizer.train()
        with torch.no_grad():
            for _ in range(15):
                quantizer(latents.reshape(-1, 1, latents.shape[-1])[torch.randperm(latents[..., 0].numel())[:2000]])


def lost(found):
    return found.evidence["lost by the encoder"].value


# ---------------------------------------------------------------- sequences and maps


@pytest.mark.parametrize("kept, verdict", [(4, "healthy"), (1, "embedding collapse")])
def test_the_verdict_on_a_sequence_does_not_depend_on_its_length(kept, verdict):
    x = low_rank(300, 16, 64)
    model = Linear(VectorQuantizer(64, 4), x, kept=kept)
    steps, _ = diagnose_model(model, x.reshape(-1, 64)), torch.manual_seed(0)
    for length in 16, 15:  # 16 divides the 64 channels
        (found,) = diagnose_model(model, x[:, :length]).values()
        assert found.verdict == verdict and lost(found) == pytest.approx(lost(steps["vq"]), rel=0.2)
        said = [
            note for note in found.notes if "could be read along axes (1,) or (2,); latents move with (1,)" in note
        ]
        assert len(said) == (length == 16)


class ChannelFirst(nn.Module):
    """(N, C, T) to latents (N, T, D)."""

    def __init__(self, x):
        super().__init__()
        self.inner = Linear(VectorQuantizer(64, 4), x.movedim(1, 2))

    def forward(self, x):
        return self.inner(x.movedim(1, 2)).movedim(1, 2)


def test_channels_first():
    x = low_rank(300, 16, 64)
    model = ChannelFirst(x.movedim(1, 2))
    (found,) = diagnose_model(model, x.movedim(1, 2)).values()
    (last,) = diagnose_model(model.inner, x).values()
    assert found.verdict == "healthy" and lost(found) == pytest.approx(lost(last), rel=1e-3)


def test_places_that_are_given_decide():
    x = low_rank(300, 16, 64)
    model = Linear(VectorQuantizer(64, 4), x)
    (right,) = diagnose_model(model, x, places=(1,)).values()
    (wrong,) = diagnose_model(model, x, places=(2,)).values()
    assert lost(right) < 0.01 < 0.1 < lost(wrong)
    with pytest.raises(ValueError, match=r"places=\(2,\): .*cannot be cut along axes \(2,\) into places \(15,\)"):
        diagnose_model(model, x[:, :15], places=(2,))


def test_square_maps_are_read_as_the_call_shows():
    x = low_rank(300, 4, 4, 12)  # 4 dimensions on 4 x 4 places

    class Maps(Linear):
        def quantized(self, latents, x):
            return self.vq(latents.movedim(-1, 1))[0].movedim(1, -1)

    torch.manual_seed(0)
    model = Maps(theirs.VectorQuantize(4, 32, kmeans_init=True), x)
    model.vq.accept_image_fmap = True
    (found,) = diagnose_model(model, x).values()
    by_hand = diagnose(model.encoder(x), model.vq.codebook, inputs=x, places=(1, 2), channel_axis=-1)
    assert found.verdict == by_hand.verdict == "healthy" and lost(found) == pytest.approx(lost(by_hand), rel=1e-3)


def test_an_encoder_that_looks_nowhere_in_particular_is_not_judged():
    class Everywhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.vq = nn.Linear(16 * 64, 16 * 4), VectorQuantizer(8, 4)

        def forward(self, x):
            return self.vq(self.encoder(x.flatten(1)).unflatten(1, (16, 4)))

    torch.manual_seed(0)
    (found,) = diagnose_model(Everywhere(), normal(300, 16, 64)).values()
    assert "lost by the encoder" not in found.evidence
    assert any("not be paired" in note and "places=(1,) or places=(2,)" in note for note in found.notes)


# ---------------------------------------------------------------- masks and lengths


class Masked(Linear):
    """Tells its quantiser which steps are real: those that are not 0."""

    lens = False

    def quantized(self, latents, x):
        real = (x != 0).any(-1)
        return self.vq(latents, **({"lens": real.sum(1)} if self.lens else {"mask": real}))[0]


@pytest.mark.parametrize("lens", [False, True])
def test_what_is_masked_does_not_count(lens):
    x = low_rank(300, 20, 12)
    real = torch.arange(20) < torch.randint(2, 20, (300, 1), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = Masked(theirs.VectorQuantize(4, 32, kmeans_init=True), x)
    model.lens = lens
    with torch.no_grad():
        model.encoder.bias += 30  # padding is far from all codes
        model.vq.codebook += 30
    padded = x * real[..., None]
    found = diagnose_model(model, padded)["vq"]
    by_hand = diagnose(model.encoder(x)[real], model.vq.codebook, inputs=x[real])
    assert found.verdict == by_hand.verdict == "healthy"
    for name in "codes in use", "codes in effect", "error / variance":
        assert found.evidence[name].value == pytest.approx(by_hand.evidence[name].value, rel=0.1)
    assert found.evidence["codes in use"].compared_with.endswith(f"with {int(real.sum()):,} latents")
    assert any(note.startswith(f"{int((~real).sum()):,} of 6,000 latents are masked") for note in found.notes)
    cut = [padded[:100, :12], padded[100:200, :20], padded[200:]]
    for shorter in diagnose_model(model, [*cut[:1], padded[100:]]), diagnose_model(model, cut[::-1]):
        assert shorter["vq"].verdict == "healthy" and lost(shorter["vq"]) == pytest.approx(lost(found), rel=0.3)


class PaddedByNaN(Linear):
    """What is NaN does not count."""

    def quantized(self, latents, x):
        real = ~x.isnan().any(-1)
        return self.vq(latents, mask=real)[0]


@pytest.mark.parametrize("levels", [False, True])
def test_padding_may_be_nan(levels):
    x = low_rank(300, 16, 64)  # steps, or pieces of the channels: the model is asked
    real = torch.arange(16) < torch.randint(4, 17, (300, 1), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    residual = theirs.ResidualVQ(dim=4, codebook_size=32, num_quantizers=2, kmeans_init=True)
    model = PaddedByNaN(residual if levels else theirs.VectorQuantize(4, 32, kmeans_init=True), x)
    found, zeros = (diagnose_model(model, torch.where(real[..., None], x, padding)) for padding in (torch.nan, 0))
    assert list(found) == (["vq", "vq.layers.0", "vq.layers.1"] if levels else ["vq"])
    masked = f"{int((~real).sum()):,} of 4,800 latents are masked and do not count"
    assert found["vq"].verdict == "healthy" and lost(found["vq"]) < 0.02 and masked in found["vq"].notes
    assert "latents move with (1,)" in str(found["vq"]) and len(zeros) == len(found)


class Overflowing(Linear):
    """Rebuilds its inputs, and large ones as infinite or NaN, by what it rebuilds or by what it gets."""

    def __init__(self, vq, x, beyond, by_inputs):
        super().__init__(vq, x)
        self.beyond, self.by_inputs = beyond, by_inputs

    def forward(self, x):
        back = super().forward(x)
        return back.masked_fill((x if self.by_inputs else back) > 4, self.beyond)


@pytest.mark.parametrize("by_inputs", [False, True])
@pytest.mark.parametrize("beyond", [torch.inf, torch.nan])
def test_a_model_that_rebuilds_infinite_numbers_is_refused(beyond, by_inputs):
    x = low_rank(600, 12)
    with pytest.raises(ValueError, match=r"quantiser 'vq': reconstruction must be finite .*\(600, 12\)"):
        diagnose_model(Overflowing(VectorQuantizer(32, 4), x, beyond, by_inputs), x)


CODES_OF = {  # of quantisers that are heard in different ways: how they are made, and where their codes are
    "VectorQuantize": (lambda: theirs.VectorQuantize(4, 32), "_codebook.embed"),
    "ResidualVQ": (lambda: theirs.ResidualVQ(dim=4, codebook_size=32, num_quantizers=2), "layers.1._codebook.embed"),
    "SimVQ": (lambda: theirs.SimVQ(4, 32), "frozen_codebook"),
    "home-made": (Maps, "embedding.weight"),
}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", CODES_OF)
def test_codes_that_are_not_finite_are_named(name, value):
    make, where = CODES_OF[name]
    if make is Maps:
        (model, _), x = model_of(Maps, placed), inputs_of(Maps)
    else:
        x = low_rank(600, 12)
        model = Linear(make(), x).eval()
    model.vq.state_dict()[where][..., 3, 0] = value
    with pytest.raises(ValueError, match=r"quantiser 'vq': codebook holds NaN or infinite values, .*\(32, 4\)"):
        diagnose_model(model, x)


class OfEightBits(nn.Module):
    """Keeps its codes in eight bits, and returns its indices."""

    def __init__(self, codes):
        super().__init__()
        self.register_buffer("small", codes.to(torch.float8_e4m3fn))

    def forward(self, z):
        codes = self.small.to(z.dtype)
        index = torch.cdist(z, codes).argmin(-1)
        return codes[index], index


def test_codes_of_eight_bits_are_read():
    x = low_rank(600, 12)
    model = Linear(VectorQuantizer(32, 4), x)
    model.vq = OfEightBits(model.vq.codebook.detach())
    described = {"vq": (lambda module, entered: entered, lambda module: module.small)}
    assert diagnose_model(model, x, quantizers=described)["vq"].verdict == "healthy"


class NotPlaced(nn.Module):
    """Places its codes in its first training step; until then they are whatever memory held."""

    def __init__(self, value):
        super().__init__()
        self.register_buffer("embed", torch.full((32, 4), value))
        self.register_buffer("initted", torch.tensor(False))

    def forward(self, z):
        index = torch.cdist(z, self.embed).argmin(-1)
        return z + (nn.functional.embedding(index, self.embed) - z).detach()


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_codes_that_are_not_placed_yet_may_be_anything(value):
    x = low_rank(600, 12)
    model = Linear(VectorQuantizer(32, 4), x)
    model.vq = NotPlaced(value)
    assert diagnose_model(model, x)["vq"].verdict == "cannot tell"


def test_batches_of_several_lengths():
    x = low_rank(300, 16, 12)
    model = Linear(VectorQuantizer(32, 4), x)
    whole = diagnose_model(model, x)["vq"]
    cut = diagnose_model(model, [x[:100, :7], x[100:200], x[200:, :9]])["vq"]
    assert cut.verdict == whole.verdict == "healthy" and lost(cut) == pytest.approx(lost(whole), rel=0.3)
    assert cut.evidence["codes in use"].compared_with.endswith("with 3,200 latents")


def test_lengths_that_do_not_fit_are_named():
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.vq = nn.Conv1d(2, 4, 4, 4, padding=1), VectorQuantizer(8, 4)

        def forward(self, x):
            return self.vq(self.encoder(x).movedim(1, 2))

    with pytest.raises(ValueError, match=r"got batches .* on \(5,\) and \(50, 2, 23\) with \(6,\)"):
        diagnose_model(Strided(), [normal(50, 2, 20), normal(50, 2, 23)])


# ---------------------------------------------------------------- several codebooks


def stack_of(x, **options):
    torch.manual_seed(0)
    quantizer = theirs.ResidualVQ(dim=4, codebook_size=32, num_quantizers=3, kmeans_init=True, **options)
    return Linear(quantizer, x)


def test_levels_are_judged_by_their_codes_and_the_stack_as_a_whole():
    x = low_rank(400, 8, 12)
    model = stack_of(x)
    found = diagnose_model(model, x)
    assert list(found) == ["vq", "vq.layers.0", "vq.layers.1", "vq.layers.2"]
    assert {one.verdict for one in found.values()} == {"healthy"}
    model.vq.layers[1]._codebook.embed[:, 4:] = model.vq.layers[1]._codebook.embed[:, :1]
    ill = diagnose_model(model, x)
    assert ill["vq.layers.1"].verdict == "token collapse" and ill["vq.layers.0"].verdict == "healthy"
    assert "token" in ill["vq"].verdict


@pytest.mark.parametrize("kind", ["heads", "heads of one codebook", "groups"])
def test_parts_are_judged_by_their_codes_and_the_encoder_by_all_of_them(kind):
    x = low_rank(400, 8, 12)
    torch.manual_seed(0)
    options = {"codebook_size": 32, "kmeans_init": True}
    heads = {"heads": 4, "codebook_dim": 1, "rotation_trick": False}
    quantizer, names = {
        "heads": (
            lambda: theirs.VectorQuantize(4, separate_codebook_per_head=True, **heads, **options),
            ["vq", *(f"vq[head {i}]" for i in range(4))],
        ),
        "heads of one codebook": (lambda: theirs.VectorQuantize(4, **heads, **options), ["vq"]),
        "groups": (
            lambda: theirs.GroupedResidualVQ(dim=4, groups=2, num_quantizers=1, **options),
            ["vq", "vq.rvqs.0.layers.0", "vq.rvqs.1.layers.0"],
        ),
    }[kind]
    model = Linear(quantizer(), x)
    found = diagnose_model(model, x)
    assert list(found) == names and {one.verdict for one in found.values()} == {"healthy"}
    assert lost(found["vq"]) < 0.01  # each part alone holds a half or a quarter of what there is
    ill = Linear(quantizer(), x, kept=1)
    assert "embedding" in diagnose_model(ill, x)["vq"].verdict


class ResidualTwo(nn.Module):
    """Two encoders, each with a quantiser of its own, in a class of this name."""

    def __init__(self, x, kept):
        super().__init__()
        self.parts = nn.ModuleList([Linear(VectorQuantizer(32, 4), x), Linear(VectorQuantizer(32, 4), x, kept=kept)])

    def forward(self, x):
        return [part(x) for part in self.parts]


def test_a_second_encoder_is_judged_whatever_the_class_is_called():
    x = low_rank(2000, 12)
    for kept, verdict in (4, "healthy"), (1, "embedding collapse"):
        found = diagnose_model(ResidualTwo(x, kept), x)
        assert [one.verdict for one in found.values()] == ["healthy", verdict]


def test_scales_of_one_codebook_and_scales_with_one_each():
    class Scales(nn.Module):
        def __init__(self, shared):
            super().__init__()
            self.encoder, options = (
                nn.Conv2d(1, 8, 2, 2),
                {"scales": [1, 2, 4], "accept_image_fmap": True, "kmeans_init": False},
            )
            self.vq = theirs.HierarchicalVQ(dim=8, codebook_size=16, shared_codebook=shared, **options)

        def forward(self, x):
            return self.vq(self.encoder(x))

    torch.manual_seed(0)
    x = normal(200, 1, 8, 8)
    started = Scales(shared=True)
    started(x)  # in training, where the library places its codes
    found = diagnose_model(started, x)
    assert list(found) == ["vq.vq", *(f"vq.vq[call {i}]" for i in range(3))]
    assert found["vq.vq"].evidence["codes in use"].compared_with.endswith("with 4,200 latents")
    assert any("of several calls in a pass" in note for note in found["vq.vq"].notes)
    started = Scales(shared=False)
    started(x)
    found = diagnose_model(started, x)
    assert list(found) == ["vq.vqs.0", "vq.vqs.1", "vq.vqs.2"]
    for later in "vq.vqs.1", "vq.vqs.2":  # codes what the first left: no encoder of its own
        assert any("depends on what 'vq.vqs.0' returned" in note for note in found[later].notes)
        assert any("diagnosis of 'vq.vqs.0' judges the encoder" in one.remedy for one in found[later].advice)
        assert "lost by the encoder" not in found[later].evidence


# ---------------------------------------------------------------- what the model itself tells


class Forgetful(VectorQuantizer):
    """Hands the decoder the bare code."""

    def estimate(self, latents, chosen):
        return chosen.detach()


def test_a_lost_gradient_comes_first():
    x = low_rank(600, 12)
    for kind, cut in (VectorQuantizer, False), (Forgetful, True):
        model = Linear(kind(32, 4), x)
        (found,) = diagnose_model(model, x).values()
        assert found.verdict == "healthy"
        assert bool(found.doubts) == cut and bool(found.advice) == cut
        assert str(found).startswith("First: no gradient passes") == cut
        assert not cut or "gradient" in found.advice[0].remedy
        assert all(one.grad is None for one in model.parameters())


class Farthest(VectorQuantizer):
    """Chooses by something else than distance."""

    def assign(self, latents, codes):
        return torch.cdist(latents, codes).argmax(-1)


def test_a_quantiser_that_chooses_otherwise_is_said_so():
    x = low_rank(600, 12)
    (found,) = diagnose_model(Linear(Farthest(32, 4), x), x).values()
    assert "otherwise than by distance" in found.doubts[0] and found.verdict == "cannot tell"


class Skipping(Linear):
    """A bottleneck that is not one: the decoder also sees the latents."""

    def quantized(self, latents, x):
        return (super().quantized(latents, x) + latents) / 2


def test_what_the_model_rebuilds_its_encoder_has_not_lost():
    """Of a model that sees its inputs through these codes alone."""
    x = low_rank(600, 12)
    for model, counts in (Linear, True), (Skipping, False), (lambda quantizer, x: ResidualTwo(x, 4), False):
        for found in diagnose_model(model(VectorQuantizer(32, 4), x), x).values():
            assert any("the model as a whole leaves" in note for note in found.notes) == counts


def test_labels_that_are_too_few():
    with pytest.raises(ValueError, match=r"need a label for each of 60 inputs, got \(50,\)"):
        diagnose_model(VectorQuantizer(4, 4), normal(60, 4), labels=torch.zeros(50, dtype=torch.int64))


# ---------------------------------------------------------------- a bounded sample


def test_a_sample_is_fair_and_the_same_however_it_is_batched():
    keys = np.random.default_rng(0).random(1000)
    drawn = []
    for size in 7, 100, 1000:
        sample = Sample(50)
        for start in range(0, 1000, size):
            part = torch.arange(start, min(start + size, 1000))
            sample.add(keys[part.numpy()], {"number": part, "twice": 2 * part[:, None]})
            assert len(sample.of("number")) == min(50, int(part[-1]) + 1)
        assert torch.equal(sample.of("twice")[:, 0], 2 * sample.of("number"))
        drawn.append(sorted(sample.of("number").tolist()))
    assert drawn[0] == drawn[1] == drawn[2] == sorted(np.argsort(keys)[:50].tolist())


def test_a_sample_of_rows_that_grow():
    sample = Sample(3)
    sample.add(np.array([0.5, 0.1]), {"x": torch.ones(2, 2)})
    sample.add(np.array([0.3, 0.2]), {"x": torch.full((2, 3), 2.0)})
    sample.add(np.array([0.15]), {"x": torch.full((1, 1), 3.0)})
    assert sorted(sample.of("x").tolist()) == [[1, 1, 0], [2, 2, 2], [3, 0, 0]]


def test_memory_is_bounded_and_uses_are_counted_over_all(monkeypatch):
    kept = []
    monkeypatch.setattr(records, "MOST_NUMBERS", 200 * 96)
    monkeypatch.setattr(records, "LEAST_PIECES", 100)
    monkeypatch.setattr(records, "AT_LEAST", 2000)
    observed = records.Record.observed

    def watched(record, inputs, labels, seed):
        seen = observed(record, inputs, labels, seed)
        kept.append((set(seen.inputs.inputs[:, 0].tolist()), len(seen.latents), seen.labels))
        assert torch.equal(seen.latents[:10], model.encoder(seen.inputs.inputs[:10]).detach())
        return seen

    monkeypatch.setattr(records.Record, "observed", watched)
    x = low_rank(6000, 96)
    model = Linear(VectorQuantizer(16, 4), x)
    model.forward = lambda x: model.vq(model.encoder(x)).latents_q  # no reconstruction
    y = (x[:, 0] > 0).long()
    (found,) = diagnose_model(model, ([x[i : i + 250], y[i : i + 250]] for i in range(0, 6000, 250))).values()
    ((inputs, latents, labels),) = kept
    assert len(inputs) == 200 and latents == 200 * 96 // 4 + 1 and len(labels) == latents
    assert "labels read off" in found.evidence
    counts = torch.bincount(model.vq(model.encoder(x)).index, minlength=16)
    assert torch.equal(found.drawing.counts, counts)
    assert found.evidence["codes in use"].compared_with.endswith("with 6,000 latents")
    diagnose_model(model, [(x[:2000], y[:2000]), (x[2000:], y[2000:])])
    assert kept[1][0] == inputs, "the sample depends on how the data are batched"
    diagnose_model(model, x, labels=y, seed=1)
    assert len(kept[2][0]) == 200 and kept[2][0] != inputs
