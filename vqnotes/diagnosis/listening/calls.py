"""One call of a quantiser, and the ear that hears it: what a library's ears derive from."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vqnotes.diagnosis.observed import Kind

__all__ = [
    "TEN_LINES",
    "Call",
    "Ear",
    "axis_of",
    "by_example",
    "first_argument",
    "is_started",
    "ten_lines",
    "without_calls",
]

# Buffers that say whether the codes have been placed, which some libraries do at the first batch: `initted` is in
# vector-quantize-pytorch, the others are in copies.
FLAGS = ("initted", "inited", "initialized")


def ten_lines(latents: str, codes: str, index: str = "", names: str = "of the module in the model") -> str:
    """Those that describe a quantiser: what its functions return; names: whose name "vq" is."""
    third = f"\n\n    def index_of(module, returned):\n        return {index}" if index else ""
    return f"""Ten lines of your own say how any quantiser works:

    from vqnotes import diagnose_model

    def latents_of(module, entered):  # entered: the first argument that the module is called with
        return {latents}

    def codes_of(module):
        return {codes}{third}

    quantizers = {{"vq": (latents_of, codes_of{", index_of" if index else ""})}}  # "vq" is the name {names}
    print(diagnose_model(model, data, quantizers=quantizers))
"""


TEN_LINES = ten_lines(
    "entered.movedim(1, -1)  # what is compared with the codes: (..., D)",
    "module.embedding.weight  # the codes in use: (K, D)",
)


@dataclass
class Call:
    """One call of a quantiser: what it was given, what it compared with its codes, and which it chose.

    Latents have their dimensions last, whatever the layout of the call: (heads, batch, places ..., D).
    """

    name: str  # of the quantiser's module
    entered: Tensor  # as the module was called
    returned: Tensor  # in place of it
    channel_axis: int  # of both
    latents: Tensor  # (heads, batch, places ..., D)
    codes: Tensor  # (heads, K, D)
    index: Tensor  # (heads, batch, places ...)
    mask: Tensor | None  # (batch, places ...), True counts
    shared: bool  # whether all heads have one codebook
    kind: Kind = Kind.UNKNOWN
    note: str | None = None  # how it was heard, if that is to be told


class Ear:
    """Hears the calls of one quantiser, and appends them to `heard`. A library's ear says what it hears in `hear`."""

    def __init__(self, name: str, module: nn.Module, heard: list[Call]):
        self.name, self.module, self.heard = name, module, heard

    note: str | None = None

    @staticmethod
    def started(module: Any) -> bool:
        """Whether the codes are in place. Where a library places them later than it makes them, its ear says so."""
        return True

    @staticmethod
    def kind(module: Any) -> Kind:
        """How its codes come about. A library's ear says so."""
        return Kind.UNKNOWN

    def hooks(self) -> list:
        """The hooks by which it hears, set on the module; whoever asks for them removes them."""
        return [self.module.register_forward_hook(self.hear, with_kwargs=True)]

    def hear(self, module: nn.Module, arguments: tuple, named: dict, output: Any) -> None:
        """A forward hook with named arguments: hands to `keep` what was compared in this call."""
        raise NotImplementedError

    def keep(
        self,
        entered: Tensor,
        returned: Tensor,
        axis: int,
        latents: Tensor,
        codes: Tensor,
        index: Tensor,
        mask: Tensor | None = None,
    ) -> None:
        """Appends the call. axis: of entered and returned that holds the dimensions.

        latents ([heads,] batch, places ..., D) and codes ([heads,] K, D) as they were compared, index without D;
        mask (batch, places ...), True where a latent counts. One codebook for all heads comes as (1, K, D).
        """
        if codes.ndim == 2:
            latents, codes, index = latents[None], codes[None], index[None]
        shared = len(codes) < len(latents)
        codes = codes.expand(len(latents), -1, -1)
        tensors = [one.detach() for one in (entered, returned, latents, codes, index)]
        entered, returned, latents, codes, index = tensors
        kind = self.kind(self.module)
        self.heard.append(
            Call(self.name, entered, returned, axis, latents, codes, index, mask, shared, kind, self.note)
        )


def is_started(module: nn.Module) -> bool:
    """Whether this module's codes are in place, as far as a flag among its buffers says so."""
    flags = [flag for name, flag in module.named_buffers(recurse=False) if name in FLAGS]
    return all(bool(flag.all()) for flag in flags)


def without_calls(model: nn.Module) -> str:
    """What is said of a model that torch.jit has traced or scripted, in whole or in part; "" of any other."""
    parts = {name: one for name, one in model.named_modules() if isinstance(one, torch.jit.ScriptModule)}
    outer = {name: one for name, one in parts.items() if not {"", name.rpartition(".")[0]} & (parts.keys() - {name})}
    if not outer:
        return ""
    found = ", ".join(f"{name or 'the model'} ({type(one).__name__})" for name, one in outer.items())
    return (
        f"torch.jit has traced or scripted {found}, and calls inside it cannot be heard. Give the model as it was "
        f"before; or give arrays: diagnose(latents, codebook). quantizers= helps for what is called from Python"
    )


def axis_of(entered: Tensor, places: tuple, dim: int) -> int:
    """The axis of what entered that holds the dimensions, of which there may be others before a projection."""
    sides = [tuple(side for i, side in enumerate(entered.shape) if i != axis) for axis in range(entered.ndim)]
    fitting = [axis for axis, side in enumerate(sides) if side == places]
    return min(fitting, key=lambda axis: (entered.shape[axis] != dim, axis)) if fitting else -1


def first_argument(arguments: tuple, named: dict) -> Tensor:
    """The first argument of a call, by position or by name."""
    return arguments[0] if arguments else next(iter(named.values()))


def by_example(call: Call, batch: int) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """The call's latents (heads, batch, places ..., D), index and mask, one row an example; None if they are not.

    A first axis that is a multiple of the batch, as in (batch * places, D), counts as example after example; so does
    one behind others of length 1.
    """
    sides = call.latents.shape[1:-1]
    if sides and sides[0] == batch:
        return call.latents, call.index, call.mask
    count = math.prod(sides)
    if next((side for side in sides if side > 1), 1) % batch:
        return None
    places = (count // batch,) if count > batch else ()
    latents = call.latents.reshape(len(call.latents), batch, *places, -1)
    mask = None if call.mask is None else call.mask.reshape(batch, *places)
    return latents, call.index.reshape(latents.shape[:-1]), mask
