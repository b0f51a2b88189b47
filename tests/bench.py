"""How fast is the module, beside its peers and beside the limit of the machine? `make bench`, about twenty minutes.

python tests/bench.py [SECTION ...] [--repeats M]     all sections, or some: see SECTIONS

Ratios are medians over M alternating runs in one process, in brackets the lowest and the highest.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch
from torch import Tensor

from vqnotes import data, diagnosis, experiments, league, metrics, models, probing, training
from vqnotes.quantizers import VectorQuantizer, nearest_code

SIZES = ((16_384, 64, 1024), (16_384, 64, 8192), (65_536, 16, 512))  # latents, dimensions, codes
MODES = data.gaussian_modes(modes=32, per_mode=150, dim=16).x
Rows = Iterator[tuple]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratios(repeats: int, first: Callable, second: Callable) -> str:
    """How many times as long the first takes as the second, alternating. The first call of each does not count."""
    first(), second()
    found = [seconds(first) / seconds(second) for _ in range(repeats)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} .. {max(found):.2f})"


# ---------------------------------------------------------------- the quantiser


def both_ways(quantizer: torch.nn.Module, latents: Tensor) -> Callable[[], None]:
    """One forward and one backward pass, of ours (N, D) or of a peer's."""
    z = latents.clone().requires_grad_()

    def work() -> None:
        z.grad = None
        latents_q, _, loss = quantizer(z)
        (latents_q.square().mean() + loss.sum()).backward()

    return work


def search_alone(latents: Tensor, codes: Tensor, rows: int) -> Callable[[], None]:
    """The limit: product and argmin in chunks of so many rows, without a gradient or a check."""
    half_squares = codes.square().sum(1) / 2

    def work() -> None:
        for part in latents.split(rows):
            torch.addmm(half_squares, part, codes.T, alpha=-1).argmin(1)

    return work


def quantizer(repeats: int) -> Rows:
    from vector_quantize_pytorch import VectorQuantize

    for count, dim, size in SIZES:
        latents = torch.randn(count, dim)
        for update in ("gradient", "ema"):
            ours = VectorQuantizer(size, dim, update=update)
            ours.init_codes("data", latents)
            own = {"learnable_codebook": True, "ema_update": False} if update == "gradient" else {"decay": 0.99}
            peer = VectorQuantize(dim, size, commitment_weight=0.25, rotation_trick=False, **own).train()
            codes = ours.codes().detach()
            limits = [search_alone(latents, codes, 2**bits // size) for bits in range(17, 24) if 2**bits >= size]
            limit = min(limits, key=lambda work: min(seconds(work) for _ in range(3)))
            step, case = both_ways(ours, latents), f"{count:,} x {dim}, {size:,} codes, {update}"
            yield case, "vector-quantize-pytorch / ours", ratios(repeats, both_ways(peer, latents), step), ">= 8"
            yield case, "ours / product and argmin alone", ratios(repeats, step, limit), "<= 1.3"


PEAK = """
import torch
from vqnotes.quantizers import VectorQuantizer
def kilobytes(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])
def both_ways(latents):
    latents_q, _, loss = quantizer(latents)
    (latents_q.mean() + loss).backward()
    return latents_q
quantizer = VectorQuantizer(8192, 64, update="{update}")
both_ways(torch.randn(512, 64, requires_grad=True))
latents = torch.randn(65536, 64, requires_grad=True)
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
kept = both_ways(latents), latents.grad
print((kilobytes("VmHWM") - before) / 1024 - sum(one.nbytes for one in kept) / 2**20)
"""


def memory(repeats: int) -> Rows:
    for update in ("gradient", "ema"):
        run = subprocess.run(
            [sys.executable, "-c", PEAK.format(update=update)], capture_output=True, text=True, check=True
        )
        case = f"65,536 x 64, 8,192 codes, {update}"
        yield case, "peak beyond inputs and outputs, MB (N x K: 2,147)", f"{float(run.stdout):.0f}", "<= 64"


def remedies(repeats: int) -> Rows:
    latents, plain = torch.randn(4096, 8), VectorQuantizer(256, 8)
    plain.init_codes("data", latents)
    for name, remedy in league.REMEDIES.items():
        if remedy.kind is VectorQuantizer and not remedy.options:
            continue  # it changes nothing in the step
        other = remedy.kind(256 if remedy.dim == 8 else 64, remedy.dim, **{**remedy.options, **LARGER.get(name, {})})
        if remedy.init:
            other.init_codes("data", latents[:, : remedy.dim])
        step = both_ways(other, latents[:, : remedy.dim])
        yield (
            f"4,096 x {remedy.dim}",
            f"a step of {name} / plain",
            ratios(repeats, step, both_ways(plain, latents)),
            "<= 2",
        )


LARGER = {"residual": {"stages": (16, 16)}}


# ---------------------------------------------------------------- many runs


def batched_products(runs: int, batch: int, codes: int) -> Callable[[], None]:
    """The matrix products of a step of all runs, forward and backward, and nothing else."""
    layers = [(16, 64), (64, 64), (64, 8), (8, 64), (64, 64), (64, 16)]
    weights = [torch.randn(runs, *shape) for shape in layers]
    inputs = [torch.randn(runs, batch, shape[0]) for shape in layers]
    outputs = [torch.randn(runs, batch, shape[1]) for shape in layers]
    latents, codebooks = torch.randn(runs, batch, 8), torch.randn(runs, 8, codes)

    def work() -> None:
        for x, weight, gradient in zip(inputs, weights, outputs):
            x @ weight, x.mT @ gradient, gradient @ weight.mT
        latents @ codebooks

    return work


def small(seed: int, width: int = 64) -> models.VQAutoencoder:
    return models.mlp_autoencoder(16, VectorQuantizer(64, 8), width=width)


def many(repeats: int) -> Rows:
    own = {"steps": 200, "init": "uniform", "progress": False}
    for runs, goal in ((16, ">= 4"), (64, ">= 5")):

        def one_by_one(runs=runs) -> None:
            for seed in range(runs):
                training.fit(small(seed), MODES, seed=seed, **own)

        def at_once(runs=runs) -> None:
            training.fit_many(small, MODES, seeds=range(runs), **own)

        work = batched_products(runs, 256, 64)

        def products(work=work) -> None:
            for _ in range(200):
                work()

        yield (
            f"{runs} runs of 200 steps",
            "fit one by one / fit_many",
            ratios(max(3, repeats // 3), one_by_one, at_once),
            goal,
        )
        yield (
            f"{runs} runs of 200 steps",
            "fit_many / its matrix products",
            ratios(repeats, at_once, products),
            "<= 3",
        )


def watch(repeats: int) -> Rows:
    model, steps = small(0), 100
    looking = probing.CollapseWatch(MODES[:1024])

    def train() -> None:
        training.fit(model, MODES, seed=0, steps=steps, batch_size=128, init="uniform", progress=False)

    found = ratios(repeats, lambda: looking.look(0, model), train)
    yield "1,024 vectors", f"a look of CollapseWatch / {steps} steps of fit", found, ""


def setting(seeds, width: int) -> list[dict]:
    """A setting of the sweep, in a worker of one thread."""
    torch.set_num_threads(1)
    build = partial(small, width=width)
    trained = training.fit_many(build, MODES, seeds=seeds, steps=400, init="uniform", progress=False)
    return [{"error": history.reconstruction[-1]} for _, history in trained]


def sweep(repeats: int) -> Rows:
    settings = experiments.grid(width=(8, 16, 32, 48, 64, 80, 96, 128))
    with ProcessPoolExecutor(1) as one, ProcessPoolExecutor(2) as two:
        works = [
            partial(experiments.sweep, setting, settings, seeds=range(8), executor=pool, progress=False)
            for pool in (one, two)
        ]
        yield "64 runs", "1 worker / 2 workers, one thread each", ratios(max(3, repeats // 3), *works), ">= 1.7"


# ---------------------------------------------------------------- the rest


def start(repeats: int) -> Rows:
    ours, torch_alone = (
        partial(subprocess.run, [sys.executable, "-c", f"import {name}"], check=True)
        for name in ("vqnotes.training", "torch")
    )
    yield "a new process", "import vqnotes / import torch", ratios(repeats, ours, torch_alone), "<= 1.15"


def large(repeats: int) -> Rows:
    latents, codes = torch.randn(10**6, 64), torch.randn(16_384, 64)
    index = nearest_code(latents, codes)
    one_pass = seconds(lambda: nearest_code(latents, codes))
    works = {
        "usage and perplexity": lambda: (metrics.usage(index, 16_384), metrics.perplexity(index, 16_384)),
        "effective_dimension": lambda: metrics.effective_dimension(latents),
        "quantization_error": lambda: metrics.quantization_error(latents, codes),
        "diagnose": lambda: diagnosis.diagnose(latents, codes),
    }
    for name, work in works.items():
        found = f"{seconds(work) / one_pass:.2f}"
        yield "10^6 x 64, 16,384 codes, once", f"{name} / one pass of nearest_code", found, "<= 3"


SECTIONS = {one.__name__: one for one in (quantizer, memory, remedies, many, watch, sweep, start, large)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {options.repeats} repeats")
    for name in options.sections or SECTIONS:
        for row in SECTIONS[name](options.repeats):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
