"""The study of large codebooks: what a run starts from, when it is measured; cut off, it goes on where it stopped."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers import normal
from notebook_tools import ROOT

from vqnotes import data
from vqnotes.studies import codebook_size, large_codebooks
from vqnotes.studies.large_codebooks import ARMS, ConvAutoencoder, Plan, Run, looks, trained

PLAN = Plan(images=48, steps=6, batch_size=8)
ARGUMENTS = ["--sizes", "16", "8", "--images", "48", "--steps", "6", "--batch-size", "8", "--device", "cpu"]


def pictures(count, seed=0):
    return normal(count, 1, 28, 28, seed=seed).sigmoid()


@pytest.fixture
def images():
    return codebook_size.Images("noise", pictures(48), pictures(24, seed=1))


@pytest.fixture
def study(monkeypatch, tmp_path):
    """The command, on few pictures, in this process: from further arguments to its status and the table."""
    monkeypatch.setattr(data, "fashion_mnist", lambda split: data.LabelledData(pictures(60), torch.zeros(60)))
    monkeypatch.setattr(large_codebooks, "processes", lambda workers, _: ThreadPoolExecutor(workers))
    large_codebooks._images.cache_clear()

    def run(*more):
        status = large_codebooks.main([*ARGUMENTS, "--out", str(tmp_path / "table.csv"), *more])
        return status, pd.read_csv(tmp_path / "table.csv")

    yield run
    large_codebooks._images.cache_clear()


def test_the_model_gives_a_latent_a_square_and_images_back():
    model = ConvAutoencoder(3, 32)
    x = normal(2, 3, 8, 12)
    assert model.encode(x).shape == (2, 2, 3, large_codebooks.DIM)
    rebuilt, quantized = model(x)
    assert rebuilt.shape == x.shape and quantized.index.shape == (2, 2, 3)


def test_a_latent_sees_beyond_its_square():
    model, x = ConvAutoencoder(1, 8), torch.zeros(1, 1, 12, 12, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.encode(x)[0, 1, 1].sum(), x)
    assert (gradient[0, 0, 4:8, 4:8] != 0).all() and (gradient[0, 0, :4] != 0).any()


def test_the_number_of_codes_changes_no_weight():
    states = []
    for codes in (8, 64):
        torch.manual_seed(3)
        states.append(ConvAutoencoder(1, codes).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0] if "quantizer" not in name)


@pytest.mark.parametrize("steps, expected", [(1, [0, 1]), (6, [0, 1, 3, 6]), (40, [0, 1, 3, 10, 20, 30, 40])])
def test_looks_are_close_together_at_first(steps, expected):
    assert looks(steps) == expected


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_is_measured_from_the_placing_of_its_codes_on(arm, images, monkeypatch):
    placed = []
    measure = codebook_size.measure_model
    monkeypatch.setattr(
        codebook_size,
        "measure_model",
        lambda model, test: (placed.append(model.quantizer.codes().clone()), measure(model, test))[1],
    )
    rows = pd.DataFrame(trained(Run(arm, 16, 0), PLAN, images))
    begin = 3 if arm == "warm-up" else 0
    assert list(rows["step"]) == [begin + age for age in rows["age"]] and list(rows["age"])[:2] == [0, 1]
    assert rows["step"].iloc[-1] == 6 and (rows["gap"].notna() == (rows["step"] == 6)).all()
    assert (rows[["images", "steps", "batch_size"]] == [48, 6, 8]).all(axis=None)
    assert set(rows["device"]) == {codebook_size.device_name(torch.device("cpu"))}
    assert (placed[0].abs().max() <= 1 / 16) == (arm == "random start")
    assert rows["usage"].between(1 / 16, 1).all()


def test_arms_begin_with_the_same_weights(images):
    errors = [trained(Run(arm, 16, 0), replace(PLAN, steps=1), images)[0] for arm in ("untrained k-means", "warm-up")]
    assert errors[0]["error"] == errors[1]["error"], "a warm-up of no step is the untrained k-means"


def test_the_table_holds_every_run_and_a_second_call_trains_nothing(study, monkeypatch):
    status, table = study("--seeds", "2")
    assert status == 0
    runs = set(table[["arm", "K", "seed"]].itertuples(index=False, name=None))
    assert runs == {(arm, size, seed) for arm in ARMS for size in (8, 16) for seed in (0, 1)}
    found, last = large_codebooks.ends(table), table[table["step"] == 6]
    assert (found["seeds"] == 2).all() and len(found) == 6
    expected = last[(last["K"] == 8) & (last["arm"] == "warm-up")][["error", "gap"]].mean()
    assert found.loc[(8, "warm-up"), ["error", "gap"]].tolist() == pytest.approx(expected.tolist())
    monkeypatch.setattr(large_codebooks, "trained", None)
    status, again = study("--seeds", "2")
    assert status == 0 and again.equals(table)


def test_out_of_time_it_stops_and_goes_on_later(study, monkeypatch):
    first, table = study("--sizes", "8", "--seeds", "1")
    status, same = study("--limit-s", "0", "--seeds", "1")
    assert first == 0 and status == 1 and same.equals(table)
    status, table = study("--seeds", "1", "--workers", "2")
    assert status == 0 and set(table["K"]) == {8, 16}


def test_a_run_that_fails_does_not_stop_the_others(study, capsys):
    status, table = study("--sizes", "64", "8", "--images", "20", "--seeds", "1")
    assert status == 1 and set(table["K"]) == {8}
    assert re.search(r"K=64, seed=0\).* failed: .* too few", capsys.readouterr().out)


def test_a_table_of_another_plan_is_not_mixed_with_this_one(study):
    _, table = study("--seeds", "1")
    with pytest.raises(ValueError, match=r"another plan: steps \[6\], and 9 here"):
        study("--seeds", "1", "--steps", "9")
    with pytest.raises(ValueError, match="another plan: images not in it"):
        large_codebooks.remaining([], table.drop(columns="images"), PLAN)


def test_an_unknown_arm_is_refused(images):
    with pytest.raises(KeyError, match="cold start"):
        trained(Run("cold start", 8, 0), PLAN, images)


# ---------------------------------------------------------------- the table that comes with the module


def test_the_stored_table_is_of_one_plan_and_has_every_start_at_every_size():
    table = large_codebooks.stored_table()
    assert large_codebooks.remaining([], table, Plan()) == [] and table["device"].nunique() == 1
    runs = table.groupby(["arm", "K", "seed"])
    assert set(table["arm"]) == set(ARMS) and set(table["K"]) == set(large_codebooks.SIZES)
    for (arm, _, _), run in runs:
        warmup = Plan().steps // 2 if arm == "warm-up" else 0
        assert list(run["age"]) == [one for one in looks(Plan().steps) if one <= Plan().steps - warmup]
        assert (run["step"] == run["age"] + warmup).all() and list(run["gap"].notna()) == [False] * (len(run) - 1) + [
            True
        ]
    seeds = large_codebooks.ends(table)["seeds"]
    assert len(seeds) == len(ARMS) * len(large_codebooks.SIZES) and seeds.between(2, 3).all()


def test_what_the_texts_say_of_it_is_what_the_table_holds():
    table = large_codebooks.stored_table()
    ends = large_codebooks.ends(table)
    said = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    for size, part in ends.groupby(level="K"):
        means = part.droplevel("K").loc[[*ARMS]]
        cells = [f"{size:,}", *map("{:.0%}".format, means["usage"]), *map("{:.3f}".format, means["error"])]
        seeds = " or ".join(map(str, sorted(set(means["seeds"]))))
        assert f"| {' | '.join(cells)} | {seeds} |" in said
    notebook = (ROOT / "notebooks/10_at_scale.ipynb").read_text(encoding="utf-8")
    for arm, words in {
        "warm-up": "{usage:.0%} of the codes are alive at the end after a warm-up, "
        "with a perplexity of {perplexity:,.0f} and an error of {error:.3f}",
        "untrained k-means": "From k-means on the untrained encoder {usage:.0%} are alive, "
        "with an error of {error:.3f}",
        "random start": "from a random start {usage:.0%}, with an error of {error:.3f}",
    }.items():
        assert words.format(**ends.loc[(16_384, arm)]) in notebook
    assert f"a perplexity of {ends.loc[(16_384, 'warm-up'), 'perplexity']:,.0f}" in said
    assert (ends.loc[16_384, "seeds"] == 3).all() and (ends.loc[64, "usage"] == 1).all()


def test_what_the_texts_conclude_holds_for_every_seed():
    table = large_codebooks.stored_table()
    last = table[table["step"] == Plan().steps].assign(live=lambda runs: runs["usage"] * runs["K"])
    errors = last.pivot_table(index=["K", "seed"], columns="arm", values="error")
    assert (errors.loc[512:].idxmin(axis=1) == "warm-up").all()
    for _, warm in errors["warm-up"].dropna().groupby("seed"):
        assert warm.is_monotonic_decreasing
    others = last[(last["arm"] != "warm-up") & (last["K"] >= 1024)]
    assert others["live"].between(200, 500).all()
    soon = table[(table["arm"] != "warm-up") & (table["K"] == 16384) & (table["age"] == 10)]
    assert len(soon) == 6 and (soon["usage"] * soon["K"]).max() < 100  # they have come back since
    at_64 = errors.loc[64]
    assert (at_64.idxmin(axis=1) == "random start").all()
