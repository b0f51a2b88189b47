"""Generation: a prior that learns which grids of codes are likely, and how good what it samples is.

The prior is a small causal transformer, one code after the other. It is the second stage of every generator that is
built on a tokeniser: the tokeniser turns an image into a grid of codes, the prior learns the grids, and new grids are
decoded to new images (VQ-VAE, arXiv:1711.00937, section 3.3).

Samples are judged beside real data: how typical they are, and how much of the data they reach. Real data are (N, ...)
and samples (M, ...); both are flattened to vectors and compared by Euclidean distance, so memory grows with
N * (N + M). These functions raise ValueError for empty, NaN, infinite or mismatched input, and show its shape.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from vqnotes._batches import batches_of
from vqnotes._checks import Array, check_index, check_latents
from vqnotes._interrupts import interruptible, note_end
from vqnotes._threads import torch_threads_for

__all__ = [
    "BestOf",
    "Block",
    "CodeTransformer",
    "as_rows",
    "coverage",
    "density",
    "expected_coverage",
    "fit_priors",
    "histograms",
    "mix_positions",
    "negative_log_likelihood",
    "sample",
    "shuffle_positions",
    "spread",
]

SAMPLED_AT_ONCE = 128  # rows: the attention of all at once took hundreds of megabytes


class CodeTransformer(nn.Module):
    """Causal transformer over rows of codes: a distribution of each code, given those before it in the row.

    codes: K, how many there are. positions: T, the length of a row; a grid is read line by line.
    width: of the vector at each position. heads: of attention, a divisor of width. layers: blocks of attention and
    perceptron, with layer norms before each (GPT-2's form).
    Raises ValueError for sizes below 1 or heads that do not divide width.
    """

    def __init__(self, codes: int, positions: int, *, width: int = 32, heads: int = 4, layers: int = 1):
        super().__init__()
        if min(codes, positions, width, heads, layers) < 1 or width % heads:
            raise ValueError(
                f"need positive sizes and heads that divide width, got codes={codes}, positions={positions}, "
                f"width={width}, heads={heads}, layers={layers}"
            )
        self.codes, self.positions = codes, positions
        self.embed = nn.Embedding(codes + 1, width)  # the last one is the start of a row
        self.place = nn.Parameter(torch.empty(positions, width))
        for table in (self.embed.weight, self.place):
            nn.init.normal_(table, std=0.1)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, codes)

    def forward(self, before: Tensor) -> Tensor:
        """The codes before (N, t), t < T, to logits (N, t + 1, K): of each of them and of the next one."""
        start = before.new_full((len(before), 1), self.codes)
        vectors = self.embed(torch.cat([start, before], dim=1)) + self.place[: before.shape[1] + 1]
        return self.head(self.norm(self.blocks(vectors)))


class Block(nn.Module):
    """Attention to the positions up to one's own, then a perceptron at each position: (N, t, width) to the same."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.from_heads = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, t, width) to the same."""
        x = x + self.attention(self.before_attention(x))
        return x + self.mlp(self.before_mlp(x))

    def attention(self, x: Tensor) -> Tensor:
        """What each position takes from those up to its own: (N, t, width) to the same."""
        rows, length, width = x.shape
        split = self.to_qkv(x).reshape(rows, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (N, heads, t, width / heads)
        with sdpa_kernel(SDPBackend.MATH):  # the plain form: the fast ones cannot train many models at once
            heads = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.from_heads(heads.transpose(1, 2).reshape(rows, length, width))


def fit_priors(
    grids: Sequence[Tensor],
    codes: int,
    *,
    seeds: Iterable[int],
    steps: int,
    batch_size: int = 32,
    lr: float = 5e-3,
    callback: Callable[[int, list[CodeTransformer]], bool | None] | None = None,
    every: int = 25,
    progress: bool = True,
    **options: int,
) -> list[tuple[CodeTransformer, list[float]]]:
    """Trains one prior a seed, all at once, by Adam on the negative log-likelihood of batches, in shuffled epochs.

    grids: one index tensor (N, ...) a seed, all of one shape; each (...) is read as a row, line by line.
    codes: K. seeds: of the weights and of the batches. options: of `CodeTransformer`.
    callback: called as callback(step, priors) after every so many steps; the training ends if it returns True.
    A step is on one thread if it is small, see `_threads.is_small`: a weight counts once for each code of a batch.
    Returns for each seed the prior and its negative log-likelihood on the batch of every step, in bits a grid.
    An interrupt ends all runs after the same number of steps, and they are returned as they are then; a line
    says after how many.
    Raises ValueError for grids that are empty, of different shapes, too few or too many, or hold other codes than
    0 .. K-1; for no seed or one given twice; for steps, batch_size or every < 1 or a learning rate not above 0.
    """
    seeds = [int(seed) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"need at least one seed, and all different, got {seeds}")
    if min(steps, batch_size, every) < 1 or not 0 < lr < math.inf:
        got = f"{steps}, {batch_size}, {every} and {lr}"
        raise ValueError(f"need steps, batch_size and every >= 1 and lr > 0, got {got}")
    shapes = [tuple(one.shape) for one in grids]
    if len(shapes) != len(seeds) or len(set(shapes)) > 1:
        raise ValueError(f"need one tensor of grids for each of {len(seeds)} seeds, all of one shape, got {shapes}")
    rows = torch.stack([as_rows(one, codes) for one in grids])
    priors = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            priors.append(CodeTransformer(codes, rows.shape[2], **options).to(rows.device))
    weights, _ = stack_module_state(priors)  # each with a leading axis R
    optimizer = torch.optim.Adam(weights.values(), lr=lr, fused=True)
    batches = batches_of(rows.shape[1], batch_size, seeds, rows.device)
    which = torch.arange(len(seeds), device=rows.device)[:, None]

    def bits(weights: dict, batch: Tensor) -> Tensor:
        return _bits(functional_call(priors[0], weights, batch[:, :-1]), batch).mean()

    bits_of_each = torch.vmap(bits)
    work = batch_size * rows.shape[2] * _parameters(weights)
    losses_of_steps: list[Tensor] = []

    def write_back() -> list[CodeTransformer]:
        for run, prior in enumerate(priors):
            prior.load_state_dict({name: stacked[run].detach() for name, stacked in weights.items()})
        return priors

    enough = False
    with interruptible() as stopped, torch.enable_grad():
        for _ in tqdm(range(steps), desc="training", leave=False, disable=not progress):
            if stopped() or enough:
                break
            with torch_threads_for(work):
                losses = bits_of_each(weights, rows[which, next(batches)])
                optimizer.zero_grad()
                losses.sum().backward()
                optimizer.step()
            losses_of_steps.append(losses.detach())
            if callback and len(losses_of_steps) % every == 0:
                enough = bool(callback(len(losses_of_steps), write_back()))
    data = (tuple(rows.shape), codes, rows.double().var(dim=(1, 2)).tolist())
    same_run = ("fit_priors", repr(data), tuple(seeds), steps, batch_size, lr, repr(options))
    title = f"fit_priors (seed {', '.join(map(str, seeds))})"
    note_end(same_run, title, len(losses_of_steps), steps, "steps", cut=stopped())
    write_back()
    curves = torch.stack(losses_of_steps, dim=1).tolist() if losses_of_steps else [[] for _ in priors]
    return list(zip(priors, curves))


class BestOf:
    """A callback of `fit_priors` that keeps each prior as it was at its own best step on grids not learnt.

    unseen: one index tensor (N, ...) a prior. patience: after so many looks without a better one for any of them the
    training ends. Then `priors` holds them, `bits` their negative log-likelihood of the unseen grids, in bits a grid,
    and `steps` the steps at which they had it; `looks` has the bits of every look, one list a prior.
    """

    def __init__(self, unseen: Sequence[Tensor], patience: int = 3):
        self.unseen, self.patience = list(unseen), patience
        self.bits, self.steps = [math.inf] * len(self.unseen), [0] * len(self.unseen)
        self.looks: list[list[float]] = [[] for _ in self.unseen]
        self.priors: list[CodeTransformer | None] = [None] * len(self.unseen)
        self.waited = 0

    def __call__(self, step: int, priors: Sequence[CodeTransformer]) -> bool:
        """Raises ValueError for another number of priors than of sets of grids."""
        if len(priors) != len(self.unseen):
            raise ValueError(f"need grids for each prior, got {len(self.unseen)} and {len(priors)} priors")
        self.waited += 1
        for run, (prior, grids) in enumerate(zip(priors, self.unseen)):
            bits = negative_log_likelihood(prior, grids).mean().item()
            self.looks[run].append(bits)
            if bits < self.bits[run]:
                self.bits[run], self.steps[run], self.waited = bits, step, 0
                self.priors[run] = copy.deepcopy(prior)
        return self.waited >= self.patience


@torch.no_grad()
def negative_log_likelihood(prior: CodeTransformer, grids: Tensor, batch_size: int = 1024) -> Tensor:
    """-log2 p(grid) for each of the grids (N, ...), in bits: what the prior pays to write each down, (N,).

    Its mean is at least the entropy of the grids. Between tokenisers it is no measure of quality: a code that says
    little is cheap. Compare it at equal distortion.
    Raises ValueError for grids of another size or with other codes than the prior's.
    """
    rows = as_rows(grids, prior.codes)
    if rows.shape[1] != prior.positions:
        raise ValueError(f"the prior reads grids of {prior.positions} codes, got {tuple(grids.shape)}")
    return torch.cat([_bits(prior(part[:, :-1]), part) for part in rows.split(batch_size)])


@torch.no_grad()
def sample(
    priors: Sequence[CodeTransformer], count: int, *, seeds: Iterable[int], temperature: float = 1.0
) -> Tensor:
    """New rows of codes, int64 (R, count, T), drawn from R priors of one shape at once, code after code.

    seeds: one for each prior; what it draws does not depend on the others, up to rounding, and PyTorch's own random
    state stays as it is. temperature: divides the logits; below 1 likely codes become more likely.
    Raises ValueError for no prior, priors of different shapes, another number of seeds, count < 1, or a temperature
    not above 0.
    """
    seeds = [int(seed) for seed in seeds]
    shapes = [{name: tuple(weight.shape) for name, weight in prior.state_dict().items()} for prior in priors]
    if not shapes or len(seeds) != len(shapes) or any(one != shapes[0] for one in shapes):
        raise ValueError(f"need priors of one shape, and a seed for each: {len(seeds)} seeds, {len(shapes)} priors")
    if count < 1 or not 0 < temperature < math.inf:
        raise ValueError(f"need count >= 1 and temperature > 0, got {count} and {temperature}")
    weights, _ = stack_module_state(list(priors))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    next_of_each = torch.vmap(lambda weights, before: functional_call(priors[0], weights, before)[:, -1])
    rows = torch.empty(len(priors), count, 0, dtype=torch.int64, device=priors[0].place.device)
    work = count * priors[0].positions * _parameters(weights)
    for _ in range(priors[0].positions):
        with torch_threads_for(work):
            logits = torch.cat([next_of_each(weights, part) for part in rows.split(SAMPLED_AT_ONCE, dim=1)], dim=1)
            shares = (logits / temperature).softmax(dim=-1)
        waits = [torch.empty(shares.shape[1:]).exponential_(generator=own) for own in generators]
        # Code k wins a race of exponential waits at rates p_k with probability p_k.
        drawn = (shares / torch.stack(waits).to(shares)).argmax(dim=-1, keepdim=True)
        rows = torch.cat([rows, drawn], dim=2)
    return rows


def shuffle_positions(grids: Tensor, seed: int) -> Tensor:
    """Grids (N, ...) that trade codes among each other, every place for itself: what places have in common is lost.

    A sample of the prior that knows how often each code occurs at each place, and nothing else.
    Raises ValueError for grids that are empty or hold other than whole numbers.
    """
    rows = as_rows(grids)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(rows.shape, generator=generator).argsort(dim=0).to(rows.device)
    return rows.gather(0, order).reshape(grids.shape)


def mix_positions(grids: Tensor, seed: int, kept: float) -> Tensor:
    """Grids (N, ...) between ideal and shuffled: each place keeps its code with chance `kept`, or has another grid's.

    kept: in [0, 1]; at 1 the grids stay as they are, at 0 they are those of `shuffle_positions`.
    Raises ValueError for another share, and as `shuffle_positions` does.
    """
    if not 0 <= kept <= 1:
        raise ValueError(f"kept must be in [0, 1], got {kept}")
    shuffled = shuffle_positions(grids, seed)
    keeps = torch.rand(grids.shape, generator=torch.Generator().manual_seed(seed)) < kept
    return torch.where(keeps.to(grids.device), grids, shuffled)


def as_rows(grids: Tensor, codes: int | None = None) -> Tensor:
    """Grids (N, ...) as rows (N, T), int64; ValueError unless they hold whole numbers, in 0 .. codes - 1 if given."""
    grids = check_index(grids)
    if grids.ndim < 2:
        raise ValueError(f"need grids (N, ...), got shape {tuple(grids.shape)}")
    low, high = int(grids.min()), int(grids.max())
    if codes is not None and not 0 <= low <= high < codes:
        raise ValueError(f"codes must be in 0 .. {codes - 1}, got {low} .. {high}")
    return grids.flatten(1).long()


def _parameters(weights: dict[str, Tensor]) -> int:
    return sum(one.numel() for one in weights.values())


def _bits(logits: Tensor, rows: Tensor) -> Tensor:
    """-log2 of the probability of each row (N, T), by the logits (N, T, K): (N,)."""
    losses = F.cross_entropy(logits.flatten(0, 1), rows.flatten(), reduction="none")
    return losses.reshape(rows.shape).sum(dim=1) / math.log(2)


# ---------------------------------------------------------------- samples beside real data


def coverage(real: Array, samples: Array, k: int = 5) -> float:
    """Share of the real points that have a sample no farther away than their k-th nearest real neighbour, in [0, 1].

    real: (N, ...), samples: (M, ...), of one size.
    Naeem et al., arXiv:2002.09797. Low if parts of the data have no sample near them; `expected_coverage` if both
    come from one distribution. It does not punish copies: a model that repeats its training data does well.
    Raises ValueError unless 1 <= k < N, and for points of different sizes.
    """
    return float(_within(real, samples, k).any(axis=1).mean())


def density(real: Array, samples: Array, k: int = 5) -> float:
    """Mean number of real neighbourhoods that a sample lies in, over k: at least 0, about 1 for one distribution.

    real: (N, ...), samples: (M, ...), of one size.
    Naeem et al., arXiv:2002.09797. A neighbourhood reaches from a real point to its k-th nearest real neighbour.
    Low if samples lie where no data are. It does not ask for variety: samples that stay where the data are densest
    can exceed 1.
    Raises ValueError unless 1 <= k < N, and for points of different sizes.
    """
    return float(_within(real, samples, k).sum(axis=0).mean() / k)


def expected_coverage(real: int, samples: int, k: int = 5) -> float:
    """Mean coverage of N real points by M samples of the same continuous distribution, whichever it is, in (0, 1).

    1 - (N-1)...(N-k) / ((M+N-1)...(M+N-k)), about 1 - (N / (M + N))^k: a real point is left out if its k nearest
    neighbours, among all others, are real (Naeem et al., arXiv:2002.09797, lemma 2).
    Raises ValueError unless 1 <= k < N and M >= 1.
    """
    if not 1 <= k < real or samples < 1:
        raise ValueError(f"need 1 <= k < real and samples >= 1, got k={k}, real={real}, samples={samples}")
    return 1 - math.prod((real - step) / (samples + real - step) for step in range(1, k + 1))


def spread(points: Array) -> float:
    """Root mean square distance between two different points (N, ...), in their own unit: diversity, if it is large.

    The mean runs over all pairs, and needs none of them: the mean squared distance is twice the total variance,
    2 * sum_d N/(N-1) var_d. So it falls whenever details are lost, with or without a collapse.
    Raises ValueError for fewer than two points.
    """
    flat = _vectors(points)
    if len(flat) < 2:
        raise ValueError(f"need at least two points, got shape {tuple(points.shape)}")
    return math.sqrt(2 * flat.var(axis=0, ddof=1).sum())


def histograms(index: Tensor, size: int) -> Tensor:
    """How often each of `size` codes occurs in each grid: index (N, ...) to counts float32 (N, size).

    Raises ValueError unless the grids hold whole numbers in 0 .. size - 1.
    """
    rows = as_rows(index, size)
    counts = torch.zeros(len(rows), size, device=rows.device)
    return counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=counts.dtype))


def _within(real: Array, samples: Array, k: int) -> np.ndarray:
    """Which samples lie in the neighbourhood of which real point: bool (N, M)."""
    from scipy.spatial.distance import cdist

    x, y = _vectors(real), _vectors(samples)
    if x.shape[1] != y.shape[1] or not 1 <= k < len(x):
        shapes = f"{tuple(real.shape)} and {tuple(samples.shape)}"
        raise ValueError(f"need points of one size and 1 <= k < N, got k={k} and shapes {shapes}")
    among = cdist(x, x)
    np.fill_diagonal(among, np.inf)
    radii = np.partition(among, k - 1, axis=1)[:, k - 1]
    return cdist(x, y) <= radii[:, None]


def _vectors(points: Array) -> np.ndarray:
    points = check_latents(points)
    if points.ndim < 2:
        raise ValueError(f"need points (N, ...), got shape {tuple(points.shape)}")
    return points.detach().flatten(1).double().cpu().numpy()
