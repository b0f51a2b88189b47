"""What is wrong with a figure as it is drawn: text that is hard to read, and arms in a colour that is not their own.

Kernels that are started with `watched(folder)` in their environment look at every figure that a notebook draws, the
frames of its explorers too, and a fault is an error in the cell: in `make test`, `make run` and `make browser-test`.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LEAST = 4.5  # times as bright, as WCAG 2.2 wants it of text (1.4.3)
STARTUP = """\
import runpy

runpy.run_path({path!r})["watch"](get_ipython())
"""


def watched(folder: Path) -> dict[str, str]:
    """The environment of a kernel that looks at its figures. folder: for IPython, of its own."""
    startup = Path(folder) / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "figure_faults.py").write_text(STARTUP.format(path=str(Path(__file__).resolve())), encoding="utf-8")
    return {"IPYTHONDIR": str(folder)}


def watch(shell: Any) -> None:
    """From the first cell on that begins with matplotlib imported: each figure is looked at when it is drawn."""

    def begin(_: object = None) -> None:
        if "matplotlib.figure" in sys.modules:
            from matplotlib.backends.backend_agg import FigureCanvasAgg

            shell.events.unregister("pre_run_cell", begin)
            look_at_all(FigureCanvasAgg)

    shell.events.register("pre_run_cell", begin)


def look_at_all(canvas: type) -> None:
    """Makes drawing a figure on such a canvas raise AssertionError if something is wrong with it."""
    plain = canvas.draw

    def draw(self: Any) -> None:
        plain(self)
        if wrong := faults(self.figure):
            raise AssertionError("; ".join(wrong))

    canvas.draw = draw


def faults(figure: Any) -> list[str]:
    """All that is wrong with a figure that was drawn, each in a sentence."""
    return [*dim_texts(figure), *foreign_colors(figure)]


# ---------------------------------------------------------------- text


def contrast(one: Any, other: Any) -> float:
    """How many times brighter the brighter of two colours is, from 1 to 21 (WCAG 2.2)."""
    low, high = sorted(luminance(color) + 0.05 for color in (one, other))
    return high / low


def luminance(color: Any) -> float:
    from matplotlib.colors import to_rgb

    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(color)]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear))


def dim_texts(figure: Any) -> list[str]:
    """Texts whose contrast with what is drawn below them is under LEAST."""
    from matplotlib.text import Text

    wrong = []
    for text in figure.findobj(Text):
        if not text.get_visible() or not text.get_text().strip():
            continue
        below = background(figure, text)
        found = contrast(mixed(text.get_color(), text.get_alpha(), below), below)
        if found < LEAST:
            wrong.append(f"the text {text.get_text()!r} has a contrast of {found:.1f}, and needs {LEAST}")
    return wrong


def mixed(color: Any, alpha: float | None, below: Any) -> tuple:
    """A colour, perhaps transparent, over another."""
    from matplotlib.colors import to_rgba

    *rgb, share = to_rgba(color, alpha)
    return tuple(share * value + (1 - share) * under for value, under in zip(rgb, below))


def background(figure: Any, text: Any) -> tuple:
    """The colour below the middle of a text: its own box, or filled shapes and cells of a table of colours."""
    from matplotlib.colors import to_rgb

    box = text.get_window_extent()
    place = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    color = to_rgb(figure.get_facecolor())
    for shape in [*sheets(figure), text.get_bbox_patch()]:
        if shape is not None and (found := color_at(shape, place)) is not None:
            color = mixed(found, None, color)
    return color


def sheets(figure: Any) -> Iterator[Any]:
    """Axes' own backgrounds, then what is filled, from below."""
    from matplotlib.collections import QuadMesh
    from matplotlib.patches import FancyArrowPatch, Patch
    from matplotlib.spines import Spine
    from matplotlib.text import Text

    grounds = [ax.patch for ax in figure.axes if ax.axison and ax.get_visible()]
    own = {id(ground) for ground in [figure.patch, *(ax.patch for ax in figure.axes)]}
    own |= {id(text.get_bbox_patch()) for text in figure.findobj(Text)}
    filled = figure.findobj(lambda one: isinstance(one, Patch | QuadMesh) and one.get_visible())
    filled = [one for one in filled if id(one) not in own and not isinstance(one, FancyArrowPatch | Spine)]
    yield from grounds
    yield from sorted(filled, key=lambda one: one.get_zorder())


def color_at(shape: Any, place: tuple) -> Any:
    """The colour of a shape or of a table of colours at a place of the canvas, or None if it is not there."""
    if hasattr(shape, "get_coordinates"):
        corners = shape.get_coordinates()
        x, y = shape.get_transform().inverted().transform(place)
        column = int((x - corners[0, 0, 0]) // (corners[0, 1, 0] - corners[0, 0, 0]))
        row = int((y - corners[0, 0, 1]) // (corners[1, 0, 1] - corners[0, 0, 1]))
        rows, columns = corners.shape[0] - 1, corners.shape[1] - 1
        inside = 0 <= row < rows and 0 <= column < columns
        return shape.get_facecolor()[row * columns + column] if inside else None
    return shape.get_facecolor() if shape.get_fill() and shape.contains_point(place) else None


# ---------------------------------------------------------------- arms


def foreign_colors(figure: Any) -> list[str]:
    """Arms of `plots.ARM_COLORS` in another colour than their own, and others in the colour of an arm that is there.

    Looks at what legends name, at rows with an arm at the axis, and at panels with an arm as their title.
    """
    from vqnotes.plots import ARM_COLORS

    pairs = [pair for ax in figure.axes for pair in [*in_legend(ax), *in_rows(ax, ARM_COLORS)]]
    there = {arm_of(name, ARM_COLORS) for name, _ in pairs} - {None}
    wrong = []
    for name, color in pairs:
        arm = arm_of(name, ARM_COLORS)
        if arm is not None and not same(color, ARM_COLORS[arm]):
            wrong.append(f"{name!r} is not drawn in the colour of {arm}")
        if arm is None and any(same(color, ARM_COLORS[one]) for one in there):
            wrong.append(f"{name!r} is drawn in the colour of an arm")
    for ax in figure.axes:
        arm = arm_of(ax.get_title(), ARM_COLORS)
        drawn = [line.get_color() for line in ax.lines if not grey(line.get_color())]
        if arm and drawn and not any(same(color, ARM_COLORS[arm]) for color in drawn):
            wrong.append(f"the panel {ax.get_title()!r} has no line in the colour of {arm}")
    return list(dict.fromkeys(wrong))


def arm_of(name: str, arms: Any) -> str | None:
    """The arm that a name stands for: it may say how many codes it has, or how long it lasts."""
    return next((arm for arm in arms if re.search(rf"(?:^|, ){re.escape(arm)}(?:, \d.*)?$", name)), None)


def in_legend(ax: Any) -> Iterator[tuple[str, Any]]:
    for handle, name in zip(*ax.get_legend_handles_labels()):
        yield name, color_of(handle)


def in_rows(ax: Any, arms: Any) -> Iterator[tuple[str, Any]]:
    """Where arms stand at the y axis: what is drawn in the row of each name, but for what is grey."""
    names = [label.get_text() for label in ax.get_yticklabels()]
    if not any(arm_of(name, arms) for name in names):
        return
    lines = [line for line in ax.lines if line.get_transform() == ax.transData]
    for place, name in zip(ax.get_yticks(), names):
        for line in lines:
            in_row = all(abs(float(y) - place) < 0.45 for y in line.get_ydata())
            if in_row and (line.get_color() == "black" or not grey(line.get_color())):
                yield name, line.get_color()


def color_of(handle: Any) -> Any:
    """Of a line, of points or a band, of bars, of points with error bars."""
    while isinstance(handle, tuple) and handle and not hasattr(handle, "get_color"):
        handle = next(one for one in handle if one is not None)
    if hasattr(handle, "get_color"):
        return handle.get_color()
    color = handle.get_facecolor()
    return color if len(color) != 1 else color[0]


def grey(color: Any) -> bool:
    from matplotlib.colors import to_rgb

    return max(to_rgb(color)) - min(to_rgb(color)) < 0.05


def same(one: Any, other: Any) -> bool:
    from matplotlib.colors import to_rgb

    return all(abs(a - b) < 0.01 for a, b in zip(to_rgb(one), to_rgb(other)))
