"""Which collapse is it? A verdict on a codebook and its latents, by references and not by bare thresholds.

`measures` takes the numbers, `decide` is the rule.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import Enum
from typing import NamedTuple

from vqnotes._printing import in_digits
from vqnotes.diagnosis.beside_inputs import TRIFLE
from vqnotes.diagnosis.measures import Measures
from vqnotes.diagnosis.observed import AT_MOST, PER_CODE

__all__ = [
    "THRESHOLDS",
    "TREE",
    "Answer",
    "Question",
    "by_inputs",
    "codebook_at_fault",
    "confidence",
    "compares_otherwise",
    "decide",
    "decide_codebook",
    "dimensions_missing",
    "encoder_at_fault",
    "encoder_not_judged",
    "excess_needed",
    "few_in_effect",
    "inputs_lost",
    "labels_lost",
    "own_beside_best",
    "inputs_enough",
    "left_by_best",
    "lost_by_codes",
    "path",
    "rate_too_low",
    "settled",
    "several_codes",
    "times",
]

# Chosen on the models of `studies.verdicts`; `studies.judging` says how often they are right on a family that was
# left out. "effect", "before", "labels", "trifle", "errs", "inputs" and "differs" are set by what they mean.
THRESHOLDS = {
    # A codebook is at fault if with its codes so many times as much of the inputs is lost as with the best codes,
    "gap": 1.4,
    "excess": 0.015,  # and the difference is more than this share of the inputs' variance.
    "errs": 1.0,  # (Nor can codes be at fault that leave less of the latents than those of k-means.)
    "excess of latents": 0.048,  # Without inputs the same is asked of errors, as shares of the latents' variance,
    "effect": 0.25,  # and a trifle is enough where less than this share of the codes is in effect (perplexity).
    # An encoder is at fault if it loses more than so many times what codes placed on the inputs lose,
    "loss": 1.5,
    "extra": 0.05,  # and the difference is more than this share of their variance,
    "before": 0.5,  # and most of what the best codes for its latents would leave over is lost before them;
    "labels": 0.75,  # or if labels can be read off the latents less than so well as off the inputs.
    "trifle": TRIFLE,  # A difference below this share of the variance convicts neither.
    # Dimensions are missing if codes tell of less than this share of those that codes placed on the inputs tell of,
    "dimensions": 0.4,
    "costs": 0.08,  # and the best codes for the latents lose so much more than encoder or codes of the inputs alone.
    "rate": 0.3,  # The rate is the limit if the best codes lose so much more than the encoder.
    "inputs": 8,  # Latents of one input are alike: of fewer inputs than so many nothing is said.
    "differs": 1.1,  # A quantiser whose own choice of codes errs so many times more than the nearest is not judged.
}


class Answer(Enum):
    """What the measures say to a question. TypeError where it is taken for a truth value."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"  # nothing was measured by which it could be told

    def __bool__(self) -> bool:
        raise TypeError(f"{self} is no truth value: compare it, as in `answer is Answer.YES`")


def _answer(holds: bool) -> Answer:
    return Answer.YES if holds else Answer.NO


def _first_of(order: list[Answer], answers: Iterable[Answer]) -> Answer:
    """Of several answers the one that comes first in the order; unknown if there is none."""
    given = set(answers)
    return next((one for one in order if one in given), Answer.UNKNOWN)


def by_inputs(m: Measures) -> bool:
    """Whether it is known what the model's own codes tell of the inputs, and what the best codes would."""
    return m.own_loss is not None and m.codes_loss is not None and m.inputs_loss is not None and m.inputs_loss <= 0.95


def lost_by_codes(m: Measures) -> float:
    """What the own codes lose more than the best codes, of the inputs' variance; to tell nothing is to lose 1."""
    return min(m.own_loss, 1.0) - m.codes_loss


def own_beside_best(m: Measures) -> float:
    """What the model's own codes lose of the inputs, over what the best codes for its latents lose."""
    return m.own_loss / m.codes_loss if m.codes_loss > 0 else (math.inf if m.own_loss > 0 else 1.0)


def few_in_effect(m: Measures, thresholds: dict = THRESHOLDS) -> bool:
    """Whether a codebook has fewer codes in effect (perplexity) than so few of those that the latents could show."""
    return any(one.perplexity < thresholds["effect"] * one.ceiling * one.codes for one in m.each if one.spread > 0)


def excess_needed(m: Measures, thresholds: dict = THRESHOLDS) -> float:
    """By how much codes must be worse than the best, of the inputs' variance; without inputs, of the latents'.

    What few codes in effect cost the model is not known without inputs. Then a trifle is enough.
    """
    if by_inputs(m):
        return thresholds["excess"]
    few = few_in_effect(m, thresholds) and encoder_at_fault(m, thresholds) is not Answer.YES
    return thresholds["trifle" if few else "excess of latents"]


def codebook_at_fault(m: Measures, thresholds: dict = THRESHOLDS) -> Answer:
    """Whether the best codes for the same latents, by k-means, do much better; unknown if latents are too few to say.

    What counts is what codes tell of the inputs, if that is known: what they cost the model. Where the best codes
    lose more than half of the variance, it is what they keep that counts. Without inputs it is the error.
    Where the levels of a stack code different things, the whole has no error: then whether one of them is at fault.
    """
    if compares_otherwise(m, thresholds):
        return Answer.UNKNOWN
    if m.codebooks and m.gap is None:
        answers = (codebook_at_fault(one, thresholds) for one in m.codebooks if one.spread > 0)
        return _first_of([Answer.YES, Answer.UNKNOWN, Answer.NO], answers)
    if m.gap is None:
        return Answer.UNKNOWN
    needed = excess_needed(m, thresholds)
    if by_inputs(m):
        more = (thresholds["gap"] - 1) * min(m.codes_loss, 1 - m.codes_loss)
        at_fault = lost_by_codes(m) > max(more, needed) and m.gap > thresholds["errs"]
    else:
        at_fault = m.gap > thresholds["gap"] and m.error - m.best > needed
    if at_fault:
        return Answer.YES
    cleared = m.gap_high <= thresholds["gap"] or m.error - m.best_low <= min(needed, thresholds["excess of latents"])
    enough = m.sample >= PER_CODE * max(one.codes for one in m.each)
    return Answer.NO if cleared or enough else Answer.UNKNOWN


def compares_otherwise(m: Measures, thresholds: dict = THRESHOLDS) -> bool:
    """Whether the quantiser's own choice of codes is not by distance, at least not for these latents and codes."""
    return any(one.own_ratio is not None and one.own_ratio > thresholds["differs"] for one in m.each)


def encoder_at_fault(m: Measures, thresholds: dict = THRESHOLDS) -> Answer:
    """Whether latents hold much less of inputs or labels than could be; unknown if neither of them tells."""
    if m.spread == 0:
        return Answer.YES if m.latents > 1 else Answer.UNKNOWN
    answers = inputs_lost(m, thresholds), labels_lost(m, thresholds)
    return _first_of([Answer.YES, Answer.NO], answers)


def inputs_lost(m: Measures, thresholds: dict = THRESHOLDS) -> Answer:
    """Whether the encoder loses more of the inputs than codes of the inputs would, and most of what is lost.

    Where codes of the inputs leave more than half of the variance, it is what they keep that counts: an encoder must
    then keep half of that at least. Unknown, too, if the answer depends on where in its interval their loss is.
    """
    if m.inputs_loss is None or m.inputs_loss > 0.95:
        return Answer.UNKNOWN

    def much(loss: float) -> bool:
        more = (thresholds["loss"] - 1) * min(loss, 1 - loss)
        return m.encoder_loss - loss > max(more, thresholds["extra"])

    low, high = (m.inputs_loss if one is None else one for one in (m.inputs_low, m.inputs_high))
    if m.encoder_loss <= thresholds["before"] * m.codes_loss or not much(low):
        return Answer.NO
    return Answer.YES if much(high) else Answer.UNKNOWN


def labels_lost(m: Measures, thresholds: dict = THRESHOLDS) -> Answer:
    """Whether labels are read off the latents much worse, above chance, than off the inputs.

    Without inputs, labels that are nearly always read off still clear the encoder; nothing can convict it.
    """
    best = 1.0 if m.separability_inputs is None else m.separability_inputs
    if m.separability is None or best - m.chance < 0.1:
        return Answer.UNKNOWN
    kept = (m.separability - m.chance) / (best - m.chance)
    if m.separability_inputs is None and kept <= 0.9:
        return Answer.UNKNOWN
    return _answer(kept < thresholds["labels"])


def encoder_not_judged(m: Measures) -> str:
    """Why nothing is known of the encoder, in half a sentence."""
    why = [] if m.unused is None else [m.unused.why]
    if m.inputs_loss is not None and m.inputs_loss > 0.95:
        why.append(f"the inputs do not tell: codes placed on them leave {m.inputs_loss:.0%} of their variance")
    elif m.inputs_loss is not None:
        why.append(
            f"the inputs are too few: they are enough for {m.inputs_codes:,} codes; extrapolated from these, as many "
            f"as the model has would lose {m.inputs_low:.2g} to {m.inputs_high:.2g} of their variance; the encoder "
            f"loses {m.encoder_loss:.2g}"
        )
    if m.chance is not None and m.separability is None:
        why.append("the labels do not tell: no two of them have five latents or inputs each")
    elif m.separability_inputs is not None:
        why.append("the labels do not tell: they are hardly read off the inputs either")
    elif m.separability is not None:
        why.append("labels alone clear an encoder only where, above chance, nearly all are read off the latents")
    return ", and ".join(why) or "nothing was given to judge the encoder by"


def dimensions_missing(m: Measures, thresholds: dict = THRESHOLDS) -> Answer:
    """Whether the latents hold the inputs, but so that codes tell of far fewer of their dimensions, at a cost.

    Codes placed on the inputs tell of more dimensions. And the best codes for the latents lose more than the encoder
    does, and more than the codes placed on the inputs do.
    """
    if m.inputs_loss is None or m.dimensions is None:
        return Answer.UNKNOWN
    few = m.dimensions < thresholds["dimensions"] * m.best_dimensions
    return _answer(few and m.codes_loss - max(m.encoder_loss, m.best_loss) > thresholds["costs"])


def several_codes(m: Measures, thresholds: dict = THRESHOLDS) -> Answer:
    """Whether there is anything to choose from."""
    return _answer(m.rate > 0)


def inputs_enough(m: Measures, thresholds: dict = THRESHOLDS) -> Answer:
    """Whether the latents are of several inputs. They are where each stands for an input of its own."""
    return _answer(m.inputs is None or m.inputs >= thresholds["inputs"])


def rate_too_low(m: Measures, thresholds: dict = THRESHOLDS) -> Answer:
    """Whether even the best codes leave much; unknown if latents were too few to say."""
    if m.best is None:
        return Answer.UNKNOWN
    return _answer(left_by_best(m) > thresholds["rate"])


def left_by_best(m: Measures) -> float:
    """What the best codes lose and the encoder does not, of the inputs' variance; without inputs, of the latents'."""
    return m.codes_loss - m.encoder_loss if by_inputs(m) else m.left


class Question(NamedTuple):
    """A question of the tree: what answers it, its words with names of THRESHOLDS in braces, and where answers lead.

    leads_to: by answer, the name of the next question or a verdict.
    """

    answer: Callable[[Measures, dict], Answer]
    words: str
    leads_to: dict[Answer, str]


KMEANS = (
    "Do its codes lose over {gap} times what those of\nk-means lose, {excess} of the variance more,\n"
    "and have a larger error on the latents?"
)

# What `decide` asks, from the first question on. The codebook is asked after in three places.
TREE = {
    "several codes": Question(
        several_codes,
        "Is there more than one code?",
        {Answer.YES: "inputs", Answer.NO: "rate limit"},
    ),
    "inputs": Question(
        inputs_enough,
        "Are the latents of {inputs} inputs or more?",
        {Answer.YES: "encoder", Answer.NO: "cannot tell"},
    ),
    "encoder": Question(
        encoder_at_fault,
        "Does the encoder lose over {loss} times what as many\n"
        "codes of the inputs would, {extra} of the variance more,\n"
        "and over {before} of all that is lost with the best codes?\nOr are labels read off below {labels} as well?",
        {Answer.YES: "codebook, encoder at fault", Answer.NO: "codebook", Answer.UNKNOWN: "codebook alone"},
    ),
    "codebook, encoder at fault": Question(
        codebook_at_fault,
        KMEANS,
        {
            Answer.YES: "token and embedding collapse",
            Answer.NO: "embedding collapse",
            Answer.UNKNOWN: "embedding collapse",
        },
    ),
    "codebook alone": Question(
        codebook_at_fault,
        KMEANS,
        {Answer.YES: "token collapse", Answer.NO: "cannot tell", Answer.UNKNOWN: "cannot tell"},
    ),
    "codebook": Question(
        codebook_at_fault,
        KMEANS,
        {Answer.YES: "token collapse", Answer.NO: "dimensions", Answer.UNKNOWN: "cannot tell"},
    ),
    "dimensions": Question(
        dimensions_missing,
        "Do codes tell of less than {dimensions} of the\ndimensions that codes of the inputs tell of, and\n"
        "the best codes lose {costs} more than encoder and\ncodes of the inputs?",
        {Answer.YES: "dimensional collapse", Answer.NO: "rate", Answer.UNKNOWN: "rate"},
    ),
    "rate": Question(
        rate_too_low,
        "Do the best codes lose over {rate} of\nthe variance more than the encoder?",
        {Answer.YES: "rate limit", Answer.NO: "healthy", Answer.UNKNOWN: "cannot tell"},
    ),
}


def path(m: Measures, thresholds: dict = THRESHOLDS) -> list[tuple[str, Answer]]:
    """The questions of TREE that were asked of these measures, in order, each with its answer.

    The last answer leads to the verdict.
    """
    asked: list[tuple[str, Answer]] = []
    name = next(iter(TREE))
    while name in TREE:
        answer = TREE[name].answer(m, thresholds)
        asked.append((name, answer))
        name = TREE[name].leads_to[answer]
    return asked


def settled(m: Measures, thresholds: dict = THRESHOLDS) -> bool:
    """Whether all answers stay the same, however little the encoder loses: each turns once at most on the way."""
    least = replace(m, encoder_loss=0.0)
    return all(one.answer(m, thresholds) is one.answer(least, thresholds) for one in TREE.values())


def decide(m: Measures, thresholds: dict = THRESHOLDS) -> tuple[str, str]:
    """The verdict on these measures, where `path` ends, and the reason in a sentence."""
    question, answer = path(m, thresholds)[-1]
    return TREE[question].leads_to[answer], _reason(question, answer, m, thresholds)


def _reason(question: str, answer: Answer, m: Measures, thresholds: dict) -> str:
    """What decided, by the last question and its answer."""
    codes, yes = _codes_beside_kmeans(m), answer is Answer.YES
    if question == "several codes":
        return "A single code carries 0 bits."
    if question == "inputs":
        few = "1 input" if m.inputs == 1 else f"{m.inputs:,} inputs"
        return f"The latents are of {few}, which is too few: those of one input are alike, and say little of others."
    if question == "codebook, encoder at fault":
        coincide = _coincide(m, thresholds)
        return f"The {codes}; and {coincide}." if yes else f"Different inputs have latents that coincide: {coincide}."
    if question.startswith("codebook") and yes:
        return f"The codebook is at fault: its {codes}."
    if answer is Answer.UNKNOWN:
        return _not_cleared(m, thresholds)
    if question == "codebook alone":
        return f"The codebook is about as good as k-means; {encoder_not_judged(m)}."
    if question == "dimensions":
        of_best = f"where as many placed on the inputs tell of {m.best_dimensions:.1f}"
        leave = f"and the best codes for the latents lose {times(m.codes_loss / m.best_loss)} as much as those"
        return f"Codes tell of {m.dimensions:.1f} dimensions of the inputs, {of_best}, {leave}."
    if yes:
        best = f"{m.codes:,} codes" if not m.codebooks else f"codes of {m.rate:.0f} bits"
        return f"Nothing is broken, but the best {best} lose {left_by_best(m):.0%} of the variance."
    return f"The {codes}, and the latents keep what the inputs offer."


def confidence(m: Measures, decided: str, by: Callable = decide) -> float | None:
    """In how many of its resamples the measures get the same verdict, a share; None without resamples."""
    resamples = len(next(iter(m.draws.values()), ()))
    if not resamples:
        return None
    return sum(by(m.resample(number))[0] == decided for number in range(resamples)) / resamples


def decide_codebook(m: Measures, thresholds: dict = THRESHOLDS) -> tuple[str, str]:
    """The verdict on one of several codebooks, by itself: "healthy", "token collapse" or "cannot tell"."""
    if m.spread == 0:
        return "healthy", "Nothing is left for this codebook to code: all that reaches it is equal."
    at_fault = codebook_at_fault(m, thresholds)
    if at_fault is Answer.UNKNOWN:
        return "cannot tell", _not_cleared(m, thresholds)
    codes = f"{_codes_beside_kmeans(m)} that reach it"
    if at_fault is Answer.YES:
        return "token collapse", f"This codebook is at fault: its {codes}."
    return "healthy", f"Its {codes}."


def _coincide(m: Measures, thresholds: dict) -> str:
    """By what the encoder is at fault."""
    if m.spread == 0:
        return "all latents are equal"
    if inputs_lost(m, thresholds) is Answer.YES:
        ratio = times(m.encoder_loss / m.inputs_loss)
        return f"the encoder alone loses {ratio} what as many codes placed on the inputs would lose"
    return "labels cannot be read off the latents as off the inputs"


def _codes_beside_kmeans(m: Measures) -> str:
    if m.codebooks and m.gap is None:
        return "codebooks, each alone, were judged by k-means on the latents"
    put_together = " put together" if m.codebooks else ""
    if m.gap is None:
        return ""
    if by_inputs(m):
        return f"codes{put_together} lose {times(own_beside_best(m))} what the best codes would"
    if m.gap > THRESHOLDS["gap"] and m.error < THRESHOLDS["trifle"]:
        return f"codes{put_together} leave next to nothing ({m.error:.1g} of the variance) of the latents"
    return f"codes{put_together} leave {times(m.gap)} the error of k-means on the same latents"


def _not_cleared(m: Measures, thresholds: dict) -> str:
    """Why the codebook was not judged."""
    if compares_otherwise(m, thresholds):
        return "The quantiser chooses other codes than the nearest, so distances do not tell how good its codes are."
    most = ", the most that are looked at," if m.sample == AT_MOST else ""
    return f"{m.sample:,} latents{most} are too few to clear {m.codes:,} codes."


def times(ratio: float) -> str:
    """A ratio in words, such as "1.4 times"; a large one with commas."""
    return f"{in_digits(ratio)} times"
