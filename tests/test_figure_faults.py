"""Text in figures can be read, and an arm has one colour: all that draws is looked at, each planted fault found."""

import os

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from figure_faults import arm_of, contrast, dim_texts, faults, foreign_colors, watched
from helpers import normal
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from notebook_tools import HOURS

from vqnotes import diagnose, plots
from vqnotes.course.playground import draw_story, story
from vqnotes.diagnosis.drawing import MARKS, draw, draw_watch
from vqnotes.diagnosis.tree import draw_tree
from vqnotes.plots import ARM_COLORS, PALETTE


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        plots.use_style()
        yield
        plt.close("all")


def drawn(figure):
    figure.canvas.draw()
    return figure


def runs(names):
    return pd.DataFrame([{"arm": name, "x": x, "y": x + seed} for name in names for x in (1, 2) for seed in range(3)])


def test_contrast_is_that_of_the_guidelines():
    assert contrast("black", "white") == pytest.approx(21) and contrast("white", "white") == 1
    assert contrast("#767676", "white") == pytest.approx(4.54, abs=0.01)
    assert contrast("#777777", "white") < 4.5


def every_figure():
    """A figure of each function of the module that draws."""
    latents, codes = normal(200, 4), normal(6, 4, seed=1)
    effects = pd.DataFrame({"knob": ["K", "K", "beta"], "level": ["4", "8", "1"], "mean": [3.0, -2.0, 1.0]})
    effects = effects.assign(low=effects["mean"] - 1, high=effects["mean"] + 1)
    panels = {
        "codes_and_latents": lambda ax: plots.codes_and_latents(ax, latents, codes),
        "latents_by_label": lambda ax: plots.latents_by_label(ax, latents, torch.arange(200) % 10),
        "code_counts": lambda ax: plots.code_counts(ax, torch.arange(9) // 3, 6, "all"),
        "curves": lambda ax: plots.curves(ax, runs([*ARM_COLORS, "other"]), x="x", y="y", by="arm"),
        "arms": lambda ax: plots.arms(ax, runs([*ARM_COLORS, "other"]), y="y", by="arm"),
        "tornado": lambda ax: plots.tornado(ax, effects, by="knob", level="level"),
        "spectrum": lambda ax: plots.spectrum(ax, latents, "latents"),
        "picture": lambda ax: plots.picture(ax, torch.rand(3, 8, 8), "a picture"),
        "index_map": lambda ax: plots.index_map(ax, torch.arange(64).reshape(8, 8), "a map"),
    }
    assert set(panels) == {name for name in plots.__all__ if name.islower()} - {"show", "use_style"}
    for name, panel in panels.items():
        figure, ax = plt.subplots()
        panel(ax)
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
        yield name, figure
    found = diagnose(latents, codes, inputs=normal(200, 8))
    figure, axes = plt.subplots(1, 4)
    draw(axes, found)
    yield "a diagnosis", figure
    figure, ax = plt.subplots(figsize=(12, 9))
    draw_tree(ax, found)
    yield "the tree", figure
    figure, ax = plt.subplots()
    looks = pd.DataFrame([(step, "vq", verdict, 2.0) for step, verdict in enumerate(MARKS)])
    draw_watch(ax, looks.set_axis(["step", "name", "verdict", "gap"], axis=1), threshold=1.4)
    yield "a watch", figure
    yield "a playground", draw_story(story("drift", seed=1, steps=20))[0]


def test_what_the_module_draws_can_be_read_and_has_its_colours():
    for name, figure in every_figure():
        assert faults(drawn(figure)) == [], name


def test_text_is_compared_with_what_is_below_it(ax):
    spoken = {"fine": {"color": "0.4"}, "dim": {"color": "0.6"}, "thin": {"color": "black", "alpha": 0.4}}
    for place, (text, look) in enumerate(spoken.items()):
        ax.text(0.2, 0.1 + 0.2 * place, text, **look)
    ax.text(0.5, 0.9, "white on a box", color="white", bbox={"facecolor": "black"})
    ax.text(0.5, 0.5, "orange box", color="white", bbox={"facecolor": plots.LIVE})
    ax.barh([2], [1], color=plots.LATENT)
    ax.text(0.5, 2, "on a bar", color="white", ha="center", va="center")
    ax.text(0.5, 3, "beside it", color="white", ha="center", va="center")
    ax.text(0.5, 2.2, "seen by nobody", color="white", visible=False)
    wrong = dim_texts(drawn(ax.figure))
    assert [text.split("'")[1] for text in wrong] == ["dim", "thin", "orange box", "beside it"]
    assert "has a contrast of 2.8, and needs 4.5" in wrong[0]


def test_tick_labels_titles_and_legends_are_texts_too(ax):
    ax.plot([0, 1], label="in a legend")
    ax.set_title("a title", color="0.6")
    ax.tick_params(axis="x", labelcolor=plots.LATENT)
    ax.tick_params(axis="y", labelcolor="0.7")
    ax.set_facecolor("black")
    ax.legend(facecolor="0.2", framealpha=1)
    wrong = " ".join(dim_texts(drawn(ax.figure)))
    assert "'a title'" in wrong and "'in a legend'" in wrong and "'0.2'" in wrong


@pytest.mark.parametrize("wide", [1, 1.5])
def test_numbers_in_a_table_of_colours_stand_on_their_cells(ax, wide):
    """Seaborn writes them in white up to a brightness where black would be read more easily."""
    black = {} if wide == 1 else {"annot_kws": {"color": "black"}}
    shares = np.linspace(0, 1, 12).reshape(3, 4)
    plots.sns.heatmap(shares, ax=ax, annot=True, cmap="Blues", vmin=0, vmax=wide, cbar=False, **black)
    assert bool(dim_texts(drawn(ax.figure))) == (wide == 1)


def test_names_of_arms():
    names = {"warm-up": "warm-up", "warm-up, 30 %": "warm-up", "256 codes, warm-up": "warm-up"}
    names |= {"warm-up, random codes": None, "a regulariser, after the warm-up": None, "k-means": None}
    assert {name: arm_of(name, ARM_COLORS) for name in names} == names


def test_no_arm_has_the_colour_of_data_latents_or_codes_or_of_another_arm():
    taken = [*ARM_COLORS.values(), plots.LATENT, plots.LIVE, PALETTE[7]]
    assert len(set(taken)) == len(taken) and set(taken) <= set(PALETTE)
    assert {"random start", "normal start", "untrained k-means", "warm-up"} <= set(ARM_COLORS)


def planted(kind, ax):
    own, foreign = ARM_COLORS["warm-up"], ARM_COLORS["random start"]
    if kind == "a line":
        ax.plot([0, 1], color=PALETTE[0], label="warm-up")
    elif kind == "another's line":
        ax.plot([0, 1], color=own, label="warm-up, 30 %")
        ax.plot([1, 0], color=own, label="a longer one")
    elif kind == "bars":
        ax.bar([0, 1], [1, 2], color=foreign, label="warm-up")
    elif kind == "points with intervals":
        ax.errorbar([0, 1], [1, 2], [1, 1], fmt="o", color=foreign, label="warm-up")
    elif kind == "a row":
        plots.arms(ax, runs(["warm-up", "random start"]), y="y", by="arm")
        ax.lines[1].set_color(foreign)
    elif kind == "a black row":
        plots.arms(ax, runs(["warm-up", "random start"]), y="y", by="arm")
        ax.lines[1].set_color("black")
    else:
        ax.plot([0, 1], color=PALETTE[0])
        ax.set_title("warm-up")


KINDS = ["a line", "another's line", "bars", "points with intervals", "a row", "a black row", "a panel"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_arm_in_a_foreign_colour_is_found(ax, kind):
    planted(kind, ax)
    assert len(foreign_colors(drawn(ax.figure))) == 1


def test_arms_in_their_own_colours_are_no_fault(ax):
    plots.curves(ax, runs(ARM_COLORS), x="x", y="y", by="arm")
    plots.code_counts(ax, torch.arange(9) // 3, 6, "all")
    ax.axhline(1, color="0.5", label="a threshold")
    ax.set_title("warm-up")
    assert foreign_colors(drawn(ax.figure)) == []


FIGURE = """\
figure, ax = plt.subplots()
ax.plot([0, 1], label="warm-up", color={color!r})
plots.show(figure, "A line.")
"""


@pytest.mark.parametrize("color", [PALETTE[0], PALETTE[2]])
def test_a_fault_in_a_notebook_is_an_error_in_its_cell(tmp_path, color):
    sources = ["import matplotlib.pyplot as plt\nfrom vqnotes import plots", FIGURE.format(color=color)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in sources])
    client = NotebookClient(notebook, timeout=HOURS, startup_timeout=HOURS, kernel_name="python3")
    environment = os.environ | watched(tmp_path)
    if color == PALETTE[2]:
        client.execute(env=environment)
        return
    with pytest.raises(CellExecutionError, match="'warm-up' is not drawn in the colour of warm-up"):
        client.execute(env=environment)


def test_the_kernels_of_this_run_are_watched():
    startup = os.path.join(os.environ["IPYTHONDIR"], "profile_default", "startup")
    assert "figure_faults.py" in os.listdir(startup)
