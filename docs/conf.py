"""Settings of the website. `tools/book.py` lays out the source and calls Sphinx with these."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from notebook_tools import project as declared
from notebook_tools import repository

project = "vqnotes"
release = declared("version")

extensions = ["myst_nb", "sphinxcontrib.bibtex", "sphinx.ext.autodoc"]
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"
autodoc_member_order = "bysource"
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


def as_rst(text: str) -> str:
    """A paragraph of a docstring as reStructuredText that shows it as it is: code in backticks, lines kept."""
    parts = re.split(r"(`+[^`]+`+)", text)
    safe = [
        f"``{part.strip('`')}``" if i % 2 else re.sub(r"([*_|\\])", r"\\\1", part) for i, part in enumerate(parts)
    ]
    lines = "".join(safe).splitlines()
    if all(line.startswith(" ") for line in text.splitlines()) or ">>>" in text:
        return "::\n\n" + "\n".join(f"    {line}" for line in text.splitlines())
    if any(line.startswith((" ", "- ", "1. ")) for line in lines):
        return "\n".join(f"| {line}" for line in lines)
    return "\n".join(lines)


def rewrite(app, what, name, obj, options, lines):
    """Docstrings are written to be read in `help`."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    lines[:] = "\n\n".join(as_rst(one) for one in paragraphs if one.strip()).splitlines() + [""]


def left_out(app, what, name, obj, skip, options):
    """The fields of named tuples have docstrings that say nothing."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def entries_of_a_list(app, pagename, templatename, context, doctree):
    """A list of papers has entries of a role that may not stand in a list any more (WAI-ARIA 1.3)."""
    context["body"] = context.get("body", "").replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app):
    """Formulas become MathML, which browsers set themselves: no script is fetched, and screen readers read them."""

    def inline(translator, node):
        translator.body.append(mathml(node.astext(), "inline"))
        raise SkipNode

    def block(translator, node):
        translator.body.append(f'<div class="math" tabindex="0">{mathml(node.astext(), "block")}</div>')
        raise SkipNode

    app.connect("autodoc-process-docstring", rewrite)
    app.connect("autodoc-skip-member", left_out)
    app.connect("html-page-context", entries_of_a_list)
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
