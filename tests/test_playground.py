"""The playground: its JavaScript takes the module's steps and shows the module's figures."""

import functools
import json
import re
import shutil
import subprocess

import pytest
import scipy.stats
import torch
from helpers import run_python

from vqnotes import _kmeans_start, kmeans
from vqnotes.course import playground
from vqnotes.course.playground import REMEDIES, RULES, Playground, Training, plane, story
from vqnotes.remedies.replacement import uniform

PROGRAM = """
import fs from 'node:fs';
const core = await import('data:text/javascript;base64,' + fs.readFileSync(process.argv[1]).toString('base64'));
const given = JSON.parse(fs.readFileSync(0, 'utf8'));
const answer = (() => { %s })();
process.stdout.write(JSON.stringify(answer));
"""
NODE = shutil.which("node")


def javascript(body, given):
    """What a function body makes of `given` and of `core`, all that playground.js exports."""
    if NODE is None:
        pytest.skip("the playground's steps are compared by node, which is not here; `make browser-test` runs them")
    command = [NODE, "--input-type=module", "-e", PROGRAM % body, playground.SCRIPT]
    run = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


STEPS = """
const data = core.unpacked(given.plane), state = core.begin(data), seen = [];
if (given.warming) state.warming = true;
if (given.codes) state.codes = Float64Array.from(given.codes.flat());
for (const count of given.counts) {
  for (let i = 0; i < count; i++) core.step(state, data, given.options);
  const {perplexity, gap, modes, live} = core.figures(state, data);
  seen.push({perplexity, gap, modes, live, step: state.step, spread: state.spread, codes: Array.from(state.codes)});
}
return seen;
"""


def same(seen, training, tolerance=1e-5):
    """Whether the two have the same codes and figures."""
    moment = training.as_moment("")
    assert seen["codes"] == pytest.approx(moment.codes.flatten().tolist(), abs=tolerance)
    for name in ("perplexity", "gap", "modes", "live"):
        assert seen[name] == pytest.approx(getattr(moment, name), rel=tolerance), name
    assert (seen["step"], seen["spread"]) == (training.steps, pytest.approx(training.spread))


@functools.cache
def live_without_a_remedy(rule):
    """After as many steps as those of the next test."""
    plain = Training(plane("remedies", codebook_size=32, seed=3), rule, 0.2)
    plain.advance(500, 0.03)
    return plain.as_moment("").live


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("remedy", [None, *REMEDIES])
def test_steps_and_figures_are_those_of_the_module(rule, remedy):
    """Through the spread of the latents, and long enough for every remedy to act."""
    given = plane("remedies", codebook_size=32, seed=3)
    options = {"rule": rule, "drift": 0.03, "follow": 0.2, "remedy": remedy}
    counts = [1, 24, 225, 250]  # after 414 steps a code that nobody chose is used too rarely for restart
    training = Training(given, rule, 0.2, remedy)
    for count, seen in zip(counts, javascript(STEPS, {"plane": given, "options": options, "counts": counts})):
        training.advance(count, 0.03)
        same(seen, training)
    if remedy is not None:
        assert training.as_moment("").live > 1.5 * live_without_a_remedy(rule), "it acted"


@pytest.mark.parametrize("preset", playground.PRESETS)
def test_every_preset_starts_and_goes_on_as_in_the_module(preset):
    given = plane(preset, seed=1)
    options = {name: given[name] for name in ("rule", "drift", "follow")}
    training = Training(given, given["rule"], given["follow"])
    for count, seen in zip([0, 60], javascript(STEPS, {"plane": given, "options": options, "counts": [0, 60]})):
        training.advance(count, given["drift"])
        same(seen, training)


def test_a_warm_up_places_the_codes_when_the_latents_have_spread():
    given = plane("drift", seed=2)
    training = Training(given, "EMA", 0.01)
    training.warm_up(0.03)
    before = training.steps
    training.steps -= 1  # the step that places the codes uses them, too
    training.spread = 1 - (1 - given["spread"]) * 0.97**training.steps
    options, counts = {"rule": "EMA", "drift": 0.03, "follow": 0.01}, [before - 1, 31]
    early, late = javascript(STEPS, {"plane": given, "options": options, "counts": counts, "warming": True})
    assert early["codes"] == pytest.approx(playground._decoded(given["codes"]).tolist())
    centroids = playground._decoded(given["centroids"]).view(-1, 2)
    training.place(
        (1 - (1 - given["spread"]) * 0.97**before) * centroids, playground._decoded(given["centroid_share"])
    )
    training.advance(31, 0.03)
    same(late, training)
    assert late["perplexity"] > 50 and late["gap"] < 1.2


def test_lloyds_steps_end_where_kmeans_does():
    """From the start that `kmeans` makes, which leaves no code without latents here."""
    given = plane("lloyd", codebook_size=24, seed=0)
    latents = playground._decoded(given["latents"]).view(-1, 2)
    codes = _kmeans_start.start(latents - latents.mean(0), 24, torch.Generator().manual_seed(0)) + latents.mean(0)
    options = {"rule": "Lloyd", "drift": 0, "follow": 1}
    asked = {"plane": given, "options": options, "counts": [1] * 50, "codes": codes.tolist()}
    wanted, _ = kmeans.kmeans(latents, 24, seed=0)
    nearest = min(abs(torch.tensor(one["codes"]).view(-1, 2) - wanted).max() for one in javascript(STEPS, asked))
    assert nearest < 1e-5


def test_random_numbers_are_those_of_the_module():
    states = [0, 7, 2**31, 2**32 - 1, 2**32 + 5]
    for state, numbers in zip(states, javascript("return given.map(one => [...core.uniform(one, 50)]);", states)):
        assert numbers == uniform(torch.tensor(state), 50).tolist()
    shares = [1e-7, 1e-4, 0.001, 0.0014, 0.02, 0.3, 0.5, 0.7, 0.9999, 1 - 1e-7]
    quantiles = javascript("return given.map(core.normal);", shares)
    assert quantiles == pytest.approx(scipy.stats.norm.ppf(shares), abs=1e-9)


# ---------------------------------------------------------------- the widget and the pictures


@pytest.mark.parametrize("seed", [0, 1])
def test_the_stories_tell_of_a_collapse_and_of_its_cure(seed):
    for preset in playground.PRESETS:
        moments = story(preset, seed=seed)
        size, collapsed, cured = len(moments[0].codes), moments[1 + (preset == "lloyd")], moments[-1]
        assert collapsed.perplexity < 0.6 * size < 0.8 * size < cured.perplexity
        assert cured.gap < 1.3 and cured.gap < collapsed.gap / 2


def test_a_picture_says_in_words_what_it_shows():
    moments = story("lloyd", seed=0, steps=5)
    figure, alt = playground.draw_story(moments)
    assert len(figure.axes) == len(moments) == alt.count("modes covered") == 4
    for one in moments:
        assert f"{one.name}: {one.live} of 10 codes live, perplexity {one.perplexity:.1f}" in alt
    playground.plt.close(figure)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"preset": "drifts"}, "'drifts'"),
        ({"preset": "lloyd", "codebook_size": 1}, "got 1"),
        ({"preset": "lloyd", "codebook_size": 0}, "got 0"),
        ({"preset": "lloyd", "codebook_size": 126}, r"2 \.\. 125, got 126"),
        ({"preset": "lloyd", "shown": ("restarts",)}, r"got \['restarts'\]"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Playground(**options)


def test_bad_rules_are_refused():
    given = plane("lloyd")
    for rule, follow in [("lloyd", 0.5), ("EMA", 0), ("EMA", 1.1)]:
        with pytest.raises(ValueError, match=str(follow)):
            Training(given, rule, follow)


def test_the_widget_carries_the_plane_and_the_script():
    widget = Playground("drift", codebook_size=16, seed=5, shown=("LRU",))
    assert widget.plane == plane("drift", codebook_size=16, seed=5) | {"remedies": ("LRU",)}
    assert widget._esm == playground.SCRIPT.read_text(encoding="utf-8")
    json.dumps(widget.get_state()["plane"])
    assert not re.search(r"https?://(?!www\.w3\.org)|\bimport\b|fetch\(", widget._esm), "nothing is fetched"


def test_it_is_shown_with_a_line_for_those_who_cannot(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    playground.show_playground("drift", seed=3)
    data, _ = shown[0]._repr_mimebundle_()
    assert data["text/plain"] == "[Explorer: the playground, drift, seed 3. Run to here to play.]"
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"]


def test_without_anywidget_a_sentence_says_what_is_missing():
    code = "import sys; sys.modules['anywidget'] = None\nfrom vqnotes.course import playground as p\n"
    code += "p.show_playground('lloyd')\nprint(len(p.story('lloyd', steps=2)))"
    said, stories = run_python(code).stdout.splitlines()
    assert said.startswith("Nothing moves here: the playground needs anywidget: pip install 'vqnotes[course]'.")
    assert stories == "4"
