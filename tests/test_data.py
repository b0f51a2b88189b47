"""Data sets: shapes and ranges. What can go wrong with files and downloads is in test_downloads.py."""

import os

import pytest
import torch
from served import LABELS, idx

from vqnotes import _downloads, data


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
    assert photographs.min() == 0 and photographs.max() == 1 and photographs.std() > 0.1
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
    assert torch.equal(data.random_crops(images[:1, :, :, :10], 3, 10), images[:1, :, :, :10].expand(3, -1, -1, -1))
    first = data.random_crops(images[:, :1, :3, :4], 300, 2)[:, 0, 0, 0]
    assert sorted(first.unique().tolist()) == images[:, 0, :2, :3].flatten().tolist()  # all places, the last too


# ---------------------------------------------------------------- larger sets


@pytest.mark.parametrize("load", [data.fashion_mnist, data.cifar10])
def test_other_splits_and_limits_are_refused(load):
    with pytest.raises(ValueError, match="validation"):
        load("validation")
    with pytest.raises(ValueError, match="0"):
        load(limit=0)


def test_an_idx_file_of_another_kind_or_size_is_refused():
    whole = idx(LABELS)
    assert _downloads.parse_idx(whole, dims=1).tolist() == LABELS.tolist()
    with pytest.raises(ValueError, match="3 axes"):
        _downloads.parse_idx(whole, dims=3)
    for cut in (b"", whole[:3], whole[:6]):
        with pytest.raises(ValueError, match=f"in {len(cut)} bytes"):
            _downloads.parse_idx(cut, dims=1)
    for wrong in (whole[:-1], whole + b"1", whole[:4] + b"\xff" * 4 + whole[8:]):
        with pytest.raises(ValueError, match="broken IDX file"):
            _downloads.parse_idx(wrong, dims=1)


@pytest.mark.skipif(not _downloads.DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_real_fashion_mnist_of_debian(tmp_path, monkeypatch):
    monkeypatch.setattr(_downloads, "_cache", lambda: tmp_path)
    monkeypatch.delenv("VQNOTES_DATA", raising=False)
    for split, size in (("train", 60_000), ("test", 10_000)):
        got = data.fashion_mnist(split)
        assert got.x.shape == (size, 1, 28, 28) and got.y.bincount().tolist() == [size // 10] * 10
    assert os.listdir(tmp_path) == []
