"""Remedies for collapse, each a small subclass that changes one stage of `VectorQuantizer`; one file a stage.

    codes        codes(), prepare()   codes that move together, of one mean and spread, or of length 1
    gradients    estimate()           another gradient than straight-through
    choices      assign(), estimate() the choice of a code is drawn, or has a gradient
    losses       loss()               a term for codes, choices or latents
    replacement  after_step()         dead codes start anew
    scalar       assign()             a fixed grid, without search
    residual     all of them          several quantisers in a row
    product      all of them          several quantisers side by side

They combine by inheritance, since each passes on to the next what it does not change:

    class Both(CodeExpiry, RotationTrick): ...

`Both` takes the options of both and those of `VectorQuantizer`; `help(Both)` lists them. What does not work together,
or in one order only, says so in `excludes` or `comes_before`, and raises ValueError when it is made.
A step may write into the codebook before the gradient is taken: what uses the codes in a product copies them first.

What is no quantiser is not here: a better start is `init_codes`, a warm-up is an option of `training.fit`, moving
averages are `update="ema"`, and a larger encoder is an option of the models.
"""

from vqnotes.remedies.choices import GumbelVQ, IndexBackpropagation, StochasticVQ
from vqnotes.remedies.codes import AffineCodes, CosineCodes, LearntAffineCodes, SimVQ
from vqnotes.remedies.gradients import DiVeQ, RotationTrick
from vqnotes.remedies.losses import DecorrelatedCodes, EntropyLoss, KernelLoss, OrthogonalCodes, SpreadLatents
from vqnotes.remedies.product import ProductVQ
from vqnotes.remedies.replacement import (
    CodeExpiry,
    CodeSplitting,
    LeastRecentlyUsed,
    OnlineClustering,
    RandomRestart,
)
from vqnotes.remedies.residual import LevelDropout, ResidualVQ
from vqnotes.remedies.scalar import BSQ, FSQ, LFQ

__all__ = [
    "BSQ",
    "FSQ",
    "LFQ",
    "AffineCodes",
    "CodeExpiry",
    "CodeSplitting",
    "CosineCodes",
    "DecorrelatedCodes",
    "DiVeQ",
    "EntropyLoss",
    "GumbelVQ",
    "IndexBackpropagation",
    "KernelLoss",
    "LearntAffineCodes",
    "LeastRecentlyUsed",
    "LevelDropout",
    "OnlineClustering",
    "OrthogonalCodes",
    "ProductVQ",
    "RandomRestart",
    "ResidualVQ",
    "RotationTrick",
    "SimVQ",
    "SpreadLatents",
    "StochasticVQ",
]
