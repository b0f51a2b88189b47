"""Whatever people bring is parsed once: axes, masks, indices and labels; what is no use is refused, not ignored."""

import numpy as np
import pytest
import torch
from helpers import normal

from vqnotes import _checks
from vqnotes._rounding import PART, mean_of_rows
from vqnotes.diagnosis import diagnose, diagnose_stack
from vqnotes.diagnosis.inputs import Inputs, UnpairedInputs
from vqnotes.diagnosis.measures import measure
from vqnotes.diagnosis.observed import around, observe
from vqnotes.kmeans import kmeans

# ---------------------------------------------------------------- where the dimensions are


def test_the_axis_of_the_dimensions():
    codes = normal(5, 8)
    rows = normal(3, 6, 7, 8)
    for latents, axis in [(rows, None), (rows, -1), (rows.movedim(-1, 1), None), (rows.movedim(-1, 0), 0)]:
        assert torch.equal(observe(latents, codes, channel_axis=axis).latents, rows.reshape(-1, 8))
    square = normal(3, 8, 8, 8)
    with pytest.raises(ValueError, match=r"\(3, 8, 8, 8\).*two ways.*channel_axis=-1.*channel_axis=1"):
        observe(square, codes)
    assert torch.equal(observe(square, codes, channel_axis=-1).latents, square.reshape(-1, 8))
    assert torch.equal(observe(square, codes, channel_axis=1).latents, square.movedim(1, -1).reshape(-1, 8))
    assert observe(normal(3, 1, 1), normal(5, 1)).grid == (3, 1)  # both readings are the same
    with pytest.raises(ValueError, match="two ways"):
        observe(normal(3, 1, 4, 1), normal(5, 1))  # places (1, 4), or (4, 1)
    for axis in (2, 7):
        with pytest.raises(ValueError, match=rf"channel_axis={axis} of latents \(3, 6, 7, 8\)"):
            observe(rows, codes, channel_axis=axis)


@pytest.mark.parametrize("steps", [15, 16])
def test_a_sequence_is_judged_alike_at_every_length(steps):
    x = normal(200, steps, 4) @ normal(4, 64, seed=1) + 0.05 * normal(200, steps, 64, seed=2)
    axes = torch.linalg.svd(x.reshape(-1, 64), full_matrices=False).Vh[:8]
    latents = x @ axes.T
    codes = kmeans(latents.reshape(-1, 8), 64)[0]
    f = measure(observe(latents, codes, inputs=x, places=(1,)))
    flat = measure(observe(latents.reshape(-1, 8), codes, inputs=x.reshape(-1, 64)))
    assert f.encoder_loss < 0.01 and f.encoder_loss == pytest.approx(flat.encoder_loss, rel=0.1)
    assert (f.inputs_loss, f.codes_loss) == pytest.approx((flat.inputs_loss, flat.codes_loss), rel=0.1)
    wrong = {"inputs": x.movedim(1, 2), "places": (2,)} if steps == 15 else {"inputs": x, "places": (2,)}
    assert (measure(observe(latents, codes, **wrong)).encoder_loss > 0.5) == (steps == 16)


# ---------------------------------------------------------------- what counts


def test_masked_latents_do_not_count():
    latents, codes, x = normal(50, 9, 4), normal(16, 4), normal(50, 9, 3)
    mask = torch.arange(9) < torch.randint(1, 9, (50, 1), generator=torch.Generator().manual_seed(0))
    padded = torch.where(mask[..., None], latents, torch.nan)
    f = measure(observe(padded, codes, mask=mask, labels=(x[..., 0] > 0).long()))
    kept = measure(observe(latents[mask], codes))
    assert torch.equal(f.counts, kept.counts) and f.latents == int(mask.sum())
    assert (f.error, f.gap, f.perplexity) == pytest.approx((kept.error, kept.gap, kept.perplexity))
    again = measure(
        observe(torch.where(mask[..., None], latents, 1e9), codes, mask=mask.numpy(), inputs=x, places=(1,))
    )
    assert again.error == f.error and again.encoder_loss == pytest.approx(1, abs=0.2)
    found = diagnose(padded, codes, mask=mask)
    assert found.notes[0] == f"{int((~mask).sum())} of 450 latents are masked and do not count"


@pytest.mark.parametrize(
    "shape, grid, places",
    [
        ((50, 8, 3), (50, 8), (1,)),  # a piece for each latent
        ((50, 16, 3), (50, 8), (1,)),
        ((50, 3, 8, 16), (50, 32), None),  # square patches, row by row
        ((400, 5), (50, 8), None),  # an input for each latent
    ],
)
def test_a_mask_covers_the_inputs_and_their_reconstruction(shape, grid, places):
    latents, codes, x = normal(*grid, 4), normal(16, 4), normal(*shape)
    mask = torch.rand(grid, generator=torch.Generator().manual_seed(0)) < 0.7
    paired = Inputs(x, grid, places)
    padded, back = x.clone(), (x + 0.1).clone()
    for one in (padded, back):
        pieces = Inputs(one, grid, places).patches  # views
        pieces[~mask.reshape(paired.grid)] = torch.nan
    assert padded.isnan().any() and padded.isfinite().any()
    given = {"mask": mask, "places": places}
    expected = measure(observe(latents, codes, inputs=x, reconstruction=x + 0.1, **given))
    assert measure(observe(latents, codes, inputs=padded, reconstruction=back, **given)) == expected
    for name, wrong in (("inputs", {"inputs": padded}), ("reconstruction", {"inputs": x, "reconstruction": back})):
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            observe(latents, codes, places=places, **wrong)
        with pytest.raises(ValueError, match=f"{name} must be finite"):  # of latents that count
            observe(latents, codes, mask=~mask, places=places, **wrong)


def test_padding_is_no_neighbour():
    latents, mask = (
        torch.tensor([[1.0], [2], [0], [4], [5], [6]]),
        torch.tensor([True, True, False, True, True, True]),
    )
    assert around(latents, (2, 3), torch.tensor([0, 1, 4]), mask)[..., 0].tolist() == [
        [1, 1, 2],
        [1, 2, 2],
        [4, 5, 6],
    ]


@pytest.mark.parametrize(
    "mask, message",
    [
        (torch.zeros(50, 9, dtype=torch.bool), "False everywhere"),
        (torch.ones(50, 9), r"True where a latent counts.*\(50, 9\), got torch.float32"),
        (torch.ones(50, 8, dtype=torch.bool), r"\(50, 9\), got torch.bool \(50, 8\)"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        observe(normal(50, 9, 4), normal(16, 4), mask=mask)


def test_the_models_own_indices_are_counted():
    latents = torch.tensor([[[0.0], [0.2]], [[1.0], [0.9]]]).repeat(500, 1, 1)
    index = np.tile([[0, 1], [1, 0]], (500, 1))
    f = measure(observe(latents, torch.tensor([[0.0], [1.0], [5.0]]), index=index))
    assert f.counts.tolist() == [1000, 1000, 0] and f.own_differs == pytest.approx(0.5)
    spread = latents.var(correction=0).item()
    assert f.error == pytest.approx((0.8**2 + 0.9**2) / 4 / spread, rel=0.1)
    mask = torch.tensor([True, False]).expand(1000, 2)
    f = measure(observe(latents, torch.tensor([[0.0], [1.0], [5.0]]), index=np.where(mask, index, -1), mask=mask))
    assert f.counts.tolist() == [500, 500, 0] and f.own_differs == 0


@pytest.mark.parametrize(
    "index, message",
    [
        (torch.zeros(50, 8, dtype=torch.int64), r"whole numbers.*\(50, 9\), got torch.int64 \(50, 8\)"),
        (torch.zeros(50, 9), "whole numbers"),
        (torch.full((50, 9), 16), r"0 .. 15, got 16 .. 16"),
        (torch.full((50, 9), -1), "-1"),
    ],
)
def test_indices_that_do_not_fit_are_refused(index, message):
    with pytest.raises(ValueError, match=message):
        observe(normal(50, 9, 4), normal(16, 4), index=index)


# ---------------------------------------------------------------- what is no use is refused, not ignored


def test_places_and_a_reconstruction_say_nothing_without_inputs():
    latents, codes = normal(50, 9, 4), normal(16, 4)
    with pytest.raises(ValueError, match=r"pass inputs= too, got places=\(1,\) alone"):
        diagnose(latents, codes, places=(1,))
    with pytest.raises(ValueError, match="pass inputs= too, got Tensor alone"):
        diagnose_stack([[(latents, codes, None)]], reconstruction=normal(50, 9, 3))
    for grid, x in ((450,), normal(450, 3)), ((50, 9), normal(450, 3)):
        with pytest.raises(UnpairedInputs, match=r"places=\(1,\) need .* inputs \(450, 3\) and latents on a grid"):
            diagnose(latents.reshape(*grid, 4), codes, inputs=x, places=(1,))


def test_a_reconstruction_must_be_finite():
    x = normal(300, 4)
    back = x.clone()
    back[7, 2] = torch.inf
    with pytest.raises(ValueError, match=r"reconstruction must be finite .* \(300, 4\)"):
        diagnose(x, x[:8], inputs=x, reconstruction=back)


@pytest.mark.parametrize("seed", [None, "a", 0.5, [0], -1, 2**32])
def test_a_seed_is_a_whole_number(seed):
    for call in (
        lambda: diagnose(normal(50, 4), normal(8, 4), seed=seed),
        lambda: diagnose_stack([[(normal(50, 4), normal(8, 4), None)]], seed=seed),
    ):
        with pytest.raises(ValueError, match="seed must be"):
            call()
    assert observe(normal(50, 4), normal(8, 4), seed=np.int64(3)).seed == 3


@pytest.mark.parametrize("axis", ["1", 1.0, (1,), object()])
def test_a_channel_axis_is_a_whole_number(axis):
    with pytest.raises(ValueError, match="channel_axis must be a whole number, got"):
        diagnose(normal(5, 4, 3), normal(8, 4), channel_axis=axis)
    assert observe(normal(5, 4, 3), normal(8, 4), channel_axis=np.int64(1)).grid == (5, 3)


ODD = {
    "a number": 3.0,
    "a word": "latents",
    "an object": object(),
    "a scalar": torch.tensor(1.0),
    "sparse": normal(50, 4).to_sparse(),
    "without values": normal(50, 4).to("meta"),
    "nested": torch.nested.nested_tensor([normal(3, 4), normal(2, 4)], layout=torch.jagged),
    "complex": normal(50, 4) + 0j,
    "of another length": [[1.0], [1.0, 2.0]],
}


NEEDED, MORE = ["latents", "codebook"], ["inputs", "labels", "index", "mask", "reconstruction"]


@pytest.mark.parametrize("name, kind", [(name, kind) for name in NEEDED + MORE for kind in ODD])
def test_what_is_no_tensor_of_numbers_is_a_value_error(name, kind):
    given = {"latents": normal(50, 4), "codebook": normal(8, 4), "inputs": normal(50, 5)}
    with pytest.raises(ValueError, match=f"{name}|whole number a label"):
        diagnose(**given | {name: ODD[kind]})


@pytest.mark.parametrize("parts", [None, 3, [None], [[None]], [[(normal(50, 4), normal(8, 4))]], normal(2, 3, 4)])
def test_what_are_no_levels_is_a_value_error(parts):
    with pytest.raises(ValueError, match=r"levels \(latents, codebook, index\)|must be"):
        diagnose_stack(parts)


def test_latents_and_codes_are_needed():
    for given in (None, normal(8, 4)), (normal(50, 4), None):
        with pytest.raises(ValueError, match="must be a tensor or an array of numbers, got NoneType"):
            diagnose(*given)


def test_everything_is_parsed_at_the_door_and_once(monkeypatch):
    parsed = []
    parse = _checks.dense_tensor
    monkeypatch.setattr(_checks, "dense_tensor", lambda given, name: parsed.append(name) or parse(given, name))
    x = normal(50, 9, 4)
    mask, index = torch.ones(50, 9, dtype=torch.bool), torch.zeros(50, 9, dtype=torch.int64)
    labels = index[:, 0]
    diagnose(x, normal(8, 4), inputs=x, labels=labels, mask=mask, index=index, places=(1,), reconstruction=x)
    assert sorted(parsed) == ["codebook", "index", "inputs", "labels", "latents", "mask", "reconstruction"]


def test_the_dimensions_are_the_second_axis_if_only_that_is_as_long_as_a_code():
    for shape in (5, 4, 9), (5, 4, 3), (5, 4, 2, 8), (5, 4, 1), (1, 4, 5):
        latents = normal(*shape)
        seen = observe(latents, normal(6, 4))
        assert torch.equal(seen.latents, latents.movedim(1, -1).reshape(-1, 4)), shape
        assert seen.grid == (shape[0], *shape[2:])
    for shape in (5, 9, 4), (4, 4), (5, 3, 4), (5, 2, 8, 4):
        assert torch.equal(observe(latents := normal(*shape), normal(6, 4)).latents, latents.reshape(-1, 4)), shape


def test_labels_are_one_a_latent_or_one_an_input():
    latents, codes = normal(10, 6, 4), normal(6, 4)
    for count in 60, 10:
        labels = torch.arange(count) % 3
        assert torch.equal(observe(latents, codes, labels=labels).labels, labels)
    for wrong in torch.zeros(6, dtype=torch.int64), torch.zeros(10), torch.zeros(59, dtype=torch.int64):
        said = f"for 60 latents or 10 inputs, got {len(wrong)} {wrong.dtype}"
        with pytest.raises(ValueError, match=f"need a whole number a label, {said}"):
            observe(latents, codes, labels=wrong)


def test_the_mean_of_many_rows_is_that_of_float64():
    for rows in (normal(2 * PART + 3, 5) + 1000, normal(7, 3, dtype=torch.float16)):
        assert torch.allclose(mean_of_rows(rows), rows.double().mean(0), rtol=1e-12, atol=1e-12)
