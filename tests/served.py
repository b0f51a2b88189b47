"""A local https server that can misbehave, with small files in the formats of the real data sets."""

import functools
import gzip
import hashlib
import io
import ssl
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import trustme
from notebook_tools import HOURS

from vqnotes import _downloads, data


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, dtype=">i4").tobytes()
    return header + array.astype(np.uint8).tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (12, 28, 28))
LABELS = np.arange(12) % 10
RECORDS = bytes([3]) + bytes(range(256)) * 12 + bytes([9]) + bytes(3072)  # two pictures
X, Y, CIFAR = "x-ubyte.gz", "y-ubyte.gz", "cifar-10-binary.tar.gz"
PLAIN = {("train", "x"): idx(IMAGES), ("train", "y"): idx(LABELS), ("test", "x"): idx(IMAGES[:5] // 2)}
PLAIN["test", "y"] = idx(LABELS[:5])
NAMES = {("train", "x"): X, ("train", "y"): Y, ("test", "x"): "test-x-ubyte.gz", ("test", "y"): "test-y-ubyte.gz"}


def member(name: str, content: bytes = RECORDS, **how) -> tuple[tarfile.TarInfo, io.BytesIO]:
    """What goes into an archive: a file, or by type and linkname something else."""
    info = tarfile.TarInfo(name)
    for key, value in ({"size": len(content)} | how).items():
        setattr(info, key, value)
    return info, io.BytesIO(content)


def archive(*members: tuple) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as packed:
        for info, content in members:
            packed.addfile(info, content)
    return stream.getvalue()


def cifar_archive() -> bytes:
    names = [name for split in _downloads.CIFAR10_MEMBERS.values() for name in split]
    return archive(*(member(f"cifar-10-batches-bin/{name}") for name in names))


class Handler(SimpleHTTPRequestHandler):
    """Gives files, or does what `answers` says for a path."""

    def do_GET(self):
        self.server.asked.append(self.path)
        try:
            self.server.answers.get(self.path, SimpleHTTPRequestHandler.do_GET)(self)
        except OSError:
            pass  # the client has gone

    def log_message(self, *_):
        pass

    def begin(self, length: int, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(length)} | headers).items():
            self.send_header(name, value)
        self.end_headers()


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@contextmanager
def listening(folder: Path, secure: bool = True) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as running:
        running.asked, running.answers = [], {}
        if secure:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority().issue_cert("127.0.0.1").configure_cert(context)
            running.socket = context.wrap_socket(running.socket, server_side=True)
        running.address = f"http{'s' if secure else ''}://127.0.0.1:{running.server_port}/"
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield running
        running.shutdown()


@contextmanager
def serving(tmp_path: Path, monkeypatch) -> Iterator[SimpleNamespace]:
    """The data sets' tables point at a local server of small files, the cache is empty, nothing else is found."""
    folder, cache = tmp_path / "served", tmp_path / "cache"
    folder.mkdir()
    authority().cert_pem.write_to_path(tmp_path / "authority.pem")
    with listening(folder) as running:

        def file(name: str, packed: bytes, *plain) -> _downloads.RemoteFile:
            (folder / name).write_bytes(packed)
            return _downloads.RemoteFile(name, running.address + name, hashlib.sha256(packed).hexdigest(), *plain)

        table = {
            key: file(NAMES[key], gzip.compress(content, mtime=0), hashlib.sha256(content).hexdigest(), len(content))
            for key, content in PLAIN.items()
        }
        cifar = file(CIFAR, cifar_archive())
        for module, name, value in [
            (data, "FASHION_MNIST", table),
            (data, "CIFAR10", cifar),
            (_downloads, "CIFAR10_PICTURES", 2),
            (_downloads, "DEBIAN_FASHION_MNIST", tmp_path / "no-such-folder"),
            (_downloads, "_cache", lambda: cache),
            (_downloads, "TIMEOUT", HOURS),
        ]:
            monkeypatch.setattr(module, name, value)
        monkeypatch.delenv("VQNOTES_DATA", raising=False)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield SimpleNamespace(folder=folder, cache=cache, answers=running.answers, asked=running.asked, file=file)


def in_cache(server: SimpleNamespace) -> list[str]:
    return sorted(path.name for path in server.cache.glob("*"))


def check_fashion(limit: int | None = None) -> None:
    got = data.fashion_mnist(limit=limit)
    assert torch.equal(got.x, torch.from_numpy(IMAGES[:limit, None]).float() / 255)
    assert torch.equal(got.y, torch.from_numpy(LABELS[:limit]))


def elsewhere(server: SimpleNamespace, code: str) -> subprocess.Popen:
    """Starts a Python of its own in the folder above the cache. There, said(split) is what comes of a download."""
    table = {split: tuple(file) for (split, part), file in data.FASHION_MNIST.items() if part == "x"}
    start = (
        "import os, resource, signal, sys; from pathlib import Path; from vqnotes import _downloads as downloads\n"
        "downloads._cache = lambda: Path('cache'); downloads.DEBIAN_FASHION_MNIST = Path('nowhere')\n"
        f"downloads.TIMEOUT = {HOURS}\n"
        "def said(split='train'):\n"
        f"    try: return len(downloads.unpacked(downloads.RemoteFile(*{table!r}[split])))\n"
        "    except (OSError, ValueError) as error: return f'{type(error).__name__}: {error}'\n"
    )
    options = {"text": True, "cwd": server.cache.parent} | dict.fromkeys(
        ("stdin", "stdout", "stderr"), subprocess.PIPE
    )
    return subprocess.Popen([sys.executable, "-c", start + code], **options)


def printed(process: subprocess.Popen) -> list[str]:
    """The lines that it prints, once it has ended well."""
    out, errors = process.communicate(timeout=HOURS)
    assert process.returncode == 0, errors
    return out.splitlines()


def cut(handler: Handler, content: bytes, then: Callable[[], None]) -> None:
    """Announces the whole and gives half of it."""
    handler.begin(len(content))
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    then()
