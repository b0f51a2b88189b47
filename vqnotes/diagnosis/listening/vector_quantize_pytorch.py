"""How the quantisers of vector-quantize-pytorch are heard, which are told by what they have."""

from typing import Any

import torch
from torch import Tensor, nn

from vqnotes.diagnosis.listening.calls import TEN_LINES, Ear, first_argument, is_started
from vqnotes.diagnosis.observed import Kind

__all__ = ["KNOWN", "SimVQEar", "VectorQuantizeEar", "ear_of"]

KNOWN = "VectorQuantize, SimVQ, ResidualVQ, GroupedResidualVQ, HierarchicalVQ of vector-quantize-pytorch"


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
        """The call ends. Raises ValueError for codes that are not those of the codebook, or several a latent."""
        (latents, mask, chosen, index), self.inside = self.inside, None
        codes, entered = module._codebook.embed, first_argument(arguments, named)
        if index.shape != latents.shape[:-1]:
            raise ValueError(f"quantiser {self.name!r} keeps several codes a latent (a beam): not heard. {TEN_LINES}")
        if latents.ndim == 3:  # without heads
            latents, chosen, index = latents[None], chosen[None], index[None]
        for own, chosen_of, index_of in zip(codes, chosen, index):
            in_use = own[index_of].to(chosen.dtype)
            if not torch.allclose(in_use, chosen_of, rtol=1e-3, atol=1e-3 * own.abs().max().item()):
                raise ValueError(
                    f"quantiser {self.name!r} computes the codes it uses from its codebook: not heard. {TEN_LINES}"
                )
        if module.heads > len(codes):  # all heads in one codebook: (1, batch * heads, places, D)
            latents, index = (one[0].unflatten(0, (-1, module.heads)).movedim(1, 0) for one in (latents, index))
        maps = module.accept_image_fmap or getattr(module, "accept_3d_fmap", False)
        places = entered.shape[2:] if maps else latents.shape[2:3] if entered.ndim > 2 else ()
        latents, index = latents.reshape(*latents.shape[:2], *places, -1), index.reshape(*index.shape[:2], *places)
        axis = 1 if (maps or not module.channel_last) and entered.ndim > 2 else -1
        self.keep(entered, output[0], axis, latents, codes, index, mask)
