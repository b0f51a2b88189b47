"""loss(): something more to make small, of the codes, the choices or the latents."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqnotes._checks import check_not_negative, check_positive
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies.codes import need_gradient, unit
from vqnotes.remedies.entropy import entropy_gap_of_products

__all__ = ["DecorrelatedCodes", "EntropyLoss", "KernelLoss", "OrthogonalCodes", "SpreadLatents"]


class OrthogonalCodes(VectorQuantizer):
    """Orthogonality loss (arXiv:2112.00384, as reported): codes should point in different directions.

    loss + orthogonal_weight * (sum_ij cos(e_i, e_j)^2 / K^2 - 1 / K); the bracket is 0 for orthogonal codes, at most
    1 - 1/K.
    With U (K, D) the codes' directions the sum is |U U^T|^2 = |U^T U|^2, and the second product is only (D, D).
    Raises ValueError for a negative weight, or update="ema", which no loss can move.
    """

    def __init__(self, *size: int, orthogonal_weight: float = 10.0, **options: Any):
        super().__init__(*size, **options)
        need_gradient(self)
        self.orthogonal_weight = check_not_negative("orthogonal_weight", orthogonal_weight)

    def loss(self, latents: Tensor, chosen: Tensor) -> Tensor:
        directions = unit(self.codes().clone())
        alike = (directions.T @ directions).square().sum() / self.codebook_size**2 - 1 / self.codebook_size
        return super().loss(latents, chosen) + self.orthogonal_weight * alike


class DecorrelatedCodes(VectorQuantizer):
    """Codebook regularisation of DimVQ (ICML 2026, poster 62554): no two dimensions of the codes say the same.

    loss + decorrelation_weight * sum_{i != j} G_ij^2 / (D (D - 1)), G = U^T U (D, D), U (K, D) the codes' directions.
    `OrthogonalCodes` has the same G^2 with its diagonal, which asks for dimensions of equal size too.

    The formula and the weight are those of the authors' code; its README writes the covariance of the codes, but they
    are not centred there. The sum grows as K^2: with K codes in place of their 65,536, a weight of
    1e-3 (65,536 / K)^2 pulls as hard. The authors have it on SimVQ: class DimVQ(DecorrelatedCodes, SimVQ).
    Raises ValueError for a negative weight, or update="ema", which no loss can move.
    """

    def __init__(self, *size: int, decorrelation_weight: float = 1e-3, **options: Any):
        super().__init__(*size, **options)
        need_gradient(self)
        self.decorrelation_weight = check_not_negative("decorrelation_weight", decorrelation_weight)

    def loss(self, latents: Tensor, chosen: Tensor) -> Tensor:
        directions = unit(self.codes().clone())
        products = directions.T @ directions
        shared = products.square().sum() - products.diagonal().square().sum()
        return super().loss(latents, chosen) + self.decorrelation_weight * shared / max(1, self.dim * (self.dim - 1))


class KernelLoss(VectorQuantizer):
    """Kernel rule of NS-VQ (arXiv:2602.18896): where latents draw their codes, the others come along.

        loss + mean_n sum_k w_nk |sg(z_n) - e_k|^2 / D,   w_nk = min(1, kernel_weight K p_nk)

    over all codes k but the nearest, with p_n the softmax over k of -|z_n - e_k|^2 / T, held constant. T starts as
    kernel_temperature, in squared units of the latents, and halves every `half_life` steps, until only the codes
    that are chosen move; `init_codes` puts it back.

    The rule is that of the authors' code, with its weight and its first T; it halves T every epoch. The second
    change there, a part of the decoder's gradient for the chosen code, is not here. (NSVQ, noise substitution, is
    another method.)
    Raises ValueError for a negative weight, a temperature or half-life not above 0, or update="ema".
    """

    heat: Tensor  # T

    def __init__(
        self,
        *size: int,
        kernel_weight: float = 0.01,
        kernel_temperature: float = 1.0,
        half_life: float = 100,
        **options: Any,
    ):
        super().__init__(*size, **options)
        need_gradient(self)
        self.kernel_weight = check_not_negative("kernel_weight", kernel_weight)
        self.kernel_temperature = check_positive("kernel_temperature", kernel_temperature)
        self.half_life = check_positive("half_life", half_life)
        self.register_buffer("heat", torch.tensor(float(kernel_temperature)))

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        super().place_codes(codes, share)
        self.heat.fill_(self.kernel_temperature)

    def loss(self, latents: Tensor, chosen: Tensor) -> Tensor:
        flat, codes = latents.detach().reshape(-1, self.dim), self.codes().to(latents.dtype, copy=True)
        squares = square_distances(flat, codes)
        least = squares.detach().amin(1, keepdim=True)
        near = ((least - squares.detach()) / self.heat.to(squares.dtype).clamp_min(1e-30)).softmax(1)
        weights = (self.kernel_weight * self.codebook_size * near).clamp_max(1)
        weights = torch.where(squares.detach() == least, 0, weights)
        return super().loss(latents, chosen) + (weights * squares).sum(1).mean() / self.dim

    @torch.no_grad()
    def after_step(self, latents: Tensor, index: Tensor) -> None:
        super().after_step(latents, index)
        self.heat.mul_(0.5 ** (1 / self.half_life))


class EntropyLoss(VectorQuantizer):
    """Entropy loss, as in MaskGIT's tokenisers and LFQ (arXiv:2310.05737): sure choices, all codes in use.

    loss + entropy_weight * (mean of H(p(.|z)) - H(mean of p(.|z))), p(k|z) proportional to exp(-||z - e_k||^2 / T),
    with T = temperature * (mean squared distance to the nearest code), held constant, so that it means the same at
    any scale; or T = temperature with relative=False, as in MaskGIT's code, which has temperature=0.01.
    The bracket, in nats, is at least -log K. It sends gradients to latents and, with update="gradient", to all codes.
    Neither way holds all N x K probabilities; only a derivative of the gradient (create_graph=True) does.
    Raises ValueError for a negative weight or a temperature not above 0.
    """

    def __init__(
        self,
        *size: int,
        entropy_weight: float = 0.1,
        temperature: float = 1.0,
        relative: bool = True,
        **options: Any,
    ):
        super().__init__(*size, **options)
        self.entropy_weight = check_not_negative("entropy_weight", entropy_weight)
        self.temperature, self.relative = check_positive("temperature", temperature), relative

    def loss(self, latents: Tensor, chosen: Tensor) -> Tensor:
        scale: Tensor | float = self.temperature
        if self.relative:
            scale = scale * (latents - chosen).detach().square().sum(-1).mean().clamp_min(1e-12)
        codes, flat = self.codes().to(latents.dtype, copy=True), latents.reshape(-1, self.dim)
        z = F.pad(flat, (0, 1), value=1)  # (z, 1) times (e, -||e||^2 / 2) 2 / T: -||z - e||^2 / T, but for z alone
        weights = torch.cat([codes, -codes.square().sum(1, keepdim=True) / 2], dim=1) * (2 / scale)
        return super().loss(latents, chosen) + self.entropy_weight * entropy_gap_of_products(z, weights)


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
        *size: int,
        spread_weight: float = 1.0,
        variance_weight: float = 1.0,
        **options: Any,
    ):
        super().__init__(*size, **options)
        self.spread_weight = check_not_negative("spread_weight", spread_weight)
        self.variance_weight = check_not_negative("variance_weight", variance_weight)

    def loss(self, latents: Tensor, chosen: Tensor) -> Tensor:
        flat = latents.reshape(-1, self.dim)
        centered = flat - flat.mean(0)
        covariance = centered.T @ centered / max(1, len(flat) - 1)
        variance = covariance.diagonal()
        lacking = (1 - (variance + 1e-4).sqrt()).relu().mean()
        shared = (covariance - variance.diag_embed()).square().sum() / self.dim
        return super().loss(latents, chosen) + self.spread_weight * (self.variance_weight * lacking + shared)


def square_distances(latents: Tensor, codes: Tensor) -> Tensor:
    """Squared distances (N, K) of latents (N, D) and codes (K, D), with their gradients, at least in float32."""
    wide = torch.promote_types(latents.dtype, torch.float32)
    z, e = latents.to(wide), codes.to(wide)
    center = e.detach().mean(0)  # far from the origin nothing would be left of the differences
    z, e = z - center, e - center
    return z.square().sum(1, keepdim=True) - 2 * z @ e.T + e.square().sum(1)
