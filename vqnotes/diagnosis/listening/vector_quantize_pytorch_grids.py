"""How the fixed grids of vector-quantize-pytorch are heard: FSQ, LFQ, LatentQuantize, BinaryMapper, and their stacks.

A grid stands between two projections. What leaves the first is rounded; what enters the second are the codes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vqnotes.diagnosis.listening.calls import TEN_LINES, Ear, first_argument
from vqnotes.diagnosis.observed import Kind
from vqnotes.nearest import nearest_code

__all__ = ["KNOWN", "BinaryMapperEar", "FSQEar", "GridEar", "LFQEar", "LatentQuantizeEar", "ear_of"]

KNOWN = "FSQ, LFQ, LatentQuantize, BinaryMapper, ResidualFSQ, ResidualLFQ of vector-quantize-pytorch"

AGREES = 0.99  # of the codes are the nearest: then the rounding is read rightly


def ear_of(module: nn.Module) -> type[Ear] | None:
    """The kind of ear that hears this module; None if it is no grid of this library."""
    told_by = {
        "symmetry_preserving_bound": FSQEar,
        "bits_to_codes": LFQEar,
        "values_per_latent": LatentQuantizeEar,
        "power_two": BinaryMapperEar,
    }
    return next((ear for name, ear in told_by.items() if hasattr(module, name)), None)


class GridEar(Ear):
    """A grid between two projections: `grid` says what it rounds, and which codes there are."""

    module: Any
    inside: dict[str, Tensor]

    @staticmethod
    def kind(module: Any) -> Kind:
        return Kind.GRID

    def grid(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Of what leaves the first projection (..., D): it as it is rounded, and the grid (K, D)."""
        raise NotImplementedError

    def channel_first(self, entered: Tensor) -> bool:
        """Whether the second axis of what enters holds the dimensions."""
        return entered.ndim >= 4 if self.module.channel_first is None else self.module.channel_first

    def hooks(self) -> list:
        self.inside = {}
        return [
            self.module.project_in.register_forward_hook(self.projected),
            self.module.project_out.register_forward_pre_hook(self.rounded),
            self.module.register_forward_hook(self.hear, with_kwargs=True),
        ]

    def projected(self, module: nn.Module, arguments: tuple, output: Tensor) -> None:
        """What is rounded has left the first projection."""
        self.inside["z"] = output

    def rounded(self, module: nn.Module, arguments: tuple) -> None:
        """Codes enter the second projection."""
        self.inside["codes"] = arguments[0]

    def hear(self, module: Any, arguments: tuple, named: dict, output: Any) -> None:
        """Raises ValueError if codes come out that are not of the grid, or not those next to what entered."""
        entered, parts = first_argument(arguments, named), module.num_codebooks
        z, chosen = (self.inside[name].unflatten(-1, (parts, -1)) for name in ("z", "codes"))
        z, chosen = self.rotated(self.clamped(z)), self.rotated(chosen)
        latents, codes = self.grid(z)
        latents, chosen = (one.movedim(-2, 0).to(codes.dtype) for one in (latents, chosen))  # (parts, batch, n, D)
        index = self.index_of(output[1], chosen, codes)
        nearest = nearest_code(latents.reshape(-1, codes.shape[1]), codes).reshape(index.shape)
        agree = (nearest == index).double().mean()
        if not torch.allclose(codes[index], chosen, rtol=1e-3, atol=1e-3) or agree < AGREES:
            raise ValueError(
                f"quantiser {self.name!r}: looked for the {len(codes):,} codes of a grid {tuple(codes.shape)}, each "
                f"next to its latent; found that for {agree:.0%} of {index.numel():,} latents. {TEN_LINES}"
            )
        first = self.channel_first(entered)
        places = entered.shape[2:] if first else entered.shape[1:-1]
        shape = (parts, len(entered), *places)
        self.keep(
            entered,
            output[0],
            1 if first else -1,
            latents.reshape(*shape, -1),
            codes.expand(parts, -1, -1),
            index.reshape(shape),
        )

    def clamped(self, z: Tensor) -> Tensor:
        """What leaves the first projection, as it is kept in bounds before it is turned."""
        return z

    def rotated(self, z: Tensor) -> Tensor:
        """What is rounded, (..., D), in the directions in which it is."""
        return z @ self.module.orthogonal_rot if getattr(self.module, "orthogonal_rotation", False) else z

    def index_of(self, returned: Any, chosen: Tensor, codes: Tensor) -> Tensor:
        """The indices it returned if they are those of the codes (parts, batch, n, D) that came out, else those."""
        if isinstance(returned, Tensor):
            index = returned.reshape(*chosen.shape[1:-1], len(chosen)).movedim(-1, 0).long()
            if index.min() >= 0 and index.max() < len(codes) and torch.allclose(codes[index], chosen, atol=1e-3):
                return index
        self.note = "heard by the codes that came out; it returned no indices, or others than theirs"
        return nearest_code(chosen.reshape(-1, codes.shape[1]), codes).reshape(chosen.shape[:-1])


class FSQEar(GridEar):
    """FSQ: each number is bounded by tanh, or not at all, and rounded."""

    def channel_first(self, entered: Tensor) -> bool:
        return entered.ndim >= 4 or self.module.channel_first

    def grid(self, z: Tensor) -> tuple[Tensor, Tensor]:
        module, levels = self.module, self.module._levels
        codes = module._indices_to_codes(torch.arange(int(levels.prod()), device=z.device)).float()
        soft = not module.bound_hard_clamp  # what lies beyond a hard bound has the same nearest code as the bound
        if module.preserve_symmetry:
            return torch.tanh(z) if soft else z, codes
        reach = (levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(z + torch.atanh(offset / reach)) if soft else z + offset / reach
        return (bounded * reach - offset) / (levels // 2), codes


class LFQEar(GridEar):
    """LFQ: the sign of each number, perhaps on a sphere."""

    def grid(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.module.maybe_l2norm(z), self.module.maybe_l2norm(self.module.codebook)

    def clamped(self, z: Tensor) -> Tensor:
        bound = self.module.soft_clamp_input_value
        return z if bound is None else (z / bound).tanh() * bound


class LatentQuantizeEar(GridEar):
    """LatentQuantize: the nearest of the values of each dimension."""

    def channel_first(self, entered: Tensor) -> bool:
        return True

    def grid(self, z: Tensor) -> tuple[Tensor, Tensor]:
        values = [one.detach() for one in self.module.values_per_latent]
        return z, torch.cartesian_prod(*reversed(values)).reshape(-1, len(values)).flip(-1)  # the first runs fastest


class BinaryMapperEar(Ear):
    """BinaryMapper: each bit is drawn, or taken, by its logit.

    Latents are what the draws are on average, in (-1, 1), and the codes are -1 and 1.
    """

    @staticmethod
    def kind(module: Any) -> Kind:
        return Kind.GRID

    def hear(self, module: Any, arguments: tuple, named: dict, output: Any) -> None:
        entered = first_argument(arguments, named)
        temperature = named.get("temperature", arguments[1] if len(arguments) > 1 else 1.0)
        latents = (entered / temperature).sigmoid() * 2 - 1
        self.keep(entered, output[0], -1, latents, module.codes.to(latents.dtype) * 2 - 1, output[0].argmax(-1))
