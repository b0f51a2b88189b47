"""How often does `CollapseWatch` warn of a healthy training, and how soon of one that collapses?

python -m vqnotes.studies.watching   trains them and writes the table into the folder you are in: one process, some
                                     minutes; what a table that is there already holds is not trained again

Trainings of `studies.verdicts`, and of vector-quantize-pytorch with k-means at the first batch. Each has a watch of
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
from vqnotes._files import replaced
from vqnotes._printing import say
from vqnotes.diagnosis.watch import CollapseWarning, CollapseWatch
from vqnotes.quantizers import Quantized, VectorQuantizer
from vqnotes.studies import verdicts

__all__ = ["CASES", "EVERY", "LIBRARY", "Library", "Recorded", "alarms", "settings", "trainings_watched", "watched"]

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
FIRST_SEED, CODES, DIM, PROBE, EVERY = 8000, 64, 8, 1024, 30


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


def watched(seeds: Sequence[int], label: str, case: str, steps: int = verdicts.STEPS) -> list[dict]:
    """Trains under watches and intervenes, one row a seed.

    started: the step at which codes are first in use. looks: how many there were; bad: how many from then on found a
    collapse. warnings: how many; warned: the step of the first, NaN if there was none. The others are those of
    `verdicts.examine`.
    """
    sets = [verdicts.inputs_of("modes", seed) for seed in seeds]
    recorded = [Recorded(one.x[:PROBE]) for one in sets]
    if case in LIBRARY:
        entered, started = [], 1
        for seed, one, own in zip(seeds, sets, recorded):
            torch.manual_seed(seed)
            model = models.mlp_autoencoder(one.x.shape[1], Library(CODES, DIM, **LIBRARY[case]))
            training.fit(model, one.x, seed=seed, init=None, steps=steps, callback=own, **verdicts.pace("modes"))
            entered.append((one, models.VQAutoencoder(model.encoder, model.quantizer.as_ours(), model.decoder)))
    else:

        def look(step: int, runs: Sequence[nn.Module]) -> None:
            for own, model in zip(recorded, runs):
                own(step, model)

        entered = verdicts.made(seeds, "modes", case, CODES, steps, callback=look)
        started = int(verdicts.CASES[case].warmup * steps)
    more = max(1, steps * verdicts.DECODER_STEPS // verdicts.STEPS)
    control, new = (verdicts.decoders_trained_on(entered, "modes", init, more) for init in (None, "kmeans"))
    rows = []
    for own, one, kept, renewed in zip(recorded, sets, control, new):
        looks = own.watch.frame().query("step >= @started")
        rows.append(
            {
                "started": started,
                "looks": len(own.watch.frame()),
                "bad": int(looks["verdict"].str.contains("collapse").sum()),
                "warnings": len(own.warned),
                "warned": min(own.warned, default=math.nan),
                "same codes": kept,
                "new codes": renewed,
                "floor": verdicts.floor(one.x, CODES),
            }
        )
    return rows


def trainings_watched() -> pd.DataFrame:
    """The table that comes with the module: one row a training, and whether its end is `confirmed`."""
    return with_confirmation(pd.read_csv(TABLE))


def with_confirmation(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the column confirmed, by `verdicts.confirmed`. Labels were not asked: the encoders are sound."""
    ends = table["label"].replace("recovered", "healthy")
    unknown = dict.fromkeys(("separability", "separability_inputs", "chance"), math.nan)
    return table.assign(confirmed=verdicts.confirmed(table.assign(label=ends, **unknown)))


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vqnotes.studies.watching", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TABLE.name, help="the table (default: %(default)s, here)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame(columns=["label", "case"])
    for setting in settings():
        if (table[["label", "case"]] == setting).all(axis=1).any():
            continue
        seeds = range(FIRST_SEED, FIRST_SEED + CASES[setting["label"]][1])
        rows = [setting | {"seed": seed} | row for seed, row in zip(seeds, watched(seeds, **setting))]
        table = pd.concat([table, pd.DataFrame(rows)]) if len(table) else pd.DataFrame(rows)
        with replaced(options.out) as beside:
            table.to_csv(beside, index=False, float_format="%.5g")
    say(alarms(with_confirmation(table)).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
