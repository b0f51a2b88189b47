"""Autoencoders with one capacity knob, `width`, and the model that puts a quantiser between the two halves."""

from torch import Tensor, nn

from vqnotes.quantizers import Quantized


class VQAutoencoder(nn.Module):
    """Encoder, quantiser, decoder. The encoder gives latents (..., D), channels last; the decoder takes them."""

    def __init__(self, encoder: nn.Module, quantizer: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)

    def forward(self, x: Tensor) -> tuple[Tensor, Quantized]:
        quantized = self.quantizer(self.encode(x))
        return self.decode(quantized.latents_q), quantized


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers of the given sizes with ReLU between them: mlp(2, 64, 8) has one hidden layer of width 64."""
    layers = []
    for before, after in zip(sizes, sizes[1:]):
        layers += [nn.ReLU(), nn.Linear(before, after)]
    return nn.Sequential(*layers[1:])


def mlp_autoencoder(dim: int, quantizer: nn.Module, *, width: int = 64, decoder_width: int = 64) -> VQAutoencoder:
    """Autoencoder for vectors (N, dim): one latent each. width: hidden units of the encoder, its capacity."""
    latent_dim = quantizer.dim
    return VQAutoencoder(
        mlp(dim, width, width, latent_dim), quantizer, mlp(latent_dim, decoder_width, decoder_width, dim)
    )


class Permute(nn.Module):
    """Reorders the axes: Permute(0, 2, 3, 1) turns (N, D, h, w) into channels-last (N, h, w, D)."""

    def __init__(self, *axes: int):
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


def conv_autoencoder(
    channels: int, quantizer: nn.Module, *, patch: int = 4, width: int = 64, decoder_width: int = 64
) -> VQAutoencoder:
    """Autoencoder for images (N, channels, H, W): one latent a patch, a grid (N, H/patch, W/patch, D).

    The encoder sees one patch at a time; the decoder also looks at the eight neighbours of a latent, so that
    patches join. H and W must be multiples of `patch`. width: channels of the encoder, its capacity.
    """
    encoder = nn.Sequential(
        nn.Conv2d(channels, width, patch, stride=patch),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
        nn.ReLU(),
        nn.Conv2d(width, quantizer.dim, 1),
        Permute(0, 2, 3, 1),
    )
    decoder = nn.Sequential(
        Permute(0, 3, 1, 2),
        nn.Conv2d(quantizer.dim, decoder_width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(decoder_width, decoder_width, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(decoder_width, channels, patch, stride=patch),
    )
    return VQAutoencoder(encoder, quantizer, decoder)
