"""The quantiser's losses, gradients, moving averages and initialisations are what the formulas say."""

import numpy as np
import pytest
import torch
from helpers import brute_force, normal
from vector_quantize_pytorch import VectorQuantize

from vqnotes.kmeans import kmeans
from vqnotes.quantizers import INITS, VectorQuantizer

# ---------------------------------------------------------------- losses and gradients, worked by hand


@pytest.fixture
def by_hand():
    """One latent (1, 2) nearest to code 0 at (0, 0); code 1 far away. z - e = (1, 2), two entries."""
    quantizer = VectorQuantizer(2, 2, beta=0.25)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0, 0.0], [10.0, 10.0]]))
    return quantizer, torch.tensor([[1.0, 2.0]], requires_grad=True)


def test_loss_is_codebook_plus_beta_commitment(by_hand):
    quantizer, latents = by_hand
    assert quantizer(latents).loss.item() == pytest.approx((1 + 0.25) * (1 + 4) / 2)


def test_codebook_loss_moves_only_the_chosen_code_and_commitment_only_the_latent(by_hand):
    quantizer, latents = by_hand
    quantizer(latents).loss.backward()
    # d/de mean((z - e)^2) = -2 (z - e) / 2;  d/dz beta * mean((z - e)^2) = beta * 2 (z - e) / 2
    assert quantizer.codebook.grad.tolist() == [[-1.0, -2.0], [0.0, 0.0]]
    assert latents.grad.tolist() == [[0.25, 0.5]]


def test_straight_through_is_exact_forward_and_identity_backward(by_hand):
    quantizer, latents = by_hand
    quantized = quantizer(latents)
    assert torch.equal(quantized.latents_q, quantizer.codebook[:1])
    (quantized.latents_q * torch.tensor([[3.0, -7.0]])).sum().backward()
    assert latents.grad.tolist() == [[3.0, -7.0]] and quantizer.codebook.grad is None
    many = normal(1000, 2)
    assert torch.equal(quantizer(many).latents_q, quantizer.codebook[quantizer(many).index])


def test_ema_loss_has_no_codebook_part():
    quantizer = VectorQuantizer(2, 2, beta=0.5, update="ema").eval()
    quantizer.codebook.zero_()
    assert quantizer(torch.tensor([[1.0, 2.0]])).loss.item() == pytest.approx(0.5 * 2.5)
    assert not list(quantizer.parameters())


def test_forward_agrees_with_vector_quantize_pytorch():
    theirs = VectorQuantize(
        8, codebook_size=32, learnable_codebook=True, ema_update=False, rotation_trick=False, commitment_weight=0.25
    )
    ours, latents = VectorQuantizer(32, 8), normal(2, 50, 8)
    with torch.no_grad():
        ours.codebook.copy_(theirs.codebook)
    theirs_q, theirs_index, _ = theirs(latents)
    quantized = ours(latents)
    assert torch.equal(quantized.index, theirs_index)
    assert torch.allclose(quantized.latents_q, theirs_q, atol=1e-6)


# ---------------------------------------------------------------- moving averages


def reference_ema(codebook, share, batches, decay):
    """The two moving averages kept apart and divided at the end, in float64, one code at a time."""
    codebook, share = codebook.double().clone(), share.double().clone()
    total = share[:, None] * codebook
    for batch in batches:
        index = brute_force(batch, codebook.to(batch.dtype))
        for k in range(len(codebook)):
            mine = batch[index == k].double()
            share[k] = decay * share[k] + (1 - decay) * len(mine) / len(batch)
            total[k] = decay * total[k] + (1 - decay) * mine.sum(0) / len(batch)
            if len(mine):
                codebook[k] = total[k] / share[k]
    return codebook


@pytest.mark.parametrize("how", INITS)
@pytest.mark.parametrize("decay", [0.0, 0.8, 0.99])
def test_ema_follows_the_float64_reference(how, decay):
    quantizer = VectorQuantizer(16, 4, update="ema", decay=decay).double()
    quantizer.init_codes(how, normal(500, 4, dtype=torch.float64), seed=3)
    start, share = quantizer.codebook.clone(), quantizer.share.clone()
    batches = [normal(64, 4, seed=10 + i, dtype=torch.float64) for i in range(40)]
    for batch in batches:
        quantizer(batch)
    assert torch.allclose(quantizer.codebook, reference_ema(start, share, batches, decay), atol=1e-9)


def test_a_step_of_ema_worked_by_hand():
    """Code 0 has share 0.5 and gets 3 of 4 latents, mean 5; code 1 gets the last one, its first; code 2 gets none."""
    quantizer = VectorQuantizer(3, 1, update="ema", decay=0.8)
    quantizer.place_codes(torch.tensor([[1.0], [20.0], [50.0]]), torch.tensor([0.5, 0.0, 0.5]))
    quantizer(torch.tensor([[4.0], [5.0], [6.0], [22.0]]))
    share = 0.8 * 0.5 + 0.2 * 0.75
    old_formula = 1 + 0.2 / share * (0.75 * 5 - 0.75 * 1)
    assert old_formula == pytest.approx((0.8 * 0.5 * 1 + 0.2 * 0.75 * 5) / share)  # the ratio of the two averages
    assert quantizer.codebook.flatten().tolist() == pytest.approx([old_formula, 22, 50])
    assert quantizer.share.tolist() == pytest.approx([share, 0.2 * 0.25, 0.8 * 0.5])


def test_ema_starts_at_the_mean_of_the_first_latents():
    quantizer, latents = VectorQuantizer(1, 2, update="ema"), normal(32, 2)
    quantizer(latents)
    assert torch.allclose(quantizer.codebook[0], latents.mean(0), atol=1e-6)


def test_an_ema_code_that_nobody_chooses_stays_where_it_is():
    quantizer = VectorQuantizer(3, 2, update="ema", decay=0.8)
    quantizer.codebook.copy_(torch.tensor([[0.0, 0.0], [50.0, 50.0], [9.0, 9.0]]))
    quantizer(torch.tensor([[9.0, 9.0]]))  # code 2 lives once, then never again
    for step in range(2000):
        quantizer(normal(16, 2, seed=step))
    assert quantizer.codebook[1].tolist() == [50.0, 50.0] and quantizer.codebook[2].tolist() == [9.0, 9.0]


def test_ema_after_kmeans_keeps_the_codebook_on_unchanged_latents():
    quantizer, latents = VectorQuantizer(256, 16, update="ema"), normal(4096, 16)
    quantizer.init_codes("kmeans", latents)
    before = quantizer.codebook.clone()
    assert quantizer.share.sum().item() == pytest.approx(1) and (quantizer.share > 0).all()
    used = []
    for step in range(20):
        used.append(quantizer(latents[torch.from_numpy(np.random.default_rng(step).integers(0, 4096, 1024))]).index)
    assert torch.cat(used).unique().numel() == 256
    assert ((quantizer.codebook - before).norm(dim=1) / before.norm(dim=1)).max() < 0.5
    assert quantizer.codebook.norm(dim=1).mean() / before.norm(dim=1).mean() == pytest.approx(1, abs=0.05)


def test_evaluation_changes_nothing():
    quantizer = VectorQuantizer(8, 2, update="ema").eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(normal(100, 2))
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


# ---------------------------------------------------------------- initialisation and bad input


def test_init_codes_draws_from_what_it_says():
    quantizer, latents = VectorQuantizer(64, 3), 5 + normal(1000, 3)
    quantizer.init_codes("uniform", seed=1)
    assert 0.014 < quantizer.codebook.abs().max() <= 1 / 64
    quantizer.init_codes("normal", seed=1)
    assert quantizer.codebook.std().item() == pytest.approx(1, abs=0.2)
    quantizer.init_codes("data", latents, seed=1)
    assert all((latents == code).all(1).any() for code in quantizer.codebook)
    assert len(quantizer.codebook.unique(dim=0)) == 64
    quantizer.init_codes("kmeans", latents, seed=1)
    centroids, share = kmeans(latents, 64, seed=1)
    assert torch.equal(quantizer.codebook.data, centroids) and share.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("how", INITS)
def test_init_codes_is_the_same_for_the_same_seed_and_not_for_another(how):
    quantizer, latents, codes = VectorQuantizer(16, 3), normal(500, 3), []
    for seed in (0, 0, 1):
        quantizer.init_codes(how, latents, seed)
        codes.append(quantizer.codebook.detach().clone())
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[0], codes[2])


@pytest.mark.parametrize("how", ["data", "kmeans"])
def test_init_codes_refuses_too_few_latents(how):
    with pytest.raises(ValueError, match="15 latents are too few for 16"):
        VectorQuantizer(16, 3).init_codes(how, normal(15, 3))
    with pytest.raises(ValueError, match="needs latents"):
        VectorQuantizer(16, 3).init_codes(how)
    with pytest.raises(ValueError, match=r"\(20, 4\)"):
        VectorQuantizer(16, 3).init_codes(how, normal(20, 4))
    with pytest.raises(ValueError, match="kmeens"):
        VectorQuantizer(16, 3).init_codes("kmeens", normal(20, 3))


@pytest.mark.parametrize(
    "options, shown",
    [
        ({"codebook_size": 0}, "0"),
        ({"dim": -1}, "-1"),
        ({"beta": -0.1}, "-0.1"),
        ({"beta": float("nan")}, "nan"),
        ({"update": "sgd"}, "sgd"),
        ({"decay": 1.0}, "1.0"),
    ],
)
def test_options_out_of_range_are_refused(options, shown):
    with pytest.raises(ValueError, match=shown):
        VectorQuantizer(**{"codebook_size": 4, "dim": 2, **options})


def test_forward_refuses_latents_of_another_size_or_not_finite():
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        VectorQuantizer(4, 2)(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="1 NaN"):
        VectorQuantizer(4, 2)(torch.tensor([[0.0, torch.nan]]))


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_no_gradient_flows_into_where_codes_are_put(update):
    quantizer, latents = VectorQuantizer(4, 2, update=update), normal(40, 2).requires_grad_()
    share = torch.full((4,), 0.25)
    places = [
        lambda: quantizer.place_codes(2 * latents[:4], share),
        lambda: quantizer.init_codes("data", 2 * latents),
        lambda: quantizer.init_codes("kmeans", 2 * latents),
        lambda: quantizer.train().after_step(2 * latents, torch.arange(40) % 4),
    ]
    for put in places:
        put()
        assert quantizer.codebook.grad_fn is None and quantizer.codebook.requires_grad == (update == "gradient")
    for _ in range(2):  # a graph that stays would be gone through twice
        quantizer(2 * latents).loss.backward()
