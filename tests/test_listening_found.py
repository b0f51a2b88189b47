"""Quantisers as people write them, which no file knows, are found by watching: healthy ones and ill ones."""

import pytest
import torch
import torch.nn.functional as F
from helpers import normal
from torch import nn

from vqnotes.diagnosis import diagnose_model
from vqnotes.diagnosis.listening import Listener
from vqnotes.kmeans import kmeans

SIZE, DIM, SIDE, CHANNELS = 32, 4, 4, 12


def inputs(count=300, seed=0):
    """(N, 16, 12), each place of which four numbers determine but for a little noise."""
    mixed = normal(count, SIDE**2, DIM, seed=seed) @ normal(DIM, CHANNELS, seed=99)
    return mixed + 0.05 * normal(count, SIDE**2, CHANNELS, seed=seed + 1)


class Around(nn.Module):
    """A linear autoencoder of each place, with a quantiser of its latents between, which are laid out as it wants."""

    def __init__(self, vq, layout):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(CHANNELS, DIM), nn.Linear(DIM, CHANNELS)
        self.vq, self.layout = vq, layout
        rows = inputs().reshape(-1, CHANNELS)
        axes = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:DIM]
        with torch.no_grad():
            self.encoder.weight.copy_(axes), self.encoder.bias.zero_()
            self.decoder.weight.copy_(axes.T), self.decoder.bias.zero_()

    def forward(self, x):
        return self.decoder(self.back(self.quantized(self.laid_out(self.encoder(x)))))

    def quantized(self, latents):
        out = self.vq(latents)
        return out if isinstance(out, torch.Tensor) else out[0]

    def laid_out(self, latents):
        return latents if self.layout == "last" else latents.movedim(-1, 1)

    def back(self, latents):
        return latents if self.layout == "last" else latents.movedim(1, -1)


def crowded(latents, size=SIZE):
    return latents[:1] + 0.02 * normal(size, latents.shape[1], seed=5)


def placed(latents, size=SIZE):
    return kmeans(latents, size)[0]


# ---------------------------------------------------------------- one codebook


class Maps(nn.Module):
    """As in VQGAN: (N, D, H, W), an nn.Embedding, squares of distances written out."""

    layout = "maps"

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(SIZE, DIM)

    def forward(self, z):
        z = z.permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, DIM)
        weight = self.embedding.weight
        far = (flat**2).sum(1, keepdim=True) + (weight**2).sum(1) - 2 * torch.einsum("bd,dn->bn", flat, weight.t())
        index = far.argmin(1)
        q = self.embedding(index).view(z.shape)
        loss = (q.detach() - z).pow(2).mean() + 0.25 * (q - z.detach()).pow(2).mean()
        q = z + (q - z).detach()
        return q.permute(0, 3, 1, 2).contiguous(), loss, (None, None, index)

    def place(self, codes):
        self.embedding.weight.data.copy_(codes)


class Directions(Maps):
    """As in LlamaGen: latents and codes are brought to length 1, and rows of the latter come out."""

    by_direction = True

    def forward(self, z):
        z = torch.einsum("b c h w -> b h w c", z).contiguous()
        flat = F.normalize(z.view(-1, DIM), p=2, dim=-1)
        z, codes = F.normalize(z, p=2, dim=-1), F.normalize(self.embedding.weight, p=2, dim=-1)
        far = (flat**2).sum(1, keepdim=True) + (codes**2).sum(1) - 2 * flat @ codes.t()
        index = torch.argmin(far, dim=1)
        q = z + (codes[index].view(z.shape) - z).detach()
        return torch.einsum("b h w c -> b c h w", q), index


class Likeness(Maps):
    """Takes the code of the highest cosine similarity, as it is."""

    layout, by_direction = "last", True

    def forward(self, z):
        index = F.cosine_similarity(z.unsqueeze(2), self.embedding.weight, dim=-1).argmax(-1)
        return self.embedding(index)


class Counted(nn.Module):
    """As in notebooks: one-hot rows times the table, which is a buffer of moving averages."""

    layout = "maps"

    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.zeros(SIZE, DIM))
        self.register_buffer("cluster_size", torch.zeros(SIZE))

    def forward(self, z):
        z = z.permute(0, 2, 3, 1)
        flat = z.reshape(-1, DIM)
        index = torch.cdist(flat, self.codes).argmin(1).unsqueeze(1)
        chosen = torch.zeros(len(index), SIZE).scatter_(1, index, 1)
        q = torch.matmul(chosen, self.codes).view(z.shape)
        used = chosen.mean(0)
        return (z + (q - z).detach()).permute(0, 3, 1, 2), torch.exp(-(used * (used + 1e-10).log()).sum())

    def place(self, codes):
        self.codes.copy_(codes)


class Turned(nn.Module):
    """A buffer (D, K), looked up by F.embedding; the indices stand in the shape of the places."""

    layout = "last"

    def __init__(self):
        super().__init__()
        self.register_buffer("embed", torch.zeros(DIM, SIZE))

    def forward(self, z):
        flat = z.reshape(-1, DIM)
        dist = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ self.embed + self.embed.pow(2).sum(0, keepdim=True)
        index = (-dist).max(1)[1].view(*z.shape[:-1])
        q = F.embedding(index, self.embed.transpose(0, 1))
        return z + (q - z).detach(), (q.detach() - z).pow(2).mean(), index

    def place(self, codes):
        self.embed.copy_(codes.T)


class Gathered(nn.Module):
    """A table (1, K, D), repeated for each example, compared by cdist and read by gather."""

    layout = "last"

    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(1, SIZE, DIM))

    def forward(self, z):
        codes = self.codes.expand(len(z), -1, -1)
        index = torch.cdist(z, codes).argmin(-1)
        q = codes.gather(1, index[..., None].expand(-1, -1, DIM))
        return z + (q - z).detach()

    def place(self, codes):
        self.codes.data.copy_(codes[None])


class Differences(nn.Module):
    """All differences, channels first, and rows taken by an index."""

    layout = "first"

    def __init__(self):
        super().__init__()
        self.codebook = nn.Parameter(torch.zeros(SIZE, DIM))

    def forward(self, z):
        far = (z.movedim(1, 2)[:, :, None] - self.codebook).square().sum(-1)
        q = self.codebook[far.min(-1).indices].movedim(2, 1)
        return {"quantized": z + (q - z).detach(), "loss": 0.0}["quantized"]

    def place(self, codes):
        self.codebook.data.copy_(codes)


class Computed(nn.Module):
    """As in Mimi: codes are sums over counts, kept when they are first needed."""

    layout = "last"

    def __init__(self):
        super().__init__()
        self.register_buffer("embed_sum", torch.zeros(SIZE, DIM))
        self.register_buffer("cluster_usage", torch.full((SIZE,), 3.0))
        self._embed = None

    @property
    def embed(self):
        if self._embed is None:
            self._embed = self.embed_sum / self.cluster_usage.clamp(min=1e-5)[:, None]
        return self._embed

    def forward(self, z):
        flat = z.reshape(-1, DIM)
        index = torch.cdist(flat[None], self.embed[None], p=2)[0].argmin(-1)
        return F.embedding(index.view(z.shape[:-1]), self.embed)

    def place(self, codes):
        self.embed_sum.copy_(3 * codes)
        self._embed = None


class Mapped(nn.Module):
    """As in SimVQ: a learnt map of a frozen table."""

    layout = "last"

    def __init__(self):
        super().__init__()
        self.frozen, self.proj = nn.Embedding(SIZE, DIM), nn.Linear(DIM, DIM, bias=False)
        self.frozen.weight.requires_grad_(False)

    def forward(self, z):
        codes = self.proj(self.frozen.weight)
        index = torch.cdist(z.flatten(0, 1), codes).argmin(1)
        q = codes[index].view(z.shape)
        return z + (q - z).detach()

    def place(self, codes):
        self.frozen.weight.data.copy_(codes @ torch.linalg.inv(self.proj.weight.T))


class ByNumPy(Maps):
    """Searches outside of torch."""

    layout = "last"

    def forward(self, z):
        flat, codes = z.detach().reshape(-1, DIM).numpy(), self.embedding.weight.detach().numpy()
        far = ((flat[:, None] - codes[None]) ** 2).sum(-1)
        q = self.embedding(torch.from_numpy(far.argmin(1))).view(z.shape)
        return z + (q - z).detach()


ONE = [Maps, Directions, Likeness, Counted, Turned, Gathered, Differences, Computed, Mapped, ByNumPy]


def model_of(kind, place):
    """A model around a quantiser of this kind whose codes are placed on its latents."""
    torch.manual_seed(0)
    model = Around(kind(), kind.layout)
    latents = model.encoder(inputs()).detach().reshape(-1, DIM)
    if getattr(kind, "by_direction", False):
        latents = F.normalize(latents, dim=-1)
    model.vq.place(place(latents))
    return model, latents


def inputs_of(kind):
    return inputs().unflatten(1, (SIDE, SIDE)) if kind.layout == "maps" else inputs()


@pytest.mark.parametrize("kind", ONE)
def test_a_quantiser_that_no_file_knows_is_found_and_judged(kind):
    model, _ = model_of(kind, placed)
    found = diagnose_model(model, inputs_of(kind))
    assert list(found) == ["vq"]
    assert found["vq"].verdict == "healthy"
    (said,) = [note for note in found["vq"].notes if note.startswith("found by watching")]
    assert f"({SIZE}, {DIM}) come out" in said and "100% of the indices are the code that is nearest" in said
    ill, _ = model_of(kind, crowded)
    found = diagnose_model(ill, inputs_of(kind))["vq"]
    assert "token" in found.verdict
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ONE)
def test_latents_and_codes_are_those_that_are_compared(kind):
    model, latents = model_of(kind, placed)
    listener, x = Listener(model.eval()), inputs_of(kind)
    with torch.no_grad(), listener.listening():
        listener(x)
        listener(x)
    (call,) = listener.calls
    places = (len(x), SIDE, SIDE) if kind.layout == "maps" else (len(x), SIDE**2)
    assert call.latents.shape == (1, *places, DIM) and call.index.shape == (1, *places)
    assert torch.allclose(call.latents.reshape(-1, DIM), latents, atol=1e-5)
    codes = call.codes[0].double()
    far = latents.double().square().sum(1, keepdim=True) - 2 * latents.double() @ codes.T + codes.square().sum(1)
    nearest = far.argmin(1)
    assert (nearest == call.index.flatten()).double().mean() > 0.999
