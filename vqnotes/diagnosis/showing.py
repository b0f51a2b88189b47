"""How a diagnosis is shown: as text in plain ASCII, and as HTML without scripts, for light and dark pages alike."""

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING

from vqnotes._printing import in_digits
from vqnotes.diagnosis.conditions import QUESTIONS, Condition
from vqnotes.diagnosis.rules import Answer

if TYPE_CHECKING:
    from vqnotes.diagnosis.advice import Advice
    from vqnotes.diagnosis.report import Diagnosis, Evidence

__all__ = ["BARS", "as_html", "as_text", "close_to_the_line", "compared", "in_columns", "in_interval"]

BARS = {True: "#d55e00", False: "#0072b2"}  # by whether a condition holds; both stand out on white and on black
EMPTY = "rgba(128,128,128,0.3)"


def as_text(found: "Diagnosis") -> str:
    """A diagnosis as lines: doubts, verdict, findings, figures, conditions by question, advice, notes."""
    lines = [f"First: {doubt}" for doubt in found.doubts]
    lines += [f"Diagnosis: {_verdict(found)}", f"  {found.reason}", *(f"  {one}" for one in found.findings)]
    plain = _plain_rows(found)
    if plain:
        lines += ["", *("  " + line for line in in_columns(plain))]
    blocks = _blocks(found, lambda one: one.bar)
    if blocks:
        head, *rows = in_columns([_head(found), *(row for _, block in blocks for row in block)])
        lines += ["", f"    {head}"]
        left = iter(rows)
        for question, block in blocks:
            lines += [f"  {question}", *(f"    {next(left)}" for _ in block)]
    if found.advice:
        lines += ["", "What to try, in this order:"]
        lines += [f"  {i}. {one.remedy} [{one.stage}; {_where(one)}]" for i, one in enumerate(found.advice, 1)]
    lines += ["", *(f"Note: {note}" for note in found.notes)] if found.notes else []
    return "\n".join(lines)


def as_html(found: "Diagnosis") -> str:
    """The same as a page's piece; all that is said is escaped."""
    plain = _plain_rows(found)
    tables = ""
    if plain:
        body = "".join(map(_row, plain[1:]))
        tables += f"<table><thead>{_row(plain[0], 'th')}</thead><tbody>{body}</tbody></table>"
    blocks = _blocks(found, lambda one: "")
    if blocks:
        head, bars = _head(found), (_html_bar(one.condition) for one in _conditioned(found))
        tables += f"<table><thead>{_row(head, 'th')}</thead>"
        for question, block in blocks:
            tables += f'<tbody><tr><th colspan="{len(head)}" style="text-align:left">{escape(question)}</th></tr>'
            tables += "".join(_row(row, bar=next(bars)) for row in block) + "</tbody>"
        tables += "</table>"
    advice = "".join(
        f"<li>{escape(one.remedy)} <i>({escape(one.stage)}; {escape(_where(one))})</i></li>" for one in found.advice
    )
    return (
        "".join(f"<p><b>First: {escape(doubt)}</b></p>" for doubt in found.doubts)
        + f"<h4>Diagnosis: {escape(_verdict(found))}</h4><p>{escape(found.reason)}</p>"
        + "".join(f"<p>{escape(one)}</p>" for one in found.findings)
        + tables
        + (f"<p>What to try, in this order:</p><ol>{advice}</ol>" if advice else "")
        + "".join(f"<p><small>Note: {escape(note)}</small></p>" for note in found.notes)
    )


def close_to_the_line(name: str, one: Condition) -> str:
    """In a sentence, how near a figure is to its threshold."""
    return f"Close to the line: {name}, {compared(one)}, holds if {_limit(one)}."


# ---------------------------------------------------------------- rows


def _plain_rows(found: "Diagnosis") -> list[tuple[str, ...]]:
    """The figures that no question rests on, below a head; with a column of intervals if there are any."""
    plain = {name: one for name, one in found.evidence.items() if one.condition is None}
    if not plain:
        return []
    rows: list[tuple[str, ...]] = [("", "yours", "95% interval", "reference", "speaks for")]
    rows += [
        (name, in_digits(e.value), in_interval(e.interval), _reference(e), e.speaks_for) for name, e in plain.items()
    ]
    if any(e.interval is not None for e in plain.values()):
        return rows
    return [(*row[:2], *row[3:]) for row in rows]


def _conditioned(found: "Diagnosis") -> list["Evidence"]:
    """The rows of the blocks, in their order."""
    return [one for question in QUESTIONS for one in found.evidence.values() if _asks(one) == question]


def _asks(one: "Evidence") -> str | None:
    return None if one.condition is None else one.condition.question


def _with_intervals(found: "Diagnosis") -> bool:
    return any(one.interval is not None for one in _conditioned(found))


def _head(found: "Diagnosis") -> tuple[str, ...]:
    interval = ("95% interval",) if _with_intervals(found) else ()
    return ("", "yours", *interval, "reference", "compared", "holds if", "", "")


def _blocks(found: "Diagnosis", bar: Callable[[Condition], str]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """For each question that was measured: the question with its answer, and the rows of its conditions."""
    blocks = []
    for question, words in QUESTIONS.items():
        rows: list[tuple[str, ...]] = []
        answer = None
        for name, e in found.evidence.items():
            if e.condition is None or e.condition.question != question:
                continue
            one, answer = e.condition, e.condition.answer
            interval = (in_interval(e.interval),) if _with_intervals(found) else ()
            cells = (compared(one), _limit(one), bar(one), _holds(one))
            rows.append((name, in_digits(e.value), *interval, _reference(e), *cells))
        if answer is not None:
            blocks.append((f"{words} {_answered(answer, len(rows))}", rows))
    return blocks


def _answered(answer: Answer, conditions: int) -> str:
    if answer is Answer.UNKNOWN:
        return "Not known."
    if conditions == 1:
        return f"{answer.value.capitalize()}."
    all_of_them = "both" if conditions == 2 else "all"
    return f"Yes: {all_of_them} hold." if answer is Answer.YES else f"No: {all_of_them} would have to hold."


def compared(one: Condition) -> str:
    """The figure of a condition, with what it counts."""
    if one.unit == "more" and one.figure < 0:
        return f"{in_digits(-one.figure)} less"
    return f"{in_digits(one.figure)} {one.unit}"


def _limit(one: Condition) -> str:
    return f"{'under' if one.below else 'over'} {in_digits(one.threshold)}"


def _holds(one: Condition) -> str:
    return ("yes" if one.holds else "no") + (", but close" if one.close else "")


def in_columns(rows: list[tuple[str, ...]]) -> list[str]:
    """The rows as lines, their cells one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _row(cells: tuple[str, ...], tag: str = "td", bar: str = "") -> str:
    """A row of HTML; bar: what stands in the last cell but one."""
    inner = [escape(cell) for cell in cells]
    if bar:
        inner[-2] = bar
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in inner) + "</tr>"


def _html_bar(one: Condition) -> str:
    """A bar of coloured pieces to the threshold, a line there, and half as much behind it."""
    before, behind = one.filled
    color = BARS[one.holds]

    def piece(width: float, background: str, height: str = "0.7em", unit: str = "em") -> str:
        look = f"display:inline-block;width:{width:.3g}{unit};height:{height};background:{background}"
        return f'<span style="{look}"></span>'

    line = piece(2, "currentColor", "1.1em", "px")
    pieces = [(6 * before, color), (6 - 6 * before, EMPTY), None, (3 * behind, color), (3 - 3 * behind, EMPTY)]
    drawn = "".join(line if one is None else piece(*one) for one in pieces)
    label = escape(f"{compared(one)}, holds if {_limit(one)}: {_holds(one)}")
    return f'<span role="img" aria-label="{label}" style="white-space:nowrap">{drawn}</span>'


# ---------------------------------------------------------------- words and numbers


def _verdict(found: "Diagnosis") -> str:
    return found.verdict + (f" (confidence {_sure(found.confidence)})" if found.confidence is not None else "")


def _where(advice: "Advice") -> str:
    return f"notebook {advice.notebook}"


def in_interval(interval: tuple[float, float] | None) -> str:
    """Both ends, with as many digits as tell them apart; nothing where there is none."""
    if interval is None:
        return ""
    low, high = interval
    for digits in 3, 4, 5:
        ends = [in_digits(one, digits) for one in (low, high)]
        if ends[0] != ends[1]:
            break
    return " .. ".join(ends)


def _sure(confidence: float) -> str:
    return f"{confidence:.2g}" if confidence <= 0.99 else "above 0.99"


def _reference(evidence: "Evidence") -> str:
    return f"{in_digits(evidence.reference)} {evidence.compared_with}"
