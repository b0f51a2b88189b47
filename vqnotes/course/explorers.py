"""Explorers: controls above a picture that was drawn for each setting beforehand, so that a move shows at once.

They work with ipywidgets 7.7 (Colab) and 8. Without a running kernel they are a line of text: a notebook shows what
they say in a static figure too.
"""

import html
import itertools
from collections.abc import Callable, Mapping, Sequence

from vqnotes._extras import course_extra
from vqnotes._images import encoded, kind_of
from vqnotes.diagnosis.conditions import conditions
from vqnotes.diagnosis.measures import Measures
from vqnotes.diagnosis.report import Diagnosis, Evidence
from vqnotes.diagnosis.rules import path
from vqnotes.diagnosis.tree import draw_tree, in_words

with course_extra("vqnotes.course.explorers"):
    import ipywidgets
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

__all__ = ["explore", "explore_tree", "explorer", "tree_explorer"]

MARGINS = ("left", "right", "bottom", "top", "wspace", "hspace")
MOST = 120  # settings of one explorer: more would make the notebook's reader wait


def explore(
    draw: Callable[..., tuple[Figure, str]], controls: Mapping[str, Sequence], play: str | None = None
) -> None:
    """Draws every setting and shows the explorer. As for `explorer`, which gives it to you as a widget instead."""
    _show(explorer(draw, controls, play), " × ".join(f"{name} ({len(values)})" for name, values in controls.items()))


def _show(box: ipywidgets.VBox, words: str) -> None:
    """Shows a widget, and a line of text where there is no kernel."""
    from IPython.display import display

    view = {"model_id": box.model_id, "version_major": 2, "version_minor": 0}
    text = f"[Explorer: {words}. Run the notebook to here to move the controls.]"
    display({"application/vnd.jupyter.widget-view+json": view, "text/plain": text}, raw=True)


def explorer(
    draw: Callable[..., tuple[Figure, str]], controls: Mapping[str, Sequence], play: str | None = None
) -> ipywidgets.VBox:
    """Controls, and below them the picture and the sentence of their setting.

    draw: draw(*setting) gives a figure and one sentence that says in words what it shows; called once a setting.
    controls: label to values, at least two: words become buttons, numbers a slider. The Tab key reaches both; buttons
    are pressed by Enter, sliders moved by the arrow keys. (JupyterLab takes the arrow keys away from menus.)
    play: the control that a play button moves from its first value to its last.
    Raises ValueError for values that are missing or given twice, a `play` that is no control, more than MOST
    settings, or a figure without a sentence.
    """
    for name, values in controls.items():
        if len(values) < 2 or len(set(values)) < len(values):
            raise ValueError(f"the control {name!r} needs at least two values that differ, got {list(values)}")
    settings = list(itertools.product(*controls.values()))
    if not controls or len(settings) > MOST:
        raise ValueError(f"an explorer has 1 .. {MOST} settings, got {len(settings) if controls else 0}")
    if play is not None and play not in controls:
        raise ValueError(f"play must be one of {list(controls)}, got {play!r}")
    pages: dict[tuple, str] = {}
    margins: dict[str, float] = {}
    for setting in settings:
        figure, words = draw(*setting)
        if not margins:  # those of the first suit all, so that nothing jumps
            figure.tight_layout()
            margins = {name: getattr(figure.subplotpars, name) for name in MARGINS}
        figure.subplots_adjust(**margins)
        pages[setting] = _page(figure, words)
    moved = [_control(name, values) for name, values in controls.items()]
    picture = ipywidgets.HTML(pages[settings[0]])
    picture.add_class("vqnotes-figure")

    def turn(_: object) -> None:
        picture.value = pages[tuple(control.value for control in moved)]

    rows = list(moved)
    for place, (name, control) in enumerate(zip(controls, moved)):
        control.observe(turn, "value")
        if name == play:
            rows[place] = ipywidgets.HBox([_player(control), control])
    box = ipywidgets.VBox([*rows, picture])
    box.add_class("vqnotes-explorer")
    return box


def _control(name: str, values: Sequence) -> ipywidgets.Widget:
    if all(isinstance(value, str) for value in values):
        style = {"description_width": "initial", "button_width": "initial"}
        return ipywidgets.ToggleButtons(options=list(values), value=values[0], description=name, style=style)
    return ipywidgets.SelectionSlider(
        options=[(f"{value:g}", value) for value in values],
        value=values[0],
        description=name,
        style={"description_width": "initial"},
        layout={"width": "420px"},
    )


def _player(control: ipywidgets.Widget) -> ipywidgets.Play:
    """A play button in the browser itself, so that it keeps its pace."""
    player = ipywidgets.Play(min=0, max=len(control.options) - 1, interval=250)
    ipywidgets.jslink((player, "value"), (control, "index"))
    return player


def _page(figure: Figure, words: str) -> str:
    if not words.strip():
        raise ValueError("each setting needs a sentence that says what its figure shows")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
    kind = kind_of(figure)
    plt.close(figure)
    source, text = encoded(image, kind), html.escape(words)
    return f'<img src="data:image/{kind};base64,{source}" alt="{text}" style="max-width: 100%"><p>{text}</p>'


# ---------------------------------------------------------------- the tree of a diagnosis

FIGURES = {  # label: least, most and first value of a slider, in the order of the questions
    "codes": (1, 1024, 64),
    "encoder: times what codes of the inputs lose": (0.0, 4.0, 1.0),
    "codebook: times what the best codes lose": (0.8, 4.0, 1.05),
    "best codes: share of the variance that they cost": (0.01, 0.6, 0.1),
    "dimensions: share of those that codes of the inputs tell of": (0.0, 1.2, 0.9),
}
GIVEN = ("inputs are given", "latents are enough")
INPUTS_LOSE, BEST = 0.1, 4.0  # of the variance, by as many codes of the inputs; dimensions that these tell of


def explore_tree() -> None:
    """Shows the tree explorer. `tree_explorer` gives it to you as a widget instead."""
    _show(tree_explorer(), "the tree of questions, " + ", ".join([*FIGURES, *GIVEN]))


def tree_explorer() -> ipywidgets.VBox:
    """Sliders for the figures of a diagnosis, and below them the tree of its questions with the path that these take.

    A picture is drawn when its figures are met for the first time, in about a second.
    """
    style, layout = {"description_width": "400px"}, {"width": "720px"}
    sliders = [
        (ipywidgets.IntSlider if isinstance(first, int) else ipywidgets.FloatSlider)(
            value=first, min=low, max=high, step=1 if isinstance(first, int) else 0.01, description=name,
            style=style, layout=layout, continuous_update=False,
        )
        for name, (low, high, first) in FIGURES.items()
    ]  # fmt: skip
    boxes = [ipywidgets.Checkbox(value=True, description=name, style=style, layout=layout) for name in GIVEN]
    picture, pages = ipywidgets.HTML(), {}
    picture.add_class("vqnotes-figure")

    def turn(_: object) -> None:
        key = tuple(one.value for one in (*sliders, *boxes))
        if key not in pages:
            measures = measures_of(*key)
            figures = ", ".join(f"{one.description} {one.value:g}" for one in sliders)
            pages[key] = _page(_tree(measures), f"{in_words(path(measures))} ({figures})")
        picture.value = pages[key]

    for control in (*sliders, *boxes):
        control.observe(turn, "value")
    turn(None)
    box = ipywidgets.VBox([*sliders, *boxes, picture])
    box.add_class("vqnotes-explorer")
    return box


def _tree(measures: Measures) -> Figure:
    figure, ax = plt.subplots(figsize=(12, 9), layout="constrained")
    compared = conditions(measures).items()
    evidence = {name: Evidence(one.figure, one.threshold, "", "", condition=one) for name, one in compared}
    draw_tree(ax, Diagnosis("", "", evidence, [], path=path(measures)))
    ax.set_title(f"{measures.codes:,} codes", loc="left")
    return figure


def measures_of(
    codes: int, times: float, gap: float, best: float, filled: float, inputs: bool, enough: bool
) -> Measures:
    """Measures with these figures; without inputs, or with fewer latents than can clear a codebook, if that is so."""
    sample = 16 * codes if enough else codes
    given: dict = {"best": best, "error": gap * best, "gap": gap}
    given |= {"best_low": best, "gap_high": gap} if enough else {"best_low": 0.0, "gap_high": float("inf")}
    if inputs:
        lost = times * INPUTS_LOSE
        given |= {"inputs_loss": INPUTS_LOSE, "encoder_loss": lost, "codes_loss": lost + best}
        given |= {"own_loss": gap * (lost + best), "best_loss": INPUTS_LOSE}
        given |= {"dimensions": filled * BEST, "best_dimensions": BEST}
    used: dict = {"distinct": codes, "usage": 1.0, "ceiling": 1.0, "perplexity": float(codes)}
    return Measures(latents=sample, codes=codes, sample=sample, spread=1.0, **used, **given)
