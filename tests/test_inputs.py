"""Which latent belongs to which piece of the inputs: every layout by hand, and no guess where two readings fit."""

import pytest
import torch
from helpers import normal

from vqnotes.diagnosis import diagnose
from vqnotes.diagnosis.inputs import Inputs, UnpairedInputs
from vqnotes.diagnosis.measures import measure
from vqnotes.diagnosis.observed import observe


def numbered(*shape):
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


def belongs(inputs, grid, row, places=None):
    """What stands beside the latent in this row."""
    return Inputs(inputs, grid, places).rows(torch.tensor([row]))[0].tolist()


@pytest.mark.parametrize(
    "shape, grid, row, expected, axes",
    [
        ((6, 4), (6,), 2, lambda x: x[2], None),
        ((6, 4, 2), (6,), 2, lambda x: x[2], None),
        ((6, 4), (2, 3), 4, lambda x: x[4], None),  # one for each latent, in rows
        ((2, 5, 7), (2, 1), 1, lambda x: x[1], None),  # one latent an input sees all of it
        ((2, 15, 64), (2, 15), 18, lambda x: x[1, 3], (1,)),  # (N, T, C)
        ((2, 64, 15), (2, 15), 18, lambda x: x[1, :, 3], (2,)),  # (N, C, T)
        ((2, 4, 30), (2, 15), 18, lambda x: x[1, :, 6:8], (2,)),  # (N, C, 2T)
        ((2, 30, 4), (2, 15), 18, lambda x: x[1, 6:8], (1,)),  # (N, 2T, C)
        ((2, 30), (2, 15), 18, lambda x: x[1, 6:8], (1,)),  # (N, 2T)
        ((2, 3, 8, 12), (2, 4, 6), 24 + 7, lambda x: x[1, :, 2:4, 2:4], (2, 3)),  # (N, C, H, W)
        ((2, 8, 12, 3), (2, 4, 6), 24 + 7, lambda x: x[1, 2:4, 2:4], (1, 2)),  # (N, H, W, C)
        ((2, 8, 12), (2, 4, 6), 24 + 7, lambda x: x[1, 2:4, 2:4], (1, 2)),  # (N, H, W)
        ((2, 3, 8, 16), (2, 32), 32 + 9, lambda x: x[1, :, 2:4, 2:4], (2, 3)),  # square patches, row by row
        ((2, 8, 12, 3), (2, 24), 24 + 7, lambda x: x[1, 2:4, 2:4], (1, 2)),
        ((2, 5, 3, 8, 8), (2, 5), 7, lambda x: x[1, 2], (1,)),  # frames
        ((2, 6, 1), (2, 3, 1), 4, lambda x: x[1, 2:4], (1, 2)),  # an axis that is not cut makes no second reading
    ],
)
def test_where_one_reading_fits_it_is_taken(shape, grid, row, expected, axes):
    x = numbered(*shape)
    paired = Inputs(x, grid)
    assert paired.axes == axes
    assert sorted(belongs(x, grid, row)) == expected(x).flatten().tolist()


@pytest.mark.parametrize(
    "shape, grid, ways",
    [
        ((2, 16, 64), (2, 16), [(1,), (2,)]),  # T divides C
        ((2, 64, 16), (2, 16), [(1,), (2,)]),
        ((2, 16, 16), (2, 16), [(1,), (2,)]),
        ((2, 64, 8, 8), (2, 4, 4), [(1, 2), (2, 3)]),  # maps of many channels
        ((2, 16, 8, 8), (2, 16), [(1,), (2, 3)]),  # frames, or square patches
        ((2, 3, 8, 12), (2, 24), [(1, 2), (2, 3)]),  # pixels of an image of 3 by 8, or square patches
    ],
)
def test_where_two_readings_fit_both_are_named_and_places_decides(shape, grid, ways):
    x = numbered(*shape)
    with pytest.raises(UnpairedInputs, match="2 ways") as caught:
        Inputs(x, grid)
    pieces = []
    for axes in ways:
        assert f"places={axes}" in str(caught.value)
        paired = Inputs(x, grid, axes)
        assert str(paired.piece) in str(caught.value) and paired.axes == axes
        pieces.append(belongs(x, grid, 1, axes))
    assert pieces[0] != pieces[1]


def test_places_may_be_said_in_any_way_that_fits():
    x = numbered(2, 3, 8, 4)
    assert sorted(belongs(x, (2, 4), 1, (-1,))) == x[0, :, :, 1].flatten().tolist()
    assert sorted(belongs(x, (2, 4, 2), 1, (3, 2))) == x[0, :, 4:, 0].flatten().tolist()  # width before height
    assert sorted(belongs(x, (2, 8), 3, (2, 3))) == x[0, :, 2:4, 2:4].flatten().tolist()
    for places in [(0,), (4,), (1,), (2, 2), (1, 2), ()]:
        with pytest.raises(ValueError, match="cannot be cut into a grid"):
            Inputs(x, (2, 4), places)


def test_what_does_not_belong_together_is_refused():
    for shape, grid in [((5, 3), (6,)), ((2, 7, 5), (2, 3)), ((2, 3, 9, 9), (2, 4, 4)), ((3, 4, 4), (2, 4))]:
        with pytest.raises(UnpairedInputs, match="do not belong"):
            Inputs(numbered(*shape), grid)
    with pytest.raises(ValueError, match=r"\(2, 3\) must have the shape of inputs \(2, 4\)"):
        Inputs(numbered(2, 4), (2,), reconstruction=numbered(2, 3))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint16])
def test_ids_are_no_inputs(dtype):
    for shape in [(100,), (100, 7)]:
        with pytest.raises(UnpairedInputs, match=r"look like ids .* labels=.* inputs.float\(\)"):
            diagnose(normal(100, 4), normal(8, 4), inputs=torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.bool])
def test_pixels_and_samples_of_sound_are_inputs(dtype):
    x = (normal(100, 4) > 0).to(dtype)
    assert measure(observe(normal(100, 4), normal(8, 4), inputs=x)).inputs_loss is not None


def test_the_pairing_is_said():
    latents = normal(40, 6, 4)
    found = diagnose(latents, normal(8, 4), inputs=normal(40, 9, 12))
    assert any("piece (9, 2) of inputs (40, 9, 12), along places=(2,)" in note for note in found.notes)


def test_inputs_that_are_all_equal_are_refused_even_if_latents_are():
    """Nothing differs, so nothing can coincide: no verdict on the encoder."""
    with pytest.raises(ValueError, match="do not vary: all 300"):
        diagnose(torch.ones(300, 4), torch.randn(16, 4), inputs=torch.ones(300, 5))


def test_one_axis_of_places_may_be_a_number_and_nothing_else_is_an_axis():
    z, x = torch.randn(60, 16, 4), torch.randn(60, 16, 16)
    one, two = (diagnose(z, z[0], inputs=x, places=places) for places in (1, (1,)))
    assert one.evidence == two.evidence
    for wrong in ("hw", (1.0,), (None,)):
        with pytest.raises(ValueError, match="whole numbers"):
            diagnose(z, z[0], inputs=x, places=wrong)
