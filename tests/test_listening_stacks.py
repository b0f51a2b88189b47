"""Found by watching: several codebooks one after another or side by side, in no module, and what is no quantiser."""

import pytest
import torch
import torch.nn.functional as F
from helpers import normal
from test_listening_found import DIM, SIZE, Around, crowded, inputs, placed
from torch import nn

from vqnotes.diagnosis import diagnose_model
from vqnotes.diagnosis.listening import Listener
from vqnotes.diagnosis.listening.calls import TEN_LINES

LEVELS = 3


def nearest(flat, codes):
    far = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ codes.t() + codes.pow(2).sum(1)
    return far.argmin(1)


class Stage(nn.Module):
    """A level as recommenders with semantic ids have it: called with what the one before left."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(SIZE, DIM)

    def forward(self, x):
        index = nearest(x.reshape(-1, DIM), self.embedding.weight)
        q = self.embedding(index).view(x.shape)
        loss = F.mse_loss(q, x.detach()) + 0.25 * F.mse_loss(q.detach(), x)
        return x + (q - x).detach(), loss, index.view(x.shape[:-1])

    def codes(self):
        return self.embedding.weight.data


class Residual(nn.Module):
    """Levels in a list."""

    layout = "last"

    def __init__(self, stage=Stage):
        super().__init__()
        self.vq_layers = nn.ModuleList(stage() for _ in range(LEVELS))

    def forward(self, x):
        left, total, losses, ids = x, 0, [], []
        for stage in self.vq_layers:
            q, loss, index = stage(left)
            left, total = left - q, total + q
            losses.append(loss), ids.append(index)
        return total, torch.stack(losses).mean(), torch.stack(ids, -1)


class Codebook(nn.Module):
    """As in Encodec: nothing is called but methods; twice the latents meet the table; a flag says it is placed."""

    def __init__(self):
        super().__init__()
        self.register_buffer("inited", torch.Tensor([True]))
        self.register_buffer("embed", torch.zeros(SIZE, DIM))
        self.register_buffer("cluster_size", torch.zeros(SIZE))

    def encode(self, x):
        flat = x.permute(0, 2, 1).reshape(-1, DIM)
        embed = self.embed.t()
        dist = -(flat.pow(2).sum(1, keepdim=True) - 2 * flat @ embed + embed.pow(2).sum(0, keepdim=True))
        return dist.max(dim=-1).indices.view(len(x), -1)

    def decode(self, index):
        return F.embedding(index, self.embed).permute(0, 2, 1)

    def codes(self):
        return self.embed


class Encoded(nn.Module):
    """Encodes with all levels, and decodes the indices again."""

    layout = "first"

    def __init__(self):
        super().__init__()
        self.vq_layers = nn.ModuleList(Codebook() for _ in range(LEVELS))

    def forward(self, x):
        left, ids = x, []
        for level in self.vq_layers:
            index = level.encode(left)
            left = left - level.decode(index)
            ids.append(index)
        return sum(level.decode(index) for level, index in zip(self.vq_layers, torch.stack(ids)))


class Cut(nn.Module):
    """Codes of all levels in one parameter, and a loop without modules."""

    layout = "last"

    def __init__(self):
        super().__init__()
        self.tables = nn.Parameter(torch.zeros(LEVELS, SIZE, DIM))

    def forward(self, x):
        total = torch.zeros_like(x)
        for codes in self.tables:
            left = (x - total).flatten(0, 1)
            total = total + codes[torch.cdist(left, codes).argmin(-1)].view(x.shape)
        return x + (total - x).detach()


def tables_of(vq):
    return list(vq.tables.data) if isinstance(vq, Cut) else [one.codes() for one in vq.vq_layers]


def stack_of(kind, ill=None):
    """A model around a stack whose levels are placed by k-means, but for one whose codes crowd."""
    torch.manual_seed(0)
    model = Around(kind(), kind.layout)
    left = model.encoder(inputs()).detach().reshape(-1, DIM)
    for number, table in enumerate(tables_of(model.vq)):
        table.copy_(placed(left))
        spoilt, left = crowded(left), left - table[nearest(left, table)]
        if number == ill:  # those behind it stay as they are
            table.copy_(spoilt)
    return model


NAMES = {
    Residual: ["vq", *(f"vq.vq_layers.{i}" for i in range(LEVELS))],
    Encoded: ["vq", *(f"vq.vq_layers.{i}" for i in range(LEVELS))],
    Cut: ["vq", *(f"vq.tables[{i}]" for i in range(LEVELS))],
}


@pytest.mark.parametrize("kind", NAMES)
def test_levels_one_after_another_are_a_stack(kind):
    found = diagnose_model(stack_of(kind), inputs())
    assert list(found) == NAMES[kind]
    assert {one.verdict for one in found.values()} == {"healthy"}
    assert "lost by the encoder" in found["vq"].evidence
    ill = diagnose_model(stack_of(kind, ill=1), inputs())
    whole, first, second, _ = ill.values()
    assert second.verdict == "token collapse" and first.verdict == "healthy" and "token" in whole.verdict


class Narrow(nn.Module):
    """A level as in DAC: projected to fewer dimensions, compared in direction, and projected back."""

    def __init__(self, narrow=3):
        super().__init__()
        self.in_proj, self.out_proj = nn.Conv1d(DIM, narrow, 1), nn.Conv1d(narrow, DIM, 1)
        self.codebook, self.narrow = nn.Embedding(SIZE, narrow), narrow

    def forward(self, x):
        inner = self.in_proj(x)
        flat, codes = inner.permute(0, 2, 1).reshape(-1, self.narrow), self.codebook.weight
        flat, codes = F.normalize(flat), F.normalize(codes)
        dist = -(flat.pow(2).sum(1, keepdim=True) - 2 * flat @ codes.t()) + codes.pow(2).sum(1, keepdim=True).t()
        index = dist.max(1)[1].view(len(x), -1)
        q = self.codebook(index).transpose(1, 2)
        return self.out_proj(inner + (q - inner).detach()), F.mse_loss(q, inner), index


class NarrowResidual(Residual):
    layout = "first"

    def __init__(self):
        super().__init__(Narrow)


def narrow_stack(ill=None):
    torch.manual_seed(0)
    model = Around(NarrowResidual(), "first").eval()
    with torch.no_grad():
        left = model.laid_out(model.encoder(inputs()))
        for number, level in enumerate(model.vq.vq_layers):
            inner = F.normalize(level.in_proj(left).movedim(1, -1).reshape(-1, 3))
            level.codebook.weight.copy_(crowded(inner) if number == ill else 5 * placed(inner))
            left = left - level(left)[0]
    return model


def test_projected_levels_are_a_stack_and_compared_in_direction():
    model = narrow_stack()
    found = diagnose_model(model, inputs())
    assert list(found) == NAMES[Residual]
    assert [one.verdict for one in found.values()][1:] == ["healthy"] * LEVELS
    assert all("both taken at length 1" in note for note in found["vq"].notes if note.startswith("found by"))
    ill = diagnose_model(narrow_stack(ill=0), inputs())
    assert ill["vq.vq_layers.0"].verdict == "token collapse" and ill["vq.vq_layers.2"].verdict == "healthy"
    assert ill["vq"].verdict != "healthy"
    listener = Listener(model)
    with torch.no_grad(), listener.listening():
        listener(x := inputs())
        first = model.vq.vq_layers[0].in_proj(model.laid_out(model.encoder(x)))
    assert len(listener.calls) == LEVELS
    assert torch.allclose(listener.calls[0].latents[0], F.normalize(first, dim=1).movedim(1, -1), atol=1e-5)


class Inline(nn.Module):
    """Two tables in the model itself, on two vectors: no module quantises."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 8), nn.Linear(8, 8)
        self.top, self.bottom = nn.Parameter(torch.zeros(SIZE, DIM)), nn.Embedding(SIZE, DIM)

    def quantised(self, part, codes):
        index = torch.cdist(part, codes).argmin(1)
        return part + (codes[index] - part).detach()

    def forward(self, x):
        first, second = self.encoder(x).chunk(2, dim=1)
        both = self.quantised(first, self.top), self.quantised(second, self.bottom.weight)
        return self.decoder(torch.cat(both, 1))


@pytest.mark.parametrize("ill", [None, "top", "bottom"])
def test_parts_in_a_model_itself_are_one_unit(ill):
    torch.manual_seed(0)
    model, x = Inline(), normal(3000, 8)
    first, second = model.encoder(x).detach().chunk(2, dim=1)
    model.top.data.copy_(placed(first))
    model.bottom.weight.data.copy_(placed(second))
    if ill is not None:  # two of its codes are in reach; crowded ones would still tell directions
        model.get_parameter("top" if ill == "top" else "bottom.weight").data[2:] += 100
    found = diagnose_model(model, x)
    assert list(found) == ["Inline", "top", "bottom"]
    for name in ("top", "bottom"):
        assert found[name].verdict == ("token collapse" if ill == name else "healthy")
    assert ("collapse" in found["Inline"].verdict) == (ill is not None)


class Product(nn.Module):
    """Pieces of the channels of maps, each with a table of its own, in the model itself."""

    def __init__(self):
        super().__init__()
        self.encoder, self.tables = nn.Conv2d(3, 2 * DIM, 2, 2), nn.Parameter(torch.zeros(2, SIZE, DIM))

    def forward(self, x):
        parts = []
        for part, codes in zip(self.encoder(x).chunk(2, dim=1), self.tables):
            index = nearest(part.permute(0, 2, 3, 1).reshape(-1, DIM), codes)
            parts.append(codes[index].view(len(x), *part.shape[2:], DIM).permute(0, 3, 1, 2))
        return torch.cat(parts, dim=1)


def test_pieces_of_maps_in_a_model_itself_are_one_unit():
    torch.manual_seed(0)
    model, x = Product(), normal(200, 3, 8, 12)
    for number, part in enumerate(model.encoder(x).detach().movedim(1, -1).reshape(-1, 2 * DIM).chunk(2, dim=1)):
        model.tables.data[number] = crowded(part) if number else placed(part)
    found = diagnose_model(model, x)
    assert list(found) == ["Product", "tables[0]", "tables[1]"]
    assert [found[f"tables[{i}]"].verdict for i in (0, 1)] == ["healthy", "token collapse"]
    listener = Listener(model.eval())
    with torch.no_grad(), listener.listening():
        listener(x)
    assert [call.latents.shape for call in listener.calls] == [(1, 200, 4, 6, DIM)] * 2


class Scales(nn.Module):
    """As in VAR: one table, what is left at growing scales."""

    def __init__(self):
        super().__init__()
        self.encoder, self.embedding = nn.Conv2d(1, DIM, 2, 2), nn.Embedding(SIZE, DIM)

    def forward(self, x):
        left = self.encoder(x)
        total = torch.zeros_like(left)
        for side in (1, 2, 4):
            small = F.interpolate(left, size=(side, side), mode="area")
            flat = small.permute(0, 2, 3, 1).reshape(-1, DIM)
            index = nearest(flat, self.embedding.weight).view(len(x), side, side)
            back = F.interpolate(self.embedding(index).permute(0, 3, 1, 2), size=left.shape[-2:], mode="nearest")
            total, left = total + back, left - back
        return total


def test_scales_of_one_table_are_judged_together():
    torch.manual_seed(0)
    model, x = Scales(), normal(300, 1, 8, 8)
    for place, verdict in (placed, "healthy"), (crowded, "token collapse"):
        for _ in range(5):  # what is left depends on the codes
            listener = Listener(model)
            with torch.no_grad(), listener.listening():
                listener(x)
            assert [len(call.latents.flatten(0, -2)) for call in listener.calls] == [300, 1200, 4800]
            latents = torch.cat([call.latents.reshape(-1, DIM) for call in listener.calls])
            model.embedding.weight.data.copy_(place(latents))
        found, *each = diagnose_model(model, x).values()
        assert len(each) == 3
        assert any("of several calls in a pass" in note for note in found.notes)
        assert found.evidence["codes in use"].compared_with.endswith(f"with {300 * 21:,} latents")
        assert ("token" in found.verdict) == (verdict != "healthy")


# ---------------------------------------------------------------- what is no quantiser


class Tokens(nn.Module):
    """Embeds tokens and places of a sentence; with a quantiser, or without."""

    def __init__(self, quantised):
        super().__init__()
        self.words, self.places = nn.Embedding(50, DIM), nn.Embedding(10, DIM)
        self.mix, self.vq = nn.Linear(DIM, DIM), Stage() if quantised else nn.Identity()

    def forward(self, ids):
        hidden = self.mix(self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device)))
        return self.vq(hidden)


def test_rows_by_indices_that_the_batch_brings_are_no_codes():
    ids = torch.randint(50, (400, 10), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"rows of words.weight \(50, 4\) come out by indices that the batch brings"):
        diagnose_model(Tokens(False), ids)
    model = Tokens(True)
    model.vq.codes().copy_(
        placed(model.mix(model.words(ids) + model.places(torch.arange(10))).detach().flatten(0, 1))
    )
    assert list(diagnose_model(model, ids)) == ["vq"]


class Gumbel(nn.Module):
    """Nothing is compared with the table: a network says which row."""

    def __init__(self):
        super().__init__()
        self.to_logits, self.embed = nn.Linear(DIM, SIZE), nn.Embedding(SIZE, DIM)

    def forward(self, x):
        return F.gumbel_softmax(self.to_logits(x), hard=True).detach().round() @ self.embed.weight


class Beam(Stage):
    """Two codes a latent."""

    def forward(self, x):
        index = torch.cdist(x.flatten(0, 1), self.embedding.weight).topk(2, largest=False).indices
        return self.embedding(index).mean(1).view(x.shape)


class Again(Stage):
    """Compares its latents a second time, for a loss, and decodes its indices a second time."""

    def forward(self, x):
        q, loss, index = super().forward(x)
        sure = (-torch.cdist(x.flatten(0, 1), self.embedding.weight)).softmax(-1)
        return q, loss - (sure * sure.log()).sum(-1).mean(), index, self.embedding(index)


def test_what_is_compared_and_decoded_again_is_one_call():
    torch.manual_seed(0)
    model = Around(Again(), "last")
    model.vq.codes().copy_(placed(model.encoder(inputs()).detach().flatten(0, 1)))
    listener = Listener(model.eval())
    with torch.no_grad(), listener.listening():
        listener(inputs())
    assert len(listener.calls) == 1
    (found,) = diagnose_model(model, inputs()).values()
    assert found.verdict == "healthy" and "lost by the encoder" in found.evidence


class Late(Stage):
    """Places its codes at the first batch, in evaluation too, and has no flag that says so."""

    def __init__(self):
        super().__init__()
        self.placed = False

    def forward(self, x):
        if not self.placed:
            self.embedding.weight.data.copy_(x.flatten(0, 1)[:SIZE])
        return super().forward(x)


def test_found_codes_are_left_as_they_were():
    torch.manual_seed(0)
    model = Around(Late(), "last")
    before = {name: one.clone() for name, one in model.state_dict().items()}
    diagnose_model(model, inputs())
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


@pytest.mark.parametrize("kind, table", [(Gumbel, "vq.embed.weight"), (Beam, "vq.embedding.weight")])
def test_what_is_not_understood_is_refused_with_what_was_found_and_the_ten_lines(kind, table):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="no quantiser found in Around: none of those that are known") as said:
        diagnose_model(Around(kind(), "last"), inputs())
    assert f"rows of {table} ({SIZE}, {DIM}) come out by indices that the inputs decide, but" in str(said.value)
    assert TEN_LINES in str(said.value)


# ---------------------------------------------------------------- what the model itself tells


class Bare(Stage):
    """Hands on the code without the latent: no gradient passes."""

    def forward(self, x):
        q, *others = super().forward(x)
        return q.detach(), *others


class Skipping(Around):
    def quantized(self, latents):
        return (super().quantized(latents) + latents) / 2


def test_gradients_and_skips_of_found_quantisers_are_noticed():
    for build, cut, counts in [
        (lambda: Around(Stage(), "last"), False, True),
        (lambda: Around(Bare(), "last"), True, True),
        (lambda: Skipping(Stage(), "last"), False, False),
    ]:
        torch.manual_seed(0)
        model = build()
        model.vq.codes().copy_(placed(model.encoder(inputs()).detach().reshape(-1, DIM)))
        (found,) = diagnose_model(model, inputs()).values()
        assert any("no gradient passes" in doubt for doubt in found.doubts) == cut
        assert any("the model as a whole leaves" in note for note in found.notes) == counts


def test_codes_that_are_not_placed_yet_are_not_judged():
    model = stack_of(Encoded)
    model.vq.vq_layers[1].inited.zero_()
    found = diagnose_model(model, inputs())
    assert not any(one.started for one in found.values())
    assert found["vq"].reason.startswith("The codes of vq.vq_layers.1")
