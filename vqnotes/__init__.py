"""vqnotes: watch vector-quantisation codebooks collapse, measure it, and find out why.

The core, read from left to right, each importing only from those before it: `nearest`, `kmeans`, `quantizers`,
`models`, `training`, `metrics`, `data`, `plots`. On it rest `remedies`, `diagnosis`, `studies` and `course`.
Names and modules load when they are first used: `import vqnotes` alone loads nothing, not even PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vqnotes import course as course
    from vqnotes import data as data
    from vqnotes import diagnosis as diagnosis
    from vqnotes import kmeans as kmeans
    from vqnotes import metrics as metrics
    from vqnotes import models as models
    from vqnotes import nearest as nearest
    from vqnotes import plots as plots
    from vqnotes import quantizers as quantizers
    from vqnotes import remedies as remedies
    from vqnotes import studies as studies
    from vqnotes import training as training
    from vqnotes.diagnosis import CollapseWatch, diagnose, diagnose_model, diagnose_tokens
    from vqnotes.metrics import UsageMeter
    from vqnotes.nearest import nearest_code
    from vqnotes.quantizers import VectorQuantizer
    from vqnotes.training import fit, fit_many

__version__ = "0.2.0"
__all__ = [
    "CollapseWatch",
    "UsageMeter",
    "VectorQuantizer",
    "diagnose",
    "diagnose_model",
    "diagnose_tokens",
    "fit",
    "fit_many",
    "nearest_code",
]

_HOMES = {
    "diagnosis": ("CollapseWatch", "diagnose", "diagnose_model", "diagnose_tokens"),
    "metrics": ("UsageMeter",),
    "nearest": ("nearest_code",),
    "quantizers": ("VectorQuantizer",),
    "training": ("fit", "fit_many"),
}
_MODULES = {*_HOMES, "course", "data", "kmeans", "models", "plots", "remedies", "studies"}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"vqnotes.{name}")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"vqnotes.{home}"), name)
    raise AttributeError(f"module 'vqnotes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
