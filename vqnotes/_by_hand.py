"""R autoencoders at once without `torch.vmap` where all of their parts are known: the same, in fewer operations."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn, vmap
from torch.nn.modules import module as nn_module

from vqnotes._by_index import moving_averages, rows
from vqnotes._checks import check_latents_form
from vqnotes._rounding import wide_type
from vqnotes._stacked import Stacked
from vqnotes.models import VQAutoencoder
from vqnotes.nearest import nearest_in_each
from vqnotes.quantizers import Quantized, VectorQuantizer

BY_NUMBER = (nn.LeakyReLU, nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity)  # each number for itself
READ_THEIR_OWN = ("torch.nn.modules.", "vqnotes.")  # where the classes are from that read no tensor but their own
HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
AS_MADE = {kind: dict(vars(kind)) for kind in (VQAutoencoder, VectorQuantizer, nn.Sequential, nn.Linear, *BY_NUMBER)}


def is_known(runs: Stacked, model: VQAutoencoder) -> bool:
    """Whether `errors_and_losses` of the stacked runs is their `forward`. model: that of the first.

    Not if a module is of another's class, or was changed: by a hook, by a method or a plain tensor of its own, by a
    tensor that stands twice. Nor within autocast, where `torch.vmap` does not cast as the layers do.
    """
    return (
        type(model) is VQAutoencoder
        and dict(model.named_children()).keys() == {"encoder", "quantizer", "decoder"}
        and all(type(one).__module__.startswith(READ_THEIR_OWN) and not _is_changed(one) for one in model.modules())
        and all(vars(kind) == made for kind, made in AS_MADE.items())
        and not any(getattr(nn_module, f"_global_{kind}") for kind in HOOKS)
        and not torch.is_autocast_enabled(runs.tensors["variance"].device.type)
        and runs.has_its_tensors()
    )


def _is_changed(module: nn.Module) -> bool:
    own = vars(module)
    return any(own[f"_{kind}"] for kind in HOOKS) or any(
        hasattr(type(module), name) or isinstance(one, Tensor) for name, one in own.items()
    )


def errors_and_losses(runs: Stacked, batches: Tensor, quantize: bool) -> tuple[Tensor, Tensor]:
    """`training.Run.forward` of R runs: batches (R, B, ...) to the errors and the quantiser's losses, (R,) each."""
    runs.freeze_as_first()
    latents, variances = _part(runs, "model.encoder", batches), runs.tensors["variance"]
    losses = torch.full_like(variances, torch.nan)
    if quantize:
        latents, _, losses = _part(runs, "model.quantizer", latents)
    return _mean_squares(_part(runs, "model.decoder", latents), batches) / variances, losses


def _part(runs: Stacked, name: str, x: Tensor) -> Any:
    """The part of run r of x[r], for all r. What is not computed here, `torch.vmap` does."""
    module = runs.first.get_submodule(name)
    kind, names = type(module), [*module._parameters, *module._buffers]
    if kind is nn.Sequential:
        return _sequence(runs, name, x)
    if kind is nn.Linear and names == ["weight", "bias"] == list(module._parameters) and x.ndim > 2:
        return _linear(x, runs.tensors[f"{name}.weight"], runs.tensors.get(f"{name}.bias"))
    if kind is VectorQuantizer and {"codebook"} <= set(names) <= {"codebook", "share"}:
        codes, share = runs.tensors[f"{name}.codebook"], runs.tensors.get(f"{name}.share")
        return _quantized(cast(VectorQuantizer, module), codes, share, x)
    return module(x) if kind in BY_NUMBER else runs.part(name, x)


def _sequence(runs: Stacked, name: str, x: Tensor) -> Tensor:
    layers = runs.first.get_submodule(name)._modules
    kinds = [None, *map(type, layers.values()), None]
    for i, (child, layer) in enumerate(layers.items()):
        between = kinds[i : i + 3] == [nn.Linear, nn.LeakyReLU, nn.Linear]  # so that nobody else needs x
        if between and x.ndim == 3 and (slope := cast(nn.LeakyReLU, layer).negative_slope) > 0:
            x = F.leaky_relu_(x, slope)
        else:
            x = _part(runs, f"{name}.{child}", x)
    return x


def _linear(x: Tensor, weights: Tensor, biases: Tensor | None) -> Tensor:
    """`nn.Linear` of R: x (R, ..., in), weights (R, out, in), biases (R, out), to (R, ..., out)."""
    flat = x.flatten(1, -2)
    y = flat.bmm(weights.mT) if biases is None else cast(Any, _Affine).apply(flat, weights, biases)
    return y if x.ndim == 3 else y.unflatten(1, x.shape[1:-1])


class _Affine(torch.autograd.Function):
    """x (R, N, in), weights (R, out, in), biases (R, out) to (R, N, out); no gradient has to be turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
        ctx.save_for_backward(x, weights)
        return torch.baddbmm(biases[:, None], x, weights.mT)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x, weights), (of_x, of_weights, of_biases) = ctx.saved_tensors, ctx.needs_input_grad
        return (
            slope.bmm(weights) if of_x else None,
            slope.mT.bmm(x) if of_weights else None,
            slope.sum(dim=1) if of_biases else None,
        )


def _quantized(one: VectorQuantizer, codebooks: Tensor, share: Tensor | None, latents: Tensor) -> Quantized:
    """`VectorQuantizer.forward` of R: codebooks (R, K, D), with EMA share (R, K), latents (R, ..., D).

    one: of the quantisers, for its options.
    """
    check_latents_form(latents[0], one.dim)
    index, codes = nearest_in_each(latents, codebooks), codebooks.flatten(0, 1)
    first = torch.arange(0, len(codes), codebooks.shape[1], device=codes.device)  # code of each run
    among_all = index + first.view(-1, *[1] * (index.ndim - 1))
    chosen = rows(codes, among_all)
    wide = wide_type(latents, chosen)
    z, e = latents.to(wide), chosen.to(wide)
    loss = one.beta * _mean_squares(z, e.detach())
    if one.codebook_loss:
        loss = _mean_squares(e, z.detach()) + loss
    if one.training and one.update == "ema" and share is not None and one.decay is not None:
        with torch.no_grad():
            flat, count = latents.reshape(-1, one.dim), index[0].numel()
            moved, now = moving_averages(codes, share.flatten(), flat, among_all.flatten(), count, one.decay)
            codebooks.copy_(moved.view_as(codebooks))
            share.copy_(now.view_as(share))
    return Quantized(one.estimate(latents, chosen), index, loss)


def _mean_squares(one: Tensor, other: Tensor) -> Tensor:
    """`mse_loss` of each of R: (R, ...) to (R,)."""
    if one.shape != other.shape:  # of a run, too
        return vmap(F.mse_loss)(one, other)
    return F.mse_loss(one, other, reduction="none").flatten(1).mean(dim=1)
