"""A season of the league with tuned options: one of each remedy, by three trials each, on seeds that no season has.

make tuning   tries what `tuning.csv` lacks; cut off, it goes on where it stopped
make league   plays the season with the values chosen: what `season.csv` lacks

Every entrant (`studies.entrants`) has the same small budget on each of four beds: three values of one option. A trial
is 8 runs of 300 steps, and a value is chosen by the median relative error. The table that comes with the module
holds all: of 432 trials it has 432, see `trials_done`. So does the season's: 16 other seeds, 600 steps.
Errors are of the inputs that were trained on: what is chosen, and what is ranked, is what fits these best.
"""

import argparse
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from vqnotes import data, metrics, models
from vqnotes._checks import check_columns
from vqnotes._printing import say
from vqnotes.studies import remedies
from vqnotes.studies.entrants import ENTRANTS
from vqnotes.studies.parts import completed, processes

__all__ = [
    "BEDS", "SEASON_SEEDS", "TUNING_SEEDS", "Trial", "chosen_values", "examine", "gains", "relative_error",
    "remaining", "season_table", "season_trials", "stored_table", "trials", "trials_done"
]  # fmt: skip

TABLE, SEASON = (Path(__file__).with_name(name) for name in ("tuning.csv", "season.csv"))
TUNING_SEEDS = range(9_000, 9_008)
SEASON_SEEDS = range(10_000, 10_032)  # those of the league
TUNING_STEPS, SEASON_STEPS = 300, 600
AT_ONCE = 16  # runs of one season's setting that are trained at once
PICTURES, PATCH = 4000, 4


# ---------------------------------------------------------------- what they are tried on


def patches(seed: int) -> data.LabelledData:
    """Patches of the two photographs as vectors, as many of each: x (4000, 48), y which of them it is."""
    both = [data.random_crops(one[None], PICTURES // 2, PATCH, seed) for one in data.photographs()]
    mixed = torch.randperm(PICTURES, generator=torch.Generator().manual_seed(seed))
    return _vectors(torch.cat(both)[mixed], torch.arange(2).repeat_interleave(PICTURES // 2)[mixed])


@lru_cache(maxsize=1)
def clothes() -> data.LabelledData:
    """The first of Fashion-MNIST's training images as vectors, means of 2 x 2 pixels: x (4000, 196)."""
    x, y, _ = data.fashion_mnist(limit=PICTURES)
    return _vectors(nn.functional.avg_pool2d(x, 2), y)


def _vectors(x: Tensor, y: Tensor) -> data.LabelledData:
    x = x.flatten(1)
    return data.LabelledData((x - x.mean()) / x.std(), y)


BEDS: dict[str, remedies.Bed] = {  # data, width of the encoder; those of the league come first
    **{bed: remedies.BEDS[bed] for bed in remedies.RANKED},
    "photographs": (patches, 64),
    "Fashion-MNIST": (lambda seed: clothes(), 64),
}


# ---------------------------------------------------------------- a trial, and all of them


class Trial(NamedTuple):
    """One value of an entrant's option on one bed: the same seeds for all."""

    bed: str
    remedy: str
    value: Any

    @property
    def setting(self) -> str:
        """The option and its value, as the table has them."""
        return f"{ENTRANTS[self.remedy].option}={self.value}"


Measure = Callable[[data.LabelledData, models.VQAutoencoder], dict[str, float]]


def relative_error(one: data.LabelledData, model: models.VQAutoencoder) -> dict[str, float]:
    """The one of `remedies.measures` that the tuning goes by; a season has them all."""
    return {"relative error": metrics.reconstruction_error(models.evaluate(model, one.x).reconstruction, one.x)}


def examine(
    trial: Trial,
    seeds: Iterable[int] = TUNING_SEEDS,
    steps: int = TUNING_STEPS,
    measure: Measure = relative_error,
) -> list[dict[str, Any]]:
    """Trains a trial, and returns bed, remedy, setting, seed, steps and what is measured, one dict a seed.

    Raises KeyError for an unknown bed or remedy, ValueError if a run diverged.
    """
    remedy, seeds = ENTRANTS[trial.remedy].with_value(trial.value), list(seeds)
    runs = remedies.trained(remedy, BEDS[trial.bed], seeds, steps)
    named = {"bed": trial.bed, "remedy": trial.remedy, "setting": trial.setting}
    return [named | {"seed": seed, "steps": steps} | measure(*run) for seed, run in zip(seeds, runs)]


def _tried(trial: Trial, seeds: list[int]) -> list[dict[str, Any]]:
    return examine(trial, seeds)


def _played(trial: Trial, seeds: list[int]) -> list[dict[str, Any]]:
    return examine(trial, seeds, SEASON_STEPS, remedies.measures)


def trials() -> list[Trial]:
    """All of the tuning, bed by bed, so that what is cut off has whole beds."""
    return [Trial(bed, name, value) for bed in BEDS for name, entrant in ENTRANTS.items() for value in entrant.values]


def season_trials(chosen: dict[tuple[str, str], Any]) -> list[Trial]:
    """The settings of the season: of each bed and remedy the value chosen, where there is one."""
    return [Trial(*place, value) for place, value in chosen.items() if value is not None]


def remaining(
    table: pd.DataFrame, wanted: Iterable[Trial] | None = None, seeds: Iterable[int] = TUNING_SEEDS
) -> list[tuple[Trial, list[int]]]:
    """The trials that the table lacks, with the seeds that each lacks: [(trial, seeds)]. wanted: None for `trials`.

    Raises ValueError for a table without the columns bed, remedy, setting and seed, unless it is empty.
    """
    if len(table):
        check_columns(table, "bed", "remedy", "setting", "seed")
        known = set(table[["bed", "remedy", "setting", "seed"]].itertuples(index=False, name=None))
    else:
        known = set()
    left = [
        (one, [seed for seed in seeds if (one.bed, one.remedy, one.setting, seed) not in known])
        for one in (trials() if wanted is None else wanted)
    ]
    return [(one, lacking) for one, lacking in left if lacking]


def chosen_values(table: pd.DataFrame) -> dict[tuple[str, str], Any]:
    """The best value of each (bed, remedy) by the median relative error over seeds; None where a trial is missing."""
    lacking = {one[:2] for one, _ in remaining(table)}
    if not len(table):
        return dict.fromkeys([one[:2] for one in trials()])
    check_columns(table, "relative error")
    medians = table.groupby(["bed", "remedy", "setting"])["relative error"].median()
    best: dict[tuple[str, str], Any] = {}
    for bed, name in dict.fromkeys(one[:2] for one in trials()):
        tried = [Trial(bed, name, value) for value in ENTRANTS[name].values]
        at = None if (bed, name) in lacking else min(tried, key=lambda one: medians[bed, name, one.setting])
        best[bed, name] = None if at is None else at.value
    return best


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """What tuning changed, for those who had values of their own before: the entrants of `remedies.REMEDIES`.

    One row a bed and remedy. own, tuned: median relative errors with its own value and with the best of three, both
    of the tuning's runs, so that tuned is never above own; rank own, rank tuned: among these on the bed, 1 is best.
    Raises ValueError if the table lacks a trial.
    """
    chosen = chosen_values(table)
    if None in chosen.values():
        raise ValueError(f"every trial is needed, and of {len(remaining(table))} there are runs missing")
    medians = table.groupby(["bed", "remedy", "setting"])["relative error"].median()
    found = pd.DataFrame(
        {"bed": bed, "remedy": name}
        | {what: medians[bed, name, Trial(bed, name, one).setting] for what, one in (("own", own), ("tuned", best))}
        for (bed, name), best in chosen.items()
        if name in remedies.REMEDIES
        for own in [ENTRANTS[name].own]
    )
    for what in ("own", "tuned"):
        found[f"rank {what}"] = found.groupby("bed")[what].rank()
    return found


def stored_table() -> pd.DataFrame:
    """The trials that come with the module, one row a run: what it lacks, `remaining` says."""
    return pd.read_csv(TABLE)


def season_table() -> pd.DataFrame:
    """The season that comes with the module, a row a run: bed, remedy, setting, seed, steps, `remedies.measures`."""
    return pd.read_csv(SEASON)


def trials_done(table: pd.DataFrame) -> pd.Series:
    """How many trials of each bed are in the table, with all seeds: of as many as three times the entrants."""
    left = [one.bed for one, _ in remaining(table)]
    return pd.Series({bed: 3 * len(ENTRANTS) - left.count(bed) for bed in BEDS}, name="trials")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vqnotes.studies.tuning", description=__doc__.splitlines()[0])
    parser.add_argument("--season", action="store_true", help="the league with the values chosen, not the tuning")
    parser.add_argument("--seeds", type=int, default=16, help="of the season, at most 32 (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=".", help="of tuning.csv and season.csv (default: here)")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each (default: 2)")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="no trial begins after so many seconds")
    options = parser.parse_args(arguments)
    tuned, out = options.folder / TABLE.name, options.folder / (SEASON if options.season else TABLE).name
    table = pd.read_csv(out) if out.exists() else pd.DataFrame()
    if options.season:
        wanted = season_trials(chosen_values(pd.read_csv(tuned) if tuned.exists() else stored_table()))
        lacking = remaining(table, wanted, SEASON_SEEDS[: options.seeds])
        todo = [(one, seeds[at : at + AT_ONCE]) for one, seeds in lacking for at in range(0, len(seeds), AT_ONCE)]
        run = _played
    else:
        todo, run = remaining(table), _tried
    with processes(options.workers) as pool:
        _, left = completed(out, todo, run, pool, options.workers, options.limit_s)
    say(f"{out}: {len(left)} of {len(todo)} that it lacked are still to do")
    return int(len(left) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
