"""The search and k-means beside the best that others have: two sections of the bench.

`search`: nearest_code and its peers, with one thread and with two; and how many answers of each are not the nearest
code by float64, also where latents and codes lie far from the origin beside their spread.

`kmeans`: time to within 2 % of the lowest error that any of the methods found on the same latents. Each is given
1, 2, 4, 8, 16 and 32 steps (epochs of mini-batches), each time anew from the same start, and the first number that
gets there counts, with the time of the start. None stops before, but for the module's own, which stops as it does for
its users. The lowest error is the least that one of them has after 32. The largest codebook is timed once.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from bench_tools import SIZES, fastest_search, ratios, said, seconds
from scipy.cluster.vq import vq
from sklearn.cluster import KMeans, MiniBatchKMeans, kmeans_plusplus
from sklearn.metrics import pairwise_distances_argmin
from threadpoolctl import threadpool_limits
from torch import Tensor

from vqnotes import data, metrics
from vqnotes._kmeans_start import start as our_start
from vqnotes.nearest import nearest_by_product, nearest_code

try:
    import faiss
except ImportError:  # no package of the project's: see `make bench`
    faiss = None
    WITHOUT_FAISS = [("faiss", "not installed: its rows are left out", "", "")]
else:
    WITHOUT_FAISS = []

our_kmeans = importlib.import_module("vqnotes.kmeans")

# ---------------------------------------------------------------- the search

AWAY = 100  # from the origin, in standard deviations


def searches(latents: Tensor, codes: Tensor) -> dict[str, Callable[[], Tensor | np.ndarray]]:
    """The peers, each with the index (N,) of what it finds nearest."""
    points, places = latents.numpy(), codes.numpy()

    def flat() -> "faiss.IndexFlatL2":
        index = faiss.IndexFlatL2(places.shape[1])
        index.add(places)
        return index

    found = {
        "scipy vq": lambda: vq(points, places)[0],
        "scikit-learn pairwise_distances_argmin": lambda: pairwise_distances_argmin(points, places),
        "torch cdist and argmin": lambda: torch.cdist(latents, codes).argmin(dim=1),
        "product and argmin": fastest_search(latents, codes),
    }
    if faiss:
        ready = flat()
        found["faiss IndexFlatL2"] = lambda: flat().search(points, 1)[1][:, 0]
        found["faiss IndexFlatL2, search alone"] = lambda: ready.search(points, 1)[1][:, 0]
    return found


def not_nearest(answers: dict[str, Tensor | np.ndarray], latents: Tensor, codes: Tensor) -> dict[str, int]:
    """For how many latents another code than of an index (N,) is nearer by float64, for each of the answers."""
    latents, codes = latents.double(), codes.double()
    best = torch.cat([nearest_by_product(part, codes) for part in latents.split(2048)])

    def distances(index: Tensor | np.ndarray) -> Tensor:
        return (latents - codes[torch.as_tensor(index)]).square().sum(dim=1)

    least = distances(best)
    return {name: int((distances(index) > least).sum()) for name, index in answers.items()}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many for PyTorch, and for the BLAS and OpenMP of all others."""
    before = torch.get_num_threads()
    try:
        with threadpool_limits(count):
            torch.set_num_threads(count)
            yield
    finally:
        torch.set_num_threads(before)


def search(repeats: int, _: str) -> Iterator[tuple]:
    yield from WITHOUT_FAISS
    for count, dim, size in SIZES:
        latents, codes = torch.randn(count, dim), torch.randn(size, dim)
        case, ours = f"{count:,} x {dim}, {size:,} codes", functools.partial(nearest_code, latents, codes)
        for number in (1, 2):
            with threads(number):
                found = {name: ratios(repeats, peer, ours) for name, peer in searches(latents, codes).items()}
            for name, ratio in found.items():
                yield f"{case}, {number} thread{'s'[: number - 1]}", f"{name} / nearest_code", ratio, ">= 1"
        for where, shift in (("", 0), (f", {AWAY} from the origin", AWAY)):
            away = latents + shift, codes + shift
            answers = {"nearest_code": nearest_code(*away)}
            answers |= {name: peer() for name, peer in searches(*away).items() if "alone" not in name}
            wrong = ", ".join(f"{name} {number:,}" for name, number in not_nearest(answers, *away).items())
            yield case + where, "answers that are not the nearest code", wrong, "ours 0"


# ---------------------------------------------------------------- k-means

STEPS, WITHIN, CODEBOOKS = (1, 2, 4, 8, 16, 32), 1.02, (256, 1024, 8192)
TIMED_ONCE = 8192  # codes and more: scikit-learn's start takes minutes
OURS = "kmeans"


class Method(NamedTuple):
    """A k-means in two parts: the codes that it starts from, and the codes after so many steps."""

    start: Callable[[Tensor, int], Tensor | np.ndarray]
    steps: Callable[[Tensor, Tensor | np.ndarray, int], Tensor | np.ndarray]


def our_steps(x: Tensor, codes: Tensor, count: int) -> Tensor:
    with mock.patch.multiple(our_kmeans, start=lambda *_: codes, STEPS=count):
        return our_kmeans.kmeans(x, len(codes))[0]


def scikit_learn_steps(kind: type, x: Tensor, codes: np.ndarray, count: int, **own: object) -> np.ndarray:
    model = kind(len(codes), init=codes, n_init=1, max_iter=count, tol=0, random_state=0, **own)
    return model.fit(x.numpy()).cluster_centers_


def mini_batch_start(x: Tensor, size: int) -> np.ndarray:
    some = 3 * 1024 if size <= 3 * 1024 else 3 * size  # as MiniBatchKMeans does it
    return kmeans_plusplus(x[:some].numpy(), size, random_state=0)[0]


def faiss_start(x: Tensor, size: int) -> np.ndarray:
    chosen, codes = faiss.ClusteringInitialization(x.shape[1], size), np.empty((size, x.shape[1]), dtype=np.float32)
    chosen.method, chosen.seed = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS, 0
    chosen.init_centroids(len(x), faiss.swig_ptr(x.numpy()), faiss.swig_ptr(codes))
    return codes


def faiss_steps(x: Tensor, codes: np.ndarray, count: int) -> np.ndarray:
    size, dim = codes.shape
    model = faiss.Kmeans(dim, size, niter=count, min_points_per_centroid=1, max_points_per_centroid=len(x))
    model.train(x.numpy(), init_centroids=codes)
    return model.centroids


METHODS = {
    OURS: Method(
        lambda x, size: our_start(x - x.mean(dim=0), size, torch.Generator().manual_seed(0)),
        our_steps,
    ),
    "scikit-learn KMeans": Method(
        lambda x, size: kmeans_plusplus(x.numpy(), size, random_state=0)[0],
        functools.partial(scikit_learn_steps, KMeans),
    ),
    "scikit-learn MiniBatchKMeans": Method(
        mini_batch_start,
        functools.partial(scikit_learn_steps, MiniBatchKMeans, max_no_improvement=None),
    ),
}
if faiss:
    METHODS["faiss Kmeans"] = Method(lambda x, size: x[:size].numpy(), faiss_steps)  # latents are in random order
    METHODS["faiss Kmeans, k-means++"] = Method(faiss_start, faiss_steps)


class Track:
    """A method on some latents: errors and seconds by the number of steps. The start is made and timed once."""

    def __init__(self, method: Method, x: Tensor, size: int):
        self.method, self.x, self.size = method, x, size
        self.start_s = seconds(self._begin)
        self.made: dict[int, tuple[float, float]] = {}

    def _begin(self) -> None:
        self.codes = self.method.start(self.x, self.size)

    def after(self, steps: int) -> tuple[float, float]:
        """The error after so many steps, and the seconds until then."""
        if steps not in self.made:
            ends = []
            taken = seconds(lambda: ends.append(self.method.steps(self.x, self.codes, steps)))
            error = float(metrics.quantization_error(self.x, torch.as_tensor(ends[0])))
            self.made[steps] = error, self.start_s + taken
        return self.made[steps]

    def first_within(self, bound: float) -> int | None:
        """The least number of STEPS after which the error is no larger, as it falls; None if it is after none."""
        found = None
        for steps in reversed(STEPS):  # the most are made anyway; end at the first that is too few
            if self.after(steps)[0] > bound:
                break
            found = steps
        return found

    def again(self, steps: int) -> float:
        """The seconds of as many steps, measured anew with the start."""
        return seconds(lambda: self.method.steps(self.x, self.method.start(self.x, self.size), steps))


def kmeans(repeats: int, _: str) -> Iterator[tuple]:
    yield from WITHOUT_FAISS
    x = data.gaussian_modes(modes=64, per_mode=1024, dim=16).x
    for size in CODEBOOKS:
        case = f"{len(x):,} x {x.shape[1]}, {size:,} codes"
        tracks = {name: Track(method, x, size) for name, method in METHODS.items()}
        best = min(track.after(STEPS[-1])[0] for track in tracks.values())
        steps = {name: track.first_within(WITHIN * best) for name, track in tracks.items()}
        times = {name: [track.after(steps[name])[1]] for name, track in tracks.items() if steps[name]}
        for _ in range(0 if size >= TIMED_ONCE else max(1, repeats // 3) - 1):
            for name, found in times.items():
                found.append(tracks[name].again(steps[name]))
        for name, track in tracks.items():
            if not steps[name]:
                ends, taken = track.after(STEPS[-1])
                yield (
                    case,
                    f"{name}: error after {STEPS[-1]} steps / best; seconds",
                    f"{ends / best:.3f}; {taken:.1f}",
                    "",
                )
            elif name == OURS or OURS not in times:
                yield case, f"{name}: seconds to within 2 %, {steps[name]} steps", said(times[name]), ""
            else:
                found = [peer / ours for peer, ours in zip(times[name], times[OURS])]
                yield case, f"{name}, {steps[name]} steps / {OURS}, to within 2 %", said(found), ">= 1"
        ours = float(metrics.quantization_error(x, our_kmeans.kmeans(x, size)[0]))
        yield case, f"{OURS}: error where it stops of itself / best", f"{ours / best:.3f}", "<= 1.02"
