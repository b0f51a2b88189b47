"""Which start keeps a codebook alive up to 16,384 codes? Fashion-MNIST in full, convolutional models; made for a GPU.

python -m vqnotes.studies.large_codebooks   trains what the table lacks, and writes it into the folder you are in
                                            after each run: on a GPU some minutes
python -m vqnotes.studies.large_codebooks --sizes 16 64 --steps 20 --images 2000     a small one, on any machine

All arms get the same steps. Random start: codes U(±1/K). Untrained k-means: k-means places them on the latents of the
encoder as it was made. Warm-up: the first half of the steps leaves the quantiser out, then k-means places the codes.
With a seed, first weights and batches are the same for each arm and size. On a GPU convolutions may use TF32; the
search for the nearest code never does.
"""

import argparse
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from vqnotes import data, models, training
from vqnotes._printing import say
from vqnotes.quantizers import VectorQuantizer
from vqnotes.studies import codebook_size
from vqnotes.studies.codebook_size import Images
from vqnotes.studies.parts import completed, processes

__all__ = [
    "ARMS",
    "SIZES",
    "ConvAutoencoder",
    "Plan",
    "Run",
    "ends",
    "looks",
    "remaining",
    "stored_table",
    "trained",
]

ARMS = {"random start": "uniform", "untrained k-means": "kmeans", "warm-up": "kmeans"}  # and how codes are started
SIZES = tuple(2**n for n in (14, 12, 10, 8, 6, 13, 11, 9, 7))  # cut short, the table still has both ends
DIM, WIDTH, DECAY, LR = 8, 64, 0.99, 1e-3
TABLE = Path(__file__).with_name("large_codebooks.csv")


@dataclass(frozen=True)
class Plan:
    """What all runs of a table share. images: how many training images. steps: in all, those of a warm-up too."""

    images: int = 60_000
    steps: int = 1000
    batch_size: int = 512


@dataclass(frozen=True)
class Run:
    """One training. K: how many codes."""

    arm: str
    K: int
    seed: int


# ---------------------------------------------------------------- one run


class ConvAutoencoder(models.VQAutoencoder):
    """Images (N, C, H, W) in [0, 1] to latents (N, H/4, W/4, 8) and back, by convolutions; sides multiples of 4.

    Two that halve the sides and one of 3 x 3, as in VQ-VAE but without residual blocks; unlike the encoder of
    `models.image_autoencoder` each latent sees beyond its own square. channels: C. codes: K, by moving averages.
    """

    def __init__(self, channels: int, codes: int):
        half: dict[str, Any] = {"kernel_size": 4, "stride": 2, "padding": 1}
        encoder = nn.Sequential(
            nn.Conv2d(channels, WIDTH // 2, **half),
            nn.LeakyReLU(0.1),
            nn.Conv2d(WIDTH // 2, WIDTH, **half),
            nn.LeakyReLU(0.1),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(WIDTH, DIM, 1),
        )
        decoder = nn.Sequential(
            nn.Conv2d(DIM, WIDTH, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(WIDTH, WIDTH // 2, **half),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(WIDTH // 2, channels, **half),
        )
        # The codes are drawn last, so that their number changes no weight.
        super().__init__(encoder, VectorQuantizer(codes, DIM, update="ema", decay=DECAY), decoder)

    def encode(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) to latents (N, H/4, W/4, 8)."""
        return self.encoder(x - 0.5).permute(0, 2, 3, 1).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents or codes (N, h, w, 8) to images (N, C, 4 h, 4 w)."""
        return self.decoder(latents.permute(0, 3, 1, 2)) + 0.5


def looks(steps: int) -> list[int]:
    """When a run of so many steps is measured, in steps since its codes were placed: 0, 1, 3, 10 ..., half, all."""
    early = [first * 10**power for power in range(len(str(steps))) for first in (1, 3)]
    return sorted({0, *[step for step in early if step < steps], steps // 2, steps})


def trained(run: Run, plan: Plan, images: Images) -> list[dict]:
    """Trains one model on the device of the images, and returns one row a look.

    A row has step, age (steps since the codes were placed), the measures of `codebook_size.measure_model` on the test
    images, device and, at the last step, gap, see `codebook_size.gap`. Raises KeyError for an unknown arm.
    """
    init, warmup = ARMS[run.arm], plan.steps // 2 if run.arm == "warm-up" else 0
    at, rows = looks(plan.steps), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        model = ConvAutoencoder(images.train.shape[1], run.K).to(images.train.device)

    def look(step: int, model: models.VQAutoencoder) -> None:
        age, last = step - warmup, step == plan.steps
        if age not in at and not last:
            return
        found, _ = codebook_size.measure_model(model, images.test)
        found |= {"gap": codebook_size.gap(model, images.train, run.seed)} if last else {}
        rows.append({"step": step, "age": age} | found)

    history = training.fit(
        model, images.train, steps=plan.steps, seed=run.seed, warmup=warmup, init=init, batch_size=plan.batch_size,
        lr=LR, callback=look, progress=False
    )  # fmt: skip
    if history.interrupted:
        raise KeyboardInterrupt
    device = codebook_size.device_name(images.train.device)
    return [{**asdict(run), **row, "device": device, **asdict(plan)} for row in rows]


# ---------------------------------------------------------------- all of them


@lru_cache(maxsize=1)
def _images(count: int, device: str) -> Images:
    train, test = (data.fashion_mnist(split).x.to(device) for split in ("train", "test"))
    return Images("fashion_mnist", train[:count], test)


def _trained(run: Run, plan: Plan, device: str) -> list[dict]:
    """In a process that has the images from the run before."""
    return trained(run, plan, _images(plan.images, device))


def remaining(runs: Iterable[Run], table: pd.DataFrame, plan: Plan) -> list[Run]:
    """The runs that the table lacks. Raises ValueError if the table is of another plan."""
    if not len(table):
        return list(runs)
    for name, wanted in asdict(plan).items():
        if name not in table or set(table[name]) != {wanted}:
            there = sorted(set(table[name])) if name in table else "not in it"
            raise ValueError(
                f"the table is of another plan: {name} {there}, and {wanted} here. Write to another file."
            )
    known = set(table[["arm", "K", "seed"]].itertuples(index=False, name=None))
    return [run for run in runs if (run.arm, run.K, run.seed) not in known]


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values(["arm", "K", "seed", "step"], ignore_index=True)


def stored_table() -> pd.DataFrame:
    """The table that comes with the module: one row a look, see `trained`. Time ran out: 2 or 3 seeds a size."""
    return pd.read_csv(TABLE)


def ends(table: pd.DataFrame) -> pd.DataFrame:
    """The means over seeds at the last step, one row for each K and arm, and how many seeds they are of."""
    last = table[table["step"] == table["steps"]].groupby(["K", "arm"])
    return last[["usage", "perplexity", "error", "gap"]].mean().assign(seeds=last.size())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vqnotes.studies.large_codebooks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=TABLE.name, help="the table (default: %(default)s, here)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="K")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: %(default)s); all of one come first")
    for name, value in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help="default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, each a process (default: 1)")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="no run begins after so many seconds")
    options = parser.parse_args(arguments)
    plan = Plan(options.images, options.steps, options.batch_size)
    runs = [Run(arm, size, seed) for seed in range(options.seeds) for size in options.sizes for arm in ARMS]
    table = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    todo = [(run, plan, options.device) for run in remaining(runs, table, plan)]
    threads = max(1, (os.cpu_count() or 1) // options.workers)
    with processes(options.workers, threads) as pool:
        table, left = completed(options.out, todo, _trained, pool, options.workers, options.limit_s, _in_order)
    if len(table):
        say(ends(table).round(3).to_string())
    say(f"{options.out}: {len(left)} of {len(runs)} runs are still to do")
    return int(len(left) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
