"""How the time grows with latents, codes, and runs at once: a section of the bench, and its picture."""

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from bench_tools import MODES, batched_products, both_ways, fastest_search, seconds, small

from vqnotes import training
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import VectorQuantizer

ROOT = Path(__file__).resolve().parent.parent
PICTURES = {"cpu": ROOT / "docs" / "growth.png", "cuda": ROOT / "docs" / "growth_cuda.png"}
Works = dict[str, Callable[[], object]]


def quantizing(count: int, size: int, device: str) -> Works:
    latents, quantizer = torch.randn(count, 64, device=device), VectorQuantizer(size, 64).to(device)
    quantizer.init_codes("normal")
    codes = quantizer.codes().detach()
    return {
        "VectorQuantizer, forward and backward": both_ways(quantizer, latents),
        "nearest_code": lambda: nearest_code(latents, codes),
        "limit: product and argmin, best chunk": fastest_search(latents, codes),
    }


def training_of(runs: int, device: str) -> Works:
    x, build = MODES.to(device), partial(small, device=device)

    def train() -> None:
        training.fit_many(build, x, seeds=range(runs), steps=20, init="uniform", progress=False)

    products = batched_products(runs, 256, 64, steps=20, device=device)
    return {"fit_many, 20 steps": train, "limit: its matrix products": products}


GROWTH = {
    "latents N, with 1,024 codes": (
        [10**3, 10**4, 10**5, 10**6],
        lambda count, device: quantizing(count, 1024, device),
    ),
    "codes K, with 16,384 latents": (
        [2**bits for bits in range(6, 17, 2)],
        lambda size, device: quantizing(16_384, size, device),
    ),
    "runs R at once": ([1, 4, 16, 64, 256], training_of),
}


def growth(repeats: int, device: str) -> Iterator[tuple]:
    """Each axis for itself. The exponent is that of the upper end: below, what does not grow has its share."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, all_axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for axes, (name, (sizes, works)) in zip(all_axes, GROWTH.items()):
        times: dict[str, list[float]] = {}
        for size in sizes:
            for work, run in works(size, device).items():
                run()
                found = statistics.median(seconds(run) for _ in range(max(3, repeats // 3)))
                times.setdefault(work, []).append(found)
        for work, found in times.items():
            look = {"linestyle": "--", "color": "0.4"} if "limit" in work else {"marker": "o"}
            axes.loglog(sizes, found, label=work, **look)
            exponent = np.log(found[-1] / found[-2]) / np.log(sizes[-1] / sizes[-2])
            yield name, f"exponent of {work}, {sizes[-2]:,} to {sizes[-1]:,}", f"{exponent:.2f}", "about 1"
        axes.set(xlabel=name, ylabel="seconds")
        axes.legend(fontsize=7)
    figure.savefig(PICTURES[device], dpi=110)
    plt.close(figure)
    yield "all three", "drawn in", str(PICTURES[device].relative_to(ROOT)), ""
