"""What a diagnosis says: the verdict, the evidence behind it, what to try, and how all of it is shown."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vqnotes.diagnosis.advice import FIRST_BATCH, INPUTS, LABELS, MORE_INPUTS, MORE_LATENTS, Advice, advice_for
from vqnotes.diagnosis.beside_inputs import TRIFLE
from vqnotes.diagnosis.collisions import collisions
from vqnotes.diagnosis.conditions import Condition, conditions
from vqnotes.diagnosis.keeping import Kept
from vqnotes.diagnosis.measures import Measures
from vqnotes.diagnosis.observed import AT_MOST, Observed
from vqnotes.diagnosis.rules import (
    THRESHOLDS,
    Answer,
    by_inputs,
    codebook_at_fault,
    compares_otherwise,
    confidence,
    decide,
    decide_codebook,
    dimensions_missing,
    encoder_at_fault,
    encoder_not_judged,
    few_in_effect,
    inputs_enough,
    inputs_lost,
    labels_lost,
    left_by_best,
    lost_by_codes,
    path,
    times,
)
from vqnotes.diagnosis.showing import as_html, as_text, close_to_the_line
from vqnotes.diagnosis.stability import NOISE, wilson

__all__ = [
    "VERDICTS",
    "Diagnosis",
    "Drawing",
    "Evidence",
    "StackDiagnosis",
    "not_started",
    "report",
    "report_call",
    "report_stack",
]

DRAWN = 2000  # latents
ALONE = "of several codebooks each is judged by its codes alone; the encoder, by all of them together"
IN_A_CALL = (
    "of several calls each is judged by the codes alone, beside what k-means on the latents of all calls leaves of "
    "those of this one"
)

VERDICTS = (
    "healthy",
    "token collapse",
    "embedding collapse",
    "token and embedding collapse",
    "dimensional collapse",
    "rate limit",
    "cannot tell",
)


class Evidence(NamedTuple):
    """One number beside what it is compared with, what it speaks for, and its 95 % interval where it has one.

    condition: the figure that is made of the two and compared with a threshold, where something rests on it.
    threshold, holds: of the condition; None without one.
    """

    value: float
    reference: float
    compared_with: str
    speaks_for: str
    interval: tuple[float, float] | None = None
    condition: Condition | None = None

    @property
    def threshold(self) -> float | None:
        return None if self.condition is None else self.condition.threshold

    @property
    def holds(self) -> bool | None:
        return None if self.condition is None else self.condition.holds


class Drawing(NamedTuple):
    """What `draw` shows: a sample of the latents (n, D), the codebook (K, D), uses of each code (K,)."""

    latents: Tensor
    codebook: Tensor
    counts: Tensor


@dataclass(frozen=True, repr=False)
class Diagnosis(Kept):
    """A verdict on a codebook and its latents (one of VERDICTS), or on ids alone (one of `tokens.TOKEN_VERDICTS`).

    reason: what decided, in a sentence. evidence: by name. advice: what to try, in this order. notes: what was not
    judged and why, and which sample was measured. doubts: what must be looked at before the verdict counts; they
    stand first. confidence: of the verdict, in (0, 1], where there is one. started: False if the codes are not in
    place yet, so that there was nothing to measure. findings: what else was found, that changes no verdict: figures
    close to a threshold on which it rests (within 15 %), and spare codes. path: the questions of `rules.TREE` that
    led to the verdict, each with its answer; empty where that tree was not asked. Prints as a report, in plain
    ASCII, and shows as a table in a notebook. `save` keeps all of it but the drawing, which holds latents.
    """

    verdict: str
    reason: str
    evidence: dict[str, Evidence]
    advice: list[Advice]
    notes: list[str] = field(default_factory=list)
    drawing: Drawing | None = field(default=None, compare=False)
    doubts: list[str] = field(default_factory=list)
    confidence: float | None = None
    started: bool = True
    findings: list[str] = field(default_factory=list)
    path: list[tuple[str, Answer]] = field(default_factory=list)

    def __str__(self) -> str:
        return as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self)


class _Stack(NamedTuple):
    whole: Diagnosis
    parts: list[list[Diagnosis]]


class StackDiagnosis(_Stack, Kept):
    """The verdict on codes that are put together, and one on each codebook: parts[head or group][level].

    whole: encoder, rate and codes, counted over all parts and levels. parts: each codebook alone ("healthy",
    "token collapse" or "cannot tell").
    """

    __slots__ = ()


# ---------------------------------------------------------------- what is said


def not_started(names: list[str]) -> Diagnosis:
    """What is said of codes that are not in place yet in these quantisers, which makes them no codes to be judged."""
    reason = (
        f"The codes of {', '.join(names)} have not been started yet: their library places them at the first batch, "
        f"and until then there is no codebook to judge."
    )
    return Diagnosis("cannot tell", reason, {}, [FIRST_BATCH], started=False)


def report(observed: Observed, measures: Measures) -> Diagnosis:
    """What is said of a codebook, or of codes that are put together as a whole."""
    return replace(_explained(observed, measures, decide, of_several=False), path=path(measures))


def report_stack(observed: Observed, measures: Measures) -> StackDiagnosis:
    """What is said of codes that are put together, as a whole and one by one."""
    each: dict = {}
    for group, one, alone in zip(observed.shared, observed.codebooks, measures.codebooks):
        each |= dict.fromkeys(group, _explained(one, alone, decide_codebook, of_several=True))
    numbers = iter(range(len(each)))
    return StackDiagnosis(
        report(observed, measures), [[each[next(numbers)] for _ in part] for part in observed.parts]
    )


def report_call(observed: Observed, measures: Measures) -> Diagnosis:
    """What is said of a codebook in one of several calls, measured beside the centroids of all of them."""
    found = _explained(observed, measures, decide_codebook, of_several=True)
    return replace(found, notes=[IN_A_CALL if note == ALONE else note for note in found.notes])


def _explained(
    observed: Observed, m: Measures, by: Callable[[Measures], tuple[str, str]], of_several: bool
) -> Diagnosis:
    """The diagnosis of a codebook or of a whole; of_several: of one codebook of a whole, which has no encoder."""
    verdict, reason = by(m)
    codebook, encoder = codebook_at_fault(m), encoder_at_fault(m)
    needs = [MORE_INPUTS] if not of_several and inputs_enough(m) is Answer.NO else []
    if encoder is Answer.UNKNOWN and not of_several:
        if m.unused is not None:
            needs.append(Advice(f"inputs were given, but not used: {m.unused.remedy}", "data", "09"))
        else:
            needs.append(INPUTS if m.inputs_loss is None else LABELS)
    if codebook is Answer.UNKNOWN and m.sample < AT_MOST and not compares_otherwise(m):
        needs.append(MORE_LATENTS)
    advice = advice_for(
        verdict,
        kind=observed.kind,
        busy=m.usage > 0.8 * m.ceiling,
        needs=needs if verdict != "rate limit" else [],
    )
    drawing = None
    if not m.codebooks:
        some = observed.counted[observed.sample[:DRAWN]]
        drawing = Drawing(some.float(), observed.levels[0].codes.float().clone(), m.counts)
    compared = conditions(m, asked={"codebook"}) if of_several else conditions(m)
    figures = _evidence(m, codebook, of_several)
    evidence = {name: one._replace(condition=compared.get(name)) for name, one in figures.items()}
    findings = [close_to_the_line(name, one) for name, one in compared.items() if one.close and name in evidence]
    findings += _spare(m, of_several) if verdict == "healthy" else []
    findings += _far_from_latents(m, codebook)
    notes, doubts = _notes(observed, m, codebook, encoder, of_several), _doubts(observed, m)
    sure = confidence(m, verdict, by)
    return Diagnosis(verdict, reason, evidence, advice, notes, drawing, doubts, sure, findings=findings)


def _spare(m: Measures, of_several: bool) -> list[str]:
    """What a sound codebook does not need, in a sentence, if there is anything.

    Codes are spare where few are in effect, or fewer latents differ than there are codes, and k-means with as many
    saves next to nothing. What the live codes do, they do without the others.
    """
    alike = m.different is not None and m.different < m.codes
    if m.gap is None or not (alike or few_in_effect(m)) or m.error - m.best > TRIFLE:
        return []
    live, saved = round(m.usage * m.codes), max(0.0, m.error - m.best)
    lost = f"Nothing is lost by it: k-means with as many codes would save {saved:.1g} of the latents' variance"
    sound = "" if of_several else ", and the encoder is sound"
    enough = f"{m.different:,} codes would do, one for each latent that differs" if alike else ""
    if not alike and live < m.codes:
        enough = f"the {live:,} in use would do without the others"
    return [
        f"Spare codes: of {m.codes:,} codes {live:,} are in use and {m.perplexity:,.3g} in effect (perplexity). "
        f"{lost}{sound}{'; ' if enough else ''}{enough}."
    ]


def _far_from_latents(m: Measures, codebook: Answer) -> list[str]:
    """That the codes are bad as vectors and good as names, in a sentence, if they are."""
    if codebook is not Answer.NO or not by_inputs(m):
        return []
    if m.gap <= THRESHOLDS["gap"] or m.error - m.best <= THRESHOLDS["excess of latents"]:
        return []
    return [
        f"Codes that lie badly: as vectors they leave {m.error:.2g} of the latents' variance, {times(m.gap)} what "
        f"k-means leaves. Which of them is nearest still tells nearly as much of the inputs as the best codes would, "
        f"and a decoder can learn to read that. Where the vectors themselves count, place them anew."
    ]


def _evidence(m: Measures, codebook: Answer, of_several: bool) -> dict[str, Evidence]:
    """All that was measured, each number with its reference and what it speaks for."""
    at_codes = {
        Answer.YES: "token collapse",
        Answer.NO: "a sound codebook",
        Answer.UNKNOWN: "too few latents",
    }[codebook]
    if compares_otherwise(m):
        at_codes = "not compared by distance"
    at_encoder = {Answer.YES: "embedding collapse", Answer.NO: "a sound encoder", Answer.UNKNOWN: ""}
    spare = m.different is not None and m.different < m.codes
    at_most = f"at most, with {m.different:,} different latents" if spare else f"at most, with {m.latents:,} latents"
    in_effect = min(m.codes, m.different) if spare else m.codes
    found = {
        "codes in use": Evidence(round(m.usage * m.codes), round(m.ceiling * m.codes), at_most, "a symptom only"),
        "codes in effect": Evidence(
            m.perplexity, in_effect, "codes (perplexity)", "a symptom only", m.interval("perplexity")
        ),
    }
    if m.distinct < m.codes:
        found["different codes"] = Evidence(m.distinct, m.codes, "codes", "clones")
    if m.stays_reference is not None and not compares_otherwise(m):
        by = f"of k-means, where noise moves latents by {NOISE:g} of their spread"
        reach = wilson(round(m.stays * m.stays_of), m.stays_of)
        found["indices that stay"] = Evidence(m.stays, m.stays_reference, by, "a symptom only", reach)
    if m.gap is not None:
        by = f"k-means, {m.reference_codes:,} codes" + (" in the same levels and parts" if m.codebooks else "")
        of_vectors = "a symptom only" if by_inputs(m) and not compares_otherwise(m) else at_codes
        found["error / variance"] = Evidence(m.error, m.best, by, of_vectors, m.interval("error"))
        found["optimality gap"] = Evidence(m.gap, 1.0, by, of_vectors, m.interval("gap"))
    if by_inputs(m) and m.gap is not None:
        by, reach = "with the best codes for the latents", m.interval("own_loss")
        found["lost by its own codes"] = Evidence(m.own_loss, m.codes_loss, by, at_codes, reach)
        more = lost_by_codes(m)
        found["more than by the best codes"] = Evidence(more, 0.0, "if they were the best", at_codes)
    if m.dimensions is not None and not of_several:
        few = "dimensional collapse" if dimensions_missing(m) is Answer.YES else ""
        by = f"by {m.inputs_codes:,} codes of the inputs"
        found["dimensions filled"] = Evidence(m.dimensions, m.best_dimensions, by, few, m.interval("dimensions"))
        more = m.codes_loss - max(m.encoder_loss, m.best_loss)
        by = "if codes of the inputs, or the encoder, lost as much"
        found["lost for want of dimensions"] = Evidence(more, 0.0, by, few)
    if m.inputs_loss is not None:
        smaller = f", extrapolated from {m.inputs_codes:,}" if m.inputs_low < m.inputs_high else ""
        by = f"as many codes of the inputs{smaller}"
        speaks = at_encoder[inputs_lost(m)]
        reach = m.interval("encoder_loss")
        found["lost by the encoder"] = Evidence(m.encoder_loss, m.inputs_loss, by, speaks, reach)
        by, reach = "of it lost by the encoder", m.interval("codes_loss")
        found["lost with the best codes"] = Evidence(m.codes_loss, m.encoder_loss, by, speaks, reach)
    if m.separability is not None:
        with_inputs = m.separability_inputs is not None
        best, by = (m.separability_inputs, "from the inputs") if with_inputs else (m.chance, "by guessing")
        reach = m.interval("separability")
        found["labels read off"] = Evidence(m.separability, best, by, at_encoder[labels_lost(m)], reach)
    if m.best is not None and not of_several:
        left = left_by_best(m)
        limit = "rate limit" if left > THRESHOLDS["rate"] else ""
        reach = None if by_inputs(m) else m.interval("left")
        found["left by k-means"] = Evidence(left, THRESHOLDS["rate"], "and more is a rate limit", limit, reach)
    return found


def _doubts(observed: Observed, m: Measures) -> list[str]:
    """What should be looked at before the verdict counts: latents and codes that cannot be what is compared."""
    doubts = []
    for one in m.each:
        which = f"one of the codebooks ({one.codes:,} codes): " if m.codebooks else ""
        if compares_otherwise(one):
            doubts.append(
                f"{which}for {one.own_differs:.0%} of the latents the quantiser's own choice is farther than the "
                f"nearest code, and the error {times(one.own_ratio)} as large: it compares otherwise than by "
                f"distance, or these are not the latents and codes that it compares"
            )
        if one.gap_directions is not None and one.gap_directions <= THRESHOLDS["gap"]:
            doubts.append(
                f"{which}all codes have one length and latents have not. Brought to one length, they are coded "
                f"with {times(one.gap_directions)} the error of k-means: does the quantiser compare directions? "
                f"Then give the latents normalised"
            )
        elif one.gap_scaled is not None and one.gap_scaled <= THRESHOLDS["gap"]:
            doubts.append(
                f"{which}the codes are at another scale than the latents. Moved to their centre and "
                f"{times(one.scale)} as wide, they would leave {times(one.gap_scaled)} the error of k-means: is "
                f"something between the two, a projection or a normalisation? If not, these codes were never placed "
                f"on the latents"
            )
    if by_inputs(m) and m.model_loss is not None:
        more = m.model_loss - m.own_loss
        if more > THRESHOLDS["excess"] and m.model_loss > THRESHOLDS["loss"] * m.own_loss:
            doubts.append(
                f"the model as a whole loses {m.model_loss:.2g} of the inputs, where a reader of its codes loses "
                f"{m.own_loss:.2g}: what is wrong comes behind the codes. Has the decoder been trained long "
                f"enough, on the output that is compared?"
            )
    rounding = min(torch.finfo(observed.latents.dtype).eps, torch.finfo(torch.float32).eps)
    if m.size is not None and m.size**2 * rounding > 0.01:
        doubts.append(
            f"the latents hardly vary beside their size, by one part in {m.size:,.0f}: a quantiser that subtracts "
            f"squares of that size chooses by rounding. Take their mean off before they are compared"
        )
    return doubts


def _notes(observed: Observed, m: Measures, codebook: Answer, encoder: Answer, of_several: bool) -> list[str]:
    notes = []
    if observed.mask is not None:
        masked = len(observed.latents) - len(observed.rows)
        notes.append(f"{masked:,} of {len(observed.latents):,} latents are masked and do not count")
    if observed.inputs is not None and observed.inputs.axes is not None:
        axes, shape = observed.inputs.axes, observed.inputs.shape
        notes.append(f"a latent stands beside a piece {observed.inputs.piece} of inputs {shape}, along places={axes}")
    if m.different is not None and m.different < m.codes:
        notes.append(f"{m.codes - m.different:,} codes are spare: only {m.different:,} latents differ")
    if codebook is Answer.UNKNOWN and m.rate > 0 and m.spread > 0 and not compares_otherwise(m):
        notes.append(f"the codebook is not judged: {m.latents:,} latents for {m.codes:,} codes")
    if m.codebooks:
        notes.append(f"all codes of a latent together carry {m.rate:.1f} bits")
        notes.append(_collisions(observed))
        if m.gap is None and m.best is not None:
            notes.append("the whole has no error: a level codes something else than what the one before left")
    if of_several:
        notes.append(ALONE)
    elif encoder is Answer.UNKNOWN and (m.inputs_loss is not None or m.unused is not None):
        notes.append(f"the encoder is not judged: {encoder_not_judged(m)}")
    elif encoder is Answer.UNKNOWN:
        notes.append("the encoder is not judged: without inputs, or labels and inputs, latents have no reference")
    elif m.unused is not None:
        notes.append(f"dimensions are not judged: {m.unused.why}")
    elif m.inputs_loss is None and m.spread > 0:
        notes.append("dimensions are not judged: without inputs they have no reference")
    if m.reader is not None:
        itself = "" if m.model_loss is None else f"; the model as a whole leaves {m.model_loss:.3g}"
        notes.append(f"lost by the encoder is what {m.reader}, the best of the readers, leaves of the inputs{itself}")
    if m.sample < m.latents:
        notes.append(f"references are measured on {m.sample:,} of {m.latents:,} latents")
    return notes


def _collisions(observed: Observed) -> str:
    """How many latents share their whole tuple of codes, beside what chance would make of as many tuples."""
    levels = observed.levels
    found = collisions(*(one.index for one in levels), size=[len(one.codes) for one in levels])
    return (
        f"{found.sharing:.1%} of the latents share their whole tuple of {len(levels)} codes with another one, "
        f"{found.largest:,} at most; if all tuples were equally likely, {found.expected_sharing:.1%} would"
    )
