"""What does a collapsed tokeniser cost a generator, by the size of its prior? On Fashion-MNIST.

python -m vqnotes.studies.consequences   trains them and writes the table into the folder you are in, after each arm;
                                         what a table that is there already holds is not trained again. About five
                                         minutes on one core; Fashion-MNIST is downloaded if it is not there

Four tokenisers, all trained for 300 steps of 32 images: 64 codes from a random start, which collapse; 64 from
warm-up; and two with few codes that use about as many bits as the collapsed one, one from warm-up and one from the
random start. So what few bits do and what a bad start does are told apart. Ten codes were chosen by the bits they
use, before their samples were judged.

Six tenths of the images are for both stages to learn from. A tenth says when a prior is at its best step. The rest
judges: `coverage`, `density` and `spread` of as many samples, and NLL, the bits that the prior pays for it. Priors
are transformers of three widths, and beside them what needs none: grids whose places keep their codes by a given
chance, from 0 (shuffled) to 1 (ideal). All widths have one learning rate, and at most 600 steps: a best step at that
end is not known to be the best. Images are the first 2,000 of the training set, 7 × 7 pixels to a code, so that a
grid has 4 × 4 codes as those of the digits in notebook 07. Not run, for time: priors of three widths on digits, and
grids of 7 × 7 codes.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vqnotes import data, metrics, models, training
from vqnotes._printing import say
from vqnotes.quantizers import VectorQuantizer
from vqnotes.studies import generation
from vqnotes.studies.parts import completed, processes

__all__ = ["ARMS", "KEPT", "SEEDS", "WIDTHS", "consequences_of", "in_order", "parts_of", "stored_table"]

TABLE = Path(__file__).with_name("generation.csv")
ARMS = {  # codes and start
    "random start": (64, "uniform"),
    "warm-up": (64, "kmeans"),
    "10 codes, warm-up": (10, "kmeans"),
    "10 codes, random start": (10, "uniform"),
}
WIDTHS, KEPT, SEEDS = (8, 24, 72), (0.0, 0.5, 0.75, 1.0), (100, 101, 102, 103, 104)
IMAGES, PATCH, STEPS, PRIOR_STEPS, EVERY = 2000, 7, 300, 600, 40


def parts_of(x: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """To learn from, to stop by, to judge by: 60, 10 and 30 % of the images, in an order that the seed decides."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    learnt, stopping, judged = order.tensor_split([int(0.6 * len(x)), int(0.7 * len(x))])
    return x[learnt], x[stopping], x[judged]


def consequences_of(
    x: Tensor,
    codes: int,
    init: str,
    patch: int,
    *,
    seeds: Sequence[int] = SEEDS,
    widths: Sequence[int] = WIDTHS,
    kept: Sequence[float] = KEPT,
    steps: int = STEPS,
    prior_steps: int = PRIOR_STEPS,
    every: int = EVERY,
) -> list[dict]:
    """Trains a tokeniser and priors for each seed, and judges them: rows for each seed, prior by prior.

    x: images (N, 1, H, W), H and W multiples of patch. init: "uniform" is the random start, "kmeans" is warm-up.
    Columns: seed; live (codes), bits (used, an image), error (relative, of the judged images); prior: "kept" or
    "width", and `value` of it; step, the prior's best one on the images to stop by, looked at after so many steps,
    and NLL of the judged ones at that step, in bits an image, both NaN where nothing is trained; coverage and
    density; spread, the mean squared distance of two samples relative to that of two judged images. Prior "real",
    value NaN, has the images learnt from in the place of samples.
    """
    sets = [parts_of(x, seed) for seed in seeds]
    trained = training.fit_many(
        lambda seed: models.image_autoencoder(1, VectorQuantizer(codes, 8), patch=patch),
        [learnt for learnt, _, _ in sets],
        seeds=seeds,
        steps=steps,
        warmup=steps // 2 if init == "kmeans" else 0,
        init=init,
        lr=2e-3,
        batch_size=32,
        progress=False,
    )
    tokenisers = [model for model, _ in trained]
    learnt, stopping, judged = (
        [models.evaluate(model, one[place]).index for model, one in zip(tokenisers, sets)] for place in range(3)
    )
    count = len(sets[0][2])
    samples: dict[tuple[str, float], list[Tensor]] = {}
    steps_of: dict[tuple[str, float], list[int]] = {}
    nll_of: dict[tuple[str, float], list[float]] = {}
    for share in kept:
        samples["kept", share] = [
            generation.mix_positions(grids[:count], seed, share) for grids, seed in zip(learnt, seeds)
        ]
    for width in widths:
        best = generation.BestOf(stopping)
        generation.fit_priors(
            learnt, codes, seeds=seeds, steps=prior_steps, width=width, callback=best, every=every, progress=False
        )
        priors = [prior for prior in best.priors if prior is not None]
        drawn = generation.sample(priors, count, seeds=seeds)
        samples["width", width] = [one.view_as(grids) for one, grids in zip(drawn, judged)]
        steps_of["width", width] = best.steps
        nll_of["width", width] = [
            generation.negative_log_likelihood(prior, grids).mean().item() for prior, grids in zip(priors, judged)
        ]
    rows = []
    for run, (seed, model) in enumerate(zip(seeds, tokenisers)):
        real, known = sets[run][2], sets[run][0][:count]
        rebuilt = models.evaluate(model, real).reconstruction
        row = {"seed": seed, "live": codes * metrics.usage(learnt[run], codes)}
        row["bits"] = learnt[run][0].numel() * np.log2(metrics.perplexity(learnt[run], codes))
        row["error"] = metrics.reconstruction_error(rebuilt, real)
        none = {"step": math.nan, "NLL": math.nan}
        rows.append(row | {"prior": "real", "value": math.nan} | none | _judged(real, known))
        for (prior, value), grids in samples.items():
            with torch.no_grad():
                images = model.decode(model.quantizer.codes()[grids[run]])
            own = none
            if prior == "width":
                own = {"step": steps_of[prior, value][run], "NLL": nll_of[prior, value][run]}
            rows.append(row | {"prior": prior, "value": value} | own | _judged(real, images))
    return rows


def _judged(real: Tensor, samples: Tensor) -> dict[str, float]:
    return {
        "coverage": generation.coverage(real, samples),
        "density": generation.density(real, samples),
        "spread": (generation.spread(samples) / generation.spread(real)) ** 2,
    }


def stored_table() -> pd.DataFrame:
    """The table that comes with the module: arm, codes, and the columns of `consequences_of`."""
    return pd.read_csv(TABLE)


# ---------------------------------------------------------------- the table is made


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """A table's rows in the order of `ARMS`; what is no part of it goes."""
    return pd.concat([table[table["arm"] == arm] for arm in ARMS], ignore_index=True)


def one_arm(arm: str) -> list[dict]:
    """The rows of the table for one arm, all seeds at once."""
    codes, init = ARMS[arm]
    rows = consequences_of(data.fashion_mnist("train", limit=IMAGES).x, codes, init, PATCH)
    return [{"arm": arm, "codes": codes} | row for row in rows]


def main() -> None:
    first = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m vqnotes.studies.consequences", description=first)
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each (default: 1)")
    parser.add_argument("--out", type=Path, default=TABLE.name, help="the table (default: %(default)s, here)")
    parser.add_argument(
        "--limit-s", type=float, default=math.inf, help="no arm begins after so many seconds (default: no limit)"
    )
    options = parser.parse_args()
    known = set(pd.read_csv(options.out)["arm"]) if options.out.exists() else set()
    todo = [(arm,) for arm in ARMS if arm not in known]
    with processes(options.workers) as pool:
        table, left = completed(options.out, todo, one_arm, pool, options.workers, options.limit_s, in_order)
    if left:
        done = len(ARMS) - len(left)
        raise SystemExit(f"{done} of {len(ARMS)} arms are in {options.out}: run it again for the others")
    means = table.groupby(["arm", "prior", "value"], sort=False, dropna=False)
    say(means[["bits", "error", "NLL", "coverage", "density"]].mean().round(3).to_string())


if __name__ == "__main__":
    main()
