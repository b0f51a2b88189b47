"""What does a collapsed tokeniser cost a generator, by the size of its prior? Digits, and Fashion-MNIST.

python -m vqnotes.studies.consequences   trains them and writes the table into the folder you are in, after each arm;
                                         what a table that is there already holds is not trained again. A quarter of
                                         an hour on one core

Four tokenisers, all trained for 300 steps of 32 images: 64 codes from a random start, which collapse; 64 from
warm-up; and two with few codes that use about as many bits as the collapsed one, one from warm-up and one from the
random start. So what few bits do and what a bad start does are told apart. How few codes was chosen on seeds 0 to 2,
which are not among those of the table.

Six tenths of the images are for both stages to learn from. A tenth says when a prior is at its best step. The rest
judges: `coverage`, `density` and `spread` of as many samples, and NLL, the bits that the prior pays for it. Priors
are transformers of three widths, and beside them what needs none: grids whose places keep their codes by a given
chance, from 0 (shuffled) to 1 (ideal). All widths have one learning rate, and at most 600 steps on Fashion-MNIST and
1,200 on digits: a best step at that end is not known to be the best.
"""

import argparse
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vqnotes import data, metrics, models, training
from vqnotes._printing import say
from vqnotes.quantizers import VectorQuantizer
from vqnotes.studies import generation
from vqnotes.studies.parts import completed

__all__ = ["ARMS", "KEPT", "SEEDS", "WIDTHS", "consequences_of", "in_order", "parts_of", "stored_table"]

TABLE = Path(__file__).with_name("generation.csv")
ARMS = {  # codes and start; cut short, the table has Fashion-MNIST
    "fashion_mnist": {
        "random start": (64, "uniform"),
        "warm-up": (64, "kmeans"),
        "6 codes, warm-up": (6, "kmeans"),
        "6 codes, random start": (6, "uniform"),
    },
    "digits": {
        "random start": (64, "uniform"),
        "warm-up": (64, "kmeans"),
        "6 codes, warm-up": (6, "kmeans"),
        "8 codes, random start": (8, "uniform"),
    },
}
PATCH = {"digits": 2, "fashion_mnist": 4}
WIDTHS, KEPT, SEEDS = (8, 24, 72), (0.0, 0.5, 0.75, 1.0), (100, 101, 102, 103, 104)
STEPS, FASHION = 300, 2000  # of a tokeniser; how many images of Fashion-MNIST
PRIOR_STEPS = {"digits": 1200, "fashion_mnist": 600}  # at most


def images_of(name: str) -> Tensor:
    """All images of a set (N, 1, H, W): 1,797 digits, or the first 2,000 of Fashion-MNIST's training images."""
    return data.digits().x if name == "digits" else data.fashion_mnist("train", limit=FASHION).x


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
    prior_steps: int = 1200,
    every: int = 40,
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
    """The table that comes with the module: data, arm, codes, and the columns of `consequences_of`."""
    return pd.read_csv(TABLE)


# ---------------------------------------------------------------- the table is made


def all_arms() -> list[tuple[str, str]]:
    """All that the table should have, in its order: data and arm, each with all seeds."""
    return [(name, arm) for name, arms in ARMS.items() for arm in arms]


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """A table's rows in the order of `ARMS`; what is no part of it goes."""
    keys = list(zip(table["data"], table["arm"]))
    return pd.concat([table[[key == one for key in keys]] for one in all_arms()], ignore_index=True)


def one_arm(name: str, arm: str) -> list[dict]:
    """The rows of the table for one arm on one set of images."""
    codes, init = ARMS[name][arm]
    rows = consequences_of(images_of(name), codes, init, PATCH[name], prior_steps=PRIOR_STEPS[name])
    return [{"data": name, "arm": arm, "codes": codes} | row for row in rows]


def main() -> None:
    first = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m vqnotes.studies.consequences", description=first)
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each (default: 1)")
    parser.add_argument("--out", type=Path, default=TABLE.name, help="the table (default: %(default)s, here)")
    parser.add_argument(
        "--limit-s", type=float, default=math.inf, help="no arm begins after so many seconds (default: no limit)"
    )
    options = parser.parse_args()
    there = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame({"data": [], "arm": []})
    known = {*zip(there["data"], there["arm"])}
    todo = [one for one in all_arms() if one not in known]
    with ProcessPoolExecutor(options.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        table, left = completed(options.out, todo, one_arm, pool, options.workers, options.limit_s, in_order)
    if left:
        done = len(all_arms()) - len(left)
        raise SystemExit(f"{done} of {len(all_arms())} arms are in {options.out}: run it again for the others")
    means = table.groupby(["data", "arm", "prior", "value"], sort=False, dropna=False)
    say(means[["bits", "error", "NLL", "coverage", "density"]].mean().round(3).to_string())


if __name__ == "__main__":
    main()
