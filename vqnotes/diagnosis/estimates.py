"""What counts say of what was not seen: entropy, live codes and order, each corrected, and with a 95 % interval.

Counts stand by groups of independent units; intervals come from leaving out one group after another (the jackknife,
Efron and Tibshirani, 1993, chapter 11).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = [
    "FEWEST",
    "LEVEL",
    "Entropy",
    "Figure",
    "clumping",
    "codes_in_use",
    "deviation",
    "entropy",
    "entropy_of_times",
    "left_out",
    "live_codes",
    "plain_entropy",
    "redundancy",
    "student",
    "times_of",
]

LEVEL = 0.95  # of all intervals
FEWEST = 16  # groups, below which there is no interval
SHUFFLES = 4


class Figure(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    interval: tuple[float, float]


def deviation(left_out: np.ndarray) -> np.ndarray:
    """Standard errors by the jackknife of what is found without one group after another (groups, ...)."""
    return np.sqrt((len(left_out) - 1) * left_out.var(0))


def student(groups: int) -> float:
    """How many standard errors an interval reaches to each side."""
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, groups - 1))


def clumping(counts: np.ndarray) -> float:
    """How many ids tell as much as one independent id, at least 1: the mean design effect (Rao and Scott, 1981).

    counts: (groups, K). It is chi-squared of the uses by groups over its degrees of freedom; 1 if that is less than
    three of its standard deviations above 1.
    """
    uses = counts.sum(0)
    seen, total = uses > 0, uses.sum()
    freedom = (len(counts) - 1) * (seen.sum() - 1)
    if freedom == 0:
        return 1.0
    expected = ((uses[seen] * (group.sum() / total), group[seen]) for group in counts)
    found = sum(float(((group - even) ** 2 / even).sum()) for even, group in expected) / freedom
    return found if found > 1 + 3 * math.sqrt(2 / freedom) else 1.0


# ---------------------------------------------------------------- entropy


class Entropy(NamedTuple):
    """Entropy in nats: corrected, with its interval; its upper bound, and the standard error of that."""

    value: float
    interval: tuple[float, float]
    upper: float
    upper_error: float  # infinite if groups are too few to tell

    def confidence_below(self, entropy: float, groups: int) -> float:
        """How sure the entropy is to lie below another."""
        from scipy.stats import t

        if self.upper_error == 0:
            return float(self.upper < entropy)
        return float(t.cdf((entropy - self.upper) / self.upper_error, groups - 1))


def entropy(counts: np.ndarray, clumped: float) -> Entropy:
    """Entropy of the uses (groups, K), corrected for what so few ids do not show; clumped: their `clumping`.

    The interval is of Student's t. Its upper end belongs to a bound that spreads the share not seen over all codes
    not seen. Below FEWEST groups it is all that is possible, 0 to log K.
    """
    size = counts.shape[1]
    uses, spread = counts.sum(0), (counts > 0).sum(0)
    value, upper = _entropies(uses, spread, size, clumped)
    value = min(value, math.log(size))
    if len(counts) < FEWEST:
        return Entropy(value, (0.0, math.log(size)), upper, math.inf)
    without = [_entropies(uses - group, spread - (group > 0), size, clumped) for group in counts]
    # Where all codes are used equally, the first order, which the jackknife finds, is 0: then it is the second.
    errors = np.hypot(deviation(np.array(without)), math.sqrt(((uses > 0).sum() - 1) / 2) * clumped / uses.sum())
    low, high = np.clip([value, upper] + student(len(counts)) * errors * [-1, 1], 0, math.log(size))
    return Entropy(value, (float(low), float(high)), upper, float(errors[1]))


def _entropies(uses: np.ndarray, spread: np.ndarray, size: int, clumped: float) -> tuple[float, float]:
    """Entropy after Chao, Wang and Jost (2013), and a bound above it that knows K.

    uses: (K,); spread: (K,) in how many groups each code occurs. Their estimator is the sum of
    n/N (psi(N) - psi(n)), and of what codes add that were not seen. Where ids come in clumps, N and n in psi are
    what they are worth as independent ids, n / clumped. A code is worth no less than the groups it occurs in, in the
    bound no less than 1, and "once" means in one group. The bound takes the largest share of codes not seen that the
    number of those seen once allows, and two more ids for them: as for a proportion (Agresti and Coull, 1998), the
    interval is else too narrow where next to all ids are of one code.

    Of five estimators this one was nearest to the truth, on uniform, Zipf and geometric codes, with K from 16 to
    16,384 and N from K/4 to 64 K. Where N is K or less, Miller and Madow's makes up for a part of the bias only, and
    so does the one of 2003 (Grassberger, 2003). The one by coverage (Chao and Shen, 2003) is too large where N is
    about K and codes are equal, and corrects nothing where no code occurs once.
    """
    from scipy.special import digamma, gammaincinv

    uses, spread = uses[uses > 0], spread[uses > 0]
    total, worth = uses.sum(), max(uses.sum() / clumped, 1.0)
    often = uses if clumped == 1 else spread
    once, twice = int((often == 1).sum()), int((often == 2).sum())
    not_seen = float(uses[often == 1].sum() / total)  # (Good, 1953, and Turing)

    def seen(worths: np.ndarray) -> float:
        bias = digamma(worths) - np.log(worths)
        return float((uses / total * (np.log(total / uses) - bias)).sum() + digamma(worth) - math.log(worth))

    value = seen(uses if clumped == 1 else np.maximum(spread, uses / clumped))
    upper = seen(uses if clumped == 1 else np.maximum(1, uses / clumped))
    if once:
        value += not_seen * _tail(_share_of_rare(once, twice, worth), worth)
    others = size - len(uses)
    if others:
        largest = min(1.0, not_seen + float(gammaincinv(once + 1, (1 + LEVEL) / 2) - once) / worth)
        upper += largest * _tail(largest / others, worth) + 2 / worth * float(digamma(worth) - digamma(1))
    return value, max(value, upper)


def _share_of_rare(once: float, twice: float, ids: float) -> float:
    """The mean share of codes that occur once, by how many occur twice (Chao, Wang and Jost, 2013)."""
    return 2 * twice / ((ids - 1) * once + 2 * twice) if twice else 2 / ((ids - 1) * (once - 1) + 2)


def _tail(share: float, ids: float) -> float:
    """Sum over r >= 0 of (1 - share)^(r + 1) / (ids + r), as an integral by the midpoint rule; 0 for a share of 1.

    Entropy is the sum over r >= 1 and codes of p (1 - p)^r / r; so many ids do not show the terms from r = ids on.
    """
    from scipy.special import hyperu

    if share >= 1:
        return 0.0
    rate = -math.log1p(-share)
    return math.exp(-rate / 2) * float(hyperu(1, 1, rate * (ids - 0.5)))


# ---------------------------------------------------------------- codes that were seen, and those that were not


def codes_in_use(counts: np.ndarray) -> Figure:
    """How many codes occur in the uses (groups, K); the interval is of what as many ids show on average.

    Below FEWEST groups it is all that is possible, 1 to K.
    """
    size, spread = counts.shape[1], (counts > 0).sum(0)
    seen = int((spread > 0).sum())
    if len(counts) < FEWEST:
        return Figure(seen, (1, size))
    alone = (counts[:, spread == 1] > 0).sum(1)  # codes that no other group has
    reach = student(len(counts)) * float(deviation(seen - alone))
    return Figure(seen, (max(1.0, seen - reach), min(float(size), seen + reach)))


def live_codes(counts: np.ndarray, clumped: float) -> Figure:
    """A lower bound of the number of codes that endless ids would show (Chao, 1984), with its log-normal interval.

    counts: (groups, K). By codes that occur once and twice; where ids come in clumps, in one and two groups (Chao,
    1987). At most K. The form without bias, which also serves where no code occurs twice.
    """
    size, uses = counts.shape[1], counts.sum(0)
    often, of = (uses, uses.sum()) if clumped == 1 else ((counts > 0).sum(0), len(counts))
    seen, once, twice = (int((often >= 1).sum()), int((often == 1).sum()), int((often == 2).sum()))
    share = float((of - 1) / of)
    others = share * once * (once - 1) / (2 * (twice + 1))
    if others == 0:
        return Figure(seen, (seen, seen))
    variance = (
        share * once * (once - 1) / (2 * (twice + 1))
        + share**2 * once * (2 * once - 1) ** 2 / (4 * (twice + 1) ** 2)
        + share**2 * once**2 * twice * (once - 1) ** 2 / (4 * (twice + 1) ** 4)
    )
    factor = math.exp(1.96 * math.sqrt(math.log1p(variance / others**2)))
    low, value, high = (min(float(size), seen + one) for one in (others / factor, others, others * factor))
    return Figure(value, (low, high))


# ---------------------------------------------------------------- sums without one group


def times_of(ids: np.ndarray) -> np.ndarray:
    """How often each id occurs."""
    return np.unique(ids, return_counts=True)[1]


def left_out(ids: np.ndarray, group: np.ndarray, sums: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Sums over how often each id occurs: of all ids, then without one group after another; (1 + groups, sums).

    group: 0 .. groups - 1 for each id. sums: of how often ids occur to a vector, in which an id adds to what others
    do, and one that does not occur adds nothing.
    """
    _, which, times = np.unique(ids, return_inverse=True, return_counts=True)
    rows = [sums(times)]
    for number in range(int(group.max()) + 1):
        touched, less = np.unique(which[group == number], return_counts=True)
        rows.append(rows[0] - sums(times[touched]) + sums(times[touched] - less))
    return np.array(rows)


def entropy_of_times(times: np.ndarray) -> np.ndarray:
    """The sums that make an entropy: N, of n log n, of n psi(n), and how many ids occur once and twice."""
    from scipy.special import digamma

    n = times[times > 0].astype(float)
    return np.array([n.sum(), (n * np.log(n)).sum(), (n * digamma(n)).sum(), (n == 1).sum(), (n == 2).sum()])


def plain_entropy(sums: np.ndarray) -> np.ndarray:
    """Entropy as counted, of each row of sums (..., 5)."""
    return np.log(sums[..., 0]) - sums[..., 1] / sums[..., 0]


def _corrected_entropy(sums: np.ndarray) -> np.ndarray:
    """Entropy after Chao, Wang and Jost, of each row of sums (rows, 5)."""
    from scipy.special import digamma

    rare = [once / ids * _tail(_share_of_rare(once, twice, ids), ids) if once else 0 for ids, *_, once, twice in sums]
    return digamma(sums[:, 0]) - sums[:, 2] / sums[:, 0] + np.array(rare)


# ---------------------------------------------------------------- order


class Redundancy(NamedTuple):
    """Order among neighbours, 1 - H(X_t | X_t-1) / H(X_t), its interval, and the same of shuffled ids."""

    value: float
    interval: tuple[float, float]
    shuffled: float


def redundancy(before: np.ndarray, after: np.ndarray, group: np.ndarray, size: int, seed: int) -> Redundancy | None:
    """How much an id tells of the next one, by pairs of them (n,); None for too few groups or equal ids.

    Where pairs are few beside K^2, most occur once, as if each id told all of the next. As counted, less the same of
    shuffled ids, the figure errs low; corrected as the entropy is, it errs high. The interval reaches from one to the
    other, with their standard errors.
    """
    groups, group = np.unique(group, return_inverse=True)
    if len(groups) < FEWEST:
        return None
    sums = [left_out(ids, group, entropy_of_times) for ids in (before, after, before * size + after)]
    if plain_entropy(sums[1]).min() < 1e-9:
        return None
    rng, reach = np.random.default_rng(seed), student(len(groups))
    mixed = np.array([entropy_of_times(times_of(before * size + rng.permutation(after))) for _ in range(SHUFFLES)])

    def figures(entropy: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        first, second, both = map(entropy, sums)
        return 1 - (both - first) / second, 1 - (entropy(mixed) - first[0]) / second[0]

    plain, plain_mixed = figures(plain_entropy)
    corrected, corrected_mixed = figures(_corrected_entropy)
    error = math.hypot(deviation(plain[1:]), plain_mixed.std(ddof=1))
    low = plain[0] - plain_mixed.mean() - reach * error
    high = corrected[0] + reach * deviation(corrected[1:])
    interval = float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))
    shuffled = max(0.0, float(corrected_mixed.mean()))
    return Redundancy(float(np.clip(corrected[0], *interval)), interval, shuffled)
