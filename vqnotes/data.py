"""Data: synthetic families, and real images that need no download unless you ask for the larger sets."""

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_FASHION_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"


class LabelledData(NamedTuple):
    """Inputs x (N, ...), labels y (N,) int64 and, for synthetic families, the centres of the modes (M, D)."""

    x: Tensor
    y: Tensor
    centers: Tensor | None = None


class RemoteFile(NamedTuple):
    """A file to download: its name, address, SHA-256 as published and, if gzipped, SHA-256 unpacked."""

    name: str
    url: str
    sha256: str
    unpacked_sha256: str | None = None


FASHION_MNIST = {
    key: RemoteFile(name, _FASHION_URL + name, published, unpacked)
    for key, name, published, unpacked in [
        (
            ("train", "x"),
            "train-images-idx3-ubyte.gz",
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        (
            ("train", "y"),
            "train-labels-idx1-ubyte.gz",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        (
            ("test", "x"),
            "t10k-images-idx3-ubyte.gz",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        (
            ("test", "y"),
            "t10k-labels-idx1-ubyte.gz",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ]
}
CIFAR10 = RemoteFile(
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
CIFAR10_MEMBERS = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}


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
    """Two colour photographs, a temple roof and a flower: float32 (2, 3, 427, 640) in [0, 1]."""
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

    Raises ValueError if `images` has another number of axes or is smaller than `size`.
    """
    if images.ndim != 4 or min(images.shape[-2:]) < size:
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
    Looked for in $VQNOTES_DATA, the cache and Debian's `dataset-fashion-mnist`, then downloaded.
    Raises ValueError for another split, limit or a wrong file in $VQNOTES_DATA; OSError if it cannot be had.
    """
    _check_split(split, limit)
    images = _parse_idx(_unpacked(FASHION_MNIST[split, "x"]), dims=3)
    labels = _parse_idx(_unpacked(FASHION_MNIST[split, "y"]), dims=1)
    return _labelled(images[:limit, None], labels[:limit])


def cifar10(split: str = "train", limit: int | None = None) -> LabelledData:
    """CIFAR-10 from its binary archive: x float32 (N, 3, 32, 32) in [0, 1], y (N,) in 0..9.

    split: "train" (50,000 images) or "test" (10,000); limit: keep the first `limit` images.
    Looked for in $VQNOTES_DATA and the cache, then downloaded (170 MB).
    Raises ValueError for another split, limit or a wrong file in $VQNOTES_DATA; OSError if it cannot be had.
    """
    _check_split(split, limit)
    with tarfile.open(fileobj=io.BytesIO(_published_bytes(CIFAR10)), mode="r:gz") as archive:
        members = [archive.extractfile(f"cifar-10-batches-bin/{name}") for name in CIFAR10_MEMBERS[split]]
        raw = b"".join(member.read() for member in members)
    records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 1 + 3 * 32 * 32)[:limit]
    return _labelled(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0])


def _check_split(split: str, limit: int | None) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be a positive number of images or None, got {limit}")


def _labelled(images: np.ndarray, labels: np.ndarray) -> LabelledData:
    return LabelledData(torch.from_numpy(images.astype(np.float32) / 255), torch.from_numpy(labels.astype(np.int64)))


def _parse_idx(raw: bytes, dims: int) -> np.ndarray:
    """The array in an IDX file of unsigned bytes: 2 zero bytes, type 8, number of axes, then sizes, then data."""
    if raw[:4] != bytes([0, 0, 8, dims]):
        raise ValueError(f"not an IDX file of {dims} axes of bytes: it starts with {raw[:4]!r}")
    shape = np.frombuffer(raw, dtype=">i4", count=dims, offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dims).reshape(shape)


def _unpacked(file: RemoteFile) -> bytes:
    """The verified content of a gzipped file, from a local copy (gzipped anew, or unpacked) or the published one."""
    own = os.environ.get("VQNOTES_DATA")
    for path in (Path(own) / file.name, Path(own) / file.name.removesuffix(".gz")) if own else ():
        if path.is_file():
            return _checked_content(path, file)
    system = DEBIAN_FASHION_MNIST / file.name
    if system.is_file() and not _in_cache(file):
        try:
            return _checked_content(system, file)
        except ValueError:
            pass  # not ours to repair: download instead
    return gzip.decompress(_download(file).read_bytes())


def _checked_content(path: Path, file: RemoteFile) -> bytes:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise _wrong(path, f"it cannot be unpacked ({error})") from error
    if hashlib.sha256(content).hexdigest() != file.unpacked_sha256:
        raise _wrong(path, "its content differs from the published data set")
    return content


def _published_bytes(file: RemoteFile) -> bytes:
    """The bytes of the file exactly as published, from $VQNOTES_DATA, the cache or the network."""
    own = os.environ.get("VQNOTES_DATA")
    if own and (path := Path(own) / file.name).is_file():
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise _wrong(path, "its checksum differs from the published one")
        return content
    return _download(file).read_bytes()


def _wrong(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} is not usable: {reason}. Replace it, or remove it to have it downloaded.")


def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("vqnotes"))


def _in_cache(file: RemoteFile) -> bool:
    import pooch

    path = _cache() / file.name
    return path.is_file() and pooch.file_hash(path) == file.sha256


def _download(file: RemoteFile) -> Path:
    """The path of the file in the cache; pooch downloads beside it, checks the hash, then moves it into place."""
    import pooch
    import requests

    get = pooch.HTTPDownloader(progressbar=True, timeout=30)
    try:
        return Path(pooch.retrieve(file.url, f"sha256:{file.sha256}", file.name, _cache(), downloader=get))
    except (OSError, ValueError, requests.exceptions.RequestException) as error:
        raise OSError(
            f"Could not get {file.name} from {file.url}: {error}. Nothing was kept. Check the network and call "
            f"again, or put the file into a folder of your own and set VQNOTES_DATA to that folder."
        ) from error
