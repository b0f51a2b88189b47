"""Explorers: each setting has its own picture and sentence, drawn beforehand, and every control turns to it."""

import base64
import io
import re

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from vqnotes.course.explorers import MOST, explore, explorer

DRAWN = []


def draw(step, start, picture=False):
    DRAWN.append((step, start))
    fig, ax = plt.subplots(figsize=(3, 2))
    if picture:
        ax.imshow(np.eye(8))
    ax.plot([0, step], [0, len(start)])
    return fig, f"{start} & <step> {step}"


CONTROLS = {"training step": [0, 10, 20.5], "start": ["cold", "warm-up"]}


def controls(box):
    kinds = (ipywidgets.SelectionSlider, ipywidgets.ToggleButtons)
    rows = [inner for row in box.children for inner in getattr(row, "children", [row])]
    return [one for one in rows if isinstance(one, kinds)]


def test_every_setting_is_drawn_once_and_shown_when_the_controls_say_so():
    DRAWN.clear()
    before = plt.get_fignums()
    box = explorer(draw, CONTROLS)
    assert len(DRAWN) == len(set(DRAWN)) == 6 and plt.get_fignums() == before
    step, start = controls(box)
    shown = box.children[-1]
    pages = set()
    for step.value in CONTROLS["training step"]:
        for start.value in CONTROLS["start"]:
            pages.add(shown.value)
            assert f'alt="{start.value} &amp; &lt;step&gt; {step.value}"' in shown.value
            assert "data:image/png;base64," in shown.value
    assert len(pages) == 6 and len(DRAWN) == 6


def test_pictures_of_one_explorer_have_one_size():
    box = explorer(draw, CONTROLS)
    step, _ = controls(box)
    sizes = set()
    for step.value in CONTROLS["training step"]:
        content = re.search(r"base64,([^\"]+)", box.children[-1].value)[1]
        sizes.add(Image.open(io.BytesIO(base64.b64decode(content))).size)
    assert sizes == {(300, 200)}


def test_pictures_become_jpeg():
    box = explorer(lambda step, start: draw(step, start, picture=True), CONTROLS)
    assert "data:image/jpeg;base64," in box.children[-1].value


def test_controls_have_labels_and_numbers_a_slider():
    box = explorer(draw, CONTROLS, play="training step")
    step, start = controls(box)
    assert isinstance(step, ipywidgets.SelectionSlider) and isinstance(start, ipywidgets.ToggleButtons)
    assert (step.description, start.description) == ("training step", "start")
    assert [label for label, _ in step.options] == ["0", "10", "20.5"]
    (play,) = [one for one in box.children[0].children if isinstance(one, ipywidgets.Play)]
    assert (play.min, play.max) == (0, 2)


def test_explore_shows_the_widget_and_a_line_for_those_who_cannot(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    assert explore(draw, CONTROLS) is None
    (data,) = shown
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert (
        data["text/plain"]
        == "[Explorer: training step (3) × start (2). Run the notebook to here to move the controls.]"
    )


@pytest.mark.parametrize(
    "wrong, controls, play, message",
    [
        (draw, {}, None, "got 0"),
        (draw, {"start": ["one"]}, None, "at least two values"),
        (draw, {"start": ["one", "one"]}, None, "at least two values"),
        (draw, {"step": range(MOST), "start": ["one", "two"]}, None, f"got {2 * MOST}"),
        (draw, CONTROLS, "speed", "'speed'"),
        (lambda step, start: (plt.figure(), " "), CONTROLS, None, "sentence"),
    ],
)
def test_bad_input_is_refused(wrong, controls, play, message):
    with pytest.raises(ValueError, match=message):
        explorer(wrong, controls, play)
    plt.close("all")
