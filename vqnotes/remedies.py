"""Remedies for collapse, each a small subclass that changes one stage of `VectorQuantizer`.

They combine by inheritance, since each passes on to the next what it does not change:

    class Both(CodeExpiry, RotationTrick): ...

What does not work together, or in one order only, says so in `excludes` or `comes_before`, and raises when made.
A step may write into the codebook before the gradient is taken: what uses the codes in a product copies them first.

What is no quantiser is not here: a better start is `init_codes`, a warm-up is an option of `training.fit`, moving
averages are `update="ema"`, and a larger encoder is an option of the models. Codes that start anew when they die are
in `vqnotes.replacement`, codebooks without search or in several stages in `vqnotes.structured`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqnotes.quantizers import VectorQuantizer, not_negative, share_of, straight_through

# ---------------------------------------------------------------- codes(): the codebook is made of something else


class SimVQ(VectorQuantizer):
    """SimVQ (arXiv:2411.02038): codes are C W^T with C fixed and W (D, D) learnt, so that all codes move together.

    C starts as N(0, 1/D) and W as the identity; `init_codes` puts C elsewhere, W back to the identity, a bias to 0.
    bias: adds a learnt vector (D,) to all codes. start: "identity", or "linear" for W, and the bias, as torch's
    `nn.Linear` starts them, U(-1/sqrt(D), 1/sqrt(D)); it lasts until `init_codes`, so `fit` needs init=None for it.

    The authors' code has bias=True and start="linear"; vector-quantize-pytorch start="linear", and the rotation trick
    unless told otherwise: class Both(RotationTrick, SimVQ). The authors' loss multiplies the part that moves W by
    beta and not the commitment, a slip that they keep: four times theirs, for their 0.25, is ours with beta=4.
    Raises ValueError for another start, or update="ema": codes that are computed cannot be averaged.
    """

    def __init__(self, codebook_size: int, dim: int, *, bias: bool = False, start: str = "identity", **options):
        super().__init__(codebook_size, dim, **options)
        need_gradient(self)
        if start not in ("identity", "linear"):
            raise ValueError(f"start must be 'identity' or 'linear', got {start!r}")
        del self.codebook
        self.register_buffer("codebook", torch.randn(codebook_size, dim) * dim**-0.5)
        self.transform = nn.Parameter(torch.eye(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        if start == "linear":
            linear = nn.Linear(dim, dim, bias=bias)
            self.transform, self.bias = linear.weight, linear.bias

    def codes(self) -> Tensor:
        return F.linear(super().codes(), self.transform, self.bias)

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        super().place_codes(codes, share)
        self.transform.copy_(torch.eye(self.dim))
        if self.bias is not None:
            self.bias.zero_()


class AffineCodes(VectorQuantizer):
    """Affine reparametrisation (arXiv:2305.08842, section 5): the codebook keeps the mean and spread of the latents.

        codes = mean_z + std_z / std_c * (c - mean_c)

    in each direction, c the learnt codes with their mean and standard deviation, mean_z and std_z those of the
    latents as moving averages. affine_decay: share of the old average kept a step, in [0, 1).

    The authors' vqtorch has this as an option, with averages of mean_c and std_c too and affine_decay=0.9. What it
    does by itself is `LearntAffineCodes`. Its synchronised commitment (sync_nu) and alternating steps are not here.
    Raises ValueError for update="ema", which follows the latents by itself, and for affine_decay out of range.
    """

    comes_before = {SimVQ: "the map of SimVQ would undo the mean and spread that AffineCodes gives its codes"}

    def __init__(self, codebook_size: int, dim: int, *, affine_decay: float = 0.99, **options):
        super().__init__(codebook_size, dim, **options)
        need_gradient(self)
        self.affine_decay = share_of("affine_decay", affine_decay)
        codes = super().codes().detach()
        self.register_buffer("mean", codes.mean(0))
        self.register_buffer("variance", codes.var(0, correction=0))

    def codes(self) -> Tensor:
        codes = super().codes()
        variance, mean = torch.var_mean(codes.detach(), dim=0, correction=0)
        wide = torch.promote_types(mean.dtype, torch.float32)  # float16 would overflow
        scale = (self.variance.clamp_min(1e-5).to(wide) / variance.clamp_min(1e-5)).sqrt().to(mean.dtype)
        return self.mean + scale * (codes - mean)

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        super().place_codes(codes, share)
        variance, mean = torch.var_mean(super().codes(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.variance.copy_(variance)

    @torch.no_grad()
    def after_step(self, latents: Tensor, index: Tensor) -> None:
        super().after_step(latents, index)
        variance, mean = torch.var_mean(latents.reshape(-1, self.dim).to(self.mean.dtype), dim=0, correction=0)
        for average, now in ((self.mean, mean), (self.variance, variance)):
            average.mul_(self.affine_decay).add_(now, alpha=1 - self.affine_decay)


class LearntAffineCodes(VectorQuantizer):
    """Affine reparametrisation with a learnt scale and shift (arXiv:2305.08842, section 5), as vqtorch has it.

        codes = (1 + affine_lr * s) * c + affine_lr * b

    c the learnt codes, s and b (D,) learnt from 0 on, so that all codes move together. affine_lr: how much faster
    they are learnt than the codes, above 0; vqtorch's example has 10. (Its groups of codes are not here.)
    `init_codes` puts s and b back to 0.
    Raises ValueError for update="ema": codes that are computed cannot be averaged; and for affine_lr not above 0.
    """

    excludes = {AffineCodes: "AffineCodes sets the mean and spread that LearntAffineCodes should learn"}

    def __init__(self, codebook_size: int, dim: int, *, affine_lr: float = 10.0, **options):
        super().__init__(codebook_size, dim, **options)
        need_gradient(self)
        self.affine_lr = positive("affine_lr", affine_lr)
        self.scale, self.shift = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def codes(self) -> Tensor:
        return (1 + self.affine_lr * self.scale) * super().codes() + self.affine_lr * self.shift

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        super().place_codes(codes, share)
        self.scale.zero_()
        self.shift.zero_()


# ---------------------------------------------------------------- prepare() and assign(): another kind of nearness


class CosineCodes(VectorQuantizer):
    """Codes and latents of length 1, as in ViT-VQGAN (arXiv:2110.04627, section 3.1): nearest means largest cosine.

    ||z/|z| - e/|e| ||^2 = 2 - 2 cos(z, e). The paper joins it with few latent dimensions: make the model with a
    small `dim`. A latent of length 0 has no direction and stays 0.
    """

    comes_before = dict.fromkeys(
        (SimVQ, AffineCodes, LearntAffineCodes), "codes must have length 1 after all else was done to them"
    )

    def prepare(self, latents: Tensor) -> Tensor:
        return unit(super().prepare(latents))

    def codes(self) -> Tensor:
        return unit(super().codes().clone())


# ---------------------------------------------------------------- estimate(): another gradient


class RotationTrick(VectorQuantizer):
    """Rotation trick (arXiv:2410.06424, section 4.2): the gradient is turned and scaled as the latent was.

    Forward the code q; backward as if q were |q|/|z| R z, R the rotation that turns z onto q, held constant. With
    u, v the directions of z and q and w that of u + v: R z = z - 2 w (w.z) + 2 v (u.z).
    Where z or q has length 0 or nearly so (below 1e-12), or they point in opposite directions, no rotation is
    defined: straight-through there.
    The trick depends on the origin: shift latents and codes together, and the gradients change.

    The authors' runs have it beside moving averages with decay=0.8 and no replacement of codes; their code turns the
    value too, so that it is the code but for rounding, and has no guard where no rotation is defined.
    """

    def estimate(self, latents: Tensor, chosen: Tensor) -> Tensor:
        z, q = latents.detach(), chosen.detach()
        long_z, long_q = z.norm(dim=-1, keepdim=True), q.norm(dim=-1, keepdim=True)
        u, v, scale = unit(z), unit(q), long_q / long_z
        defined = (u + v).norm(dim=-1, keepdim=True) > 1e-3
        defined &= (long_z > shortest(z)) & (long_q > shortest(q)) & scale.isfinite()
        w = unit(u + v)
        turned = latents - 2 * w * (w * latents).sum(-1, keepdim=True) + 2 * v * (u * latents).sum(-1, keepdim=True)
        turned = turned * torch.where(defined, scale, 1)
        moved = torch.where(defined, turned, latents)
        return straight_through(q, moved)


class DiVeQ(VectorQuantizer):
    """DiVeQ (arXiv:2509.26469): z + |q - z| * unit(q - z + noise), the direction held constant.

    The distance |q - z| carries gradient to latent and code alike, so no other loss is needed: the codebook loss is
    left out, and beta is 0 unless given. In training the value is off the code by noise; in evaluation, or with
    variance=0, it is the code, with the gradient that it has without noise.
    variance: of the noise in each direction, in the squared units of the latents, at least 0.

    The authors' code has a standard deviation of 0.001 (its noise_var=0.001 is used as one), as the default here, and
    passes no gradient in evaluation; vector-quantize-pytorch has variance=5e-3. The authors always replace codes that
    are not chosen: class Both(CodeSplitting, DiVeQ), from `vqnotes.replacement`.
    Under `fit_many` the noise of a run depends on the runs beside it.
    Raises ValueError for a negative variance, or update="ema".
    """

    excludes = {RotationTrick: "RotationTrick and DiVeQ both say what the gradient is: take one of them"}

    def __init__(self, codebook_size: int, dim: int, *, variance: float = 1e-6, beta: float = 0.0, **options):
        super().__init__(codebook_size, dim, beta=beta, **options)
        need_gradient(self)
        self.noise_variance, self.codebook_loss = not_negative("variance", variance), False

    def estimate(self, latents: Tensor, chosen: Tensor) -> Tensor:
        gap, noisy = chosen - latents, self.training and self.noise_variance > 0
        noise = self.noise_variance**0.5 * torch.randn_like(gap) if noisy else 0
        moved = latents + gap.norm(dim=-1, keepdim=True) * unit((gap + noise).detach())
        return moved if noisy else straight_through(chosen, moved)  # without noise exactly the code


# ---------------------------------------------------------------- loss(): something more to make small


class OrthogonalCodes(VectorQuantizer):
    """Orthogonality loss (arXiv:2112.00384, eq. 2): codes should point in different directions.

    loss + orthogonal_weight * (sum_ij cos(e_i, e_j)^2 / K^2 - 1 / K); the bracket is 0 for orthogonal codes, at most
    1 - 1/K.
    With U (K, D) the codes' directions the sum is |U U^T|^2 = |U^T U|^2, and the second product is only (D, D).
    Raises ValueError for a negative weight, or update="ema", which no loss can move.
    """

    def __init__(self, codebook_size: int, dim: int, *, orthogonal_weight: float = 10.0, **options):
        super().__init__(codebook_size, dim, **options)
        need_gradient(self)
        self.orthogonal_weight = not_negative("orthogonal_weight", orthogonal_weight)

    def loss(self, latents: Tensor, chosen: Tensor) -> Tensor:
        directions = unit(self.codes().clone())
        alike = (directions.T @ directions).square().sum() / self.codebook_size**2 - 1 / self.codebook_size
        return super().loss(latents, chosen) + self.orthogonal_weight * alike


class EntropyLoss(VectorQuantizer):
    """Entropy loss, as in MaskGIT's tokenisers and LFQ (arXiv:2310.05737, eq. 5): sure choices, all codes in use.

    loss + entropy_weight * (mean of H(p(.|z)) - H(mean of p(.|z))), p(k|z) proportional to exp(-||z - e_k||^2 / T),
    with T = temperature * (mean squared distance to the nearest code), held constant, so that it means the same at
    any scale; or T = temperature with relative=False, as in MaskGIT's code, which has temperature=0.01.
    The bracket, in nats, is at least -log K. It sends gradients to latents and, with update="gradient", to all codes.
    Raises ValueError for a negative weight or a temperature not above 0.
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        entropy_weight: float = 0.1,
        temperature: float = 1.0,
        relative: bool = True,
        **options,
    ):
        super().__init__(codebook_size, dim, **options)
        self.entropy_weight = not_negative("entropy_weight", entropy_weight)
        self.temperature, self.relative = positive("temperature", temperature), relative

    def loss(self, latents: Tensor, chosen: Tensor) -> Tensor:
        scale = self.temperature
        if self.relative:
            scale = scale * (latents - chosen).detach().square().sum(-1).mean().clamp_min(1e-12)
        codes, flat = self.codes().to(latents.dtype, copy=True), latents.reshape(-1, self.dim)
        scores = (flat @ codes.T - codes.square().sum(1) / 2) * (2 / scale)  # -||z - e||^2 / T, but for z alone
        return super().loss(latents, chosen) + self.entropy_weight * entropy_gap(scores)


class SpreadLatents(VectorQuantizer):
    """Rank regulariser: the variance and covariance terms of VICReg (arXiv:2105.04906, eq. 1 and 4) on the latents.

    loss + spread_weight * (variance_weight * mean_i max(0, 1 - sqrt(C_ii + 1e-4)) + sum_{i != j} C_ij^2 / D), C the
    covariance (D, D) of the batch's latents. The bracket is 0 if they vary by 1 in every dimension, independently,
    whatever the inputs vary by; unit latents, as `CosineCodes` makes them, vary by 1/sqrt(D) at most.
    variance_weight: of the variance beside the covariance. VICReg has 25; its code halves that for each of its two
    batches, 12.5.
    Raises ValueError for a negative weight.
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        spread_weight: float = 1.0,
        variance_weight: float = 1.0,
        **options,
    ):
        super().__init__(codebook_size, dim, **options)
        self.spread_weight = not_negative("spread_weight", spread_weight)
        self.variance_weight = not_negative("variance_weight", variance_weight)

    def loss(self, latents: Tensor, chosen: Tensor) -> Tensor:
        flat = latents.reshape(-1, self.dim)
        centered = flat - flat.mean(0)
        covariance = centered.T @ centered / max(1, len(flat) - 1)
        variance = covariance.diagonal()
        lacking = (1 - (variance + 1e-4).sqrt()).relu().mean()
        shared = (covariance - variance.diag_embed()).square().sum() / self.dim
        return super().loss(latents, chosen) + self.spread_weight * (self.variance_weight * lacking + shared)


def entropy_gap(*scores: Tensor) -> Tensor:
    """Mean entropy of softmax(scores) minus the entropy of its mean, in nats, in [-log K, 0]: scores (N, K).

    Two scores (N, I) and (N, J) are those of choices made independently, that together make one of K = I * J.
    """
    logs = [one.log_softmax(dim=-1) for one in scores]
    shares = [one.exp() for one in logs]
    of_each = -sum((share * log).sum(-1).mean() for share, log in zip(shares, logs))
    mean = shares[0].mean(0) if len(scores) == 1 else shares[0].T @ shares[1] / len(shares[0])
    return of_each + (mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()


def unit(x: Tensor) -> Tensor:
    """Vectors (..., D) divided by their length; 0 stays 0."""
    return F.normalize(x, dim=-1, eps=shortest(x))


def positive(name: str, value: float) -> float:
    """The value; ValueError if it is not above 0, infinite or NaN."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0, got {value}")
    return value


def shortest(x: Tensor) -> float:
    """The length down to which a vector of this float type has a direction."""
    return max(1e-12, torch.finfo(x.dtype).tiny)  # float16 has no 1e-12


def need_gradient(quantizer: VectorQuantizer) -> None:
    """Raises ValueError for a quantiser whose codes, or what they are made of, no moving average can move."""
    if quantizer.update != "gradient":
        raise ValueError(f"{type(quantizer).__name__} needs update='gradient', got {quantizer.update!r}")
