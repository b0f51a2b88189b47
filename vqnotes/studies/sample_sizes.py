"""How many latents does a verdict need? Wrong and withheld verdicts over the latents N, the codes K, dimensions D.

python -m vqnotes.studies.sample_sizes --out parts    a file a cell; run again, it goes on where it was

Latents with a known fault, and no training: inputs on a curved surface of four dimensions in 32, and latents that are
another view of that surface in D dimensions. The codes are those of k-means on far more latents than the diagnosis
gets, which it then has to find sound; or most of them are dead; or the latents lack a part of the surface.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vqnotes.diagnosis.measures import measure
from vqnotes.diagnosis.observed import observe
from vqnotes.diagnosis.rules import THRESHOLDS, confidence, decide
from vqnotes.kmeans import kmeans
from vqnotes.studies import judging
from vqnotes.studies.parts import command

__all__ = [
    "FAULTS",
    "RIGHT",
    "cells",
    "costs_little",
    "judged",
    "latents_and_codes",
    "shares",
    "sizes_judged",
    "sizes_tried",
    "surface",
]

TABLE = Path(__file__).with_name("sample_sizes.csv")
SURFACE, SEEN = 4, 32  # dimensions of the surface, and of the inputs
LATENTS_A_CODE = (0.25, 1, 4, 16, 64)
FAULTS = ("none", "codes die", "latents coincide")
RIGHT = {  # verdicts that are right for each; codes that are as good as can be may still be too few
    "none": ("healthy", "rate limit"),
    "codes die": ("token collapse",),
    "latents coincide": ("embedding collapse",),
}
PLACED_ON, MOST_PLACED_ON = 32, 2**17  # latents a code that the codes are placed on
COSTS, SEEDS = 2**26, range(12)  # up to which size of a cell, in products, it gets all of the seeds


def cells() -> list[dict]:
    """All that is tried: N, K, D and the fault; N from K/4 to 64 K, 64 at least."""
    return [
        {"latents": int(share * codes), "codes": codes, "dim": dim, "fault": fault}
        for codes in (16, 64, 256, 1024, 4096, 8192)
        for share in LATENTS_A_CODE
        for dim in (2, 16, 256)
        for fault in FAULTS
        if share * codes >= 64 and codes * codes * dim * max(share, 8) <= 2**36
    ]


def sizes_tried(latents: int, codes: int, dim: int, fault: str) -> range:
    """The seeds of a cell: all of a small one, fewer of those that cost more, and two at least."""
    cost = codes * min(max(PLACED_ON * codes, 8192), MOST_PLACED_ON) * dim
    return SEEDS[: int(np.clip(len(SEEDS) * COSTS / cost, 2, len(SEEDS)))]


def surface(count: int, seed: int) -> Tensor:
    """Places on the surface, (count, 4), of normal distribution."""
    return torch.randn(count, SURFACE, generator=torch.Generator().manual_seed(seed))


def view(places: Tensor, dim: int, seed: int) -> Tensor:
    """The surface as it is seen in `dim` dimensions: at its own size, and bent a little, with some noise."""
    generator, known = torch.Generator().manual_seed(seed), places.shape[1]
    straight, _ = torch.linalg.qr(torch.randn(dim, known, generator=generator))  # no direction shrinks
    bent = (places @ torch.randn(known, dim, generator=generator)).sin() if dim > known else 0.0
    noise = torch.randn(len(places), dim, generator=generator)
    return places @ straight.T + (0.3 * bent + 0.02 * noise) / dim**0.5


def latents_and_codes(latents: int, codes: int, dim: int, fault: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (N, D), a codebook (K, D) and inputs (N, 32) with this fault. ValueError for an unknown fault.

    "none": latents see all of the surface that D dimensions can hold, and codes are those of k-means on many latents.
    "codes die": an eighth of them are such codes, the others are so far away that no latent comes to them. (Codes
    that crowd in one place are no clear fault: which of them is nearest still tells the direction of a latent.)
    "latents coincide": they see one dimension of the surface alone, of which inputs have four.
    """
    if fault not in FAULTS:
        raise ValueError(f"fault must be one of {FAULTS}, got {fault!r}")
    known = 1 if fault == "latents coincide" else min(SURFACE, dim)
    many = min(max(PLACED_ON * codes, 8192), MOST_PLACED_ON)
    places = surface(latents + many, seed)
    if dim < SURFACE and fault != "latents coincide":
        places[:, dim:] = 0  # what the latents cannot hold, the inputs do not have
    z = view(places[:, :known], dim, seed + 1)
    shown, others = z[:latents], z[latents:]
    alive = max(2, codes // 8) if fault == "codes die" else codes
    codebook, _ = kmeans(others, alive, seed)
    generator = torch.Generator().manual_seed(seed)
    codebook = torch.cat([codebook, 1000 + torch.randn(codes - alive, dim, generator=generator)])
    return shown, codebook, view(places[:latents], SEEN, seed + 2)


def judged(latents: int, codes: int, dim: int, fault: str, seeds: Iterable[int] | None = None) -> list[dict]:
    """The verdicts on one cell: a row for each seed, with how sure it is. Raises as `latents_and_codes`."""
    rows = []
    for seed in sizes_tried(latents, codes, dim, fault) if seeds is None else seeds:
        shown, codebook, x = latents_and_codes(latents, codes, dim, fault, 10 * seed)
        m = measure(observe(shown, codebook, inputs=x, seed=seed))
        verdict, reason = decide(m, THRESHOLDS)
        cell = {"latents": latents, "codes": codes, "dim": dim, "fault": fault, "seed": seed}
        figures = {name: getattr(m, name) for name in ("gap", "error", "best", "encoder_loss", "inputs_loss")}
        rows.append(cell | {"verdict": verdict, "confidence": confidence(m, verdict)} | figures | {"reason": reason})
    return rows


def costs_little(table: pd.DataFrame) -> pd.Series:
    """Whether codes of a row died and it costs next to nothing: then they were spare, and "healthy" is right.

    In few dimensions an eighth of many codes does nearly as well as all. What death costs is the error with it less
    that without, a share of the variance, on average over all rows of as many codes and dimensions; little is less
    than what counts as no difference among the labels of `judging`. Raises KeyError for a table without the figures.
    """
    errors = table.groupby(["codes", "dim", "fault"])["error"].mean().unstack().reindex(columns=FAULTS)
    little = (errors["codes die"] - errors["none"]) < judging.TRIFLE
    rows = pd.MultiIndex.from_frame(table[["codes", "dim"]])
    return (table["fault"] == "codes die") & little.reindex(rows).to_numpy()


def shares(table: pd.DataFrame, sure: float = 0.0) -> pd.DataFrame:
    """Of each N, K and D: shares of wrong and of withheld verdicts, and how many there were, over all faults.

    sure: verdicts of less confidence count as withheld. Columns: latents, codes, dim, wrong, withheld, verdicts.
    Raises ValueError for an empty table.
    """
    if table.empty:
        raise ValueError("the table has no rows")
    known = [RIGHT["none"] if little else RIGHT[fault] for fault, little in zip(table["fault"], costs_little(table))]
    right = np.array([verdict in some for verdict, some in zip(table["verdict"], known)])
    withheld = (table["verdict"] == "cannot tell") | (table["confidence"] < sure)
    by = table.assign(wrong=~right & ~withheld, withheld=withheld).groupby(["latents", "codes", "dim"])
    return by.agg(wrong=("wrong", "mean"), withheld=("withheld", "mean"), verdicts=("wrong", "size")).reset_index()


def sizes_judged() -> pd.DataFrame:
    """The table that comes with the module: one row a verdict, with the cell it is from. Not all cells are done."""
    return pd.read_csv(TABLE)


if __name__ == "__main__":
    command("python -m vqnotes.studies.sample_sizes", __doc__.splitlines()[0], judged, cells())
