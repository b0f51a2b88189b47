"""What a diagnosis says: the verdict, the evidence behind it, the advice, and how all of it is shown."""

from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

from torch import Tensor

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
