"""How many times as fast is fit_many as one fit a seed, and what does a watch cost? In one process: `make bench`.

python tests/bench.py [--runs R] [--steps N] [--repeats M]
"""

import argparse
import statistics
import time

import pandas as pd
import torch
from tqdm.auto import tqdm

from vqnotes import data, probing, training
from vqnotes.models import image_autoencoder, mlp_autoencoder
from vqnotes.quantizers import VectorQuantizer

MODES = data.gaussian_modes(modes=32, per_mode=150, dim=16).x
CROPS = data.random_crops(data.photographs(), 512, 16)


def vectors(codes: int, **options):
    return lambda seed: mlp_autoencoder(16, VectorQuantizer(codes, 8, **options))


CASES = {  # build, data, options of the training; batches are of 256 where nothing else is said
    "vectors, 64 codes, batches of 128": (vectors(64), MODES, {"init": "uniform", "batch_size": 128}),
    "vectors, 64 codes": (vectors(64), MODES, {"init": "uniform"}),
    "vectors, 64 EMA codes": (vectors(64, update="ema"), MODES, {"init": "uniform"}),
    "vectors, 256 codes": (vectors(256), MODES, {"init": "uniform"}),
    "vectors, 64 codes, k-means at the switch": (vectors(64), MODES, {"warmup": 100}),
    "images, 64 codes": (
        lambda seed: image_autoencoder(3, VectorQuantizer(64, 8)),
        CROPS,
        {"init": "uniform", "batch_size": 32},
    ),
}


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def steps_of_a_look(build, x, own: dict, repeats: int) -> float:
    """The time of one look of a CollapseWatch at 1,024 vectors or 64 images, over that of a step."""
    model, steps = build(0), 100
    watch = probing.CollapseWatch(x[: 1024 if x.ndim == 2 else 64])
    ratios = []
    for _ in range(repeats):
        step = seconds(lambda: training.fit(model, x, seed=0, **own | {"steps": steps, "warmup": 0})) / steps
        ratios.append(seconds(lambda: watch.look(0, model)) / step)
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows = []
    for name, (build, x, own) in tqdm(CASES.items()):
        own = {"steps": options.steps, "progress": False} | own
        seeds = range(options.runs)

        def one_by_one(build=build, x=x, own=own, seeds=seeds):
            for seed in seeds:
                training.fit(build(seed), x, seed=seed, **own)

        def at_once(build=build, x=x, own=own, seeds=seeds):
            training.fit_many(build, x, seeds=seeds, **own)

        at_once()  # what is loaded and compiled once
        pairs = [(seconds(one_by_one), seconds(at_once)) for _ in range(options.repeats)]
        ratios = [single / many for single, many in pairs]
        single, many = (statistics.median(times) for times in zip(*pairs))
        watched = steps_of_a_look(build, x, own, options.repeats)
        rows.append((name, single, many, statistics.median(ratios), min(ratios), max(ratios), watched))
    print(
        f"{options.runs} runs of {options.steps} steps, {torch.get_num_threads()} threads, {options.repeats} repeats"
    )
    columns = ["case", "one by one, s", "fit_many, s", "times as fast", "lowest", "highest", "a look, in steps"]
    print(pd.DataFrame(rows, columns=columns).to_string(index=False, float_format="{:.1f}".format))


if __name__ == "__main__":
    main()
