"""What several test files need."""

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


def press():
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def printed(source: str) -> str:
    """What a cell prints, run by itself in an empty namespace."""
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard):
        exec(compile(source, "exercise", "exec"), {})
    return heard.getvalue().strip()
