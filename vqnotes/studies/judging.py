"""What the models of `verdicts` have, by interventions, and how often the verdicts on them are right.

A model has what helps it: new codes (its codebook is at fault), more hidden units or latent dimensions for the
encoder (it is too narrow), a longer warm-up (dimensions were not learnt before the codes came), or, if none of
these does, more codes (its rate is the limit). Where an intervention helps a little, the model is a border case: what
it has with it, and without it, are both right. No model is left out.
"""

from collections.abc import Callable, Iterable
from itertools import product

import numpy as np
import pandas as pd

from vqnotes._checks import check_columns
from vqnotes.diagnosis import rules
from vqnotes.diagnosis.measures import Measures

__all__ = ["HELPS", "Judge", "confusion", "helped", "judged", "labels", "recurrence", "shares", "shows_enough"]

WITHHELD = "cannot tell"
# An intervention makes a difference if it takes an error down by the second factor, none if not even by the first.
HELPS = {"new codes": (1.1, 1.3), "wider encoder": (1.25, 1.6), "longer warm-up": (1.25, 1.6)}
HELPS |= {"more dimensions": (1.25, 1.6)}
TRIFLE = 0.01  # of the inputs' variance: what wins less makes no difference
BESIDE = (0.2, 0.5)  # nor does what wins less than so much of what another wins; it does from the second share on
RATE = (0.2, 0.3)  # of the inputs' variance that the best codes cost, to be no limit, and to be one
AGAINST = {"new codes": "same codes", "wider encoder": "new codes", "longer warm-up": "longer training"}
AGAINST |= {"more dimensions": "new codes"}
APART = "longer warm-up alone"
# First guesses of thresholds; the others are set by what they mean.
FITTED = {"gap": 1.5, "excess": 0.03, "loss": 1.5, "extra": 0.03, "dimensions": 0.6, "costs": 0.05, "rate": 0.3}
AT_LEAST_ONE = ("gap", "loss")  # below, the model does better than what it is compared with


# ---------------------------------------------------------------- what models have


def helped(table: pd.DataFrame) -> pd.DataFrame:
    """Which interventions make a difference: 1, none: 0, a little: 0.5. One row a model, a column an intervention.

    New codes are compared with the same codes; a wider encoder with new codes alone, since its are new too; and a
    longer warm-up with a training as long, whose codes are new at the end. Where this, which brings more dimensions
    with it, made a difference, it was taken apart: more dimensions are compared with new codes alone, and a longer
    warm-up without them also with a decoder that was trained for as long. A longer warm-up also makes a difference
    if it wins more than four times as many codes would: with few codes no error falls by much. Of many codes, that is
    more than as many codes as latents would win. "more codes": what the latter would win over new codes, as a share
    of the inputs' variance. An intervention that could not be made makes no difference.
    Raises ValueError for a table without the errors of the interventions.
    """
    check_columns(table, *(AGAINST.keys() - {"more dimensions"}), *AGAINST.values(), "more codes", "all latents")
    new, gains, found = table["new codes"], {}, {}
    pairs = {name: (table[before], _of(table, name)) for name, before in AGAINST.items()}
    before, after = pairs["longer warm-up"]
    pairs["longer warm-up"] = before.clip(upper=_of(table, "longer decoder")), _of(table, APART).fillna(after)
    for name, (least, enough) in HELPS.items():
        before, after = pairs[name]
        gains[name] = (before - after).fillna(0.0)
        ratio = (before / after).where(gains[name] >= TRIFLE, 1.0)
        found[name] = np.select([ratio >= enough, ratio > least], [1.0, 0.5], 0.0)
    fourfold = new - _of(table, "more codes").fillna(table["all latents"])
    worth = (gains["longer warm-up"] >= TRIFLE) & (gains["longer warm-up"] > fourfold)
    found["longer warm-up"] = np.maximum(found["longer warm-up"], worth)
    most = pd.DataFrame(gains).max(axis=1).clip(lower=TRIFLE)
    for name, gain in gains.items():
        beside = np.select([gain >= BESIDE[1] * most, gain > BESIDE[0] * most], [1.0, 0.5], 0.0)
        found[name] = np.minimum(found[name], beside)
    found["wider encoder"] = np.maximum(found["wider encoder"], found.pop("more dimensions"))
    limit = new - table["all latents"]
    found["more codes"] = np.select([limit >= RATE[1], limit > RATE[0]], [1.0, 0.5], 0.0)
    return pd.DataFrame(found, index=table.index)


def _of(table: pd.DataFrame, name: str) -> pd.Series:
    """A column of numbers, NaN where it was not asked for, or None."""
    return table[name].astype(float) if name in table else pd.Series(np.nan, table.index)


def _right(codes: bool, encoder: bool, dimensions: bool, rate: bool) -> set[str]:
    """The verdicts that are right if these interventions help. Where two help, each by itself, either is."""
    if codes and encoder:
        return {"token and embedding collapse"}
    found = {"token collapse"} if codes else {"embedding collapse"} if encoder else set()
    if dimensions:
        found |= {"dimensional collapse"}
    return found or ({"rate limit"} if rate else {"healthy"})


def labels(table: pd.DataFrame) -> pd.Series:
    """The verdicts that would be right, as a frozenset for each model; more than one of a border case.

    Raises ValueError as `helped` does.
    """
    kinds = {0.0: (False,), 0.5: (False, True), 1.0: (True,)}
    rows = helped(table).itertuples(index=False)
    sets = [frozenset().union(*(_right(*case) for case in product(*(kinds[one] for one in row)))) for row in rows]
    return pd.Series(sets, table.index, dtype=object)


def recurrence(table: pd.DataFrame, right: pd.Series) -> pd.Series:
    """How often what one seed of a setting has is also right of another, 0 to 1, for each model; NaN for a lone one.

    Who knew how a model was made, and what interventions showed for its other seeds, and said one of the verdicts
    that are right for those, would be right so often. A verdict from latents alone can hardly be right more often.
    right: from `labels`. Raises ValueError for a table without the settings.
    """
    setting = ["bed", "case", "codebook_size"]
    check_columns(table, *setting)
    found = pd.Series(np.nan, table.index)
    for rows in table.groupby(setting).groups.values():
        for row in rows:
            others = [right[other] for other in rows if other != row]
            if others:
                found[row] = np.mean([len(one & right[row]) / len(one) for one in others])
    return found


def _latents_a_code(table: pd.DataFrame) -> pd.Series:
    """N/K, as the nearest power of two."""
    return 2.0 ** np.log2(table["latents"] / table["codebook_size"]).round()


def shows_enough(table: pd.DataFrame) -> pd.Series:
    """Whether latents and inputs are enough for a verdict: 16 latents a code, and inputs for as many codes.

    Thresholds are chosen on these models: of the others, many measures have more noise than meaning.
    Raises ValueError for a table without the measures.
    """
    check_columns(table, "latents", "codebook_size", "inputs", "inputs_low", "inputs_high")
    few = table["inputs"] < rules.THRESHOLDS["inputs"]
    return (_latents_a_code(table) >= 16) & (table["inputs_low"] == table["inputs_high"]) & ~few


# ---------------------------------------------------------------- verdicts, and thresholds from all other families


class Judge:
    """The verdicts of `rules.decide` on stored measures, each asked for only once.

    found: the measures of the models, in the order of the table. right: the verdicts that would be right, of each.
    """

    def __init__(self, found: list[Measures], right: pd.Series):
        self.found, self.right = found, right
        self._known: dict[tuple, np.ndarray] = {}

    def verdicts(self, thresholds: dict = rules.THRESHOLDS) -> np.ndarray:
        """What is said of each model by these thresholds."""
        key = tuple(sorted(thresholds.items()))
        if key not in self._known:
            ends = (rules.path(one, thresholds)[-1] for one in self.found)  # no reason is put into words
            self._known[key] = np.array([rules.TREE[question].leads_to[answer] for question, answer in ends])
        return self._known[key]

    def is_right(self, thresholds: dict = rules.THRESHOLDS) -> np.ndarray:
        """Whether what is said of each model is right. What is withheld is not."""
        return np.array([said in right for said, right in zip(self.verdicts(thresholds), self.right)])

    def thresholds(self, rows: np.ndarray, rounds: int = 2, steps: int = 17) -> dict[str, float]:
        """Those that are most often right on some rows (a mask), one after the other, a few times over.

        Of values that do equally well, from a third of FITTED to three times it, the middle of the longest row.
        """
        chosen = dict(rules.THRESHOLDS)
        for name in [*FITTED] * rounds:
            values = FITTED[name] * np.geomspace(1 / 3, 3, steps)
            values = values[values >= 1] if name in AT_LEAST_ONE else values
            values = np.array([float(f"{value:.2g}") for value in values])
            right = np.array([self.is_right(chosen | {name: value})[rows].mean() for value in values])
            best = right == right.max()
            runs = np.split(np.arange(len(values)), np.flatnonzero(np.diff(best)) + 1)
            longest = max((run for run in runs if best[run[0]]), key=len)
            chosen[name] = float(values[longest[len(longest) // 2]])
        return chosen

    def left_out(self, families: Iterable, rows: np.ndarray) -> tuple[np.ndarray, dict[str, dict[str, float]]]:
        """Verdicts on each family by thresholds from all others, and these thresholds by the family's name.

        rows: a mask of the models by which thresholds are chosen.
        """
        names = np.array(list(families))
        said, chosen = np.empty(len(names), dtype=object), {}
        for name in dict.fromkeys(names.tolist()):
            chosen[name] = self.thresholds((names != name) & rows)
            said[names == name] = self.verdicts(chosen[name])[names == name]
        return said, chosen


# ---------------------------------------------------------------- how often they are right


def judged(table: pd.DataFrame, said: Iterable[str], right: pd.Series) -> pd.DataFrame:
    """The table with the columns verdict, outcome ("right", "wrong" or "withheld"), border, ill, N/K and K.

    ill: whether a collapse was found in a model that has none. K: of the largest codebook.
    """
    verdict = pd.Series(list(said), table.index)
    outcome = np.select(
        [[one in some for one, some in zip(verdict, right)], verdict == WITHHELD], ["right", "withheld"], "wrong"
    )
    sound = right.map(lambda some: not any("collapse" in one for one in some))
    return table.assign(
        verdict=verdict,
        outcome=outcome,
        label=right.map(lambda some: " / ".join(sorted(some))),
        border=right.map(len) > 1,
        sound=sound,
        ill=sound & verdict.str.contains("collapse"),
        **{"N/K": _latents_a_code(table)},
    )


def shares(rows: pd.DataFrame, by: str | Callable) -> pd.DataFrame:
    """How many verdicts are right, wrong and withheld in each group, with Wilson 95 % intervals.

    rows: as from `judged`. Columns: models, right, wrong, withheld, and the intervals of right and of wrong; sound,
    ill and its interval: models without a collapse, and how many of them were said to have one.
    Raises ValueError for a table that was not judged.
    """
    from scipy.stats import binomtest

    check_columns(rows, "outcome", "sound", "ill")

    def interval(count: float, of: float) -> tuple[float, float]:
        if not of:
            return np.nan, np.nan
        found = binomtest(int(count), int(of)).proportion_ci(method="wilson")
        return found.low, found.high

    found = {}
    for name, part in rows.groupby(by, sort=True):
        count = part["outcome"].value_counts()
        one: dict[str, float] = {"models": len(part)}
        one |= {kind: int(count.get(kind, 0)) for kind in ("right", "wrong", "withheld")}
        one["right low"], one["right high"] = interval(one["right"], len(part))
        one["wrong low"], one["wrong high"] = interval(one["wrong"], len(part))
        one |= {"sound": int(part["sound"].sum()), "ill": int(part["ill"].sum())}
        one["ill low"], one["ill high"] = interval(one["ill"], one["sound"])
        found[name] = one
    return pd.DataFrame.from_dict(found, orient="index")


def confusion(rows: pd.DataFrame) -> pd.DataFrame:
    """How often each verdict was given to models of each label; border cases have a row for their labels together.

    rows: as from `judged`. Raises ValueError for a table that was not judged.
    """
    check_columns(rows, "label", "verdict", "border")
    return pd.crosstab(rows["label"], rows["verdict"])
