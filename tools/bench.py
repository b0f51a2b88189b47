"""How fast is the module, beside its peers and beside the limit of the machine? `make bench`, forty minutes.

python tools/bench.py [SECTION ...] [--repeats M] [--device cuda] [--busy N]     all sections, or some: see SECTIONS

It prints a table in Markdown. On a GPU all sections but those in ONLY_ON_CPU are run; the clock waits for the device.
Ratios are medians over M alternating runs in one process, in brackets the lowest and the highest. With --busy, N
processes that do nothing but keep a core busy run beside all of it. A section whose peer cannot be imported says so.
"""

import argparse
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial

import torch
from bench_peers import kmeans, search
from bench_tools import MODES, SIZES, batched_products, both_ways, fastest_search, ratios, seconds, small, wait
from busy import busy
from growth import growth

from vqnotes import diagnosis, metrics, training
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import EntropyLoss
from vqnotes.studies import codebook_size, sweeps
from vqnotes.studies import remedies as league

Rows = Iterator[tuple]


# ---------------------------------------------------------------- the quantiser


def quantizer(repeats: int, device: str) -> Rows:
    from vector_quantize_pytorch import VectorQuantize

    for count, dim, size in SIZES:
        latents = torch.randn(count, dim, device=device)
        for update in ("gradient", "ema"):
            ours = VectorQuantizer(size, dim, update=update).to(device)
            ours.init_codes("data", latents)
            own = {"learnable_codebook": True, "ema_update": False} if update == "gradient" else {"decay": 0.99}
            peer = VectorQuantize(dim, size, commitment_weight=0.25, rotation_trick=False, **own).to(device)
            codes = ours.codes().detach()
            limit = fastest_search(latents, codes)
            step, case = both_ways(ours, latents), f"{count:,} x {dim}, {size:,} codes, {update}"
            yield case, "vector-quantize-pytorch / ours", ratios(repeats, both_ways(peer, latents), step), ">= 8"
            yield case, "ours / product and argmin alone", ratios(repeats, step, limit), "<= 1.3"


PEAK = """
import torch
from vqnotes import diagnosis
from {kind.__module__} import {kind.__name__} as Kind
def kilobytes(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])
def both_ways(latents, quantizer):
    latents_q, _, loss = quantizer(latents)
    (latents_q.mean() + loss).backward()
    return latents_q, latents.grad
def diagnose(latents, quantizer):
    return diagnosis.diagnose(latents.detach(), quantizer.codes().detach()).drawing.codebook,
quantizer = Kind({size}, 64, update="{update}")
{work}(torch.randn(512, 64, requires_grad=True), quantizer)
latents = torch.randn({count}, 64, requires_grad=True)
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
kept = {work}(latents, quantizer)
print((kilobytes("VmHWM") - before) / 1024 - sum(one.nbytes for one in kept) / 2**20)
"""


def megabytes(work: str, count: int, size: int, update: str, kind: type = VectorQuantizer) -> str:
    """The peak beyond inputs and outputs, in a process of its own that gives back at once what it no longer needs."""
    code = PEAK.format(work=work, count=count, size=size, update=update, kind=kind)
    given_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=given_back)
    return f"{float(run.stdout):.0f}"


def megabytes_on_gpu(count: int, size: int, update: str, kind: type) -> str:
    """The same of a forward and a backward pass on a GPU, as PyTorch counts its memory."""
    ours = kind(size, 64, update=update).cuda()
    for some in (512, count):  # the first also takes what PyTorch keeps for good
        latents = torch.randn(some, 64, device="cuda", requires_grad=True)
        ours.zero_grad()
        wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        latents_q, _, loss = ours(latents)
        (latents_q.mean() + loss).backward()
    kept = latents_q.nbytes + sum(one.grad.nbytes for one in (latents, *ours.parameters()))
    return f"{(torch.cuda.max_memory_allocated() - before - kept) / 2**20:.0f}"


def memory(repeats: int, device: str) -> Rows:
    for name, update, kind, goal in (
        ("gradient", "gradient", VectorQuantizer, "<= 64"),
        ("ema", "ema", VectorQuantizer, "<= 64"),
        ("entropy loss", "gradient", EntropyLoss, "<= 128"),
    ):
        case, what = f"65,536 x 64, 8,192 codes, {name}", "peak, MiB (N x K: 2,048)"
        if device == "cuda":
            yield case, what, megabytes_on_gpu(65_536, 8192, update, kind), "bounded"
        else:
            yield case, what, megabytes("both_ways", 65_536, 8192, update, kind), goal


FITTING = {"FSQ": ((), {"levels": (4,) * 5}), "LFQ": ((10,), {}), "residual": (((32, 32), 64), {})}


def remedies(repeats: int, device: str) -> Rows:
    """Batches alternate: a restart that meets the same latents again would put codes on top of each other."""
    count, size = 16_384, 1024
    latents, plain = torch.randn(8, count, 64, device=device), VectorQuantizer(size, 64).to(device)
    plain.init_codes("data", latents[0])
    reference = both_ways(plain, *latents)
    for name, remedy in league.REMEDIES.items():
        if remedy.kind is VectorQuantizer and not remedy.options:
            continue  # it changes nothing in the step
        said, options = FITTING.get(name, ((size, 64), {}))
        other = remedy.kind(*said, **remedy.options | options).to(device)
        dim = other.dim
        other.init_codes("data", latents[0, :, :dim])
        found = ratios(repeats, both_ways(other, *latents[..., :dim].contiguous()), reference)
        yield f"{count:,} x {dim}, {size:,} codes", f"a step of {name} / plain", found, "<= 2"


# ---------------------------------------------------------------- many runs


def many(repeats: int, device: str) -> Rows:
    if device == "cuda":
        steps, repeats = 50, max(3, repeats // 3)  # one by one, launches take a minute
    else:
        steps = 100
    own = {"steps": steps, "init": "uniform", "progress": False}
    x, build = MODES.to(device), partial(small, device=device)
    for runs, goal in ((16, ">= 4"), (64, ">= 5")):

        def one_by_one(runs=runs) -> None:
            for seed in range(runs):
                training.fit(build(seed), x, seed=seed, **own)

        def at_once(runs=runs) -> None:
            training.fit_many(build, x, seeds=range(runs), **own)

        products = batched_products(runs, 256, 64, steps=steps, device=device)
        case = f"{runs} runs of {steps} steps"
        yield case, "fit one by one / fit_many", ratios(repeats, one_by_one, at_once), goal
        yield case, "fit_many / its matrix products", ratios(repeats, at_once, products), "<= 3"


def watch(repeats: int, device: str) -> Rows:
    model, x, steps = small(0, device=device), MODES.to(device), 100
    looking = diagnosis.CollapseWatch(x[:1024])

    def train() -> None:
        training.fit(model, x, seed=0, steps=steps, batch_size=128, init="uniform", progress=False)

    found = ratios(repeats, lambda: looking.look(0, model), train)
    yield "1,024 vectors", f"a look of CollapseWatch / {steps} steps of fit", found, "<= 0.2"


def setting(seeds, width: int) -> list[dict]:
    """A setting of the sweep, in a worker of one thread."""
    torch.set_num_threads(1)
    build = partial(small, width=width)
    trained = training.fit_many(build, MODES, seeds=seeds, steps=400, init="uniform", progress=False)
    return [{"error": history.reconstruction[-1]} for _, history in trained]


def sweep(repeats: int, _: str) -> Rows:
    settings = sweeps.grid(width=(8, 16, 32, 48, 64, 80, 96, 128))

    def swept(pool: Executor) -> Callable[[], object]:
        return partial(sweeps.sweep, setting, settings, seeds=range(8), executor=pool, progress=False)

    with ProcessPoolExecutor(1) as one, ProcessPoolExecutor(2) as two:
        works = [swept(one), swept(two)]
        yield "64 runs", "1 worker / 2 workers, one thread each", ratios(repeats, *works), ">= 1.7"
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
        client.get_executor() as dask,
        ProcessPoolExecutor(2) as pool,
    ):
        works = [swept(dask), swept(pool)]
        yield "64 runs", "2 workers of Dask / of a process pool", ratios(repeats, *works), "<= 1.1"


# ---------------------------------------------------------------- the rest


def start(repeats: int, _: str) -> Rows:
    ours, torch_alone = (
        partial(subprocess.run, [sys.executable, "-c", f"import {name}"], check=True)
        for name in ("vqnotes.training", "torch")
    )
    yield "a new process", "import vqnotes / import torch", ratios(repeats, ours, torch_alone), "<= 1.15"


def large(repeats: int, device: str) -> Rows:
    latents, codes = torch.randn(10**6, 64, device=device), torch.randn(16_384, 64, device=device)
    index = nearest_code(latents, codes)
    works = {
        "usage and perplexity": lambda: (metrics.usage(index, 16_384), metrics.perplexity(index, 16_384)),
        "effective_dimension": lambda: metrics.effective_dimension(latents),
        "quantization_error": lambda: metrics.quantization_error(latents, codes),
    }
    if device == "cpu":  # the diagnosis takes what it is given to the processor
        works["diagnose"] = lambda: diagnosis.diagnose(latents, codes)
    for name, work in works.items():
        found = ratios(max(2, repeats // 4), work, lambda: nearest_code(latents, codes))  # each takes a minute
        yield "10^6 x 64, 16,384 codes", f"{name} / one pass of nearest_code", found, "<= 3"
    if device == "cpu":
        found = megabytes("diagnose", 10**6, 16_384, "ema")
        yield "the same", "peak of diagnose, MiB (latents: 244, N x K: 62,500)", found, "bounded"


def clones(repeats: int, _: str) -> Rows:
    """Codes that are exact copies of others, beside as many that all differ."""
    latents, codes = torch.randn(65_536, 64), torch.randn(1024, 64)
    found = ratios(repeats, *(partial(nearest_code, latents, one) for one in (codes[:512].repeat(2, 1), codes)))
    yield "65,536 x 64, 1,024 codes", "nearest_code with 512 codes twice / with 1,024 that differ", found, "<= 1.3"
    latents, codes = torch.randn(100_000, 256), torch.randn(1024, 256)
    found = ratios(repeats, *(partial(diagnosis.diagnose, latents, one) for one in (codes[:16].repeat(64, 1), codes)))
    yield "100,000 x 256, 1,024 codes", "diagnose with 16 codes 64 times / with 1,024 that differ", found, "<= 1.3"


def many_codes(repeats: int, _: str) -> Rows:
    latents = torch.randn(2**18, 8)
    inputs, codes = latents @ torch.randn(8, 32) + 0.3 * torch.randn(2**18, 32), latents[:16_384] + 0.1
    found = seconds(lambda: diagnosis.diagnose(latents, codes, inputs=inputs))
    yield "262,144 x 8, 16,384 codes, inputs", "seconds of diagnose", f"{found:.0f}", "<= 120"


SECTIONS = {
    one.__name__: one
    for one in (
        quantizer,
        search,
        kmeans,
        memory,
        remedies,
        many,
        watch,
        sweep,
        start,
        growth,
        large,
        clones,
        many_codes,
    )
}
ONLY_ON_CPU = ("search", "kmeans", "sweep", "start", "clones", "many_codes")  # peers, processes, diagnoses


def measured(sections: list[str], repeats: int, device: str) -> bool:
    """Prints the rows of the sections, and gives whether all of them ran to their end."""
    whole = True
    for name in sections:
        try:
            for row in SECTIONS[name](repeats, device):
                print("| " + " | ".join(row) + " |", flush=True)
        except ModuleNotFoundError as error:
            print(f"| {name} | {error.name} is not installed: the rest of the section is left out | | |", flush=True)
        except Exception:  # the other sections are worth having
            traceback.print_exc()
            whole = False
    return whole


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="so many busy processes beside it")
    options = parser.parse_args(arguments)
    there = [name for name in SECTIONS if options.device == "cpu" or name not in ONLY_ON_CPU]
    chosen = options.sections or there
    if unknown := [name for name in chosen if name not in there]:
        parser.error(f"on {options.device} there is no section {unknown[0]!r}: choose from {', '.join(there)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here")
    if options.repeats < 1 or options.busy < 0:
        parser.error(f"need M >= 1 and N >= 0, got {options.repeats} and {options.busy}")
    device = codebook_size.device_name(torch.device(options.device))
    beside = f", beside {options.busy} busy processes" if options.busy else ""
    print(f"{device}, PyTorch {torch.__version__}, {options.repeats} repeats{beside}\n")
    print("| case | ratio | measured | goal |\n|---|---|---|---|", flush=True)
    with busy(options.busy):
        return int(not measured(chosen, options.repeats, options.device))


if __name__ == "__main__":
    sys.exit(main())
