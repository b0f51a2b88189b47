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
    """The image as a file, in base64. kind: "jpeg", or "png" of 32 colours."""
    stored = io.BytesIO()
    (image if kind == "jpeg" else image.quantize(32)).save(stored, kind, quality=85, optimize=True)
    return base64.b64encode(stored.getvalue()).decode()
