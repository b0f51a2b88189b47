"""What a check needs of a quantiser from anywhere: the adapter that its owner writes, and the kit that uses it."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vqnotes.quantizers import Quantized

__all__ = ["COUNT", "DIM", "SIZE", "Adapter", "Kit", "NotApplicable", "first_line"]

UPDATES = ("gradient", "ema", "fixed")
SIZE, DIM, COUNT = 16, 4, 1000  # codes, dimensions and latents of all checks but those of the search


@dataclass(frozen=True)
class Adapter:
    """How a quantiser is built, called and read. The first four are needed; what is left out is not checked.

    build: (codebook_size, dim) to a new `nn.Module`, started as it is at the beginning of training. Which options it
    takes is read off its signature: `beta`, the weight of the commitment loss; `kmeans_on`, latents (N, D) on which
    the codes are started by k-means, with the counts that belong to them. The random numbers of torch are seeded.
    call: (quantiser, latents (N, D)) to latents_q (N, D), index (N,), or (N, levels) of a stack, and the loss, a
    scalar; or None if there is no loss. In training mode it is a step.
    codes: quantiser to its codes (K, D) as they are used now, with their gradient; None for a stack or a fixed grid.
    update: what moves the codes: their loss ("gradient"), moving averages in `call` ("ema"), or nothing ("fixed").
    decode: (quantiser, index) to latents_q, as a decoder gets them; None for the rows of `codes`.
    place: (quantiser, codes (K, D)), puts the codes there; None to write into what `codes` returns.
    usage: (list of indices, a batch each, codebook_size) to a figure of usage of all of them, as the logs have it.
    expires: whether `call` replaces dead codes. by_distance: whether the code nearest to the latent is chosen.
    Raises ValueError for another update.
    """

    build: Callable[..., Any]
    call: Callable[[Any, Tensor], tuple]
    codes: Callable[[Any], Tensor] | None
    update: str
    decode: Callable[[Any, Tensor], Tensor] | None = None
    place: Callable[[Any, Tensor], object] | None = None
    usage: Callable[[list[Tensor], int], float] | None = None
    expires: bool = False
    by_distance: bool = True

    def __post_init__(self) -> None:
        if self.update not in UPDATES:
            raise ValueError(f"update must be one of {UPDATES}, got {self.update!r}")

    def takes(self, option: str) -> bool:
        """Whether `build` takes this option."""
        return option in inspect.signature(self.build).parameters


class NotApplicable(Exception):
    """Why a check does not apply."""


def first_line(error: Exception) -> str:
    """What an error says, as long as it fits into a sentence."""
    return str(error).strip().partition("\n")[0]


class Kit:
    """An adapter, and what all checks need of it. Raises ValueError for one that does not return what it should."""

    def __init__(self, adapter: Adapter, seed: int):
        self.adapter, self.seed = adapter, seed
        self.codes_learn = adapter.update == "gradient" and adapter.codes is not None  # from a loss, and can be read

    def built(self, size: int = SIZE, dim: int = DIM, **options: Any) -> Any:
        """A new quantiser in training mode, always the same."""
        torch.manual_seed(self.seed)
        quantizer = self.adapter.build(size, dim, **options)
        if not isinstance(quantizer, nn.Module):
            raise ValueError(f"build must return a torch.nn.Module, got {type(quantizer).__name__}")
        return quantizer.train()

    def normal(self, *shape: int, draw: int = 0) -> Tensor:
        """Standard normal numbers, the same for each draw."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(2 * self.seed + draw + 1))

    def call(self, quantizer: Any, latents: Tensor) -> Quantized:
        return Quantized(*self.adapter.call(quantizer, latents))

    @torch.no_grad()
    def evaluated(self, quantizer: Any, latents: Tensor) -> Quantized:
        """What it returns when it is not trained."""
        out = self.call(quantizer.eval(), latents)
        quantizer.train()
        return out

    def codes(self, quantizer: Any) -> Tensor:
        if self.adapter.codes is None:
            raise NotApplicable("The adapter has no codes.")
        return self.adapter.codes(quantizer)

    def decode(self, quantizer: Any, index: Tensor) -> Tensor:
        decode = self.adapter.decode
        return self.codes(quantizer)[index] if decode is None else decode(quantizer, index)

    @torch.no_grad()
    def place(self, quantizer: Any, codes: Tensor) -> None:
        """Puts the codes there, or says that they cannot be."""
        if not self.adapter.by_distance:
            raise NotApplicable("It does not choose by distance.")
        now = self.codes(quantizer)
        if self.adapter.place is None:
            now.copy_(codes)
        else:
            self.adapter.place(quantizer, codes)
        if not torch.equal(self.codes(quantizer).float(), codes.float()):
            raise NotApplicable("The codes do not stay where they are put: give the adapter a way to place them.")

    def enter(self) -> None:
        """Raises ValueError if the adapter does not return what it should."""
        quantizer, latents = self.built(), self.normal(COUNT, DIM)
        if self.adapter.codes is not None:
            codes = self.adapter.codes(quantizer)
            if codes.shape != (SIZE, DIM):
                raise ValueError(f"codes must be {(SIZE, DIM)} for build({SIZE}, {DIM}), got {tuple(codes.shape)}")
            if self.adapter.update == "gradient" and not codes.requires_grad:
                raise ValueError("codes that the loss moves must carry their gradient: return them without detach()")
        out = self.adapter.call(quantizer, latents)
        if len(out) != 3:
            raise ValueError(f"call must return latents_q, index and loss, got {len(out)} values")
        latents_q, index, loss = out
        if latents_q.shape != latents.shape:
            raise ValueError(f"latents_q must be {tuple(latents.shape)} as the latents, got {tuple(latents_q.shape)}")
        if index.is_floating_point() or index.shape[:1] != (COUNT,) or index.ndim > 2:
            raise ValueError(f"index must be whole, ({COUNT},) or ({COUNT}, levels), got {tuple(index.shape)}")
        if loss is not None and loss.ndim:
            raise ValueError(f"loss must be a scalar or None, got {tuple(loss.shape)}: take its sum")

    def usage(self, index: Tensor) -> float:
        """The share of codes in an index, of a stack that of its least used level."""
        return min(level.unique().numel() for level in index.reshape(len(index), -1).T) / SIZE

    def needs(self, field: str) -> None:
        if not getattr(self.adapter, field):
            raise NotApplicable(f"The adapter says {field}={getattr(self.adapter, field)!r}.")

    def needs_averages(self) -> None:
        if self.adapter.update != "ema":
            raise NotApplicable("Its codes are not moving averages.")
