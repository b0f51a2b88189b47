"""Quantisers side by side, and stages that are left out: by hand, and beside vector-quantize-pytorch."""

import pytest
import torch
import vector_quantize_pytorch as theirs
from helpers import normal
from test_remedies import compare

from vqnotes import metrics
from vqnotes.diagnosis import diagnose_model
from vqnotes.models import VQAutoencoder, mlp_autoencoder
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import CosineCodes, LevelDropout, ProductVQ, ResidualVQ, RotationTrick, SimVQ
from vqnotes.training import fit


def with_codes(quantizer, codes):
    quantizer.place_codes(torch.tensor(codes), torch.zeros(len(codes)))


def test_pieces_are_coded_each_by_itself_and_put_together_again():
    quantizer = ProductVQ((2, 3), 4)
    with_codes(quantizer.stages[0], [[0.0, 0], [10, 10]])
    with_codes(quantizer.stages[1], [[0.0, 0], [1, 0], [0, 1]])
    quantized = quantizer(torch.tensor([[9.0, 9, 0.9, 0], [1, 0, 0, 0.8]]))
    assert quantized.index.tolist() == [[1, 1], [0, 2]]
    assert quantized.latents_q.tolist() == [[10, 10, 1, 0], [0, 0, 0, 1]]
    assert quantizer.joint_index(quantized.index).tolist() == [3, 4]
    assert quantizer.codes()[3].tolist() == [10, 10, 1, 0] and quantizer.codes().shape == (6, 4)
    assert torch.equal(quantizer.decode(quantized.index), quantized.latents_q)


def test_the_loss_is_that_of_one_quantiser_of_all_codes():
    torch.manual_seed(0)
    product, latents = ProductVQ((8, 8), 6, beta=0.3), normal(4, 50, 6)
    product.init_codes("data", latents)
    whole = VectorQuantizer(64, 6, beta=0.3)
    whole.place_codes(product.codes().detach(), torch.zeros(64))
    found, expected = product(latents), whole(latents)
    assert torch.equal(product.joint_index(found.index), expected.index)  # the nearest of all 64
    assert torch.allclose(found.latents_q, expected.latents_q) and found.loss.item() == pytest.approx(
        expected.loss.item(), rel=1e-5
    )


def test_it_agrees_with_heads_of_separate_codebooks():
    torch.manual_seed(0)
    ours = ProductVQ((16, 16), 8, beta=1.0)
    ours.init_codes("normal")
    options = {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True, "codebook_size": 16}
    options |= {"learnable_codebook": True, "ema_update": False, "rotation_trick": False, "commitment_weight": 1.0}
    other = theirs.VectorQuantize(8, **options).train()
    other.project_in = other.project_out = torch.nn.Identity()
    codes = [stage.codebook for stage in ours.stages]
    with torch.no_grad():
        other._codebook.embed.copy_(torch.stack(codes))
    latents = normal(2, 50, 8)
    loss, their_loss = compare(ours, other, latents)
    assert loss == pytest.approx(2 * their_loss, rel=1e-5)  # the library counts it once for latents and codes
    ours(latents).loss.backward()
    other(latents)[2].sum().backward()
    assert torch.allclose(torch.stack([code.grad for code in codes]), other._codebook.embed.grad, atol=1e-6)


@pytest.mark.parametrize("kind", [RotationTrick, CosineCodes, SimVQ])
def test_groups_are_of_any_kind_and_none_knows_of_the_others(kind):
    torch.manual_seed(0)
    product, latents, weight = ProductVQ((8, 4), 6, kind=kind), normal(50, 6), normal(50, 6, seed=1)
    product.init_codes("normal")
    z = latents.clone().requires_grad_()
    latents_q, index, _ = product(z)
    (latents_q * weight).sum().backward()
    for place, (stage, part) in enumerate(zip(product.stages, (slice(0, 3), slice(3, 6)))):
        alone = latents[:, part].clone().requires_grad_()
        found = stage(alone)
        (found.latents_q * weight[:, part]).sum().backward()
        assert torch.equal(found.index, index[:, place]) and torch.allclose(alone.grad, z.grad[:, part], atol=1e-6)
    assert torch.allclose(product.prepare(latents)[:, :3], product.stages[0].prepare(latents[:, :3]))


def test_starts_are_of_each_group_and_groups_do_not_start_alike():
    product = ProductVQ((8, 8), 4)
    product.init_codes("normal", seed=3)
    assert not torch.allclose(product.stages[0].codes(), product.stages[1].codes())
    latents = torch.cat([normal(400, 2), 50 + normal(400, 2, seed=1)], dim=1)
    product.init_codes("kmeans", latents)
    assert product.stages[0].codes().abs().max() < 10 and (product.stages[1].codes() > 40).all()
    assert metrics.usage(product.joint_index(product(latents).index), 64) > 0.8


def test_independent_pieces_need_few_vectors():
    """Two independent pairs of coordinates: 8 + 8 vectors do what 64 in a heap of their own do."""
    latents = normal(4000, 4)
    product, plain = ProductVQ((8, 8), 4), VectorQuantizer(64, 4)
    for one in (product, plain):
        one.init_codes("kmeans", latents)
    errors = [(one(latents).latents_q - latents).square().mean().item() for one in (product, plain)]
    assert errors[0] == pytest.approx(errors[1], rel=0.25)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_a_model_with_it_learns(update):
    torch.manual_seed(0)
    quantizer, x = ProductVQ((4, 4), 4, update=update), normal(500, 6) @ normal(6, 6, seed=1)
    options = {"steps": 150, "seed": 0, "init": "normal", "lr": 5e-3, "progress": False}
    history = fit(mlp_autoencoder(6, quantizer, width=32), x, **options)
    assert sum(history.reconstruction[-5:]) < 0.8 * sum(history.reconstruction[:5])


@pytest.mark.parametrize(
    "make, shown",
    [
        (lambda: ProductVQ((), 4), r"at least one stage, each of at least one code, got \[\]"),
        (lambda: ProductVQ((4, 0), 4), r"got \[4, 0\]"),
        (lambda: ProductVQ((4, 4, 4), 8), "8 dimensions cannot be cut into 3 groups of one width"),
        (lambda: ProductVQ((4, 4), 8)(torch.zeros(3, 6)), r"\(3, 6\)"),
        (lambda: ProductVQ([2048] * 2, 8).codes(), "4,194,304 codes are too many to list"),
        (lambda: ProductVQ((4, 4), 8).init_codes("kmeans"), "'kmeans' needs latents"),
    ],
)
def test_bad_input_is_refused(make, shown):
    with pytest.raises(ValueError, match=shown):
        make()


# ---------------------------------------------------------------- heard by the diagnosis


@pytest.mark.parametrize("sick", [False, True])
def test_groups_are_heard_as_one_token_and_each_alone(sick):
    torch.manual_seed(0)
    quantizer, x = ProductVQ((16, 16), 8), normal(3000, 8)
    quantizer.init_codes("kmeans", x)
    if sick:
        quantizer.stages[1].place_codes(normal(16, 4) * 0.01 + 9, torch.zeros(16))
    found = diagnose_model(VQAutoencoder(torch.nn.Identity(), quantizer, torch.nn.Identity()), x)
    verdicts = {name: one.verdict for name, one in found.items()}
    assert list(verdicts) == ["quantizer", "quantizer.stages.0", "quantizer.stages.1"]
    assert verdicts["quantizer.stages.0"] != "token collapse"
    assert (verdicts["quantizer.stages.1"] == "token collapse") == sick == (verdicts["quantizer"] == "token collapse")


# ---------------------------------------------------------------- stages that are left out


def test_level_dropout_agrees_with_the_library_at_each_number_of_levels():
    """Its code sums the losses of the levels that count; ours is their mean, as of all levels."""
    latents, seen = normal(50, 4), set()
    ours, plain = LevelDropout((8, 8, 8), 4).train(), ResidualVQ((8, 8, 8), 4)
    ours.init_codes("normal")
    plain.load_state_dict(ours.state_dict())
    whole = plain(latents)
    parts = [stage.decode(own) for stage, own in zip(plain.stages, whole.index.unbind(-1))]
    for seed in range(20):
        torch.manual_seed(seed)
        found = ours(latents)
        kept = [n for n in (1, 2, 3) if torch.allclose(found.latents_q, sum(parts[:n]), atol=1e-5)]
        left, losses = latents, []
        for stage, part in zip(plain.stages, parts):
            losses.append(stage(left).loss)
            left = left - part
        assert len(kept) == 1
        assert found.loss.item() == pytest.approx(torch.stack(losses[: kept[0]]).mean().item(), rel=1e-5)
        seen |= set(kept)
    assert seen == {1, 2, 3}
    assert torch.equal(ours.eval()(latents).latents_q, whole.latents_q)
