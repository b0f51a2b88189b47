"""Data: synthetic families, and real images that need no download unless you ask for the larger sets."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqnotes._downloads import CIFAR10, CIFAR10_MEMBERS, FASHION_MNIST, cifar_records, parse_idx, published, unpacked
from vqnotes._extras import course_extra

__all__ = [
    "LabelledData", "cifar10", "digit_vectors", "digits", "fashion_mnist", "gaussian_modes", "photographs",
    "random_crops", "rings"
]  # fmt: skip


class LabelledData(NamedTuple):
    """Inputs x (N, ...), labels y (N,) int64 and, for synthetic families, the centres of the modes (M, D)."""

    x: Tensor
    y: Tensor
    centers: Tensor | None = None


# ---------------------------------------------------------------- synthetic


def gaussian_modes(modes: int = 10, per_mode: int = 1000, dim: int = 2, seed: int = 0) -> LabelledData:
    """Equally likely, well separated Gaussian modes: the synthetic set of arXiv:2411.16550.

    All modes have one standard deviation in each direction. Centres are uniform in a cube, at least 8 of those
    deviations apart (the cube grows until all fit), so neighbouring modes do not overlap. Then everything is
    shifted and scaled as one, so that the entries of x have mean 0 and standard deviation 1.

    Returns x (modes * per_mode, dim) float32 in random order, y the mode of each row, centers (modes, dim).
    Raises ValueError unless all three sizes are positive.
    """
    if min(modes, per_mode, dim) < 1:
        raise ValueError(f"modes, per_mode and dim must be positive, got {modes}, {per_mode}, {dim}")
    rng = np.random.default_rng(seed)
    half, tries = 10.0, 0
    centers = np.empty((0, dim))
    while len(centers) < modes:
        candidate = rng.uniform(-half, half, size=(1, dim))
        if len(centers) == 0 or np.linalg.norm(centers - candidate, axis=1).min() >= 8:
            centers = np.concatenate([centers, candidate])
        tries += 1
        if tries % 200 == 0:  # the cube is too full: enlarge it
            half *= 1.1
    y = rng.permutation(np.repeat(np.arange(modes), per_mode))
    x = centers[y] + rng.standard_normal((len(y), dim))
    return _standardised(x, y, centers)


def rings(rings: int = 10, per_ring: int = 1000, dim: int = 8, seed: int = 0) -> LabelledData:
    """Equally likely circles in random planes through random centres, a second family beside `gaussian_modes`.

    Every class is a curve instead of a blob: it needs several codes, and a curved map to be told from the others.
    All circles have radius 1, centres are normal with standard deviation 1 in each direction, and points lie off
    their circle by normal noise of standard deviation 0.05 in each direction. In few dimensions circles can cross.
    Then everything is shifted and scaled as one, so that the entries of x have mean 0 and standard deviation 1.

    Returns x (rings * per_ring, dim) float32 in random order, y the ring of each row, centers (rings, dim).
    Raises ValueError unless rings and per_ring are positive and dim is at least 2.
    """
    if min(rings, per_ring) < 1 or dim < 2:
        raise ValueError(f"rings and per_ring must be positive and dim at least 2, got {rings}, {per_ring}, {dim}")
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((rings, dim))
    planes = np.linalg.qr(rng.standard_normal((rings, dim, 2))).Q  # two orthonormal columns each
    y = rng.permutation(np.repeat(np.arange(rings), per_ring))
    angle = rng.uniform(0, 2 * np.pi, size=len(y))
    on_circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)[:, :, None]
    x = centers[y] + (planes[y] @ on_circle)[:, :, 0] + 0.05 * rng.standard_normal((len(y), dim))
    return _standardised(x, y, centers)


def _standardised(x: np.ndarray, y: np.ndarray, centers: np.ndarray) -> LabelledData:
    shift = x.mean(axis=0)
    scale = (x - shift).std() or 1.0
    return LabelledData(
        torch.from_numpy((x - shift) / scale).float(),
        torch.from_numpy(y).long(),
        torch.from_numpy((centers - shift) / scale).float(),
    )


# ---------------------------------------------------------------- inside scikit-learn: no download


def photographs() -> Tensor:
    """Two colour photographs, a temple roof and a flower: float32 (2, 3, 427, 640) in [0, 1].

    scikit-learn's `load_sample_images`. Raises ImportError without pillow, which reads them.
    """
    with course_extra("vqnotes.data.photographs"):
        import PIL  # noqa: F401  # by which scikit-learn reads them
    from sklearn.datasets import load_sample_images

    images = torch.from_numpy(np.stack(load_sample_images().images))
    return images.permute(0, 3, 1, 2).contiguous().float() / 255


def digits() -> LabelledData:
    """Handwritten digits: x float32 (1797, 1, 8, 8) in [0, 1], y (1797,) in 0..9 (scikit-learn's `load_digits`)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return LabelledData(torch.from_numpy(bunch.images).float()[:, None] / 16, torch.from_numpy(bunch.target).long())


def digit_vectors() -> LabelledData:
    """The digits as vectors: x (1797, 64), shifted and scaled as one to mean 0 and standard deviation 1."""
    x, y, _ = digits()
    return LabelledData((x.flatten(1) - x.mean()) / x.std(), y)


def random_crops(images: Tensor, count: int, size: int, seed: int = 0) -> Tensor:
    """`count` square crops at random places of random images: (N, C, H, W) to (count, C, size, size).

    Raises ValueError if `images` is empty, has other axes or is smaller than `size`, or for count or size < 1.
    """
    if min(count, size) < 1:
        raise ValueError(f"count and size must be positive, got {count} and {size}")
    if images.ndim != 4 or images.numel() == 0 or min(images.shape[-2:]) < size:
        raise ValueError(f"need images (N, C, H, W) of at least {size} x {size}, got {tuple(images.shape)}")
    rng = np.random.default_rng(seed)
    which = rng.integers(len(images), size=count)
    top = rng.integers(images.shape[-2] - size + 1, size=count)
    left = rng.integers(images.shape[-1] - size + 1, size=count)
    return torch.stack([images[i, :, t : t + size, s : s + size] for i, t, s in zip(which, top, left, strict=True)])


# ---------------------------------------------------------------- larger sets: found locally or downloaded


def fashion_mnist(split: str = "train", limit: int | None = None) -> LabelledData:
    """Fashion-MNIST (arXiv:1708.07747): x float32 (N, 1, 28, 28) in [0, 1], y (N,) in 0..9.

    split: "train" (60,000 images) or "test" (10,000); limit: keep the first `limit` images.
    Looked for in $VQNOTES_DATA, Debian's `dataset-fashion-mnist` and the cache, then downloaded.
    Raises ValueError for another split, limit or a wrong file in $VQNOTES_DATA; OSError if it cannot be had.
    """
    _check_split(split, limit)
    images = parse_idx(unpacked(FASHION_MNIST[split, "x"]), dims=3)
    labels = parse_idx(unpacked(FASHION_MNIST[split, "y"]), dims=1)
    return _labelled(images[:limit, None], labels[:limit])


def cifar10(split: str = "train", limit: int | None = None) -> LabelledData:
    """CIFAR-10 from its binary archive: x float32 (N, 3, 32, 32) in [0, 1], y (N,) in 0..9.

    split: "train" (50,000 images) or "test" (10,000); limit: keep the first `limit` images.
    Looked for in $VQNOTES_DATA and the cache, then downloaded (170 MB).
    Raises ValueError for another split, limit or a wrong file in $VQNOTES_DATA; OSError if it cannot be had.
    """
    _check_split(split, limit)
    records = cifar_records(published(CIFAR10), CIFAR10_MEMBERS[split])[:limit]
    return _labelled(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0])


def _check_split(split: str, limit: int | None) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be a positive number of images or None, got {limit}")


def _labelled(images: np.ndarray, labels: np.ndarray) -> LabelledData:
    return LabelledData(torch.from_numpy(images.astype(np.float32) / 255), torch.from_numpy(labels.astype(np.int64)))
