"""Arrays mapped from files are read in parts: the verdicts are right, and memory does not grow with the file."""

import json

import numpy as np
import pytest
import torch
from helpers import normal, run_python

from vqnotes.diagnosis import diagnose, diagnose_model, on_disk
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import VectorQuantizer

COUNT, DIM, SIZE = 6000, 4, 64


@pytest.fixture
def latents(tmp_path, monkeypatch):
    """On disk, of which a third is kept, and read in many parts."""
    monkeypatch.setattr(on_disk, "MOST_NUMBERS", COUNT * DIM // 3)
    monkeypatch.setattr(on_disk, "PART", 1000)
    np.save(tmp_path / "z.npy", normal(COUNT, DIM).numpy())
    return np.load(tmp_path / "z.npy", mmap_mode="r")


def codes_on(latents, sick):
    codes = kmeans(torch.from_numpy(np.array(latents)), SIZE)[0]
    return codes[:1] + 0.02 * normal(SIZE, DIM, seed=5) if sick else codes


@pytest.mark.parametrize("sick, verdict", [(False, "healthy"), (True, "token collapse")])
def test_latents_and_inputs_on_disk_get_the_verdict_of_those_in_memory(latents, sick, verdict):
    x, codes = np.array(latents), codes_on(latents, sick)
    index = nearest_code(torch.from_numpy(x), codes)
    whole = diagnose(x, codes, inputs=x, index=index)
    for beside in ({"inputs": latents}, {"inputs": x}, {"inputs": latents, "index": index.numpy()}):
        found = diagnose(latents, codes, **beside)
        assert found.verdict == whole.verdict == verdict
        assert torch.equal(found.drawing.counts, whole.drawing.counts), "not all latents are counted"
        assert f"references are measured on {COUNT // 3:,} of {COUNT:,} latents" in found.notes
        for name in "error / variance", "lost by the encoder", "codes in effect":
            assert found.evidence[name].value == pytest.approx(whole.evidence[name].value, rel=0.1, abs=0.02)


def test_inputs_alone_may_be_on_disk(latents):
    x = torch.from_numpy(np.array(latents))
    assert diagnose(x, codes_on(latents, False), inputs=latents).verdict == "healthy"


def test_maps_masks_and_labels_on_disk(latents, tmp_path):
    shape = (COUNT // 6, DIM, 6)
    maps = np.memmap(tmp_path / "maps", dtype="f4", mode="w+", shape=shape)
    maps[:] = np.array(latents).reshape(len(maps), 6, DIM).transpose(0, 2, 1)
    mask = np.arange(6) < 1 + np.arange(len(maps))[:, None] % 6
    maps[~np.broadcast_to(mask[:, None], shape)] = np.nan
    codes = codes_on(latents, False)
    for labels in np.arange(len(maps)) % 3, np.arange(COUNT) % 3:
        found = diagnose(maps, codes, mask=mask, channel_axis=1, labels=labels)
        whole = diagnose(np.array(maps), codes, mask=mask, channel_axis=1, labels=labels)
        assert torch.equal(found.drawing.counts, whole.drawing.counts) and found.verdict == whole.verdict
        assert found.evidence["labels read off"].value == pytest.approx(0.34, abs=0.1)  # by chance


def test_what_is_no_use_is_refused_wherever_it_stands(latents, tmp_path):
    codes = codes_on(latents, False)
    with pytest.raises(ValueError, match=r"as many in each, got {'latents': \(6000, 4\), 'inputs': \(5999, 4\)}"):
        diagnose(latents, codes, inputs=latents[1:])
    with pytest.raises(ValueError, match="latents have 4 dimensions, codes have 3"):
        diagnose(latents, codes[:, :3])
    broken = np.memmap(tmp_path / "broken", dtype="f4", mode="w+", shape=latents.shape)
    broken[:] = latents
    kept = set(np.random.default_rng(0).permutation(COUNT)[: COUNT // 3].tolist())
    broken[next(row for row in range(COUNT) if row not in kept)] = np.nan
    with pytest.raises(ValueError, match="latents hold 4 NaN"):
        diagnose(broken, codes)


def test_what_was_changed_in_memory_is_not_thrown_away(latents):
    changed = np.load(latents.filename, mmap_mode="c")
    changed[5] = 9
    on_disk.part_of(changed, slice(0, 10))
    assert (changed[5] == 9).all() and (on_disk.part_of(changed, slice(5, 6)) == 9).all()


@pytest.mark.parametrize("sick, verdict", [(False, "healthy"), (True, "token collapse")])
def test_a_model_is_fed_from_disk_as_from_memory(latents, sick, verdict):
    model, y = VectorQuantizer(SIZE, DIM), np.arange(COUNT) % 3
    model.codebook.data.copy_(codes_on(latents, sick))
    for data in latents, (latents, y), np.array(latents):
        (found,) = diagnose_model(model, data).values()
        assert found.verdict == verdict and found.evidence["codes in use"].compared_with.endswith("6,000 latents")
    assert np.array_equal(latents, np.load(latents.filename))


# ---------------------------------------------------------------- memory

ROWS, WIDE = 200_000, 256  # 205 MB

GROWTH = """
import resource, sys
import numpy as np, torch
from vqnotes import __main__, diagnose, diagnose_model
from vqnotes.diagnosis import on_disk
from vqnotes.diagnosis.listening import records
from vqnotes.quantizers import VectorQuantizer
on_disk.MOST_NUMBERS = records.MOST_NUMBERS = 2**22  # 17 MB
class Quiet(VectorQuantizer):
    def forward(self, x):
        out = super().forward(x)
        return out._replace(latents_q=out.latents_q[:, :1])  # no reconstruction
def quantizer():
    torch.manual_seed(0)
    model = VectorQuantizer(16, 256)
    model.codebook.data.copy_(torch.from_numpy(np.load("codes.npy")))
    return model
z = np.load("small.npy", mmap_mode="r")
def work(z, name):
    {work}
work(z, "small.npy")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
z = np.load("z.npy", mmap_mode="r")
work(z, "z.npy")
print(round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))
"""
WORK = {
    "diagnose": "diagnose(z, np.load('codes.npy'))",
    "diagnose, with inputs": "diagnose(z, np.load('codes.npy'), inputs=z)",
    "diagnose_model": "diagnose_model(quantizer(), z)",
    "diagnose_model, by a call": "diagnose_model(quantizer(), z, call=lambda model, batch: model(batch))",
    "vqnotes diagnose": "__main__.main(['diagnose', name, 'codes.npy', '--inputs', name])",
    "vqnotes model": "__main__.main(['model', 'checkpoint.py:build', '--data', name])",
}


@pytest.mark.parametrize("way", WORK)
def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch, way):
    """Beside the same work on a small file. Mapped pages count, too."""
    pytest.importorskip("resource")
    monkeypatch.chdir(tmp_path)
    some = normal(20_000, WIDE).numpy()
    np.save("small.npy", some)
    large = np.lib.format.open_memmap("z.npy", mode="w+", dtype="f4", shape=(ROWS, WIDE))
    large[: len(some)] = some  # the rest is a hole, which reads as 0
    large.flush()
    np.save("codes.npy", some[:16])
    (tmp_path / "checkpoint.py").write_text("from __main__ import quantizer as build\n", encoding="utf-8")
    *_, grown = run_python(GROWTH.replace("{work}", WORK[way])).stdout.split()
    assert int(grown) < 80, f"{grown} MB for a file of {ROWS * WIDE * 4 // 10**6} MB"


def test_the_command_says_of_a_file_what_python_says(latents, tmp_path, capsys):
    from vqnotes import __main__

    for sick, status in (False, 0), (True, 1):
        np.save(tmp_path / "codes.npy", codes_on(latents, sick).numpy())
        z, codes = str(latents.filename), str(tmp_path / "codes.npy")
        assert __main__.main(["diagnose", z, codes, "--inputs", z, "--json", "-"]) == status
        said = json.loads(capsys.readouterr().out)
        assert said["verdict"] == diagnose(latents, codes_on(latents, sick), inputs=latents).verdict
