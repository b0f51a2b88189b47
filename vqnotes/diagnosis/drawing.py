"""A diagnosis as a picture, and the looks of a watch as another."""

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vqnotes._checks import check_columns, check_positive
from vqnotes.metrics import principal_variances
from vqnotes.nearest import nearest_code

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

    from vqnotes.diagnosis.report import Diagnosis, Evidence

__all__ = ["MARKS", "draw", "draw_watch"]

# Of each verdict, and of what stands in the place of one in a watch: the colour, by its place in `plots.PALETTE` or
# by name, and the marker.
MARKS: dict[str, tuple[int | str, str]] = {
    "healthy": (0, "o"),
    "token collapse": (3, "X"),
    "embedding collapse": (4, "s"),
    "token and embedding collapse": (5, "P"),
    "dimensional collapse": (8, "D"),
    "rate limit": (9, "v"),
    "cannot tell": ("0.6", "^"),
    "not started": ("0.6", ">"),
    "no diagnosis": ("black", "x"),
}
# The losses that are drawn, and the rows of the evidence whose conditions draw their line: all of them must hold.
LOSSES = {
    "error / variance": ("error / variance", "optimality gap"),
    "lost by its own codes": ("lost by its own codes", "more than by the best codes"),
    "lost by the encoder": ("lost by the encoder",),
}


def draw(axes: np.ndarray, found: "Diagnosis") -> "DataFrame":
    """Draws a diagnosis in four panels: codes among latents, uses, losses beside references, dimensions.

    axes: four of them, in any array. A black mark beside losses is the line up to which nothing is at fault.
    Returns columns name, yours, reference, line: what the third and fourth panel compare, NaN where no line is drawn.
    Raises ValueError for another number of axes, for codes that are put together, which share no picture, for ids,
    for what was loaded from a file, which holds no latents, and for codes that are not started; ImportError without
    what draws, `pip install 'vqnotes[course]'`.
    """
    from pandas import DataFrame

    from vqnotes.plots import DATA, LATENT, LIVE, code_counts, codes_and_latents

    axes = np.ravel(axes)
    if len(axes) != 4:
        raise ValueError(f"need four axes, got {len(axes)}")
    if not found.started:
        raise ValueError(f"there is nothing to draw yet: {found.reason}")
    if found.drawing is None:
        raise ValueError(
            f"{found.verdict!r} is said of codes put together, or of ids, or comes from a file, which holds no "
            f"latents: draw one codebook with its latents"
        )
    where, uses, losses, dimensions = axes
    latents, codes, counts = found.drawing
    codes_and_latents(where, latents, codes)
    where.set_aspect("equal", adjustable="datalim")
    where.set(xlabel="in the plane of the latents' first two components")
    code_counts(uses, torch.arange(len(codes)).repeat_interleave(counts), len(codes))
    uses.set(xscale="log", xlim=(0.8, 1.2 * len(codes)))  # so that few live codes among many can be seen
    evidence = found.evidence
    shown = {name: evidence[name] for name in LOSSES if name in evidence and evidence[name].reference > 0}
    rows = [(name, one.value, one.reference, _line(name, evidence)) for name, one in shown.items()]
    for shift, column, label, color in ((-0.2, 1, "yours", LIVE), (0.2, 2, "reference", DATA)):
        losses.barh(np.arange(len(rows)) + shift, [row[column] for row in rows], 0.38, label=label, color=color)
    look: dict[str, Any] = {"color": "black", "marker": "|", "markersize": 22, "markeredgewidth": 2}
    losses.plot([row[3] for row in rows], np.arange(len(rows)) - 0.2, linestyle="none", label="line", **look)
    losses.set(yticks=range(len(rows)), yticklabels=[row[0] for row in rows], xscale="log", xlabel="share left over")
    losses.invert_yaxis()
    for points, name, color in (
        (latents, "latents", LATENT),
        (codes[nearest_code(latents, codes)], "codes used", LIVE),
    ):
        shares = principal_variances(points) / max(principal_variances(points).sum(), np.finfo(float).tiny)
        dimensions.plot(np.arange(1, len(shares) + 1), shares, marker="o", markersize=3, label=name, color=color)
    dimensions.set(xlabel="principal component", ylabel="share of the variance", yscale="log", ylim=(1e-4, 1.2))
    if "dimensions filled" in found.evidence:
        filled = found.evidence["dimensions filled"]
        rows.append(("dimensions filled", filled.value, filled.reference, np.nan))
        dimensions.axvline(filled.value, color=LIVE, linestyle="--", label="filled")
        dimensions.axvline(filled.reference, color=DATA, linestyle="--", label="filled by the reference")
    for ax, title in zip(axes, ("codes among latents", "uses of each code", "losses", "dimensions")):
        ax.set_title(title)
    where.legend(fontsize=9, loc="upper left", framealpha=0.6)
    for ax in (losses, dimensions):
        ax.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3 if ax is losses else 2)
    return DataFrame(rows, columns=["name", "yours", "reference", "line"])


def _line(name: str, evidence: "dict[str, Evidence]") -> float:
    """Up to which loss codebook or encoder are not at fault; NaN where nothing rests on the loss."""
    reference = evidence[name].reference
    if evidence[name].condition is None:
        return np.nan
    lines: list[float] = []
    for one in (evidence[row].condition for row in LOSSES[name]):
        if one is not None:
            kept = reference + one.threshold * (1 - reference)
            by_unit = {"times": one.threshold * reference, "more": reference + one.threshold, "of what is kept": kept}
            lines.append(by_unit[one.unit])
    return max(lines)


def draw_watch(ax: "Axes", frame: "DataFrame", *, threshold: float | None = None) -> "DataFrame":
    """Draws the looks of a `CollapseWatch`: gap over steps, logarithmic; the verdicts are colours and markers.

    frame: `watch.looks()`, with columns step, name, verdict, gap; a line for each name. A look without a gap (codes
    that are not started, or no diagnosis) is a marker at the foot of the figure, one with an infinite gap at its top.
    threshold: a gap, drawn as a line. Without inputs, up to `diagnosis.rules.THRESHOLDS["gap"]` no codebook is at
    fault. With inputs it is no line between verdicts: then the losses of inputs count, and a gap above 1.
    Returns the looks as drawn, columns step, name, verdict, gap.
    Raises ValueError without looks, for a column that is missing, or a threshold not above 0; ImportError without
    what draws, `pip install 'vqnotes[course]'`.
    """
    from vqnotes.plots import PALETTE

    check_columns(frame, "step", "name", "verdict", "gap")
    if threshold is not None:
        check_positive("threshold", threshold)
    drawn = frame[["step", "name", "verdict", "gap"]].reset_index(drop=True)
    drawable = np.isfinite(drawn["gap"]) & (drawn["gap"] > 0)
    names = drawn["name"].unique()
    ax.set_yscale("log")
    for name, style in zip(names, itertools.cycle(["-", "--", ":", "-."])):
        own = drawn[drawn["name"] == name]
        label = name if len(names) > 1 else None
        ax.plot(
            own["step"], own["gap"].where(drawable[own.index]), style, color="0.6", linewidth=1, zorder=2, label=label
        )
    for verdict, part in drawn.groupby("verdict", sort=False):
        color, marker = MARKS.get(verdict, ("black", "*"))
        color = PALETTE[color] if isinstance(color, int) else color
        look: dict[str, Any] = {"color": color, "marker": marker, "s": 40, "zorder": 3}
        inside, edge = part[drawable[part.index]], part[~drawable[part.index]]
        ax.scatter(inside["step"], inside["gap"], label=verdict, **look)
        heights = np.where(edge["gap"] == np.inf, 0.97, 0.03)
        ax.scatter(edge["step"], heights, transform=ax.get_xaxis_transform(), **look)
    if threshold is not None:
        ax.axhline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:g}")
    ax.update_datalim([(step, 1) for step in drawn["step"]], updatey=not drawable.any())  # for markers at an edge
    ax.autoscale_view()
    ax.set(xlabel="step", ylabel="optimality gap")
    ax.legend(fontsize=10)
    return drawn
