"""Losses of the codebook that reach codes which nobody chose: DimVQ's and NS-VQ's, by hand; and the sphere of BSQ."""

import math

import pytest
import torch
import vector_quantize_pytorch as theirs
from helpers import normal
from pytest import approx
from test_remedies import compare

from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import BSQ, LFQ, DecorrelatedCodes, KernelLoss, OrthogonalCodes, SimVQ


def with_codes(quantizer, codes):
    quantizer.place_codes(torch.as_tensor(codes), torch.zeros(len(codes)))
    return quantizer


def added(quantizer, latents, chosen):
    """What its loss has beside that of the plain quantiser."""
    return quantizer.loss(latents, chosen) - VectorQuantizer.loss(quantizer, latents, chosen)


# ---------------------------------------------------------------- DimVQ


@pytest.mark.parametrize("size, dim", [(64, 8), (5, 3), (3, 1)])
def test_decorrelation_is_the_sum_over_pairs_of_dimensions(size, dim):
    quantizer, z = (
        with_codes(DecorrelatedCodes(size, dim, decorrelation_weight=2.0), normal(size, dim)),
        normal(4, dim),
    )
    unit = torch.nn.functional.normalize(normal(size, dim, dtype=torch.float64), dim=1)
    pairs = [(i, j) for i in range(dim) for j in range(dim) if i != j]
    expected = sum((unit[:, i] @ unit[:, j]).item() ** 2 for i, j in pairs) / max(1, len(pairs))
    assert added(quantizer, z, z).item() == approx(2 * expected, rel=1e-4, abs=1e-5)


def test_decorrelation_is_orthogonality_without_the_sizes_of_dimensions():
    """|U U^T|^2 = |U^T U|^2: the K^2 of one loss against the D (D - 1) of the other, and the diagonal."""
    codes, z = normal(32, 4), normal(3, 4)
    unit = torch.nn.functional.normalize(codes, dim=1)
    apart = added(with_codes(DecorrelatedCodes(32, 4, decorrelation_weight=1.0), codes), z, z) * 4 * 3
    all_of_it = (added(with_codes(OrthogonalCodes(32, 4, orthogonal_weight=1.0), codes), z, z) + 1 / 32) * 32**2
    assert (apart + unit.square().sum(0).square().sum()).item() == approx(all_of_it.item(), rel=1e-4)


def test_decorrelation_of_simvq_turns_its_map_and_costs_nothing_along_the_axes():
    class DimVQ(DecorrelatedCodes, SimVQ):
        pass

    torch.manual_seed(0)
    quantizer = DimVQ(64, 4, bias=True, start="linear", decorrelation_weight=1.0)
    z = normal(4, 4)
    loss = added(quantizer, z, z)
    loss.backward()
    assert loss > 0 and quantizer.transform.grad.abs().sum() > 0 and quantizer.codebook.grad is None
    axes = torch.cat([torch.eye(4), -torch.eye(4)])
    assert added(with_codes(DecorrelatedCodes(8, 4, decorrelation_weight=1.0), axes), z, z).item() == approx(
        0, abs=1e-6
    )


# ---------------------------------------------------------------- NS-VQ


def kernel_by_hand(latents, codes, weight, temperature):
    """A latent and a code at a time."""
    total, size, dim = 0.0, *codes.shape
    for z in latents.double():
        squares = [(z - e).square().sum().item() for e in codes.double()]
        nearest = min(range(size), key=squares.__getitem__)
        shares = [math.exp(-(one - squares[nearest]) / temperature) for one in squares]
        for k in range(size):
            if k != nearest:
                total += min(1, weight * size * shares[k] / sum(shares)) * squares[k] / dim
    return total / len(latents)


@pytest.mark.parametrize("weight, temperature", [(0.01, 1.0), (0.5, 4.0), (3.0, 0.3)])
def test_the_kernel_is_its_formula(weight, temperature):
    options = {"kernel_weight": weight, "kernel_temperature": temperature}
    codes, latents = normal(12, 3, seed=1), normal(30, 3)
    for shift in (0, 100):
        quantizer = with_codes(KernelLoss(12, 3, **options), codes + shift)
        found = added(quantizer, latents + shift, codes[:30].new_zeros(30, 3)).item()
        assert found == approx(kernel_by_hand(latents, codes, weight, temperature), rel=1e-3, abs=1e-3)


def test_the_kernel_moves_codes_that_nobody_chose_and_no_latent():
    quantizer = with_codes(KernelLoss(3, 1, beta=0.0), [[0.0], [1.0], [1.5]])
    z = torch.tensor([[0.1], [-0.1]], requires_grad=True)
    latents_q, index, loss = quantizer(z)
    loss.backward()
    assert index.tolist() == [0, 0] and z.grad is None or not z.grad.any()
    assert (quantizer.codebook.grad[1:] > 0).all()  # gradient descent brings them towards 0
    plain = with_codes(VectorQuantizer(3, 1, beta=0.0), [[0.0], [1.0], [1.5]])
    plain(z).loss.backward()
    assert not plain.codebook.grad[1:].any() and torch.allclose(plain.codebook.grad[0], quantizer.codebook.grad[0])


def test_the_kernel_cools_down_in_training_alone_and_placing_codes_heats_it():
    quantizer, latents = KernelLoss(8, 3, kernel_temperature=2.0, half_life=4), normal(20, 3)
    for _ in range(4):
        quantizer.train()(latents)
    assert quantizer.heat.item() == approx(1.0, rel=1e-5)
    quantizer.eval()(latents)
    assert quantizer.heat.item() == approx(1.0, rel=1e-5)
    quantizer.init_codes("normal")
    assert quantizer.heat.item() == 2.0
    quantizer.heat.fill_(0.0)  # after very many steps only the chosen codes move
    assert added(quantizer, latents, latents).item() == 0


# ---------------------------------------------------------------- BSQ


def test_bsq_agrees_with_the_library():
    ours, other = (
        BSQ(6, beta=0.3, inverse_temperature=3.0),
        theirs.LFQ(dim=6, commitment_loss_weight=0.3, spherical=True),
    )
    latents = normal(2, 50, 6)

    def forward(z):
        latents_q, index, loss = other(z, inv_temperature=3.0)
        return latents_q, index, loss

    found, expected = ours(latents), forward(latents)
    assert torch.equal(found.index, expected[1].long())
    assert torch.allclose(found.latents_q, other.indices_to_codes(found.index), atol=1e-6)
    assert torch.allclose(ours.codes().norm(dim=1), torch.ones(64))
    assert torch.equal(ours.codes().sign(), other.codebook.sign())


def test_the_entropies_of_bsq_are_those_of_each_bit():
    """p(k|u) is a product over bits with sigmoid(4 t u_i / sqrt D): their sum for each latent, exactly."""
    quantizer, latents = BSQ(4, entropy_weight=1.0, inverse_temperature=2.0), normal(200, 4)
    unit = torch.nn.functional.normalize(latents, dim=1)
    p = torch.sigmoid(4 * 2.0 * unit / 2)
    of_each = -(p * p.log() + (1 - p) * (1 - p).log()).sum(1).mean()
    whole = torch.stack([(p if bit else 1 - p) for bit in (0, 1)])  # (2, N, 4)
    joint = torch.stack(
        [torch.stack([whole[(k >> (3 - i)) & 1, :, i] for i in range(4)]).prod(0).mean() for k in range(16)]
    )
    assert quantizer(latents).loss.item() == approx((of_each + (joint * joint.log()).sum()).item(), abs=1e-5)


def test_no_latent_is_far_from_its_code_on_the_sphere():
    quantizer = BSQ(8)
    latents = 100 * normal(500, 8)
    apart = (quantizer.prepare(latents) - quantizer(latents).latents_q).norm(dim=1)
    assert apart.max() < 2**0.5 and torch.equal(quantizer(latents).index, LFQ(8)(latents).index)
    compare(quantizer, BSQ(8), latents)


@pytest.mark.parametrize(
    "make, shown",
    [
        (lambda: DecorrelatedCodes(8, 2, decorrelation_weight=-1), "decorrelation_weight must be at least 0, got -1"),
        (lambda: DecorrelatedCodes(8, 2, update="ema"), "DecorrelatedCodes needs update='gradient'"),
        (lambda: KernelLoss(8, 2, kernel_weight=-1), "kernel_weight must be at least 0, got -1"),
        (lambda: KernelLoss(8, 2, kernel_temperature=0), "kernel_temperature must be above 0, got 0"),
        (lambda: KernelLoss(8, 2, half_life=0), "half_life must be above 0, got 0"),
        (lambda: KernelLoss(8, 2, update="ema"), "KernelLoss needs update='gradient'"),
        (lambda: BSQ(0), "at least 1 bit, got 0"),
        (lambda: BSQ(3)(torch.zeros(2, 5)), r"\(2, 5\)"),
    ],
)
def test_bad_input_is_refused(make, shown):
    with pytest.raises(ValueError, match=shown):
        make()
