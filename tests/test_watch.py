"""A watch sees the verdict turn during training, costs little, and does not disturb."""

import copy
import io
import warnings

import pytest
import torch
import vector_quantize_pytorch as theirs
from helpers import normal

from vqnotes import data, metrics, models
from vqnotes.diagnosis import CollapseWarning, CollapseWatch, Diagnosis, diagnose_model, watch
from vqnotes.diagnosis.listening.use import Use
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import FSQ, ResidualVQ
from vqnotes.training import fit, fit_many


def watched(watch, init, warmup):
    x = data.gaussian_modes(modes=32, per_mode=150, dim=16, seed=3).x
    torch.manual_seed(0)
    model = models.mlp_autoencoder(16, VectorQuantizer(64, 8))
    options = {"steps": 120, "init": init, "warmup": warmup, "lr": 5e-3, "batch_size": 128, "progress": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(model, x, seed=0, callback=watch(x[:2048]), **options)  # 32 a code: the encoder is judged
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
    message = next(message for message in messages if message.startswith(f"step {step}, quantizer: token"))
    assert f", confirmed at step {step + 5}. The codebook is at fault" in message
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

    def slow(looking, model):
        looks.append(clock[0])
        clock[0] += 0.5
        return {}

    monkeypatch.setattr(CollapseWatch, "_diagnosed", slow)
    monkeypatch.setattr(watch.time, "perf_counter", lambda: clock[0])
    looking = CollapseWatch(normal(10, 4))
    for step in range(10_000):
        clock[0] += 0.01
        looking(step, VectorQuantizer(8, 4))
    assert len(looks) >= 10 and 0.04 < 0.5 * len(looks) / clock[0] <= 0.055


@pytest.mark.parametrize(
    "called, looked",
    [
        (range(0, 100, 10), [10, 30, 60, 80]),  # a loop that asks at every tenth step
        ([0, 0, 5, 5, 30, 30, 31], [5, 30]),  # one that asks more than once at a step, as with accumulated gradients
        ([5, 15, 0, 5, 15, 0, 29, 30], [5, 5, 30]),  # one that begins again
    ],
)
def test_no_turn_of_a_watch_is_missed_or_taken_twice(monkeypatch, called, looked):
    looks, watch = [], CollapseWatch(normal(300, 4), every=25, start=5)
    monkeypatch.setattr(watch, "look", lambda step, model: looks.append(step))
    for step in called:
        watch(step, None)
    assert looks == looked


@pytest.mark.parametrize("options", [{"every": 0}, {"start": -1}, {"confirm": 0}])
def test_a_watch_refuses_nonsense(options):
    with pytest.raises(ValueError, match=f"{list(options)[0]}={list(options.values())[0]}"):
        CollapseWatch(normal(10, 4), **options)


def test_a_watch_of_many_runs_names_them():
    x = data.gaussian_modes(modes=32, per_mode=50, dim=16, seed=3).x
    watch, options = CollapseWatch(x[:600], every=30), {"steps": 30, "init": "uniform", "lr": 5e-3, "progress": False}
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
    with pytest.raises(ValueError, match=str(error)):
        CollapseWatch(normal(300, 4))(0, model)


# ---------------------------------------------------------------- when there is a warning

HEALTHY, TOKEN, BOTH, UNKNOWN = "healthy", "token collapse", "token and embedding collapse", "cannot tell"


def scripted(monkeypatch, found):
    """Each look at a model finds what comes next: a verdict on its quantiser, or an error."""
    coming = iter(found)

    def diagnose_scripted(looking, model):
        one = next(coming)
        if isinstance(one, BaseException):
            raise one
        return {"vq": Diagnosis(one, "Why.", {}, [])}

    monkeypatch.setattr(CollapseWatch, "_diagnosed", diagnose_scripted)
    monkeypatch.setattr(Use, "unused", lambda *_: set())


def played(monkeypatch, found, **options):
    """A watch that has found this, one look a step, and its warnings."""
    scripted(monkeypatch, found)
    looking = CollapseWatch(None, every=1, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(len(found)):
            looking(step, VectorQuantizer(8, 4))
    return looking, [str(one.message) for one in caught]


@pytest.mark.parametrize(
    "found, options, said",
    [
        ([HEALTHY, HEALTHY], {}, []),
        ([TOKEN], {}, []),
        ([TOKEN, TOKEN], {}, ["step 0, vq: token collapse, confirmed at step 1. Why."]),
        ([TOKEN, HEALTHY, TOKEN, HEALTHY], {}, []),
        ([TOKEN, UNKNOWN, TOKEN], {}, []),
        ([HEALTHY, TOKEN, TOKEN, TOKEN], {}, ["step 1, vq: token collapse, confirmed at step 2. Why."]),
        (
            [TOKEN, TOKEN, HEALTHY, TOKEN, TOKEN],
            {},
            [f"step {step}, vq: token collapse, confirmed at step {step + 1}. Why." for step in (0, 3)],
        ),
        ([TOKEN, BOTH], {}, ["step 1, vq: token and embedding collapse. Why."]),
        (
            [TOKEN, TOKEN, BOTH, BOTH],
            {},
            [
                "step 0, vq: token collapse, confirmed at step 1. Why.",
                "step 2, vq: token and embedding collapse, confirmed at step 3. Why.",
            ],
        ),
        ([TOKEN, TOKEN, BOTH, TOKEN, BOTH], {}, ["step 0, vq: token collapse, confirmed at step 1. Why."]),
        ([TOKEN, HEALTHY, TOKEN], {"confirm": 1}, [f"step {step}, vq: token collapse. Why." for step in (0, 2)]),
        (
            [TOKEN, TOKEN, HEALTHY, TOKEN, TOKEN, TOKEN],
            {"confirm": 3},
            ["step 3, vq: token collapse, confirmed at step 5. Why."],
        ),
    ],
)
def test_a_collapse_is_noted_at_once_and_warned_of_once_it_is_confirmed(monkeypatch, found, options, said):
    looking, messages = played(monkeypatch, found, **options)
    assert messages == said
    changes = [step for step, one in enumerate(found) if step == 0 or one != found[step - 1]]
    assert looking.turns == [(step, "vq", found[step]) for step in changes]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyError("gone")])
def test_what_cannot_be_diagnosed_is_said_once_until_it_can(monkeypatch, error):
    looking, messages = played(monkeypatch, [TOKEN, error, error, TOKEN, HEALTHY, error])
    assert messages == [f"step {step}: no diagnosis, {type(error).__name__}: {error}" for step in (1, 5)]
    verdicts = [TOKEN, "no diagnosis", TOKEN, HEALTHY, "no diagnosis"]
    assert looking.turns == [(step, "vq", one) for step, one in zip((0, 1, 3, 4, 5), verdicts)]
    assert looking.latest["vq"].verdict == HEALTHY
    assert looking.looks()["verdict"].tolist().count("no diagnosis") == 3


def test_an_interrupt_passes_and_so_does_a_warning_that_is_made_an_error(monkeypatch):
    scripted(monkeypatch, [HEALTHY, KeyboardInterrupt()])
    looking = CollapseWatch(None, every=1)
    looking(0, VectorQuantizer(8, 4))
    with pytest.raises(KeyboardInterrupt):
        looking(1, VectorQuantizer(8, 4))
    scripted(monkeypatch, [TOKEN, TOKEN, HEALTHY])
    looking = CollapseWatch(None, every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        looking(0, VectorQuantizer(8, 4))
        with pytest.raises(CollapseWarning, match="step 0, vq: token collapse, confirmed at step 1"):
            looking(1, VectorQuantizer(8, 4))
        looking(2, VectorQuantizer(8, 4))
    assert looking.turns == [(0, "vq", TOKEN), (2, "vq", HEALTHY)]


@pytest.mark.parametrize("every, soon", [(1, 1), (3, 1), (20, 5)])
def test_the_look_that_confirms_comes_soon(monkeypatch, every, soon):
    steps = every * 3 + 1
    scripted(monkeypatch, [HEALTHY, TOKEN] + [HEALTHY] * steps)
    looking = CollapseWatch(None, every=every)
    for step in range(steps):
        looking(step, VectorQuantizer(8, 4))
    regular = {0, every, 2 * every, 3 * every}
    assert looking.looks()["step"].tolist() == sorted(regular | {every + soon})


@pytest.mark.parametrize("found", [[HEALTHY, TOKEN], [TOKEN], [TOKEN, BOTH, HEALTHY]])
def test_looks_that_come_soon_keep_to_the_budget(monkeypatch, found):
    """On a clock of our own: a look takes 0.5 s, a step 0.01 s."""
    clock, looks = [0.0], []

    def slow(looking, model):
        looks.append(clock[0])
        clock[0] += 0.5
        return {"vq": Diagnosis(found[(len(looks) - 1) % len(found)], "Why.", {}, [])}

    monkeypatch.setattr(CollapseWatch, "_diagnosed", slow)
    monkeypatch.setattr(watch.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(Use, "unused", lambda *_: set())
    looking, model = CollapseWatch(None, confirm=4), VectorQuantizer(8, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        for step in range(20_000):
            clock[0] += 0.01
            looking(step, model)
    waits = [later - earlier for earlier, later in zip(looks, looks[1:])]
    assert 0.04 < 0.5 * len(looks) / clock[0] <= 0.055
    usual = 0.5 * watch.BUDGET
    first_bad = found.index(TOKEN)
    assert waits[first_bad] < usual / 3


# ---------------------------------------------------------------- codes that are not in use yet


class Own(torch.nn.Module):
    """Somebody else's autoencoder around a quantiser, with a way around it."""

    def __init__(self, quantizer):
        super().__init__()
        self.encoder, self.vq, self.decoder = models.mlp(16, 32, 8), quantizer, models.mlp(8, 32, 16)

    def forward(self, x, quantize=True):
        latents = self.encoder(x)
        return self.decoder(self.vq(latents)[0] if quantize else latents)


MODES = data.gaussian_modes(modes=32, per_mode=60, dim=16, seed=3).x


def trained(model, looking, steps, around=0):
    """A loop of one's own, which goes around the quantiser for the first steps."""
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=5e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CollapseWarning)
        for step in range(steps):
            looking(step, model.train())
            optimizer.zero_grad()
            (model(MODES[:128], step >= around) - MODES[:128]).square().mean().backward()
            optimizer.step()
        looking(steps, model)
    return [str(one.message) for one in caught if one.category is CollapseWarning]


def test_codes_that_their_library_has_not_placed_are_no_collapse():
    torch.manual_seed(0)
    model = Own(theirs.VectorQuantize(8, 64, kmeans_init=True, threshold_ema_dead_code=1))
    looking = CollapseWatch(MODES[:512], every=2)
    assert not trained(model, looking, 1)
    assert looking.turns[0] == (0, "vq", "not started") and looking.latest["vq"].verdict == "cannot tell"
    trained(model, looking, 2)
    assert looking.turns[1][2] != "not started" and looking.latest["vq"].evidence


def test_a_warm_up_is_no_collapse_and_the_codes_after_it_are_judged():
    watches = []

    def watch(probe):
        watches.append(CollapseWatch(probe, every=30))
        return watches[0]

    _, messages = watched(watch, "kmeans", 60)
    assert not messages
    assert watches[0].turns == [(0, "quantizer", TOKEN), (7, "quantizer", "not started"), (60, "quantizer", HEALTHY)]


def test_sound_codes_are_judged_before_they_are_in_use():
    torch.manual_seed(0)
    model, looking = Own(VectorQuantizer(64, 8)), CollapseWatch(MODES[:512], every=1)
    model.vq.init_codes("kmeans", model.encoder(MODES).detach())
    for step in range(2):
        looking(step, model)
    (verdict,) = {verdict for *_, verdict in looking.turns}
    assert verdict != "not started" and verdict == diagnose_model(model, MODES[:512])["vq"].verdict
    assert "collapse" not in verdict and looking._use.unused("", model) == {"vq"}


def test_a_collapse_is_warned_of_though_codes_do_not_move():
    """They are called in training mode; nobody gives them to the optimiser."""
    torch.manual_seed(0)
    model = Own(VectorQuantizer(64, 8).requires_grad_(False))
    looking = CollapseWatch(MODES[:512], every=2)
    assert len(trained(model, looking, 3)) == 1 and {verdict for *_, verdict in looking.turns} == {TOKEN}
    model = Own(VectorQuantizer(64, 8).requires_grad_(False))
    looking = CollapseWatch(MODES[:512], every=2)
    assert not trained(model, looking, 3, around=3) and looking.turns[-1] == (1, "vq", "not started")


def quantizers_unused(use, model, run=""):
    return sorted(use.unused(run, model))


def test_a_quantiser_is_in_use_once_it_is_called_in_training_mode():
    model = torch.nn.ModuleDict({"a": VectorQuantizer(8, 4), "b": FSQ((3, 3, 3, 3)), "c": VectorQuantizer(8, 4)})
    use = Use({"": model})
    model.eval()
    model["a"](normal(5, 4))
    assert quantizers_unused(use, model) == ["a", "b", "c"]
    model.train()
    model["b"](normal(5, 4))
    assert quantizers_unused(use, model) == ["a", "c"] and not model["b"]._forward_pre_hooks
    with torch.no_grad():
        model["c"].codebook[3, 2] += 1e-3  # by another way than a call
    assert quantizers_unused(use, model) == ["a"]
    assert not model["c"]._forward_pre_hooks and len(model["a"]._forward_pre_hooks) == 1
    model["a"].codebook = torch.nn.Parameter(torch.zeros(9, 4))
    assert quantizers_unused(use, model) == [] and not model["a"]._forward_pre_hooks


def test_models_of_a_list_are_in_use_if_one_of_them_is():
    runs = {f"run {i}: ": Own(VectorQuantizer(8, 8)) for i in range(2)}
    use = Use(runs)
    assert all(quantizers_unused(use, model, run) == ["vq"] for run, model in runs.items())
    runs["run 0: "](MODES[:4])
    assert not any(quantizers_unused(use, model, run) for run, model in runs.items())
    assert not any(model.vq._forward_pre_hooks for model in runs.values())


def test_many_runs_at_once_are_heard_though_no_code_moves():
    uses, idle = [], []

    def look(step, runs):
        named = {f"run {i}: ": one for i, one in enumerate(runs)}
        uses.append(uses[0] if uses else Use(named))
        idle.append([bool(uses[0].unused(run, one)) for run, one in named.items()])

    fit_many(
        lambda seed: models.mlp_autoencoder(16, FSQ((3, 3))),
        MODES,
        seeds=[0, 1],
        steps=3,
        warmup=1,
        callback=look,
        progress=False,
    )
    assert idle == [[True, True], [True, True], [False, False], [False, False]]


class ByMatrix(VectorQuantizer):
    """Its search is one that torch.compile can follow."""

    def assign(self, latents, codes):
        return torch.cdist(latents, codes).argmin(dim=-1)


def test_a_model_is_copied_stored_and_compiled_with_the_hook_on_it():
    model = Own(ByMatrix(8, 8))
    use = Use({"": model})
    copied, stored = copy.deepcopy(model), io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    for other in (copied, torch.load(stored, weights_only=False)):
        other(MODES[:4])
        assert not other.vq._forward_pre_hooks
    assert quantizers_unused(use, model) == ["vq"]
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(MODES[:4]).sum().backward()
    assert quantizers_unused(use, model) == ["vq"]  # not heard, and nothing has moved
    model.vq(normal(4, 8))
    assert quantizers_unused(use, model) == []


# ---------------------------------------------------------------- whatever happens to a model


def test_a_run_that_becomes_nan_does_not_hide_the_others():
    runs = [VectorQuantizer(8, 4), VectorQuantizer(8, 4)]
    looking = CollapseWatch(normal(300, 4), every=1, confirm=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        looking(0, runs)
    first = looking.latest
    runs[0].codebook.data.fill_(torch.nan)
    runs[1].codebook.data.copy_(normal(8, 4))
    with pytest.warns(CollapseWarning, match="^step 1, run 0: no diagnosis, ValueError: .*NaN") as caught:
        looking(1, runs)
        looking(2, runs)
    assert len(caught) == 1
    name, other = looking.latest
    assert looking.latest[name] is first[name] and looking.latest[other] is not first[other]
    assert looking.looks().query("step == 2")["verdict"].tolist() == ["no diagnosis", looking.latest[other].verdict]
    runs[1].codebook.data.fill_(torch.nan)
    with pytest.warns(CollapseWarning, match="^step 3, run 1: no diagnosis, ValueError: .*NaN") as caught:
        looking(3, runs)
    assert len(caught) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "vq", VectorQuantizer(16, 8)),
        lambda model: setattr(model, "vq", VectorQuantizer(16, 5)),
        lambda model: setattr(model, "vq", torch.nn.Identity()),
        lambda model: setattr(model, "encoder", models.mlp(3, 8)),
        lambda model: model.half(),
        lambda model: model.vq.codebook.data.resize_(0, 8),
        lambda model: model.to("meta"),
    ],
)
def test_no_change_of_a_model_ends_a_training(change):
    torch.manual_seed(0)
    model, looking = Own(VectorQuantizer(8, 8)), CollapseWatch(MODES[:300], every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        looking(0, model)
        change(model)
        looking(1, model)
        looking(2, model)
    assert looking.looks()["step"].tolist() == [0, 1, 2]


def test_a_quantiser_that_is_gone_asks_for_no_more_looks(monkeypatch):
    found = iter([{"a": TOKEN}, *[{"b": HEALTHY}] * 9])

    def scripted(looking, model):
        return {name: Diagnosis(one, "Why.", {}, []) for name, one in next(found).items()}

    monkeypatch.setattr(CollapseWatch, "_diagnosed", scripted)
    looking = CollapseWatch(None, every=8)
    for step in range(17):
        looking(step, VectorQuantizer(8, 4))
    assert looking.looks()["step"].tolist() == [0, 2, 8, 16] and list(looking.latest) == ["b"]


# ---------------------------------------------------------------- the history


def test_the_frame_has_a_row_for_each_look_and_quantiser():
    torch.manual_seed(0)
    model, looking = Own(ResidualVQ((8, 8), 8)), CollapseWatch(MODES[:512], every=2)
    columns = ["step", "name", "verdict", "gap", "usage", "perplexity"]
    assert list(looking.looks().columns) == columns and not len(looking.looks()) and looking.scalars() == {}
    trained(model, looking, 4)
    frame = looking.looks()
    assert frame["step"].unique().tolist() == sorted({0, 1, 2, 3, 4} & set(frame["step"]))
    names = ["vq", "vq.stages.0", "vq.stages.1"]
    last = frame[frame["step"] == 4].set_index("name")
    assert list(last.index) == names == list(looking.latest)
    for name, one in looking.latest.items():
        assert last.loc[name, "verdict"] == one.verdict
        assert last.loc[name, "gap"] == one.evidence["optimality gap"].value
        used = one.evidence["codes in use"].value / 8
        if name == "vq":
            assert last.loc[name, ["usage", "perplexity"]].isna().all()
        else:
            effective = metrics.perplexity(torch.arange(8).repeat_interleave(one.drawing.counts), 8)
            assert last.loc[name, "usage"] == used and last.loc[name, "perplexity"] == pytest.approx(effective)
    for name in names:
        own = frame[frame["name"] == name]
        changes = own[own["verdict"] != own["verdict"].shift()]
        assert [(step, verdict) for step, one, verdict in looking.turns if one == name] == list(
            zip(changes["step"], changes["verdict"])
        )


# ---------------------------------------------------------------- what a logger gets


def test_any_loop_can_log():
    torch.manual_seed(0)
    logged = []
    model = Own(ResidualVQ((8, 8), 8))
    looking = CollapseWatch(MODES[:512], every=2, log=lambda scalars, step: logged.append((step, scalars)))
    trained(model, looking, 4)
    frame = looking.looks().set_index(["step", "name"])
    assert [step for step, _ in logged] == list(frame.index.get_level_values(0).unique())
    for step, scalars in logged:
        for name in ("vq", "vq.stages.0", "vq.stages.1"):
            row = frame.loc[(step, name)]
            assert scalars.pop(f"vqnotes/{name}/optimality_gap") == row["gap"]
            assert scalars.pop(f"vqnotes/{name}/collapse") == ("collapse" in row["verdict"])
            if name != "vq":
                assert scalars.pop(f"vqnotes/{name}/usage") == row["usage"]
                assert scalars.pop(f"vqnotes/{name}/perplexity") == row["perplexity"]
        assert scalars == {}


def test_names_for_loggers_have_no_brackets_or_colons(monkeypatch):
    found = {"vq[head 0]": TOKEN, "_orig_mod.vq": HEALTHY}
    diagnoses = {name: Diagnosis(one, "Why.", {}, []) for name, one in found.items()}
    monkeypatch.setattr(CollapseWatch, "_diagnosed", lambda *_, **__: diagnoses)
    looking = CollapseWatch(None, every=1)
    looking(0, [VectorQuantizer(8, 4)])
    expected = {"run_0_vq_head_0": 1.0, "run_0__orig_mod.vq": 0.0}
    assert looking.scalars() == {f"vqnotes/{name}/collapse": value for name, value in expected.items()}


def test_what_was_not_diagnosed_is_not_logged(monkeypatch):
    logged = []
    played(monkeypatch, [HEALTHY, KeyError("gone"), TOKEN], log=lambda *one: logged.append(one))
    assert logged == [({"vqnotes/vq/collapse": 0.0}, 0), ({}, 1), ({"vqnotes/vq/collapse": 1.0}, 2)]


def test_a_log_that_fails_is_warned_of_once_and_ends_nothing(monkeypatch):
    def log(scalars, step):
        raise OSError(f"no room at step {step}")

    looking, messages = played(monkeypatch, [HEALTHY, TOKEN, TOKEN], log=log)
    assert messages == [
        "step 0: nothing was logged, OSError: no room at step 0",
        "step 1, vq: token collapse, confirmed at step 2. Why.",
    ]
    assert looking.looks()["step"].tolist() == [0, 1, 2]
