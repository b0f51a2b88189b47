"""Vector quantisers: the nearest code, and a quantiser whose five stages can be changed one at a time."""

import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCORES_PER_CHUNK = 2**20  # distances held at once: 4 MB in float32, about a processor's cache; 64 times on a GPU
LARGEST = 1e150  # in size: squares of more overflow even in float64
INITS = ("uniform", "normal", "data", "kmeans")


class Quantized(NamedTuple):
    """What a quantiser returns: latents_q (..., D), index (...,) int64, loss (a scalar)."""

    latents_q: Tensor
    index: Tensor
    loss: Tensor


def check_latents(latents: Tensor, dim: int | None = None) -> None:
    """Raises ValueError unless latents are (..., dim), floating point, not empty, finite, and below 1e150 in size."""
    _check_latents_form(latents, dim)
    if bad := int((~(latents.abs() < LARGEST)).sum()):
        raise ValueError(f"latents hold {bad} NaN or infinite values, or above 1e150, shape {tuple(latents.shape)}")


def check_codebook(codebook: Tensor) -> None:
    """Raises ValueError unless the codebook is (K, D), floating point, not empty, finite, and below 1e150 in size."""
    _check_codebook_form(codebook)
    if not (codebook.abs() < LARGEST).all():
        raise ValueError(f"codebook holds NaN or infinite values, or above 1e150, shape {tuple(codebook.shape)}")


def _check_latents_form(latents: Tensor, dim: int | None) -> None:
    if not (isinstance(latents, Tensor) and latents.is_floating_point() and latents.ndim and latents.numel()):
        raise ValueError(f"latents must be floating point (..., D) and not empty, got {_shown(latents)}")
    if dim is not None and latents.shape[-1] != dim:
        raise ValueError(f"latents have {latents.shape[-1]} dimensions, codes have {dim}: {tuple(latents.shape)}")


def _check_codebook_form(codes: Tensor) -> None:
    if not (isinstance(codes, Tensor) and codes.is_floating_point() and codes.ndim == 2 and codes.numel()):
        raise ValueError(f"codebook must be floating point (K, D) and not empty, got {_shown(codes)}")


def _shown(x) -> str:
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else str(type(x))


def nearest_code(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the code at the smallest Euclidean distance from each latent; of equal ones, the lowest.

    latents (..., D), codebook (K, D), any float dtype. Returns int64 (...,) in 0 .. K-1.
    Raises ValueError for empty, NaN, infinite or mismatched input. In float64, differences below 1e-150 are none.

    argmin_k ||z - e_k||^2 = argmin_k (||e_k||^2 / 2 - z.e_k), one matrix product. Far from the origin that
    difference of large numbers loses the small distance it should give, so both sides are first shifted to the
    centre of the codebook; and where the best two codes are closer than rounding can tell apart, that latent is
    measured again by plain differences in float64. Works in chunks of latents: memory does not grow with N * K.
    Half precision counts in float32, also under autocast; on a GPU, TF32 products must be off (PyTorch's default).
    Under `torch.vmap` its runs are searched together.
    """
    _check_codebook_form(codebook)
    _check_latents_form(latents, codebook.shape[1])
    return _NearestCode.apply(latents, codebook)


class _NearestCode(torch.autograd.Function):
    """The search as one operation without gradient, so that `torch.vmap` can be told how R of them are done."""

    @staticmethod
    def forward(latents: Tensor, codebook: Tensor) -> Tensor:
        return _nearest_in_each(latents[None], codebook[None])[0]

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info, in_dims: tuple, latents: Tensor, codebook: Tensor) -> tuple[Tensor, int]:
        each = [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip((latents, codebook), in_dims)
        ]
        return _nearest_in_each(*each), 0


@torch.no_grad()
def _nearest_in_each(latents: Tensor, codebooks: Tensor) -> Tensor:
    """`nearest_code` for R pairs: latents (R, ..., D), codebooks (R, K, D) to int64 (R, ...)."""
    dtype = torch.promote_types(torch.promote_types(latents.dtype, codebooks.dtype), torch.float32)
    center = codebooks.to(dtype).mean(dim=1, keepdim=True)
    codes = codebooks.to(dtype) - center
    half_squares = codes.square().sum(dim=2)[:, None] / 2
    runs, size, dim = codes.shape
    longest = codes.norm(dim=2).amax(dim=1)[:, None, None]
    rounding, tiny = 4 * (dim + 2) * torch.finfo(dtype).eps, torch.finfo(dtype).tiny

    flat = latents.reshape(runs, -1, dim)
    index = torch.empty(flat.shape[:2], dtype=torch.int64, device=flat.device)
    rows = min(max(1, SCORES_PER_CHUNK * (1 if flat.is_cpu else 64) // (runs * size)), flat.shape[1])
    buffer = torch.empty(runs, rows, size, dtype=dtype, device=flat.device)
    for start in range(0, flat.shape[1], rows):
        part = flat[:, start : start + rows]
        z = part.to(dtype) - center
        with torch.autocast(flat.device.type, enabled=False):
            scores = torch.baddbmm(half_squares, z, codes.mT, alpha=-1, out=buffer[:, : z.shape[1]])
        lowest, best = scores.min(dim=2, keepdim=True)
        second = scores.scatter_(2, best, torch.inf).amin(dim=2, keepdim=True)
        largest = longest * (z.norm(dim=2, keepdim=True) + longest)  # that a score, or a part of it, can become
        sure = (second - lowest > rounding * largest + tiny)[..., 0]
        best, unsure = best[..., 0], ~sure  # what is NaN, infinite, overflows or underflows is never sure
        for run in unsure.any(dim=1).nonzero()[:, 0].tolist():
            again = unsure[run]
            best[run, again] = _nearest_by_differences(part[run, again], codebooks[run])
        index[:, start : start + rows] = best
    return index.reshape(latents.shape[:-1])


def _nearest_by_differences(latents: Tensor, codebook: Tensor) -> Tensor:
    check_latents(latents)
    check_codebook(codebook)
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(latents.double(), codebook.double(), compute_mode=mode).argmin(dim=1)


class VectorQuantizer(nn.Module):
    """Vector quantiser of VQ-VAE (arXiv:1711.00937), in stages that subclasses change one at a time.

        prepare(latents)             what is compared with the codes: here the latents as they are
        codes()                      the codebook as used now, (K, D)
        assign(latents, codes)       which code for each latent
        estimate(latents, chosen)    value forward, gradient back: straight-through
        loss(latents, chosen)        codebook loss + beta * commitment loss (eq. 3)
        after_step(latents, index)   the update outside autograd: moving averages (appendix A.1)

    codebook_size: K. dim: D. beta: weight of the commitment loss, at least 0.
    update: "gradient" moves the codes by the codebook loss; "ema" moves each code to the moving average of the
    latents that chose it, and the loss keeps only the commitment part.
    decay: share of the old average kept a step, in [0, 1) ("ema" only).
    Raises ValueError for options out of range. Squares, and so the loss, are infinite beyond about 1e19 in size.
    """

    def __init__(
        self, codebook_size: int, dim: int, *, beta: float = 0.25, update: str = "gradient", decay: float = 0.99
    ):
        super().__init__()
        if codebook_size < 1 or dim < 1:
            raise ValueError(f"codebook_size and dim must be positive, got {codebook_size} and {dim}")
        if update not in ("gradient", "ema"):
            raise ValueError(f"update must be 'gradient' or 'ema', got {update!r}")
        self.codebook_size, self.dim, self.update = codebook_size, dim, update
        self.beta, self.decay = not_negative("beta", beta), share_of("decay", decay)
        codebook = torch.empty(codebook_size, dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        if update == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("share", torch.zeros(codebook_size))  # of a batch's latents, moving average

    def forward(self, latents: Tensor) -> Quantized:
        """latents (..., D) to Quantized(latents_q (..., D), index (...,), loss); updates EMA codes in training."""
        _check_latents_form(latents, self.dim)
        latents, codes = self.prepare(latents), self.codes()
        index = self.assign(latents, codes)
        chosen = F.embedding(index, codes)
        wide = torch.promote_types(torch.promote_types(latents.dtype, chosen.dtype), torch.float32)
        loss = self.loss(latents.to(wide), chosen.to(wide))
        quantized = Quantized(self.estimate(latents, chosen), index, loss)
        if self.training:
            self.after_step(latents.detach(), index)
        return quantized

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
        if self.update == "ema":
            return self.beta * commitment
        return F.mse_loss(chosen, latents.detach()) + self.beta * commitment

    @torch.no_grad()
    def after_step(self, latents: Tensor, index: Tensor) -> None:
        """Moves each EMA code to the average of the latents that chose it, weighted by decay ** age.

        With n_k the share of this batch's latents that chose code k and m_k their mean,
        share_k <- decay * share_k + (1 - decay) * n_k and e_k <- e_k + (1 - decay) * n_k / share_k * (m_k - e_k).
        That is the usual ratio of two moving averages, without smoothing: a code that nobody chose stays put.
        """
        if self.update != "ema":
            return
        flat, index = latents.reshape(-1, self.dim).to(self.codebook.dtype), index.reshape(-1)
        hits = shares(index, self.share)
        places = index[:, None].expand_as(flat)
        sums = torch.zeros_like(self.codebook).scatter_add_(0, places, flat * (1 / len(index)))
        self.share.mul_(self.decay).add_(hits, alpha=1 - self.decay)
        step = (1 - self.decay) / self.share.clamp_min(torch.finfo(self.share.dtype).tiny)
        self.codebook.add_(step[:, None] * (sums - hits[:, None] * self.codebook))

    @torch.no_grad()
    def init_codes(self, how: str, latents: Tensor | None = None, seed: int = 0) -> None:
        """Starts the codebook anew.

        how: "uniform" U(-1/K, 1/K); "normal" N(0, 1); "data" K rows of the latents drawn without replacement;
        "kmeans" the centroids of k-means on the latents (scikit-learn; k-means++ start).
        latents: (..., D), needed by the last two. With EMA, "kmeans" also starts each code's share at that of its
        cluster; the others start it at 0, so the first latents that choose a code determine it entirely.
        Raises ValueError for another `how` or fewer latents than codes.
        """
        if how not in INITS:
            raise ValueError(f"how must be one of {INITS}, got {how!r}")
        rng = np.random.default_rng(seed)
        shape, share = (self.codebook_size, self.dim), np.zeros(self.codebook_size)
        if how == "uniform":
            codes = rng.uniform(-1 / self.codebook_size, 1 / self.codebook_size, shape)
        elif how == "normal":
            codes = rng.standard_normal(shape)
        else:
            if latents is None:
                raise ValueError(f"{how!r} needs latents")
            check_latents(latents, self.dim)
            flat = _enough(self.prepare(latents), self.codebook_size)
            if how == "data":
                codes = flat[torch.from_numpy(rng.choice(len(flat), self.codebook_size, replace=False))]
            else:
                codes, share = kmeans(flat, self.codebook_size, seed)
        self.place_codes(torch.as_tensor(codes), torch.as_tensor(share))

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        """Puts the codes at the given places (K, D); share (K,), of the latents that each has, counts for EMA."""
        self.codebook.copy_(codes)
        if self.update == "ema":
            self.share.copy_(share)


def straight_through(value: Tensor, moved: Tensor) -> Tensor:
    """Exactly `value`, since the bracket is zero; its gradient goes to `moved` unchanged, and not to `value`."""
    return value.detach() + (moved - moved.detach())


def shares(index: Tensor, like: Tensor) -> Tensor:
    """The share of all indices (...,) that each code has, shaped as `like` (K,)."""
    flat = index.reshape(-1)
    return torch.zeros_like(like).scatter_add_(0, flat, torch.full_like(flat, 1 / len(flat), dtype=like.dtype))


def not_negative(name: str, value: float) -> float:
    """The value; ValueError if it is below 0, infinite or NaN."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be at least 0, got {value}")
    return value


def share_of(name: str, value: float) -> float:
    """The value; ValueError if it is not in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
    return value


def _enough(latents: Tensor, codebook_size: int) -> Tensor:
    """The latents as rows (N, D); ValueError if there are fewer than codes."""
    flat = latents.reshape(-1, latents.shape[-1])
    if len(flat) < codebook_size:
        raise ValueError(f"{len(flat)} latents are too few for {codebook_size} codes")
    return flat


def kmeans(latents: Tensor, codebook_size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """k-means by scikit-learn: the centroids (K, D) and the share (K,) of the latents (..., D) in each cluster.

    Above 1,024 codes it starts from random latents and makes 10 steps, since k-means++ takes time K^2.
    Raises ValueError for unusable latents or fewer latents than codes.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    check_latents(latents)
    points = _enough(latents.detach(), codebook_size).to("cpu", torch.float64).numpy()  # twice as fast as float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct latents than codes: some codes coincide
        start, steps = ("random", 10) if codebook_size > 1024 else ("k-means++", 50)
        fitted = KMeans(codebook_size, init=start, n_init=1, max_iter=steps, random_state=seed).fit(points)
    share = np.bincount(fitted.labels_, minlength=codebook_size) / len(points)
    return torch.from_numpy(fitted.cluster_centers_).to(latents), torch.from_numpy(share).to(latents)
