"""A notebook in JupyterLab for who cannot see it: no serious finding of axe-core, and every picture with its text."""

import re
from types import SimpleNamespace

import nbformat
import pytest
from accessibility import CONTRAST, JUPYTERLAB, NOTEBOOK, Axe, findings, reason
from browser import FLAGS, chromium, lab, sync_playwright
from mutants import copy_of_the_project
from notebook_tools import HOURS, METADATA, ROOT

pytest.importorskip("jupyterlab", reason="a notebook is opened in JupyterLab")
if Axe is None or sync_playwright is None or chromium() is None:
    pytest.skip("axe-playwright-python, playwright or Chromium is missing", allow_module_level=True)

ALT = 'A line that rises, from 0 to 1 & "on".'
DOT = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw=="
TEXT = "# 99 · An example?\n\nA formula $e_k$, **words**, and [a link](99.ipynb) among them."
SOURCES = [
    """\
import matplotlib.pyplot as plt
import pandas as pd

from vqnotes import plots
from vqnotes.course.explorers import explore, explore_tree
from vqnotes.course.playground import show_playground

plots.use_style()""",
    f"""\
fig, ax = plt.subplots()
ax.plot([0, 1])
plots.show(fig, {ALT!r})""",
    """\
def frame(step, start):
    fig, ax = plt.subplots()
    ax.plot([0, step])
    return fig, f"{start}, step {step}."


explore(frame, {"step": range(3), "start": ["one", "other"]}, play="step")""",
    "explore_tree()",
    'show_playground("remedies", seed=1)',
    'pd.DataFrame({"gap": [1.5]}, index=["warm-up"])',
    f"from IPython.display import HTML\n\nHTML('<img width=30 height=30 src={DOT}>')",  # with no alternative text
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A notebook with all that the course shows, in JupyterLab as `make lab` starts it, after it has run."""
    folder = tmp_path_factory.mktemp("lab")
    project = copy_of_the_project(folder / "project")
    cells = [nbformat.v4.new_markdown_cell(TEXT)]
    cells += [nbformat.v4.new_code_cell(source) for source in SOURCES]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=METADATA), project / "notebooks" / "99.ipynb")
    with lab(folder) as (_, address), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS, timeout=0)
        page = browser.new_page(viewport={"width": 1280, "height": 1600})
        page.set_default_timeout(1000 * HOURS)
        page.add_init_script(path=ROOT / "tools" / "browser.js")
        page.route(re.compile("^https://"), lambda route: route.abort())
        page.goto(address.format("lab/tree/notebooks/99.ipynb"))
        page.get_by_text("| Idle").wait_for()
        page.locator(".lm-MenuBar-item", has_text=re.compile("^Run$")).click()
        page.locator(".lm-Menu-item", has_text=re.compile("^Run All Cells$")).click()
        page.wait_for_function("reader.finished()")
        page.evaluate("reader.settled()")
        page.locator(".jp-MarkdownCell").first.click()  # the button beside a heading shows in the cell at hand
        found = findings(page, NOTEBOOK, JUPYTERLAB)
        page.locator(".jp-CodeCell .jp-InputPrompt").first.click()
        yield SimpleNamespace(page=page, found=found, later=findings(page, NOTEBOOK, JUPYTERLAB))
        browser.close()


def test_the_notebook_has_run(opened):
    assert opened.page.evaluate("reader.faults().map(fault => fault.text)") == []
    for kind in (".vqnotes-explorer", ".vqnotes-playground", ".jp-RenderedImage img", ".dataframe"):
        assert opened.page.locator(kind).count(), kind


def test_nothing_that_is_ours_is_serious(opened):
    """The last cell's picture has no alternative text, and JupyterLab gives it one that says nothing."""
    for found in (opened.found, opened.later):
        assert [text.split()[0] for text in found.grave] == ["alt-of-jupyterlab"], "\n".join(found.grave)
        assert "<img" in found.grave[0] and found.passed > 20


def test_what_is_set_aside_is_still_there(opened):
    """Once JupyterLab has mended it, its line goes."""
    assert {*opened.found.aside, *opened.later.aside} == set(JUPYTERLAB.values())


PLACES = """targets => {
  const shown = [...document.querySelectorAll('.jp-InputArea-editor, .jp-RenderedMarkdown, .jp-OutputArea-output')];
  const seen = targets.map(one => document.querySelector(one));
  const read = shown.filter(one => one.checkVisibility() && one.innerText.trim());
  return [read.length, read.filter(one => !seen.some(text => one.contains(text))).map(one => one.innerText)];
}"""


def test_the_colours_of_every_text_are_looked_at(opened):
    """Also of what is out of sight: each code, text and output holds one that axe could judge."""
    answer = Axe().run(opened.page, NOTEBOOK, {"runOnly": [CONTRAST]}).response
    judged = [rule["nodes"] for kind in ("passes", "violations") for rule in answer[kind]]
    judged = [node["target"][-1] for nodes in judged for node in nodes]
    count, left = opened.page.evaluate(PLACES, judged)
    assert count >= len(SOURCES) + 5 and left == []  # the text and four outputs
    assert sum(opened.found.unsure.values()) < len(judged) / 5


def test_a_picture_has_its_alternative_text(opened):
    images = opened.page.locator(".jp-RenderedImage img")
    assert [one.get_attribute("alt") for one in images.all()] == [ALT]


DEFECTS = {
    "image-alt": "root.querySelector('.jp-RenderedImage img').removeAttribute('alt')",
    "link-in-text-block": "root.querySelector('a[href]:not(.jp-InternalAnchorLink)').style.textDecoration = 'none'",
    "color-contrast": "root.querySelector('.vqp-help').style.color = '#999'",
    "label": "root.querySelector('.vqp-slider').replaceWith(root.querySelector('.vqp-slider input'))",
    "button-name": "root.querySelector('[data-do=run]').textContent = ''",
}


@pytest.mark.parametrize("rule", DEFECTS)
def test_a_planted_defect_is_found(opened, rule):
    """Last, since the page stays as it is then."""
    opened.page.evaluate(f"(() => {{ const root = document.querySelector('.jp-Notebook'); {DEFECTS[rule]}; }})()")
    assert any(text.startswith(f"{rule} (") for text in findings(opened.page, NOTEBOOK, JUPYTERLAB).grave)


def test_only_what_is_named_is_set_aside_and_by_its_rule_only(opened):
    aside = {("button-name", ".jp-collapseHeadingButton"): "why"}
    target = ".jp-collapseHeadingButton"
    assert reason(opened.page, "button-name", target, aside) == "why"
    assert reason(opened.page, "image-alt", target, aside) is None
    assert reason(opened.page, "button-name", "[data-do=run]", aside) is None
