"""Odd input to data, models, training, tables, figures and claims: each keeps its promise, or raises ValueError.

fuzz_tools.py says how to draw more examples.
"""

import contextlib
import io
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fuzz_tools import COUNT, LEVELS, ODD, REFUSED, SIZE, call, chosen, few, pairs, tables, tensors
from hypothesis import given
from hypothesis import strategies as st

from vqnotes import data, models, plots, training
from vqnotes.course import claims
from vqnotes.quantizers import INITS, VectorQuantizer
from vqnotes.studies import sweeps

# ---------------------------------------------------------------- data, models, training


@given(chosen(data.gaussian_modes, data.rings), COUNT, COUNT, COUNT, st.integers(0, 3))
def test_synthetic_data(family, classes, per_class, dim, seed):
    made = call(family, classes, per_class, dim, seed)
    if made is not REFUSED:
        assert made.x.shape == (classes * per_class, dim) and made.centers.shape == (classes, dim)
        assert made.x.isfinite().all() and made.centers.isfinite().all() and made.x.dtype == torch.float32
        assert torch.equal(made.y.bincount(), torch.full((classes,), per_class))


@given(st.one_of(*[tensors(st.tuples(SIZE, SIZE, SIZE, SIZE))] * 5, tensors()), COUNT, COUNT, st.integers(0, 3))
def test_random_crops(images, count, size, seed):
    crops = call(data.random_crops, images, count, size, seed)
    assert crops is REFUSED or crops.shape == (count, images.shape[1], size, size) and crops.numel() > 0


@given(st.data())
def test_models_fit_and_evaluate(data):
    dim, pictures = data.draw(COUNT), data.draw(st.booleans())
    widths = {"width": data.draw(COUNT), "decoder_width": data.draw(COUNT)}
    widths |= {"patch": data.draw(chosen(2, 1, 2, 1, 0, -1))} if pictures else {}

    def build(seed):
        builder = models.image_autoencoder if pictures else models.mlp_autoencoder
        return builder(dim, VectorQuantizer(3, 2), **widths)

    model = call(build, 0)
    if model is REFUSED:
        return
    right = st.tuples(SIZE, st.just(dim), *[SIZE.map(lambda side: 2 * side)] * (2 * pictures))
    x = data.draw(tensors(right, [torch.float32], ["normal"] * 4 + ["whole", "constant", "nan", "inf"]))
    found = call(models.evaluate, model, x, data.draw(COUNT))
    if found is not REFUSED:
        assert found.reconstruction.shape == x.shape and all(part.isfinite().all() for part in found)
        assert found.index.shape == found.latents.shape[:-1] and found.index.max() < 3 and model.training
    plan = {"steps": data.draw(COUNT), "batch_size": data.draw(COUNT), "progress": False}
    plan |= {"warmup": data.draw(chosen(*[0] * 8, 1, 2, -1)), "init": data.draw(chosen(*[None, *INITS] * 3, "best"))}
    plan |= {
        "lr": data.draw(chosen(*[1e-3, 0.5] * 8, 0, -1, math.nan, math.inf)),
        "codebook_lr": data.draw(chosen(None, 0.1, None, 0.1, 0)),
    }
    history = call(training.fit, model, x, seed=0, **plan)
    if history is not REFUSED:
        assert len(history) == plan["steps"] == len(history.quantizer) and np.isfinite(history.reconstruction).all()
        assert all(one.isfinite().all() for one in model.state_dict().values())
    runs = call(training.fit_many, build, x, seeds=data.draw(chosen([0], [1, 2], [], [1, 1])), **plan)
    assert runs is REFUSED or all(len(history) == plan["steps"] for _, history in runs)


# ---------------------------------------------------------------- tables of runs, figures


@given(st.dictionaries(chosen("a", "b", "c"), st.lists(st.integers(0, 3), max_size=3)))
def test_grid(levels):
    found = call(sweeps.grid, **levels)
    assert found is REFUSED or len(found) == math.prod(map(len, levels.values())) > 0


@given(tables(), chosen("first", "second", "second", "none"), LEVELS, st.booleans())
def test_tables_of_runs(runs, by, to, there):
    found = call(sweeps.summary, runs, [by], "y")
    if found is not REFUSED:
        assert len(found) == runs[by].nunique(dropna=False)
        assert (found["low"] <= found["mean"] + 1e-9).all() and (found["mean"] <= found["high"] + 1e-9).all()
    to = runs[by].iloc[0] if there and by in runs and len(runs) else to
    other = "second" if by == "first" else "first"
    some = runs[runs[other].isin(runs[other][:1])]  # one run an arm and seed
    found = call(sweeps.differences, some, by, to, "y")
    if found is not REFUSED:
        assert len(found) == runs[by].nunique() - 1 and np.isfinite(found[["mean", "low", "high"]].to_numpy()).all()
    found = call(sweeps.eta_squared, runs, "y", ["first", by])
    if found is not REFUSED:
        assert found["share"].sum() == pytest.approx(1) and found["share"].between(-1e-9, 1 + 1e-9).all()
        assert np.isfinite(found[["low", "high"]].to_numpy()).all()


@pytest.fixture(scope="module")
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@few
@given(tensors(), tensors(), pairs(), tensors(st.tuples(chosen(1, 3), SIZE, SIZE)), COUNT)
def test_plots_of_tensors(ax, one, other, pair, image, count):
    ax.clear()
    frames = [
        call(plots.codes_and_latents, ax, *pair),
        call(plots.codes_and_latents, ax, one, other),
        call(plots.latents_by_label, ax, one, other),
        call(plots.latents_by_label, ax, pair[0], torch.arange(pair[0][..., 0].numel())),
        call(plots.code_counts, ax, one, count),
        call(plots.code_counts, ax, image.real.int().abs(), count),
        call(plots.spectrum, ax, one),
        call(plots.picture, ax, one),
        call(plots.picture, ax, image),
        call(plots.index_map, ax, one),
        call(plots.index_map, ax, image[0].int()),
    ]
    for frame in (frame for frame in frames if frame is not REFUSED):
        assert len(frame) and not frame.isna().to_numpy().any()


@few
@given(tables(), chosen("first", None))
def test_plots_of_runs(ax, runs, by):
    ax.clear()
    curves, arms = call(plots.curves, ax, runs, "second", "y", by), call(plots.arms, ax, runs, "y", "first")
    for table in (table for table in (curves, arms) if table is not REFUSED):
        assert len(table) and np.isfinite(table[["mean", "low", "high"]].to_numpy()).all()
    assert arms is REFUSED or len(ax.get_yticklabels()) == runs["first"].nunique(dropna=False)


# ---------------------------------------------------------------- claims


@given(chosen(*ODD, True, False, None, "", "a", torch.tensor(1.0), np.float64("nan"), torch.tensor([False])))
def test_claims(holds):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            claims.claim("It holds", holds)
        except AssertionError as error:
            assert "It holds" in str(error)
    assert bool(printed.getvalue()) == (bool(holds) and bool(holds == holds))


@given(st.one_of(st.integers(-5, 1005), chosen(math.nan, math.inf, -math.inf)))
def test_seeds(count):
    found = call(claims.seeds, count)
    assert found is REFUSED or len(set(found)) == count
