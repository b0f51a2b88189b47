"""The tree of questions by which a verdict is reached, and the path through it that one diagnosis took."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vqnotes.diagnosis.rules import THRESHOLDS, TREE, Answer, times
from vqnotes.diagnosis.showing import compared

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

    from vqnotes.diagnosis.report import Diagnosis

__all__ = ["Link", "draw_tree", "in_words", "links"]

# Where each question stands, and below it each verdict that it leads to: x to the right, y upwards.
PLACES: dict[str, tuple[float, float]] = {
    "several codes": (0, 12.7),
    "inputs": (0, 11.5),
    "encoder": (0, 9.4),
    "codebook": (0, 6.4),
    "codebook alone": (-6, 6.4),
    "codebook, encoder at fault": (6, 6.4),
    "dimensions": (0, 3.8),
    "rate": (0, 1.6),
}
LEAVES: dict[tuple[str, str], tuple[float, float]] = {
    ("several codes", "rate limit"): (4, 12.7),
    ("inputs", "cannot tell"): (-4.6, 11.5),
    ("codebook alone", "token collapse"): (-7.3, 4.4),
    ("codebook alone", "cannot tell"): (-5, 4.2),
    ("codebook", "token collapse"): (3.9, 4.9),
    ("codebook", "cannot tell"): (-3.5, 4.9),
    ("codebook, encoder at fault", "token and embedding collapse"): (7.8, 4.4),
    ("codebook, encoder at fault", "embedding collapse"): (5.6, 3.4),
    ("dimensions", "dimensional collapse"): (4.9, 2.3),
    ("rate", "rate limit"): (4.4, 0.4),
    ("rate", "cannot tell"): (-4.2, 0.4),
    ("rate", "healthy"): (0, -0.2),
}
# The rows of the evidence that answer a question, in the order in which its words name them.
ASKED = {
    "encoder": ("lost by the encoder", "lost with the best codes", "labels read off"),
    "codebook": ("lost by its own codes", "more than by the best codes", "optimality gap", "error / variance"),
    "dimensions": ("dimensions filled", "lost for want of dimensions"),
    "rate": ("left by k-means",),
}


class Link(NamedTuple):
    """From a question, by its answer, to the next question or a verdict; lit: whether a path runs along it."""

    question: str
    answer: Answer
    leads_to: str
    lit: bool


def links(path: Sequence[tuple[str, Answer]] = ()) -> list[Link]:
    """All links of `rules.TREE`, from the first question on. path: as from `rules.path`."""
    return [
        Link(name, answer, following, (name, answer) in path)
        for name, question in TREE.items()
        for answer, following in question.leads_to.items()
    ]


def in_words(path: Sequence[tuple[str, Answer]]) -> str:
    """A path as a sentence: each question with its answer, and the verdict."""
    steps = [f"{name}: {answer.value}" for name, answer in path]
    name, answer = path[-1]
    return f"{'; '.join(steps)}. So the verdict is: {TREE[name].leads_to[answer]}."


def draw_tree(ax: "Axes", found: "Diagnosis | None" = None) -> "DataFrame":
    """Draws the questions that `diagnose` asks, with their thresholds, and lights the path that your figures took.

    found: a diagnosis by `diagnose` or `diagnose_model`, or the whole of a `StackDiagnosis`. None: the bare tree.
    Below each question that was asked stand the figures that answered it. The tree is wide: about 12 by 9 inches.
    Returns the links as drawn, columns question, answer, leads_to, lit.
    Raises ValueError for a diagnosis that asked no such questions: of ids, of one of several codebooks, or of codes
    that are not started; ImportError without what draws, `pip install 'vqnotes[course]'`.
    """
    if found is not None and not found.path:
        raise ValueError(
            f"{found.verdict!r} was not reached by this tree: it is said of ids, of one of several codebooks, or of "
            f"codes that are not started. Draw the diagnosis of a codebook with its latents, or `whole` of a stack"
        )
    from pandas import DataFrame

    from vqnotes.plots import LIVE, PALETTE

    drawn = links([] if found is None else found.path)
    ends: dict[tuple[str, str], list[Link]] = {}
    for link in drawn:
        ends.setdefault((link.question, link.leads_to), []).append(link)
    centred: Any = {"ha": "center", "va": "center"}
    for (question, following), same in ends.items():
        (x, y), lit = PLACES[question], any(link.lit for link in same)
        to_x, to_y = PLACES.get(following) or LEAVES[question, following]
        line: Any = {"color": LIVE, "linewidth": 4} if lit else {"color": "0.6", "linewidth": 1}
        ax.plot([x, to_x], [y, to_y], zorder=1, **line)
        answers = ", ".join(link.answer.value for link in same if link.lit or not lit)
        along = 0.4 if following == "encoder" else 0.6  # the box below is a large one
        spot = (x + along * (to_x - x), y + along * (to_y - y))
        box: Any = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"}
        ax.text(*spot, answers, **centred, fontsize=9, weight="bold" if lit else "normal", bbox=box, zorder=2)
        if following not in TREE:
            look: Any = {"boxstyle": "round,pad=0.4", "fc": LIVE if lit else PALETTE[8], "ec": "0.3"}
            verdict, weight = following.replace(" and ", " and\n"), "bold" if lit else "normal"
            ax.text(to_x, to_y, verdict, **centred, fontsize=10, weight=weight, bbox=look, zorder=3)
    for name, asked in TREE.items():
        lit = any(link.lit for link in drawn if link.question == name)
        words = asked.words.format(**THRESHOLDS)
        yours = _figures(found, name) if found is not None and lit else ""
        look = {"boxstyle": "round,pad=0.4", "fc": "white", "ec": LIVE if lit else "0.3"}
        look["linewidth"] = 3 if lit else 1
        text = words + (f"\nyours: {yours}" if yours else "")
        ax.text(*PLACES[name], text, **centred, fontsize=9, bbox=look, zorder=3)
    ax.set(xlim=(-8.6, 9), ylim=(-0.7, 13.3))
    ax.axis("off")
    rows = [(link.question, link.answer.value, link.leads_to, link.lit) for link in drawn]
    return DataFrame(rows, columns=["question", "answer", "leads_to", "lit"])


def _figures(found: "Diagnosis", name: str) -> str:
    """The figures that answered a question of the tree, in the order of its words."""
    figures: list[str] = []
    for row in ASKED.get(name.replace(",", " ").split()[0], ()):
        one = found.evidence.get(row)
        if one is None or one.condition is None:
            continue
        each = [compared(one.condition)]
        if row == "lost by the encoder":  # of ratio and difference the condition is the one that is harder to meet
            more = compared(one.condition._replace(figure=one.value - one.reference, unit="more"))
            ratio = times(one.value / one.reference) if one.reference > 0 else ""
            each = [ratio, more] if one.condition.unit == "more" else [*each, more]
        figures += [figure for figure in each if figure]
    return ", ".join(figures)
