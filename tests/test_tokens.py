"""The diagnosis of ids alone: figures by hand and by brute force, bias and coverage, what is read and refused."""

import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import special, stats

import vqnotes
from vqnotes.diagnosis import StackDiagnosis, diagnose_tokens, draw, estimates, ids, tokens
from vqnotes.diagnosis.report import VERDICTS
from vqnotes.diagnosis.tokens import TOKEN_VERDICTS


def rng(seed=0):
    return np.random.default_rng(seed)


def shares(kind, size):
    """How likely each of K codes is."""
    k = np.arange(1.0, size + 1)
    uses = {
        "uniform": np.ones(size),
        "zipf": 1 / k,
        "geometric": np.exp(-8 * k / size),
        "few": k <= size / 10,
        "spike": np.where(k == 1, 0.99 * (size - 1), 0.01),
    }[kind]
    return uses / uses.sum()


def drawn(kind, size, number, seed=0):
    return rng(seed).choice(size, size=number, p=shares(kind, size))


def groups_of(p, number, generator, groups=64):
    """Counts (groups, K) of independent ids."""
    sizes = np.diff(np.linspace(0, number, min(groups, number) + 1).astype(int))
    return np.stack([generator.multinomial(size, p) for size in sizes])


def in_runs(kind, size, number, stay, seed=0):
    """Ids that repeat the one before them with a chance."""
    new = rng(seed).random(number) >= stay
    new[0] = True
    return drawn(kind, size, new.sum(), seed + 1)[np.cumsum(new) - 1]


def of_topics(kind, size, items, length, topics, seed=0):
    """Items (items, length), each with a few codes of its own."""
    own = drawn(kind, size, items * topics, seed).reshape(items, topics)
    return np.take_along_axis(own, rng(seed + 1).integers(topics, size=(items, length)), axis=1)


# ---------------------------------------------------------------- entropy


def as_published(uses):
    """The estimator of Chao, Wang and Jost (2013), sum by sum."""
    n, total = uses[uses > 0], uses.sum()
    once, twice = (n == 1).sum(), (n == 2).sum()
    first = sum(one / total * sum(1 / k for k in range(one, total)) for one in n.tolist())
    if once == 0:
        return first
    pairs = (total - 1) * once + 2 * twice
    share = 2 * twice / pairs if twice else 2 / ((total - 1) * (once - 1) + 2)
    if share == 1:
        return first
    rest = -math.log(share) - sum((1 - share) ** r / r for r in range(1, total))
    return first + once / total * (1 - share) ** (1 - total) * rest


@pytest.mark.parametrize(
    "uses", [[5, 3, 2, 2, 1, 1, 1], [4, 4, 1], [9, 0, 1], [1, 1, 1, 1, 1, 1], [7, 3], [12, 5, 2, 2, 2, 1, 0, 1, 1, 1]]
)
def test_entropy_is_corrected_as_published(uses):
    uses = np.array(uses)
    value, upper = estimates._entropies(uses, np.minimum(uses, 1), len(uses) + 30, 1.0)
    assert value == pytest.approx(as_published(uses), rel=5e-3) and upper >= value
    of_times = estimates._corrected_entropy(estimates.entropy_of_times(uses)[None])
    assert of_times == pytest.approx(value)


def test_the_share_of_rare_codes_by_hand():
    assert estimates._share_of_rare(3, 2, 5) == 4 / (4 * 3 + 4)
    assert estimates._share_of_rare(3, 0, 5) == 2 / (4 * 2 + 2)


@pytest.mark.parametrize("number", [4, 16, 1000])
@pytest.mark.parametrize("share", [1e-4, 0.01, 0.2])
def test_what_a_rare_code_adds_is_the_sum(number, share):
    r = np.arange(round(60 / share))
    assert estimates._tail(share, number) == pytest.approx(((1 - share) ** (r + 1) / (number + r)).sum(), rel=0.02)
    assert estimates._tail(1.0, number) == 0


def test_plain_entropy_is_scipys():
    uses = np.array([5, 3, 0, 2, 1])
    assert estimates.plain_entropy(estimates.entropy_of_times(uses)) == pytest.approx(stats.entropy(uses))
    rows = np.stack([estimates.entropy_of_times(one) for one in (uses, uses[:2])])
    assert estimates.plain_entropy(rows) == pytest.approx([stats.entropy(uses), stats.entropy(uses[:2])])


def test_what_is_seen_equally_and_often_has_hardly_a_correction():
    found = estimates.entropy(np.full((64, 8), 100), 1.0)
    assert found.value == pytest.approx(math.log(8), abs=1e-3) and found.interval[0] > math.log(8) - 1e-3
    assert found.interval[1] == pytest.approx(math.log(8))


def test_a_single_code_has_no_entropy_but_may_have_missed_some():
    alone = estimates.entropy(np.full((64, 1), 9), 1.0)
    assert alone.value == 0 and alone.interval == (0, 0)
    among = estimates.entropy(np.tile([[9] + 63 * [0]], (64, 1)), 1.0)
    assert among.value == 0 and among.interval[0] == 0 < among.interval[1] < 0.2


def test_of_few_ids_entropy_is_what_is_possible():
    found = estimates.entropy(np.eye(15, 40, dtype=int), 1.0)
    assert found.interval == (0, math.log(40)) and found.value <= math.log(40)


def miller_madow(n):
    return stats.entropy(n) + (len(n) - 1) / (2 * n.sum())


def chao_shen(n):
    """Entropy and Chao, Shen (2003): shares of what is covered, each over the chance to be seen."""
    covered = (1 - (n == 1).sum() / n.sum()) * n / n.sum()
    return -(covered * np.log(covered) / (1 - (1 - covered) ** n.sum())).sum()


def grassberger(n):
    """Entropy Estimates from Insufficient Samplings (2003)."""
    psi = special.digamma
    terms = psi(n) + np.where(n % 2, -0.5, 0.5) * (psi((n + 1) / 2) - psi(n / 2))
    return math.log(n.sum()) - (n * terms).sum() / n.sum()


def test_the_correction_leaves_least_of_the_bias():
    """Summed over sizes, less than 0.7 of the next best of each kind, and a fifth of that of plain counts."""
    others = {"plain": stats.entropy, "mm": miller_madow, "cs": chao_shen, "g": grassberger}
    for kind in "uniform", "zipf", "geometric":
        p = {size: shares(kind, size) for size in (16, 256, 1024)}
        bias = Counter()
        for size, times in [(16, 4), (256, 0.5), (256, 1), (256, 4), (1024, 0.25), (1024, 1), (1024, 16)]:
            generator, found = rng(size), {}
            for _ in range(40):
                n = generator.multinomial(round(size * times), p[size])
                found.setdefault("ours", []).append(estimates._entropies(n, np.minimum(n, 1), size, 1.0)[0])
                for name, estimator in others.items():
                    found.setdefault(name, []).append(estimator(n[n > 0]))
            bias.update({name: abs(np.mean(one) - stats.entropy(p[size])) for name, one in found.items()})
        assert bias["ours"] < 0.7 * min(bias[name] for name in others) and bias["ours"] < 0.2 * bias["plain"], bias


@pytest.mark.parametrize("kind", ["uniform", "zipf", "geometric", "few", "spike"])
def test_intervals_hold_the_truth(kind):
    """Of entropy, from K/4 to 64 K ids; the verdict is never wrong, nor is what could be missed."""
    held, trials = Counter(), 30
    for size, times in [(16, 4), (256, 0.25), (256, 1), (256, 4), (256, 64)]:
        p, generator = shares(kind, size), rng(size)
        truth, often = stats.entropy(p), (p >= tokens.RARE / size).sum()
        for _ in range(trials):
            counts = groups_of(p, round(size * times), generator)
            found = tokens._Measures(ids.Counted(counts, None, 0, []), None, 0, ())
            low, high = estimates.entropy(counts, estimates.clumping(counts)).interval
            held[size, times] += low - 1e-9 <= truth <= high + 1e-9
            held["codes"] += found.at_most >= often
            verdict = tokens._decide(found)[0]
            assert verdict != "few codes in use" or often < size / 4
            assert verdict != "few codes in effect" or math.exp(truth) < size / 4
            assert verdict != "part of the codes in use" or often < 0.95 * size
    codes = held.pop("codes")
    assert codes >= 0.95 * sum([trials] * len(held))
    assert min(held.values()) >= 0.85 * trials and sum(held.values()) >= 0.93 * trials * len(held), held


@pytest.mark.parametrize("kind", ["uniform", "zipf"])
def test_intervals_hold_the_truth_where_items_have_few_codes_each(kind):
    truth, held = stats.entropy(shares(kind, 256)), 0
    for seed in range(20):
        index = of_topics(kind, 256, items=80, length=64, topics=16, seed=seed)
        counted = ids.counted(index, 256, [], seed)
        clumped = estimates.clumping(counted.counts)
        low, high = estimates.entropy(counted.counts, clumped).interval
        held += low <= truth <= high
        assert 3 < clumped < 7  # each id stands with three others of the same draw
        assert estimates.entropy(counted.counts, 1.0).interval[1] < high
    assert held >= 18


# ---------------------------------------------------------------- the other estimates


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = rng().normal(size=30)
    without = (x.sum() - x) / 29
    assert estimates.deviation(without) == pytest.approx(x.std(ddof=1) / math.sqrt(30))
    assert estimates.student(30) == pytest.approx(2.0452, abs=1e-4)


def test_clumps_are_counted_as_one():
    counts = groups_of(shares("zipf", 100), 20_000, rng())
    assert estimates.clumping(counts) == 1
    chi2 = stats.chi2_contingency(5 * counts[:, counts.any(axis=0)]).statistic
    freedom = 63 * (counts.any(axis=0).sum() - 1)
    assert estimates.clumping(5 * counts) == pytest.approx(chi2 / freedom) and 4.5 < chi2 / freedom < 5.5
    assert estimates.clumping(counts[:1]) == estimates.clumping(counts[:, :1]) == 1  # nothing tells


def test_codes_in_use_by_the_jackknife():
    p, held = shares("zipf", 500), 0
    counts = groups_of(p, 3000, rng())
    seen, (low, high) = estimates.codes_in_use(counts)
    without = np.array([np.delete(counts, g, axis=0).any(axis=0).sum() for g in range(64)])
    reach = 1.998 * math.sqrt(63 / 64 * ((without - without.mean()) ** 2).sum())
    assert seen == counts.any(axis=0).sum() and (low, high) == pytest.approx((seen - reach, seen + reach), abs=0.01)
    for seed in range(100):
        low, high = estimates.codes_in_use(groups_of(p, 3000, rng(seed))).interval
        held += low <= (1 - (1 - p) ** 3000).sum() <= high
    assert held >= 90
    assert estimates.codes_in_use(np.full((64, 5), 9)) == (5, (5, 5))
    assert estimates.codes_in_use(np.eye(15, 40)) == (15, (1, 40))


def test_live_codes_by_hand():
    """Six codes once, three twice: 6 * 5 / (2 * 4) more, times (N - 1) / N."""
    uses = np.array([[1] * 6 + [2] * 3 + [8] + [0] * 90])
    value, (low, high) = estimates.live_codes(uses, 1.0)
    more = 19 / 20 * 30 / 8
    assert value == pytest.approx(10 + more)
    variance = 19 / 20 * 30 / 8 + (19 / 20) ** 2 * (6 * 11**2 / (4 * 16) + 36 * 3 * 25 / (4 * 256))
    assert ((low - 10) * (high - 10), (high - 10) / (low - 10)) == pytest.approx(
        (more**2, math.exp(2 * 1.96 * math.sqrt(math.log(1 + variance / more**2))))
    )
    assert estimates.live_codes(uses[:, :11], 1.0) == (11, (low, 11))  # no more than there are
    assert estimates.live_codes(np.array([[3, 1, 0]]), 1.0) == (2, (2, 2))


def test_live_codes_of_clumps_are_by_groups():
    """Each code many times, but in one or two groups."""
    groups = np.array([[5, 0, 0, 4, 0], [0, 7, 0, 4, 0], [0, 0, 9, 0, 0]])
    assert estimates.live_codes(groups, 6.0).value == pytest.approx(4 + 2 / 3 * 3 * 2 / (2 * 2) * 1)
    assert estimates.live_codes(groups, 1.0).value == 4


def test_sums_without_a_group_are_those_of_the_others():
    x, group = rng().integers(9, size=200), rng(1).integers(6, size=200)
    rows = estimates.left_out(x, group, estimates.entropy_of_times)
    assert rows[0] == pytest.approx(estimates.entropy_of_times(np.bincount(x)))
    for number in range(6):
        rest = np.bincount(x[group != number])
        assert rows[1 + number] == pytest.approx(estimates.entropy_of_times(rest))


def order_of(index, size, **options):
    return diagnose_tokens(index, size, **options).evidence["redundancy"]


def test_redundancy_of_a_chain():
    """Half of the ids follow from the one before, the others are drawn anew."""
    number, size = 60_000, 32
    index, anew = rng().integers(size, size=number), rng(1).random(number) < 0.5
    for t in range(1, number):
        index[t] = index[t] if anew[t] else (index[t - 1] + 1) % size
    stay = 0.5 + 0.5 / size
    truth = 1 - stats.entropy([stay] + [0.5 / size] * (size - 1)) / math.log(size)
    found = order_of(index, size)
    assert found.interval[0] < truth < found.interval[1] and found.value == pytest.approx(truth, abs=0.01)
    assert found.speaks_for == "order among neighbours" and found.reference < 0.01
    pairs = np.histogram2d(index[:-1], index[1:], bins=size)[0]
    plain = 2 - (stats.entropy(pairs, axis=None) - stats.entropy(pairs.sum(1)) + stats.entropy(pairs.sum(0))) / (
        stats.entropy(pairs.sum(0))
    )
    assert found.value < plain and found.value == pytest.approx(plain, abs=0.02)


@pytest.mark.parametrize("kind", ["uniform", "zipf"])
@pytest.mark.parametrize("size, number", [(16, 2000), (1024, 4000), (4096, 20_000)])
def test_ids_in_no_order_show_none(kind, size, number):
    """Even where pairs are so few that most occur once, as if each id told all of the next."""
    index = drawn(kind, size, number)
    found = order_of(index, size)
    assert found.interval[0] == 0 and found.speaks_for == "no order beyond chance"
    assert order_of(index.reshape(-1, 50), size).interval[0] == 0


def test_order_is_found_where_pairs_are_few():
    index = in_runs("zipf", 1024, 16_000, 0.3)
    p = shares("zipf", 1024)
    stay = 0.3 + 0.7 * p
    others = np.sum(0.7 * p * np.log(0.7 * p)) - 0.7 * p * np.log(0.7 * p)
    truth = 1 - (p * -(stay * np.log(stay) + others)).sum() / stats.entropy(p)
    low, high = order_of(index, 1024).interval
    assert 0.05 < low < truth < high


def test_redundancy_is_of_the_id_that_follows():
    """One of two ids, then one of the four of eight that go with it: log 4 of log 8 is left."""
    before, rest = rng().integers(2, size=20_000), rng(1).integers(4, size=20_000)
    found = estimates.redundancy(before, 4 * before + rest, np.arange(20_000) % 64, 8, seed=0)
    assert found.value == pytest.approx(1 / 3, abs=0.01)


# ---------------------------------------------------------------- verdicts


def test_the_words_of_the_verdict_are_not_those_of_a_collapse():
    assert set(TOKEN_VERDICTS) & set(VERDICTS) == {"cannot tell"}
    assert len(set(TOKEN_VERDICTS)) == len(TOKEN_VERDICTS)
    listed = " ".join(diagnose_tokens.__doc__.split())
    assert all(f'"{verdict}"' in listed for verdict in TOKEN_VERDICTS)


@pytest.mark.parametrize(
    "verdict, index, size, reason",
    [
        ("few codes in use", drawn("uniform", 12, 5000), 1024, "12 of 1,024 codes occur; at most"),
        ("few codes in use", np.zeros(10_000, int), 64, "1 of 64 codes occur"),
        ("few codes in effect", drawn("zipf", 4096, 60_000), 4096, "a few take most of the ids"),
        ("cannot tell", drawn("uniform", 1024, 900), 1024, "900 ids are too few"),
        ("cannot tell", np.arange(5), 100, "5 of 100 codes occur, but 5 ids are too few"),
        ("part of the codes in use", drawn("uniform", 600, 60_000), 1024, "600 of 1,024 codes occur; at most"),
        ("nearly all codes in use", drawn("uniform", 1000, 60_000), 1024, "1,000 of 1,024 codes occur, and"),
        ("all codes in use", drawn("uniform", 64, 5000), 64, "All 64 codes occur"),
        ("all codes in use", np.zeros(20, int), 1, "All 1 codes occur"),
    ],
)
def test_verdicts(verdict, index, size, reason):
    found = diagnose_tokens(index, size)
    assert found.verdict == verdict and reason in found.reason and reason.isascii()
    assert (found.confidence is None) == (verdict == "cannot tell")
    assert found.confidence is None or 0.95 <= found.confidence <= 1
    assert any("spare codes" in note and "token collapse" in note for note in found.notes)
    assert ("more ids" in found.advice[0].remedy) == (verdict == "cannot tell")
    assert found.advice[-1] == tokens.DIAGNOSE
    for name, one in found.evidence.items():
        if name != "codes not rare, at most":  # it is an end itself
            low, high = one.interval
            assert low <= one.value <= high


def test_more_ids_as_advised_are_enough():
    for kind in "uniform", "geometric":
        few = diagnose_tokens(drawn(kind, 256, 200), 256)
        advised = int(few.advice[0].remedy.rpartition(" ")[2].replace(",", ""))
        assert few.verdict == "cannot tell" and 20 * 256 < advised < 60 * 256
        assert diagnose_tokens(drawn(kind, 256, advised), 256).verdict != "cannot tell"


def test_ids_in_clumps_show_no_more_codes_than_their_clumps():
    """All 256 codes are drawn alike, but each of 200 items repeats one of them fifty times."""
    alike = np.repeat(drawn("uniform", 256, 200)[:, None], 50, axis=1)
    found = diagnose_tokens(alike, 256)
    assert found.verdict == "cannot tell" and found.evidence["codes not rare, at most"].value == 256
    assert diagnose_tokens(drawn("few", 256, 10_000).reshape(200, 50), 256).verdict == "few codes in use"


def test_confidence_grows_with_the_ids():
    few, many = (diagnose_tokens(drawn("uniform", 60, number), 256) for number in (4500, 9000))
    assert (few.verdict, many.verdict) == ("few codes in effect",) * 2 and few.confidence <= many.confidence
    sure = [float(tokens._measure(drawn("uniform", 12, n), 64, [], 0, 0).confidence_below(16)) for n in (300, 600)]
    q = [1 - (1 - 0.1 / 64) ** n for n in (300, 600)]
    assert sure == pytest.approx([stats.binom.sf(12, 16, one) for one in q]) and sure[0] < sure[1]


def test_figures_stand_beside_what_so_many_ids_show():
    found = diagnose_tokens(drawn("uniform", 100, 150), 100)
    in_use = found.evidence["codes in use"]
    assert in_use.value == len(np.unique(drawn("uniform", 100, 150)))
    assert found.evidence["codes not rare, at most"].value == 100
    assert in_use.reference == round(100 * (1 - 0.99**150)) and "of 150 ids, if all 100" in in_use.compared_with
    assert found.evidence["live codes, at least"].value > in_use.value
    assert found.evidence["live codes, at least"].speaks_for == "not seen is not dead"
    effect, entropy = found.evidence["codes in effect"], found.evidence["entropy"]
    assert effect.value == pytest.approx(math.exp(entropy.value), abs=0.5) and effect.reference == 100
    assert entropy.reference == pytest.approx(math.log(100))
    plain = math.exp(stats.entropy(np.bincount(drawn("uniform", 100, 150))))
    assert f"perplexity is {plain:.4g}" in " ".join(found.notes) and plain < effect.value


def test_perplexity_agrees_with_the_meter_where_ids_are_many():
    index = drawn("zipf", 64, 50_000)
    value = diagnose_tokens(index, 64).evidence["codes in effect"].value
    assert value == pytest.approx(vqnotes.metrics.perplexity(index, 64), rel=2e-3)


def test_runs_without_items_are_doubted():
    index = in_runs("few", 256, 20_000, 0.9)
    flat, items = diagnose_tokens(index, 256), diagnose_tokens(index.reshape(-1, 200), 256)
    assert "ids depend on their neighbours" in flat.doubts[0] and flat.confidence is None
    assert not items.doubts and items.confidence >= 0.95 and flat.verdict == items.verdict
    for found in flat, items:
        assert any("ids come in clumps" in note for note in found.notes)
    everything = diagnose_tokens(in_runs("uniform", 16, 20_000, 0.9), 16)
    assert everything.verdict == "all codes in use" and everything.confidence == 1


def test_a_code_with_most_of_the_ids_may_be_padding():
    index = np.concatenate([np.zeros(600, int), drawn("uniform", 64, 400)])
    index = rng().permutation(index)
    assert any("Is it padding? Then pass padding=0" in doubt for doubt in diagnose_tokens(index, 64).doubts)
    assert not diagnose_tokens(index, 64, padding=0).doubts
    assert not diagnose_tokens(index % 2, 2).doubts


def test_a_report_is_plain_text_and_a_table():
    found = diagnose_tokens(drawn("zipf", 128, 3000).reshape(60, 50), 128)
    assert str(found).isascii() and "95% interval" in str(found) and "nan" not in str(found)
    assert "<th>95% interval</th>" in found._repr_html_() and "(confidence " in str(found)
    with pytest.raises(ValueError, match="or of ids"):
        draw(np.empty(4, dtype=object), found)


# ---------------------------------------------------------------- what is read

INDEX = drawn("zipf", 200, 3000).reshape(50, 60)
FORMS = {
    "uint8": lambda x: x.astype(np.uint8),
    "int16": lambda x: x.astype(np.int16),
    "uint16": lambda x: x.astype(np.uint16),
    "big-endian": lambda x: x.astype(">u4"),
    "uint64": lambda x: x.astype(np.uint64),
    "float64": lambda x: x.astype(float),
    "float16": lambda x: x.astype(np.float16),
    "lists": lambda x: x.tolist(),
    "Fortran": np.asfortranarray,
    "a view": lambda x: np.stack([x, 0 * x], axis=-1)[..., 0],
    "tensor": torch.from_numpy,
    "tensor, uint16": lambda x: torch.from_numpy(x.astype(np.uint16)),
    "tensor, int32": lambda x: torch.from_numpy(x).int(),
    "tensor, bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
    "tensor, a view": lambda x: torch.from_numpy(x.T.copy()).T,
    "parameter": lambda x: torch.from_numpy(x).float().requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
def test_ids_may_have_any_type(form):
    assert str(diagnose_tokens(FORMS[form](INDEX), 200)) == str(diagnose_tokens(INDEX, 200))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_ids_may_be_on_a_gpu():
    index = torch.from_numpy(INDEX).to("cuda")
    assert str(diagnose_tokens(index, 200)) == str(diagnose_tokens(INDEX, 200))
    assert str(diagnose_tokens(index.flatten(), 200)) == str(diagnose_tokens(INDEX.flatten(), 200))


def test_ids_may_be_in_a_file(tmp_path):
    flat, whole = (str(diagnose_tokens(one, 200)) for one in (INDEX.flatten(), INDEX))
    np.save(tmp_path / "ids.npy", INDEX.astype(np.uint16))
    with open(tmp_path / "named.bin", "wb") as file:
        np.save(file, np.asfortranarray(INDEX))
    INDEX.astype("<u2").tofile(tmp_path / "ids.u2")
    INDEX.astype(">u4").tofile(tmp_path / "ids.u4")
    assert str(diagnose_tokens(tmp_path / "ids.npy", 200)) == whole
    assert str(diagnose_tokens(str(tmp_path / "named.bin"), 200)) == whole
    assert str(diagnose_tokens(tmp_path / "ids.u2", 200, dtype="<u2")) == flat
    assert str(diagnose_tokens(str(tmp_path / "ids.u4"), 200, dtype=np.dtype(">u4"))) == flat
    mapped = np.memmap(tmp_path / "ids.u2", "<u2", mode="r").reshape(-1, 60)
    assert str(diagnose_tokens(mapped, 200)) == whole


@pytest.mark.parametrize("shape", [(-1,), (50, 60), (3, 1000), (2, 2, 750), (100, 5, 6)])
def test_parts_make_no_difference(shape, monkeypatch):
    index = np.where(rng().random(3000) < 0.2, -1, INDEX.flatten()).reshape(shape)
    whole = str(diagnose_tokens(index, 200, padding=-1))
    for part in 3, 59, 1000:
        monkeypatch.setattr(ids, "PART", part)
        assert str(diagnose_tokens(index, 200, padding=-1)) == whole
        assert str(diagnose_tokens(torch.from_numpy(index), 200, padding=-1)) == whole


@pytest.mark.parametrize("shape", [(-1,), (2000, -1), (4, -1)])
def test_a_memory_map_is_not_copied(tmp_path, monkeypatch, shape):
    """2^22 ids would take 32 MiB as int64; parts of 2^16, less than a tenth of it."""
    monkeypatch.setattr(ids, "PART", 2**16)
    index = rng().integers(64, size=2000 * 2048).astype("<u2")
    index[::5] = 65535
    index.tofile(tmp_path / "ids")
    mapped = np.memmap(tmp_path / "ids", "<u2", mode="r").reshape(shape)
    diagnose_tokens(INDEX, 200)  # what is imported and cached is there
    tracemalloc.start()
    found = diagnose_tokens(mapped, 64, padding=65535, pairs=10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 2**20 and found.verdict == "all codes in use"
    assert found.evidence["codes in use"].compared_with.startswith(f"of {(index != 65535).sum():,} ids")


# ---------------------------------------------------------------- padding


@pytest.mark.parametrize("padding", [-1, 65535, 200, [-1, 300], np.int16(-7), (2**40,), {-3, -2}, np.array([500])])
def test_padding_does_not_count(padding):
    several = np.atleast_1d(list(padding) if isinstance(padding, set) else padding)
    index = np.where(rng().random(INDEX.shape) < 0.3, rng(1).choice(several, INDEX.shape), INDEX)
    found = diagnose_tokens(index, 200, padding=padding)
    kept = index[~np.isin(index, several)]
    assert found.evidence["codes in use"].value == len(np.unique(kept)) and not found.doubts
    assert f"{index.size - len(kept):,} of 3,000 ids are padding" in " ".join(found.notes)
    plain = math.exp(stats.entropy(np.bincount(kept)))
    assert f"perplexity is {plain:.4g}" in " ".join(found.notes)


def test_padding_among_the_codes_is_no_code():
    index = drawn("uniform", 64, 5000)
    found = diagnose_tokens(index, 64, padding=[0, 5])
    assert found.verdict == "all codes in use" and found.evidence["codes in use"].value == 62
    assert found.evidence["codes in effect"].reference == 62


def test_padding_that_is_not_there_is_told():
    assert diagnose_tokens(INDEX, 200, padding=[-1, 0]).doubts == ["padding=-1 does not occur among the ids"]


def test_groups_that_are_all_padding_are_left_out():
    index = np.where(np.arange(3000) < 1500, INDEX.flatten(), -1)
    found = diagnose_tokens(index, 200, padding=-1)
    assert any("over 32 stretches" in note for note in found.notes) and "nan" not in str(found)


def brute_pairs(index, padding=()):
    rows = index.reshape(-1, index.shape[-1])
    pairs = [(a, b) for row in rows.tolist() for a, b in zip(row, row[1:]) if not {a, b} & {*padding}]
    return Counter(pairs)


@pytest.mark.parametrize("shape", [(-1,), (50, 60), (100, 5, 6), (1500, 2), (3, 1000), (2, 2, 750), (30, 10, 10)])
def test_all_pairs_of_neighbours_are_counted_once(shape):
    index = np.where(rng().random(3000) < 0.1, -1, INDEX.flatten()).reshape(shape)
    units = ids.Units.of(index, 0)
    before, after, group = ids.pairs_of(index, [-1], units, 2**20)
    assert Counter(zip(before.tolist(), after.tolist())) == brute_pairs(index, [-1])
    assert len(group) == len(before) and set(group.tolist()) <= set(units.group.tolist())
    found = diagnose_tokens(index, 200, padding=-1)
    all_of_them = index.size // index.shape[-1] * (index.shape[-1] - 1)
    assert f"of {len(before):,} of {all_of_them:,} pairs" in " ".join(found.notes)


@pytest.mark.parametrize("shape", [(-1,), (50, 60), (100, 5, 6), (1500, 2), (3, 1000), (30, 1, 100)])
def test_no_more_pairs_are_counted_than_asked_for(shape):
    index = INDEX.reshape(shape)
    before, after, group = ids.pairs_of(index, [], ids.Units.of(index, 0), 700)
    assert 400 < len(before) <= 700 and not Counter(zip(before.tolist(), after.tolist())) - brute_pairs(index)
    assert np.ptp(np.bincount(group)) <= 60  # groups give about as many
    assert "redundancy" not in diagnose_tokens(index, 200, pairs=0).evidence


@pytest.mark.parametrize("index", [INDEX.reshape(-1, 1), np.zeros((40, 50), int), np.arange(12), np.array(3)])
def test_without_pairs_there_is_no_redundancy(index):
    found = diagnose_tokens(index, 200)
    assert "redundancy" not in found.evidence and any("redundancy is not measured" in one for one in found.notes)


def test_a_short_last_axis_may_be_one_of_codebooks():
    said = "if it runs over codebooks, pass stages_axis=-1"
    short, long = (diagnose_tokens(INDEX.reshape(-1, length), 200) for length in (4, 60))
    assert said in short.notes[-1] and not any(said in note for note in long.notes)


def test_units_are_items_where_there_are_enough():
    assert ids.Units.of(INDEX, 0).items and not ids.Units.of(INDEX[:29], 0).items
    assert not ids.Units.of(INDEX.flatten(), 0).items
    units = ids.Units.of(np.zeros((150, 7)), 0)
    assert units.length == 7 and np.bincount(units.group).tolist() == [3] * 22 + [2] * 42
    assert (units.groups_of(0, 14) == np.repeat(units.group[:2], 7)).all()
    for number in 1, 63, 64, 65, 1000:
        flat = ids.Units.of(np.zeros(number), 0)
        assert (len(flat.group) - 1) * flat.length < number <= len(flat.group) * flat.length
        assert len(flat.group) <= 64
    assert "the 50 items (first axis)" in " ".join(diagnose_tokens(INDEX, 200).notes)
    assert "64 stretches of 47 neighbouring ids" in " ".join(diagnose_tokens(INDEX.flatten(), 200).notes)


def test_a_seed_decides_what_is_drawn():
    one, again, other = (order_of(INDEX, 200, seed=seed) for seed in (1, 1, 2))
    assert one == again != other


# ---------------------------------------------------------------- several codebooks

LEVELS = np.stack([drawn("uniform", 8, 900, 1), drawn("uniform", 2, 900, 2), drawn("zipf", 8, 900, 3)], axis=-1)


def test_each_codebook_is_diagnosed_alone():
    found = diagnose_tokens(LEVELS, [8, 16, 8], stages_axis=-1)
    assert isinstance(found, StackDiagnosis)
    (each,) = found.parts
    alone = [diagnose_tokens(LEVELS[:, level], size) for level, size in enumerate([8, 16, 8])]
    assert [str(one) for one in each] == [str(one) for one in alone]
    assert found.whole.verdict == "few codes in use" and "1 of 3 codebooks: 1 (from 0)" in found.whole.reason
    assert found.whole.evidence["codes in use, 1"] == each[1].evidence["codes in use"]
    assert found.whole.confidence == each[1].confidence
    first = diagnose_tokens(torch.from_numpy(LEVELS.T.copy()), [8, 16, 8], stages_axis=0)
    assert str(first.whole) == str(found.whole)
    every = diagnose_tokens(LEVELS[:, [0, 2]], 8, stages_axis=1).whole
    assert every.verdict == "all codes in use" and "all 2 codebooks" in every.reason


def test_items_of_levels_are_items():
    found = diagnose_tokens(rng().integers(8, size=(40, 100, 2)), 8, stages_axis=-1)
    assert all("of the 40 items" in " ".join(one.notes) for one in found.parts[0])


def test_doubts_of_a_codebook_are_told_of_the_whole():
    levels = np.stack([LEVELS[:, 0], np.where(rng().random(900) < 0.7, 3, drawn("uniform", 16, 900))], axis=1)
    found = diagnose_tokens(levels, 16, stages_axis=1)
    assert found.whole.doubts == [f"codebook 1: {found.parts[0][1].doubts[0]}"]
    twice = diagnose_tokens(levels[:, [0, 1, 1]], 16, stages_axis=1)
    assert twice.whole.doubts == [f"codebook 1, 2: {found.parts[0][1].doubts[0]}"]


LONG = rng().integers(2, size=(700, 70)) * rng(1).integers(2, size=(700, 1))  # half of the tuples are all 0


@pytest.mark.parametrize("levels, size", [(LEVELS, 16), (LONG, 2)])
def test_items_that_share_a_tuple(levels, size):
    """Also where the tuples are more than fit into 63 bits."""
    found = diagnose_tokens(levels, size, stages_axis=-1, collisions=True).whole
    times = Counter(map(tuple, levels.tolist()))
    sharing = found.evidence["items that share a tuple"]
    assert sharing.value == sum(one for one in times.values() if one > 1)
    assert found.evidence["different tuples"].value == len(times)
    assert sharing.interval[0] <= sharing.value <= sharing.interval[1] <= len(levels)
    mixed = rng(7).permuted(levels, axis=0)
    by_chance = sum(one for one in Counter(map(tuple, mixed.tolist())).values() if one > 1)
    assert sharing.reference == pytest.approx(by_chance, abs=0.1 * len(levels))


def test_an_item_with_padding_has_no_tuple():
    levels = np.array([[1, 2], [1, 2], [1, -1], [1, -1], [3, 3], [-1, 2]])
    found = diagnose_tokens(levels, 4, stages_axis=-1, collisions=True, padding=-1).whole
    sharing = found.evidence["items that share a tuple"]
    assert (sharing.value, sharing.interval) == (2, None) and "of 3 items" in sharing.compared_with
    assert found.evidence["different tuples"].value == 2 and str(found).isascii()
    with pytest.raises(ValueError, match="all 2 items have padding in one of their stages"):
        diagnose_tokens(levels[[2, 5]], 4, stages_axis=-1, collisions=True, padding=-1)


def test_tuples_of_maps_are_those_of_each_place():
    levels = rng().integers(3, size=(40, 5, 4, 2))
    found = diagnose_tokens(levels, 3, stages_axis=-1, collisions=True).whole
    assert found.evidence["items that share a tuple"].compared_with.startswith("of 800 items")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"index": INDEX + 0.5}, r"whole numbers, got float64 with \S+\.5"),
        ({"index": np.array([1.0, np.nan, np.inf])}, r"whole numbers, got float64 with nan, inf"),
        ({"index": torch.tensor([0.5, 1.0])}, "whole numbers, got float32 with 0.5"),
        ({"index": np.array([], dtype=int)}, r"at least one, got int64 of shape \(0,\)"),
        ({"index": torch.zeros(3, 0)}, r"at least one, got float32 of shape \(3, 0\)"),
        ({"index": np.array([True, False])}, "whole numbers, at least one, got bool"),
        ({"index": torch.tensor([True])}, "got .*bool"),
        ({"index": np.array([1j])}, "got complex128"),
        ({"index": torch.tensor([1j])}, "got complex64"),
        ({"index": ["a", "b"]}, "tensor or an array of whole numbers"),
        ({"index": [[1, 2], [3]]}, "Sequences of several lengths have to be padded"),
        ({"index": [torch.ones(2), torch.ones(3)]}, "Sequences of several lengths have to be padded"),
        ({"index": None}, "whole numbers, at least one, got object"),
        ({"index": np.ma.masked_equal(INDEX, 0)}, r"masked array: fill it.*padding=-1"),
        ({"index": torch.eye(3).to_sparse()}, "dense tensor"),
        ({"index": torch.zeros(3, device="meta", dtype=torch.int64)}, "dense tensor|its values"),
        ({"index": np.array([3, 200, 200, -1])}, r"3 of 4 ids .* 0 .. 199: 200 \(2 times\), -1 \(1 times\)\."),
        ({"index": np.array([3, 200, 200, -1])}, r"that is padding, pass padding=\[200, -1\]; if not, is size=200"),
        ({"index": np.array([3, 65535], dtype=np.uint16)}, r"65535 \(1 times\)\. .*, pass padding=65535; if not"),
        ({"index": np.array([3, 2**64 - 1], dtype=np.uint64)}, "1 of 2 ids .*18446744073709551615"),
        ({"index": np.array([3.0, 1e300])}, r"1 of 2 ids are not in 0 .. 199: 1e\+300"),
        ({"index": np.arange(300)}, r"100 of 300 ids .*, \.\.\.; they run from 0 to 299\. Is size=200 right\?"),
        ({"index": 1 + np.arange(200)}, "200 .1 times.; and 0 does not occur. If ids count from 1, subtract 1"),
        ({"padding": -1, "index": np.array([-1, -1])}, r"all 2 ids are padding \(-1\)"),
        ({"padding": -1, "index": np.array([-1, -2])}, r"1 of 2 ids are not in 0 .. 199: -2"),
        ({"padding": 0, "index": np.zeros(3, int), "size": 1}, "all 3 ids are padding"),
        ({"padding": 0.5}, "padding must be a whole number, got 0.5|got np.float64.0.5"),
        ({"padding": "x"}, "padding must be a whole number"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"size": -3}, "size must be at least 1, got -3"),
        ({"size": 10.0}, "size must be a whole number, got 10.0"),
        ({"size": [200, 200]}, "size must be a whole number"),
        ({"size": 2**30}, r"at most 4,194,304, got 1,073,741,824.*stages_axis"),
        ({"dtype": "<u2"}, "dtype is for the path of a raw file, got dtype='<u2' beside ndarray"),
        ({"pairs": -1}, "pairs must be at least 0, got -1"),
        ({"seed": -1}, "seed must be in"),
        ({"collisions": True}, "stages_axis= says which axis a tuple runs along"),
        ({"stages_axis": 2}, r"stages_axis=2 does not fit an index of shape \(50, 60\)"),
        ({"stages_axis": -3}, "stages_axis must be at least -2, got -3"),
        ({"stages_axis": 0, "index": np.arange(5)}, r"does not fit an index of shape \(5,\)"),
        ({"stages_axis": 0, "size": [200, 200]}, "need a size for each of 50 stages"),
        ({"stages_axis": 1.5}, "stages_axis must be a whole number"),
    ],
)  # fmt: skip
def test_what_is_no_ids_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        diagnose_tokens(**{"index": INDEX, "size": 200} | wrong)


def test_files_are_refused_if_anything_is_to_be_guessed(tmp_path):
    raw, saved, archive, objects = (tmp_path / name for name in ("ids", "ids.npy", "ids.npz", "objects.npy"))
    raw.write_bytes(bytes(30))
    np.save(saved, INDEX)
    np.savez(archive, INDEX)
    np.save(objects, np.array([{}], dtype=object))
    for path, dtype, said in [
        (raw, None, "is no .npy file: say what it holds"),
        (raw, "<u4", r"has 30 bytes, which are no whole number of uint32 \(4 bytes\)"),
        (raw, torch.uint16, "dtype must be one of NumPy"),
        (raw, "<f4", "has 30 bytes"),
        (raw, bool, "whole numbers, at least one, got bool"),
        (saved, "<u2", "says its dtype itself"),
        (archive, "<u2", "is an archive"),
        (objects, None, "memory-mapped"),
    ]:
        with pytest.raises(ValueError, match=said):
            diagnose_tokens(path, 200, dtype=dtype)
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="has 0 bytes"):
        diagnose_tokens(tmp_path / "empty", 200, dtype="<u2")
    with pytest.raises(FileNotFoundError):
        diagnose_tokens(tmp_path / "gone.npy", 200)


def test_ids_that_are_wrong_anywhere_are_all_counted(monkeypatch):
    monkeypatch.setattr(ids, "PART", 10)
    index = np.arange(100) % 7
    index[[5, 50, 95]] = 7
    with pytest.raises(ValueError, match=r"3 of 100 ids are not in 0 .. 6: 7 \(3 times\)"):
        diagnose_tokens(index, 7)


def test_it_is_offered_at_the_top():
    assert vqnotes.diagnose_tokens is diagnose_tokens and "diagnose_tokens" in vqnotes.__all__
