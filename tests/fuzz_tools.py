"""What the fuzz tests draw: tensors, latents with a codebook, quantisers, tables; mostly usable, now and then odd.

VQNOTES_FUZZ=2000 draws so many examples a test, others each time. Without it they are few and always the same.
"""

import math
import os
import re
import tempfile

import numpy as np
import pandas as pd
import torch
from hypothesis import HealthCheck, assume, configuration, settings
from hypothesis import strategies as st

from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import (
    BSQ,
    FSQ,
    LFQ,
    AffineCodes,
    CodeExpiry,
    CodeSplitting,
    CosineCodes,
    DecorrelatedCodes,
    DiVeQ,
    EntropyLoss,
    GumbelVQ,
    IndexBackpropagation,
    KernelLoss,
    LearntAffineCodes,
    LeastRecentlyUsed,
    LevelDropout,
    OnlineClustering,
    OrthogonalCodes,
    ProductVQ,
    RandomRestart,
    ResidualVQ,
    RotationTrick,
    SimVQ,
    SpreadLatents,
    StochasticVQ,
)

MORE = os.environ.get("VQNOTES_FUZZ")
EXAMPLES = int(MORE or 60)
HOME = tempfile.TemporaryDirectory()  # of what hypothesis stores; it goes with the process
configuration.set_hypothesis_home_dir(HOME.name)
settings.register_profile(
    "fuzz",
    max_examples=EXAMPLES,
    derandomize=not MORE,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("fuzz")
few = settings(max_examples=max(1, EXAMPLES // 3))  # for what takes long

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
MIXED = FLOATS * 5 + [torch.int64, torch.uint8, torch.bool, torch.complex64]
MILD = ["normal", "whole", "constant", "offset", "small"]
ANY = MILD * 3 + ["large", "mixed", "huge", "largest", "tiny", "nan", "inf"]
ODD = [-1, 0, 1, 2, 7, 0.5, math.nan, math.inf, -math.inf, 1e300, 1e-320]
COUNT = st.sampled_from([1, 2, 3, 4, 5, 6] * 4 + [0, -1])
SIZE = st.sampled_from([1, 2, 3, 4, 5] * 4 + [0])


def chosen(*values):
    return st.sampled_from(values)


def filled(shape, dtype, kind, seed):
    """A tensor of this shape and type; kind says what numbers it holds."""
    rng = np.random.default_rng(seed)
    x, u = rng.standard_normal(shape), rng.uniform(-1, 1, shape)
    info = torch.finfo(dtype if dtype.is_floating_point else torch.float32)
    x = {
        "whole": np.round(x),
        "constant": np.full(shape, rng.standard_normal()),
        "offset": 100 + x / 100,
        "small": x / 1000,
        "large": u * info.max**0.4,
        "mixed": x * 10 ** (4 * u),
        "huge": u * info.max**0.8,
        "largest": u * info.max,
        "tiny": u * info.tiny,
    }.get(kind, x)
    made = torch.as_tensor(np.array(x)).to(dtype)
    if kind in ("nan", "inf") and dtype.is_floating_point and made.numel():
        made.view(-1)[rng.integers(made.numel())] = float(kind)
    return made


def shapes(*last, most=3):
    """Up to so many leading axes, then those that are given."""
    return st.lists(SIZE, max_size=most).map(lambda axes: (*axes, *last))


@st.composite
def tensors(draw, shapes=shapes(most=4), dtypes=MIXED, kinds=ANY):  # noqa: B008
    kind = draw(st.sampled_from(kinds))
    return filled(draw(shapes), draw(st.sampled_from(dtypes)), kind, draw(st.integers(0, 99)))


@st.composite
def pairs(draw, kinds=ANY):
    """Latents (..., D) and a codebook (K, D) that fit each other."""
    dim, kind = draw(st.integers(1, 5)), [draw(st.sampled_from(kinds))]
    latents = draw(tensors(shapes(dim), FLOATS, kind if draw(st.booleans()) else kinds))
    return latents, draw(tensors(st.tuples(st.integers(1, 7), st.just(dim)), FLOATS, kind))


REFUSED = object()


def call(function, *arguments, **options):
    """What the function returns, or REFUSED if it raises a ValueError that shows something of what it got."""
    try:
        return function(*arguments, **options)
    except ValueError as error:
        assert re.search(r"got|\d|'|\[", str(error)), f"shows nothing: {error}"
        return REFUSED


# ---------------------------------------------------------------- quantisers


class ExpiryRotation(CodeExpiry, RotationTrick):
    pass


class RestartOrthogonalEntropy(RandomRestart, OrthogonalCodes, EntropyLoss):
    pass


class ClusteringDiVeQ(OnlineClustering, DiVeQ):
    pass


class CosineSimVQ(CosineCodes, SimVQ):
    pass


WEIGHTS = [0, 0.5, 0.9, 1, 7, 0.25, -1, math.nan, math.inf]
UPDATES = ["gradient", "ema"]
STAGES = [(2, 3), (5,), (1, 1, 2), (), (0, 2)]
KINDS = {
    VectorQuantizer: {"beta": WEIGHTS, "update": [*UPDATES, "sgd"], "decay": WEIGHTS},
    SimVQ: {"update": UPDATES, "bias": [True], "start": ["identity", "linear", "far"]},
    CosineSimVQ: {"bias": [True]},
    AffineCodes: {"affine_decay": WEIGHTS},
    LearntAffineCodes: {"affine_lr": WEIGHTS},
    CosineCodes: {"update": UPDATES},
    RotationTrick: {"update": UPDATES},
    DiVeQ: {"variance": WEIGHTS, "beta": WEIGHTS},
    OrthogonalCodes: {"orthogonal_weight": WEIGHTS},
    SpreadLatents: {"spread_weight": WEIGHTS, "variance_weight": WEIGHTS, "update": UPDATES},
    EntropyLoss: {"entropy_weight": WEIGHTS, "temperature": WEIGHTS, "relative": [False], "update": UPDATES},
    RandomRestart: {"threshold": WEIGHTS, "memory": WEIGHTS, "update": UPDATES},
    CodeExpiry: {"threshold": WEIGHTS, "memory": WEIGHTS},
    LeastRecentlyUsed: {"patience": [None, *WEIGHTS], "noise": WEIGHTS, "update": UPDATES},
    OnlineClustering: {"anchor": ["random", "probrandom", "closest", "far"], "memory": WEIGHTS, "update": UPDATES},
    CodeSplitting: {"interval": [1, 2, *WEIGHTS], "threshold": WEIGHTS, "noise": WEIGHTS, "update": UPDATES},
    ExpiryRotation: {"update": UPDATES},
    RestartOrthogonalEntropy: {},
    ClusteringDiVeQ: {},
    FSQ: {"levels": [(3,), (4, 5), (3, 3, 3), (300, 3), (1500,), (2, 3), ()], "bound": ["tan", "far"]},
    LFQ: {"bits": [0, 1, 4], "entropy_weight": WEIGHTS, "inverse_temperature": WEIGHTS, "beta": WEIGHTS},
    BSQ: {"bits": [0, 1, 4], "entropy_weight": WEIGHTS, "inverse_temperature": WEIGHTS, "beta": WEIGHTS},
    DecorrelatedCodes: {"decorrelation_weight": WEIGHTS, "update": UPDATES},
    KernelLoss: {"kernel_weight": WEIGHTS, "kernel_temperature": WEIGHTS, "half_life": WEIGHTS},
    StochasticVQ: {"sampling_temperature": WEIGHTS, "update": UPDATES},
    GumbelVQ: {"sampling_temperature": WEIGHTS, "softness": WEIGHTS, "kl_weight": WEIGHTS},
    IndexBackpropagation: {"beta": WEIGHTS, "update": UPDATES},
    ResidualVQ: {"stages": STAGES, "kind": [RotationTrick, SimVQ, CosineCodes, GumbelVQ, StochasticVQ]},
    LevelDropout: {"stages": STAGES},
    ProductVQ: {"stages": STAGES, "kind": [RotationTrick, SimVQ, CosineCodes, GumbelVQ]},
}


@st.composite
def quantizers(draw):
    kind = draw(st.sampled_from(list(KINDS)))
    options = {
        name: draw(st.sampled_from(values))
        for name, values in KINDS[kind].items()
        if name in ("levels", "bits", "stages") or draw(st.booleans())
    }
    size = {} if kind in (FSQ, LFQ, BSQ) else {"dim": draw(SIZE)}
    if kind not in (FSQ, LFQ, BSQ, ResidualVQ, LevelDropout, ProductVQ):
        size["codebook_size"] = draw(SIZE)
    torch.manual_seed(draw(st.integers(0, 9)))
    made = call(kind, **size, **options)
    assume(made is not REFUSED)
    assert made.codebook_size >= 1 and made.dim >= 1
    return made.to(draw(st.sampled_from(FLOATS)))


# ---------------------------------------------------------------- tables of runs

ODD_VALUES = chosen(0, 1, 2.5, -3, 2, 5, 1e-3, 1e300, -1e300, 1e-320, math.nan, math.inf, None, "a", True)
LEVELS = chosen(*["a", "b", "c", 1, 2] * 2, *range(3, 12), None)


@st.composite
def tables(draw):
    """Runs, one a row: columns first, second, seed, y. Mostly a whole grid, sometimes with holes and odd values."""
    most = draw(chosen((3, 3), (3, 3), (3, 3), (3, 1), (1, 3), (14, 1)))
    first, second = (draw(st.lists(LEVELS, min_size=min(2, size), max_size=size, unique=True)) for size in most)
    seeds = draw(chosen(*[[0, 1], [0, 1, 2], [0, 1, 2, 3]] * 3, [0], [], [0, 0]))
    rows = [{"first": a, "second": b, "seed": seed} for a in first for b in second for seed in seeds]
    values = draw(chosen(st.integers(-9, 9), st.floats(-9, 9), st.just(2.0), ODD_VALUES))
    y = draw(st.lists(values, min_size=len(rows), max_size=len(rows)))
    if draw(st.integers(0, 5)) == 0:
        y = [row["seed"] for row in rows]
    table = pd.DataFrame(rows, columns=["first", "second", "seed"]).assign(y=y)
    kept, lost = draw(chosen(*[slice(None)] * 5, slice(1, None))), draw(chosen(*[[]] * 6, ["y"], ["seed"]))
    return table.drop(columns=lost)[kept]
