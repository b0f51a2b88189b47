"""What a diagnosis says: the verdict, the evidence behind it, the advice, and how all of it is shown."""

from dataclasses import dataclass, field, replace
from html import escape
from typing import NamedTuple

import torch
from torch import Tensor

from vqnotes.diagnosis.measures import AT_MOST, Figures, measure_observed
from vqnotes.diagnosis.observed import Observed
from vqnotes.diagnosis.rules import (
    THRESHOLDS,
    codebook_at_fault,
    compares_otherwise,
    decide,
    decide_codebook,
    dimensions_missing,
    encoder_at_fault,
    inputs_lost,
    labels_lost,
    times,
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
    """One figure beside what it is compared with, and what it speaks for."""

    value: float
    reference: float
    compared_with: str
    speaks_for: str


class Advice(NamedTuple):
    """What to try, the stage of the model that it changes, and the number of the notebook that shows it."""

    remedy: str
    stage: str
    notebook: str


class Drawing(NamedTuple):
    """What `plots.diagnosis` draws: a sample of the latents (n, D), the codebook (K, D), uses of each code (K,)."""

    latents: Tensor
    codebook: Tensor
    counts: Tensor


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """A verdict (one of VERDICTS) on a codebook and its latents.

    reason: what decided, in a sentence. evidence: by name. advice: what to try, in this order. notes: what was not
    judged and why, and which sample was measured. doubts: what must be looked at before the verdict counts; they
    stand first. Prints as a report, in plain ASCII, and shows as a table in a notebook.
    """

    verdict: str
    reason: str
    evidence: dict[str, Evidence]
    advice: list[Advice]
    notes: list[str] = field(default_factory=list)
    drawing: Drawing | None = field(default=None, compare=False)
    doubts: list[str] = field(default_factory=list)

    def _rows(self) -> list[tuple[str, str, str, str]]:
        rows = [(name, _number(e.value), _reference(e), e.speaks_for) for name, e in self.evidence.items()]
        return [("", "yours", "reference", "speaks for"), *rows]

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = [f"First: {doubt}" for doubt in self.doubts]
        lines += [f"Diagnosis: {self.verdict}", f"  {self.reason}", ""]
        lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        if self.advice:
            lines += ["", "What to try, in this order:"]
            lines += [f"  {i}. {one.remedy} [{one.stage}; {_where(one)}]" for i, one in enumerate(self.advice, 1)]
        lines += ["", *(f"Note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        names, *rows = self._rows()
        head = "".join(f"<th>{name}</th>" for name in names)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        advice = "".join(
            f"<li>{escape(one.remedy)} <i>({escape(one.stage)}; {escape(_where(one))})</i></li>"
            for one in self.advice
        )
        return (
            "".join(f"<p><b>First: {escape(doubt)}</b></p>" for doubt in self.doubts)
            + f"<h4>Diagnosis: {escape(self.verdict)}</h4><p>{escape(self.reason)}</p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            + (f"<p>What to try, in this order:</p><ol>{advice}</ol>" if advice else "")
            + "".join(f"<p><small>Note: {escape(note)}</small></p>" for note in self.notes)
        )


class StackDiagnosis(NamedTuple):
    """The verdict on codes that are put together, and one on each codebook: parts[head or group][level].

    whole: encoder, rate and codes, counted over all parts and levels. parts: each codebook alone ("healthy",
    "token collapse" or "cannot tell").
    """

    whole: Diagnosis
    parts: list[list[Diagnosis]]


def _where(advice: Advice) -> str:
    return f"notebook {advice.notebook}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _reference(evidence: Evidence) -> str:
    return f"{_number(evidence.reference)} {evidence.compared_with}"


# ---------------------------------------------------------------- what to try

WARM_UP = Advice("train without the quantiser first, then place the codes by k-means", "start", "05")
RESTART = Advice("restart dead codes from the first steps on, threshold well below N/K", "after step", "05")
REPAIR = Advice("without training again: k-means on these latents, then train the decoder", "start", "05")
BUGS = Advice("look for a bug: expiry that does nothing, codes lost at the first step", "any", "08")
STORM = Advice("codes are busy in the wrong places: look for clones and a restart storm", "after step", "05")
MANY_CODES = Advice("with so many codes: SimVQ, or FSQ, where no code can die alone", "codes", "05")
WIDER = Advice("a wider or deeper encoder: no codes can part latents that coincide", "encoder", "04")
LESS_BETA = Advice("a smaller beta, in case the commitment loss holds the latents together", "loss", "01")
ENCODER_BUGS = Advice("look for a bug in the encoder: a lost gradient, a wrong axis", "any", "08")
LONGER = Advice("a longer warm-up, so that weak directions are learnt before codes ignore them", "start", "06")
MORE_DIMENSIONS = Advice(
    "more latent dimensions, if the quantiser or a projection before it has few", "encoder", "05"
)
REPAIR_EACH = Advice(
    "without training again: k-means for each codebook on what reaches it, in order; then train the decoder",
    "start",
    "05",
)
MORE_LEVELS = Advice("more levels, or more codes in each: their bits add up", "structure", "05")
MORE_CODES = Advice("more codes, or a second stage that codes what the first leaves (residual)", "structure", "05")
FEWER_LATENTS = Advice("more latents for each input: a finer grid", "encoder", "03")
INPUTS = Advice("pass inputs= (or labels=), so that the encoder can be judged too", "data", "09")
MORE_LATENTS = Advice("pass more latents: at least 16 for each code", "data", "09")


def advice_for(verdict: str, *, size: int, busy: bool, needs: list[Advice], several: bool = False) -> list[Advice]:
    """What to try, in order. size: K. busy: whether nearly all codes are in use. needs: what the verdict lacked.

    several: for codes that are put together (levels, heads, groups), or for one of their codebooks.
    """
    repair = REPAIR_EACH if several else REPAIR
    tokens = [*([STORM] if busy else []), WARM_UP, RESTART, repair, *([MANY_CODES] if size >= 16384 else []), BUGS]
    embeddings = [WIDER, LESS_BETA, ENCODER_BUGS]
    return {
        "healthy": [],
        "token collapse": tokens,
        "embedding collapse": embeddings,
        "token and embedding collapse": [*embeddings[:1], *tokens[:-1], *embeddings[1:]],
        "dimensional collapse": [LONGER, MORE_DIMENSIONS, LESS_BETA],
        "rate limit": [MORE_LEVELS if several else MORE_CODES, FEWER_LATENTS],
        "cannot tell": [],
    }[verdict] + needs


def diagnose_observed(seen: Observed, seed: int = 0) -> Diagnosis:
    """What `diagnose` says on a codebook, from what was observed."""
    return _explained(seen, measure_observed(seen, seed), seed)


def diagnose_observed_stack(seen: Observed, seed: int = 0) -> StackDiagnosis:
    """What `diagnose_stack` says, from what was observed."""
    f = measure_observed(seen, seed)
    if len(seen.places) == 1:
        f = replace(f, bits=seen.total_bits, codebooks=(measure_observed(seen.alone([0]), seed),))
    alone = {}
    for group, figures in zip(seen.shared, f.codebooks):
        alone |= dict.fromkeys(group, _explained(seen.alone(group), figures, seed, of_several=True))
    numbers = iter(range(len(seen.places)))
    return StackDiagnosis(
        _explained(seen, f, seed), [[alone[next(numbers)] for _ in levels] for levels in seen.parts]
    )


def _explained(seen: Observed, f: Figures, seed: int, of_several: bool = False) -> Diagnosis:
    """The diagnosis of a codebook or of a whole; of_several: of one codebook of a whole, which has no encoder."""
    verdict, reason = decide_codebook(f) if of_several else decide(f)
    tokens, embeddings = codebook_at_fault(f), encoder_at_fault(f)
    needs = [INPUTS] if embeddings is None and not of_several else []
    if tokens is None and f.sample < AT_MOST and not compares_otherwise(f):
        needs.append(MORE_LATENTS)
    advice = advice_for(
        verdict,
        size=max(one.codes for one in f.each),
        busy=f.usage > 0.8 * f.ceiling,
        needs=needs if verdict != "rate limit" else [],
        several=of_several or bool(f.codebooks),
    )
    drawing = None
    if not f.codebooks:
        some = torch.randperm(len(seen.counted), generator=torch.Generator().manual_seed(seed))[:2000]
        drawing = Drawing(seen.counted[some].float(), seen.places[0].codes.float(), f.counts)
    evidence, notes = _evidence(f, tokens, of_several), _notes(seen, f, tokens, embeddings, of_several)
    return Diagnosis(verdict, reason, evidence, advice, notes, drawing, _doubts(seen, f))


def _evidence(f: Figures, tokens: bool | None, of_several: bool) -> dict[str, Evidence]:
    """All figures that were measured, each with its reference and what it speaks for."""
    at_codes = {True: "token collapse", False: "a sound codebook", None: "too few latents"}[tokens]
    if compares_otherwise(f):
        at_codes = "not compared by distance"
    at_encoder = {True: "embedding collapse", False: "a sound encoder", None: ""}
    spare = f.different is not None and f.different < f.codes
    at_most = f"at most, with {f.different:,} different latents" if spare else f"at most, with {f.latents:,} latents"
    in_effect = min(f.codes, f.different) if spare else f.codes
    found = {
        "codes in use": Evidence(round(f.usage * f.codes), round(f.ceiling * f.codes), at_most, "a symptom only"),
        "codes in effect": Evidence(f.perplexity, in_effect, "codes (perplexity)", "a symptom only"),
    }
    if f.distinct < f.codes:
        found["different codes"] = Evidence(f.distinct, f.codes, "codes", "clones")
    if f.gap is not None:
        by = f"k-means, {f.reference_codes:,} codes" + (" in the same levels and parts" if f.codebooks else "")
        found["error / variance"] = Evidence(f.error, f.best, by, at_codes)
        found["optimality gap"] = Evidence(f.gap, 1.0, by, at_codes)
    if f.dimensions is not None and not of_several:
        paid = "paid for by the " + ("latents" if f.inputs_loss is None else "inputs")
        few = "dimensional collapse" if dimensions_missing(f) else ""
        found["dimensions filled"] = Evidence(f.dimensions, f.paid, paid, few)
    if f.inputs_loss is not None:
        by = f"{f.inputs_codes} codes of the inputs"
        speaks = at_encoder[inputs_lost(f)]
        found["lost by the encoder"] = Evidence(f.encoder_loss, f.inputs_loss, by, speaks)
        by = "of it lost before them"
        found["lost with the best codes"] = Evidence(f.codes_loss, f.encoder_loss, by, speaks)
    if f.separability is not None:
        with_inputs = f.separability_inputs is not None
        best, by = (f.separability_inputs, "from the inputs") if with_inputs else (f.chance, "by guessing")
        found["labels read off"] = Evidence(f.separability, best, by, at_encoder[labels_lost(f)])
    if f.best is not None and not of_several:
        limit = "rate limit" if f.left > THRESHOLDS["rate"] else ""
        found["left by k-means"] = Evidence(f.left, THRESHOLDS["rate"], "and more is a rate limit", limit)
    return found


def _doubts(seen: Observed, f: Figures) -> list[str]:
    """What should be looked at before the verdict counts: latents and codes that cannot be what is compared."""
    doubts = []
    for one in f.each:
        which = f"one of the codebooks ({one.codes:,} codes): " if f.codebooks else ""
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
    rounding = min(torch.finfo(seen.latents.dtype).eps, torch.finfo(torch.float32).eps)
    if f.size is not None and f.size**2 * rounding > 0.01:
        doubts.append(
            f"the latents hardly vary beside their size, by one part in {f.size:,.0f}: a quantiser that subtracts "
            f"squares of that size chooses by rounding. Take their mean off before they are compared"
        )
    return doubts


def _notes(seen: Observed, f: Figures, tokens: bool | None, embeddings: bool | None, of_several: bool) -> list[str]:
    notes = []
    if seen.mask is not None:
        masked = len(seen.latents) - len(seen.rows)
        notes.append(f"{masked:,} of {len(seen.latents):,} latents are masked and do not count")
    if seen.inputs is not None and seen.inputs.axes is not None:
        axes, shape = seen.inputs.axes, seen.inputs.shape
        notes.append(f"a latent stands beside a piece {seen.inputs.piece} of inputs {shape}, along places={axes}")
    if f.different is not None and f.different < f.codes:
        notes.append(f"{f.codes - f.different:,} codes are spare: only {f.different:,} latents differ")
    if tokens is None and f.rate > 0 and f.spread > 0 and not compares_otherwise(f):
        notes.append(f"the codebook is not judged: {f.latents:,} latents for {f.codes:,} codes")
    if f.codebooks:
        notes.append(f"all codes of a latent together carry {f.rate:.1f} bits")
        if f.gap is None and f.best is not None:
            notes.append("the whole has no error: a level codes something else than what the one before left")
    if of_several:
        notes.append("of several codebooks each is judged by its codes alone; the encoder, by all of them together")
    elif embeddings is None:
        notes.append("the encoder is not judged: without inputs, or labels and inputs, latents have no reference")
    elif f.inputs_loss is None:
        notes.append("dimensions are not judged: without inputs they have no reference")
    if f.reader is not None:
        itself = "" if f.model_loss is None else f"; the model as a whole leaves {f.model_loss:.3g}"
        notes.append(f"lost by the encoder is what {f.reader}, the best of the readers, leaves of the inputs{itself}")
    if f.sample < f.latents:
        notes.append(f"references are measured on {f.sample:,} of {f.latents:,} latents")
    if f.error is not None:
        notes.append(f"error / variance is {f.error:.3g} with a standard error of {f.error_deviation:.1g}")
    return notes
