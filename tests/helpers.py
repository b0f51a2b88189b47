"""What several test files need."""

import colorsys
import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import psutil
import torch
from torch import Tensor

from vqnotes.diagnosis.measures import Measures


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, the same on every machine."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def between_neighbours(codebook, count):
    """Latents halfway between a code and the one nearest to it, as good as equally far from both."""
    distances = torch.cdist(codebook.double(), codebook.double()).fill_diagonal_(torch.inf)
    return (codebook + codebook[distances.argmin(dim=1)])[:count] / 2


def brute_force(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code, by all differences in float64."""
    return (latents.double()[:, None] - codebook.double()[None]).square().sum(-1).argmin(1)


def peak_memory(work: Callable[[], object]) -> int:
    """How many bytes more the process had, at most, while it did the work."""
    process, peak, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], process.memory_info().rss)
            time.sleep(0.001)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak[0] - before


def run_python(code: str) -> subprocess.CompletedProcess:
    """Runs the code in a fresh interpreter and keeps what it prints; an error there is an error here."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def hue(colour):
    """Where on the circle of colours, in degrees: orange about 40, blue about 200."""
    return 360 * colorsys.rgb_to_hsv(*colour[:3])[0]


def press():
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def printed(source: str) -> str:
    """What a cell prints, run by itself in an empty namespace."""
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard):
        exec(compile(source, "exercise", "exec"), {})
    return heard.getvalue().strip()


def random_measures(count: int, seed: int = 0) -> list[Measures]:
    """Measures of all kinds: near the thresholds and far, with and without inputs, labels, enough latents."""
    rng = np.random.default_rng(seed)

    def some(chance: float) -> bool:
        return bool(rng.random() < chance)

    def between(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    def one(codebooks: tuple = ()) -> Measures:
        codes, sample, whole = int(rng.integers(1, 9)) ** 3, int(rng.integers(1, 9000)), some(0.9)
        best, loss = between(0.002, 0.6), between(1e-3, 0.99)
        gap, low = between(0.8, 4), between(0.8, 1)
        at_codes = dict(best=best, best_low=best * low)
        if whole:
            at_codes |= dict(error=best * gap, gap=gap, gap_high=gap / low if some(0.9) else float("inf"))
        if some(0.1):
            at_codes = {}
        lost = loss * between(0.5, 4)
        interval = dict(inputs_low=loss * between(0.6, 1), inputs_high=loss * between(1, 1.6)) if some(0.3) else {}
        at_inputs = dict(inputs_loss=loss, encoder_loss=lost, codes_loss=lost * between(1, 6), inputs_codes=codes)
        at_labels = dict(separability=rng.uniform(0.2, 1), chance=rng.uniform(0.05, 0.5))
        at_labels |= dict(separability_inputs=rng.uniform(0.3, 1)) if some(0.7) else {}
        told = dict(dimensions=between(0.5, 12), best_dimensions=between(1, 12), best_loss=loss * between(1, 1.5))
        told |= dict(own_loss=at_inputs["codes_loss"] * between(0.8, 4))
        return Measures(
            latents=9000, codes=codes, sample=sample, spread=float(some(0.95)), distinct=codes, usage=1.0,
            ceiling=rng.uniform(0.3, 1), perplexity=rng.uniform(0.05, 1) * codes, codebooks=codebooks,
            own_ratio=between(0.9, 1.3) if some(0.2) else None,
            inputs=int(rng.integers(1, 30)) if some(0.3) else None,
            **at_codes,
            **(at_inputs | interval | (told if whole else {}) if at_codes and some(0.7) else {}),
            **(at_labels if some(0.4) else {}),
        )  # fmt: skip

    return [one((one(), one()) if some(0.1) else ()) for _ in range(count)]
