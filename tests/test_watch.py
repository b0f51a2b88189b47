"""A watch sees the verdict turn during training, costs little, and does not disturb."""

import warnings

import pytest
import torch
from helpers import normal

from vqnotes import data, models
from vqnotes.diagnosis import CollapseWarning, CollapseWatch, diagnose_model, watch
from vqnotes.quantizers import VectorQuantizer
from vqnotes.training import fit, fit_many


def watched(watch, init, warmup):
    x = data.gaussian_modes(modes=32, per_mode=150, dim=16, seed=3).x
    torch.manual_seed(0)
    model = models.mlp_autoencoder(16, VectorQuantizer(64, 8))
    options = {"steps": 120, "init": init, "warmup": warmup, "lr": 5e-3, "batch_size": 128, "progress": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(model, x, seed=0, callback=watch(x[:1024]), **options)
    return history, [str(one.message) for one in caught if one.category is CollapseWarning]


def test_a_watch_warns_at_the_step_where_the_verdict_turns():
    watches = []

    def watch(probe):
        watches.append(CollapseWatch(probe, every=20))
        return watches[0]

    history, messages = watched(watch, "kmeans", 0)
    turns = watches[0].turns
    assert [name for _, name, _ in turns] == ["quantizer"] * len(turns)
    step = next(step for step, _, verdict in turns if "token" in verdict)
    assert step % 20 == 0 and 0 < step <= 60
    assert any(message.startswith(f"step {step}, quantizer: token") for message in messages)
    assert len(messages) == sum("collapse" in verdict for *_, verdict in turns)
    plain, _ = watched(lambda probe: None, "kmeans", 0)
    assert plain == history, "watching has changed the run"


def test_a_watch_waits_for_the_warm_up_and_stays_silent_if_all_is_well():
    watches = []

    def watch(probe):
        watches.append(CollapseWatch(probe, every=30, start=60))
        return watches[0]

    _, messages = watched(watch, "kmeans", 60)
    assert watches[0].turns[0] == (60, "quantizer", "healthy") and not messages
    assert watches[0].latest["quantizer"].verdict == "healthy"


def test_a_watch_counts_its_steps_from_the_first_look(monkeypatch):
    looks, watch = [], CollapseWatch(normal(300, 4), every=4, start=3)
    monkeypatch.setattr(watch, "look", lambda step, model: looks.append(step))
    for step in range(13):
        watch(step, None)
    assert looks == [3, 7, 11]


def test_a_watch_survives_a_model_that_has_become_nan():
    watch, model = CollapseWatch(iter([normal(300, 4)]), every=1), VectorQuantizer(8, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        watch(0, model)
    model.codebook.data.fill_(torch.nan)
    with pytest.warns(CollapseWarning, match="step 1: no diagnosis, .*NaN"):
        watch(1, model)
    with pytest.raises(ValueError, match="no quantiser"):
        CollapseWatch(normal(5, 4))(0, models.mlp(4, 4))


def test_a_watch_left_to_itself_costs_a_twentieth(monkeypatch):
    """On a clock of our own: a look takes 0.5 s, a step 0.01 s."""
    clock, looks = [0.0], []

    def slow(model, probe, labels, progress):
        looks.append(clock[0])
        clock[0] += 0.5
        return {}

    monkeypatch.setattr(watch, "diagnose_model", slow)
    monkeypatch.setattr(watch.time, "perf_counter", lambda: clock[0])
    looking = CollapseWatch(normal(10, 4))
    for step in range(10_000):
        clock[0] += 0.01
        looking(step, None)
    assert len(looks) >= 10 and 0.04 < 0.5 * len(looks) / clock[0] <= 0.055


@pytest.mark.parametrize("options", [{"every": 0}, {"start": -1}])
def test_a_watch_refuses_nonsense(options):
    with pytest.raises(ValueError, match=f"{list(options)[0]}={list(options.values())[0]}"):
        CollapseWatch(normal(10, 4), **options)


def test_a_watch_of_many_runs_names_them():
    x = data.gaussian_modes(modes=32, per_mode=50, dim=16, seed=3).x
    watch, options = CollapseWatch(x[:600], every=30), {"steps": 60, "init": "uniform", "lr": 5e-3, "progress": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        many = fit_many(
            lambda seed: models.mlp_autoencoder(16, VectorQuantizer(64, 8)),
            x,
            seeds=[3, 4],
            callback=watch,
            **options,
        )
    assert list(watch.latest) == ["run 0: quantizer", "run 1: quantizer"]
    assert any(str(one.message).startswith("step 0, run 1: quantizer: token") for one in caught)
    for run, (model, _) in enumerate(many):
        expected = diagnose_model(model, x[:600])["quantizer"]
        assert watch.latest[f"run {run}: quantizer"].evidence == expected.evidence


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), IndexError("list"), AttributeError("gone")])
def test_a_watch_ends_no_training_after_its_first_look(error):
    watch, model, broken = CollapseWatch(normal(300, 4), every=1), VectorQuantizer(8, 4), [False]

    def fails(module, arguments):
        if broken[0]:
            raise error

    model.register_forward_pre_hook(fails)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        watch(0, model)
    before, broken[0] = watch.latest, True
    with pytest.warns(CollapseWarning, match=f"step 1: no diagnosis, .*{error}"):
        watch(1, model)
    assert watch.latest == before and not model._forward_hooks
    with pytest.raises(type(error) if not isinstance(error, RuntimeError) else ValueError, match=str(error)):
        CollapseWatch(normal(300, 4))(0, model)
