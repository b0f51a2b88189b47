"""Interrupts at any moment: a run is whole, what finished is kept, the next call works. (Files: test_files.py)"""

import signal
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import Moments, normal, press
from notebook_tools import HOURS

from vqnotes import _interrupts, _loop
from vqnotes._interrupts import cut_off
from vqnotes.models import mlp_autoencoder
from vqnotes.quantizers import VectorQuantizer
from vqnotes.studies import generation, sweeps
from vqnotes.studies.generation import fit_priors
from vqnotes.studies.sweeps import grid, sweep
from vqnotes.training import fit, fit_many


@pytest.fixture(autouse=True)
def as_it_was():
    """The handler of interrupts, and torch's random state; nothing is on record as cut off."""
    _interrupts._cut_off.clear()
    before, state = signal.getsignal(signal.SIGINT), torch.get_rng_state()
    yield
    assert signal.getsignal(signal.SIGINT) is before is signal.default_int_handler
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------- fit and fit_many

STEPS, WARMUP, DATA = 4, 2, normal(200, 4)


def built(update):
    def build(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return mlp_autoencoder(4, VectorQuantizer(6, 2, update=update), width=8).eval()

    return build


def trained(many, update, watch=lambda step: None, **plan):
    """(model, history) of each run, by one function or the other."""
    plan = {"steps": STEPS, "warmup": WARMUP, "batch_size": 64, "progress": False} | plan
    plan["callback"] = lambda step, _: watch(step)
    if many:
        return fit_many(built(update), DATA, seeds=[3, 5], **plan)
    model = built(update)(3)
    return [(model, fit(model, DATA, seed=3, **plan))]


def stopped_before(step):
    def stop(now):
        if now == step:
            raise KeyboardInterrupt

    return stop


def assert_equal(runs, others):
    for (model, history), (other, other_history) in zip(runs, others, strict=True):
        for one, two in (history.reconstruction, other_history.reconstruction), (history.quantizer,) * 2:
            np.testing.assert_array_equal(one, two)
        assert len(history.reconstruction) == len(history.quantizer) and not model.training
        expected = other.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("update", ["gradient", "ema"])
@pytest.mark.parametrize("many", [False, True])
def test_a_run_interrupted_at_any_moment_is_a_shorter_run(many, update):
    replayed = [trained(many, update, stopped_before(step)) for step in range(STEPS)]
    replayed.append(trained(many, update))
    for steps in (WARMUP, WARMUP + 1, STEPS):
        assert_equal(replayed[steps], trained(many, update, steps=steps))

    marks = []  # how many moments have passed at each call back, and at the end
    with Moments(_loop.run_steps, _loop.run_steps) as moments:
        trained(many, update, lambda step: marks.append(moments.now))
    marks.append(moments.now)
    rng = np.random.default_rng(many)
    chosen = [int(rng.integers(start + 1, end)) for start, end in zip([0, *marks], marks) for _ in range(3)]
    lengths = []
    for moment in chosen:
        called_back = []
        try:
            with Moments(_loop.run_steps, _loop.run_steps, [moment]):
                runs = trained(many, update, called_back.append)
        except KeyboardInterrupt:
            assert not called_back  # it came before the run had begun
            continue
        (length,) = {len(history) for _, history in runs}
        assert all(history.interrupted for _, history in runs) and called_back == list(range(length + 1))
        assert_equal(runs, replayed[length])
        lengths.append(length)
        for model, _ in runs:
            assert model.quantizer.codebook.untyped_storage().nbytes() == model.quantizer.codebook.nbytes
            assert len(fit(model, DATA, steps=1, seed=0, progress=False)) == 1
    assert set(lengths) == set(range(STEPS + 1))


def test_a_callback_that_hangs_ends_at_the_second_interrupt():
    reached = []

    def hang(step):
        if step == 3:
            press()
            reached.append(signal.getsignal(signal.SIGINT))
            press()
            reached.append("never")

    ((_, history),) = trained(False, "ema", hang)
    assert history.interrupted and len(history) == 3 and len(reached) == 1


def test_a_callback_that_catches_the_second_interrupt_still_ends_the_run():
    def catch(step):
        if step == 1:
            press()
            with pytest.raises(KeyboardInterrupt):
                press()

    ((_, history),) = trained(False, "ema", catch)
    assert history.interrupted and len(history) == 1


def test_a_run_inside_the_callback_of_another_ends_with_it():
    inner = []

    def nest(step):
        if step == 2:
            inner.extend(trained(False, "ema", lambda step: step == 1 and press()))

    ((_, outer),) = trained(False, "ema", nest)
    assert inner[0][1].interrupted and len(inner[0][1]) == 1
    assert outer.interrupted and len(outer) == 2


def test_interrupts_that_do_not_lead_to_an_exception_change_nothing():
    seen = []
    for handler, expected in ((signal.SIG_IGN, 0), (lambda *_: seen.append(signal.getsignal(signal.SIGINT)), 1)):
        before = signal.signal(signal.SIGINT, handler)
        try:
            ((_, history),) = trained(False, "ema", lambda step: step == 1 and press())
            assert signal.getsignal(signal.SIGINT) is handler
        finally:
            signal.signal(signal.SIGINT, before)
        assert len(history) == STEPS and not history.interrupted and len(seen) == expected


def test_outside_the_main_thread_signals_are_left_alone():
    handlers = []
    with ThreadPoolExecutor(1) as pool:
        watch = lambda step: handlers.append(signal.getsignal(signal.SIGINT))  # noqa: E731
        ((_, history),) = pool.submit(trained, False, "ema", watch).result()
        ((_, stopped),) = pool.submit(trained, False, "ema", stopped_before(1)).result()
    assert len(history) == STEPS and set(handlers) == {signal.default_int_handler}
    assert stopped.interrupted and len(stopped) == 1


# ---------------------------------------------------------------- sweep

SETTINGS = grid(width=[4, 8], update=["gradient", "ema"])


def measured(seeds, width, update):
    def build(seed):
        return mlp_autoencoder(4, VectorQuantizer(6, 2, update=update), width=width)

    runs = fit_many(build, DATA, seeds=seeds, steps=2, batch_size=64, progress=False)
    return [{"error": history.reconstruction[-1]} for _, history in runs]


def interrupted_itself(seeds, width, update):
    """In a worker: an interrupt ends the training, which does not say so to the sweep."""
    if (width, update) == (8, "ema"):
        fit(built("ema")(0), DATA, steps=3, seed=0, progress=False, callback=lambda step, _: step == 1 and press())
    return [{"error": 0.0} for _ in seeds]


def swept(moments, whole):
    """How many runs a sweep has when it is interrupted; all runs are there or named, and none is another."""
    try:
        with warnings.catch_warnings(), moments:
            warnings.simplefilter("ignore")
            table = sweep(measured, SETTINGS, seeds=[0, 1], progress=False)
    except RuntimeError as error:
        assert str(error).count("interrupted") == len(SETTINGS)
        return 0
    pd.testing.assert_frame_equal(table, whole.head(len(table)), check_exact=True)
    lost = [{**setting, "seed": seed} for setting, seeds, _ in table.attrs["failed"] for seed in seeds]
    assert lost == whole.drop(columns="error")[len(table) :].to_dict("records")
    assert {reason for *_, reason in table.attrs["failed"]} <= {"interrupted"}
    return len(table)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # some moments are in a destructor
def test_a_sweep_interrupted_at_any_moment_keeps_what_finished():
    whole = sweep(measured, SETTINGS, seeds=[0, 1], progress=False)
    first, last = sweeps._one_setting, sweeps._table
    moments = Moments(first, last)
    assert swept(moments, whole) == 8
    rng, kept = np.random.default_rng(0), set()
    for moment in range(moments.now // 16, moments.now, moments.now // 8):  # two for each setting
        kept |= {swept(Moments(first, last, [moment, moment + more]), whole) for more in (0, rng.integers(1, 40))}
    assert kept >= {0, 2, 4, 6}
    assert swept(Moments(last, last, [5, 50]), whole) == 8  # while the table is made


def test_a_sweep_elsewhere_keeps_what_finished_and_can_be_run_again():
    go_on, seen = threading.Event(), []

    def run(seeds, width, update):
        if len(seen) == 2 and not go_on.is_set():
            press()  # the main thread waits
            go_on.wait(HOURS)
        seen.append((width, update))
        return [{"error": width} for _ in seeds]

    with ThreadPoolExecutor(1) as pool:
        with pytest.warns(UserWarning, match="2 runs did not finish"):
            table = sweep(run, SETTINGS, seeds=[0], executor=pool, progress=False)
        go_on.set()
        assert len(table) == 2 and [reason for *_, reason in table.attrs["failed"]] == ["interrupted"] * 2
        assert len(sweep(run, SETTINGS, seeds=[0], executor=pool, progress=False)) == 4
    assert len(seen) == 2 + 1 + 4  # what had not begun was given up


def test_an_interrupt_while_a_pool_starts_does_not_tear_it(monkeypatch):
    with ThreadPoolExecutor(1) as pool:
        submit, submitted = pool.submit, []

        def interrupted(*arguments):
            press()
            submitted.append(submit(*arguments))
            return submitted[-1]

        monkeypatch.setattr(pool, "submit", interrupted)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert len(sweep(measured, SETTINGS, seeds=[0], executor=pool, progress=False)) == 1
        except RuntimeError:
            pass  # the one that was submitted had not finished
        assert len(submitted) == 1 and (submitted[0].cancelled() or submitted[0].result()[1] == [])


def test_a_worker_that_was_interrupted_has_not_finished():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.warns(UserWarning, match="1 runs did not finish"):
            table = sweep(interrupted_itself, SETTINGS, seeds=[0], executor=pool, progress=False)
        assert table.attrs["failed"] == [({"width": 8, "update": "ema"}, [0], "interrupted")]
        assert len(sweep(interrupted_itself, SETTINGS[:3], seeds=[0], executor=pool, progress=False)) == 3


# ---------------------------------------------------------------- what was cut off is said


def noted(capsys):
    """What is said of runs that were cut off: the lines printed since, and the record for `claim`."""
    return [line for line in capsys.readouterr().out.splitlines() if line], cut_off()


@pytest.mark.parametrize("many, name", [(False, "fit (seed 3)"), (True, "fit_many (seed 3, 5)")])
def test_a_run_that_was_cut_off_says_so_until_it_has_run_whole(many, name, capsys):
    trained(many, "ema", stopped_before(3))
    (line,), record = noted(capsys)
    assert record == f"{name} was cut off after 3 of 4 steps" and record in line
    trained(many, "ema", steps=5)  # another run
    trained(many, "gradient")
    assert noted(capsys) == ([], record)
    trained(many, "ema", stopped_before(1))
    assert noted(capsys)[1] == f"{name} was cut off after 1 of 4 steps"
    trained(many, "ema")
    assert noted(capsys) == ([], "")


def test_priors_that_were_cut_off_say_so(capsys, monkeypatch):
    descend, steps = generation.descend, []

    def interrupted(optimizer, loss):
        steps.append(descend(optimizer, loss))
        if len(steps) == 3:
            press()

    monkeypatch.setattr(generation, "descend", interrupted)
    grids = [torch.arange(24).reshape(6, 4) % 5]
    assert [len(curve) for _, curve in fit_priors(grids, 5, seeds=[2], steps=8, progress=False)] == [3]
    (line,), record = noted(capsys)
    assert record == "fit_priors (seed 2) was cut off after 3 of 8 steps" and record in line
    fit_priors(grids, 5, seeds=[2], steps=8, progress=False)
    assert noted(capsys) == ([], "")


@pytest.mark.parametrize("threads", [None, 1])
def test_a_sweep_that_was_cut_off_says_after_how_many_settings(threads, capsys):
    calls = []

    def run(seeds, width, update):
        calls.append(width)
        if len(calls) == 3:
            press()
            time.sleep(1)
        return [{"error": width} for _ in seeds]

    with ThreadPoolExecutor(1) as pool:
        executor = pool if threads else None
        with pytest.warns(UserWarning, match="runs did not finish"):
            sweep(run, SETTINGS, seeds=[0, 1], executor=executor, progress=False)
        (line,), record = noted(capsys)
        assert record == "sweep of run was cut off after 2 of 4 settings" and record in line
        sweep(run, SETTINGS[:2], seeds=[0, 1], executor=executor, progress=False)
        assert noted(capsys) == ([], record)
        sweep(run, SETTINGS, seeds=[0, 1], executor=executor, progress=False)
        assert noted(capsys) == ([], "")


def test_the_training_inside_a_sweep_that_was_stopped_counts_as_the_sweeps(capsys):
    calls = []

    def run(seeds, width, update):
        calls.append(width)
        watch = lambda step, _: len(calls) == 2 and step == 1 and press()  # noqa: E731
        runs = fit_many(built(update), DATA, seeds=seeds, steps=3, callback=watch, progress=False)
        return [{"error": history.reconstruction[-1]} for _, history in runs]

    with pytest.warns(UserWarning, match="6 runs did not finish"):
        sweep(run, SETTINGS, seeds=[0, 1], progress=False)
    assert noted(capsys)[1] == (
        "fit_many (seed 0, 1) was cut off after 1 of 3 steps; sweep of run was cut off after 1 of 4 settings"
    )
    sweep(run, SETTINGS, seeds=[0, 1], progress=False)
    assert noted(capsys) == ([], "")
