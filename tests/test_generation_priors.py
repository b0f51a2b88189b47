"""The causal transformer over codes: what it may see, what it learns, and that many at once are as each alone."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import press
from torch import nn

from vqnotes.studies import generation
from vqnotes.studies.generation import (
    BestOf,
    Block,
    CodeTransformer,
    fit_priors,
    mix_positions,
    negative_log_likelihood,
    sample,
    shuffle_positions,
)

QUIET = {"progress": False}


def grids(count=200, codes=5, seed=0, shape=(2, 3)):
    return torch.randint(0, codes, (count, *shape), generator=torch.Generator().manual_seed(seed))


def chain(count, stay, seed):
    """Rows of 6 codes out of 3: the first is 0, and each next one stays as it is with this chance or goes on by 1."""
    moves = torch.rand(count, 5, generator=torch.Generator().manual_seed(seed)) >= stay
    return F.pad(moves.long().cumsum(dim=1), (1, 0)) % 3


def prior(codes=5, positions=6, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CodeTransformer(codes, positions, **options)


# ---------------------------------------------------------------- the model


def test_the_block_is_the_one_of_pytorch():
    """The same weights in `nn.TransformerEncoderLayer`, norms first, under its causal mask."""
    block, twin = Block(16, 4), nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    pairs = [
        (twin.self_attn.in_proj_weight, block.to_qkv.weight),
        (twin.self_attn.in_proj_bias, block.to_qkv.bias),
        (twin.self_attn.out_proj.weight, block.from_heads.weight),
        (twin.self_attn.out_proj.bias, block.from_heads.bias),
        *zip(twin.linear1.parameters(), block.mlp[0].parameters()),
        *zip(twin.linear2.parameters(), block.mlp[2].parameters()),
    ]
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)
        x = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))
        mask = nn.Transformer.generate_square_subsequent_mask(7)
        assert torch.allclose(block(x), twin.train()(x, src_mask=mask), atol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_no_code_is_told_by_itself_or_by_later_ones(layers):
    model, rows = prior(layers=layers), grids().flatten(1)
    logits = model(rows[:, :-1])
    assert logits.shape == (200, 6, 5)
    for place in range(5):
        changed = rows.clone()
        changed[:, place] = (changed[:, place] + 1) % 5
        moved = (model(changed[:, :-1]) - logits).abs().amax(dim=(0, 2)) > 1e-6
        assert not moved[: place + 1].any() and moved[place + 1 :].all()
        assert torch.allclose(model(rows[:, :place]), logits[:, : place + 1], atol=1e-6)


@pytest.mark.parametrize("options", [{"codes": 0}, {"positions": 0}, {"heads": 3}, {"layers": 0}, {"width": 0}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match="=".join(map(str, *options.items()))):
        CodeTransformer(**({"codes": 4, "positions": 4} | options))


# ---------------------------------------------------------------- likelihood


def test_the_likelihood_is_the_product_of_its_conditionals():
    model, rows = prior(), grids(7)
    found = negative_log_likelihood(model, rows, batch_size=3)
    for row, bits in zip(rows.flatten(1), found):
        chance = 1.0
        for place, code in enumerate(row):
            chance *= model(row[None, :place])[0, -1].softmax(dim=0)[code].item()
        assert bits.item() == pytest.approx(-math.log2(chance), rel=1e-4)


def test_all_rows_together_have_probability_one():
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    assert torch.exp2(-negative_log_likelihood(prior(3, 4), every)).sum().item() == pytest.approx(1, rel=1e-4)


def test_a_prior_that_knows_nothing_pays_log2_k_a_code():
    model = prior()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    assert negative_log_likelihood(model, grids(9)).tolist() == pytest.approx([6 * math.log2(5)] * 9, rel=1e-5)


# ---------------------------------------------------------------- learning


def test_it_learns_the_entropy_of_a_chain_and_samples_like_it():
    stay = 0.8
    entropy = -5 * (stay * math.log2(stay) + (1 - stay) * math.log2(1 - stay))
    rows = [chain(2000, stay, seed) for seed in (1, 2)]
    trained = fit_priors(rows, 3, seeds=[1, 2], steps=300, **QUIET)
    for (model, curve), other in zip(trained, (3, 4)):
        held_out = negative_log_likelihood(model, chain(2000, stay, other)).mean().item()
        assert entropy - 0.15 < held_out < entropy + 0.2 and curve[0] > 2 * entropy and len(curve) == 300
    drawn = sample([model for model, _ in trained], 1500, seeds=[5, 6])
    for rows in drawn:
        steps = (rows[:, 1:] - rows[:, :-1]) % 3
        assert (rows[:, 0] == 0).float().mean() > 0.98 and (steps == 2).float().mean() < 0.02
        assert (steps == 0).float().mean().item() == pytest.approx(stay, abs=0.04)


def test_many_at_once_are_as_each_alone():
    rows = [grids(seed=seed) for seed in (3, 4, 5)]
    together = fit_priors(rows, 5, seeds=[3, 4, 5], steps=20, layers=2, **QUIET)
    drawn = sample([model for model, _ in together], 50, seeds=[7, 8, 9])
    for place, (model, curve) in enumerate(together):
        ((alone, its_curve),) = fit_priors(rows[place : place + 1], 5, seeds=[3 + place], steps=20, layers=2, **QUIET)
        assert curve == pytest.approx(its_curve, rel=1e-4)
        assert torch.allclose(*(one(grids(20).flatten(1)[:, :-1]) for one in (model, alone)), atol=1e-3)
        assert all(one.requires_grad and one.is_leaf for one in model.parameters())
        assert (sample([alone], 50, seeds=[7 + place])[0] == drawn[place]).float().mean() > 0.99


def test_seeds_decide_and_the_global_random_state_stays():
    before = torch.get_rng_state()
    first, again, other = (fit_priors([grids()], 5, seeds=[seed], steps=5, **QUIET)[0][0] for seed in (1, 1, 2))
    same = [torch.equal(one, two) for one, two in zip(first.parameters(), again.parameters())]
    assert all(same) and not torch.equal(first.head.weight, other.head.weight)
    drawn = [sample([first], 40, seeds=[seed]) for seed in (1, 1, 2)]
    assert torch.equal(*drawn[:2]) and not torch.equal(*drawn[1:])
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interrupt_ends_all_runs_after_the_same_step(monkeypatch):
    """It comes in the middle of the fourth step, and waits for its end."""
    forward, calls = generation.CodeTransformer.forward, []

    def pressed(*arguments):
        calls.append(1)
        if len(calls) == 4:
            press()
        return forward(*arguments)

    monkeypatch.setattr(generation.CodeTransformer, "forward", pressed)
    rows = [grids(), grids(seed=1)]
    stopped = fit_priors(rows, 5, seeds=[0, 1], steps=50, **QUIET)
    monkeypatch.undo()
    whole = fit_priors(rows, 5, seeds=[0, 1], steps=4, **QUIET)
    for (model, curve), (other, its_curve) in zip(stopped, whole):
        assert curve == its_curve and len(curve) == 4
        assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters()))


# ---------------------------------------------------------------- sampling


def test_temperature_sharpens_and_flattens():
    model = prior(positions=1, seed=3)
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    first = model(torch.empty(1, 0, dtype=torch.int64))[0, 0]
    for temperature in (0.5, 1.0, 2.0):
        drawn = sample([model], 20_000, seeds=[0], temperature=temperature)[0, :, 0]
        shares = torch.bincount(drawn, minlength=5) / len(drawn)
        assert torch.allclose(shares, (first / temperature).softmax(dim=0), atol=0.02)
    likeliest = sample([model], 50, seeds=[0], temperature=1e-6)[0]
    assert (likeliest[:, 0] == first.argmax()).all() and len(likeliest.unique(dim=0)) == 1


def test_shuffling_keeps_what_each_place_holds_and_nothing_else():
    rows = grids(400, codes=3)
    rows[..., 1] = rows[..., 0]  # two places that always agree
    before, shuffled = torch.get_rng_state(), shuffle_positions(rows, 0)
    assert torch.equal(shuffled.sort(dim=0).values, rows.sort(dim=0).values) and shuffled.shape == rows.shape
    agree = (shuffled[..., 1] == shuffled[..., 0]).float().mean().item()
    assert agree == pytest.approx(1 / 3, abs=0.08)
    assert torch.equal(shuffled, shuffle_positions(rows, 0)) and not torch.equal(shuffled, shuffle_positions(rows, 1))
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options, shown",
    [
        ({"seeds": []}, r"\[\]"),
        ({"seeds": [1, 1]}, r"\[1, 1\]"),
        ({"seeds": [1]}, r"1 seeds.*\(200, 2, 3\), \(200, 2, 3\)"),
        ({"grids": [grids(), grids(100)]}, r"\(100, 2, 3\)"),
        ({"grids": [grids(codes=6)] * 2}, r"0 \.\. 4, got 0 \.\. 5"),
        ({"grids": [grids() - 1] * 2}, r"got -1 \.\. 3"),
        ({"grids": [grids().float()] * 2}, "float32"),
        ({"grids": [grids(0)] * 2}, r"\(0, 2, 3\)"),
        ({"grids": [torch.zeros(5, dtype=torch.int64)] * 2}, r"\(5,\)"),
        ({"steps": 0}, "got 0, 32"),
        ({"batch_size": 0}, "got 9, 0"),
        ({"lr": math.nan}, "nan"),
        ({"lr": math.inf}, "inf"),
        ({"lr": 0}, "0"),
        ({"lr": -0.1}, "-0.1"),
        ({"heads": 5}, "heads=5"),
    ],
)
def test_fitting_refuses_bad_input(options, shown):
    options = {"grids": [grids(), grids()], "codes": 5, "seeds": [1, 2], "steps": 9} | QUIET | options
    with pytest.raises(ValueError, match=shown):
        fit_priors(options.pop("grids"), options.pop("codes"), **options)


def test_the_others_refuse_bad_input_too():
    one, wider = prior(), prior(width=16)
    for call, shown in [
        (lambda: negative_log_likelihood(one, grids(shape=(2, 2))), r"6 codes, got \(200, 2, 2\)"),
        (lambda: negative_log_likelihood(one, grids(codes=9)), r"0 \.\. 4"),
        (lambda: sample([], 3, seeds=[]), "0 priors"),
        (lambda: sample([one, wider], 3, seeds=[0, 1]), "one shape"),
        (lambda: sample([one], 3, seeds=[0, 1]), "2 seeds, 1 priors"),
        (lambda: sample([one], 0, seeds=[0]), "got 0"),
        (lambda: sample([one], 3, seeds=[0], temperature=0), "got 3 and 0"),
        (lambda: shuffle_positions(np.ones((3, 2)), 0), "integers"),
        (lambda: shuffle_positions(torch.ones(3, dtype=torch.int64), 0), r"\(3,\)"),
    ]:
        with pytest.raises(ValueError, match=shown):
            call()


# ---------------------------------------------------------------- the best step, and grids between shuffled and ideal


def test_each_prior_is_kept_as_it_was_at_its_own_best_step():
    """A few grids of random codes: what is learnt of them is of no use for others, and the bits soon rise."""
    learnt, unseen = [grids(24, seed=s) for s in (0, 1)], [grids(200, seed=s) for s in (2, 3)]
    best = BestOf(unseen, patience=4)
    options = {"seeds": [0, 1], "every": 5, "batch_size": 8, "lr": 0.02} | QUIET
    ended = fit_priors(learnt, 5, steps=2000, callback=best, **options)
    steps = len(ended[0][1])
    assert steps < 2000 and steps == max(best.steps) + 4 * 5
    for run, own in enumerate(best.priors):
        looks = best.looks[run]
        assert len(looks) == steps // 5 and best.steps[run] == 5 * (1 + looks.index(min(looks)))
        bits = negative_log_likelihood(own, unseen[run]).mean().item()
        assert bits == best.bits[run] == min(looks) < negative_log_likelihood(ended[run][0], unseen[run]).mean()
    short = fit_priors(learnt, 5, steps=best.steps[0], **options)
    for one, other in zip(short[0][0].parameters(), best.priors[0].parameters()):
        assert torch.allclose(one, other, atol=1e-5)
    with pytest.raises(ValueError, match="2 and 1 priors"):
        best(5, [ended[0][0]])
    with pytest.raises(ValueError, match="every"):
        fit_priors(learnt, 5, steps=2, **(options | {"every": 0}))


def test_grids_are_mixed_from_shuffled_to_ideal():
    some = grids(400, codes=50)
    assert torch.equal(mix_positions(some, 3, 1.0), some)
    assert torch.equal(mix_positions(some, 3, 0.0), shuffle_positions(some, 3))
    same = [(mix_positions(some, 3, kept) == some).double().mean().item() for kept in (0.25, 0.75)]
    assert same == pytest.approx([0.25 + 0.75 / 50, 0.75 + 0.25 / 50], abs=0.03)
    for kept in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"{kept}"):
            mix_positions(some, 3, kept)
