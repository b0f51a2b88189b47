"""The sweep over codebook sizes: what it measures, and that it goes on where it stopped, whatever stopped it."""

import os
import platform
import re
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import press, run_python

from vqnotes import data, metrics, models, quantizers, training
from vqnotes.kmeans import kmeans
from vqnotes.studies import codebook_size

TINY = replace(codebook_size.SMALL, sizes=(4, 16), seeds=2, together=1, steps=16, batch_size=8, width=8)
PARTS = 8  # two sizes, two arms, two seeds
PROCESSOR = codebook_size.device_name(torch.device("cpu"))


def sweep(folder, tiny=TINY, seeds=range(2)):
    return codebook_size.run_sweep(tiny, folder, seeds, progress=False)


def same(one, other):
    """Whether two tables tell the same, except of time."""
    pd.testing.assert_frame_equal(one.runs.drop(columns="seconds"), other.runs.drop(columns="seconds"))
    assert one.shown.keys() == other.shown.keys()
    for part, tensors in one.shown.items():
        assert all(torch.equal(*pair) for pair in zip(tensors, other.shown[part], strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep that nothing interrupts, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return sweep(folder), folder


# ---------------------------------------------------------------- scales, folders, data


def test_the_scale_is_chosen_by_the_environment(monkeypatch):
    for expected in (codebook_size.SMALL, codebook_size.MEDIUM, codebook_size.FULL):
        monkeypatch.setenv("VQNOTES_SCALE", name := expected.name)
        assert codebook_size.chosen() is expected and name in ("small", "medium", "full")
    monkeypatch.setenv("VQNOTES_SCALE", "large")
    with pytest.raises(ValueError, match="'small', 'medium' or 'full', got 'large'"):
        codebook_size.chosen()
    monkeypatch.delenv("VQNOTES_SCALE")
    for found, expected in ((True, codebook_size.FULL), (False, codebook_size.SMALL)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        assert codebook_size.chosen() is expected


def test_results_of_the_small_scale_are_never_found_again(monkeypatch, tmp_path):
    monkeypatch.delenv("VQNOTES_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path)
    one, other = codebook_size.results_folder(codebook_size.SMALL), codebook_size.results_folder(codebook_size.SMALL)
    assert one != other and not list(one.iterdir()) and not list(tmp_path.iterdir())
    code = "from vqnotes.studies import codebook_size as study; print(study.results_folder(study.SMALL))"
    assert not os.path.exists(run_python(code).stdout.strip())
    assert codebook_size.results_folder(codebook_size.FULL).resolve() == tmp_path / "vqnotes-results"
    monkeypatch.setenv("VQNOTES_RESULTS", str(tmp_path / "a" / "b"))
    assert (
        codebook_size.results_folder(codebook_size.SMALL)
        == codebook_size.results_folder(codebook_size.FULL)
        == tmp_path / "a" / "b"
    )


def test_the_digits_are_split_once_and_for_all():
    name, train, test = codebook_size.images(codebook_size.SMALL)
    assert name == "digits" and train.shape == (1437, 1, 8, 8) and test.shape == (360, 1, 8, 8)
    everything = torch.cat([train, test]).flatten(1)
    assert torch.equal(everything.sum(0), data.digits().x.flatten(1).sum(0))
    assert torch.equal(codebook_size.images(codebook_size.SMALL).test, test)


def loaders(monkeypatch, **found):
    """Puts in the place of data sets what `found` says: the side of their pictures, or an error."""
    for name, outcome in found.items():

        def load(split, outcome=outcome):
            if isinstance(outcome, Exception):
                raise outcome
            count = 40 if split == "train" else 20
            return data.LabelledData(torch.rand(count, 3, outcome, outcome), torch.zeros(count))

        monkeypatch.setattr(data, name, load)


def test_the_first_data_set_that_can_be_had_is_used(monkeypatch, tmp_path):
    loaders(monkeypatch, cifar10=32, fashion_mnist=28)
    assert codebook_size.images(codebook_size.FULL).name == "cifar10"
    quick = replace(codebook_size.FULL, sizes=(64,), steps=4, batch_size=2, width=8)
    counts, pictures = sweep(tmp_path, quick, [0]).shown["warm-up", 64]
    assert counts.sum() == 20 * 64 and pictures.shape == (codebook_size.SHOWN, 3, 32, 32)
    loaders(monkeypatch, cifar10=OSError("no network"))
    name, train, test = codebook_size.images(codebook_size.FULL)
    assert (name, train.shape, test.shape) == ("fashion_mnist", (40, 3, 28, 28), (20, 3, 28, 28))
    loaders(monkeypatch, fashion_mnist=OSError("none here either"))
    for error in (OSError("no network\nnone here either"), ValueError("a wrong file")):
        with pytest.raises(type(error), match=str(error)):
            codebook_size.images(codebook_size.FULL)
        loaders(monkeypatch, cifar10=ValueError("a wrong file"))


# ---------------------------------------------------------------- what is measured


def test_measures_are_those_of_metrics():
    _, train, test = codebook_size.images(codebook_size.SMALL)
    torch.manual_seed(0)
    model = models.image_autoencoder(1, quantizers.VectorQuantizer(8, 3, update="ema"), width=8)
    model.quantizer.place_codes(*kmeans(model.encode(train).detach().reshape(-1, 3), 8))
    found, outcome = codebook_size.measure_model(model, test)
    codes, latents = model.quantizer.codebook, outcome.latents.reshape(-1, 3)
    assert found["perplexity"] == metrics.perplexity(outcome.index, 8) <= 8 * found["usage"]
    assert found["error"] == metrics.reconstruction_error(outcome.reconstruction, test)
    assert found["effective dimension"] == metrics.effective_dimension(codes[outcome.index])
    assert found["cosine distance"] == metrics.pairwise_distance(codes)
    between = np.mean([(codes[i] - codes[j]).norm().item() for i in range(8) for j in range(8) if i != j])
    pairs = torch.cdist(latents.double(), latents.double()).square().mean().sqrt().item()
    assert found["spread"] == pytest.approx(between / pairs, rel=1e-4)
    assert codebook_size.gap(model, train, 0) == pytest.approx(1, abs=0.1)
    model.quantizer.place_codes(codes + 10 * codes.std(), model.quantizer.share)
    assert codebook_size.gap(model, train, 0) > 10


def test_a_part_is_the_run_of_fit_with_the_same_start():
    _, train, test = codebook_size.images(TINY)
    row = codebook_size.train_part(TINY, "warm-up", 16, [3], train, test)["rows"][-1]
    torch.manual_seed(3)
    quantizer = quantizers.VectorQuantizer(16, 8, update="ema")
    model = models.image_autoencoder(1, quantizer, width=8, decoder_width=8)

    def place(step, now):
        if step == 8:
            latents = models.sample_latents(now, train, 512, torch.Generator().manual_seed(3))
            quantizer.place_codes(*kmeans(latents, 16, 3))

    options = {"steps": 16, "warmup": 8, "seed": 3, "batch_size": 8, "lr": TINY.lr, "progress": False}
    training.fit(model, train, init=None, callback=place, **options)
    assert row["error"] == pytest.approx(codebook_size.measure_model(model, test)[0]["error"], rel=1e-3)


def test_the_table_holds_every_run_and_look(whole):
    results, folder = whole
    assert (results.trained, results.left) == (PARTS, 0) and len(list(folder.iterdir())) == PARTS
    runs = results.runs
    assert not runs.duplicated(["arm", "K", "seed", "step"]).any() and set(runs["device"]) == {PROCESSOR}
    looks = runs.groupby(["arm", "K", "seed"])["step"].agg(list)
    assert len(looks) == PARTS
    assert all(looks["untrained k-means"].map(lambda steps: steps == [0, 2, 4, 8, 16]))
    assert all(looks["warm-up"].map(lambda steps: steps == [8, 10, 12, 16]))
    assert (runs["age"] == runs["step"] - 8 * (runs["arm"] == "warm-up")).all()
    assert (runs["gap"].notna() == (runs["step"] == 16)).all() and runs.drop(columns="gap").notna().all(axis=None)
    for (arm, size), (counts, pictures) in results.shown.items():
        last = runs[(runs["arm"] == arm) & (runs["K"] == size) & (runs["seed"] == 0) & (runs["step"] == 16)]
        shares = counts / counts.sum()
        assert counts.sum() == 360 * 4 and len(counts) == size and (counts.diff() <= 0).all()
        assert np.exp(metrics.entropy(shares)) == pytest.approx(last["perplexity"].item(), rel=1e-5)
        assert pictures.shape == (codebook_size.SHOWN, 1, 8, 8) and pictures.dtype == torch.uint8


def test_seeds_together_are_seeds_one_by_one(whole, tmp_path):
    together = sweep(tmp_path, replace(TINY, together=2))
    assert len(list(tmp_path.iterdir())) == together.trained == PARTS / 2
    key = ["arm", "K", "seed", "step"]
    one, other = (results.runs.groupby(key)["error"].sum() for results in (whole[0], together))
    pd.testing.assert_series_equal(one, other, rtol=1e-2)


# ---------------------------------------------------------------- going on


def test_a_second_call_trains_nothing(whole):
    results, folder = whole
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = sweep(folder)
    assert (again.trained, again.left) == (0, 0) and all(path.stat().st_mtime_ns == before[path] for path in before)
    same(again, results)


def test_killed_at_any_time_it_goes_on_to_the_same_table(whole, tmp_path):
    code = (
        "import os, signal\nfrom vqnotes import training\nfrom vqnotes.studies.codebook_size import *\n"
        "def killed(*plan, callback, **options):\n"
        "    def watch(step, models):\n"
        "        if step == {step} and len(os.listdir({folder!r})) == {parts}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        callback(step, models)\n"
        "    return train(*plan, callback=watch, **options)\n"
        "train, training.fit_many = training.fit_many, killed\n"
        "run_sweep({tiny!r}, {folder!r}, range(2), progress=False)"
    )
    left = []
    for parts, step in ((1, 3), (4, 15)):  # once early, once later
        filled = code.format(parts=parts, step=step, tiny=TINY, folder=str(tmp_path))
        process = subprocess.run([sys.executable, "-c", filled], capture_output=True)
        assert process.returncode == -signal.SIGKILL, process.stderr
        left.append(len(list(tmp_path.glob("*.json"))))
    assert left[0] < left[1] < PARTS
    (tmp_path / ".a part.json.half").write_text("{")  # of a kill while it was written
    results = sweep(tmp_path)
    assert (results.trained, results.left) == (PARTS - left[1], 0)
    same(results, whole[0])


def test_an_interrupt_costs_the_run_in_progress_only(whole, tmp_path, monkeypatch):
    train, calls = training.fit_many, []

    def interrupted(*arguments, callback, **options):
        def pressing(step, now):
            if len(calls) == 3 and step == 5:
                press()
            callback(step, now)

        calls.append(1)
        return train(*arguments, callback=pressing, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit_many", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert sweep(tmp_path).trained == PARTS - 2
    same(sweep(tmp_path), whole[0])


def test_a_part_that_fails_is_left_out_and_tried_again(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        placed = kmeans
        fails = lambda latents, size, *rest: placed(latents, size if size < 16 else 10**6, *rest)  # noqa: E731
        patch.setattr(codebook_size, "kmeans", fails)
        failed = r"some parts failed(?s:.*)'warm-up', 16, \[1\].*1000000 codes"
        with pytest.warns(UserWarning, match=failed) as caught:
            results = sweep(tmp_path)
    assert caught[0].filename == __file__
    assert (results.trained, results.left) == (4, 4) and set(results.runs["K"]) == {4}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(sweep(tmp_path), whole[0])


def test_no_run_begins_after_the_last_minute(tmp_path):
    with pytest.raises(RuntimeError, match="nothing has finished"):
        sweep(tmp_path, replace(TINY, minutes=0))
    first, later = sweep(tmp_path, replace(TINY, sizes=(4,)), seeds=[0]), sweep(tmp_path, replace(TINY, minutes=0))
    assert (later.trained, later.left) == (0, PARTS - 2)
    same(later, first)


def test_results_of_other_settings_are_not_mixed_in(tmp_path):
    few = replace(TINY, sizes=(4,))
    sweep(tmp_path, few, seeds=[0])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"other settings: lr 0.003 there and 0.5 here, steps 16 there and 20 here"):
        sweep(tmp_path, replace(few, steps=20, lr=0.5), seeds=[0])
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sweep(tmp_path, few, seeds=[5]).trained == 2, "other seeds stand beside them"


@pytest.mark.parametrize("content", ["", '{"settings": {}, "rows', "[]", '{"rows": []}', "3"])
def test_a_broken_file_is_refused_and_kept(tmp_path, content):
    few = replace(TINY, sizes=(4,))
    sweep(tmp_path, few, seeds=[0])
    path = min(tmp_path.iterdir())
    path.write_text(content)
    with pytest.raises(ValueError, match="is not a part of a sweep.*Nothing was changed"):
        sweep(tmp_path, few, seeds=[0])
    assert path.read_text() == content


def test_seeds_must_be_there_and_differ(tmp_path):
    for seeds in ([], [1, 1]):
        with pytest.raises(ValueError, match="seed"):
            sweep(tmp_path, seeds=seeds)


# ---------------------------------------------------------------- the command, and the stored table


def test_a_processor_is_named_with_its_threads(monkeypatch):
    assert re.fullmatch(r".*\w.*, \d+ threads?", PROCESSOR)
    monkeypatch.setattr(codebook_size, "Path", lambda name: Path("none there"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert codebook_size.device_name(torch.device("cpu")) == f"{platform.machine()}, 2 threads"


def test_the_command_gathers_what_the_folder_has_and_trains_what_it_lacks(monkeypatch, tmp_path):
    loaders(monkeypatch, fashion_mnist=28)
    monkeypatch.setattr(codebook_size, "MEDIUM", replace(codebook_size.MEDIUM, steps=64, batch_size=2, width=8))
    out, options = tmp_path / "table.csv", ["--folder", str(tmp_path / "parts"), "--out", str(tmp_path / "table.csv")]
    few = [*options, "--sizes", "16", "8", "--seeds"]
    assert codebook_size.main([*few, "1"]) == 0
    first = pd.read_csv(out)
    assert codebook_size.main([*few, "2", "--minutes", "0"]) == 1 and pd.read_csv(out).equals(first)
    assert codebook_size.main([*few, "2"]) == 0
    table = pd.read_csv(out)
    assert table[table["seed"] == 0].reset_index(drop=True).equals(first) and set(table["device"]) == {PROCESSOR}
    assert sorted(table["K"].unique()) == [8, 16] and len(table) == 2 * 2 * (6 + 5)


def test_the_stored_table_holds_every_run_and_look_of_the_medium_scale():
    table, scale = codebook_size.stored_table(), codebook_size.MEDIUM
    runs = table.groupby(["arm", "K", "seed"])["age"].agg(list)
    wanted = {(arm, size, seed) for arm in codebook_size.ARMS for size in scale.sizes for seed in range(scale.seeds)}
    assert set(runs.index) == wanted and table["device"].str.contains("thread").all()
    for (arm, _, _), ages in runs.items():
        assert ages == [0, 8, 64, 128, 256] + [512] * (arm == "untrained k-means")
    assert (table["gap"].notna() == (table["step"] == scale.steps)).all()
    assert table.drop(columns="gap").notna().all(axis=None) and table["usage"].between(0, 1).all()
