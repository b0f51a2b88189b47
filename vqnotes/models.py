"""Autoencoders with one capacity knob, `width`, and the model that puts a quantiser between the two halves."""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqnotes._threads import torch_threads_for
from vqnotes._workload import codes_compared, modes_kept, multiplications
from vqnotes.quantizers import Quantized

__all__ = [
    "FromPatches", "MixNeighbours", "Outcome", "ToPatches", "VQAutoencoder", "evaluate", "image_autoencoder",
    "latents_for_codes", "mlp", "mlp_autoencoder", "sample_latents"
]  # fmt: skip

LATENTS_PER_CODE = 32


class Outcome(NamedTuple):
    """A model's answer on a whole data set: latents (N, ..., D), index (N, ...), reconstruction like the input."""

    latents: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple has a method of that name
    reconstruction: Tensor


class VQAutoencoder(nn.Module):
    """Encoder, quantiser, decoder (arXiv:1711.00937). Latents are (N, ..., D) between them, channels last."""

    encoder: nn.Module
    quantizer: Any  # a module with the stages of `VectorQuantizer`, or its call alone
    decoder: nn.Module

    def __init__(self, encoder: nn.Module, quantizer: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder

    def encode(self, x: Tensor) -> Tensor:
        """x (N, ...) to latents (N, ..., D)."""
        return self.encoder(x)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents or codes (N, ..., D) to what x is rebuilt as, (N, ...)."""
        return self.decoder(latents)

    def forward(self, x: Tensor) -> tuple[Tensor, Quantized]:
        """x (N, ...) to its reconstruction (N, ...), from codes, and what the quantiser returned."""
        quantized = self.quantizer(self.encode(x))
        return self.decode(quantized.latents_q), quantized


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers of the given sizes: mlp(2, 64, 8) has one hidden layer of width 64.

    Leaky ReLU between them, so that a narrow net is limited by its width and not by units that died.
    Raises ValueError for fewer than two sizes, or one below 1.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"need at least two sizes, all positive, got {sizes}")
    layers = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.LeakyReLU(0.1), nn.Linear(before, after)]
    return nn.Sequential(*layers[1:])


def mlp_autoencoder(dim: int, quantizer: nn.Module, *, width: int = 64, decoder_width: int = 64) -> VQAutoencoder:
    """Autoencoder for vectors (N, dim): one latent each. width: hidden units of the encoder, its capacity.

    decoder_width: the same of the decoder. quantizer: a module that says in `dim` how many dimensions latents have.
    Raises ValueError for a size below 1.
    """
    latent_dim = cast(Any, quantizer.dim)  # a type checker takes what it does not find in nn.Module for a tensor
    return VQAutoencoder(
        mlp(dim, width, width, latent_dim), quantizer, mlp(latent_dim, decoder_width, decoder_width, dim)
    )


class ToPatches(nn.Module):
    """Images (N, C, H, W) in [0, 1] to patches (N, H/size, W/size, C * size^2) around 0.

    Raises ValueError for images of other axes, or whose sides are no multiples of size.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[-2] % self.size or images.shape[-1] % self.size:
            shape = tuple(images.shape)
            raise ValueError(f"need images (N, C, H, W), height and width multiples of {self.size}, got {shape}")
        return F.pixel_unshuffle(images - 0.5, self.size).permute(0, 2, 3, 1).contiguous()


class FromPatches(nn.Module):
    """The inverse of ToPatches: patches (N, h, w, C * size^2) to images (N, C, h * size, w * size)."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, patches: Tensor) -> Tensor:
        return F.pixel_shuffle(patches.permute(0, 3, 1, 2), self.size) + 0.5


class MixNeighbours(nn.Module):
    """A 3 x 3 convolution over a grid of vectors, channels last: (N, h, w, before) to (N, h, w, after)."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1)

    def forward(self, grid: Tensor) -> Tensor:
        return self.conv(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()


def image_autoencoder(
    channels: int, quantizer: nn.Module, *, patch: int = 4, width: int = 64, decoder_width: int = 64
) -> VQAutoencoder:
    """Autoencoder for images (N, channels, H, W) in [0, 1]: one latent a patch, a grid (N, H/patch, W/patch, D).

    The encoder sees one patch at a time; the decoder also looks at the eight neighbours of a latent, so that
    patches join. width: hidden units of the encoder, its capacity. decoder_width: the same of the decoder.
    quantizer: a module that says in `dim` how many dimensions latents have.
    Raises ValueError for a size below 1; the model does for images whose sides are no multiples of `patch`.
    """
    if min(patch, decoder_width) < 1:
        raise ValueError(f"patch and decoder_width must be positive, got {patch} and {decoder_width}")
    pixels, latent_dim = channels * patch**2, cast(Any, quantizer.dim)
    encoder = nn.Sequential(ToPatches(patch), mlp(pixels, width, width, latent_dim))
    decoder = nn.Sequential(
        MixNeighbours(latent_dim, decoder_width),
        nn.LeakyReLU(0.1),
        nn.Linear(decoder_width, pixels),
        FromPatches(patch),
    )
    return VQAutoencoder(encoder, quantizer, decoder)


# ---------------------------------------------------------------- a model's latents and answers


@torch.no_grad()
def sample_latents(model: VQAutoencoder, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` latents (count, D), as the encoder gives them now, or all that random inputs give if they are fewer.

    x: (N, ...). In evaluation mode: dropout is off, and no statistics of a batch are taken or kept.
    Of inputs that give many latents each, four times as many as needed are encoded, so that the choice is wide.
    """
    with modes_kept(model):
        model.eval()
        per_input = model.encode(x[:1])[..., 0].numel()
        inputs = count if per_input == 1 else 4 * count // per_input + 1
        some = x[torch.randperm(len(x), generator=generator)[:inputs].to(x.device)]
        latents = model.encode(some)
    latents = latents.reshape(-1, latents.shape[-1])
    return latents[torch.randperm(len(latents), generator=generator)[:count].to(x.device)]


def latents_for_codes(model: VQAutoencoder, x: Tensor, seed: int) -> Tensor:
    """A sample of the latents of x (N, ...) to start the codebook from, 32 a code or all there are, (count, D)."""
    wanted = LATENTS_PER_CODE * codes_compared(model.quantizer)
    return sample_latents(model, x, wanted, torch.Generator().manual_seed(seed))


@torch.no_grad()
def evaluate(model: VQAutoencoder, x: Tensor, batch_size: int = 1024) -> Outcome:
    """Latents, indices and reconstructions of all of x (N, ...), in evaluation mode and without gradients.

    On one thread if the work on a batch is small, see `_threads.is_small`.
    Raises ValueError for an empty x or batch_size < 1.
    """
    if x.numel() == 0 or x.ndim == 0 or batch_size < 1:
        raise ValueError(f"need inputs (N, ...) and batch_size >= 1, got {tuple(x.shape)} and {batch_size}")
    parts = []
    with modes_kept(model), torch_threads_for(multiplications(model, x, batch_size)):
        model.eval()
        for batch in x.split(batch_size):
            latents = model.encode(batch)
            quantized = model.quantizer(latents)
            parts.append(Outcome(latents, quantized.index, model.decode(quantized.latents_q)))
        return Outcome(*(torch.cat(part) for part in zip(*parts)))
