"""Drift: do codes die because latents move faster than codes can follow? One ratio against coverage, in many runs.

python -m vqnotes.studies.drift --out build/drift --table drift.csv   trains what the folder lacks, about 10 minutes

The ratio has no unit. Above the line: how far latents move during the memory of a code. To measure it, each latent
gets a *follower*, a point that starts where the latent was when codes were placed, and follows it, alone, by the rule
of the codes. How far it trails, as root mean square over latents, is that movement. By moving averages, at constant
speed, it is that of 1 / (1 - decay) steps. By Adam it grows with each step if latents are faster than the rate; if
they are far slower, followers jump past them by the length of the rate.
Below the line: the width of a code's region, the root mean square distance to the nearest of K codes that k-means has
placed on the same latents. By it K counts: more codes have smaller regions, so a shorter way leads out of one. The
ratio of a run is the largest of all steps since its codes were placed. What moved before, in a warm-up, is over. With
the start counted, a follower starts at the code nearest to its latent: codes in the wrong place are as far off as if
latents had jumped, and where nothing moves the ratio of codes that fit is 1.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from vqnotes import data, metrics, models, training
from vqnotes._checks import check_columns
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import VectorQuantizer
from vqnotes.studies import codebook_size, parts, remedies
from vqnotes.studies.sweeps import grid

__all__ = [
    "COLLAPSED", "EARLY", "FIRST", "MOVED", "STARTS", "Spreading", "Trailing", "collapse_predicted", "examine",
    "settings", "stored_table", "widened"
]  # fmt: skip

TABLE = Path(__file__).with_name("drift.csv")
FIRST = 0.1  # how wide an untrained encoder spreads the latents, where 1 is where they end
STEPS, BATCH, EARLY = 200, 128, 20
FOLLOWED, PLACED = 128, 1000  # latents that are followed, and that k-means is fitted to
SEEDS = range(10_000, 10_016)
COLLAPSED = 0.5  # a run has, if less than this share of its codes is in effect at the end
STARTS = {  # how codes begin, and after which share of the steps
    "random start": ("uniform", 0.0),
    "untrained k-means": ("kmeans", 0.0),
    "warm-up, random codes": ("uniform", 0.5),
    "warm-up": ("kmeans", 0.5),
}
MOVED = ("synthetic", "encoder", "encoder, 16 dimensions")  # what moves the latents


def widened(spread: float, drift: float) -> float:
    """The spread of the latents a step later: it grows by the share `drift` of what it lacks to 1."""
    return spread + drift * (1 - spread)


class Spreading(nn.Module):
    """An encoder that learns nothing: latents (..., D) are the inputs times `spread`, which somebody else sets."""

    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("spread", torch.tensor(FIRST))

    def forward(self, x: Tensor) -> Tensor:
        return self.spread * x


# ---------------------------------------------------------------- the ratio, measured while runs are trained


def _rms(vectors: Tensor) -> Tensor:
    """Root mean square length (R,) of vectors (R, N, D)."""
    return vectors.square().sum(dim=-1).mean(dim=-1).sqrt()


class Trailing:
    """A callback of `fit_many` that measures the ratio of R runs.

    sets: the data of each. placed: the step at which codes are placed. rule, follow: as in `examine`. drift: of
    latents that nobody but this moves, see `widened`; None with an encoder.
    found: by name, a figure a run (R,): ratio; counting start, with the start counted; both as they were after EARLY
    steps, and early in effect, perplexity over K then; largest step of latents; width at the start; memory in steps.
    """

    def __init__(self, sets: Sequence[data.LabelledData], placed: int, rule: str, follow: float, drift: float | None):
        self.sets, self.placed, self.rule, self.follow, self.drift = sets, placed, rule, follow, drift
        self.found: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, step: int, now: list[models.VQAutoencoder]) -> None:
        if self.drift is not None and step:
            for model in now:
                spread = cast(Spreading, model.encoder).spread
                spread.fill_(widened(spread.item(), self.drift))
        if step < self.placed:
            return
        latents = torch.stack([model.encode(one.x[:FOLLOWED]) for one, model in zip(self.sets, now)])
        spread = _rms(latents - latents.mean(dim=1, keepdim=True))
        if step == self.placed:
            self._start(now, latents, spread)
        self._measure(latents, self.found["width"] * spread / self.spread)
        if step == self.placed + EARLY:
            found = self.found
            found |= {"early": found["ratio"], "early counting start": found["counting start"]}
            found["early in effect"] = torch.tensor([_in_effect(*pair) for pair in zip(self.sets, now)])

    def _start(self, now: list[models.VQAutoencoder], latents: Tensor, spread: Tensor) -> None:
        widths, nearest = [], []
        for one, model, part in zip(self.sets, now, latents):
            every, codes = model.encode(one.x), model.quantizer.codebook
            centroids, _ = kmeans(every[:PLACED], len(codes))
            widths.append(math.sqrt(metrics.quantization_error(every, centroids, relative=False)))
            nearest.append(codes[nearest_code(part, codes)])
        self.latents, self.spread = latents, spread
        self.followers = {"ratio": latents.clone(), "counting start": torch.stack(nearest)}
        # A moving average goes a share of the way in each step, as plain gradient descent on the distance does.
        kind: Any = torch.optim.Adam if self.rule == "gradient" else torch.optim.SGD
        self.rule_of_codes = kind(list(self.followers.values()), lr=self.follow)
        width, none = torch.tensor(widths), torch.zeros(len(now))
        steps = width / (self.follow * math.sqrt(latents.shape[-1])) if self.rule == "gradient" else 1 / self.follow
        self.found = {"width": width, "memory": none + steps}
        self.found |= {"largest step": none, "ratio": none, "counting start": none}

    def _measure(self, latents: Tensor, width: Tensor) -> None:
        found = self.found
        found["largest step"] = torch.maximum(found["largest step"], _rms(latents - self.latents))
        self.latents = latents
        for name, follower in self.followers.items():
            behind = latents - follower
            found[name] = torch.maximum(found[name], _rms(behind) / width)
            follower.grad = -behind
        self.rule_of_codes.step()


@lru_cache(maxsize=2 * len(SEEDS))
def _data(other: bool, seed: int) -> data.LabelledData:
    return remedies.modes(seed) if other else data.gaussian_modes(10, 200, seed=seed)


def _in_effect(one: data.LabelledData, model: models.VQAutoencoder) -> float:
    size = model.quantizer.codebook_size
    return metrics.perplexity(models.evaluate(model, one.x).index, size) / size


# ---------------------------------------------------------------- one setting, all seeds


def examine(
    moved: str, speed: float, rule: str, follow: float, K: int, start: str, seeds: Iterable[int] = SEEDS
) -> list[dict[str, Any]]:
    """Trains one setting, a run a seed, and returns the setting, the seed and what was measured of each.

    moved: of MOVED. speed: the learning rate of the encoder, or the drift of synthetic latents, see `widened`.
    rule: "EMA" or "gradient" (Adam). follow: 1 - decay, or the learning rate of the codes. start: of STARTS.
    Measured: what `Trailing` finds; at the end usage, in effect (perplexity over K), modes (share of them covered).
    Raises ValueError for another name.
    """
    if moved not in MOVED or rule not in ("EMA", "gradient") or start not in STARTS:
        raise ValueError(
            f"need one of {MOVED}, EMA or gradient, and one of {list(STARTS)}: {moved!r}, {rule!r}, {start!r}"
        )
    seeds, (init, share), synthetic = list(seeds), STARTS[start], moved == "synthetic"
    sets = [_data("16" in moved, seed) for seed in seeds]
    options: dict[str, Any] = {"update": "ema", "decay": 1 - follow} if rule == "EMA" else {}

    def build(seed: int) -> models.VQAutoencoder:
        quantizer = VectorQuantizer(K, 8 if "16" in moved else 2, **options)
        if synthetic:  # nobody looks at its decoder
            return models.VQAutoencoder(Spreading(), quantizer, nn.Linear(2, 2))
        return models.mlp_autoencoder(sets[0].x.shape[1], quantizer)

    watch = Trailing(sets, int(share * STEPS), rule, follow, speed if synthetic else None)
    rates: dict[str, Any] = {"lr": 1e-3 if synthetic else speed, "codebook_lr": None if rule == "EMA" else follow}
    runs = training.fit_many(
        build, [one.x for one in sets], seeds=seeds, steps=STEPS, warmup=watch.placed, init=init, batch_size=BATCH,
        callback=watch, progress=False, **rates
    )  # fmt: skip
    setting = {"moved": moved, "speed": speed, "rule": rule, "follow": follow, "K": K, "start": start}
    setting["device"], rows = codebook_size.device_name(sets[0].x.device), []
    for place, (seed, one, (model, _)) in enumerate(zip(seeds, sets, runs)):
        found = {name: figure[place].item() for name, figure in watch.found.items()}
        outcome = models.evaluate(model, one.x)
        covered = math.exp(metrics.mode_entropy(outcome.latents, model.quantizer.codebook.detach(), one.y))
        found |= {"usage": metrics.usage(outcome.index, K), "in effect": metrics.perplexity(outcome.index, K) / K}
        found["modes"] = covered / len(one.y.unique())
        rows.append({**setting, "seed": seed} | {name: float(f"{figure:.4g}") for name, figure in found.items()})
    return rows


def settings() -> list[dict[str, Any]]:
    """All settings of the stored table: what moves the latents, how fast, how codes follow, K, and the start."""
    rules = [("EMA", 0.1), ("EMA", 0.01), ("gradient", 5e-2), ("gradient", 5e-3)]
    rates, sizes = [1e-6, 5e-5, 5e-3], [16, 64, 256]
    found = grid(moved=MOVED[:1], speed=[1e-4, 3e-3, 1e-1], rule=rules, K=sizes, start=STARTS)
    found += grid(moved=MOVED[1:2], speed=rates, rule=rules, K=sizes, start=STARTS)
    found += grid(moved=MOVED[2:], speed=rates, rule=rules[1::2], K=[64], start=STARTS)
    for one in found:
        one["rule"], one["follow"] = one["rule"]
    return found


# ---------------------------------------------------------------- what the table says


def stored_table() -> pd.DataFrame:
    """The table that comes with the module: one row a run, with the columns of `examine`."""
    return pd.read_csv(TABLE)


def _threshold(figure: np.ndarray, collapsed: np.ndarray) -> float:
    """The one of 201 quantiles of the figure by which most runs are told right, if those above it collapse."""
    candidates = np.quantile(figure, np.linspace(0, 1, 201))
    return float(max(candidates, key=lambda one: ((figure > one) == collapsed).mean()))


def collapse_predicted(runs: pd.DataFrame, figure: str, above: bool = True) -> pd.DataFrame:
    """How often "it collapses if `figure` is above a threshold" is right, on runs that the threshold does not know.

    For each of what moves the latents ("moved") the threshold is fitted on all the others, by the first half of the
    seeds, and judged on it by the second half. above: False if it collapses below the threshold.
    Columns: moved, threshold, right (share of the runs), low, high (bootstrap 95 % over seeds), constant (what the
    more frequent outcome of the judged runs, said of each of them, would get right).
    Raises ValueError for a missing column, one mover only, or fewer than four seeds.
    """
    check_columns(runs, "seed", "moved", "in effect", figure)
    seeds, moved = np.sort(runs["seed"].unique()), list(runs["moved"].unique())
    if len(seeds) < 4 or len(moved) < 2:
        raise ValueError(f"need at least four seeds and two movers, got {seeds.tolist()} and {moved}")
    known = runs["seed"].isin(seeds[: len(seeds) // 2])
    sign, rows = 1 if above else -1, []
    for one in moved:
        others, judged = runs[known & (runs["moved"] != one)], runs[~known & (runs["moved"] == one)]
        threshold = _threshold(sign * others[figure].to_numpy(), others["in effect"].to_numpy() < COLLAPSED)
        collapsed = judged["in effect"] < COLLAPSED
        right = ((sign * judged[figure] > threshold) == collapsed).groupby(judged["seed"]).mean()
        constant = max(collapsed.mean(), 1 - collapsed.mean())
        rows.append((one, sign * threshold, right.mean(), *metrics.confidence_interval(right), constant))
    return pd.DataFrame(rows, columns=["moved", "threshold", "right", "low", "high", "constant"])


if __name__ == "__main__":
    parts.command("python -m vqnotes.studies.drift", __doc__.splitlines()[0], examine, settings())
