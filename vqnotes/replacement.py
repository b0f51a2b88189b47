"""Remedies that act after the step: codes that died, or are about to, start anew among the latents.

They are subclasses of `VectorQuantizer` as those in `vqnotes.remedies`, and combine with them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vqnotes.quantizers import VectorQuantizer, nearest_code, not_negative, share_of, shares
from vqnotes.remedies import AffineCodes, SimVQ


class _Replacing(VectorQuantizer):
    def __init__(self, codebook_size: int, dim: int, **options):
        super().__init__(codebook_size, dim, **options)
        if isinstance(self, SimVQ | AffineCodes):
            raise ValueError(f"{type(self).__name__}: codes that are computed cannot be put in another place")

    def replace(self, stale: Tensor, latents: Tensor) -> None:
        """Puts the stale codes, a mask (K,), onto latents (N, D) evenly spaced in the batch; its order is random.

        An optimiser's memory of a replaced code stays: Adam moves it on by a few times the learning rate.
        """
        place = (stale.cumsum(0) - 1).clamp_min(0) * len(latents) // stale.sum().clamp_min(1)
        fresh = latents[place].to(self.codebook.dtype)
        self.codebook.copy_(torch.where(stale[:, None], fresh, self.codebook))
        if self.update == "ema":
            self.share.copy_(torch.where(stale, 0, self.share))


class RandomRestart(_Replacing):
    """Random restart (Jukebox, arXiv:2005.00341, section 3): codes used too rarely become latents of the batch.

    A code's use is the moving average of how many latents chose it a step. While it is below `threshold`, the code
    is replaced at every step. threshold: in latents a step; the mean over all codes is N/K, so a threshold near
    that replaces codes for ever. memory: share of the old average kept a step, in [0, 1).
    Raises ValueError for a negative threshold or memory out of range.
    """

    def __init__(self, codebook_size: int, dim: int, *, threshold: float = 1.0, memory: float = 0.99, **options):
        super().__init__(codebook_size, dim, **options)
        self.threshold, self.memory = not_negative("threshold", threshold), share_of("memory", memory)
        self.register_buffer("use", torch.full((codebook_size,), 1 / codebook_size))  # as a share of the batch

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

    def __init__(self, codebook_size: int, dim: int, *, threshold: float = 0.1, **options):
        super().__init__(codebook_size, dim, threshold=threshold, **options)

    def limit(self, batch: int) -> float:
        return self.threshold / self.codebook_size

    def replace(self, stale: Tensor, latents: Tensor) -> None:
        super().replace(stale, latents)
        self.use.copy_(torch.where(stale, 1 / self.codebook_size, self.use))


class LeastRecentlyUsed(_Replacing):
    """Replacement by age, as in vqtorch (arXiv:2305.08842): a code nobody chose for `patience` steps starts anew.

    Raises ValueError for patience < 1.
    """

    def __init__(self, codebook_size: int, dim: int, *, patience: int = 20, **options):
        super().__init__(codebook_size, dim, **options)
        if patience < 1:
            raise ValueError(f"patience must be at least 1 step, got {patience}")
        self.patience = patience
        self.register_buffer("idle", torch.zeros(codebook_size))

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        super().place_codes(codes, share)
        self.idle.zero_()

    @torch.no_grad()
    def after_step(self, latents: Tensor, index: Tensor) -> None:
        super().after_step(latents, index)
        self.idle.copy_(torch.where(shares(index, self.idle) > 0, 0, self.idle + 1))
        stale = self.idle >= self.patience
        self.replace(stale, latents.reshape(-1, self.dim))
        self.idle.copy_(torch.where(stale, 0, self.idle))


class OnlineClustering(_Replacing):
    """CVQ-VAE (arXiv:2307.15139, eq. 4 to 6): each code is drawn to an anchor, the more the less it is used.

        e_k <- (1 - a_k) e_k + a_k anchor_k,   a_k = exp(-10 K p_k / (1 - memory) - 0.001)

    p_k is the moving average of the share of latents that chose code k, from 0 on. anchor: "random", latents evenly
    spaced in the batch, whose order is random; or "closest", for each code the nearest latent of the batch, which
    gives codes that lie together the same anchor. memory: share of the old average kept a step, in [0, 1).
    Raises ValueError for another anchor or memory out of range.
    """

    def __init__(self, codebook_size: int, dim: int, *, anchor: str = "random", memory: float = 0.99, **options):
        super().__init__(codebook_size, dim, **options)
        if anchor not in ("random", "closest"):
            raise ValueError(f"anchor must be 'random' or 'closest', got {anchor!r}")
        self.anchor, self.memory = anchor, share_of("memory", memory)
        self.register_buffer("use", torch.zeros(codebook_size))

    @torch.no_grad()
    def after_step(self, latents: Tensor, index: Tensor) -> None:
        super().after_step(latents, index)
        flat = latents.reshape(-1, self.dim).to(self.codebook.dtype)
        self.use.mul_(self.memory).add_(shares(index, self.use), alpha=1 - self.memory)
        pull = torch.exp(-10 * self.codebook_size * self.use / (1 - self.memory) - 1e-3)
        if self.anchor == "closest":
            place = nearest_code(self.codebook, flat)
        else:
            place = torch.arange(self.codebook_size, device=flat.device) * len(flat) // self.codebook_size
        self.codebook.add_(pull[:, None] * (F.embedding(place, flat) - self.codebook))
