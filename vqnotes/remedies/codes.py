"""codes(), prepare(), assign(): the codebook is made of something else, or nearness is another.

Codes that are computed follow their map, so all of them move together, those that nobody chose too.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqnotes._checks import check_positive, check_share
from vqnotes.quantizers import VectorQuantizer

__all__ = ["AffineCodes", "CosineCodes", "LearntAffineCodes", "SimVQ"]


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

    transform: Tensor
    offset: Tensor | None

    def __init__(self, *size: int, bias: bool = False, start: str = "identity", **options: Any):
        super().__init__(*size, **options)
        need_gradient(self)
        if start not in ("identity", "linear"):
            raise ValueError(f"start must be 'identity' or 'linear', got {start!r}")
        self.bias, self.start = bias, start
        del self.codebook
        self.register_buffer("codebook", torch.randn(self.codebook_size, self.dim) * self.dim**-0.5)
        self.transform = nn.Parameter(torch.eye(self.dim))
        self.offset = nn.Parameter(torch.zeros(self.dim)) if bias else None
        if start == "linear":
            linear = nn.Linear(self.dim, self.dim, bias=bias)
            self.transform, self.offset = linear.weight, linear.bias

    def codes(self) -> Tensor:
        return F.linear(super().codes(), self.transform, self.offset)

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        super().place_codes(codes, share)
        self.transform.copy_(torch.eye(self.dim))
        if self.offset is not None:
            self.offset.zero_()


class AffineCodes(VectorQuantizer):
    """Affine reparametrisation (arXiv:2305.08842): the codebook keeps the mean and spread of the latents.

        codes = mean_z + std_z / std_c * (c - mean_c)

    in each direction, c the learnt codes with their mean and standard deviation, mean_z and std_z those of the
    latents as moving averages. affine_decay: share of the old average kept a step, in [0, 1).

    The authors' vqtorch has this as an option, with averages of mean_c and std_c too and affine_decay=0.9. What it
    does by itself is `LearntAffineCodes`. Its synchronised commitment (sync_nu) and alternating steps are not here.
    Raises ValueError for update="ema", which follows the latents by itself, and for affine_decay out of range.
    """

    comes_before = {SimVQ: "the map of SimVQ would undo the mean and spread that AffineCodes gives its codes"}
    latent_mean: Tensor
    latent_variance: Tensor

    def __init__(self, *size: int, affine_decay: float = 0.99, **options: Any):
        super().__init__(*size, **options)
        need_gradient(self)
        self.affine_decay = check_share("affine_decay", affine_decay)
        codes = super().codes().detach()
        self.register_buffer("latent_mean", codes.mean(0))
        self.register_buffer("latent_variance", codes.var(0, correction=0))

    def codes(self) -> Tensor:
        codes = super().codes()
        variance, mean = torch.var_mean(codes.detach(), dim=0, correction=0)
        wide = torch.promote_types(mean.dtype, torch.float32)  # float16 would overflow
        scale = (self.latent_variance.clamp_min(1e-5).to(wide) / variance.clamp_min(1e-5)).sqrt().to(mean.dtype)
        return self.latent_mean + scale * (codes - mean)

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        super().place_codes(codes, share)
        variance, mean = torch.var_mean(super().codes(), dim=0, correction=0)
        self.latent_mean.copy_(mean)
        self.latent_variance.copy_(variance)

    @torch.no_grad()
    def after_step(self, latents: Tensor, index: Tensor) -> None:
        super().after_step(latents, index)
        variance, mean = torch.var_mean(latents.reshape(-1, self.dim).to(self.latent_mean.dtype), dim=0, correction=0)
        for average, now in ((self.latent_mean, mean), (self.latent_variance, variance)):
            average.mul_(self.affine_decay).add_(now, alpha=1 - self.affine_decay)


class LearntAffineCodes(VectorQuantizer):
    """Affine reparametrisation with a learnt scale and shift (arXiv:2305.08842), as vqtorch has it.

        codes = (1 + affine_lr * s) * c + affine_lr * b

    c the learnt codes, s and b (D,) learnt from 0 on, so that all codes move together. affine_lr: how much faster
    they are learnt than the codes, above 0; vqtorch's example has 10. (Its groups of codes are not here.)
    `init_codes` puts s and b back to 0.
    Raises ValueError for update="ema": codes that are computed cannot be averaged; and for affine_lr not above 0.
    """

    excludes = {AffineCodes: "AffineCodes sets the mean and spread that LearntAffineCodes should learn"}

    def __init__(self, *size: int, affine_lr: float = 10.0, **options: Any):
        super().__init__(*size, **options)
        need_gradient(self)
        self.affine_lr = check_positive("affine_lr", affine_lr)
        self.scale, self.shift = (nn.Parameter(torch.zeros(self.dim)) for _ in range(2))

    def codes(self) -> Tensor:
        return (1 + self.affine_lr * self.scale) * super().codes() + self.affine_lr * self.shift

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        super().place_codes(codes, share)
        self.scale.zero_()
        self.shift.zero_()


class CosineCodes(VectorQuantizer):
    """Codes and latents of length 1, as in ViT-VQGAN (arXiv:2110.04627): nearest means largest cosine.

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


def unit(x: Tensor) -> Tensor:
    """Vectors (..., D) divided by their length; 0 stays 0."""
    return F.normalize(x, dim=-1, eps=shortest(x))


def shortest(x: Tensor) -> float:
    """The length down to which a vector of this float type has a direction."""
    return max(1e-12, torch.finfo(x.dtype).tiny)  # float16 has no 1e-12


def need_gradient(quantizer: VectorQuantizer) -> None:
    """Raises ValueError for a quantiser whose codes, or what they are made of, no moving average can move."""
    if quantizer.update != "gradient":
        raise ValueError(f"{type(quantizer).__name__} needs update='gradient', got {quantizer.update!r}")
