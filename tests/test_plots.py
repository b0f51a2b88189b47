"""Figures draw the data they return. nbval never compares pictures, so this is where they are tested."""

import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import hue, normal
from PIL import Image

from vqnotes import metrics, plots


def test_codes_and_latents_tells_live_from_dead(ax):
    latents, codebook = normal(50, 2), torch.tensor([[0.0, 0.0], [99.0, 99.0], [1.0, 1.0]])
    frame = plots.codes_and_latents(ax, latents, codebook)
    assert frame["kind"].tolist() == ["latent"] * 50 + ["live code", "dead code", "live code"]
    drawn = {c.get_label(): np.asarray(c.get_offsets()) for c in ax.collections}
    assert drawn["dead codes"].tolist() == [[99, 99]] and drawn["live codes"].tolist() == [[0, 0], [1, 1]]
    assert np.allclose(drawn["latents"], latents) and np.allclose(frame[["x", "y"]][50:], codebook)


def test_codes_and_latents_projects_onto_the_main_plane(ax):
    latents = normal(200, 5) * torch.tensor([0.01, 3.0, 0.01, 1.0, 0.01])
    frame = plots.codes_and_latents(ax, latents, latents[:4], sample=30)
    assert (frame["kind"] == "latent").sum() == 30
    assert np.abs(frame["x"][:30]).to_numpy() == pytest.approx(
        (latents - latents.mean(0))[:30, 1].abs().numpy(), abs=0.1
    )
    assert set(plots.codes_and_latents(ax, normal(20, 1), normal(3, 1))["y"]) == {0}
    two = torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, 9.0]])  # the last is not drawn, but its code lives
    assert plots.codes_and_latents(ax, two, two[1:], sample=2)["kind"].tolist()[2:] == ["live code"] * 2


def test_latents_are_blue_live_codes_orange_and_dead_codes_crosses(ax):
    latents, codes = normal(50, 2), torch.tensor([[0.0, 0.0], [99.0, 99.0]])
    plots.codes_and_latents(ax, latents, codes)
    drawn = {one.get_label(): one for one in ax.collections}
    blue, orange = (hue(drawn[kind].get_facecolor()[0]) for kind in ("latents", "live codes"))
    assert 180 < blue < 260 and 20 < orange < 60
    cross, dot = (len(drawn[kind].get_paths()[0].vertices) for kind in ("dead codes", "live codes"))
    assert cross == 4 < dot and drawn["dead codes"].get_edgecolor()[0, :3].max() == 0
    assert drawn["latents"].zorder < drawn["live codes"].zorder  # no code is hidden
    plots.code_counts(ax, torch.tensor([0, 0]), 2)
    assert 20 < hue(ax.collections[-1].get_facecolor()[0]) < 60 and ax.lines[-1].get_marker() == "x"


def test_latents_by_label_gives_each_label_its_colour(ax):
    latents, y = normal(40, 2), torch.arange(40) % 3
    frame = plots.latents_by_label(ax, latents, y, sample=30)
    (drawn,) = ax.collections
    assert np.allclose(drawn.get_offsets(), latents[:30]) and frame["label"].tolist() == y[:30].tolist()
    colours = [tuple(colour) for colour in drawn.get_facecolor()]
    assert len(set(colours)) == 3 and colours[0] == colours[3] != colours[1]
    assert np.ptp(plots.latents_by_label(ax, normal(40, 1) * torch.ones(40, 6), y)["y"]) < 1e-6


def test_code_counts_are_sorted_and_whole(ax):
    frame = plots.code_counts(ax, torch.tensor([2, 2, 2, 0]), 4)
    assert frame["count"].tolist() == [3, 1, 0, 0] and frame["rank"].tolist() == [1, 2, 3, 4]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("codes, most used first", "times used")
    assert ax.collections[0].get_paths()[0].vertices[:, 1].max() == 3 and ax.lines[0].get_xdata().tolist() == [3, 4]


def runs():
    rows = [
        {"start": start, "codes": codes, "value": base + seed}
        for start, base in (("b", 10), ("a", 20))
        for codes in (8, 16)
        for seed in range(5)
    ]
    return pd.DataFrame(rows)


def test_curves_draw_the_mean_and_its_interval(ax):
    table = plots.curves(ax, runs(), x="codes", y="value", by="start")
    assert table["start"].tolist() == ["b", "b", "a", "a"] and table["mean"].tolist() == [12, 12, 22, 22]
    assert table["low"][0], table["high"][0] == metrics.confidence_interval([10, 11, 12, 13, 14])
    assert [line.get_ydata().tolist() for line in ax.lines] == [[12, 12], [22, 22]]
    assert [line.get_label() for line in ax.lines] == ["b", "a"] and len(ax.collections) == 2
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("codes", "value")
    bands = [band.get_datalim(ax.transData) for band in ax.collections]
    assert [(band.ymin, band.ymax) for band in bands] == list(zip(table["low"][::2], table["high"][::2]))
    assert ((table["low"] < table["mean"]) & (table["mean"] < table["high"])).all()


def test_arms_draw_every_run(ax):
    table = plots.arms(ax, runs(), y="value", by="start")
    assert table["mean"].tolist() == [12, 22] and [t.get_text() for t in ax.get_yticklabels()] == ["b", "a"]
    assert sorted(ax.lines[0].get_xdata()) == sorted([10, 11, 12, 13, 14] * 2)
    with pytest.raises(ValueError, match="two finite"):
        plots.arms(ax, runs()[:1], y="value", by="start")


def test_tornado_draws_every_effect_from_zero_the_largest_on_top(ax):
    effects = pd.DataFrame(
        [
            ("beta", "low", -3.0),
            ("K", "16", 40.0),
            ("beta", "high", 5.0),
            ("K", "256", -50.0),
            ("order", "sorted", 1.0),
        ],
        columns=["knob", "level", "mean"],
    )
    effects = effects.assign(low=effects["mean"] - 1, high=effects["mean"] + 1)
    drawn = plots.tornado(ax, effects, by="knob", level="level")
    assert drawn["level"].tolist() == ["256", "16", "low", "high", "sorted"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["K", "beta", "order"]
    assert [bar.get_width() for bar in ax.patches] == drawn["mean"].tolist() and ax.patches[0].get_x() == 0
    middles = [bar.get_y() + bar.get_height() / 2 for bar in ax.patches]
    assert np.round(middles).tolist() == [0, 0, 1, 1, 2] and len(set(middles)) == 5
    assert [list(line.get_xdata()) for line in ax.lines[:-1]] == drawn[["low", "high"]].to_numpy().tolist()
    assert [text.get_text() for text in ax.texts] == drawn["level"].tolist()
    assert ax.yaxis_inverted()
    ax.figure.canvas.draw()
    for text, bar, (low, high) in zip(ax.texts, ax.patches, drawn[["low", "high"]].to_numpy()):
        box = text.get_window_extent().transformed(
            ax.transData.inverted()
        )  # beside bar and interval, on no side of 0
        assert box.x0 > max(high, 0) if bar.get_width() > 0 else box.x1 < min(low, 0)


def test_spectrum_marks_the_effective_dimension(ax):
    x = normal(500, 6) * torch.tensor([3.0, 2.0, 1.0, 0.1, 0.01, 0.01])
    frame = plots.spectrum(ax, x)
    assert frame["share"].iloc[-1] == pytest.approx(1) and frame["share"].is_monotonic_increasing
    assert ax.lines[1].get_xdata()[0] == metrics.effective_dimension(x) == 3


def test_picture_shows_the_image_cut_to_its_range(ax):
    image = torch.stack([torch.full((2, 2), v) for v in (-1.0, 0.5, 2.0)])
    assert plots.picture(ax, image)["mean"].tolist() == [0, 0.5, 1]
    assert np.asarray(ax.images[0].get_array()).shape == (2, 2, 3)
    assert np.asarray(plots.picture(ax, image[:1])["mean"]).tolist() == [0]
    for wrong in image[:2], image[0], image[None], image[:, :0], image[:1].to(torch.complex64):
        with pytest.raises(ValueError, match=re.escape(f"{wrong.dtype} {tuple(wrong.shape)}")):
            plots.picture(ax, wrong)
    with pytest.raises(ValueError, match="1 NaN"):
        plots.picture(ax, torch.tensor([[[0.5, torch.nan]]]))


def test_index_map_gives_every_code_its_own_colour(ax):
    index = torch.arange(300).repeat_interleave(2).reshape(20, 30)
    frame = plots.index_map(ax, index)
    assert len(frame) == 300 and (frame["count"] == 2).all()
    colours = np.asarray(ax.images[0].get_array()).reshape(-1, 3)
    assert len(np.unique(colours.round(6), axis=0)) == 300 and np.array_equal(colours[0], colours[1])
    assert plots.index_map(ax, torch.tensor([[5, 5], [5, 9]]))["code"].tolist() == [5, 9]
    plots.index_map(ax, torch.tensor([[1, 1, 2], [3, 3, 3]]))
    plots.index_map(ax, torch.tensor([[4, 4, 7], [2, 2, 2]]))  # other names, as often used: the same picture
    assert np.array_equal(*(ax.images[place].get_array() for place in (-2, -1)))
    with pytest.raises(ValueError, match=r"\(4,\)"):
        plots.index_map(ax, torch.arange(4))


@pytest.mark.parametrize("picture, kind", [(True, "image/jpeg"), (False, "image/png")])
def test_show_displays_the_figure_once_with_its_text_and_closes_it(monkeypatch, picture, kind):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append((data, options["metadata"])))
    figure, ax = plt.subplots()
    if picture:
        plots.picture(ax, torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match="alternative text"):
        plots.show(figure, " ")
    plots.show(figure, "noise")
    ((data, metadata),) = shown
    assert set(data) == {kind, "text/plain"} and metadata == {kind: {"alt": "noise"}}
    assert Image.open(io.BytesIO(base64.b64decode(data[kind]))).width > 300
    assert not plt.fignum_exists(figure.number)
