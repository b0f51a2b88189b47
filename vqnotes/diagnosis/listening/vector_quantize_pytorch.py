"""How the quantisers of vector-quantize-pytorch are heard, which are told by what they have."""

from typing import Any

import torch
from torch import Tensor, nn

from vqnotes.diagnosis.listening.calls import Ear, first_argument, is_started, ten_lines
from vqnotes.diagnosis.observed import Kind

__all__ = ["KNOWN", "SimVQEar", "VectorQuantizeEar", "ear_of"]

KNOWN = "VectorQuantize, SimVQ, ResidualVQ, GroupedResidualVQ, HierarchicalVQ of vector-quantize-pytorch"

FIRST_LEVEL = "The first level of a stack can be judged alone. " + ten_lines(
    latents="module.project_in(entered)  # what reaches the first level: (batch, places, D)",
    codes="module.layers[0].codebook  # its codes, a table: (K, D)",
    index="returned[1][..., 0]  # its indices",
    names="of the ResidualVQ in the model",
)


def ear_of(module: nn.Module) -> type[Ear] | None:
    """The kind of ear that hears this module; None if it is no quantiser of this library."""
    codes = getattr(getattr(module, "_codebook", None), "embed", None)
    if isinstance(codes, Tensor) and codes.ndim == 3:  # (heads, K, D); in other libraries it is (K, D)
        return VectorQuantizeEar
    return SimVQEar if hasattr(module, "frozen_codebook") and hasattr(module, "code_transform") else None


class SimVQEar(Ear):
    """SimVQ of vector-quantize-pytorch: codes are a map of frozen ones."""

    @staticmethod
    def kind(module: Any) -> Kind:
        return Kind.COMPUTED

    def hear(self, module: Any, arguments: tuple, named: dict, output: Any) -> None:
        entered, axis = first_argument(arguments, named), 1 if module.channel_first else -1
        self.keep(entered, output[0], axis, entered.movedim(axis, -1), module.codebook, output[1])


class VectorQuantizeEar(Ear):
    """VectorQuantize of vector-quantize-pytorch: its inner codebook gets ([heads,] batch, places, D)."""

    module: Any
    inside: list | None = (
        None  # what was heard of the codebook in this call; levels may share it: only the one inside hears
    )

    @staticmethod
    def started(module: Any) -> bool:
        return is_started(module._codebook)

    @staticmethod
    def kind(module: Any) -> Kind:
        return Kind.LEARNT if isinstance(module._codebook.embed, nn.Parameter) else Kind.EMA

    def hooks(self) -> list:
        return [
            self.module.register_forward_pre_hook(self.enter),
            self.module._codebook.register_forward_hook(self.hear, with_kwargs=True),
            self.module.register_forward_hook(self.leave, with_kwargs=True),
        ]

    def enter(self, module: nn.Module, arguments: tuple) -> None:
        """A call of the quantiser begins."""
        self.inside = []

    def hear(self, module: Any, arguments: tuple, named: dict, output: Any) -> None:
        """Its codebook was called; what came of it is for `leave` to keep."""
        if self.inside is not None:
            self.inside = [first_argument(arguments, named), named.get("mask"), *output[:2]]

    def leave(self, module: Any, arguments: tuple, named: dict, output: Any) -> None:
        """The call ends. Raises ValueError for codes that are no table, or several a latent."""
        (latents, mask, chosen, index), self.inside = self.inside, None
        codes, entered = _in_use(module._codebook), first_argument(arguments, named)
        if index.shape != latents.shape[:-1]:
            raise ValueError(
                f"quantiser {self.name!r}: looked for one index a latent, found {tuple(index.shape)} for latents "
                f"{tuple(latents.shape)}: it keeps several codes a latent (a beam). {FIRST_LEVEL}"
            )
        if latents.ndim == 3:  # without heads
            latents, chosen, index = latents[None], chosen[None], index[None]
        for own, chosen_of, index_of in zip(codes, chosen, index):
            most = own.nan_to_num(0, 0, 0).abs().max().item()  # codes that are not finite are refused later, by name
            rounding = {"rtol": 1e-3, "atol": 1e-3 * most, "equal_nan": True}
            near = torch.isclose(own[index_of].to(chosen.dtype), chosen_of, **rounding)
            if not near.all():
                share = (~near.all(-1)).double().mean()
                raise ValueError(
                    f"quantiser {self.name!r}: looked for rows of its codebook {tuple(own.shape)}, found other codes "
                    f"for {share:.0%} of the latents: it computes them anew for each latent "
                    f"(an implicit neural codebook), so that there is no table to judge. {FIRST_LEVEL}"
                )
        if module.heads > len(codes):  # all heads in one codebook: (1, batch * heads, places, D)
            latents, index = (one[0].unflatten(0, (-1, module.heads)).movedim(1, 0) for one in (latents, index))
        maps = module.accept_image_fmap or getattr(module, "accept_3d_fmap", False)
        places = entered.shape[2:] if maps else latents.shape[2:3] if entered.ndim > 2 else ()
        latents, index = latents.reshape(*latents.shape[:2], *places, -1), index.reshape(*index.shape[:2], *places)
        axis = 1 if (maps or not module.channel_last) and entered.ndim > 2 else -1
        self.keep(entered, output[0], axis, latents, codes, index, mask)


def _in_use(codebook: Any) -> Tensor:
    """The codes (heads, K, D) that were in use in the last call: those of a bridge, fitted to the latents' spread."""
    codes = codebook.embed.float()
    if getattr(codebook, "vq_bridge", None) is not None:
        codes = codebook.vq_bridge(codes)
    if getattr(codebook, "affine_param", False):
        spreads = [one.clamp(min=1e-5).sqrt() for one in (codebook.batch_variance, codebook.codebook_variance)]
        codes = (codes - codebook.codebook_mean) * (spreads[0] / spreads[1]) + codebook.batch_mean
    return codes
