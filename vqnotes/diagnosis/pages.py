"""A diagnosis as a page of its own: one file of HTML with its figures in it, that asks no network for anything."""

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from vqnotes._extras import course_extra
from vqnotes.diagnosis.drawing import draw
from vqnotes.diagnosis.showing import as_html
from vqnotes.diagnosis.tree import draw_tree, in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vqnotes.diagnosis.report import Diagnosis

__all__ = ["as_page"]

NOTHING_FROM_OUTSIDE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = (
    ":root{color-scheme:light dark}body{font-family:sans-serif;line-height:1.4;max-width:60em;margin:2em auto;"
    "padding:0 1em}table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .7em;text-align:left}"
    "img{max-width:100%;height:auto;background:white}"
)
PANELS = (
    "Four panels: the codes among the latents, how often each code is used, losses beside their references, and how "
    "much of the variance each principal component holds."
)


def as_page(named: Sequence[tuple[str, "Diagnosis"]], *, figures: bool) -> str:
    """The page of one or several diagnoses, each with its name, which may be empty.

    A diagnosis that stands there twice, as those of shared codebooks do, is drawn once. Raises ImportError where
    there are to be figures, and what draws is missing.
    """
    title = "vqnotes: " + ", ".join(dict.fromkeys(found.verdict for _, found in named))
    body, drawn = "", set()
    for name, found in named:
        heading = f"<h2>{escape(name)}</h2>" if name else ""
        body += f"<section>{heading}{as_html(found)}"
        if figures and id(found) not in drawn:
            body += "".join(_embedded(figure, alt) for figure, alt in _figures(found))
        drawn.add(id(found))
        body += "</section>\n"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{NOTHING_FROM_OUTSIDE}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}</body></html>\n"
    )


def _figures(found: "Diagnosis") -> Iterator[tuple["Figure", str]]:
    """The figures that this diagnosis has, each with a text for those who cannot see it."""
    with course_extra("a page with figures"):
        from matplotlib.figure import Figure

    if found.started and found.drawing is not None:
        figure = Figure(figsize=(11, 9), layout="tight")
        draw(figure.subplots(2, 2), found)
        yield figure, PANELS
    if found.path:
        figure = Figure(figsize=(12, 7.5), layout="tight")
        draw_tree(figure.subplots(), found)
        yield figure, f"The tree of questions, with this path lit: {in_words(found.path)}"


def _embedded(figure: "Figure", alt: str) -> str:
    """A figure as pixels: a drawing by lines would hold the latents themselves."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=90)
    content = base64.b64encode(drawn.getvalue()).decode("ascii")
    return f'<p><img alt="{escape(alt)}" src="data:image/png;base64,{content}"></p>'
