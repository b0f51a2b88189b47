"""Names of items: measures worked out by hand, balance beside every other assignment, and what the table says."""

import itertools
import math

import pytest
import torch
from helpers import normal

from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies import LevelDropout, ResidualVQ
from vqnotes.studies import items, next_items, semantic_ids
from vqnotes.studies.item_names import appended, balanced_assignment, dealt_out, name_measures, prefix_purity
from vqnotes.studies.semantic_ids import ARMS, BalancedCodes, names_of, residual_kmeans, trained_names


def small_tree(seed=0, count=96):
    return items.tree_items(seed, count, groups=3, kinds=4, dim=6)


# ---------------------------------------------------------------- items


def test_a_tree_has_kinds_within_groups_and_vectors_that_follow_it():
    found = items.tree_items(3, 2000, groups=5, kinds=6, dim=24)
    group, kind = found.tree.T
    assert found.x.shape == (2000, 24) and found.x.dtype == torch.float32
    assert abs(found.x.mean()) < 1e-5 and found.x.std() == pytest.approx(1, abs=1e-3)
    assert (kind // 6 == group).all() and 0 <= kind.min() and kind.max() < 30
    within = {}
    for depth, labels in enumerate((torch.zeros_like(group), group, kind)):
        parts = [found.x[labels == one] for one in labels.unique()]
        within[depth] = sum((part - part.mean(0)).square().sum().item() for part in parts) / found.x.numel()
    assert within[0] > 3 * within[1] > 6 * within[2] > 0
    sizes = kind.bincount().sort(descending=True).values
    assert sizes[0] > 3 * sizes[9], "kinds are of uneven size"


def test_items_of_a_seed_are_the_same_and_of_another_are_not():
    same, again, other = (items.tree_items(seed, 64) for seed in (0, 0, 1))
    assert torch.equal(same.x, again.x) and torch.equal(same.tree, again.tree)
    assert not torch.equal(same.x, other.x)
    with pytest.raises(ValueError, match="must be positive, got 64, 0, 16, 32"):
        items.tree_items(0, 64, groups=0)


def test_digits_and_descriptions_are_items_with_trees_of_their_own():
    digits = items.digit_items()
    assert digits.x.shape == (1797, 64) and digits.tree.shape == (1797, 1) and digits.titles[0] == "a 0"
    text = items.text_items(dim=8)
    assert text.x.shape == (len(text.titles), 8) and len(text.titles) > 500 and text.x.isfinite().all()
    package, part = text.tree.T
    assert set(package.tolist()) == {0, 1, 2} and part.max() > 20
    for one in part.unique():
        assert len(package[part == one].unique()) == 1, "a part lies in one package"
    assert any(title.startswith("scipy.stats: ") for title in text.titles)
    assert not any("test" in title.split(":")[0] for title in text.titles)
    with pytest.raises(ValueError, match="dim must be positive, got 0"):
        items.text_items(0)


# ---------------------------------------------------------------- measures


def test_collisions_and_use_by_hand():
    index = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 1], [2, 1], [2, 1], [2, 1], [0, 2]])
    tree = torch.tensor([[0], [0], [0], [1], [1], [1], [2], [0]])
    row = name_measures(index, tree, (4, 4))
    assert row["sharing"] == 5 / 8 and row["tuples"] == 5 and row["largest"] == 3
    assert row["usage 1"] == 3 / 4 and row["usage 2"] == 3 / 4
    shares = [4 / 8, 1 / 8, 3 / 8]
    assert row["perplexity 1"] == pytest.approx(math.exp(-sum(one * math.log(one) for one in shares)))
    assert row["purity 1, depth 1"] == (4 + 1 + 2) / 8, "the prefix 2 has two items of node 1, and one of node 2"
    assert set(row) == {
        "sharing", "tuples", "largest", "usage 1", "usage 2", "perplexity 1", "perplexity 2", "purity 1, depth 1",
        "chance 1, depth 1",
    }  # fmt: skip


def test_purity_of_a_perfect_tree_is_one_and_of_a_random_one_what_chance_gives():
    node = torch.arange(8).repeat_interleave(64)
    perfect = torch.stack([node * 3, torch.arange(512) % 7], dim=1)
    purity, chance = prefix_purity(perfect, node, 1)
    assert purity == 1 and 1 / 8 < chance < 0.35
    random = torch.randint(8, (4096, 2), generator=torch.Generator().manual_seed(0))
    labels = torch.randint(8, (4096,), generator=torch.Generator().manual_seed(1))
    purity, chance = prefix_purity(random, labels, 1)
    assert purity == pytest.approx(chance, abs=0.02) and purity < 0.2
    alone = torch.arange(512)[:, None]
    assert prefix_purity(alone, node, 1) == (1, 1), "an item that is alone is pure, whatever its label"


@pytest.mark.parametrize("length", [0, 3])
def test_purity_refuses_a_prefix_longer_than_the_name(length):
    with pytest.raises(ValueError, match=rf"\(4, 2\) and \(4,\), length {length}"):
        prefix_purity(torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), length)


# ---------------------------------------------------------------- names that all differ


def test_a_number_is_appended_in_order():
    index = torch.tensor([[5, 1], [0, 0], [5, 1], [5, 2], [0, 0], [5, 1]])
    assert appended(index).tolist() == [[5, 1, 0], [0, 0, 0], [5, 1, 1], [5, 2, 0], [0, 0, 1], [5, 1, 2]]
    with pytest.raises(ValueError, match=r"\(N, S\), got shape \(6,\)"):
        appended(index[:, 0])


def test_a_balanced_assignment_is_balanced_and_none_is_cheaper():
    for seed in range(5):
        costs = normal(6, 3, seed=seed).exp()
        chosen = balanced_assignment(costs, 2)
        assert chosen.bincount(minlength=3).tolist() == [2, 2, 2]
        cost = costs.gather(1, chosen[:, None]).sum().item()
        every = itertools.product(range(3), repeat=6)
        allowed = [one for one in every if max(one.count(column) for column in range(3)) <= 2]
        least = min(sum(costs[row, column].item() for row, column in enumerate(one)) for one in allowed)
        assert cost == pytest.approx(least)
        free = balanced_assignment(costs, 6)
        assert torch.equal(free, costs.argmin(dim=1)), "with room for all, each has its cheapest"


@pytest.mark.parametrize(
    "costs, capacity, words",
    [
        (torch.zeros(5, 2), 2, "2 columns of capacity 2 have no room for 5 rows"),
        (torch.zeros(5, 2), 0, "capacity 0"),
        (torch.full((2, 2), torch.nan), 1, "finite"),
        (torch.zeros(5), 1, r"got shape \(5,\)"),
    ],
)
def test_an_assignment_without_room_is_refused(costs, capacity, words):
    with pytest.raises(ValueError, match=words):
        balanced_assignment(costs, capacity)


def test_codes_are_dealt_out_within_a_prefix_and_nothing_else_changes():
    codes = torch.tensor([[0.0], [1.0], [5.0]])
    index = torch.tensor([[0, 0], [0, 0], [1, 0], [2, 2], [2, 1]])
    left = torch.tensor([[-0.2], [0.4], [0.1], [5.0], [1.0]])
    names = dealt_out(index, left, codes)
    assert names.tolist() == [[0, 0], [0, 1], [1, 0], [2, 2], [2, 1]], "the second item is nearer to the next code"
    assert len(names.unique(dim=0)) == len(names)
    with pytest.raises(ValueError, match="3 columns of capacity 1 have no room for 4 rows"):
        dealt_out(torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 1), codes)
    with pytest.raises(ValueError, match=r"got \(5, 2\), \(5, 1\) and \(3, 2\)"):
        dealt_out(index, left, torch.zeros(3, 2))


# ---------------------------------------------------------------- quantisers


def test_balanced_codes_are_balanced_in_training_and_nearest_in_evaluation():
    quantizer = BalancedCodes(8, 3, rounds=100)
    quantizer.init_codes("normal")
    latents = normal(64, 3, seed=1) * 0.2 + 1  # all near one side
    nearest = VectorQuantizer.assign(quantizer, latents, quantizer.codes())
    assert torch.equal(quantizer.eval().assign(latents, quantizer.codes()), nearest)
    balanced = quantizer.train().assign(latents, quantizer.codes())
    counts = balanced.bincount(minlength=8)
    assert nearest.bincount(minlength=8).max() > 24 and counts.min() > 0 and counts.max() <= 16
    exact = balanced_assignment(torch.cdist(latents, quantizer.codes()).square().detach(), 8)

    def cost(index):
        return (latents - quantizer.codes()[index]).square().sum().item()

    assert cost(nearest) < cost(balanced) < 1.1 * cost(exact)
    with pytest.raises(ValueError, match="sharpness > 0 and at least one round, got 0 and 10"):
        BalancedCodes(8, 3, sharpness=0)


def test_without_crowding_a_balanced_assignment_is_the_nearest():
    quantizer = BalancedCodes(4, 2)
    corners = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    quantizer.place_codes(corners, torch.full((4,), 0.25))
    latents = corners.repeat(5, 1) + 0.05 * normal(20, 2)
    assert torch.equal(quantizer.assign(latents, quantizer.codes()), torch.arange(4).repeat(5))
    assert quantizer(latents.reshape(4, 5, 2)).index.shape == (4, 5)


def test_level_dropout_uses_a_prefix_in_training_and_all_levels_in_evaluation():
    quantizer = LevelDropout([5, 5, 5], 2)
    quantizer.init_codes("normal")
    latents = normal(40, 2, seed=2)
    plain = ResidualVQ([5, 5, 5], 2)
    plain.load_state_dict(quantizer.state_dict())
    assert torch.equal(quantizer.eval()(latents).latents_q, plain(latents).latents_q)
    quantizer.train()
    seen, index = set(), plain(latents).index
    parts = [stage.decode(own) for stage, own in zip(plain.stages, index.unbind(-1))]
    for seed in range(24):
        torch.manual_seed(seed)
        found = quantizer(latents)
        assert torch.equal(found.index, index), "all levels are told, dropped or not"
        kept = [n for n in (1, 2, 3) if torch.allclose(found.latents_q, sum(parts[:n]), atol=1e-6)]
        assert len(kept) == 1
        seen |= set(kept)
        gradients = torch.autograd.grad(found.loss, [stage.codebook for stage in quantizer.stages])
        assert [bool(one.any()) for one in gradients] == [level < kept[0] for level in range(3)]
    assert seen == {1, 2, 3}


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_trains_one_model_a_seed(arm):
    found = trained_names(arm, [small_tree(0), small_tree(1)], (6, 6), seeds=(0, 1), steps=2)
    assert len(found) == 2 and all(isinstance(one.quantizer, ResidualVQ) for one in found)
    index = found[0].quantizer(found[0].encode(small_tree().x)).index
    assert index.shape == (96, 2) and index.max() < 6


def test_names_of_a_model_are_those_that_it_rebuilds_items_from():
    tree = small_tree()
    model = residual_kmeans(tree, (4, 8), 0)
    naming = names_of(model, tree)
    rebuilt = model.quantizer.decode(naming.index)
    assert naming.error == pytest.approx(((rebuilt - tree.x).square().mean() / tree.x.var(correction=0)).item())
    assert naming.dealt is None and math.isnan(naming.dealt_error), "96 items, and 4 * 8 names"
    naming = names_of(residual_kmeans(tree, (4, 64), 0), tree)
    assert len(naming.dealt.unique(dim=0)) == 96 and naming.dealt_error >= naming.error
    assert torch.equal(naming.dealt[:, 0], naming.index[:, 0])


def test_the_first_level_of_residual_kmeans_is_kmeans():
    from vqnotes.kmeans import kmeans

    tree = small_tree()
    first = residual_kmeans(tree, (5, 3), 7).quantizer.stages[0].codes()
    assert torch.equal(first, kmeans(tree.x, 5, 7)[0])


# ---------------------------------------------------------------- recommenders


def test_the_ceiling_by_hand():
    certain = torch.eye(6, dtype=torch.float64)
    names = torch.tensor([[0], [0], [0], [1], [1], [2]])
    for k, expected in ((1, (3 / 3 + 2 / 2 + 1) / 6), (2, (3 * 2 / 3 + 2 + 1) / 6), (3, 1)):
        assert next_items.recall_ceiling(certain, names, k) == pytest.approx(expected)
    own = torch.arange(6)[:, None]
    assert next_items.recall_ceiling(certain, own, 1) == 1
    chances = torch.tensor([[0.5, 0.1, 0.1, 0.2, 0.1, 0.0]], dtype=torch.float64)
    assert next_items.recall_ceiling(chances, own, 2) == pytest.approx(0.7)
    # 0, 1 and 2 have 0.7 / 3 each, 3 and 4 have 0.15
    assert next_items.recall_ceiling(chances, names, 4) == pytest.approx(0.7 + 0.15)
    with pytest.raises(ValueError, match=r"\(1, 6\) and \(6, 1\) and k=7"):
        next_items.recall_ceiling(chances, names, 7)


def test_the_truth_follows_the_tree():
    tree = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 2]])
    chances = next_items.chances_of_next(tree, kind=0.6, group=0.3)
    assert chances.shape == (4, 4) and torch.allclose(chances.sum(dim=1), torch.ones(4, dtype=torch.float64))
    popular = chances[3, :2] / chances[3, :2].sum()
    assert sorted(popular.tolist()) == pytest.approx([1 / 3, 2 / 3]), "1 and 1/2"
    # all popularities: 1.5 in kind 0, and 1 in kinds 1 and 2
    assert chances[3, 3].item() == pytest.approx(0.6 + 0.3 + 0.1 / 3.5)
    assert chances[0, 3].item() == pytest.approx(0.1 / 3.5)
    assert chances[0, 2].item() == pytest.approx(0.3 / 2.5 + 0.1 / 3.5)
    with pytest.raises(ValueError, match=r"got \(4, 1\), 0.7, 0.2"):
        next_items.chances_of_next(tree[:, :1])
    with pytest.raises(ValueError, match="0.9, 0.2"):
        next_items.chances_of_next(tree, kind=0.9)


def test_sessions_are_drawn_from_the_truth():
    chances = torch.tensor([[0.0, 1.0, 0.0], [0.25, 0.0, 0.75], [1.0, 0.0, 0.0]], dtype=torch.float64)
    sessions = next_items.sessions_of(chances, 4000, 5, seed=0)
    assert sessions.shape == (4000, 5)
    pairs = torch.stack([sessions[:, :-1].flatten(), sessions[:, 1:].flatten()], dim=1)
    seen = torch.zeros(3, 3).index_put_((pairs[:, 0], pairs[:, 1]), torch.ones(len(pairs)), accumulate=True)
    assert torch.allclose(seen / seen.sum(dim=1, keepdim=True), chances.float(), atol=0.02)
    with pytest.raises(ValueError, match=r"\(3, 2\), 1 and 2"):
        next_items.sessions_of(chances[:, :2], 1, 2, 0)


def told(names, sizes, ks=(1, 2, 3)):
    """Recall of a recommender that has learnt a cycle of six items by heart."""
    cycle = torch.stack([torch.arange(6), (torch.arange(6) + 1) % 6], dim=1)
    sessions = cycle.repeat(20, 1)
    (found,) = next_items.fit_recommenders([names], sizes, [sessions], seeds=[0], steps=150, batch_size=30)
    return next_items.recall_at(found, names, sizes, cycle, ks), found


def test_a_recommender_that_knows_the_truth_reaches_the_ceiling():
    ids = torch.arange(6)[:, None]
    assert told(ids, [6])[0] == [1, 1, 1]
    own = torch.stack([torch.arange(6) // 3, torch.arange(6) % 3], dim=1)
    recalls, found = told(own, [2, 3])
    assert recalls == [1, 1, 1]
    with pytest.raises(ValueError, match=r"reads 4 codes, got \(2, 3\)"):
        next_items.recall_at(found, own, [2, 3], torch.zeros(2, 3, dtype=torch.int64), [1])


def test_items_that_share_a_name_count_by_chance():
    names = torch.tensor([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 1]])
    recommended = torch.tensor([[[1, 2], [1, 1], [0, 0]]]).expand(6, -1, -1)  # the first name is nobody's
    found = next_items._expected_hits(recommended, names, torch.arange(6), (1, 2, 3))
    # items 4 and 5 come first, in random order; item 0 is third
    assert found == pytest.approx([(0.5 + 0.5) / 6, 2 / 6, 3 / 6])


# ---------------------------------------------------------------- the study


def test_names_for_sessions_are_those_that_are_asked_for():
    tree = items.tree_items(5, 1024, 8, 8)
    made = {arm: semantic_ids.named_for_sessions(arm, tree, 5) for arm in semantic_ids.RECOMMENDED}
    for arm, (names, sizes) in made.items():
        assert names.shape == (1024, len(sizes)) and (names.amax(dim=0) < torch.tensor(sizes)).all(), arm
        if "last level of" not in arm:
            assert len(names.unique(dim=0)) == 1024, arm
    counts = [len(made[f"last level of {size}"][0].unique(dim=0)) for size in semantic_ids.LAST_LEVEL]
    assert counts == sorted(counts) and counts[0] < 1024
    series = [made[arm][0][:, :2] for arm in ("last level of 1", "last level of 256", "number appended")]
    assert torch.equal(series[0], series[1]) and torch.equal(series[0], series[2]), "the first levels are the same"
    with pytest.raises(KeyError, match="hashes"):
        semantic_ids.named_for_sessions("hashes", tree, 5)


def test_the_stored_table_has_every_setting_and_seed():
    table = semantic_ids.stored_names()
    settings = table.groupby(["part", "items", "arm", "steps"])["seed"].apply(list)
    assert all(seeds == list(semantic_ids.SEEDS) for seeds in settings) and len(semantic_ids.SEEDS) >= 8
    assert {tuple(one.values()) for one in semantic_ids.SETTINGS} == set(settings.index)
    names = table[table["part"] == "names"]
    assert names["sharing"].between(0, 1).all() and (names["tuples"] >= 1).all()
    assert (names["dealt error"].dropna() >= names["error"][names["dealt error"].notna()] * 0.95).all()
    told = table[table["part"] == "next item"]
    for k in semantic_ids.KS:
        assert (told[f"recall {k}"] < told[f"ceiling {k}"] + 0.05).all(), "but for 1,000 sessions' luck"


def test_residual_kmeans_of_the_table_is_made_again():
    seed = semantic_ids.SEEDS[0]
    digits = items.digit_items()
    naming = names_of(residual_kmeans(digits, semantic_ids.SIZES["digits"], seed), digits)
    table = semantic_ids.stored_names().query("items == 'digits' and arm == 'residual k-means' and seed == @seed")
    (row,) = table.to_dict("records")
    assert naming.error == pytest.approx(row["error"], rel=0.05)
    found = name_measures(naming.index, digits.tree, semantic_ids.SIZES["digits"])
    assert found["sharing"] == pytest.approx(row["sharing"], abs=0.03)
