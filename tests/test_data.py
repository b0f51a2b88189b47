"""Data sets: shapes and ranges; and a download that never leaves anything broken behind."""

import gzip
import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
from functools import partial

import numpy as np
import pytest
import torch

from vqnotes import data


def test_gaussian_modes_are_as_described():
    modes = data.gaussian_modes(modes=10, per_mode=200, dim=3, seed=5)
    assert modes.x.shape == (2000, 3) and modes.x.dtype == torch.float32 and modes.centers.shape == (10, 3)
    assert modes.y.bincount().tolist() == [200] * 10
    assert modes.x.mean().item() == pytest.approx(0, abs=1e-4) and modes.x.std().item() == pytest.approx(1, abs=1e-3)
    residual = modes.x - modes.centers[modes.y]
    sigma = residual.std().item()
    assert torch.pdist(modes.centers).min() >= 7.8 * sigma
    assert residual.std(dim=0).numpy() == pytest.approx(sigma, rel=0.05)
    assert not torch.equal(modes.y, modes.y.sort().values)


def test_gaussian_modes_repeat_with_the_seed_and_fit_any_number():
    assert torch.equal(data.gaussian_modes(seed=1).x, data.gaussian_modes(seed=1).x)
    assert not torch.equal(data.gaussian_modes(seed=1).x, data.gaussian_modes(seed=2).x)
    assert data.gaussian_modes(modes=100, per_mode=2, dim=1).x.shape == (200, 1)
    assert data.gaussian_modes(modes=1, per_mode=5).centers.shape == (1, 2)
    with pytest.raises(ValueError, match="0"):
        data.gaussian_modes(modes=0)


def test_rings_are_as_described():
    rings = data.rings(rings=6, per_ring=500, dim=5, seed=3)
    assert rings.x.shape == (3000, 5) and rings.x.dtype == torch.float32 and rings.centers.shape == (6, 5)
    assert rings.y.bincount().tolist() == [500] * 6 and not torch.equal(rings.y, rings.y.sort().values)
    assert rings.x.mean().item() == pytest.approx(0, abs=1e-4) and rings.x.std().item() == pytest.approx(1, abs=1e-3)
    radii = []
    for ring, center in enumerate(rings.centers):
        residual = rings.x[rings.y == ring] - center
        radius = residual.norm(dim=1)
        variances = torch.linalg.svdvals(residual).square() / len(residual) / radius.square().mean()
        assert radius.std() / radius.mean() < 0.08 and variances[:2].numpy() == pytest.approx(0.5, abs=0.07)
        assert variances[2:].max() < 0.004  # a circle is flat
        radii.append(radius.mean().item())
    assert radii == pytest.approx([radii[0]] * 6, rel=0.02)
    assert torch.equal(rings.x, data.rings(rings=6, per_ring=500, dim=5, seed=3).x)
    assert not torch.equal(rings.x, data.rings(rings=6, per_ring=500, dim=5, seed=4).x)
    with pytest.raises(ValueError, match="dim at least 2, got 3, 5, 1"):
        data.rings(rings=3, per_ring=5, dim=1)
    with pytest.raises(ValueError, match="got 0, 5, 2"):
        data.rings(rings=0, per_ring=5, dim=2)


def test_images_inside_scikit_learn():
    photographs = data.photographs()
    assert photographs.shape == (2, 3, 427, 640) and photographs.dtype == torch.float32
    assert photographs.min() >= 0 and photographs.max() <= 1 and photographs.std() > 0.1
    digits = data.digits()
    assert digits.x.shape == (1797, 1, 8, 8) and digits.y.unique().tolist() == list(range(10))
    assert digits.x.min() == 0 and digits.x.max() == 1
    vectors = data.digit_vectors()
    assert vectors.x.shape == (1797, 64) and torch.equal(vectors.y, digits.y)
    assert vectors.x.mean().item() == pytest.approx(0, abs=1e-5) and vectors.x.std().item() == pytest.approx(1)
    assert torch.allclose(vectors.x * digits.x.std() + digits.x.mean(), digits.x.flatten(1), atol=1e-6)


def test_random_crops_come_from_the_images():
    images = torch.arange(2 * 3 * 10 * 12).float().reshape(2, 3, 10, 12)
    crops = data.random_crops(images, 20, 4, seed=1)
    assert crops.shape == (20, 3, 4, 4) and torch.equal(crops, data.random_crops(images, 20, 4, seed=1))
    windows = images.unfold(2, 4, 1).unfold(3, 4, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 4, 4)
    assert all((windows == crop).flatten(1).all(1).any() for crop in crops)
    with pytest.raises(ValueError, match=r"\(2, 3, 10, 12\)"):
        data.random_crops(images, 1, 11)


# ---------------------------------------------------------------- a server with small files of the real formats


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, dtype=">i4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def cifar_archive(records):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for split in data.CIFAR10_MEMBERS.values():
            for name in split:
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(records)
                archive.addfile(member, io.BytesIO(records))
    return stream.getvalue()


IMAGES = np.random.default_rng(0).integers(0, 256, (12, 28, 28))
LABELS = np.arange(12) % 10
RECORDS = bytes([3]) + bytes(range(256)) * 12 + bytes([9]) + bytes(3072)  # two pictures


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The folder that a local server serves, with the data sets' tables pointing at it and an empty cache."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()

        def serve(name, packed, unpacked=None):
            (folder / name).write_bytes(packed)
            return data.RemoteFile(
                name,
                f"http://127.0.0.1:{running.server_port}/{name}",
                hashlib.sha256(packed).hexdigest(),
                unpacked and hashlib.sha256(unpacked).hexdigest(),
            )

        table = {}
        for part, array in (("x", IMAGES), ("y", LABELS)):
            table["train", part] = serve(f"{part}-ubyte.gz", gzip.compress(idx(array)), idx(array))
        monkeypatch.setattr(data, "FASHION_MNIST", table)
        monkeypatch.setattr(data, "CIFAR10", serve("cifar-10-binary.tar.gz", cifar_archive(RECORDS)))
        monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "no-such-folder")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(data, "_cache", lambda: tmp_path / "cache")
        monkeypatch.delenv("VQNOTES_DATA", raising=False)
        yield folder
        running.shutdown()


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").glob("*"))


def check_fashion(limit=None):
    got = data.fashion_mnist(limit=limit)
    assert torch.equal(got.x, torch.from_numpy(IMAGES[:limit, None]).float() / 255)
    assert torch.equal(got.y, torch.from_numpy(LABELS[:limit]))


def test_fashion_mnist_is_downloaded_once_and_read(server, tmp_path):
    check_fashion()
    assert cached(tmp_path) == ["x-ubyte.gz", "y-ubyte.gz"]
    for path in server.glob("*"):
        path.unlink()  # from here on only the cache can answer
    check_fashion(limit=5)


def test_cifar10_is_read_from_its_binary_archive(server, tmp_path):
    got = data.cifar10("train")
    assert got.x.shape == (10, 3, 32, 32) and got.y.tolist() == [3, 9] * 5
    assert got.x[0].flatten()[:3].tolist() == pytest.approx([0, 1 / 255, 2 / 255]) and got.x[1].sum() == 0
    assert data.cifar10("test", limit=1).y.tolist() == [3]
    assert cached(tmp_path) == ["cifar-10-binary.tar.gz"]


@pytest.mark.parametrize("damage", ["truncated", "wrong", "missing", "unreachable"])
def test_a_failed_download_says_what_to_do_and_leaves_nothing(server, tmp_path, monkeypatch, damage):
    path = server / "x-ubyte.gz"
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "wrong":
        path.write_bytes(gzip.compress(b"not the data set"))
    elif damage == "missing":
        path.unlink()
    else:
        file = data.FASHION_MNIST["train", "x"]
        monkeypatch.setitem(data.FASHION_MNIST, ("train", "x"), file._replace(url="http://127.0.0.1:1/x-ubyte.gz"))
    with pytest.raises(OSError, match="VQNOTES_DATA"):
        data.fashion_mnist()
    assert cached(tmp_path) == []
    if damage != "unreachable":
        path.write_bytes(whole)
        check_fashion()


def test_a_broken_file_in_the_cache_is_replaced(server, tmp_path):
    check_fashion()
    (tmp_path / "cache" / "x-ubyte.gz").write_bytes(b"half a file")
    check_fashion()


def test_two_processes_at_once_both_succeed(server, tmp_path):
    code = (
        "from pathlib import Path; from vqnotes import data\n"
        f"data.FASHION_MNIST = {{key: data.RemoteFile(*file) for key, file in "
        f"{ {key: tuple(file) for key, file in data.FASHION_MNIST.items()} }.items()}}\n"
        f"data._cache = lambda: Path({str(tmp_path / 'cache')!r}); data.DEBIAN_FASHION_MNIST = Path('nowhere')\n"
        "print(data.fashion_mnist().x.sum())"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    printed = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0] and printed[0] == printed[1] != b""
    assert cached(tmp_path) == ["x-ubyte.gz", "y-ubyte.gz"]


@pytest.mark.parametrize("packed", [True, False])
def test_a_folder_of_your_own_comes_first(server, tmp_path, monkeypatch, packed):
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv("VQNOTES_DATA", str(own))
    for part, array in (("x", IMAGES), ("y", LABELS)):
        content = idx(array)
        if packed:  # gzipped in another way than the published file
            (own / f"{part}-ubyte.gz").write_bytes(gzip.compress(content, compresslevel=1, mtime=1))
        else:
            (own / f"{part}-ubyte").write_bytes(content)
    check_fashion()
    assert cached(tmp_path) == []


def test_a_wrong_file_of_the_system_is_passed_over(server, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path)
    (tmp_path / "x-ubyte.gz").write_bytes(b"no gzip at all")
    (tmp_path / "y-ubyte.gz").write_bytes(gzip.compress(idx(LABELS), mtime=1))
    check_fashion()
    assert cached(tmp_path) == ["x-ubyte.gz"]


PACKED = gzip.compress(idx(IMAGES), mtime=0)


@pytest.mark.parametrize(
    "content",
    [b"no gzip at all", gzip.compress(b"other", mtime=0), PACKED[:-9], PACKED[:2000] + bytes(100) + PACKED[2100:]],
    ids=["not packed", "other content", "truncated", "damaged"],
)
def test_a_wrong_file_of_your_own_is_named_and_kept(server, tmp_path, monkeypatch, content):
    monkeypatch.setenv("VQNOTES_DATA", str(tmp_path))
    path = tmp_path / "x-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x-ubyte.gz is not usable"):
        data.fashion_mnist()
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content)
    with pytest.raises(ValueError, match="cifar-10-binary.tar.gz is not usable"):
        data.cifar10()
    assert path.read_bytes() == content


@pytest.mark.parametrize("load", [data.fashion_mnist, data.cifar10])
def test_other_splits_and_limits_are_refused(load):
    with pytest.raises(ValueError, match="validation"):
        load("validation")
    with pytest.raises(ValueError, match="0"):
        load(limit=0)


def test_an_idx_file_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="3 axes"):
        data._parse_idx(idx(LABELS), dims=3)


@pytest.mark.skipif(not data.DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist_of_debian(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_cache", lambda: tmp_path)
    monkeypatch.delenv("VQNOTES_DATA", raising=False)
    for split, size in (("train", 60_000), ("test", 10_000)):
        got = data.fashion_mnist(split)
        assert got.x.shape == (size, 1, 28, 28) and got.y.bincount().tolist() == [size // 10] * 10
    assert os.listdir(tmp_path) == []
