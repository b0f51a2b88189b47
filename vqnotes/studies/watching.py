"""How often does `CollapseWatch` warn of a healthy training, and how soon of one that collapses?

python -m vqnotes.studies.watching   trains them and writes the table into the folder you are in, after each of them;
                                     what a table that is there already holds is not trained again

Trainings of `studies.sickened`, and of vector-quantize-pytorch with k-means at the first batch. Each has a watch of
its own from step 0 on, which is not told of any warm-up. That a model has ended healthy, or collapsed, is confirmed
as there: by interventions that the diagnosis knows nothing of. Trainings of the library without expiry end healthy
too, but half of their codes die with the first steps of the encoder, and the others need some hundred steps to make
up for it: they stand by themselves, as "recovered".
"""

import argparse
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from vqnotes import models, training
from vqnotes._printing import say
from vqnotes.diagnosis.observed import INPUTS_PER_CODE
from vqnotes.diagnosis.watch import CollapseWarning, CollapseWatch
from vqnotes.quantizers import Quantized, VectorQuantizer
from vqnotes.studies import sickened
from vqnotes.studies.parts import completed, processes

__all__ = [
    "CASES",
    "EVERY",
    "LIBRARY",
    "Library",
    "Recorded",
    "alarms",
    "settings",
    "trainings_watched",
    "under_watch",
]

Training = tuple[str, str, int]  # label, case, seed

TABLE = Path(__file__).with_name("watching.csv")
LIBRARY = {  # options of vector-quantize-pytorch; a code starts anew below 1 latent a batch, where N/K is 2
    "library, expiry": {"threshold_ema_dead_code": 1},
    "library": {},
}
CASES = {  # which trainings, and how many of each
    "healthy": (("plain", "EMA", "expiry", "library, expiry"), 25),
    "recovered": (("library",), 8),
    "token collapse": (("U(±1/K)", "N(0, 1)", "k-means untrained, EMA", "U(±1/K) after warm-up"), 8),
}
FIRST_SEED, CODES, DIM, EVERY = 8000, 64, 8, 30
PROBE = 2 * INPUTS_PER_CODE * CODES  # as few as pay for as many codes, by which the encoder is then judged


class Library(nn.Module):
    """A quantiser of vector-quantize-pytorch in the place of ours. options: its own."""

    def __init__(self, codes: int, dim: int, **options: Any):
        from vector_quantize_pytorch import VectorQuantize

        super().__init__()
        self.codebook_size, self.dim = codes, dim
        self.vq = VectorQuantize(dim, codes, kmeans_init=True, **options)

    def forward(self, latents: Tensor) -> Quantized:
        return Quantized(*self.vq(latents))

    def as_ours(self) -> VectorQuantizer:
        """Our quantiser with its codes."""
        ours = VectorQuantizer(self.codebook_size, self.dim)
        ours.place_codes(self.vq.codebook.detach(), torch.zeros(self.codebook_size))
        return ours


class Recorded:
    """A watch, and the steps at which it has warned."""

    def __init__(self, probe: Tensor):
        self.watch = CollapseWatch(probe, every=EVERY)
        self.warned: list[int] = []

    def __call__(self, step: int, model: nn.Module) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CollapseWarning)
            self.watch(step, model)
        self.warned += [step for one in caught if one.category is CollapseWarning]


def settings() -> list[dict]:
    """All that is trained: label, case."""
    return [{"label": label, "case": case} for label, (cases, _) in CASES.items() for case in cases]


def under_watch(seeds: Sequence[int], label: str, case: str, steps: int = sickened.STEPS) -> list[dict]:
    """Trains under watches and intervenes, one row a seed.

    started: the step at which codes are first in use. looks: how many there were; bad: how many from then on found a
    collapse. warnings: how many; warned: the step of the first, NaN if there was none. The others are those of
    interventions of `sickened`.
    """
    sets = [sickened.inputs_of("modes", seed) for seed in seeds]
    recorded = [Recorded(one.x[:PROBE]) for one in sets]
    if case in LIBRARY:
        entered, started = [], 1
        for seed, one, own in zip(seeds, sets, recorded):
            torch.manual_seed(seed)
            model = models.mlp_autoencoder(one.x.shape[1], Library(CODES, DIM, **LIBRARY[case]))
            training.fit(model, one.x, seed=seed, init=None, steps=steps, callback=own, **sickened.pace("modes"))
            entered.append((one, models.VQAutoencoder(model.encoder, model.quantizer.as_ours(), model.decoder)))
    else:

        def look(step: int, runs: Sequence[nn.Module]) -> None:
            for own, model in zip(recorded, runs):
                own(step, model)

        entered = sickened.made(seeds, case, CODES, steps, callback=look)
        started = int(sickened.CASES[case].warmup * steps)
    more = max(1, steps * sickened.DECODER_STEPS // sickened.STEPS)
    control, new = (sickened.decoders_trained_on(entered, "modes", init, more) for init in (None, "kmeans"))
    rows = []
    for own, one, kept, renewed in zip(recorded, sets, control, new):
        looks = own.watch.looks().query("step >= @started")
        rows.append(
            {
                "started": started,
                "looks": len(own.watch.looks()),
                "bad": int(looks["verdict"].str.contains("collapse").sum()),
                "warnings": len(own.warned),
                "warned": min(own.warned, default=math.nan),
                "same codes": kept,
                "new codes": renewed,
                "floor": sickened.floor(one.x, CODES),
            }
        )
    return rows


def trainings_watched() -> pd.DataFrame:
    """The table that comes with the module: one row a training, and whether its end is `confirmed`."""
    return with_confirmation(pd.read_csv(TABLE))


def with_confirmation(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the column confirmed, by `sickened.confirmed`. All encoders are sound: none is narrow."""
    ends = table["label"].replace("recovered", "healthy")
    return table.assign(confirmed=sickened.confirmed(table.assign(label=ends)))


def alarms(table: pd.DataFrame) -> pd.DataFrame:
    """How many of the confirmed trainings got a warning, by label and case, with Wilson's 95 % interval; and when.

    Columns: label, case ("all" for all together), runs, warned, share, low, high, and delay: the median number of
    steps from the first use of the codes to the warning, NaN where there was none.
    """
    from scipy.stats import binomtest

    known, rows = table[table["confirmed"]], []
    parts = [(label, "all", part) for label, part in known.groupby("label", sort=False)]
    parts += [(*key, part) for key, part in known.groupby(["label", "case"], sort=False)]
    for label, case, part in parts:
        runs, warned = len(part), int((part["warnings"] > 0).sum())
        low, high = binomtest(warned, runs).proportion_ci(method="wilson")
        delay = (part["warned"] - part["started"]).median()
        rows.append((label, case, runs, warned, warned / runs, low, high, delay))
    return pd.DataFrame(rows, columns=["label", "case", "runs", "warned", "share", "low", "high", "delay"])


# ---------------------------------------------------------------- the table is made


def trainings() -> list[Training]:
    """All that the table should have, in its order."""
    firsts = [(one["label"], one["case"], FIRST_SEED + CASES[one["label"]][1]) for one in settings()]
    return [(label, case, seed) for label, case, end in firsts for seed in range(FIRST_SEED, end)]


def of_table(table: pd.DataFrame) -> list[Training]:
    """What a table has."""
    return list(table[["label", "case", "seed"]].itertuples(index=False, name=None))


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """A table's rows in the order of `trainings`; what is none of them goes."""
    found = of_table(table)
    there = set(found)
    return table.set_axis(found).reindex([one for one in trainings() if one in there])


def one_training(label: str, case: str, seed: int) -> list[dict]:
    """A row of the table."""
    return [{"label": label, "case": case, "seed": seed} | under_watch([seed], label, case)[0]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vqnotes.studies.watching", description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each (default: 2)")
    parser.add_argument("--out", type=Path, default=TABLE.name, help="the table (default: %(default)s, here)")
    parser.add_argument(
        "--limit-s", type=float, default=math.inf, help="no training begins after so many seconds (default: no limit)"
    )
    options = parser.parse_args()
    wanted = trainings()
    known = set(of_table(pd.read_csv(options.out))) if options.out.exists() else set()
    todo = [one for one in wanted if one not in known]
    with processes(options.workers) as pool:
        table, left = completed(options.out, todo, one_training, pool, options.workers, options.limit_s, in_order)
    if left:
        there = len(wanted) - len(left)
        raise SystemExit(f"{there} of {len(wanted)} trainings are in {options.out}: run it again for the others")
    say(alarms(with_confirmation(table)).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
