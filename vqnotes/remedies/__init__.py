"""Remedies for collapse, each a small subclass that changes one stage of `VectorQuantizer`; one file a stage.

    codes        codes(), prepare()   codes that move together, of one mean and spread, or of length 1
    gradients    estimate()           another gradient than straight-through
    losses       loss()               a term for codes, choices or latents
    replacement  after_step()         dead codes start anew
    scalar       assign()             a fixed grid, without search
    residual     all of them          several quantisers in a row

They combine by inheritance, since each passes on to the next what it does not change:

    class Both(CodeExpiry, RotationTrick): ...

`Both` takes the options of both and those of `VectorQuantizer`; `help(Both)` lists them. What does not work together,
or in one order only, says so in `excludes` or `comes_before`, and raises ValueError when it is made.
A step may write into the codebook before the gradient is taken: what uses the codes in a product copies them first.

What is no quantiser is not here: a better start is `init_codes`, a warm-up is an option of `training.fit`, moving
averages are `update="ema"`, and a larger encoder is an option of the models.
"""

from vqnotes.remedies.codes import AffineCodes, CosineCodes, LearntAffineCodes, SimVQ
from vqnotes.remedies.gradients import DiVeQ, RotationTrick
from vqnotes.remedies.losses import EntropyLoss, OrthogonalCodes, SpreadLatents
from vqnotes.remedies.replacement import (
    CodeExpiry,
    CodeSplitting,
    LeastRecentlyUsed,
    OnlineClustering,
    RandomRestart,
)
from vqnotes.remedies.residual import ResidualVQ
from vqnotes.remedies.scalar import FSQ, LFQ

__all__ = [
    "FSQ",
    "LFQ",
    "AffineCodes",
    "CodeExpiry",
    "CodeSplitting",
    "CosineCodes",
    "DiVeQ",
    "EntropyLoss",
    "LearntAffineCodes",
    "LeastRecentlyUsed",
    "OnlineClustering",
    "OrthogonalCodes",
    "RandomRestart",
    "ResidualVQ",
    "RotationTrick",
    "SimVQ",
    "SpreadLatents",
]
