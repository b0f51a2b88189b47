"""An interrupt: a run ends between two steps, what finished is kept, it is said, and the next call works."""

import signal
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import normal, press

from vqnotes._interrupts import cut_off, interruptible
from vqnotes.models import mlp_autoencoder
from vqnotes.quantizers import VectorQuantizer
from vqnotes.studies.generation import CodeTransformer, fit_priors
from vqnotes.studies.sweeps import grid, sweep
from vqnotes.training import fit, fit_many


@pytest.fixture(autouse=True)
def as_it_was():
    """The handler of interrupts, and torch's random state."""
    before, state = signal.getsignal(signal.SIGINT), torch.get_rng_state()
    yield
    assert signal.getsignal(signal.SIGINT) is before is signal.default_int_handler
    assert torch.equal(torch.get_rng_state(), state)


def noted(capsys):
    """What is said of runs that were cut off: the lines printed since, and the record for `claim`."""
    return [line for line in capsys.readouterr().out.splitlines() if line], cut_off()


# ---------------------------------------------------------------- fit and fit_many

STEPS, WARMUP, DATA = 4, 2, normal(200, 4)


def built(update):
    def build(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return mlp_autoencoder(4, VectorQuantizer(6, 2, update=update), width=8).eval()

    return build


def trained(many, update, watch=lambda step: None, x=DATA, **plan):
    """(model, history) of each run, by one function or the other."""
    plan = {"steps": STEPS, "warmup": WARMUP, "batch_size": 64, "progress": False} | plan
    plan["callback"] = lambda step, _: watch(step)
    if many:
        return fit_many(built(update), x, seeds=[3, 5], **plan)
    model = built(update)(3)
    return [(model, fit(model, x, seed=3, **plan))]


def stopped_before(step):
    def stop(now):
        if now == step:
            raise KeyboardInterrupt

    return stop


def pressed_before(step):
    return lambda now: now == step and press()


@pytest.mark.parametrize("update", ["gradient", "ema"])
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("length", [WARMUP, WARMUP + 1, STEPS])
def test_a_run_that_was_interrupted_is_a_shorter_run(many, update, length):
    runs = trained(many, update, pressed_before(length))
    for (model, history), (other, expected) in zip(runs, trained(many, update, steps=length), strict=True):
        assert history.interrupted and not expected.interrupted and len(history) == length and not model.training
        np.testing.assert_array_equal(history.reconstruction, expected.reconstruction)
        np.testing.assert_array_equal(history.quantizer, expected.quantizer)
        state = other.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert model.quantizer.codebook.untyped_storage().nbytes() == model.quantizer.codebook.nbytes
        assert len(fit(model, DATA, steps=1, seed=0, progress=False)) == 1


def test_an_interrupt_within_a_step_waits_for_its_end():
    model, seen = built("gradient")(3), []

    def second(*_):
        seen.append(1)
        if len(seen) == 2:
            press()

    model.decoder.register_full_backward_hook(second)
    history = fit(model, DATA, steps=STEPS, seed=3, warmup=WARMUP, batch_size=64, progress=False)
    ((other, _),) = trained(False, "gradient", steps=2)
    assert len(history) == 2 and torch.equal(model.decoder[0].weight, other.decoder[0].weight)


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


def measured(seeds, width, update, watch=None):
    def build(seed):
        return mlp_autoencoder(4, VectorQuantizer(6, 2, update=update), width=width)

    runs = fit_many(build, DATA, seeds=seeds, steps=2, batch_size=64, callback=watch, progress=False)
    return [{"error": history.reconstruction[-1]} for _, history in runs]


def interrupted_itself(seeds, width, update):
    """In a worker: an interrupt ends the training, which does not say so to the sweep."""
    if (width, update) == (8, "ema"):
        fit(built("ema")(0), DATA, steps=3, seed=0, progress=False, callback=lambda step, _: step == 1 and press())
    return [{"error": 0.0} for _ in seeds]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_sweep_keeps_what_finished_and_names_the_rest(at, capsys):
    """The interrupt comes in the third setting: in its training, before it and after the last step too."""
    calls = []

    def run(seeds, width, update):
        calls.append(width)
        watch = lambda step, _: len(calls) == 3 and step == at and press()  # noqa: E731
        return measured(seeds, width, update, watch)

    whole = sweep(measured, SETTINGS, seeds=[0, 1], progress=False)
    with pytest.warns(UserWarning, match="4 runs did not finish"):
        table = sweep(run, SETTINGS, seeds=[0, 1], progress=False)
    pd.testing.assert_frame_equal(table, whole.head(4), check_exact=True)
    lost = [{**setting, "seed": seed} for setting, seeds, _ in table.attrs["failed"] for seed in seeds]
    assert lost == whole.drop(columns="error")[4:].to_dict("records")
    assert {reason for *_, reason in table.attrs["failed"]} == {"interrupted"}
    assert noted(capsys)[1] == (
        f"fit_many (seed 0, 1) was cut off after {at} of 2 steps; sweep of run was cut off after 2 of 4 settings"
    )
    sweep(run, SETTINGS, seeds=[0, 1], progress=False)
    assert noted(capsys) == ([], "")


def test_a_second_interrupt_ends_a_sweep_at_once_with_what_finished():
    calls = []

    def run(seeds, width, update):
        calls.append(width)
        if len(calls) == 2:
            press()
            press()
            calls.append("never")
        return [{"error": width} for _ in seeds]

    with pytest.warns(UserWarning, match="3 runs did not finish"):
        assert len(sweep(run, SETTINGS, seeds=[0], progress=False)) == 1
    assert calls == [4, 4]


def test_a_worker_that_was_interrupted_has_not_finished():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.warns(UserWarning, match="1 runs did not finish"):
            table = sweep(interrupted_itself, SETTINGS, seeds=[0], executor=pool, progress=False)
        assert table.attrs["failed"] == [({"width": 8, "update": "ema"}, [0], "interrupted")]
        assert len(sweep(interrupted_itself, SETTINGS[:3], seeds=[0], executor=pool, progress=False)) == 3


# ---------------------------------------------------------------- what was cut off is said


@pytest.mark.parametrize("many, name", [(False, "fit (seed 3)"), (True, "fit_many (seed 3, 5)")])
def test_a_run_that_was_cut_off_says_so_until_it_has_run_whole(many, name, capsys):
    trained(many, "ema", stopped_before(3))
    (line,), record = noted(capsys)
    assert record == f"{name} was cut off after 3 of 4 steps" and record in line
    sgd = partial(torch.optim.SGD, momentum=0.9)
    for another in ({"steps": 5}, {"update": "gradient"}, {"x": DATA * 2}, {"optimizer": sgd}):
        trained(**{"many": many, "update": "ema"} | another)
        assert noted(capsys) == ([], record), another
    trained(many, "ema", stopped_before(1))
    assert noted(capsys)[1] == f"{name} was cut off after 1 of 4 steps"
    trained(many, "ema")
    assert noted(capsys) == ([], "")


def test_priors_that_were_cut_off_say_so(capsys, monkeypatch):
    forward, steps = CodeTransformer.forward, []

    def interrupted(*arguments):
        steps.append(1)
        if len(steps) == 3:
            press()
        return forward(*arguments)

    monkeypatch.setattr(CodeTransformer, "forward", interrupted)
    grids = [torch.arange(24).reshape(6, 4) % 5]
    with interruptible() as stopped:
        assert [len(curve) for _, curve in fit_priors(grids, 5, seeds=[2], steps=8, progress=False)] == [3]
    assert stopped()  # what is around it knows too
    (line,), record = noted(capsys)
    assert record == "fit_priors (seed 2) was cut off after 3 of 8 steps" and record in line
    fit_priors([grids[0] % 2], 5, seeds=[2], steps=8, progress=False)
    assert noted(capsys) == ([], record)
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
        assert len(calls) == 3  # what had not begun was given up
        (line,), record = noted(capsys)
        assert record == "sweep of run was cut off after 2 of 4 settings" and record in line
        sweep(run, SETTINGS[:2], seeds=[0, 1], executor=executor, progress=False)
        assert noted(capsys) == ([], record)
        sweep(run, SETTINGS, seeds=[0, 1], executor=executor, progress=False)
        assert noted(capsys) == ([], "")
