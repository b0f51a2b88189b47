"""A diagnosis as a picture."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from vqnotes.diagnosis.report import Diagnosis
from vqnotes.metrics import principal_variances
from vqnotes.nearest import nearest_code

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["draw"]


def draw(axes: np.ndarray, found: Diagnosis) -> "DataFrame":
    """Draws a diagnosis in four panels: codes among latents, uses, losses beside references, dimensions.

    axes: four of them, in any array. Returns columns name, yours, reference: what the third and fourth panel compare.
    Raises ValueError for another number of axes, and for codes that are put together: they share no picture;
    ImportError without what draws, `pip install 'vqnotes[course]'`.
    """
    from pandas import DataFrame

    from vqnotes.plots import DATA, LATENT, LIVE, code_counts, codes_and_latents

    axes = np.ravel(axes)
    if len(axes) != 4:
        raise ValueError(f"need four axes, got {len(axes)}")
    if found.drawing is None:
        raise ValueError(
            f"{found.verdict!r} is said of codes put together, or of ids: draw one codebook with its latents"
        )
    where, uses, losses, dimensions = axes
    latents, codes, counts = found.drawing
    codes_and_latents(where, latents, codes)
    where.set_aspect("equal", adjustable="datalim")
    code_counts(uses, torch.arange(len(codes)).repeat_interleave(counts), len(codes))
    evidence = found.evidence.items()
    rows = [(name, one.value, one.reference) for name, one in evidence if name.startswith(("error", "lost"))]
    for shift, column, label, color in ((-0.2, 1, "yours", LIVE), (0.2, 2, "reference", DATA)):
        losses.barh(np.arange(len(rows)) + shift, [row[column] for row in rows], 0.38, label=label, color=color)
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
        rows.append(("dimensions filled", filled.value, filled.reference))
        dimensions.axvline(filled.reference, color=DATA, linestyle="--", label="paid for by the bits")
    for ax, title in zip(axes, ("codes among latents", "uses of each code", "losses", "dimensions")):
        ax.set_title(title)
    for ax in (losses, dimensions):
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3)
    return DataFrame(rows, columns=["name", "yours", "reference"])
