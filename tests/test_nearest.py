"""The nearest code is exact: with offsets, ties, outliers, overflow, any dtype, and in little memory."""

import numpy as np
import pytest
import torch
from helpers import between_neighbours, brute_force, normal, peak_memory

from vqnotes import _rounding, _scores, nearest
from vqnotes.models import image_autoencoder, mlp_autoencoder
from vqnotes.nearest import nearest_by_product, nearest_code
from vqnotes.quantizers import VectorQuantizer


@pytest.mark.parametrize("offset, spread", [(0, 1), (1000, 1), (1, 1e-3), (-1e4, 1e-1)])
@pytest.mark.parametrize("dim, size", [(64, 512), (2, 256), (1, 7)])
def test_nearest_code_agrees_with_float64_brute_force(offset, spread, dim, size):
    latents = offset + spread * normal(2000, dim)
    codebook = offset + spread * normal(size, dim, seed=1)
    assert (nearest_code(latents, codebook) == brute_force(latents, codebook)).double().mean() >= 0.9999


@pytest.mark.parametrize("offset, spread", [(0, 1), (1000, 1), (1, 1e-3), (-1e4, 1e-1)])
@pytest.mark.parametrize("dim, size", [(64, 512), (3, 65), (2, 64), (1, 7), (5, 1)])
def test_the_search_is_its_reference(offset, spread, dim, size):
    latents = offset + spread * normal(4, 500, dim, dtype=torch.float64)
    codebook = offset + spread * normal(size, dim, seed=1, dtype=torch.float64)
    found = nearest_by_product(latents, codebook)
    assert torch.equal(found.flatten(), brute_force(latents.reshape(-1, dim), codebook))
    assert torch.equal(nearest_code(latents, codebook), found)


@pytest.mark.parametrize("offset, spread", [(1000, 1), (1, 1e-3)])
def test_the_textbook_expansion_fails_where_nearest_code_does_not(offset, spread):
    latents, codebook = offset + spread * normal(2000, 64), offset + spread * normal(512, 64, seed=1)
    squared = latents.square().sum(1)[:, None] + codebook.square().sum(1) - 2 * latents @ codebook.T
    assert (squared.argmin(1) != brute_force(latents, codebook)).double().mean() > 0.5


@pytest.mark.parametrize("offset, spread", [(0, 1), (1000, 1), (1, 1e-3)])
def test_nearest_code_hardly_ever_needs_to_measure_again(monkeypatch, offset, spread):
    again, measure = [], _rounding.by_differences
    monkeypatch.setattr(_rounding, "by_differences", lambda z, e: again.append(len(z)) or measure(z, e))
    nearest_code(offset + spread * normal(5000, 64), offset + spread * normal(512, 64, seed=1))
    assert sum(again) < 50  # without the shift to the centre it would be nearly all of them


def test_nearest_code_gives_ties_to_the_lowest_index():
    codebook = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert nearest_code(torch.tensor([[0.0, 3.0], [2.0, 0.0], [-2.0, 0.0]]), codebook).tolist() == [0, 0, 1]
    base = normal(100, 16)
    assert nearest_code(normal(3000, 16, seed=1), base.repeat(5, 1)).max() < 100
    assert (nearest_code(normal(50, 16, seed=1), torch.ones(9, 16)) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_code_measures_no_latent_again_for_clones_or_tight_clusters(monkeypatch, dtype):
    again, measure = [], _rounding.by_differences
    monkeypatch.setattr(_rounding, "by_differences", lambda z, e: again.append(len(z)) or measure(z, e))
    latents, base = normal(3000, 16, dtype=dtype), normal(100, 16, seed=1, dtype=dtype)
    codebook = base[torch.from_numpy(np.random.default_rng(0).integers(0, 100, 700))]  # copies in any order
    assert torch.equal(nearest_code(latents, codebook), brute_force(latents, codebook))
    latents, codebook = (10 * base.repeat(30, 1) + 1e-4 * latents), 10 * base.repeat(5, 1)
    codebook = codebook + 1e-4 * normal(500, 16, seed=2, dtype=dtype)  # too close to tell apart by a float32 product
    assert torch.equal(nearest_code(latents, codebook), brute_force(latents, codebook))
    assert sum(again) < 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("distinct", [1, 40, 320, 639])
def test_clones_make_no_second_search(monkeypatch, dtype, distinct):
    base = normal(distinct, 8, seed=1, dtype=dtype)
    codebook = base[torch.from_numpy(np.random.default_rng(0).permutation(640) % distinct)]
    latents, searched, search = normal(4000, 8, dtype=dtype), [], nearest._search

    def counted(z, codes, may_wait):
        searched.append(z[..., 0].numel() * codes.shape[1])
        return search(z, codes, may_wait)

    monkeypatch.setattr(nearest, "_search", counted)
    found = nearest_code(latents, codebook)
    assert torch.equal(found, brute_force(latents, codebook))
    assert sum(searched) <= 1.3 * len(latents) * len(codebook.unique(dim=0))


def test_few_latents_with_clones_are_not_measured_one_by_one(monkeypatch):
    again, measure = [], _rounding.by_differences
    monkeypatch.setattr(_rounding, "by_differences", lambda z, e: again.append(len(z)) or measure(z, e))
    latents, codebook = normal(100, 16), normal(500, 16, seed=1).repeat(2, 1)  # too little to look at the codes first
    assert torch.equal(nearest_code(latents, codebook), brute_force(latents, codebook))
    many = torch.vmap(nearest_code)(torch.stack([latents, latents + 1]), torch.stack([codebook, codebook]))
    assert many.max() < 500 and torch.equal(many[0], nearest_code(latents, codebook))
    assert sum(again) < 10


def test_zero_has_no_sign_among_clones():
    codebook = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [-0.0, -1.0], [0.0, -1.0]]).repeat(100, 1)
    latents = normal(5000, 2)
    assert torch.equal(nearest_code(latents, codebook), 2 * (latents[:, 1] < 0).long())
    strided = codebook.T.contiguous().T  # as a transposed weight is
    assert torch.equal(nearest_code(latents, strided), nearest_code(latents, codebook))


def test_nearest_code_sees_a_rival_anywhere_in_the_codebook():
    codebook = 100 + normal(1000, 3)  # neighbours are mostly in different blocks of 64
    latents = between_neighbours(codebook, 1000)
    assert torch.equal(nearest_code(latents, codebook), brute_force(latents, codebook))


@pytest.mark.parametrize("size", [63, 65, 127, 128])
def test_nearest_code_has_no_other_codes_than_those_of_the_codebook(size):
    codebook = torch.nn.functional.normalize(normal(size, 8), dim=1)
    latents = 1e-3 * normal(300, 8, seed=1)  # nearer to the centre than to any code
    assert torch.equal(nearest_code(latents, codebook), brute_force(latents, codebook))


def test_nearest_code_is_exact_under_autocast():
    latents, codebook = normal(500, 16), normal(300, 16, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_code(latents, codebook), brute_force(latents, codebook))


def test_nearest_code_survives_values_whose_squares_overflow():
    latents, codebook = 1e20 * normal(50, 4), 1e20 * normal(30, 4, seed=1)
    assert torch.equal(nearest_code(latents, codebook), brute_force(latents, codebook))


def test_nearest_code_is_not_misled_by_one_code_far_away():
    codebook = torch.cat([normal(255, 8), torch.full((1, 8), 1e5)])
    latents = normal(2000, 8, seed=1)
    assert (nearest_code(latents, codebook) == brute_force(latents, codebook)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_nearest_code_takes_any_float_dtype_and_leading_axes(dtype):
    latents, codebook = normal(3, 5, 7, 8, dtype=dtype), normal(400, 8, seed=1, dtype=dtype)
    index = nearest_code(latents, codebook)
    assert index.shape == (3, 5, 7) and index.dtype == torch.int64
    assert torch.equal(index.flatten(), brute_force(latents.reshape(-1, 8), codebook))
    assert nearest_code(latents[0, 0, 0], codebook).shape == ()


@pytest.mark.parametrize("in_dims", [(0, 0), (1, 0), (None, 0), (0, None)])
def test_nearest_code_under_vmap_is_the_same_run_by_run(in_dims, monkeypatch):
    monkeypatch.setattr(_scores, "SCORES_PER_CHUNK", 3 * 20 * 32)  # several chunks, the last one shorter
    many, codebooks = normal(3, 10, 7, 8), torch.stack([normal(20, 8, seed=seed) + 100 * seed for seed in range(3)])
    codebooks[2, 5] = codebooks[2, 4]  # a tie, and runs far from each other
    many = many + 100 * torch.arange(3)[:, None, None, None]
    latents = many[0] if in_dims[0] is None else many.movedim(0, in_dims[0])
    codebook = codebooks[1] if in_dims[1] is None else codebooks
    found = torch.vmap(nearest_code, in_dims)(latents, codebook)
    for run in range(3):
        own = many[0] if in_dims[0] is None else many[run]
        assert torch.equal(found[run], nearest_code(own, codebooks[1 if in_dims[1] is None else run]))
    assert found.shape == (3, 10, 7) and found.dtype == torch.int64


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_finds_the_same_codes(threads, monkeypatch):
    monkeypatch.setattr(_scores, "SCORES_PER_CHUNK", 100 * 64)
    latents, codebook = normal(3001, 8).requires_grad_(), normal(64, 8, seed=1)
    codebook[7] = codebook[3]
    torch.set_num_threads(threads)
    found = nearest_code(latents, codebook)
    with pytest.raises(ValueError, match="1 NaN"):
        nearest_code(torch.cat([latents, torch.full((1, 8), torch.nan)])[:, :1], codebook[:, :1])
    assert torch.get_num_threads() == threads
    assert torch.equal(found, brute_force(latents.detach(), codebook)) and not found.requires_grad


def test_nearest_code_under_vmap_refuses_one_bad_run():
    latents, codebooks = normal(3, 10, 8), normal(3, 20, 8, seed=1)
    latents[1, 4] = torch.nan
    with pytest.raises(ValueError, match="8 NaN"):
        torch.vmap(nearest_code)(latents, codebooks)


def test_nearest_code_needs_little_memory():
    latents, codebook = normal(65_536, 64), normal(8_192, 64, seed=1)
    nearest_code(latents[:2048], codebook)  # the libraries' own buffers, once
    assert peak_memory(lambda: nearest_code(latents, codebook)) < 64 * 2**20


@pytest.mark.parametrize(
    "latents, codebook, shown",
    [
        (torch.full((4, 3), torch.nan), torch.zeros(2, 3), "12 NaN"),
        (torch.full((4, 3), torch.inf), torch.zeros(2, 3), "infinite"),
        (torch.zeros(0, 3), torch.zeros(2, 3), r"\(0, 3\)"),
        (torch.zeros(4, 5), torch.zeros(2, 3), r"\(4, 5\)"),
        (torch.zeros(4, 3, dtype=torch.int64), torch.zeros(2, 3), "int64"),
        (torch.zeros(4, 3), torch.zeros(3), r"\(3,\)"),
        (torch.zeros(4, 3), torch.zeros(0, 3), r"\(0, 3\)"),
        (torch.zeros(4, 3), torch.full((2, 3), torch.nan), "NaN"),
    ],
)
def test_nearest_code_refuses_bad_input_and_shows_it(latents, codebook, shown):
    with pytest.raises(ValueError, match=shown):
        nearest_code(latents, codebook)


# ---------------------------------------------------------------- programs without Python


def small_models():
    """Models whose codes lie on their latents; for each two batches of different sizes."""
    models = mlp_autoencoder(5, VectorQuantizer(128, 3)), image_autoencoder(1, VectorQuantizer(128, 3))
    for model, x in zip(models, (normal(300, 5), normal(300, 1, 8, 8).sigmoid())):
        model.quantizer.init_codes("data", model.encode(x).detach())
        yield model.eval(), x[:16], x[16:39]


@pytest.mark.parametrize("model, x, other", list(small_models()))
def test_a_model_is_exported_for_any_batch_size(model, x, other):
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)).module()
    for batch in (x, other):
        (ours, quantized), (theirs, exported) = model(batch), program(batch)
        assert torch.equal(exported.index, quantized.index) and len(quantized.index.unique()) > 8
        assert torch.allclose(theirs, ours, atol=1e-6) and torch.allclose(exported.loss, quantized.loss)
        assert torch.equal(exported.latents_q, quantized.latents_q)


def test_what_is_exported_is_shifted_to_the_codes_too():
    latents, codebook = 1000 + normal(500, 16), 1000 + normal(100, 16, seed=1)

    class Search(torch.nn.Module):
        def forward(self, z):
            return nearest_code(z, codebook)

    program = torch.export.export(Search(), (latents,)).module()
    assert torch.equal(program(latents), brute_force(latents, codebook))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own making
def test_a_compiled_model_searches_as_exactly_as_before():
    _, (model, x, other) = small_models()
    with torch.no_grad():
        model.quantizer.codebook[64:] = model.quantizer.codebook[:64]  # ties, which a product alone may not see
    compiled = torch.compile(model, backend="eager")
    for batch in (x, other):
        assert torch.equal(compiled(batch)[1].index, model(batch)[1].index)
    assert compiled(x)[1].index.max() < 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dim", [1, 5, 17, 257])
def test_equal_codes_are_found_in_any_place(dtype, dim):
    """Not by sums of floats: where a row stands may decide how its sum is rounded."""
    base = normal(5, dim, seed=3).to(dtype)
    base[0, 0] = 0.0
    clones = base[:2].clone()
    clones[0, 0] = -0.0
    assert _rounding._first_of_equal(torch.cat([base, clones])).tolist() == [0, 1, 2, 3, 4]
    assert _rounding._first_of_equal(base.flip(0).T.contiguous().T).tolist() == [0, 1, 2, 3, 4]


def test_another_default_device_does_not_matter():
    latents, codes = normal(40, 3), normal(5, 3, seed=1).repeat(2, 1)
    expected = nearest_code(latents, codes)
    with torch.device("meta"):
        assert _rounding._first_of_equal(codes).tolist() == [0, 1, 2, 3, 4]
        found = nearest_code(latents, codes)
    assert torch.equal(found, expected)
