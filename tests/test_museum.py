"""The museum of notebook 08: for each exhibit a short test of a quantiser that it fails and the module passes.

The defective versions are those in the cells of the notebook, so that text and test cannot drift apart.
"""

import re
from functools import partial

import numpy as np
import pytest
import torch
from helpers import normal
from test_notebooks import NOTEBOOKS, definitions, prose

from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import CodeExpiry, SimVQ

(MUSEUM,) = (path for path in NOTEBOOKS if "museum" in path.name)
show = definitions(MUSEUM)
ema = partial(VectorQuantizer, update="ema")
ema_expiry = partial(CodeExpiry, update="ema", decay=0.9, memory=0.9)
undone_expiry = partial(show["ExpiryUndone"], batch=256, decay=0.9)
without_counts = partial(show["ForgottenCounts"], batch=1000)
from_nothing = partial(show["NothingCounted"], batch=1000)


def started(make, how="normal", size=16, dim=4, **options):
    quantizer = make(size, dim, **options)
    quantizer.init_codes(how, normal(1000, dim), seed=0)
    return quantizer


def gradients(quantizer):
    """Gradients of the quantiser's loss on latents and codes, and the way from the latents to their codes."""
    latents = normal(1000, quantizer.dim).requires_grad_()
    latents_q, _, loss = quantizer(latents)
    loss.backward()
    return latents.grad, quantizer.codebook.grad, (latents_q - latents).detach()


# ---------------------------------------------------------------- the tests of a quantiser, True if it passes


def without_commitment_only_the_codes_learn(make):
    on_latents, on_codes, _ = gradients(started(make, beta=0.0))
    return on_codes.abs().max() > 0 and on_latents.abs().max() == 0


def its_loss_moves_codes_and_draws_latents_to_them(make):
    on_latents, on_codes, way = gradients(started(make))
    return on_codes is not None and (-on_latents * way).sum() > 0


def a_step_on_the_latents_of_kmeans_moves_nothing(make):
    quantizer = started(make, "kmeans")
    before = quantizer.codes().clone()
    quantizer(normal(1000, 4))
    return torch.allclose(before, quantizer.codes(), atol=0.01)


def no_step_makes_a_code_much_longer(make):
    quantizer = started(make)
    before = quantizer.codes().norm(dim=1).max()
    quantizer(normal(1000, 4))
    return quantizer.codes().norm(dim=1).max() < 2 * before


def from_a_bad_start_all_codes_come_into_use(make):
    quantizer, latents = make(16, 4), normal(1000, 4)
    far = torch.where(torch.arange(16)[:, None] < 8, 100.0, 0.0).expand(16, 4)  # half of the codes are out of reach
    quantizer.place_codes(far + normal(16, 4, seed=1), torch.zeros(16))
    for _ in range(50):
        quantizer(latents[:256])
    return quantizer(latents).index.unique().numel() == 16


def codes_of_average_use_stay_at_any_batch_size(make):
    quantizer = started(make)
    before = quantizer.codes().detach().clone()
    for per_code in (1, 16):
        quantizer(before.repeat(per_code, 1).flip(0))  # every code is chosen equally often
    return torch.equal(before, quantizer.codes())


def a_shift_of_everything_changes_no_index(make):
    latents, codes = ((x * 64).round() / 64 for x in (normal(1000, 64), normal(256, 64, seed=1)))
    assign, far = make(256, 64).assign, 1024.0  # in steps of 1/64 the shift itself is exact in float32
    return torch.equal(assign(latents, codes), assign(latents + far, codes + far))


def usage_depends_on_the_data_and_not_on_the_batches(usage):
    index = torch.from_numpy(np.random.default_rng(0).integers(0, 64, 1024))
    return usage(index.split(32), 64) == usage([index], 64)


def after_training_an_index_decodes_to_what_training_used(decode):
    torch.manual_seed(0)
    quantizer, latents = SimVQ(16, 4), normal(1000, 4)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        quantizer(latents).loss.backward()
        optimizer.step()
    latents_q, index, _ = quantizer(latents)
    return torch.allclose(decode(quantizer, index), latents_q)


TESTS = [  # the property, the exhibit without it, ours
    (without_commitment_only_the_codes_learn, show["SwappedBeta"], VectorQuantizer),
    (its_loss_moves_codes_and_draws_latents_to_them, show["LossAfterEstimate"], VectorQuantizer),
    (a_step_on_the_latents_of_kmeans_moves_nothing, without_counts, ema),
    (no_step_makes_a_code_much_longer, from_nothing, ema),
    (from_a_bad_start_all_codes_come_into_use, undone_expiry, ema_expiry),
    (codes_of_average_use_stay_at_any_batch_size, show["ExpiryInHits"], CodeExpiry),
    (a_shift_of_everything_changes_no_index, show["DrowningDistances"], VectorQuantizer),
    (a_shift_of_everything_changes_no_index, show["HalfDistances"], VectorQuantizer),
    (usage_depends_on_the_data_and_not_on_the_batches, show["usage_by_the_batch"], show["usage_of_all"]),
    (after_training_an_index_decodes_to_what_training_used, show["entries_stored"], show["entries_used"]),
]


@pytest.mark.parametrize("holds_for, defective, ours", TESTS, ids=lambda value: getattr(value, "__name__", ""))
def test_the_exhibit_fails_and_the_module_passes(holds_for, defective, ours):
    assert holds_for(ours) and not holds_for(defective)


def test_the_usual_averages_with_their_counts_are_correct():
    usual = partial(show["TwoAverages"], batch=1000)
    assert a_step_on_the_latents_of_kmeans_moves_nothing(usual) and no_step_makes_a_code_much_longer(usual)


def test_every_exhibit_names_its_report():
    parts = prose(MUSEUM).split("## The catalogue")[0].split("\n### Exhibit ")[1:]
    assert [int(part.split(".")[0]) for part in parts] == list(range(1, len(parts) + 1)) and len(parts) >= 8
    for part in parts:
        assert "](https://github.com/" in part, part.splitlines()[0]


def test_the_catalogue_has_one_row_for_each_exhibit():
    text = prose(MUSEUM)
    rows = re.findall(r"^\| \d+ \|.*\]\(https://[^)]+\) \|$", text, re.M)
    assert len(rows) == text.count("\n### Exhibit ") == len({holds_for for holds_for, _, _ in TESTS})
