"""The vector quantiser in stages, so that a remedy can change one of them; and how its codebook is started."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqnotes._by_index import moving_averages, rows
from vqnotes._checks import check_latents, check_latents_form, check_not_negative, check_share
from vqnotes._combining import Combinable
from vqnotes._in_chunks import can_be_in_chunks, estimate_and_loss
from vqnotes._rounding import wide_type
from vqnotes._threads import torch_threads_for_passes
from vqnotes.kmeans import enough, kmeans
from vqnotes.nearest import nearest_code

__all__ = ["BLIND_INITS", "INITS", "Quantized", "VectorQuantizer"]

BLIND_INITS = ("uniform", "normal")  # need no latents
INITS = (*BLIND_INITS, "data", "kmeans")


class Quantized(NamedTuple):
    """What a quantiser returns: latents_q (..., D), index (...,) int64, loss (a scalar).

    One of several stages, as `remedies.ResidualVQ`, has an index a stage: (..., stages).
    """

    latents_q: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple has a method of that name
    loss: Tensor


class VectorQuantizer(Combinable):
    """Vector quantiser of VQ-VAE (arXiv:1711.00937), in stages that subclasses change one at a time.

        prepare(latents)             what is compared with the codes: here the latents as they are
        codes()                      the codebook as used now, (K, D)
        assign(latents, codes)       which code for each latent
        estimate(latents, chosen)    value forward, gradient back: straight-through
        loss(latents, chosen)        codebook loss + beta * commitment loss (eq. 3)
        after_step(latents, index)   the update outside autograd: moving averages (appendix A.1)

    In all of them latents, and the codes `chosen` for them, are (..., D), codes (K, D), an index (...,) int64.
    Remedies combine by inheritance: each stage passes on to super() what it does not change, and so does
    `__init__`. What a remedy says beside, as which others it does not work with: `_combining.Combinable`.

    codebook_size: K. dim: D. beta: weight of the commitment loss, at least 0.
    update: "gradient" moves the codes by the codebook loss; "ema" moves each code to the moving average of the
    latents that chose it, and the loss keeps only the commitment part.
    decay: share of the old average kept a step, in [0, 1), for "ema" only; None for 0.99.
    Raises ValueError for options out of range, a decay without averages, or remedies that do not work together.
    Squares, and so the loss, are infinite beyond about 1e19 in size.
    """

    codebook: Tensor
    share: Tensor  # with update="ema" only

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        beta: float = 0.25,
        update: str = "gradient",
        decay: float | None = None,
    ):
        super().__init__()
        if codebook_size < 1 or dim < 1:
            raise ValueError(f"codebook_size and dim must be positive, got {codebook_size} and {dim}")
        if update not in ("gradient", "ema"):
            raise ValueError(f"update must be 'gradient' or 'ema', got {update!r}")
        if update != "ema" and decay is not None:
            raise ValueError(f"decay is that of update='ema': got decay={decay} with update={update!r}")
        self.codebook_size, self.dim, self.beta = codebook_size, dim, check_not_negative("beta", beta)
        self.update, self.decay = update, decay
        self.codebook_loss = update == "gradient"  # whether the loss moves the codes
        codebook = torch.empty(codebook_size, dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        if update == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.decay = check_share("decay", 0.99 if decay is None else decay)
            self.register_buffer("codebook", codebook)
            self.register_buffer("share", torch.zeros(codebook_size))  # of a batch's latents, moving average

    def forward(self, latents: Tensor) -> Quantized:
        """latents (..., D) to Quantized(latents_q (..., D), index (...,), loss); updates EMA codes in training."""
        latents = check_latents_form(latents, self.dim)
        latents, codes = self.prepare(latents), self.codes()
        index = self.assign(latents, codes)
        plain = (_method(self.estimate), _method(self.loss)) == PLAIN
        if plain and can_be_in_chunks(latents, codes, index, self.beta):
            latents_q, loss = estimate_and_loss(latents, codes, index, self.beta, self.codebook_loss)
        else:
            chosen = rows(codes.clone(), index)  # of a copy: a remedy may move codes before the way back
            latents_q = self.estimate(latents, chosen)
            wide = wide_type(latents, chosen)
            loss = self.loss(latents.to(wide), chosen.to(wide))
        if self.training:
            self.after_step(latents.detach(), index)
        return Quantized(latents_q, index, loss)

    def prepare(self, latents: Tensor) -> Tensor:
        return latents

    def codes(self) -> Tensor:
        return self.codebook

    def assign(self, latents: Tensor, codes: Tensor) -> Tensor:
        return nearest_code(latents, codes)

    def estimate(self, latents: Tensor, chosen: Tensor) -> Tensor:
        return straight_through(chosen, latents)

    def loss(self, latents: Tensor, chosen: Tensor) -> Tensor:
        commitment = F.mse_loss(latents, chosen.detach())
        if not self.codebook_loss:
            return self.beta * commitment
        return F.mse_loss(chosen, latents.detach()) + self.beta * commitment

    @torch.no_grad()
    def after_step(self, latents: Tensor, index: Tensor) -> None:
        """Moves each EMA code to the average of the latents that chose it, weighted by decay ** age.

        With n_k the share of this batch's latents that chose code k and m_k their mean,
        share_k <- decay * share_k + (1 - decay) * n_k and e_k <- e_k + (1 - decay) * n_k / share_k * (m_k - e_k).
        That is the usual ratio of two moving averages, without smoothing: a code that nobody chose stays put.
        """
        if self.update != "ema" or self.decay is None:
            return
        flat = latents.reshape(-1, self.dim)
        with torch_threads_for_passes(flat.numel() + self.codebook.numel()):
            codes, now = moving_averages(self.codebook, self.share, flat, index.flatten(), len(flat), self.decay)
            self.codebook.copy_(codes)
            self.share.copy_(now)

    def decode(self, index: Tensor) -> Tensor:
        """The codes (..., D) of an index (...,) in 0 .. K-1, as the decoder gets them."""
        return rows(self.codes(), index)

    @torch.no_grad()
    def init_codes(self, how: str, latents: Tensor | None = None, seed: int = 0) -> None:
        """Starts the codebook anew.

        how: "uniform" U(-1/K, 1/K); "normal" N(0, 1); "data" K rows of the latents drawn without replacement;
        "kmeans" the centroids of `kmeans` on the latents.
        latents: (..., D), needed by the last two. With EMA, "kmeans" also starts each code's share at that of its
        cluster; the others start it at 0, so the first latents that choose a code determine it entirely.
        Raises ValueError for another `how` or fewer latents than codes.
        """
        if how not in INITS:
            raise ValueError(f"how must be one of {INITS}, got {how!r}")
        rng = np.random.default_rng(seed)
        shape = self.codebook_size, self.dim
        share = torch.zeros(self.codebook_size)
        if how == "uniform":
            codes = torch.from_numpy(rng.uniform(-1 / self.codebook_size, 1 / self.codebook_size, shape))
        elif how == "normal":
            codes = torch.from_numpy(rng.standard_normal(shape))
        else:
            if latents is None:
                raise ValueError(f"{how!r} needs latents")
            flat = enough(self.prepare(check_latents(latents, self.dim)), self.codebook_size)
            if how == "data":
                codes = flat[torch.from_numpy(rng.choice(len(flat), self.codebook_size, replace=False))]
            else:
                codes, share = kmeans(flat, self.codebook_size, seed)
        self.place_codes(codes, share)

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        """Puts the codes at the given places (K, D); share (K,), of the latents that each has, counts for EMA."""
        self.codebook.copy_(codes)
        if self.update == "ema":
            self.share.copy_(share)


PLAIN = (VectorQuantizer.estimate, VectorQuantizer.loss)  # stages that many latents take together, in chunks


def _method(bound: Callable) -> object:
    """As it stands in the class; None for what was put in its place on one object."""
    return getattr(bound, "__func__", None)


def straight_through(value: Tensor, moved: Tensor) -> Tensor:
    """Exactly `value`, since the bracket is zero; its gradient goes to `moved` unchanged, and not to `value`."""
    return value.detach() + (moved - moved.detach())
