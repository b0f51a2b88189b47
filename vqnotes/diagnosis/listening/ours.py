"""How the quantisers of vqnotes are heard."""

from typing import Any

from torch import nn

from vqnotes.diagnosis.listening.calls import Ear, first_argument
from vqnotes.diagnosis.observed import Kind
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies.codes import AffineCodes, LearntAffineCodes, SimVQ
from vqnotes.remedies.scalar import FSQ, LFQ

__all__ = ["KNOWN", "OwnEar", "ear_of"]

KNOWN = "vqnotes' quantisers"


def ear_of(module: nn.Module) -> type[Ear] | None:
    """The kind of ear that hears this module; None if it is no quantiser of this library."""
    return OwnEar if isinstance(module, VectorQuantizer) else None


class OwnEar(Ear):
    """`VectorQuantizer` and what is made of it."""

    @staticmethod
    def kind(module: Any) -> Kind:
        if isinstance(module, FSQ | LFQ):
            return Kind.GRID
        if isinstance(module, SimVQ | AffineCodes | LearntAffineCodes):
            return Kind.COMPUTED
        return Kind.EMA if module.update == "ema" else Kind.LEARNT

    def hear(self, module: Any, arguments: tuple, named: dict, output: Any) -> None:
        entered = first_argument(arguments, named)
        self.keep(entered, output.latents_q, -1, module.prepare(entered), module.codes(), output.index)
