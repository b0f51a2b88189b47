"""Experiments: sweeps over settings and seeds, means with intervals, and how much each cause explains."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from vqnotes._checks import check_columns
from vqnotes._interrupts import interruptible, note_end
from vqnotes.metrics import summary

__all__ = ["Setting", "differences", "eta_squared", "grid", "rank_correlation", "sweep"]

Setting = Mapping[str, object]
Outcome = tuple[list[dict], list[int], str]  # of one setting: its rows, the seeds that failed, and why

# ---------------------------------------------------------------- many settings, many seeds


def grid(**levels: Iterable) -> list[dict]:
    """All combinations of the given levels: grid(a=[1, 2], b=[3]) is [{"a": 1, "b": 3}, {"a": 2, "b": 3}].

    Raises ValueError if there are no factors or one of them has no level.
    """
    levels = {name: list(values) for name, values in levels.items()}
    if not levels or not all(levels.values()):
        raise ValueError(f"every factor needs at least one level, got {levels}")
    return [dict(zip(levels, combination)) for combination in itertools.product(*levels.values())]


def sweep(
    run: Callable[..., Sequence[Mapping]],
    settings: Iterable[Setting],
    *,
    seeds: Iterable[int],
    executor: Executor | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Runs every setting with every seed and returns a tidy table: one row a run, in the order of the settings.

    run: called as run(seeds, **setting); returns one dict of measures a seed, as `fit_many` makes easy.
    settings: dicts of keyword arguments, from `grid` or by hand.
    executor: any `concurrent.futures.Executor`; one call a setting is submitted to it. None runs them here. A
    process pool needs `run` to be importable; Dask's `client.get_executor()` does not.

    Columns: the setting's names, seed, the measures. What fails does not take the rest with it: a setting that
    raises is tried again seed by seed, the table holds all that finished, a warning names what did not, and so does
    table.attrs["failed"], a list of (setting, seeds, reason). An interrupt ends the sweep in the same way, and a line
    says after how many settings.
    Raises ValueError without settings, without seeds or for a seed given twice; RuntimeError if no run finished.
    """
    settings, seeds = [dict(setting) for setting in settings], [int(seed) for seed in seeds]
    if not settings or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"need settings, and seeds that differ, got {len(settings)} settings and seeds {seeds}")
    outcomes: dict[int, Outcome] = {place: ([], seeds, "interrupted") for place in range(len(settings))}
    futures: list[Future] = []
    with (
        interruptible() as stopped,
        tqdm(total=len(settings), desc="settings", leave=False, disable=not progress) as bar,
    ):
        if executor is None:
            for place, setting in enumerate(settings):
                outcome = _one_setting(run, setting, seeds)
                if stopped():
                    break
                outcomes[place] = outcome
                bar.update()
        else:
            futures = [_submitted(run, setting, seeds, executor) for setting in settings]
            waiting = set(futures)
            while waiting and not stopped():
                ready, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                bar.update(len(ready))
    outcomes |= {place: _outcome(future, seeds) for place, future in enumerate(futures)}
    finished = sum(reason != "interrupted" for *_, reason in outcomes.values())
    name = getattr(run, "__name__", type(run).__name__)
    same_run, cut = (name, repr(settings), tuple(seeds)), finished < len(settings)
    note_end(same_run, f"sweep of {name}", finished, len(settings), "settings", cut=cut)
    return _table(settings, outcomes)


def _table(settings: list[Setting], outcomes: dict[int, Outcome]) -> pd.DataFrame:
    rows = [{**settings[place], **row} for place, (some, _, _) in outcomes.items() for row in some]
    losses = [(settings[place], lost, reason) for place, (_, lost, reason) in outcomes.items() if lost]
    if losses:
        names = "\n".join(f"  {setting}, seeds {lost}: {reason}" for setting, lost, reason in losses)
        if not rows:
            raise RuntimeError(f"no run finished:\n{names}")
        warnings.warn(f"{sum(len(lost) for _, lost, _ in losses)} runs did not finish:\n{names}", stacklevel=3)
    table = pd.DataFrame(rows)
    table.attrs["failed"] = losses
    return table


def _one_setting(run: Callable, setting: Setting, seeds: list[int]) -> Outcome:
    """Runs one setting. After an interrupt nothing of it counts: a run may have ended early, as `fit` does."""
    with interruptible() as stopped:
        try:
            measured, reason = list(run(seeds, **setting)), ""
            if len(measured) != len(seeds):
                raise ValueError(f"run returned {len(measured)} results for {len(seeds)} seeds")
        except Exception as error:
            reason = repr(error)
    if stopped():
        return [], seeds, "interrupted"
    if not reason:
        return [{"seed": seed, **row} for seed, row in zip(seeds, measured)], [], ""
    if len(seeds) == 1:
        return [], seeds, reason
    alone = [_one_setting(run, setting, [seed]) for seed in seeds]
    rows, lost = [row for some, _, _ in alone for row in some], [seed for _, some, _ in alone for seed in some]
    return rows, lost, next((reason for *_, reason in alone if reason), "")


def _submitted(run: Callable, setting: Setting, seeds: list[int], executor: Executor) -> Future:
    try:
        return executor.submit(_one_setting, run, setting, seeds)
    except Exception as error:  # the pool has broken already
        failed: Future = Future()
        failed.set_exception(error)
        return failed


def _outcome(future: Future, seeds: list[int]) -> Outcome:
    """What came of a setting that was submitted; what is not done is given up."""
    if not future.done():
        future.cancel()
        return [], seeds, "interrupted"
    try:
        return future.result()
    except KeyboardInterrupt:  # in the worker
        return [], seeds, "interrupted"
    except Exception as error:  # the worker died, or what it was sent or gave cannot travel
        return [], seeds, repr(error)


# ---------------------------------------------------------------- what a table of runs says


def differences(runs: pd.DataFrame, by: str, to: object, y: str) -> pd.DataFrame:
    """How much y changes, seed by seed, from the arm `to` to each other arm: mean and bootstrap 95 % interval.

    runs: one row a run, with a column "seed"; arms are the values of column `by`. Comparing equal seeds takes out
    what the seeds share, such as data and initial weights. Columns: `by`, mean, low, high.
    Raises ValueError if there is no arm `to`, if an arm has other seeds or one twice, or as `summary` does.
    """
    check_columns(runs, "seed", by, y)
    if to not in set(runs[by]):
        raise ValueError(f"no arm {to!r} among {runs[by].unique().tolist()}")
    if runs[by].isna().any() or runs.duplicated(["seed", by]).any():
        raise ValueError(f"an arm of {by!r} has no name, or a seed twice: {runs[by].unique().tolist()}")
    table = runs.pivot(index="seed", columns=by, values=y)[runs[by].unique()].astype(float)
    if table.isna().to_numpy().any():
        raise ValueError(f"every arm needs every seed:\n{table.notna().sum()}")
    change = table.drop(columns=to).sub(table[to], axis=0).melt(var_name=by, value_name=y)
    return summary(change, [by], y)


def eta_squared(runs: pd.DataFrame, y: str, causes: Sequence[str]) -> pd.DataFrame:
    """Shares of the variance of y that two crossed causes explain, each alone and by their interaction.

    Two-way analysis of variance: eta^2 = SS_effect / SS_total. Rows: the two causes, "interaction" and "seeds",
    what is left between the runs of a cell; the four add up to 1. Shares above 0 are expected by chance: with C
    cells and n runs in all, (C - 1) / (n - 1) for the first three together.
    runs: one row a run, with a column "seed" and the same seeds in every cell. causes: two column names.
    Columns: cause, share, low, high, the bootstrap 95 % interval. Seeds are drawn with replacement and kept
    together over all cells, because the cells share data and initial weights.
    Raises ValueError for cells that miss a seed or hold it twice, fewer than two seeds or levels, values that are
    not finite, or values that do not vary, or not in some draws of so few seeds.
    """
    from scipy.stats import bootstrap

    check_columns(runs, "seed", *causes, y)
    levels = [list(runs[cause].unique()) for cause in causes]
    if len(levels) != 2 or len({"seed", y, *causes}) < 4 or min(map(len, levels)) < 2 or runs["seed"].nunique() < 2:
        raise ValueError(f"need two causes of at least two levels and two seeds, got {dict(zip(causes, levels))}")
    if runs.duplicated(["seed", *causes]).any():
        raise ValueError(f"a seed occurs twice in one cell of {list(causes)}")
    table = runs.pivot(index="seed", columns=list(causes), values=y)
    table = table.reindex(columns=pd.MultiIndex.from_product(levels))
    if not np.isfinite(table.to_numpy(dtype=float)).all() or not 0 < table.to_numpy(dtype=float).std() < np.inf:
        raise ValueError(f"{y} must be finite, vary, and be there for each seed in each cell:\n{table.describe()}")
    cells = [table[cell].to_numpy() for cell in table.columns]
    shape = tuple(map(len, levels))

    def shares(*cells: np.ndarray, axis: int = -1) -> np.ndarray:
        """Cells, each (..., seeds), to the four shares (4, ...)."""
        means = np.stack([cell.mean(axis) for cell in cells]).reshape(*shape, *cells[0].shape[:-1])
        grand = means.mean((0, 1))
        first, second = means.mean(1) - grand, means.mean(0) - grand
        between = ((means - grand) ** 2).mean((0, 1))
        total = np.stack([(cell - grand[..., None]) ** 2 for cell in cells]).mean((0, axis))
        alone = np.stack([(first**2).mean(0), (second**2).mean(0)])
        return np.stack([*alone, between - alone.sum(0), total - between]) / total

    found = bootstrap(cells, shares, n_resamples=2000, paired=True, method="percentile", axis=-1, rng=0)
    low, high = found.confidence_interval
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{y} does not vary in some draws of {len(table)} seeds: more seeds are needed")
    return pd.DataFrame(
        {"cause": [*causes, "interaction", "seeds"], "share": shares(*cells), "low": low, "high": high}
    )


def rank_correlation(runs: pd.DataFrame, x: str, y: str) -> tuple[float, float, float]:
    """Spearman's rank correlation of two columns over all runs, in [-1, 1], and its bootstrap 95 % interval.

    Seeds are drawn anew with replacement, 300 times, each with all of its runs. Returns (value, low, high).
    Raises ValueError for a missing column or fewer than two seeds.
    """
    from scipy.stats import spearmanr

    check_columns(runs, "seed", x, y)
    parts = [part[[x, y]].to_numpy() for _, part in runs.groupby("seed")]
    if len(parts) < 2:
        raise ValueError(f"need runs of at least two seeds, got {runs['seed'].unique().tolist()}")
    rng = np.random.default_rng(0)
    draws = rng.integers(len(parts), size=(300, len(parts)))
    values = [spearmanr(*np.concatenate([parts[one] for one in draw]).T).statistic for draw in draws]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(spearmanr(runs[x], runs[y]).statistic), float(low), float(high)
