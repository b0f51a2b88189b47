"""The families of models that `diagnose` is judged by: what their inputs are, and what their encoders are made of.

A family is left out as a whole when the others set the thresholds, so what shares its inputs is one family.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqnotes import data, models
from vqnotes._downloads import DEBIAN_FASHION_MNIST, FASHION_MNIST

__all__ = ["BEDS", "Bed", "at_hand", "wide_view"]

HIDDEN = 64  # units of an encoder that is wide enough
SLOW = 1e-3  # standard deviation of the first weights of a net that learns slowly


@dataclass(frozen=True)
class Bed:
    """Inputs, and autoencoders for them.

    family: what is left out together. inputs: called with how many are wanted, and a seed; returns (n, ...), perhaps
    fewer. autoencoder: called with a quantiser and the width of the encoder. places: latents of an input.
    sizes: of the codebooks, K. few: those of a rate limit. large: those that only the few cases of `cases.CORE` get.
    slow: linear nets that start near 0, whose encoder has one width.
    plan: options of `fit`.
    """

    family: str
    inputs: Callable[[int, int], Tensor]
    autoencoder: Callable[[nn.Module, int], models.VQAutoencoder]
    places: int = 1
    sizes: tuple[int, ...] = (64, 1024)
    few: tuple[int, ...] = (2, 4)
    large: tuple[int, ...] = ()
    dim: int = 8
    slow: bool = False
    plan: dict[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------- inputs


def _modes(count: int, seed: int) -> Tensor:
    return data.gaussian_modes(modes=32, per_mode=-(-count // 32), dim=16, seed=seed).x[:count]


def _rings(count: int, seed: int) -> Tensor:
    return data.rings(16, -(-count // 16), 8, seed).x[:count]


def _plane(count: int, seed: int) -> Tensor:
    """Modes that lie in a plane of 8 dimensions: two dimensions are all there is."""
    x = data.gaussian_modes(modes=16, per_mode=-(-count // 16), dim=2, seed=seed).x[:count]
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((8, 8))).Q[:2]
    return x @ torch.from_numpy(2 * turn).float()


def _normal(count: int, seed: int) -> Tensor:
    """Normal inputs (count, 32) whose variances fall from 1 to 1/1000, as in notebook 06."""
    scale = torch.from_numpy(np.geomspace(1, 1e-3, 32) ** 0.5).float()
    return scale * torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


def _normal_images(count: int, seed: int) -> Tensor:
    """Images (count, 1, 16, 16) of patches of 4 x 4 normal pixels, whose principal variances fall from 1 to 1/100."""
    generator = torch.Generator().manual_seed(seed)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16))).Q
    scale = np.geomspace(1, 1e-2, 16) ** 0.5
    patches = torch.randn(count, 4, 4, 16, generator=generator) @ torch.from_numpy(scale[:, None] * turn).float()
    return models.FromPatches(4)(patches)


def _shuffled(x: Tensor, count: int, seed: int) -> Tensor:
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count]]


def _digits(count: int, seed: int) -> Tensor:
    return _shuffled(data.digit_vectors().x, count, seed)


def _digit_images(count: int, seed: int) -> Tensor:
    return _shuffled(data.digits().x, count, seed)


@lru_cache(1)
def _clothes() -> Tensor:
    return data.fashion_mnist("test").x


def _fashion(count: int, seed: int) -> Tensor:
    return _shuffled(_clothes(), count, seed)


def _photographs(count: int, seed: int) -> Tensor:
    return data.random_crops(data.photographs(), count, 32, seed=seed)


def _text(count: int, seed: int) -> Tensor:
    """Windows (count, 16, 12) of the text that Python's `help` prints: pairs of signs, each as 6 random numbers."""
    from pydoc_data.topics import topics

    signs = np.frombuffer(" ".join(topics.values()).lower().encode("ascii", "replace"), dtype=np.uint8)
    meaning = np.random.default_rng(0).standard_normal((256, 6))
    starts = np.random.default_rng(seed).integers(len(signs) - 32, size=count)
    windows = signs[starts[:, None] + np.arange(32)]
    return torch.from_numpy(meaning[windows]).float().reshape(count, 16, 12)


def _signals(count: int, seed: int) -> Tensor:
    """Spectrograms (count, 16, 33) of two chirps each, in noise: amplitudes, centred and of variance 1."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(17 * 32) / 64
    start, slope, loud = torch.rand(3, count, 2, 1, generator=generator)
    phase = 2 * torch.pi * ((2 + 20 * start) * time + (slope - 0.5) * time.square())
    wave = (loud * torch.sin(phase)).sum(1) + 0.05 * torch.randn(count, len(time), generator=generator)
    found = torch.stft(wave, 64, 32, window=torch.hann_window(64), return_complex=True).abs()[..., :16]
    found = (1 + found).log().transpose(1, 2)
    return (found - found.mean()) / found.std()


def _items(count: int, seed: int) -> Tensor:
    """Items (count, 32) in 12 groups of 12 kinds each: a centre for the group, one for the kind, and their own."""
    rng = np.random.default_rng(seed)
    group, kind = rng.integers(12, size=(2, count))
    groups, kinds = rng.standard_normal((12, 32)), 0.5 * rng.standard_normal((12, 12, 32))
    x = groups[group] + kinds[group, kind] + 0.25 * rng.standard_normal((count, 32))
    return torch.from_numpy((x - x.mean()) / x.std()).float()


def at_hand(family: str) -> bool:
    """Whether a family's inputs are on this machine: Fashion-MNIST's are files, which are not downloaded here."""
    if family != "Fashion-MNIST":
        return True
    name = FASHION_MNIST["test", "x"].name
    folders = [DEBIAN_FASHION_MNIST, *(Path(own) for own in [os.environ.get("VQNOTES_DATA")] if own)]
    return any((folder / one).exists() for folder in folders for one in (name, name.removesuffix(".gz")))


# ---------------------------------------------------------------- autoencoders


def _vectors(size: int, quantizer: nn.Module, width: int) -> models.VQAutoencoder:
    """For vectors (n, size), or places of them (n, places, size), each by itself."""
    return models.mlp_autoencoder(size, quantizer, width=width)


def _images(channels: int, patch: int, quantizer: nn.Module, width: int) -> models.VQAutoencoder:
    return models.image_autoencoder(channels, quantizer, patch=patch, width=width)


def _wide_view(quantizer: Any, width: int) -> models.VQAutoencoder:
    model = _images(3, 4, quantizer, width)
    model.encoder = wide_view(width, quantizer.dim)
    return model


def wide_view(width: int, dim: int) -> nn.Sequential:
    """An encoder like those of large image models: a latent sees 5 x 5 patches of 4 x 4 pixels, not its own alone.

    Images (N, 3, H, W) to latents (N, H/4, W/4, dim).
    """
    layers = [models.ToPatches(4), models.MixNeighbours(48, width), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers, models.MixNeighbours(width, width), nn.LeakyReLU(0.1), nn.Linear(width, dim))


def _linear(quantizer: Any, width: int) -> models.VQAutoencoder:
    """As in notebook 06: a linear autoencoder that starts near 0. It has no hidden units."""
    encoder, decoder = (nn.Linear(a, b, bias=False) for a, b in ((32, quantizer.dim), (quantizer.dim, 32)))
    for half in (encoder, decoder):
        nn.init.normal_(half.weight, std=SLOW)
    return models.VQAutoencoder(encoder, quantizer, decoder)


def _convolution(quantizer: Any, width: int) -> models.VQAutoencoder:
    """One convolution that starts near 0, from patches to latents, and one back."""
    encoder, decoder = models.MixNeighbours(16, quantizer.dim), models.MixNeighbours(quantizer.dim, 16)
    for half in (encoder, decoder):
        nn.init.normal_(half.conv.weight, std=SLOW)
    return models.VQAutoencoder(
        nn.Sequential(models.ToPatches(4), encoder), quantizer, nn.Sequential(decoder, models.FromPatches(4))
    )


# ---------------------------------------------------------------- beds

POINTS: dict[str, Any] = {"batch_size": 128, "lr": 5e-3, "steps": 240}
PICTURES: dict[str, Any] = {"batch_size": 8, "lr": 3e-3, "steps": 240}
PLACES = PICTURES | {"batch_size": 32}  # of 16 each
RISING: dict[str, Any] = {"batch_size": 128, "lr": 0.375, "steps": 480, "optimizer": torch.optim.SGD}
RISING_PICTURES = RISING | {"batch_size": 16}

BEDS: dict[str, Bed] = {
    "modes": Bed("modes", _modes, partial(_vectors, 16), plan=POINTS, large=(4096,)),
    "plane": Bed("modes", _plane, partial(_vectors, 8), plan=POINTS, few=(2,)),
    "rings": Bed("rings", _rings, partial(_vectors, 8), sizes=(128, 1024), plan=POINTS),
    "Gaussian": Bed("Gaussian", _normal, partial(_vectors, 32), few=(4, 16), plan=POINTS),
    "slow": Bed("Gaussian", _normal, _linear, sizes=(64, 256, 1024), dim=32, slow=True, plan=RISING),
    "slow, convolution": Bed(
        "Gaussian", _normal_images, _convolution, 16, sizes=(64, 1024), dim=16, slow=True, plan=RISING_PICTURES
    ),
    "digits": Bed("digits", _digits, partial(_vectors, 64), sizes=(64, 256), plan=POINTS),
    "digits in patches": Bed("digits", _digit_images, partial(_images, 1, 2), 16, plan=PLACES),
    "Fashion-MNIST": Bed("Fashion-MNIST", _fashion, partial(_images, 1, 4), 49, plan=PICTURES),
    "photographs": Bed("photographs", _photographs, partial(_images, 3, 4), 64, large=(4096,), plan=PICTURES),
    "wide view": Bed("photographs", _photographs, _wide_view, 64, sizes=(128, 1024), plan=PICTURES),
    "text": Bed("text", _text, partial(_vectors, 12), 16, few=(4, 8), plan=PLACES),
    "signals": Bed("signals", _signals, partial(_vectors, 33), 16, large=(4096,), plan=PLACES),
    "items": Bed("items", _items, partial(_vectors, 32), sizes=(256, 1024), few=(2, 4), plan=POINTS),
}
