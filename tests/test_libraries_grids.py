"""The fixed grids of vector-quantize-pytorch, with their options, healthy and ill."""

import libraries_page as page
import pytest
import torch
import vector_quantize_pytorch as theirs
from helpers import normal
from test_libraries_codebooks import with_one_fault
from torch import nn
from vector_quantize_models import GRID, PEERS, arguments, healthy, named

from vqnotes.diagnosis import diagnose_model
from vqnotes.diagnosis.listening import Listener
from vqnotes.diagnosis.observed import Kind

GRIDS = [peer for peer in PEERS if peer.faults is GRID]


@pytest.mark.parametrize("peer", with_one_fault(GRIDS), ids=named)
def test_healthy_and_ill_ones_are_told_apart(peer):
    assert [row["verdict"] for row in page.rows_of(peer)] == [*peer.right]


def test_a_grid_that_is_not_known_is_refused():
    (peer,) = [peer for peer in GRIDS if peer.refused]
    batch = {"x": peer.inputs()}
    with pytest.raises(ValueError, match=f"(?s){peer.refused}.*Ten lines of your own"):
        diagnose_model(healthy(peer, batch), **arguments(peer, batch), progress=False)


def heard(quantizer, *shape):
    """The calls of a pass, and what the quantiser returned."""
    torch.manual_seed(0)
    listener = Listener(nn.Sequential(quantizer).eval())
    with torch.no_grad(), listener.listening():
        output = listener(2 * normal(*shape))
    return listener.calls, output


@pytest.mark.parametrize(
    "quantizer, shape",
    [
        (theirs.FSQ([5, 4]), (3, 7, 2)),
        (theirs.FSQ([4, 4], num_codebooks=2), (3, 7, 4)),
        (theirs.FSQ([4, 3], channel_first=True), (3, 2, 7)),
        (theirs.FSQ([2, 4, 4], preserve_symmetry=True), (3, 3, 5, 6)),
        (theirs.LFQ(codebook_size=8, dim=3), (3, 7, 3)),
        (theirs.LFQ(codebook_size=8, dim=3, spherical=True, codebook_scale=2.0), (3, 3, 5, 6)),
        (theirs.LatentQuantize([5, 4], 2), (3, 2, 5, 6)),
    ],
)
def test_codes_and_indices_are_those_that_come_out(quantizer, shape):
    (call,), (returned, index, *_) = heard(quantizer, *shape)
    codes = torch.stack([own[one] for own, one in zip(call.codes, call.index)], -2).flatten(-2)
    assert torch.allclose(codes, returned.movedim(call.channel_axis, -1), atol=1e-5)
    assert torch.equal(torch.stack([*call.index], -1).flatten(), index.flatten().long())
    assert call.kind is Kind.GRID and call.note is None
    assert call.index.shape[1:] == torch.Size(
        side for i, side in enumerate(shape) if i != call.channel_axis % len(shape)
    )


def test_a_grid_without_indices_is_heard_by_its_codes():
    (call,), (returned, index) = heard(theirs.FSQ([5, 4], return_indices=False), 3, 7, 2)
    assert index is None and torch.allclose(call.codes[0][call.index[0]], returned)
    assert "it returned no indices" in call.note


def test_values_of_a_grid_that_have_moved_are_read_from_what_comes_out():
    quantizer = theirs.LatentQuantize([5, 4], 2)
    with torch.no_grad():
        for values in quantizer.values_per_latent:
            values.mul_(3).add_(0.1)
    (call,), (returned, *_) = heard(quantizer, 3, 2, 7)
    assert torch.allclose(call.codes[0][call.index[0]], returned.movedim(1, -1), atol=1e-6)


def test_a_grid_that_is_not_rounded_to_the_nearest_is_refused():
    class Upwards(theirs.FSQ):
        def bound(self, z, eps=1e-3, hard_clamp=False):
            return ((super().bound(z) * 2 + 1).clamp_max(2)) / 2

    with pytest.raises(
        ValueError, match=r"looked for the 25 codes of a grid \(25, 2\), .* found that for \d+% of 21"
    ):
        heard(Upwards([5, 5]), 3, 7, 2)


def test_levels_that_get_what_was_left_at_another_scale_are_one_stack():
    torch.manual_seed(0)
    quantizer = theirs.ResidualFSQ(levels=[5, 3, 4], num_quantizers=3)
    found = diagnose_model(
        nn.Sequential(quantizer), normal(300, 4, 3), call=lambda model, x: model(x)[0], progress=False
    )
    assert list(found) == ["0", "0.layers.0", "0.layers.1", "0.layers.2"]
    assert "the whole has no error" not in " ".join(found["0"].notes)


def test_draws_of_bits_are_heard_beside_what_they_are_on_average():
    quantizer, logits = theirs.BinaryMapper(bits=3), torch.tensor([[4.0, -4.0, 0.0]]).repeat(50, 1)
    torch.manual_seed(0)
    listener = Listener(nn.Sequential(quantizer).eval())
    with listener.listening():
        one_hot, _ = listener(logits)
    (call,) = listener.calls
    assert torch.equal(call.index[0], one_hot.argmax(-1)) and call.codes.shape == (1, 8, 3)
    assert torch.allclose(call.latents[0], torch.tanh(logits / 2))
    mean = call.codes[0][call.index[0]].mean(0)
    assert mean[0] > 0.8 and mean[1] < -0.8 and abs(mean[2]) < 0.6
