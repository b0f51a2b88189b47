"""Figures: one function a figure type. Each draws on the `ax` it is given and returns what it drew as a DataFrame.

Data grey, latents blue, live codes orange, dead codes crosses; an arm of ARM_COLORS has its own colour everywhere.
Latents, codebooks and indices are as in `metrics`; what cannot be drawn is a ValueError, as there.
"""

import io
import itertools

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from vqnotes._checks import Array, as_tensor, check_codebook, check_index, check_labelled, check_latents
from vqnotes._extras import course_extra
from vqnotes._images import encoded, kind_of
from vqnotes.metrics import UsageMeter, effective_dimension, principal_variances, summary
from vqnotes.nearest import nearest_code

with course_extra("vqnotes.plots"):
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

__all__ = [
    "ARM_COLORS", "DATA", "DEAD", "LATENT", "LIVE", "PALETTE", "arms", "code_counts", "codes_and_latents", "curves",
    "index_map", "latents_by_label", "picture", "show", "spectrum", "tornado", "use_style"
]  # fmt: skip

PALETTE = sns.color_palette("colorblind")
LATENT, LIVE, DEAD, DATA = PALETTE[0], PALETTE[1], "black", "0.6"
ARM_COLORS = {"random start": PALETTE[5], "normal start": PALETTE[9], "random restart": PALETTE[4]}
ARM_COLORS |= {"untrained k-means": PALETTE[3], "warm-up": PALETTE[2], "rotation trick": PALETTE[6]}
STYLE = {"figure.dpi": 100, "savefig.dpi": 100, "axes.spines.top": False, "axes.spines.right": False}


def use_style() -> None:
    """Sets the look of the course for all figures that follow."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", rc=STYLE)


def show(figure: Figure, alt: str) -> None:
    """Shows the figure once, with a text for readers who cannot see it, and closes it.

    Raises ValueError if the text is empty.
    """
    from IPython.display import display

    if not alt.strip():
        raise ValueError("a figure needs an alternative text")
    figure.tight_layout()
    drawn, kind = io.BytesIO(), kind_of(figure)
    figure.savefig(drawn, format="png", bbox_inches="tight")
    plt.close(figure)
    content = encoded(Image.open(drawn).convert("RGB"), kind)
    data = {f"image/{kind}": content, "text/plain": f"<figure with {len(figure.axes)} axes>"}
    display(data, metadata={f"image/{kind}": {"alt": alt}}, raw=True)


def codes_and_latents(ax: Axes, latents: Array, codebook: Array, sample: int = 2000) -> pd.DataFrame:
    """Latents and codes in the plane of their first two principal components (of the latents), or as they are in 2-D.

    A code is live if one of the latents has it as its nearest code. Draws at most `sample` latents, the first.
    Returns columns x, y, kind: "latent", "live code" or "dead code".
    """
    codebook = check_codebook(codebook)
    latents = check_latents(latents, codebook.shape[1])
    flat, codes = latents.detach().reshape(-1, latents.shape[-1]).cpu(), codebook.detach().cpu()
    live = torch.zeros(len(codes), dtype=torch.bool)
    live[nearest_code(flat, codes)] = True
    flat, codes = _to_plane(flat, codes)
    kinds = ["latent"] * len(flat[:sample]) + ["live code" if one else "dead code" for one in live]
    points = torch.cat([flat[:sample], codes]).numpy()
    frame = pd.DataFrame({"x": points[:, 0], "y": points[:, 1], "kind": kinds})
    looks = {
        "latent": {"s": 4, "color": LATENT, "alpha": 0.35, "linewidths": 0},
        "dead code": {"s": 26, "color": DEAD, "marker": "x", "linewidths": 0.8},
        "live code": {"s": 26, "color": LIVE, "edgecolors": "black", "linewidths": 0.4},
    }
    for kind, look in looks.items():
        part = frame[frame["kind"] == kind]
        ax.scatter(part["x"], part["y"], label=f"{kind}s", zorder=3 if "code" in kind else 2, **look)
    ax.set(xticks=[], yticks=[], aspect="equal")
    return frame


def latents_by_label(ax: Axes, latents: Array, labels: Array, sample: int = 2000) -> pd.DataFrame:
    """Latents in the plane of `codes_and_latents`, one colour a label. Draws at most `sample`, the first.

    labels: a whole number for each latent. Returns columns x, y, label.
    """
    latents, labels = check_labelled(latents, labels)
    flat = latents.detach().reshape(-1, latents.shape[-1]).cpu()
    (plane,) = _to_plane(flat)
    frame = pd.DataFrame({"x": plane[:sample, 0], "y": plane[:sample, 1], "label": labels[:sample]})
    ax.scatter(frame["x"], frame["y"], s=4, c=[PALETTE[label % len(PALETTE)] for label in frame["label"]])
    ax.set(xticks=[], yticks=[])
    ax.set_aspect("equal", adjustable="datalim")
    return frame


def _to_plane(flat: Tensor, *others: Tensor) -> list[Tensor]:
    """All in coordinates of the first two principal components of `flat`; up to two dimensions stay as they are."""
    parts = [part.double() for part in (flat, *others)]
    if flat.shape[1] > 2:
        center = parts[0].mean(dim=0)
        axes = torch.linalg.svd(parts[0] - center, full_matrices=False).Vh[:2].T
        parts = [(part - center) @ axes for part in parts]
    return [F.pad(part, (0, 2 - part.shape[1])) for part in parts]  # one dimension, or one latent, has one component


def code_counts(ax: Axes, index: Array, size: int, label: str | None = None) -> pd.DataFrame:
    """How often each code is used, most used first, on a logarithmic axis; dead codes are crosses at the bottom.

    size: K. label: in the legend. Returns columns rank (from 1), count.
    """
    counts = UsageMeter(size).update(index).counts.sort(descending=True).values.numpy()
    frame = pd.DataFrame({"rank": np.arange(1, size + 1), "count": counts})
    live, dead = frame[frame["count"] > 0], frame[frame["count"] == 0]
    ax.fill_between(live["rank"], live["count"], step="mid", color=LIVE, linewidth=0.5, label=label)
    some = dead["rank"][:: max(1, size // 32)]
    ax.plot(some, np.full(len(some), 0.7), "x", color=DEAD, markersize=5)
    ax.set(yscale="log", xlim=(0, size + 1), ylim=(0.5, None), xlabel="codes, most used first", ylabel="times used")
    return frame


def curves(ax: Axes, runs: pd.DataFrame, x: str, y: str, by: str | None = None) -> pd.DataFrame:
    """Mean of y over runs at each x, one line for each value of `by`, with its bootstrap 95 % interval as a band.

    runs: one row a run and x. An arm of ARM_COLORS has its colour. Returns columns `by` (if there is one), x, mean,
    low, high. Raises as `metrics.summary`.
    """
    table = summary(runs, [by, x] if by else [x], y)
    parts = table.groupby(by, sort=False, dropna=False) if by else [(None, table)]
    others = itertools.cycle([LATENT, LIVE, PALETTE[7], DEAD])  # no arm's
    for name, part in parts:
        color = ARM_COLORS.get(str(name)) or next(others)
        places = part[x] if pd.api.types.is_numeric_dtype(part[x]) else part[x].map(str)
        ax.plot(places, part["mean"], marker="o", markersize=4, color=color, label=name)
        ax.fill_between(places, part["low"], part["high"], color=color, alpha=0.25, linewidth=0)
    ax.set(xlabel=x, ylabel=y)
    return table


def arms(ax: Axes, runs: pd.DataFrame, y: str, by: str) -> pd.DataFrame:
    """Every run as a dot and the mean with its bootstrap 95 % interval beside it, one row of dots an arm.

    runs: one row a run. Returns columns `by`, mean, low, high, in order of appearance. Raises as `metrics.summary`.
    """
    table = summary(runs, [by], y)
    arms = runs.groupby(by, sort=False, dropna=False)[y]
    for row, ((name, values), low, high, mean) in enumerate(zip(arms, table["low"], table["high"], table["mean"])):
        ax.plot(values, np.full(len(values), row + 0.15), "o", color=DATA, markersize=4, alpha=0.7)
        color = ARM_COLORS.get(name, "black")
        ax.plot([low, high], [row - 0.1] * 2, color=color, linewidth=2)
        ax.plot(mean, row - 0.1, "o", color=color, markersize=7)
    ax.set(yticks=range(len(table)), yticklabels=table[by], xlabel=y, ylim=(len(table) - 0.5, -0.5))
    return table


def tornado(ax: Axes, effects: pd.DataFrame, by: str, level: str) -> pd.DataFrame:
    """Effects of one change at a time as bars from 0 with their intervals, the largest on top, two a row at most.

    effects: one row a change: what is changed (column `by`), to which level, and mean, low, high of its effect.
    Returns the rows drawn, in the order of the drawing from the top: columns `by`, level, mean, low, high.
    """
    order = effects.assign(size=effects["mean"].abs()).groupby(by)["size"].max().sort_values(ascending=False).index
    frames = []
    for row, name in enumerate(order):
        part = effects[effects[by] == name].sort_values("mean")
        shifts = [0.0] if len(part) == 1 else np.linspace(-0.2, 0.2, len(part))
        for shift, (_, bar) in zip(shifts, part.iterrows()):
            color, side, ha = (PALETTE[0], 1, "left") if bar["mean"] > 0 else (PALETTE[1], -1, "right")
            ax.barh(row + shift, bar["mean"], height=0.36, color=color, alpha=0.8)
            ax.plot([bar["low"], bar["high"]], [row + shift] * 2, color="black", linewidth=1.2)
            end = max(bar["high"], 0) if side > 0 else min(bar["low"], 0), row + shift
            ax.annotate(bar[level], end, (4 * side, 0), textcoords="offset points", ha=ha, va="center", fontsize=8)
        frames.append(part)
    ax.axvline(0, color="0.3", linewidth=0.8)
    ax.set(yticks=range(len(order)), yticklabels=order, ylim=(len(order) - 0.5, -0.5))
    return pd.concat(frames)[[by, level, "mean", "low", "high"]].reset_index(drop=True)


def spectrum(ax: Axes, x: Array, label: str | None = None) -> pd.DataFrame:
    """Share of the variance held by the first n principal components, with the effective dimension marked.

    x: (..., D). Returns columns components (from 1), share. Raises ValueError for x that does not vary.
    """
    x = as_tensor(x, "x")
    variances = principal_variances(x)
    if variances.sum() == 0:
        raise ValueError(f"x does not vary, shape {tuple(x.shape)}: it has no spectrum")
    held = variances.cumsum() / variances.sum()
    frame = pd.DataFrame({"components": np.arange(1, len(held) + 1), "share": held})
    (line,) = ax.plot(frame["components"], frame["share"], marker="o", markersize=4, label=label)
    needed = effective_dimension(x)
    ax.plot(needed, held[needed - 1], "o", markersize=11, markerfacecolor="none", color=line.get_color())
    ax.set(xlabel="principal components", ylabel="share of the variance")
    return frame


def picture(ax: Axes, image: Array, title: str = "") -> pd.DataFrame:
    """An image (C, H, W) in [0, 1], with one or three channels; values outside are cut off.

    Returns the mean of each channel as drawn: columns channel, mean.
    Raises ValueError for other shapes, and for NaN.
    """
    image = as_tensor(image, "image")
    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel() or image.is_complex():
        raise ValueError(f"image must be (1 or 3, H, W), got {image.dtype} {tuple(image.shape)}")
    if image.isnan().any():
        raise ValueError(f"image holds {int(image.isnan().sum())} NaN values, shape {tuple(image.shape)}")
    image = image.detach().to(torch.promote_types(image.dtype, torch.float32))
    drawn = image.clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    ax.imshow(drawn[..., 0] if len(image) == 1 else drawn, cmap="gray", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[], title=title)
    sns.despine(ax=ax, left=True, bottom=True)
    return pd.DataFrame({"channel": range(len(image)), "mean": drawn.mean(axis=(0, 1))})


def index_map(ax: Axes, index: Array, title: str = "") -> pd.DataFrame:
    """Which code was used where: a grid of indices (H, W), one colour a code, the frequent ones far apart.

    Returns columns code, count: the codes on the map, most used first. Raises ValueError for other shapes.
    """
    index = check_index(index)
    if index.ndim != 2:
        raise ValueError(f"index must be a grid (H, W), got shape {tuple(index.shape)}")
    codes, where, counts = index.unique(return_inverse=True, return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    colors = np.array(sns.color_palette("husl", 17) * (len(codes) // 17 + 1))
    shade = 1 - 0.6 * np.arange(len(codes)) / max(1, len(codes))
    ax.imshow((colors[: len(codes)] * shade[:, None])[rank[where].cpu().numpy()])
    ax.set(xticks=[], yticks=[], title=title)
    sns.despine(ax=ax, left=True, bottom=True)
    return pd.DataFrame({"code": codes[order].cpu().numpy(), "count": counts[order].cpu().numpy()})
