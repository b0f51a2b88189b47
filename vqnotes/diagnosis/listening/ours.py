"""How the quantisers of vqnotes are heard."""

from torch import nn

from vqnotes.diagnosis.listening.calls import Ear, first_argument
from vqnotes.quantizers import VectorQuantizer

__all__ = ["KNOWN", "OwnEar", "ear_of"]

KNOWN = "vqnotes' quantisers"


def ear_of(module: nn.Module) -> type[Ear] | None:
    """The kind of ear that hears this module; None if it is no quantiser of this library."""
    return OwnEar if isinstance(module, VectorQuantizer) else None


class OwnEar(Ear):
    """`VectorQuantizer` and what is made of it."""

    def hear(self, module: nn.Module, arguments: tuple, named: dict, output) -> None:
        entered = first_argument(arguments, named)
        self.keep(entered, output.latents_q, -1, module.prepare(entered), module.codes(), output.index)
