"""after_step(): codes that died, or are about to, start anew among the latents."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqnotes._by_index import rows, shares
from vqnotes._checks import check_not_negative, check_share
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies.codes import AffineCodes, LearntAffineCodes, SimVQ

__all__ = ["CodeExpiry", "CodeSplitting", "LeastRecentlyUsed", "OnlineClustering", "RandomRestart"]

ONE_RULE = "one rule alone can say which codes start anew"


class _Replacing(VectorQuantizer):
    """Codes that start anew on latents of the batch, drawn at random: each latent is as likely, none comes twice.

    Where there are fewer latents than codes to place, they are used again with noise, so that no codes are clones:
    it is relative to a latent's length, and those of length 0 get none.
    """

    excludes = dict.fromkeys(
        (SimVQ, AffineCodes, LearntAffineCodes), "codes that are computed cannot be put in another place"
    )
    draws: Tensor
    noise = 0.0  # on all latents that are drawn: its standard deviation in each direction, relative to their length

    def __init__(self, *size: int, **options: Any):
        super().__init__(*size, **options)
        with torch.random.fork_rng(devices=[]):  # weights that are made next are the same as with any quantiser
            start = torch.randint(2**32, ())
        self.register_buffer("draws", start)  # their count, from a random number on

    def replace(self, stale: Tensor, latents: Tensor) -> None:
        """Puts the stale codes, a mask (K,), onto latents drawn from (N, D).

        An EMA code's share starts at 0: the first latents that choose it determine it entirely. An optimiser's memory
        of a replaced code stays: Adam moves it on, in each direction by up to 4 times the learning rate in all after
        20 steps without a latent, by up to 30 times if one chose it just before.
        """
        fresh = self.draw_latents(stale.cumsum(0) - 1, latents)
        self.codebook.copy_(torch.where(stale[:, None], fresh, self.codebook))
        if self.update == "ema":
            self.share.copy_(torch.where(stale, 0, self.share))

    def draw_latents(self, rank: Tensor, latents: Tensor) -> Tensor:
        """One of the latents (N, D) for each rank (K,), as (K, D): those of rank 0 to N - 1 are all different.

        What the ranks from N on get is given out already. It has normal noise of 0.01 / sqrt(D) times its length in
        each direction. (Jukebox's code adds 0.01 / sqrt(D), whatever the scale; vqtorch's 0.01 times the length.)
        """
        self.draws.add_(1)
        count = len(latents)
        order = uniform(self.draws, count).topk(min(count, self.codebook_size)).indices
        chosen = latents[order[rank % len(order)]].to(self.codebook.dtype)
        if self.noise == 0 and self.codebook_size <= count:
            return chosen
        normal = torch.special.ndtri(uniform(self.draws, count + chosen.numel())[count:]).view_as(chosen)
        scale = torch.where(rank < count, self.noise, max(self.noise, 0.01 / math.sqrt(self.dim)))
        return chosen + (scale[:, None] * normal).to(chosen.dtype) * chosen.norm(dim=1, keepdim=True)


class RandomRestart(_Replacing):
    """Random restart (Jukebox, arXiv:2005.00341, section 3): codes used too rarely become latents of the batch.

    A code's use is the moving average of how many latents chose it a step. While it is below `threshold`, the code
    is replaced at every step. threshold: in latents a step; the mean over all codes is N/K, so a threshold near
    that replaces codes for ever. memory: share of the old average kept a step, in [0, 1).
    Raises ValueError for a negative threshold or memory out of range.
    """

    use: Tensor

    def __init__(self, *size: int, threshold: float = 1.0, memory: float = 0.99, **options: Any):
        super().__init__(*size, **options)
        self.threshold, self.memory = check_not_negative("threshold", threshold), check_share("memory", memory)
        average = torch.full((self.codebook_size,), 1 / self.codebook_size)
        self.register_buffer("use", average)  # as a share of the batch

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        super().place_codes(codes, share)
        self.use.fill_(1 / self.codebook_size)

    @torch.no_grad()
    def after_step(self, latents: Tensor, index: Tensor) -> None:
        super().after_step(latents, index)
        flat = latents.reshape(-1, self.dim)
        self.use.mul_(self.memory).add_(shares(index, self.use), alpha=1 - self.memory)
        self.replace(self.use < self.limit(len(flat)), flat)

    def limit(self, batch: int) -> float:
        """The share of a batch of that many latents below which a code is replaced."""
        return self.threshold / batch


class CodeExpiry(RandomRestart):
    """Expiry of dead codes (SoundStream, arXiv:2107.03312, section 3.3), with a threshold that fits any batch.

    As `RandomRestart`, but the threshold is relative to the mean use N/K, and a replaced code counts as used
    averagely again, so that it has time to find latents of its own.
    """

    def __init__(self, *size: int, threshold: float = 0.1, **options: Any):
        super().__init__(*size, threshold=threshold, **options)

    def limit(self, batch: int) -> float:
        return self.threshold / self.codebook_size

    def replace(self, stale: Tensor, latents: Tensor) -> None:
        super().replace(stale, latents)
        self.use.copy_(torch.where(stale, 1 / self.codebook_size, self.use))


class LeastRecentlyUsed(_Replacing):
    """Replacement by age, as in vqtorch (arXiv:2305.08842): a code nobody chose for `patience` steps starts anew.

    patience: in steps. None for 20 (the number of vqtorch's example), or for 20 K/N steps where the batch has fewer
    latents than codes: that is how long it takes N latents a step to choose every code 20 times in the mean, and a
    code of average use is idle that long by chance once in exp(20), 5e8, times.
    noise: what a replaced code is off its latent, the standard deviation in each direction relative to the latent's
    length; 0.01 as in vqtorch, 0 for the latent itself (but see where there are fewer latents than codes to place).
    Raises ValueError for patience < 1 or a negative noise.
    """

    excludes = {RandomRestart: ONE_RULE}
    idle: Tensor

    def __init__(self, *size: int, patience: float | None = None, noise: float = 0.01, **options: Any):
        super().__init__(*size, **options)
        if patience is not None and not patience >= 1:
            raise ValueError(f"patience must be at least 1 step, got {patience}")
        self.patience, self.noise = patience, check_not_negative("noise", noise)
        steps = torch.zeros(self.codebook_size, dtype=torch.int64)  # bfloat16 counts to 256 only
        self.register_buffer("idle", steps)

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        super().place_codes(codes, share)
        self.idle.zero_()

    @torch.no_grad()
    def after_step(self, latents: Tensor, index: Tensor) -> None:
        super().after_step(latents, index)
        self.idle.copy_(torch.where(shares(index, self.codebook[:, 0]) > 0, 0, self.idle + 1))
        stale = self.idle >= self.limit(index.numel())
        self.replace(stale, latents.reshape(-1, self.dim))
        self.idle.copy_(torch.where(stale, 0, self.idle))

    def limit(self, batch: int) -> float:
        """The idle steps after which a code is replaced, with batches of that many latents."""
        return max(20, math.ceil(20 * self.codebook_size / batch)) if self.patience is None else self.patience


class OnlineClustering(_Replacing):
    """CVQ-VAE (arXiv:2307.15139, as reported): each code is drawn to an anchor, the more the less it is used.

        e_k <- (1 - a_k) e_k + a_k anchor_k,   a_k = exp(-10 K p_k / (1 - memory) - 0.001)

    p_k is the moving average of the share of latents that chose code k; it starts at 0, or at the share of its
    cluster where k-means placed the codes. An EMA code's own share counts (1 - a_k) times from then on.
    anchor: "random", latents of the batch, none twice; "probrandom", a latent for each code by itself, drawn with
    probability proportional to exp(-|z - e_k|^2), in the units of the latents; or "closest", for each code the
    nearest latent. The last two may give several codes one anchor, and look at all distances once more. memory: share
    of the old average kept, in [0, 1).

    The authors' code compares by cosine, if not told otherwise, as `CosineCodes` does (combine the two), and takes
    "probrandom", then with exp(cos) where that gives exp(2 cos). Its "random" draws with repetition, and from a pool
    of earlier batches too where one has fewer latents than codes. Its contrastive loss, an option, is not here.
    Raises ValueError for another anchor or memory out of range.
    """

    excludes = {RandomRestart: ONE_RULE, LeastRecentlyUsed: ONE_RULE}
    use: Tensor

    def __init__(self, *size: int, anchor: str = "random", memory: float = 0.99, **options: Any):
        super().__init__(*size, **options)
        if anchor not in ("random", "probrandom", "closest"):
            raise ValueError(f"anchor must be 'random', 'probrandom' or 'closest', got {anchor!r}")
        self.anchor, self.memory = anchor, check_share("memory", memory)
        self.register_buffer("use", torch.zeros(self.codebook_size))

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        super().place_codes(codes, share)
        self.use.copy_(share)

    @torch.no_grad()
    def after_step(self, latents: Tensor, index: Tensor) -> None:
        super().after_step(latents, index)
        flat = latents.reshape(-1, self.dim).to(self.codebook.dtype)
        self.use.mul_(self.memory).add_(shares(index, self.use), alpha=1 - self.memory)
        pull = torch.exp(-10 * self.codebook_size * self.use / (1 - self.memory) - 1e-3)
        self.codebook.add_(pull[:, None] * (self.anchors(flat) - self.codebook))
        if self.update == "ema":
            self.share.mul_(1 - pull)

    def anchors(self, latents: Tensor) -> Tensor:
        """Where each code is drawn to, (K, D)."""
        if self.anchor == "random":
            return self.draw_latents(torch.arange(self.codebook_size, device=latents.device), latents)
        if self.anchor == "closest":
            return F.embedding(nearest_code(self.codes(), latents), latents)
        self.draws.add_(1)
        return F.embedding(near_at_random(latents, self.codes(), uniform(self.draws, self.codebook_size)), latents)


class CodeSplitting(_Replacing):
    """Replacement as in DiVeQ's code (arXiv:2509.26469): codes hardly chosen start anew beside codes that are.

    Every `interval` steps, codes that were chosen in less than `threshold` of these steps are put onto codes that the
    batch's latents chose, each as likely as latents chose it, plus noise; with the defaults, codes that nobody chose
    in 100 steps. noise: its standard deviation in each direction, relative to the code's length.

    The authors' code draws by the number of steps in which a code was chosen, not by the latents of the last one, and
    its noise of 1e-9 is none in float32 (noise=0): a copy gets latents only once its original has moved.
    Raises ValueError for interval < 1, a threshold not in [0, 1), or a negative noise.
    """

    excludes = {RandomRestart: ONE_RULE, LeastRecentlyUsed: ONE_RULE, OnlineClustering: ONE_RULE}
    steps: Tensor
    chosen_in: Tensor

    def __init__(
        self,
        *size: int,
        interval: int = 100,
        threshold: float = 0.01,
        noise: float = 0.01,
        **options: Any,
    ):
        super().__init__(*size, **options)
        if interval < 1:
            raise ValueError(f"interval must be at least 1 step, got {interval}")
        self.interval, self.threshold = interval, check_share("threshold", threshold)
        self.noise = check_not_negative("noise", noise)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # since codes were last replaced
        self.register_buffer("chosen_in", torch.zeros(self.codebook_size, dtype=torch.int64))  # so many of them

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        super().place_codes(codes, share)
        self.steps.zero_()
        self.chosen_in.zero_()

    @torch.no_grad()
    def after_step(self, latents: Tensor, index: Tensor) -> None:
        super().after_step(latents, index)
        self.steps.add_(1)
        self.chosen_in.add_(shares(index, self.codebook[:, 0]) > 0)
        due = self.steps >= self.interval
        rare = self.chosen_in < self.threshold * self.interval
        self.replace(due & rare, rows(self.codes(), index.flatten()))
        self.steps.mul_(~due)
        self.chosen_in.mul_(~due)


def near_at_random(latents: Tensor, codes: Tensor, numbers: Tensor, at_once: int = 2**22) -> Tensor:
    """For each code (K, D) the place of one of the latents (N, D), with probability softmax over n of -|z_n - e_k|^2.

    numbers: (K,), uniform in (0, 1), each decides for one code. at_once: at most so many distances are held a run.
    """
    center = latents.mean(0)  # a shift of everything changes nothing
    wide = torch.promote_types(latents.dtype, torch.float32)
    z, e = (latents - center).to(wide), (codes - center).to(wide)
    few, places = max(1, at_once // len(z)), []
    for part, number in zip(e.split(few), numbers.split(few)):
        reached = (2 * part @ z.T - z.square().sum(1)).softmax(1).cumsum(1)
        places.append(torch.searchsorted(reached, number[:, None] * reached[:, -1:])[:, 0])
    return torch.cat(places).clamp_max(len(z) - 1)  # of infinite distances any


def uniform(state: Tensor, count: int) -> Tensor:
    """`count` random numbers (count,), uniform in (0, 1), that depend on the whole number `state` alone.

    Torch's own would be others for a run in `fit_many` than for the same run by itself. These are a hash of
    state and place: two rounds of shift and product, with constants of https://github.com/skeeto/hash-prospector.
    """
    start = _hashed(state % 2**32)
    numbers = _hashed((start + torch.arange(count, device=state.device)) % 2**32)
    return ((numbers >> 9) + 0.5) / 2**23  # as many bits as float32 has between 0 and 1, without either


def _hashed(x: Tensor) -> Tensor:
    """Whole numbers in [0, 2^32), mixed: a bit that changes before changes each bit after in half of all cases."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD % 2**32
    x = (x ^ (x >> 15)) * 0x735A2D97 % 2**32
    return x ^ (x >> 15)
