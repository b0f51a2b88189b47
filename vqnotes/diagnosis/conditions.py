"""What is compared with a threshold: the conditions under which something is at fault, each with its figure.

`rules` answers the questions. Here is how near each answer was, for people to see.
"""

import math
from collections.abc import Collection
from typing import NamedTuple

from vqnotes.diagnosis.measures import Measures
from vqnotes.diagnosis.rules import (
    THRESHOLDS,
    Answer,
    by_inputs,
    codebook_at_fault,
    compares_otherwise,
    dimensions_missing,
    excess_needed,
    inputs_lost,
    labels_lost,
    left_by_best,
    lost_by_codes,
    own_beside_best,
    path,
    rate_too_low,
)

__all__ = ["CLOSE", "QUESTIONS", "Condition", "conditions"]

CLOSE = 0.15  # of a threshold: what is nearer is called close to the line
BEFORE, BEHIND = 10, 5  # letters of a bar before its line and behind it

QUESTIONS = {
    "codebook": "Is the codebook at fault?",
    "encoder": "Is the encoder at fault, by the inputs?",
    "labels": "Is the encoder at fault, by the labels?",
    "dimensions": "Are dimensions missing?",
    "rate": "Is the rate the limit?",
}


class Condition(NamedTuple):
    """One figure beside its threshold. The answer to its question is yes only if all conditions of it hold.

    question: one of QUESTIONS. unit: what the figure counts. below: whether it holds below its threshold, not above.
    decides: whether its question was asked, and the answer would be another one if this condition alone changed.
    """

    question: str
    answer: Answer
    figure: float
    unit: str
    threshold: float
    below: bool = False
    decides: bool = False

    @property
    def holds(self) -> bool:
        """Whether the figure is beyond its threshold."""
        return self.figure < self.threshold if self.below else self.figure > self.threshold

    @property
    def close(self) -> bool:
        """Whether the figure decides, and is within CLOSE (15 %) of its threshold, on either side."""
        return self.decides and abs(self.figure - self.threshold) <= CLOSE * self.threshold

    @property
    def filled(self) -> tuple[float, float]:
        """Of a bar to the threshold, and of half as much behind it, the share that is filled, each in [0, 1]."""
        share = self.figure / self.threshold
        return min(max(share, 0.0), 1.0), min(max((share - 1) * BEFORE / BEHIND, 0.0), 1.0)

    @property
    def bar(self) -> str:
        """In letters, such as `[#######...|.....]`: only a figure above its threshold is drawn beyond the line."""
        before, behind = self.filled
        first, second = math.floor(before * BEFORE), math.ceil(behind * BEHIND)
        return f"[{'#' * first:.<{BEFORE}}|{'#' * second:.<{BEHIND}}]"


def conditions(
    m: Measures, thresholds: dict = THRESHOLDS, asked: Collection[str] | None = None
) -> dict[str, Condition]:
    """The conditions by the name of their evidence, question by question.

    asked: the questions, of QUESTIONS, on which the verdict rests; None: those that `rules.path` asks.
    """
    if asked is None:
        asked = {question.replace(",", " ").split()[0] for question, _ in path(m, thresholds)}
    asked = {*asked, "labels"} if "encoder" in asked else asked
    found = _codebook(m, thresholds) | _encoder(m, thresholds) | _others(m, thresholds)
    return {name: one._replace(decides=_decides(name, found, asked)) for name, one in found.items()}


def _decides(name: str, found: dict[str, Condition], asked: Collection[str]) -> bool:
    """Whether the answer would be another one if this condition alone changed."""
    one = found[name]
    if one.question not in asked or one.answer is Answer.UNKNOWN:
        return False
    others = [other for key, other in found.items() if key != name and other.question == one.question]
    # Inputs or labels convict the encoder: while the one does, the other changes nothing.
    ways = {"encoder", "labels"} - {one.question} if one.question in ("encoder", "labels") else set()
    convicted = any(other.question in ways and other.answer is Answer.YES for other in found.values())
    return all(other.holds for other in others) and not convicted


def _codebook(m: Measures, thresholds: dict) -> dict[str, Condition]:
    if m.gap is None or compares_otherwise(m, thresholds):
        return {}
    needed, answer = excess_needed(m, thresholds), codebook_at_fault(m, thresholds)
    if by_inputs(m):
        more, ratio = lost_by_codes(m), own_beside_best(m)
        by = Condition("codebook", answer, ratio, "times", thresholds["gap"])
        if m.codes_loss > 0.5:
            share = more / max(1 - m.codes_loss, 1e-12)
            by = Condition("codebook", answer, share, "of what is kept", thresholds["gap"] - 1)
        difference = Condition("codebook", answer, more, "more", needed)
        errs = Condition("codebook", answer, m.gap, "times", thresholds["errs"])
        return {"lost by its own codes": by, "more than by the best codes": difference, "optimality gap": errs}
    return {
        "error / variance": Condition("codebook", answer, m.error - m.best, "more", needed),
        "optimality gap": Condition("codebook", answer, m.gap, "times", thresholds["gap"]),
    }


def _encoder(m: Measures, thresholds: dict) -> dict[str, Condition]:
    found = {}
    if m.inputs_loss is not None:
        answer, more = inputs_lost(m, thresholds), m.encoder_loss - m.inputs_loss
        loss, share = m.inputs_loss, thresholds["loss"] - 1
        by = Condition("encoder", answer, more, "more", thresholds["extra"])
        if share * min(loss, 1 - loss) >= thresholds["extra"]:
            by = Condition("encoder", answer, m.encoder_loss / loss, "times", thresholds["loss"])
            if loss > 0.5:
                by = Condition("encoder", answer, more / (1 - loss), "of what is kept", share)
        before = m.encoder_loss / m.codes_loss if m.codes_loss > 0 else (math.inf if m.encoder_loss > 0 else 0.0)
        found["lost by the encoder"] = by
        found["lost with the best codes"] = Condition("encoder", answer, before, "of it", thresholds["before"])
    best = 1.0 if m.separability_inputs is None else m.separability_inputs
    if m.separability is not None and best - m.chance >= 0.1:
        kept = (m.separability - m.chance) / (best - m.chance)
        answer, unit = labels_lost(m, thresholds), "of what can be"
        found["labels read off"] = Condition("labels", answer, kept, unit, thresholds["labels"], below=True)
    return found


def _others(m: Measures, thresholds: dict) -> dict[str, Condition]:
    found = {}
    if m.inputs_loss is not None and m.dimensions is not None:
        most, limit, answer = m.best_dimensions, thresholds["dimensions"], dimensions_missing(m, thresholds)
        share = m.dimensions / most if most > 0 else math.inf
        found["dimensions filled"] = Condition("dimensions", answer, share, "of them", limit, below=True)
        more = m.codes_loss - max(m.encoder_loss, m.best_loss)
        found["lost for want of dimensions"] = Condition("dimensions", answer, more, "more", thresholds["costs"])
    if m.best is not None:
        answer = rate_too_low(m, thresholds)
        found["left by k-means"] = Condition("rate", answer, left_by_best(m), "of the variance", thresholds["rate"])
    return found
