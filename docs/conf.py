"""Settings of the website. `tools/book.py` lays out the source and calls Sphinx with these."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from notebook_tools import project as declared
from notebook_tools import repository

project = "vqnotes"
release = declared("version")

extensions = ["myst_nb", "sphinxcontrib.bibtex"]
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"
exclude_patterns = [".doctrees"]
templates_path = []

# Notebooks show the outputs that are stored in them, and pull no script for widgets.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
myst_heading_anchors = 3
bibtex_bibfiles = [str(Path(__file__).resolve().parent / "references.bib")]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

html_theme = "sphinx_book_theme"
html_title = "vqnotes"
html_static_path = ["book.css"]
html_css_files = ["book.css"]
html_sourcelink_suffix = ""  # so that a downloaded notebook is called .ipynb
html_theme_options = {
    "repository_url": f"https://github.com/{repository()}",
    "repository_branch": "main",
    "use_repository_button": True,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "show_toc_level": 2,
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],  # the search field stands in the side bar
    "footer_content_items": [],
}
html_context = {"default_mode": "auto"}


def mathml(formula, display):
    r"""As MathML. A bar that closes is a fence only in \left and \right, and hangs too low otherwise."""
    for side, bars in (("left", r"\\l[vV]ert\b"), ("right", r"\\r[vV]ert\b")):
        formula = re.sub(rf"(?<!\\{side})({bars})", rf"\\{side}\1", formula)
    return convert(formula, display=display)


def setup(app):
    """Formulas become MathML, which browsers set themselves: no script is fetched, and screen readers read them."""

    def inline(translator, node):
        translator.body.append(mathml(node.astext(), "inline"))
        raise SkipNode

    def block(translator, node):
        translator.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
        raise SkipNode

    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
