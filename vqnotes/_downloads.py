"""Published files: found locally or downloaded, and not used before their checksum is found to be right."""

import gzip
import hashlib
import io
import math
import os
import re
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import numpy as np

from vqnotes._extras import course_extra
from vqnotes._files import replaced

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
TIMEOUT = 30  # seconds without an answer, or without a byte more of it
_FASHION_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"


class RemoteFile(NamedTuple):
    """A file to download: its name, address, SHA-256 as published; if gzipped alone, SHA-256 and bytes unpacked."""

    name: str
    url: str
    sha256: str
    unpacked_sha256: str | None = None
    unpacked_size: int | None = None


FASHION_MNIST = {
    key: RemoteFile(name, _FASHION_URL + name, published, unpacked, size)
    for key, name, published, unpacked, size in [
        (
            ("train", "x"),
            "train-images-idx3-ubyte.gz",
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            47_040_016,
        ),
        (
            ("train", "y"),
            "train-labels-idx1-ubyte.gz",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            60_008,
        ),
        (
            ("test", "x"),
            "t10k-images-idx3-ubyte.gz",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            7_840_016,
        ),
        (
            ("test", "y"),
            "t10k-labels-idx1-ubyte.gz",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            10_008,
        ),
    ]
}
CIFAR10 = RemoteFile(
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)


# ---------------------------------------------------------------- local copies


def unpacked(file: RemoteFile) -> bytes:
    """The content of a gzipped file, from a local copy (gzipped anew, or unpacked) or the published one.

    Raises ValueError for a wrong or unreadable file in $VQNOTES_DATA; OSError if it cannot be had.
    """
    if file.unpacked_sha256 is None or file.unpacked_size is None:
        raise ValueError(f"need the checksum and the size of the unpacked file, got {file}")
    checked = (file.unpacked_sha256, file.unpacked_size + 1)
    if own := os.environ.get("VQNOTES_DATA"):
        for name, opened in ((file.name, gzip.open), (file.name.removesuffix(".gz"), open)):
            if content := _local(Path(own) / name, opened, *checked):
                return content
    try:
        content = _local(DEBIAN_FASHION_MNIST / file.name, gzip.open, *checked)
    except ValueError:
        content = None  # not ours to repair: download instead
    return content or gzip.decompress(download(file).read_bytes())


def published(file: RemoteFile) -> bytes:
    """The bytes of a file as published, from $VQNOTES_DATA, the cache or the network. Raises as `unpacked`."""
    own = os.environ.get("VQNOTES_DATA")
    content = _local(Path(own) / file.name, open, file.sha256) if own else None
    return content or download(file).read_bytes()


def _local(path: Path, opened: Callable, sha256: str, most: int = -1) -> bytes | None:
    """The content of a local copy, None if there is none. Of what is too large, only `most` bytes are unpacked."""
    try:
        with opened(path, "rb") as stream:
            content = stream.read(most)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error) as error:
        raise _wrong(path, f"it cannot be read ({error})") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _wrong(path, "its content differs from the published data set")
    return content


def _wrong(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} is not usable: {reason}. Replace it, or remove it to have it downloaded.")


# ---------------------------------------------------------------- downloads


def download(file: RemoteFile) -> Path:
    """The path of the file in the cache, where it is downloaded to if need be: whole, checked, or not at all.

    Raises ValueError for a file without a plain name, an https address or a SHA-256; OSError if it cannot be had.
    """
    with course_extra("a download"):
        import pooch

    plain = Path(file.name).name == file.name not in ("", "..")
    if not (plain and file.url.startswith("https://") and re.fullmatch("[0-9a-f]{64}", file.sha256 or "")):
        raise ValueError(f"a download needs a plain name, an https address and a SHA-256 in 64 digits, got {file}")
    path = _cache() / file.name
    # Not `pooch.retrieve`: what it caches is for its owner alone, and on Windows not replaced in one step.
    options = {"timeout": TIMEOUT, "hooks": {"response": _check_hop}}
    fetch = pooch.HTTPDownloader(progressbar=True, chunk_size=2**16, **options)
    try:
        if not (path.exists() and pooch.file_hash(path) == file.sha256):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replaced(path) as beside:
                fetch(file.url, str(beside), None)
                if pooch.file_hash(beside) != file.sha256:
                    raise ValueError("what came has another checksum than the published one")
    except (OSError, ValueError) as error:
        raise OSError(
            f"Could not get {file.name} from {file.url} into {path.parent}: {error}. Nothing was kept. Check the "
            f"network and that folder and call again, or put the file into a folder of your own and set "
            f"VQNOTES_DATA to that folder."
        ) from error
    return path


def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("vqnotes"))


def _check_hop(response: Any, **_: object) -> None:
    """ValueError unless an answer came over https and, if it leads on to another address, to one of https."""
    for address in (response.url, urljoin(response.url, response.headers.get("location", ""))):
        if urlsplit(address).scheme != "https":
            raise ValueError(f"it leads to {address}, which is not https")


# ---------------------------------------------------------------- what is in them

CIFAR10_MEMBERS = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR10_PICTURES = 10_000  # in each of these files


def parse_idx(raw: bytes, dims: int) -> np.ndarray:
    """The array in an IDX file of unsigned bytes: 2 zero bytes, type 8, number of axes, then sizes, then data."""
    start = 4 + 4 * dims
    if raw[:4] != bytes([0, 0, 8, dims]) or len(raw) < start:
        raise ValueError(f"not an IDX file of {dims} axes of bytes: it starts with {raw[:4]!r}, in {len(raw)} bytes")
    shape = np.frombuffer(raw, dtype=">i4", count=dims, offset=4).tolist()
    if min(shape) < 0 or len(raw) - start != math.prod(shape):
        raise ValueError(f"a broken IDX file: {len(raw) - start} bytes for an array of the shape {shape}")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


def cifar_records(packed: bytes, names: list[str]) -> np.ndarray:
    """What the archive's files of those names hold, one picture a row: its label, then its pixels.

    They are read where they are: nothing is extracted, and links are not followed.
    Raises ValueError unless each is there, a plain file of the known size.
    """
    size, parts = CIFAR10_PICTURES * (1 + 3 * 32 * 32), []
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
            for name in names:
                member = archive.getmember(f"cifar-10-batches-bin/{name}")
                content = archive.extractfile(member) if member.isreg() and member.size == size else None
                if content is None:
                    raise ValueError(f"in {CIFAR10.name}, {member.name} is not a plain file of {size} bytes")
                parts.append(content.read())
    except (KeyError, OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise ValueError(f"{CIFAR10.name} is not the archive of the data set: {error}") from error
    return np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(-1, 1 + 3 * 32 * 32)
