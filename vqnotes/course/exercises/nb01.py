"""Exercises of notebook 01: the error of a codebook, codes for an error, what moves z and e, a quantiser."""

import torch
import torch.nn.functional as F

from vqnotes.course.exercises import check, given, whole
from vqnotes.metrics import quantization_error
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import straight_through

__all__ = ["check_codes_needed", "check_gradients", "check_quantize", "check_relative_error"]


def check_relative_error(answer: object) -> None:
    """1.1: relative_error(latents, codebook), the distortion over the total variance of the latents."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for unit in (0.05, 1.0, 5.0, 20.0):
            dim = whole(generator, 3, 7)
            center = torch.linspace(1, 10, dim)[torch.randperm(dim, generator=generator)]
            noise = torch.randn(1000, dim, generator=generator) * torch.linspace(0.7, 1.3, dim)
            latents = unit * (center + noise)
            drawn.append((latents, latents[: whole(generator, 16, 33)].clone()))
        return drawn

    def distortion(latents, codebook):
        return quantization_error(latents, codebook, relative=False)

    check(
        "1.1",
        answer,
        quantization_error,
        cases,
        [
            (
                lambda latents, codebook: quantization_error(latents, codebook) / latents.shape[1],
                "the squared distance is summed over the dimensions: with their mean the error is D times too small",
            ),
            (
                lambda latents, codebook: quantization_error(latents, codebook) * latents.shape[1],
                "the total variance is the sum over the dimensions: with their mean the error is D times too large",
            ),
            (
                lambda latents, codebook: distortion(latents, codebook) / latents.shape[1] / latents.var(),
                "a variance of all numbers at once also counts how far the dimensions' means lie apart: "
                "take the variance of each dimension, then the sum",
            ),
            (
                lambda latents, codebook: distortion(latents, codebook) / latents.square().sum(dim=1).mean(),
                "variance is measured from the mean of the latents, not from the origin",
            ),
            (distortion, "that is the distortion, which shrinks with the latents: divide it by their total variance"),
            (
                lambda latents, codebook: torch.cdist(latents, codebook).amin(1).mean() / latents.var(0).sum(),
                "that is the mean distance, and the distortion is the mean of its square",
            ),
            (
                lambda latents, codebook: (
                    torch.cdist(latents, codebook).amin(0).square().mean() / latents.var(0).sum()
                ),
                "that looks for the latent nearest to each code: the distortion has a term for each latent",
            ),
        ],
        tolerance=0.001,  # either kind of variance, by N or by N - 1
    )


def check_codes_needed(answer: object) -> None:
    """1.2: how many codes 16 equal Gaussian dimensions need at least for an error of a quarter of the variance."""
    dim, error, bits = 16, 1 / 4, 0
    while 2 ** (-2 * bits / dim) > error:
        bits += 1
    check(
        "1.2",
        answer,
        2**bits,
        None,
        [
            (bits, "those are the bits: b bits name 2 to the power of b codes"),
            (2, "that is what one dimension needs: here 16 dimensions share the bits"),
            (4, "that is as if K codes divided the error by K: in the formula, D divides the bits"),
            (2 ** (bits // 2), "that leaves half of the variance: a quarter takes twice the bits"),
            (2 * bits, "two codes for each dimension multiply, they do not add up: count their combinations"),
            (2 ** (2 * bits), "the exponent of the floor is 2 · bits / D: the factor 2 is missing"),
        ],
        tolerance=1e-9,
    )


def check_gradients(answer: object) -> None:
    """1.3: gradients(z, e, slope, target, beta), of the VQ-VAE loss with respect to the latent z and its code e."""

    def cases(generator: torch.Generator) -> list[tuple]:
        def between(low: float, high: float) -> float:
            return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()

        drawn = []
        for side in (-1, 1, -1, 1, -1, 1):
            z = between(-2, 2)
            drawn.append((z, z + side * between(0.5, 1.5), between(0.5, 2), between(-3, 3), between(0.1, 0.8)))
        return drawn

    def reference(z, e, slope, target, beta):
        z, e = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (z, e))
        wanted = torch.tensor(target, dtype=torch.float64)
        loss = F.mse_loss(slope * straight_through(e, z), wanted)
        loss = loss + F.mse_loss(e, z.detach()) + beta * F.mse_loss(z, e.detach())
        return tuple(torch.autograd.grad(loss, (z, e)))

    def arrives(value, slope, target):
        """The gradient of the reconstruction at the decoder's input."""
        return 2 * slope * (slope * value - target)

    def variant(of_z, of_e):
        """A mistake from what each of the two gets, as functions of (pull, at_code, at_latent, slope, beta)."""

        def gradients(z, e, slope, target, beta):
            known = (2 * (z - e), arrives(e, slope, target), arrives(z, slope, target), slope, beta)
            return of_z(*known), of_e(*known)

        return gradients

    def right_z(pull, at_code, at_latent, slope, beta):
        return at_code + beta * pull

    def right_e(pull, *_):
        return -pull

    check(
        "1.3",
        answer,
        reference,
        cases,
        [
            (
                variant(lambda pull, at_code, at_latent, slope, beta: at_latent + beta * pull, right_e),
                "the decoder is fed the code: the gradient handed to z is the one that arrives at e, not at z",
            ),
            (
                variant(right_z, lambda pull, at_code, *_: at_code - pull),
                "the code gets nothing from the reconstruction: straight-through hands that gradient to z alone",
            ),
            (
                variant(
                    lambda pull, at_code, at_latent, slope, beta: at_code + pull, lambda *known: -known[4] * known[0]
                ),
                "beta is at the wrong term: it weighs the pull on z (commitment), not the pull on e",
            ),
            (
                variant(
                    lambda pull, at_code, at_latent, slope, beta: at_code + (1 + beta) * pull,
                    lambda *known: -(1 + known[4]) * known[0],
                ),
                "without the stop gradients: each of the two pulls moves only one end, the other is a constant",
            ),
            (
                variant(lambda pull, at_code, at_latent, slope, beta: beta * pull, right_e),
                "z gets no gradient from the reconstruction: straight-through hands on what arrives at e",
            ),
            (
                variant(
                    lambda pull, at_code, at_latent, slope, beta: beta * pull,
                    lambda pull, at_code, *_: at_code - pull,
                ),
                "that leaves straight-through out: the reconstruction's gradient goes to z instead of to e",
            ),
            (
                variant(lambda pull, at_code, at_latent, slope, beta: at_code / slope + beta * pull, right_e),
                "the reconstruction's gradient passes through the decoder: the chain rule multiplies it by slope",
            ),
            (
                variant(lambda *known: right_z(*known) / 2, lambda *known: right_e(*known) / 2),
                "the derivative of a square has a factor 2",
            ),
            (
                variant(lambda pull, at_code, at_latent, slope, beta: at_code - beta * pull, lambda pull, *_: pull),
                "the pulls have the wrong sign: a gradient points uphill, away from the place it pulls to",
            ),
            (lambda *case: reference(*case)[::-1], "the two are swapped: the gradient of z comes first"),
            (
                lambda *case: tuple(-one for one in reference(*case)),
                "that is the direction of descent: the gradient has the other sign",
            ),
        ],
    )


def check_quantize(answer: object) -> None:
    """1.5: quantize(latents, codebook, beta), the forward pass with straight-through, and the loss of VQ-VAE."""

    def cases(generator: torch.Generator) -> list[tuple]:
        drawn = []
        for beta in (0.1, 0.25, 2.0):
            size, dim = whole(generator, 5, 9), whole(generator, 2, 5)
            latents = torch.randn(40, dim, generator=generator)
            weights = torch.randn(40, dim, generator=generator)
            drawn.append((latents, torch.randn(size, dim, generator=generator), beta, weights))
        return drawn

    def measure(function, latents, codebook, beta, weights):
        """Values, and what reaches latents and codes from behind the quantiser, and from the loss."""
        z, codes = latents.clone().requires_grad_(), codebook.clone().requires_grad_()
        found = given(function(z, codes, beta))
        if not isinstance(found, tuple) or len(found) != 3:
            raise ValueError("three values are asked for: latents_q, index, loss")
        latents_q, index, loss = found
        both = [(latents_q * weights).sum(), loss]
        reached = [torch.autograd.grad(one, (z, codes), allow_unused=True, retain_graph=True) for one in both]
        flows = [torch.zeros(()) if one is None else one for pair in reached for one in pair]
        return latents_q, index, loss, *flows

    def variant(index=nearest_code, behind=straight_through, loss=None):
        """A quantiser that may differ in one of its parts: which code, what follows it, the loss of z and e."""

        def usual(z, e, beta):
            return F.mse_loss(e, z.detach()) + beta * F.mse_loss(z, e.detach())

        def quantize(latents, codebook, beta):
            k = index(latents, codebook)
            return behind(codebook[k], latents), k, (loss or usual)(latents, codebook[k], beta)

        return quantize

    check(
        "1.5",
        answer,
        variant(),
        cases,
        [
            (
                variant(index=lambda latents, codebook: torch.cdist(latents, codebook).argmax(dim=1)),
                "it takes the code that is farthest away: the smallest distance wins",
            ),
            (
                variant(behind=lambda chosen, latents: chosen),
                "the latents get no gradient from what follows: straight-through is missing",
            ),
            (
                variant(behind=lambda chosen, latents: chosen + latents - latents.detach()),
                "the codes get the gradient of what follows, too: detach them on the straight-through way",
            ),
            (
                variant(loss=lambda z, e, beta: beta * F.mse_loss(e, z.detach()) + F.mse_loss(z, e.detach())),
                "beta is at the wrong term: it weighs the pull on the latents (commitment), not that on the codes",
            ),
            (
                variant(loss=lambda z, e, beta: (1 + beta) * F.mse_loss(e, z)),
                "without detach each of the two terms moves both latents and codes",
            ),
            (
                variant(loss=lambda z, e, beta: F.mse_loss(e, z.detach())),
                "the commitment loss is missing: nothing holds the latents to their codes",
            ),
            (
                variant(loss=lambda z, e, beta: beta * F.mse_loss(z, e.detach())),
                "the codebook loss is missing: nothing moves the codes",
            ),
        ],
        measure=measure,
    )
