"""Figures as image files small enough for a notebook."""

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def kind_of(figure: "Figure") -> str:
    """Which kind of file suits the figure: "jpeg" if it holds pictures, "png" for drawings."""
    return "jpeg" if any(ax.images for ax in figure.axes) else "png"


def encoded(image: "Image", kind: str) -> str:
    """The image as a file, in base64. kind: "jpeg", or "png" of 32 colours.

    They are chosen by how far they are apart: Pillow's default mixes rare ones, such as those of arms.
    """
    from PIL.Image import Quantize

    if kind == "png":
        image = image.quantize(32, Quantize.MAXCOVERAGE, kmeans=1)
    stored = io.BytesIO()
    image.save(stored, kind, quality=85, optimize=True)
    return base64.b64encode(stored.getvalue()).decode()
