"""The diagnosis for those who have nothing but ids: what usage says, how sure that is, and what it cannot say.

`ids` reads and counts them, `estimates` says what counts show and what they do not; here is the verdict.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from vqnotes._checks import Array
from vqnotes.diagnosis import estimates, ids
from vqnotes.diagnosis.advice import Advice
from vqnotes.diagnosis.observed import seed_of
from vqnotes.diagnosis.report import Diagnosis, Evidence, StackDiagnosis
from vqnotes.diagnosis.rules import THRESHOLDS

__all__ = ["TOKEN_VERDICTS", "diagnose_tokens"]

# The gravest first: it is the verdict on several codebooks.
TOKEN_VERDICTS = (
    "few codes in use",
    "few codes in effect",
    "cannot tell",
    "part of the codes in use",
    "nearly all codes in use",
    "all codes in use",
)

SEEN = TOKEN_VERDICTS[-2:]  # they state what was seen

RARE = 0.1  # of the even share 1/K: codes that are chosen less often are not asked for
NEARLY = 0.95  # of the codes are nearly all
SHORT = 16  # a last axis as short as this may run over codebooks

DIAGNOSE = Advice("diagnose(latents, codebook, inputs=...) tells a collapse from spare codes", "data", "09")

Index = Array | str | os.PathLike


@overload
def diagnose_tokens(
    index: Index,
    size: int,
    *,
    padding: int | Sequence[int] | None = None,
    dtype: Any = None,
    stages_axis: None = None,
    collisions: Literal[False] = False,
    pairs: int = 2**20,
    seed: int = 0,
) -> Diagnosis: ...


@overload
def diagnose_tokens(
    index: Index,
    size: int | Sequence[int],
    *,
    padding: int | Sequence[int] | None = None,
    dtype: Any = None,
    stages_axis: int,
    collisions: bool = False,
    pairs: int = 2**20,
    seed: int = 0,
) -> StackDiagnosis: ...


def diagnose_tokens(
    index: Index,
    size: int | Sequence[int],
    *,
    padding: int | Sequence[int] | None = None,
    dtype: Any = None,
    stages_axis: int | None = None,
    collisions: bool = False,
    pairs: int = 2**20,
    seed: int = 0,
) -> Diagnosis | StackDiagnosis:
    """How many of the codes do these ids use, how sure is that, and is there order in them?

    index: whole numbers in 0 .. K-1, of any type and shape: a tensor on any device, an array, a memory map, or the
    path of a file: .npy, or raw with its dtype=, such as "<u2" for uint16. In (items, ..., length) the first axis
    runs over items that are independent of each other, such as images, clips or texts, the last along a sequence.
    With one axis all ids are one sequence; a raw file of many is `np.memmap(path, dtype).reshape(-1, length)`.
    size: K, the number of codes, whether they occur or not; at most 2^22.
    padding: an id, or several, that does not count (other libraries call it ignore_index). It may be outside
    0 .. K-1, such as -1, -100 or 65535. An id inside is then no code, and K is one less.
    stages_axis: the axis of the index that runs over several codebooks (residual levels, heads, groups); size may
    then be a number for each. The result is a `StackDiagnosis`: parts[0] has a diagnosis of each codebook, and whole
    is of all.
    collisions: with stages_axis, also count the items that share their whole tuple of ids with another one.
    pairs: how many pairs of neighbours are counted at most, from all groups of items alike; 0 for none.
    seed: of the groups, and of what is shuffled.

    The verdict is one of TOKEN_VERDICTS: "few codes in use" if they are under a quarter, "few codes in effect" if
    they are by perplexity, "all codes in use", "nearly all codes in use" from 95 % on, "part of the codes in use", or
    "cannot tell" if ids are too few. What could be missed is asked of codes that are chosen at least a tenth as often
    as if all were equal; rarer ones may always exist. Ids say no more: usage is a symptom. Whether it is token
    collapse, embedding collapse or spare codes, `diagnose` tells, from latents and codebook.
    The confidence is that of the interval on which the verdict rests, at least 0.95; that of what was seen is 1.

    Figures, with 95 % intervals. Codes in use: beside those that as many ids show if all codes are equally likely;
    the interval is of what as many ids show on average. Live codes, at least: what endless ids would show, by Chao's
    lower bound (1984, 1987). Codes not rare, at most: with those that could be missed, by the binomial distribution.
    Codes in effect and entropy: corrected for what so few ids do not show after Chao, Wang and Jost (2013,
    doi:10.1111/2041-210X.12108), which came out nearer to the truth than Miller-Madow, Chao-Shen and Grassberger; the
    upper end allows for the share of codes not seen (Good-Turing) being spread over all of them. Redundancy, 1 -
    H(X_t | X_t-1) / H(X_t): how much an id tells of the next, beside the same of shuffled ids.
    Intervals come from the jackknife over up to 64 groups of items; below 30 items, of stretches of neighbouring
    ids. For independent ids, N from K/4 to 64 K, and for items whose ids come in clumps, they held the truth in at
    least 90 of 100 trials. If ids repeat in runs and there are no items, the intervals are too narrow: that is said
    first, and the verdict has no confidence.

    Ids are read in parts of 2^20. Memory beside them: about 600 bytes for each code, 100 for each pair that is
    counted, and with collisions 100 for each item.
    Raises ValueError for ids that are not whole, or outside 0 .. K-1 and no padding; for an index that is empty or
    all padding; for a size that is no number of codes, a raw file without dtype, a dtype without a raw file, an axis
    that is not there, and collisions without stages_axis. Files that cannot be opened raise OSError.
    """
    seed, pairs = seed_of(seed), ids.whole_number(pairs, "pairs", least=0)
    array, skipped = ids.opened(index, dtype), ids.padding_of(padding)
    if stages_axis is None:
        if collisions:
            raise ValueError("collisions are of whole tuples of ids: stages_axis= says which axis a tuple runs along")
        return _diagnosis(_measure(array, ids.size_of(size), skipped, pairs, seed))
    stages = ids.stages_of(array, stages_axis)
    sizes = ids.sizes_of(size, len(stages))
    parts = [_diagnosis(_measure(*one, skipped, pairs, seed)) for one in zip(stages, sizes)]
    return StackDiagnosis(_of_all(parts, _shared(stages, sizes, skipped, seed) if collisions else None), [parts])


# ---------------------------------------------------------------- measures


@dataclass(frozen=True)
class _Measures:
    """What was counted of the ids of one codebook, and what follows from it."""

    ids: ids.Counted
    order: estimates.Redundancy | None
    pairs: int  # that were counted
    shape: tuple[int, ...]  # of the index

    @property
    def size(self) -> int:
        return self.ids.counts.shape[1]

    @property
    def groups(self) -> int:
        return len(self.ids.counts)

    @cached_property
    def uses(self) -> np.ndarray:
        """(K,)"""
        return self.ids.counts.sum(0)

    @cached_property
    def total(self) -> int:
        return int(self.uses.sum())

    @cached_property
    def seen(self) -> int:
        return int((self.uses > 0).sum())

    @cached_property
    def clumping(self) -> float:
        return estimates.clumping(self.ids.counts)

    @property
    def dependent(self) -> bool:
        """Whether ids depend on each other, and it is not known which are independent."""
        return self.clumping > 1 and not self.ids.units.items

    @cached_property
    def entropy(self) -> estimates.Entropy:
        return estimates.entropy(self.ids.counts, self.clumping)

    @property
    def expected(self) -> float:
        """Codes that so many ids show if all are equally likely."""
        return self.size * (1 - (1 - 1 / self.size) ** self.total)

    @property
    def found(self) -> float:
        """The chance that a code as frequent as RARE / K is seen."""
        return 1 - (1 - RARE / self.size) ** (self.total / self.clumping)

    @cached_property
    def at_most(self) -> int:
        """How many codes may be as frequent as RARE / K, if so few were seen."""
        possible = np.arange(self.seen, self.size + 1)
        return int(possible[self.confidence_below(possible) < estimates.LEVEL][-1])

    def confidence_below(self, codes: Any) -> Any:
        """How sure it is that fewer codes are as frequent as RARE / K: else more would have been seen."""
        from scipy.stats import binom

        return 1 - binom.cdf(self.seen, np.ceil(codes), self.found)


def _measure(array: ids.Ids, size: int, skipped: list[int], most: int, seed: int) -> _Measures:
    counted = ids.counted(array, size, skipped, seed)
    before, after, group = ids.pairs_of(array, skipped, counted.units, most)
    order = estimates.redundancy(before, after, group, size, seed)
    return _Measures(counted, order, len(before), tuple(array.shape))


# ---------------------------------------------------------------- whole tuples


class _Shared(NamedTuple):
    """Items whose whole tuple of ids another item has too."""

    items: int  # without those that have padding
    tuples: int  # that differ
    sharing: float
    by_chance: float  # the same, if each codebook's ids are shuffled among the items
    interval: tuple[float, float] | None


def _shared(stages: list, sizes: list[int], skipped: list[int], seed: int) -> _Shared:
    total = math.prod(stages[0].shape)
    here = np.ones(total, dtype=bool)
    for stage in stages:
        ids.fill(here, stage, lambda part, so_far: so_far & ids.no_padding(part, skipped))
    if not here.any():
        raise ValueError(f"all {total:,} items have padding in one of their stages: no tuple is whole")
    rng, possible = np.random.default_rng(seed), 1
    tuples, mixed = np.zeros((2, int(here.sum())), dtype=np.int64)
    for stage, size in zip(stages, sizes):
        one = np.zeros(total, dtype=np.int64)
        ids.fill(one, stage, lambda part, _: part)
        if possible * size >= 2**63:  # then as few numbers as there are tuples so far
            tuples, mixed = (np.unique(tuple_, return_inverse=True)[1] for tuple_ in (tuples, mixed))
            possible = len(tuples)
        tuples, mixed = tuples * size + one[here], mixed * size + rng.permutation(one[here])
        possible *= size
    units = ids.Units.of(stages[0], seed)
    group = np.unique(units.groups_of(0, total)[here], return_inverse=True)[1]
    sums = estimates.left_out(tuples, group, _sharing)
    interval, without = None, sums[1:, 1] / np.maximum(sums[1:, 0], 1)
    if len(without) >= estimates.FEWEST:
        reach = estimates.student(len(without)) * float(estimates.deviation(without)) * len(tuples)
        interval = max(0.0, sums[0, 1] - reach), min(len(tuples), sums[0, 1] + reach)
    by_chance = _sharing(estimates.times_of(mixed))[1]
    return _Shared(len(tuples), int(sums[0, 2]), float(sums[0, 1]), float(by_chance), interval)


def _sharing(times: np.ndarray) -> np.ndarray:
    """Of how often each tuple occurs: items, those that share their tuple, tuples."""
    return np.array([times.sum(), times[times > 1].sum(), (times > 0).sum()], dtype=float)


# ---------------------------------------------------------------- what is said


def _decide(m: _Measures) -> tuple[str, str, float | None]:
    """The verdict, the reason in a sentence, and the confidence if ids are independent."""
    few, nearly = THRESHOLDS["effect"] * m.size, NEARLY * m.size
    seen = f"{m.seen:,} of {m.size:,} codes occur"
    at_most = f"{seen}; at most {m.at_most:,} can be as frequent as {_once(m)}."
    effect = f"{_exp(m.entropy.value):,.4g} are in effect (perplexity)"
    if m.at_most < few:
        return "few codes in use", at_most, float(m.confidence_below(few))
    if math.exp(m.entropy.interval[1]) < few:
        reason = f"{seen}, but {effect}: a few take most of the ids."
        return "few codes in effect", reason, m.entropy.confidence_below(math.log(few), m.groups)
    if m.seen == m.size:
        return "all codes in use", f"All {m.size:,} codes occur, and {effect}.", 1.0
    if m.seen >= nearly:
        return "nearly all codes in use", f"{seen}, and {effect}.", 1.0
    if m.at_most < nearly:
        return "part of the codes in use", at_most, float(m.confidence_below(nearly))
    reason = f"{seen}, but {m.total:,} ids are too few to tell whether the others are dead or only rare."
    return "cannot tell", reason, None


def _diagnosis(m: _Measures) -> Diagnosis:
    verdict, reason, confidence = _decide(m)
    if m.dependent and verdict not in SEEN:
        confidence = None
    advice = [DIAGNOSE] if verdict != "cannot tell" else [_more_ids(m), DIAGNOSE]
    return Diagnosis(verdict, reason, _evidence(m), advice, _notes(m), None, _doubts(m), confidence)


def _more_ids(m: _Measures) -> Advice:
    """As many as show a code that is as frequent as RARE / K with a chance of 95 %."""
    enough = float(f"{-math.log(1 - estimates.LEVEL) * m.size / RARE * m.clumping:.1g}")
    return Advice(f"count more ids, about {enough:,.0f}", "data", "09")


def _exp(entropy: float) -> float:
    """Perplexity: a whole number where a share of one does not matter."""
    perplexity = math.exp(entropy)
    return perplexity if perplexity < 100 else round(perplexity)


def _once(m: _Measures) -> str:
    return f"once in {m.size / RARE:,.0f} ids"


def _evidence(m: _Measures) -> dict[str, Evidence]:
    live, (low, high) = estimates.live_codes(m.ids.counts, m.clumping)
    in_use, ends = estimates.codes_in_use(m.ids.counts)
    by = f"of {m.total:,} ids, if all {m.size:,} were equally likely"
    unseen = "not seen is not dead" if round(live) > m.seen else ""
    effect = _exp(m.entropy.interval[0]), _exp(m.entropy.interval[1])
    found = {
        "codes in use": Evidence(
            round(in_use), round(m.expected), by, "a symptom only", (round(ends[0]), round(ends[1]))
        ),
        "live codes, at least": Evidence(round(live), m.size, "codes", unseen, (round(low), round(high))),
        "codes not rare, at most": Evidence(m.at_most, m.size, f"codes, rare: below {_once(m)}", ""),
        "codes in effect": Evidence(_exp(m.entropy.value), m.size, "codes (perplexity)", "a symptom only", effect),
        "entropy": Evidence(m.entropy.value, math.log(m.size), "nats, if all were equal", "", m.entropy.interval),
    }
    if m.order is not None:
        value, interval, shuffled = m.order
        speaks = "order among neighbours" if interval[0] > 0 else "no order beyond chance"
        found["redundancy"] = Evidence(value, shuffled, "with the ids shuffled", speaks, interval)
    return found


def _doubts(m: _Measures) -> list[str]:
    doubts = [f"padding={one} does not occur among the ids" for one in m.ids.not_met]
    share = m.uses.max() / m.total
    if share > 0.5 and m.size > 8 and not m.ids.padded:
        most = int(m.uses.argmax())
        doubts.append(f"id {most} makes up {share:.0%} of the ids. Is it padding? Then pass padding={most}")
    if m.dependent:
        doubts.append(
            f"ids depend on their neighbours, and there are no {ids.ITEMS} items to tell how much: entropy is "
            f"underestimated, and intervals are too narrow for a confidence. If you can, give (items, length)"
        )
    return doubts


def _notes(m: _Measures) -> list[str]:
    units, padded = m.ids.units, m.ids.padded
    notes = [
        "ids do not say why codes are not used: they may be badly placed (token collapse), the latents may coincide "
        "(embedding collapse), or the data need no more (spare codes)",
    ]
    if padded:
        notes.append(f"{padded:,} of {padded + m.total:,} ids are padding and do not count")
    if m.groups < estimates.FEWEST:
        notes.append(f"intervals are only the limits of K: {m.total:,} ids are too few to tell more")
    elif units.items:
        notes.append(f"intervals are over {m.groups} groups of the {len(units.group):,} items (first axis)")
    else:
        notes.append(
            f"intervals are over {m.groups} stretches of {units.length:,} neighbouring ids, for want of "
            f"{ids.ITEMS} items along a first axis"
        )
    if m.clumping > 1:
        worth = m.total / m.clumping
        notes.append(f"ids come in clumps: {m.total:,} of them tell about as much as {worth:,.0f} independent ones")
    shares = m.uses[m.uses > 0] / m.total
    notes.append(f"as counted, without correction, perplexity is {math.exp(-(shares * np.log(shares)).sum()):,.4g}")
    if m.order is None:
        notes.append("redundancy is not measured: too few pairs of neighbours, or all of them equal")
    else:
        of = math.prod(m.shape[:-1]) * (m.shape[-1] - 1)
        notes.append(
            f"redundancy, 1 - H(X_t | X_t-1) / H(X_t), is of {m.pairs:,} of {of:,} pairs of neighbours (last axis)"
        )
    if len(m.shape) > 1 and m.shape[-1] <= SHORT:
        notes.append(
            f"the last axis, of {m.shape[-1]}, counts as a sequence; if it runs over codebooks, pass stages_axis=-1"
        )
    return notes


def _of_all(parts: list[Diagnosis], shared: _Shared | None) -> Diagnosis:
    """What is said of several codebooks: the gravest of their verdicts, and which have it."""
    verdict = min((one.verdict for one in parts), key=TOKEN_VERDICTS.index)
    those = [number for number, one in enumerate(parts) if one.verdict == verdict]
    sure = [parts[number].confidence for number in those]
    which = f"{len(those)} of {len(parts)} codebooks: {', '.join(map(str, those))} (from 0)"
    reason = f"That is the verdict on {which if len(those) < len(parts) else f'all {len(parts)} codebooks'}."
    evidence = {
        f"{name}, {number}": one.evidence[name]
        for number, one in enumerate(parts)
        for name in ("codes in use", "codes in effect")
    }
    notes = ["each codebook has a diagnosis of its own, in parts[0]"]
    if shared is not None:
        interval = shared.interval and (round(shared.interval[0]), round(shared.interval[1]))
        by = f"of {shared.items:,} items, with each codebook's ids shuffled"
        sharing = Evidence(round(shared.sharing), round(shared.by_chance), by, "", interval)
        evidence["items that share a tuple"] = sharing
        evidence["different tuples"] = Evidence(shared.tuples, shared.items, "items", "")
        notes.append("items that share a tuple cannot be told apart by their ids; more items share more")
    doubtful: dict[str, list[int]] = {}
    for number, one in enumerate(parts):
        for doubt in one.doubts:
            doubtful.setdefault(doubt, []).append(number)
    doubts = [f"codebook {', '.join(map(str, numbers))}: {doubt}" for doubt, numbers in doubtful.items()]
    confidence = None if None in sure else min(sure)
    return Diagnosis(verdict, reason, evidence, parts[those[0]].advice, notes, None, doubts, confidence)
