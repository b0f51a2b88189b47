"""estimate(): the value forward is the code, the gradient back is another than straight-through."""

import torch
from torch import Tensor

from vqnotes._checks import check_not_negative
from vqnotes.quantizers import VectorQuantizer, straight_through
from vqnotes.remedies.codes import need_gradient, shortest, unit

__all__ = ["DiVeQ", "RotationTrick"]


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
    are not chosen: class Both(CodeSplitting, DiVeQ), from `vqnotes.remedies`.
    Under `fit_many` the noise of a run depends on the runs beside it.
    Raises ValueError for a negative variance, or update="ema".
    """

    excludes = {RotationTrick: "RotationTrick and DiVeQ both say what the gradient is: take one of them"}

    def __init__(self, *size: int, variance: float = 1e-6, beta: float = 0.0, **options):
        super().__init__(*size, beta=beta, **options)
        need_gradient(self)
        self.variance, self.codebook_loss = check_not_negative("variance", variance), False

    def estimate(self, latents: Tensor, chosen: Tensor) -> Tensor:
        gap, noisy = chosen - latents, self.training and self.variance > 0
        noise = self.variance**0.5 * torch.randn_like(gap) if noisy else 0
        moved = latents + gap.norm(dim=-1, keepdim=True) * unit((gap + noise).detach())
        return moved if noisy else straight_through(chosen, moved)  # without noise exactly the code
