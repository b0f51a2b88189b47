"""What axe-core finds in a page: of the website, and of a notebook in JupyterLab. Serious and critical findings only.

python tools/accessibility.py     every page of the website in build/book, bright and dark, wide and narrow

Everything that is folded is unfolded first, since axe looks at what is shown. What is JupyterLab's own is set aside
by name, with a reason, and counted: never silently.
"""

from __future__ import annotations  # the names of playwright may be missing

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vqnotes._printing import say

if TYPE_CHECKING:
    from playwright.sync_api import Page

try:
    from axe_playwright_python.sync_playwright import Axe
except ImportError:
    Axe = None

GRAVE = ("serious", "critical")
CONTRAST = "color-contrast"
JUPYTERLAB = {  # rule, and which elements it is said of: why it is not ours to mend
    ("aria-input-field-name", ".cm-content"): "JupyterLab gives the editor of a cell no name",
    ("aria-required-children", ".jp-WindowedPanel-viewport"): "JupyterLab calls its list of cells a feed of articles",
    ("button-name", ".jp-collapseHeadingButton"): "JupyterLab's button beside a heading has no name",
    ("aria-input-field-name", ".noUi-handle"): "ipywidgets gives a slider no name: its label is beside it",
    ("button-name", ".widget-play button"): "ipywidgets gives the buttons of Play signs and no names",
    (CONTRAST, ".cm-content *"): "JupyterLab's colours of code",
    (CONTRAST, ".jp-InputPrompt"): "JupyterLab's colour of the number of the cell at hand",
}
NOTEBOOK = ".jp-Notebook"
# JupyterLab gives a picture in a text, or in an output of HTML, this word where it has no alternative text: axe is
# content with it.
STAND_IN = ".jp-Notebook img[alt=Image]"
UNFOLD = "document.querySelectorAll('details').forEach(one => { one.open = true; })"
STILL = "*, ::before, ::after { transition: none !important; animation: none !important; }"
# What is out of sight in JupyterLab counts as hidden for axe, and all that lies in a body without a height: their
# colours would not be looked at.
WHOLE = """() => {
  for (const one of [document.documentElement, document.body]) one.style.height = '100vh';
  return document.querySelector('.jp-WindowedPanel-viewport').scrollHeight;
}"""
MATCHES = "([target, selector]) => document.querySelector(target).matches(selector)"


@dataclass
class Found:
    """Serious and critical findings, how many each reason has set aside, and how many rules were passed.

    unsure: of how many texts axe cannot tell the contrast, by what it says of them.
    """

    grave: list[str] = field(default_factory=list)
    aside: dict[str, int] = field(default_factory=dict)
    unsure: dict[str, int] = field(default_factory=dict)
    passed: int = 0


def findings(page: Page, within: str | None = None, aside: dict[tuple[str, str], str] | None = None) -> Found:
    """What axe finds in a page that is open, or in one part of it, given by a selector.

    aside: rule and selector of what is set aside, with the reason.
    """
    page.add_style_tag(content=STILL)
    page.evaluate(UNFOLD)
    if within == NOTEBOOK:
        height = page.evaluate(WHOLE)
        page.set_viewport_size({"width": page.viewport_size["width"], "height": height + 600})
        page.wait_for_function("height => document.querySelector('.jp-Notebook').clientHeight > height", arg=height)
    answer = Axe().run(page, within, {"resultTypes": ["violations", "incomplete"]}).response
    found = Found()
    for image in page.locator(STAND_IN).all():
        html = image.evaluate("image => image.outerHTML")
        found.grave.append(f"alt-of-jupyterlab (critical): {html[:160]}: a picture without an alternative text")
    if CONTRAST not in {rule["id"] for rule in (*answer["passes"], *answer["violations"])}:
        found.grave.append(f"{CONTRAST}: axe could tell the colours of no text")
    for rule in answer["incomplete"]:
        for node in rule["nodes"] if rule["id"] == CONTRAST else []:
            said = node["any"][0]["message"]
            found.unsure[said] = found.unsure.get(said, 0) + 1
    for violation in answer["violations"]:
        for node in violation["nodes"] if violation["impact"] in GRAVE else []:
            known = reason(page, violation["id"], node["target"][-1], aside or {})
            if known:
                found.aside[known] = found.aside.get(known, 0) + 1
            else:
                said = "; ".join(check["message"] for kind in ("any", "all", "none") for check in node[kind])
                found.grave.append(f"{violation['id']} ({violation['impact']}): {node['html'][:160]}: {said}")
    found.passed = len(answer["passes"])
    return found


def reason(page: Page, rule: str, target: str, aside: dict[tuple[str, str], str]) -> str | None:
    """Why a finding is set aside, by its rule and the element it is said of."""
    for (name, selector), why in aside.items():
        if name == rule and page.evaluate(MATCHES, [target, selector]):
            return why
    return None


def site(folder: Path, pages: list[str], mode: str, width: int = 1280) -> dict[str, Found]:
    """What is found in pages of a website on disk. mode: light or dark; width: of the window, in pixels."""
    from browser import FLAGS, HOURS, chromium, sync_playwright

    seen = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS, timeout=0)
        # so high that nothing lies below something else, where axe could not tell the colours
        look = {"viewport": {"width": width, "height": 9000}, "color_scheme": mode, "offline": True}
        for address in pages:
            page = browser.new_page(**look)
            page.set_default_timeout(1000 * HOURS)
            page.goto((folder / address).as_uri())
            assert page.evaluate("document.documentElement.dataset.theme") == mode, address
            seen[address] = findings(page)
            page.close()
        browser.close()
    return seen


def main(folder: Path) -> int:
    pages = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*.html") if "_static" not in path.parts
    )
    problems = unsure = 0
    for mode, width in (("light", 1280), ("dark", 1280), ("light", 390)):
        for address, found in site(folder, pages, mode, width).items():
            problems += len(found.grave)
            unsure += sum(found.unsure.values())
            for text in found.grave:
                say(f"{address}, {mode}, {width} pixels: {text}")
    say(
        f"{len(pages)} pages, {problems} serious or critical findings, {unsure} texts of which axe cannot tell the"
        " contrast"
    )
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent.parent / "build" / "book"))
