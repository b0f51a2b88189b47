"""The codebooks of vector-quantize-pytorch, with each of their options, healthy and ill."""

import copy
from dataclasses import replace

import libraries_page as page
import pytest
import torch
import vector_quantize_pytorch as theirs
from helpers import normal
from torch import nn
from vector_quantize_models import CODES, PEERS, arguments, healthy, named

from vqnotes.diagnosis import diagnose_model

CODEBOOKS = [peer for peer in PEERS if peer.faults is CODES]


def with_one_fault(peers):
    """Each with one of its two faults, by turns: an option that is misheard shows in either. The table has both."""
    found = []
    for number, peer in enumerate(peers, 1):
        healthy, *ill = peer.right
        name, fault = list(peer.faults.items())[number % 2]
        found.append(replace(peer, faults={name: fault}, right=(healthy, ill[number % 2])))
    return found


@pytest.mark.parametrize("peer", with_one_fault(CODEBOOKS), ids=named)
def test_healthy_and_ill_ones_are_told_apart(peer):
    assert [row["verdict"] for row in page.rows_of(peer)] == [*peer.right]


REFUSED = [peer for peer in CODEBOOKS if peer.refused]


@pytest.mark.parametrize("peer", REFUSED, ids=named)
def test_what_is_refused_is_refused_with_ten_lines_that_work(peer):
    batch = {"x": peer.inputs()}
    model = healthy(peer, batch)
    with pytest.raises(ValueError, match=f"looked for .*, found .*{peer.refused}") as refusal:
        diagnose_model(model, **arguments(peer, batch), progress=False)
    lines = [line[4:] for line in str(refusal.value).splitlines() if line.startswith("    ")]
    code = "\n".join(lines[:-1])  # the last one prints what is called here
    assert "quantizers = {" in code and "diagnose_model(model, data, quantizers=quantizers)" in lines[-1]
    names = {}
    exec(code, names)
    found = diagnose_model(model, **arguments(peer, batch), quantizers=names["quantizers"], progress=False)
    assert found["vq"].verdict == "healthy"


def test_codes_that_are_fitted_to_the_batch_leave_the_model_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), theirs.VectorQuantize(dim=4, codebook_size=8, affine_param=True)).train()
    unset = model[1]._codebook  # whose statistics are whatever memory held
    unset.codebook_mean.zero_(), unset.codebook_variance.fill_(1)
    before = copy.deepcopy(model.state_dict())
    assert model[1]._codebook.batch_mean is None
    diagnose_model(model, normal(200, 4), call=lambda model, x: model(x)[0], progress=False)
    after = model.state_dict()
    assert model[1]._codebook.batch_mean is None and before.keys() == after.keys()
    assert all(torch.equal(one, after[name]) for name, one in before.items())
