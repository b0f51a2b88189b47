"""Arrays in files, as a command names them: .npy, .npz, .safetensors, or raw numbers.

What can be mapped is not read into memory. Nothing is unpickled.
"""

import os
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vqnotes._checks import Array

__all__ = ["array_at", "path_and_rest"]

NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
CHECKPOINTS = (".pt", ".pth", ".ckpt", ".pkl")
SAVE = 'in Python, np.save("codebook.npy", codebook.detach().cpu().float().numpy()) writes what can be read'


def array_at(given: str, dtype: Any = None) -> Array:
    """The array that a command names: `z.npy`, `z.npz:key`, `z.safetensors:key`, `z.bin:uint16`, `z.bin:uint8:-1,8`.

    The key may be left out of an archive with one array. A raw file has a dtype, and perhaps a shape, in which one
    side may be -1. dtype: that of a raw file, if it is not there. Arrays are mapped so that the file never changes;
    those of an archive are read, and of a safetensors file as tensors.
    Raises ValueError for a file that is broken, or is none of these, and for a key, dtype or shape that does not fit;
    OSError for a file that cannot be read.
    """
    path, rest = path_and_rest(given)
    with open(path, "rb") as file:
        first = file.read(6)
    if path.suffix.lower() in CHECKPOINTS:
        raise ValueError(f"{path} may be a pickle, which is a program, and is not opened: {SAVE}")
    if dtype is not None and (first == NPY or first[:4] == ZIP or path.suffix == ".safetensors"):
        raise ValueError(f"{path} says its dtype itself: leave out {dtype}")
    if first == NPY:
        if rest:
            raise ValueError(f"{path} is a .npy file and holds one array: leave out {rest!r}")
        return _native(_from_npy(path))
    if first[:4] == ZIP:
        return _native(_from_archive(path, rest))
    if path.suffix.lower() == ".safetensors":
        return _from_safetensors(path, rest)
    return _native(_raw(path, rest, dtype))


def path_and_rest(given: str) -> tuple[Path, str]:
    """The file that is there, and what stands behind a colon. FileNotFoundError if there is none."""
    ends = [len(given), *(i for i in reversed(range(len(given))) if given[i] == ":")]
    for end in ends:
        if os.path.isfile(given[:end]):
            return Path(given[:end]), given[end + 1 :]
    raise FileNotFoundError(f"there is no file {given!r:.200}")


def _native(array: np.ndarray) -> np.ndarray:
    """In the byte order of this machine, which is the only one that tensors have."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _from_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is a broken .npy file, or holds no numbers: {error}") from error


def _from_archive(path: Path, key: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            key = _key_of(path, key, archive.files)
            found = _read(path, archive, key)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is a broken .npz file: {error}") from error
    if not isinstance(found, np.ndarray):  # bytes: a zip of something else, as torch.save writes it
        raise ValueError(f"{path} is an archive, but {key} in it is no array: {SAVE}")
    return found


def _read(path: Path, archive: Any, key: str) -> Any:
    try:
        return archive[key]
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path}: {key} in it is broken, or holds no numbers: {error}") from error


def _key_of(path: Path, key: str, there: list[str]) -> str:
    """The key of the only array, or the one that was asked for."""
    if not key and len(there) == 1:
        return there[0]
    if key not in there:
        wanted = f"no array {key!r}" if key else f"{len(there)} arrays"
        raise ValueError(f"{path} holds {wanted}: write {path}:KEY, with KEY one of {', '.join(there) or 'none'}")
    return key


def _from_safetensors(path: Path, key: str) -> Array:
    if find_spec("safetensors") is None:
        raise ValueError(f"{path}: to read it takes the package safetensors, which is not installed: {SAVE}")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as archive:
            return archive.get_tensor(_key_of(path, key, list(archive.keys())))
    except SafetensorError as error:
        raise ValueError(f"{path} is a broken .safetensors file: {error}") from error


def _raw(path: Path, rest: str, dtype: Any) -> np.ndarray:
    """Nothing but numbers; rest: "float32" or "float32:-1,64"."""
    written, _, sides = rest.partition(":")
    if dtype is not None and written:
        raise ValueError(f"{path} has two dtypes, {written} and {dtype}: give one")
    if dtype is None and not written:
        raise ValueError(f"{path} is no .npy, .npz or .safetensors file: say what it holds, as in {path}:float32")
    try:
        kind = np.dtype(written or dtype)
        shape = [int(side) for side in sides.split(",")] if sides else [-1]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {rest or dtype!r} is no dtype of NumPy, with a shape such as -1,64") from error
    size = os.path.getsize(path)
    if kind.kind not in "biuf" or not size or size % kind.itemsize:
        raise ValueError(f"{path} has {size:,} bytes, which are no whole number of {kind} ({kind.itemsize} bytes)")
    array = np.memmap(path, dtype=kind, mode="r")
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise ValueError(f"{path} holds {len(array):,} numbers, which have no shape {sides}") from error
