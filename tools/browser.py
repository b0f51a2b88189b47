"""The notebooks as readers meet them: in JupyterLab as `make lab` starts it, in a real browser, moved by keyboard.

python tools/browser.py [--required] [--links] [--screenshots FOLDER] [NOTEBOOK ...]    all notebooks if none is named

Runs each. Finds errors, pictures that do not show, what a window 1280 pixels wide cuts off (with JupyterLab's file
browser open at the left, as `make lab` shows it, so that the narrowest case is tried), controls that do not change
their figure or have no label, what axe-core calls serious or critical, and links that lead nowhere. --links follows
the links only, and runs nothing.
Cells are counted from 1, texts included. All happens in a copy of the project: the notebooks' files stay as they are.
Needs Chromium and the packages playwright and axe-playwright-python; where one is missing, says so and passes, or
fails with --required.
"""

from __future__ import annotations  # the names of playwright may be missing

import argparse
import html
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from accessibility import JUPYTERLAB, NOTEBOOK, Axe, findings
from figure_faults import watched
from mutants import copy_of_the_project
from notebook_tools import HOURS, NOTEBOOKS, ROOT

from vqnotes._printing import say

try:
    from playwright.sync_api import Browser, Error, Locator, Page, sync_playwright
except ImportError:
    sync_playwright = None

PAUSE = 1500  # ms, six intervals of a Play button: so long nothing may change after it was stopped
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page, also those out of sight
}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
CONTROLS = {  # how often to move it, by which keys, and when by the second
    ".noUi-handle": (3, "ArrowRight", "ArrowLeft", "e => e.ariaValueNow === e.ariaValueMax"),
    ".widget-toggle-button:not(.mod-active)": (1, "Enter", "Enter", "() => false"),
}


def chromium() -> str | None:
    """The browser's program, or None where there is none."""
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    return next(filter(None, map(shutil.which, names)), None)


def command() -> list[str]:
    """What `make lab` runs: a program of the environment, and its arguments."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    line = re.search(r"^lab: .*\n\t\.venv/bin/(.+)$", makefile, re.M)[1]
    return shlex.split(line.replace("$(ARGS)", ""))


@contextmanager
def lab(folder: Path) -> Iterator[tuple[str, str]]:
    """JupyterLab as `make lab` starts it, in a copy of the project and with no settings of the user's own.

    Gives the address that opens for the reader, and that of any path, as a text with {} for the path.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | watched(folder / "ipython")
    for name in ("JUPYTER_CONFIG", "JUPYTER_DATA", "JUPYTER_RUNTIME", "JUPYTERLAB_SETTINGS", "JUPYTERLAB_WORKSPACES"):
        environment[f"{name}_DIR"] = str(folder / name)
    for name, values in SETTINGS.items():
        path = folder / "JUPYTERLAB_SETTINGS" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    flags = ["--no-browser", "--allow-root", "--LabApp.expose_app_in_browser=True"]
    options = {"env": environment, "cwd": folder / "project"}  # it takes a free port and a random token by itself
    with open(folder / "log", "wb") as log:  # in a session of its own, so that Ctrl-C reaches this script only
        server = subprocess.Popen(
            [sys.executable, "-m", *command(), *flags], stdout=log, stderr=log, start_new_session=True, **options
        )
    runtime = folder / "JUPYTER_RUNTIME" / f"jpserver-{server.pid}.json"
    first = runtime.with_name(f"jpserver-file-to-run-{server.pid}-open.html")  # written last
    try:
        deadline = time.monotonic() + HOURS
        while not first.exists() or "</html>" not in first.read_text(encoding="utf-8"):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("JupyterLab did not start:\n" + (folder / "log").read_text(encoding="utf-8"))
            time.sleep(0.2)
        started = json.loads(runtime.read_text(encoding="utf-8"))
        opened = html.unescape(re.search('href="([^"]+)"', first.read_text(encoding="utf-8"))[1])
        yield opened, f"{started['url']}{{}}?reset&token={started['token']}"
    finally:
        server.terminate()  # it ends its kernels
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


class Visit:
    """One notebook in one window: what was moved, how fast the figures changed, and what is wrong."""

    def __init__(self, page: Page, name: str, screenshots: Path | None):
        self.page, self.name, self.screenshots = page, name, screenshots
        self.problems, self.times, self.frames, self.controls, self.links = [], [], [], 0, 0
        self.aside = self.unsure = 0

    def keep(self, element, name: str) -> None:
        if self.screenshots:
            element.screenshot(path=self.screenshots / f"{self.name}_{name}.png")

    def look(self) -> None:
        """Notes what is wrong in the page as it stands."""
        faults = self.page.evaluate_handle("reader.faults()")
        for i, text in enumerate(faults.evaluate("faults => faults.map(fault => fault.text)")):
            self.problems.append(text)
            if "cut off" in text:
                element = faults.evaluate_handle("(faults, i) => faults[i].element", i).as_element()
                self.keep(element, re.sub(r"\W+", "_", text.split(":")[0]) + f"_cut_{i}")

    def judge(self) -> None:
        """Notes what axe-core finds in the notebook, how much is JupyterLab's own, and what it cannot tell."""
        found = findings(self.page, NOTEBOOK, JUPYTERLAB)
        self.problems += found.grave
        self.aside, self.unsure = sum(found.aside.values()), sum(found.unsure.values())

    def press(self, control: Locator, key: str) -> list[float]:
        """Presses a key on a control: after how many ms each change of the picture came."""
        self.page.evaluate("reader.changes = []")
        control.press(key)
        self.page.evaluate("reader.settled(1)")
        return self.page.evaluate("reader.changes")

    def explore(self, explorer: Locator, where: str) -> None:
        """Moves every control of one explorer."""
        image = explorer.locator(".vqnotes-figure img")
        if image.count() != 1 or not image.get_attribute("alt"):
            self.problems.append(f"{where}: not one picture with an alternative text")
            return
        explorer.evaluate("explorer => reader.watch(explorer)")
        self.keep(explorer, f"{where}_before")
        before = self.controls
        for kind, how in CONTROLS.items():
            for control in explorer.locator(kind).all():
                self.move(control, image, f"{where}, {kind}", *how)
        for play in explorer.locator(".widget-play").all():
            for slider in explorer.locator(".noUi-handle").all():
                slider.press("Home")  # so that there is a way to go
            self.page.evaluate("reader.settled()")
            self.play(play, where)
        if self.controls == before:
            self.problems.append(f"{where}: no controls")
        self.keep(explorer, f"{where}_after")

    def move(self, control: Locator, image: Locator, where: str, times: int, on: str, back: str, at_end: str) -> None:
        """Moves a slider on, and back from its end; presses a button."""
        self.controls += 1
        label = control.locator("xpath=ancestor::*[label][1]/label")
        name = label.inner_text().strip() if label.is_visible() else ""
        if not name:
            self.problems.append(f"{where} number {self.controls} has no label")
        for _ in range(times):
            alt = image.get_attribute("alt")
            came = self.press(control, back if control.evaluate(at_end) else on)
            self.times += came[:1]
            if not came:
                self.problems.append(f"{where} {name}: the picture does not change")
            elif image.get_attribute("alt") == alt:
                self.problems.append(f"{where} {name}: the picture changes, its alternative text does not")

    def play(self, play: Locator, where: str) -> None:
        """Starts Play and stops it."""
        self.controls += 1
        self.page.evaluate("reader.changes = []")
        play.locator("button:has(.fa-play)").press("Enter")
        self.page.wait_for_function("reader.changes.length >= 2")  # by itself, so nothing but patience can tell
        play.locator("button:has(.fa-stop)").press("Enter")
        self.page.evaluate("reader.settled().then(() => { reader.changes = []; })")  # a change was on its way
        self.page.wait_for_timeout(PAUSE)
        if self.page.evaluate("reader.changes.length"):
            self.problems.append(f"{where}: Play does not stop")

    def play_with(self, playground: Locator, where: str) -> None:
        """Lets a playground run, moves a code by the arrow keys, and notes how long its frames took."""
        self.controls += playground.locator("button, input").count()
        self.keep(playground, f"{where}_before")
        playground.get_by_role("button", name="Run").press("Enter")
        self.frames += self.page.evaluate("reader.frames(180)")
        playground.get_by_role("button", name="Pause").press("Enter")
        state = playground.locator("[data-figure=state]").inner_text()
        if not re.match(r"step [1-9]", state):
            self.problems.append(f"{where} does not run: {state}")
        code = playground.locator(".vqp-code").first
        before = code.get_attribute("transform")
        code.press("Shift+ArrowDown")  # which JupyterLab takes for itself, if it can
        code.press("PageDown")
        focused = "document.activeElement.getAttribute('aria-label')"
        if code.get_attribute("transform") == before or not self.page.evaluate(focused).startswith("Code 2 "):
            self.problems.append(f"{where}: keys do not move a code, or do not choose the next")
        self.keep(playground, f"{where}_after")

    def follow(self, opened: set[tuple], where: str = "") -> None:
        """Notes the links of the shown texts that lead nowhere, and opens each file that no link has opened yet."""
        for link in self.page.evaluate("reader.links()"):
            self.links += 1
            place = f"{where or 'cell'} {link['cell'] or ''}: the link {link['text']!r}".replace(" :", ":")
            file = link["path"], link["id"]
            if link["path"] is None:
                if not link["here"] and not link["written"].startswith("https://"):
                    self.problems.append(f"{place} leads nowhere")
            elif (
                status := self.page.evaluate("link => fetch(link.address).then(({status}) => status)", link)
            ) != 200:
                self.problems.append(f"{place} leads to {link['path']}, which answers {status}")
            elif file not in opened:
                opened.add(file)
                if wrong := self.page.evaluate("link => reader.open(link)", link):
                    self.problems.append(f"{place}: {wrong}")
                self.keep(self.page, re.sub(r"\W+", "_", f"opens_{link['path']}"))
                if link["path"].endswith(".md"):
                    self.follow(opened, link["path"])
                self.page.evaluate("reader.back()")


def visit(
    browser: Browser, address: str, path: Path, opened: set[tuple], run: bool, screenshots: Path | None
) -> list[str]:
    """Opens one notebook, runs it, moves its controls, follows its links, prints a line and gives the problems."""
    start = time.perf_counter()
    page = browser.new_page(viewport={"width": 1280, "height": 1600})  # so high that it holds any explorer
    page.set_default_timeout(1000 * HOURS)
    page.add_init_script(path=Path(__file__).with_suffix(".js"))
    page.route(re.compile("^https://"), lambda route: route.abort())  # the same without a network
    seen, explorers = Visit(page, path.stem, screenshots), []
    try:
        page.goto(address.format(f"lab/tree/notebooks/{path.name}"))
        page.get_by_text("| Idle").wait_for()  # the kernel, in the status bar
        if run:
            page.locator(".lm-MenuBar-item", has_text=re.compile("^Run$")).click()
            page.locator(".lm-Menu-item", has_text=re.compile("^Run All Cells$")).click()
            page.wait_for_function("reader.finished()")
            page.evaluate("reader.settled()")
            seen.look()
            explorers = page.locator(".vqnotes-explorer").all()
            for number, explorer in enumerate(explorers, 1):
                seen.explore(explorer, f"explorer_{number}")
            for number, playground in enumerate(page.locator(".vqnotes-playground").all(), 1):
                seen.play_with(playground, f"playground_{number}")
            seen.look()  # other captions stand there now
            seen.judge()
        seen.follow(opened)
    except Error as error:
        seen.problems.append(f"given up: {error}")
        seen.keep(page, "given_up")
    speed = f", {statistics.median(seen.times):.0f} ms for a change (median)" if seen.times else ""
    if seen.frames:
        speed += f", {statistics.median(seen.frames):.1f} ms a frame of the playground (median)"
    notebook = page.locator(".jp-Notebook").first  # links may have opened others
    cells, figures = (notebook.locator(what).count() for what in (".jp-Cell", ".jp-OutputArea img"))
    print(
        f"{path.name}: {time.perf_counter() - start:.0f} s, {cells} cells, {figures} figures, {len(explorers)}"
        f" explorers, {seen.controls} controls moved, {seen.links} links followed{speed}, {seen.aside} findings of"
        f" JupyterLab's own set aside, {seen.unsure} texts of which axe cannot tell the contrast",
        flush=True,
    )
    for session in page.request.get(address.format("api/sessions"), timeout=0).json():  # end its kernel
        page.request.delete(address.format(f"api/sessions/{session['id']}"), timeout=0)
    page.close()
    return [f"{path.name}, {problem}" for problem in dict.fromkeys(seen.problems)]  # each once


def welcome(browser: Browser, address: str, screenshots: Path | None) -> list[str]:
    """What is wrong with the first page that `make lab` shows: it should be the first notebook."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(1000 * HOURS)
    page.goto(address)
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.context?.path")
    shown = page.evaluate("jupyterapp.shell.currentWidget.context.path")
    if screenshots:
        page.get_by_text("| Idle").wait_for()
        page.screenshot(path=screenshots / "welcome.png")
    page.close()
    return [] if shown == f"notebooks/{NOTEBOOKS[0].name}" else [f"`make lab` opens {shown}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", metavar="NOTEBOOK", nargs="*", type=Path, default=NOTEBOOKS)
    parser.add_argument("--required", action="store_true", help="fail where Chromium or playwright is missing")
    parser.add_argument("--links", action="store_true", help="follow the links, and run nothing")
    parser.add_argument("--screenshots", metavar="FOLDER", type=Path, help="keep pictures of explorers and of cuts")
    options = parser.parse_args()
    program = chromium()
    absent = sync_playwright is None or Axe is None
    missing = "playwright or axe-playwright-python is not installed" if absent else "there is no Chromium"
    if absent or program is None:
        print(f"SKIPPED: the notebooks were not tried in a browser because {missing}")
        return int(options.required)
    if options.screenshots:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends Lab and Chromium as Ctrl-C does
    problems = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        project = copy_of_the_project(folder / "project")
        for path in options.notebooks:
            notebook = nbformat.read(path, as_version=4)
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    cell.execution_count = None  # so that a number says: it has run
            nbformat.write(notebook, project / "notebooks" / path.name)
        with lab(folder) as (first, address), sync_playwright() as playwright:
            environment = os.environ | {"TMPDIR": name}
            browser = playwright.chromium.launch(executable_path=program, args=FLAGS, env=environment, timeout=0)
            problems += welcome(browser, first, options.screenshots)
            opened: set[tuple] = set()  # by a link
            for path in options.notebooks:
                problems += visit(browser, address, path, opened, not options.links, options.screenshots)
            browser.close()
    for problem in problems:
        say(problem)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
