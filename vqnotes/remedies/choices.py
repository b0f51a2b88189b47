"""assign(), estimate(): the choice of a code is drawn, or has a gradient that reaches codes which nobody chose."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqnotes._checks import check_not_negative, check_positive
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import VectorQuantizer, straight_through
from vqnotes.remedies.codes import need_gradient
from vqnotes.remedies.gradients import DiVeQ, RotationTrick
from vqnotes.remedies.losses import square_distances
from vqnotes.remedies.replacement import uniform

__all__ = ["GumbelVQ", "IndexBackpropagation", "StochasticVQ"]

ONE_GRADIENT = dict.fromkeys((RotationTrick, DiVeQ), "two remedies say what the gradient is: take one of them")


class StochasticVQ(VectorQuantizer):
    """Stochastic choice (as in RQ-VAE, arXiv:2203.01941): p(k|z) proportional to exp(-|z - e_k|^2 / T), in training.

    T = sampling_temperature * (mean squared distance to the nearest code), so that it means the same at any scale
    and falls as the codes come near. In evaluation it is the nearest code. The authors' T is absolute;
    vector-quantize-pytorch (stochastic_sample_codes) has an absolute one too, and distances that are not squared.
    The numbers that decide are a run's own: see `replacement.uniform`. Combined with `RotationTrick`, a code far
    from its latent scales the gradient by how much longer it is.
    Raises ValueError for a temperature not above 0.
    """

    chance: Tensor

    def __init__(self, *size: int, sampling_temperature: float = 1.0, **options: Any):
        super().__init__(*size, **options)
        self.sampling_temperature = check_positive("sampling_temperature", sampling_temperature)
        with torch.random.fork_rng(devices=[]):  # weights that are made next are the same as with any quantiser
            start = torch.randint(2**32, (2,))[1].clone()  # the first is where replacement would start
        self.register_buffer("chance", start)  # the steps, from a random number on

    def assign(self, latents: Tensor, codes: Tensor) -> Tensor:
        if not self.training:
            return super().assign(latents, codes)
        nearest_code(latents, codes[:1])  # refuses what is not finite
        return self.noisy(self.scores(latents.detach(), codes.detach())).argmax(-1)

    def scores(self, latents: Tensor, codes: Tensor) -> Tensor:
        """log p(k|z) but for a constant, (..., K)."""
        squares = square_distances(latents.reshape(-1, self.dim), codes)
        nearest = squares.detach().amin(1).clamp_min(0).mean()
        return (-squares / (self.sampling_temperature * nearest).clamp_min(1e-12)).reshape(*latents.shape[:-1], -1)

    def noisy(self, scores: Tensor) -> Tensor:
        """In training scores with Gumbel noise, that of this step: the largest entry of each row is drawn by p."""
        if not self.training:
            return scores
        return scores - (-uniform(self.chance, scores.numel()).log()).log().view_as(scores)

    @torch.no_grad()
    def after_step(self, latents: Tensor, index: Tensor) -> None:
        super().after_step(latents, index)
        self.chance.add_(1)


class GumbelVQ(StochasticVQ):
    """Gumbel-softmax with straight-through (arXiv:1611.01144): as `StochasticVQ`, and the choice has a gradient.

    Forward the code q that was drawn; backward as if it were q + sum_k y_k sg(e_k), with y the softmax of
    (log p + noise) / softness, noise the one that decided. So latents and all codes learn from what the decoder
    makes of them, and the codebook loss is left out; beta is 0 unless given.
    loss = kl_weight * mean_n sum_k p(k|z_n) log(K p(k|z_n)) + beta * commitment: p is drawn to all codes alike.

    The VQGAN authors' code has kl_weight=5e-4 and softness=1; its scores are a linear map of the latent, which is
    never compared with the codes. vector-quantize-pytorch (straight_through) takes y without the noise.
    Raises ValueError as `StochasticVQ`, and for a softness not above 0, a negative weight, or update="ema".
    """

    excludes = ONE_GRADIENT

    def __init__(self, *size: int, softness: float = 1.0, kl_weight: float = 5e-4, beta: float = 0.0, **options: Any):
        super().__init__(*size, beta=beta, **options)
        need_gradient(self)
        self.softness, self.kl_weight = (
            check_positive("softness", softness),
            check_not_negative("kl_weight", kl_weight),
        )
        self.codebook_loss = False

    def estimate(self, latents: Tensor, chosen: Tensor) -> Tensor:
        codes = self.codes().clone()
        return through_choice(chosen, (self.noisy(self.scores(latents, codes)) / self.softness).softmax(-1), codes)

    def loss(self, latents: Tensor, chosen: Tensor) -> Tensor:
        logs = self.scores(latents, self.codes().clone()).log_softmax(-1)
        from_uniform = (logs.exp() * (logs + math.log(self.codebook_size))).sum(-1).mean()
        return super().loss(latents, chosen) + self.kl_weight * from_uniform


class IndexBackpropagation(VectorQuantizer):
    """Index backpropagation (IBQ, arXiv:2412.02692): the choice is a softmax whose gradient reaches all codes.

    k = argmax_j z.e_j. Forward the code q; backward as if it were q + sum_j y_j sg(e_j), y the softmax of z.e_j.
    loss + |z - q|^2 / D with that gradient. The largest product is not the nearest code where codes differ in length:
    long codes have more latents, and codes placed by k-means do not get back their clusters; `CosineCodes` mends
    that, class Both(CosineCodes, IndexBackpropagation).

    The authors' code multiplies the codebook loss by beta and not the commitment, and adds the entropy loss of
    these products, weight 0.05, temperature 0.01; their codes start as N(0, 1).
    Raises ValueError for update="ema".
    """

    excludes = ONE_GRADIENT | {StochasticVQ: "one remedy alone can say which code is chosen"}

    def __init__(self, *size: int, **options: Any):
        super().__init__(*size, **options)
        need_gradient(self)

    def assign(self, latents: Tensor, codes: Tensor) -> Tensor:
        nearest_code(latents, codes[:1])  # refuses what is not finite
        return (latents @ codes.to(latents.dtype).T).argmax(-1)

    def estimate(self, latents: Tensor, chosen: Tensor) -> Tensor:
        codes = self.codes().clone()
        return through_choice(chosen, (latents @ codes.to(latents.dtype).T).softmax(-1), codes)

    def loss(self, latents: Tensor, chosen: Tensor) -> Tensor:
        return super().loss(latents, chosen) + F.mse_loss(self.estimate(latents, chosen), latents)


def through_choice(chosen: Tensor, soft: Tensor, codes: Tensor) -> Tensor:
    """The chosen codes (..., D); their gradient goes to them, and to the soft choice (..., K) among codes (K, D)."""
    return straight_through(chosen, chosen + (soft @ codes.detach().to(soft.dtype)).to(chosen.dtype))
