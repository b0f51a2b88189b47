"""The sweep over codebook sizes at three scales; it goes on where it stopped.

Small takes seconds, medium less than an hour on one core, full is made for a GPU.
python -m vqnotes.studies.codebook_size   the medium one, on the processor: trains what the folder lacks, and gathers
                                          all that is there into a table in the folder you are in
"""

import argparse
import atexit
import json
import os
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vqnotes import data, metrics, models, training
from vqnotes._files import replaced
from vqnotes._interrupts import interruptible
from vqnotes._printing import say
from vqnotes.kmeans import kmeans
from vqnotes.models import latents_for_codes
from vqnotes.quantizers import VectorQuantizer

__all__ = [
    "ARMS",
    "FULL",
    "MEDIUM",
    "SMALL",
    "Images",
    "Results",
    "Scale",
    "chosen",
    "device_name",
    "gap",
    "images",
    "measure_model",
    "results_folder",
    "run_sweep",
    "stored_table",
    "train_part",
]

ARMS = {"untrained k-means": 0.0, "warm-up": 0.5}  # share of the steps before k-means places the codes
LOOKS = (0, 1 / 64, 1 / 8, 1 / 4, 1 / 2, 1)  # of the steps, since the codes were placed: when a run is measured
SHOWN = 12  # test images whose rebuilds are kept
TABLE = Path(__file__).with_name("codebook_size.csv")
VERSION = {"protocol": 3}  # goes up whenever a change changes results, so that older ones are not mixed in


@dataclass(frozen=True)
class Scale:
    """All that a sweep depends on.

    data: names of functions of `vqnotes.data`; the first that can be had is used. sizes: the K's. seeds: how many.
    together: seeds that `fit_many` trains at once; their results are saved at once too. minutes: once so much time
    has passed no new run begins, None for no limit. The rest is the model's and the training's, see
    `models.image_autoencoder` (width: of encoder and decoder), `VectorQuantizer` and `training.fit`.
    """

    name: str
    data: tuple[str, ...]
    sizes: tuple[int, ...]
    seeds: int
    together: int
    minutes: float | None
    steps: int
    batch_size: int
    lr: float
    patch: int
    dim: int
    width: int
    decay: float


MODEL: dict[str, Any] = {"patch": 4, "dim": 8, "decay": 0.99}
SMALL = Scale(
    "small", ("digits",), (4, 16, 64, 256), seeds=8, together=8, minutes=None,
    steps=512, batch_size=32, lr=3e-3, width=64, **MODEL,
)  # fmt: skip
MEDIUM = Scale(
    "medium", ("fashion_mnist",), tuple(2**n for n in range(6, 13)), seeds=3, together=1, minutes=None,
    steps=512, batch_size=64, lr=3e-3, width=64, **MODEL,
)  # fmt: skip
FULL = Scale(
    "full", ("cifar10", "fashion_mnist"), tuple(2**n for n in range(6, 15)), seeds=3, together=1, minutes=27,
    steps=2000, batch_size=128, lr=1e-3, width=256, **MODEL,
)  # fmt: skip


class Images(NamedTuple):
    """A data set's name, its training images and its test images, float32 (N, C, H, W) in [0, 1]."""

    name: str
    train: Tensor
    test: Tensor


class Results(NamedTuple):
    """What is saved of a sweep.

    runs: one row a run and look, columns arm, K, seed, step, age (steps since the codes were placed), the measures of
    `measure_model`, gap (at the last step), device, seconds (of the run, shared among those trained together).
    shown: for each (arm, K), of the first seed, the counts of all codes over the test images, most used first, and
    SHOWN test images as rebuilt, uint8 (SHOWN, C, H, W). trained, left: how many parts this call trained, how many
    are still to do.
    """

    runs: pd.DataFrame
    shown: dict[tuple[str, int], tuple[Tensor, Tensor]]
    trained: int
    left: int


# ---------------------------------------------------------------- which scale, which data, where to


def chosen() -> Scale:
    """What VQNOTES_SCALE names (ValueError if that is no scale); without it, full where PyTorch finds a GPU."""
    name = os.environ.get("VQNOTES_SCALE", "full" if torch.cuda.is_available() else "small")
    scales = {one.name: one for one in (SMALL, MEDIUM, FULL)}
    if name not in scales:
        raise ValueError(f"VQNOTES_SCALE must be 'small', 'medium' or 'full', got {name!r}")
    return scales[name]


def results_folder(scale: Scale) -> Path:
    """The folder that VQNOTES_RESULTS names, made if need be.

    Without it, that is "vqnotes-results" in the working folder, but for the small scale an empty folder that goes
    with the process, so that a notebook under test never finds results of an earlier run.
    """
    named = os.environ.get("VQNOTES_RESULTS", "" if scale.name == "small" else "vqnotes-results")
    if not named:
        named = tempfile.mkdtemp(prefix="vqnotes-")
        atexit.register(shutil.rmtree, named, ignore_errors=True)
    folder = Path(named)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def images(scale: Scale) -> Images:
    """The first of the scale's data sets that can be had. Of the digits, the 360 test images are always the same.

    Raises OSError if none can be had, ValueError for a wrong file in $VQNOTES_DATA.
    """
    reasons = []
    for name in scale.data:
        if name == "digits":
            x = data.digits().x[np.random.default_rng(0).permutation(1797)]
            return Images(name, x[360:], x[:360])
        try:
            return Images(name, getattr(data, name)("train").x, getattr(data, name)("test").x)
        except OSError as error:
            reasons.append(str(error))
    raise OSError("\n".join(reasons))


def device_name(device: torch.device) -> str:
    """What its maker calls it, as "NVIDIA H100 80GB HBM3"; of a processor also how many threads PyTorch may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # Linux only; elsewhere Python knows the name, or the kind at least
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    threads = torch.get_num_threads()
    return f"{[*named, platform.processor() or platform.machine()][0]}, {threads} thread{'s' * (threads > 1)}"


# ---------------------------------------------------------------- one part: an arm, a size, some seeds


def measure_model(model: models.VQAutoencoder, test: Tensor) -> tuple[dict, models.Outcome]:
    """The measures of one model on the test images (N, C, H, W), and its answer. Each is explained in `metrics`.

    usage, perplexity, error (`reconstruction_error`), effective dimension (of the codes as used). Of all codes, dead
    ones too: cosine distance; spread, the mean distance between two codes over the root mean square distance between
    two latents, about 1 if codes lie as widely as latents.
    """
    outcome, codes = models.evaluate(model, test), model.quantizer.codes().detach()
    variance = metrics.principal_variances(outcome.latents).sum()
    return {
        "usage": metrics.usage(outcome.index, len(codes)),
        "perplexity": metrics.perplexity(outcome.index, len(codes)),
        "error": metrics.reconstruction_error(outcome.reconstruction, test),
        "cosine distance": metrics.pairwise_distance(codes),
        "spread": metrics.pairwise_distance(codes, "euclidean") / float(np.sqrt(2 * variance)),
        "effective dimension": metrics.effective_dimension(codes[outcome.index]),
    }, outcome


def gap(model: models.VQAutoencoder, train: Tensor, seed: int) -> float:
    """`metrics.optimality_gap` on up to 32 latents a code of the training images (N, C, H, W). Raises as it does."""
    return metrics.optimality_gap(latents_for_codes(model, train, seed), model.quantizer.codes().detach(), seed)


def train_part(scale: Scale, arm: str, size: int, seeds: Sequence[int], train: Tensor, test: Tensor) -> dict:
    """Trains one model a seed with `size` codes, on the device of the images (N, C, H, W).

    Returns what is saved of it: "rows", one a look and seed, and "shown", of the first seed: see `Results`.
    k-means places the codes before the first step that uses them, in the arm "untrained k-means" at step 0.
    """
    warmup, looks = int(ARMS[arm] * scale.steps), {int(share * scale.steps) for share in LOOKS}
    start = time.perf_counter()
    rows: list[dict] = []
    shown: dict[str, list] = {}

    def build(seed: int) -> models.VQAutoencoder:
        quantizer = VectorQuantizer(size, scale.dim, update="ema", decay=scale.decay)
        options = {"patch": scale.patch, "width": scale.width, "decoder_width": scale.width}
        return models.image_autoencoder(train.shape[1], quantizer, **options).to(train.device)

    def watch(step: int, trained: list[models.VQAutoencoder]) -> None:
        for seed, model in zip(seeds, trained):
            if step == warmup:
                model.quantizer.place_codes(*kmeans(latents_for_codes(model, train, seed), size, seed))
            if step - warmup not in looks and step != scale.steps:
                continue
            found, outcome = measure_model(model, test)
            last = {"gap": gap(model, train, seed)} if step == scale.steps else {}
            rows.append({"arm": arm, "K": size, "seed": seed, "step": step, "age": step - warmup} | found | last)
            if last and seed == seeds[0]:
                counts = torch.bincount(outcome.index.flatten(), minlength=size).sort(descending=True).values
                rebuilt = (255 * outcome.reconstruction[:SHOWN].clamp(0, 1)).round().int()
                shown.update(counts=counts.tolist(), pictures=rebuilt.tolist())

    options: dict[str, Any] = {
        "steps": scale.steps,
        "batch_size": scale.batch_size,
        "lr": scale.lr,
        "progress": False,
    }
    training.fit_many(build, train, seeds=seeds, warmup=warmup, init=None, callback=watch, **options)
    device = device_name(train.device)
    seconds = round((time.perf_counter() - start) / len(seeds), 2)
    return {"rows": [row | {"device": device, "seconds": seconds} for row in rows], "shown": shown}


# ---------------------------------------------------------------- the sweep, saved part by part


def run_sweep(
    scale: Scale, folder: Path, seeds: Iterable[int], device: str | None = None, progress: bool = True
) -> Results:
    """Trains what is not in the folder yet, saves each part as soon as it is done, and returns all that is there.

    One file a part, written whole or not at all: whatever ends the process costs the part that was being trained,
    and another call goes on from there. All sizes and both arms of the first seeds come first. A part that fails
    does not stop the others: it is left out with a warning, and tried again by the next call. device: None for a GPU.
    Raises ValueError, and changes nothing, for no seed or one given twice, and if a file of the folder is not such a
    part or was made with other settings; RuntimeError if there is nothing to return.
    """
    began, seeds = time.perf_counter(), [int(seed) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"need at least one seed, and all different, got {seeds}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    name, train, test = images(scale)
    train, test = train.to(device), test.to(device)
    groups = [seeds[first : first + scale.together] for first in range(0, len(seeds), scale.together)]
    parts = [(arm, size, group) for group in groups for size in scale.sizes for arm in ARMS]
    paths = {_path(folder, name, *part): part for part in parts}
    settings = _settings(scale, name)
    saved = {path: _read(path, settings) for path in paths if path.exists()}
    to_do = {path: part for path, part in paths.items() if path not in saved}
    trained, failed = 0, []
    costs = {path: 4096 + size for path, (_, size, _) in to_do.items()}  # about in proportion to their time
    with tqdm(total=sum(costs.values()), desc="sweep", leave=False, disable=not progress) as bar:
        for path, part in to_do.items():
            if scale.minutes is not None and time.perf_counter() - began > 60 * scale.minutes:
                break
            try:
                with interruptible() as stopped:
                    saved[path] = train_part(scale, *part, train, test)
                if stopped():  # `fit_many` has ended early: nothing of it is saved, and nothing more is trained
                    raise KeyboardInterrupt
                with replaced(path) as beside:
                    beside.write_text(json.dumps({"settings": settings, **saved[path]}), encoding="utf-8")
                trained += 1
            except (ValueError, RuntimeError) as error:  # it diverged, or does not fit into the GPU's memory
                failed.append(f"{part}: {error}")
            bar.update(costs[path])
    if failed:
        warnings.warn("some parts failed:\n" + "\n".join(failed), stacklevel=2)
    found = {path: saved[path] for path in paths if path in saved}  # in the order of the parts
    if not found:
        raise RuntimeError(f"nothing has finished, and {folder} is empty")
    runs = pd.DataFrame([row for result in found.values() for row in result["rows"]])
    shown: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    for path, result in found.items():
        counts, pictures = torch.tensor(result["shown"]["counts"]), torch.tensor(result["shown"]["pictures"])
        shown.setdefault(paths[path][:2], (counts, pictures.byte()))
    return Results(runs, shown, trained, len(paths) - len(found))


def _settings(scale: Scale, name: str) -> dict:
    """What the results of a part depend on, beside what its file's name says."""
    other = {"name", "sizes", "seeds", "minutes"}
    return {key: value for key, value in asdict(scale).items() if key not in other} | {"data": name, **VERSION}


def _path(folder: Path, name: str, arm: str, size: int, seeds: Sequence[int]) -> Path:
    return Path(folder) / f"{name} {arm} K={size} seeds={seeds[0]}..{seeds[-1]}.json"


def _read(path: Path, settings: dict) -> dict:
    try:
        part = json.loads(path.read_text(encoding="utf-8"))
        theirs, _, _ = part["settings"], part["rows"], part["shown"]["pictures"]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{path} is not a part of a sweep ({type(error).__name__}: {error})"
        raise ValueError(f"{reason}. Nothing was changed: remove it to have it trained again.") from error
    if theirs != settings:
        different = sorted(key for key in theirs.keys() | settings.keys() if theirs.get(key) != settings.get(key))
        shown = ", ".join(f"{key} {theirs.get(key)} there and {settings.get(key)} here" for key in different)
        raise ValueError(f"{path} was made with other settings: {shown}. Set VQNOTES_RESULTS to another folder.")
    return part


# ---------------------------------------------------------------- the medium one, as a command


def stored_table() -> pd.DataFrame:
    """The table of the medium scale that comes with the module, `Results.runs` of three seeds a size and arm."""
    return pd.read_csv(TABLE)


def main(arguments: list[str] | None = None) -> int:
    command = "python -m vqnotes.studies.codebook_size"
    parser = argparse.ArgumentParser(prog=command, description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="of a file a part (default: as VQNOTES_RESULTS says)")
    parser.add_argument("--out", type=Path, default=TABLE.name, help="the table (default: %(default)s, here)")
    parser.add_argument("--sizes", type=int, nargs="+", default=MEDIUM.sizes, metavar="K")
    parser.add_argument("--seeds", type=int, default=MEDIUM.seeds, help="how many (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="no run begins after so many")
    options = parser.parse_args(arguments)
    scale = replace(MEDIUM, sizes=tuple(options.sizes), minutes=options.minutes)
    folder = options.folder or results_folder(scale)
    folder.mkdir(parents=True, exist_ok=True)
    found = run_sweep(scale, folder, range(options.seeds), device="cpu")
    with replaced(options.out) as beside:
        found.runs.sort_values(["arm", "K", "seed", "step"]).to_csv(beside, index=False, float_format="%.5g")
    say(f"{options.out}: {len(found.runs)} rows, {found.left} parts are still to do")
    return int(found.left > 0)


if __name__ == "__main__":
    raise SystemExit(main())
