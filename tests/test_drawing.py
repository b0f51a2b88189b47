"""The picture of a diagnosis shows the numbers that it rests on, that of a watch all of its looks."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import hue, normal

from vqnotes.diagnosis import diagnose, diagnose_stack, draw, draw_watch, watch
from vqnotes.diagnosis.drawing import LOSSES, MARKS
from vqnotes.diagnosis.report import VERDICTS, not_started
from vqnotes.kmeans import kmeans


def test_a_diagnosis_shows_its_evidence_in_four_panels():
    latents = normal(400, 3)
    found = diagnose(latents, latents[:8] * 0.01, inputs=latents)
    figure, axes = plt.subplots(2, 2)
    frame = draw(axes, found)
    for name, yours, reference, _ in frame.itertuples(index=False):
        assert (yours, reference) == found.evidence[name][:2]
    assert list(frame["name"]) == [
        "error / variance",
        "lost by its own codes",
        "lost by the encoder",
        "dimensions filled",
    ]
    bars = [patch.get_width() for patch in axes[1, 0].patches]
    assert bars == [*frame["yours"][:3], *frame["reference"][:3]]
    assert [label.get_text() for label in axes[1, 0].get_yticklabels()] == list(frame["name"][:3])
    assert {text.get_text() for text in axes[1, 0].get_legend().get_texts()} == {"yours", "reference", "line"}
    np.testing.assert_array_equal(axes[1, 0].lines[0].get_xdata(), frame["line"][:3])
    for place, line in enumerate(axes[1, 1].lines[:2]):  # shares of a whole, of latents and then of the codes used
        assert line.get_ydata().sum() == pytest.approx(1) and line.get_label() == ("latents", "codes used")[place]
    assert [line.get_xdata()[0] for line in axes[1, 1].lines[2:]] == [*frame[["yours", "reference"]].iloc[3]]
    kinds = [text.get_text() for text in axes[0, 0].get_legend().get_texts()]
    assert kinds == ["latents", "dead codes", "live codes"]
    assert axes[0, 1].get_xscale() == "log"  # eight live codes of a thousand are no hairline
    figure.tight_layout()
    figure.canvas.draw()
    for ax in axes[1]:
        assert ax.get_legend().get_window_extent().y1 < ax.bbox.y0  # hides nothing that is drawn
    uses = axes[0, 1].get_xlabel()
    assert uses and all(ax.get_title() for ax in axes.flat)
    with pytest.raises(ValueError, match="four axes, got 2"):
        draw(axes[0], found)
    with pytest.raises(ValueError, match="codes put together"):
        draw(axes, diagnose_stack([[(latents, latents[:8], None)]]).whole)
    with pytest.raises(ValueError, match="nothing to draw yet: The codes of vq have not been started"):
        draw(axes, not_started(["vq"]))
    plt.close(figure)


@pytest.mark.parametrize("wide", [0.01, 0.4, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("with_inputs", [False, True])
def test_a_loss_is_beyond_its_line_where_its_conditions_hold(wide, narrow, with_inputs):
    """Where a bar passes its mark, and only there, all that is asked of this loss speaks for a fault."""
    inputs = normal(1500, 3)
    latents = inputs * torch.tensor([1.0, 0.0, 0.0]) if narrow else inputs
    found = diagnose(latents, kmeans(latents, 32)[0] * wide, inputs=inputs if with_inputs else None)
    _, axes = plt.subplots(2, 2)
    lines = draw(axes, found).set_index("name")
    plt.close()
    asked = {name: rows for name, rows in LOSSES.items() if name in lines.index}
    assert len(asked) == (3 if with_inputs else 1)
    for name, rows in asked.items():
        if found.evidence[name].condition is None:
            assert with_inputs and name == "error / variance" and np.isnan(lines.loc[name, "line"])
            continue
        holds = all(found.evidence[row].holds for row in rows)
        assert (lines.loc[name, "yours"] > lines.loc[name, "line"]) == holds, name


def looks():
    """Of two quantisers: one without a gap at first, one with no end of it."""
    rows = [
        (0, "a", "not started", np.nan),
        (0, "b", "token collapse", np.inf),
        (10, "a", "token collapse", 20.0),
        (10, "b", "healthy", 0.0),
        (20, "a", "healthy", 1.2),
        (20, "b", "no diagnosis", np.nan),
    ]
    return pd.DataFrame(rows, columns=["step", "name", "verdict", "gap"]).assign(usage=0.5)


def test_a_watch_is_drawn_with_its_verdicts(ax):
    frame = draw_watch(ax, looks(), threshold=1.4)
    pd.testing.assert_frame_equal(frame, looks().drop(columns="usage"))
    drawn = {}
    for one in ax.collections:
        inside = one.get_offset_transform() == ax.transData
        drawn.setdefault(inside, []).extend(np.asarray(one.get_offsets()).tolist())
    assert sorted(drawn[True]) == [[10, 20], [20, 1.2]]
    bottom, top = 0.03, 0.97
    assert sorted(drawn[False]) == [[0, bottom], [0, top], [10, bottom], [20, bottom]]
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["a", "b", "threshold 1.4"] and lines["a"].get_linestyle() != lines["b"].get_linestyle()
    assert lines["a"].get_ydata()[1:].tolist() == [20, 1.2] and np.isnan(lines["a"].get_ydata()[0])
    assert np.isnan(lines["b"].get_ydata()).all() and lines["threshold 1.4"].get_ydata()[0] == 1.4
    assert ax.get_yscale() == "log" and (ax.get_xlabel(), ax.get_ylabel()) == ("step", "optimality gap")
    low, high = ax.get_xlim()
    assert low <= 0 and high >= 20
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert said == ["a", "b", "not started", "token collapse", "healthy", "no diagnosis", "threshold 1.4"]


def test_no_two_verdicts_look_alike(ax):
    assert set(VERDICTS) | {watch.NOT_STARTED, watch.NO_DIAGNOSIS} == set(MARKS)
    assert len({marker for _, marker in MARKS.values()}) == len(MARKS)
    for name in ("healthy", "an unheard-of verdict"):
        one = looks().tail(2).head(1).assign(verdict=name)
        assert draw_watch(ax, one)["verdict"].tolist() == [name]
    healthy, other = ax.collections[0].get_facecolor(), ax.collections[2].get_facecolor()
    assert 180 < hue(healthy[0]) < 260 and other[0, :3].max() == 0
    assert [line.get_label()[0] for line in ax.lines] == ["_", "_"]  # a single quantiser needs no name


def test_looks_without_any_gap_are_drawn_too(ax):
    draw_watch(ax, looks().query("verdict == 'not started'"))
    ax.figure.canvas.draw()
    assert ax.get_yscale() == "log"


@pytest.mark.parametrize(
    "wrong, threshold, message",
    [
        (looks().head(0), 1.4, "need rows with columns .* got 0 rows"),
        (looks().drop(columns="verdict"), 1.4, "need rows with columns .*'verdict'"),
        (looks(), 0.0, "threshold must be above 0, got 0.0"),
        (looks(), np.nan, "threshold must be above 0, got nan"),
    ],
)
def test_looks_that_cannot_be_drawn_are_refused(ax, wrong, threshold, message):
    with pytest.raises(ValueError, match=message):
        draw_watch(ax, wrong, threshold=threshold)
