"""A sweep keeps what finished and names what failed; tables of runs say what analysis of variance says."""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import dask
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster
from pytest import approx

from vqnotes.metrics import summary
from vqnotes.studies.sweeps import differences, eta_squared, grid, rank_correlation, sweep

SETTINGS = grid(width=[2, 8], start=["a", "b"])


def measure(seeds, width, start):
    """Stands for a training: one dict a seed."""
    return [{"score": width * 100 + seed, "seen": start} for seed in seeds]


def unlucky(seeds, width, start):
    """Raises for one seed of one setting, and always for another."""
    if (width, start) == (8, "b"):
        raise ValueError("broken setting")
    if (width, start) == (2, "b") and 1 in seeds:
        raise ValueError("seed 1 diverged")
    return measure(seeds, width, start)


def deadly(seeds, width, start, done):
    """Takes the worker down for one setting, once the others have left their mark in the folder `done`."""
    if (width, start) == (8, "b"):
        while len(os.listdir(done)) < len(SETTINGS) - 1:
            time.sleep(0.1)
        time.sleep(3)  # their answers are on the way
        os._exit(1)
    (done / f"{width}{start}").touch()
    return measure(seeds, width, start)


@pytest.fixture
def pool():
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        yield executor


@pytest.fixture(scope="module")
def cluster():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as local,
        Client(local) as client,
        client.get_executor() as executor,
    ):
        yield executor


def as_expected(table):
    expected = [{**setting, "seed": seed} for setting in SETTINGS for seed in (0, 1, 5)]
    assert table[["width", "start", "seed"]].to_dict("records") == expected
    assert list(table) == ["width", "start", "seed", "score", "seen"] and table.attrs["failed"] == []
    assert (table["score"] == table["width"] * 100 + table["seed"]).all() and (table["seen"] == table["start"]).all()


# ---------------------------------------------------------------- grid and sweep


def test_a_grid_holds_every_combination_in_order():
    assert grid(a=[1, 2], b="xy") == [{"a": a, "b": b} for a in (1, 2) for b in "xy"]
    assert grid(a={"k": 1, "l": 2}) == [{"a": "k"}, {"a": "l"}]
    for empty in ({}, {"a": []}, {"a": [1], "b": ()}):
        with pytest.raises(ValueError, match="at least one level"):
            grid(**empty)


def test_a_sweep_returns_one_row_a_run():
    as_expected(sweep(measure, SETTINGS, seeds=[0, 1, 5], progress=False))


def test_a_sweep_runs_on_processes(pool):
    as_expected(sweep(measure, SETTINGS, seeds=[0, 1, 5], executor=pool, progress=False))


def test_a_sweep_runs_on_a_dask_cluster(cluster):
    as_expected(sweep(measure, SETTINGS, seeds=[0, 1, 5], executor=cluster, progress=False))


def test_settings_that_raise_do_not_take_the_rest_with_them(pool, cluster):
    for executor in (None, pool, cluster):
        with pytest.warns(UserWarning, match="4 runs did not finish") as caught:
            table = sweep(unlucky, SETTINGS, seeds=[0, 1, 5], executor=executor, progress=False)
        assert caught[0].filename == __file__ and "seeds [1]: ValueError('seed 1 diverged')" in str(caught[0].message)
        assert table["seed"].tolist() == [0, 1, 5, 0, 5, 0, 1, 5] and table.attrs["failed"] == [
            ({"width": 2, "start": "b"}, [1], "ValueError('seed 1 diverged')"),
            ({"width": 8, "start": "b"}, [0, 1, 5], "ValueError('broken setting')"),
        ]


def test_a_worker_that_dies_does_not_take_finished_runs_with_it(pool, tmp_path):
    with pytest.warns(UserWarning, match="2 runs did not finish"):
        table = sweep(partial(deadly, done=tmp_path), SETTINGS, seeds=[0, 1], executor=pool, progress=False)
    assert len(table) == 6 and table["score"].max() == 801
    ((setting, seeds, reason),) = table.attrs["failed"]
    assert setting == {"width": 8, "start": "b"} and seeds == [0, 1] and "BrokenProcessPool" in reason
    with pytest.raises(RuntimeError, match="(?s)no run finished.*width.*2.*seeds"):  # the pool is of no use any more
        sweep(measure, SETTINGS, seeds=[0], executor=pool, progress=False)


def test_what_cannot_travel_is_named(pool):
    with pytest.raises(RuntimeError, match="no run finished"):
        sweep(lambda seeds, **_: [{}] * len(seeds), SETTINGS, seeds=[0], executor=pool, progress=False)


def test_a_dask_worker_that_dies_does_not_take_finished_runs_with_it(tmp_path):
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
        client.get_executor() as executor,
        pytest.warns(UserWarning, match="2 runs did not finish"),
    ):
        table = sweep(partial(deadly, done=tmp_path), SETTINGS, seeds=[0, 1], executor=executor, progress=False)
    assert len(table) == 6 and "KilledWorker" in table.attrs["failed"][0][2]


def test_a_result_of_the_wrong_length_is_a_failure():
    with pytest.raises(RuntimeError, match="2 results for 1 seeds"):
        sweep(lambda seeds, **_: [{}, {}], SETTINGS, seeds=[0], progress=False)


@pytest.mark.parametrize(
    "settings, seeds, shown", [([], [0], "0 settings"), (SETTINGS, [], r"seeds \[\]"), (SETTINGS, [1, 1], "1, 1")]
)
def test_a_sweep_over_nothing_is_refused(settings, seeds, shown):
    with pytest.raises(ValueError, match=shown):
        sweep(measure, settings, seeds=seeds, progress=False)


# ---------------------------------------------------------------- what a table says


def runs(effect, *, seeds=8, noise=1.0):
    """One row a run; effect(a, b) is the mean of a cell, seeds share a part of their noise."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal(seeds)
    rows = [
        {"a": a, "b": b, "seed": seed, "y": effect(a, b) + noise * (shared[seed] + rng.standard_normal())}
        for a in range(3)
        for b in range(4)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_eta_squared_is_the_two_way_analysis_of_variance():
    table = runs(lambda a, b: 2 * a + b + a * b)
    shares = eta_squared(table, "y", ("a", "b")).set_index("cause")
    y, cell = table["y"], table.groupby(["a", "b"])["y"].transform("mean")
    total = ((y - y.mean()) ** 2).sum()
    alone = {c: ((table.groupby(c)["y"].transform("mean") - y.mean()) ** 2).sum() / total for c in "ab"}
    between = ((cell - y.mean()) ** 2).sum() / total
    expected = [alone["a"], alone["b"], between - alone["a"] - alone["b"], 1 - between]
    assert shares.index.tolist() == ["a", "b", "interaction", "seeds"]
    assert shares["share"].tolist() == approx(expected) and shares["share"].sum() == approx(1)
    assert ((shares["low"] < shares["share"]) & (shares["share"] < shares["high"])).all()


@pytest.mark.parametrize(
    "effect, winner",
    [(lambda a, b: a, "a"), (lambda a, b: b, "b"), (lambda a, b: (a - 1) * (b - 1.5), "interaction")],
)
def test_eta_squared_finds_the_cause(effect, winner):
    shares = eta_squared(runs(effect, noise=0.01), "y", ("a", "b")).set_index("cause")["share"]
    assert shares.idxmax() == winner and shares[winner] > 0.99


def test_eta_squared_refuses_what_is_not_a_full_crossing():
    table = runs(lambda a, b: a)
    refused = [
        (table.iloc[1:], "for each seed in each cell"),
        (pd.concat([table, table[:1]]), "occurs twice"),
        (table[table["a"] == 0], "at least two levels"),
        (table[table["seed"] == 0], "two seeds"),
        (table.assign(y=1.0), "vary"),
        (table.assign(y=np.nan), "finite"),
    ]
    for wrong, shown in refused:
        with pytest.raises(ValueError, match=shown):
            eta_squared(wrong, "y", ("a", "b"))


def test_two_seeds_of_two_levels_are_the_least():
    cells, y = np.ndindex(2, 2, 2), [0, 2, 4, 6, 8, 6, 12, 14]
    table = pd.DataFrame([{"a": a, "b": b, "seed": seed, "y": one} for (a, b, seed), one in zip(cells, y)])
    # means of the cells 1, 5, 7, 13, of a 3 and 10, of b 4 and 9, in all 6.5: 12.25, 6.25, 0.25 and 1 of 19.75
    shares = eta_squared(table, "y", ("a", "b"))["share"]
    assert shares.tolist() == approx([12.25 / 19.75, 6.25 / 19.75, 0.25 / 19.75, 1 / 19.75])
    for causes in ("a",), ("a", "b", "a"), ("a", "a"), ("a", "y"), ("a", "seed"):
        with pytest.raises(ValueError, match="need two causes"):
            eta_squared(table, "y", causes)
    with pytest.raises(ValueError, match=r"need rows with columns \['seed', 'a', 'c', 'y'\]"):
        eta_squared(table, "y", ("a", "c"))
    with pytest.raises(ValueError, match="finite"):
        eta_squared(table.replace({"y": {14: np.inf}}), "y", ("a", "b"))


def test_differences_are_taken_seed_by_seed():
    rows = [
        {"arm": arm, "seed": seed, "y": 1000 * seed + up} for arm, up in (("b", 3), ("plain", 0)) for seed in range(5)
    ]
    rows += [{"arm": "c", "seed": seed, "y": 1000 * seed - 1 - seed % 2} for seed in range(5)]
    change = differences(pd.DataFrame(rows), by="arm", to="plain", y="y")
    assert change["arm"].tolist() == ["b", "c"] and change["mean"].tolist() == approx([3, -1.4])
    assert change["low"][0] == change["high"][0] == 3 and -2 <= change["low"][1] < -1.4 < change["high"][1] <= -1
    with pytest.raises(ValueError, match="no arm 'd' among"):
        differences(pd.DataFrame(rows), by="arm", to="d", y="y")
    with pytest.raises(ValueError, match="every arm needs every seed"):
        differences(pd.DataFrame(rows[1:]), by="arm", to="plain", y="y")


def test_a_summary_has_a_row_a_group_in_order_of_appearance():
    table = summary(runs(lambda a, b: 10 * a, noise=0.1).sort_values("a", ascending=False), ["a", "b"], "y")
    assert len(table) == 12 and table["a"].tolist()[:4] == [2] * 4
    assert table["mean"].tolist() == approx((10 * table["a"]).tolist(), abs=0.3)
    assert (table["low"] < table["mean"]).all() and (table["mean"] < table["high"]).all()


@pytest.mark.parametrize("wrong", ["a", "", None, float("nan"), float("inf")])
def test_a_summary_refuses_what_has_no_mean(wrong):
    table = pd.DataFrame({"a": [0, 0, 0], "y": pd.Series([0, 0, wrong], dtype=object)})
    with pytest.raises(ValueError):
        summary(table, ["a"], "y")


def test_a_rank_correlation_sees_order_and_not_form():
    runs = pd.DataFrame({"seed": np.repeat(range(6), 5), "x": np.tile(np.arange(5.0), 6)})
    runs["y"], noise = np.exp(-runs["x"]), np.random.default_rng(0).standard_normal(30)
    assert rank_correlation(runs, "x", "y") == approx((-1, -1, -1))
    runs["y"] += 0.5 * noise
    value, low, high = rank_correlation(runs, "x", "y")
    assert -1 < low < value < high < 0 and high - low < 0.8


def test_a_rank_correlation_draws_whole_seeds():
    """One seed of six is the other way round: an interval over runs would be half as wide."""
    runs = pd.DataFrame({"seed": np.repeat(range(6), 20), "x": np.tile(np.arange(20.0), 6)})
    runs["y"] = np.where(runs["seed"] == 0, -runs["x"], runs["x"])
    value, low, high = rank_correlation(runs, "x", "y")
    assert high == approx(1) and low < value - 0.3


def test_a_rank_correlation_needs_two_seeds():
    runs = pd.DataFrame({"seed": [3, 3], "x": [0, 1], "y": [1, 0]})
    with pytest.raises(ValueError, match=r"two seeds, got \[3\]"):
        rank_correlation(runs, "x", "y")
    with pytest.raises(ValueError, match="z"):
        rank_correlation(runs, "x", "z")
