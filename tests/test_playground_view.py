"""The playground as readers meet it: in Chromium, by mouse, by keys, on a phone, where nothing may move by itself."""

import itertools
import json

import pytest
import torch
from browser import chromium, sync_playwright
from notebook_tools import HOURS
from test_playground import STEPS, same

from vqnotes.course import playground
from vqnotes.course.playground import Training, plane
from vqnotes.nearest import nearest_code

if sync_playwright is None or chromium() is None:
    pytest.skip("the playground is tried in Chromium by playwright, and one is missing", allow_module_level=True)

PAGE = """<!doctype html><meta name="viewport" content="width=device-width"><body><div id="here"></div>
<script type="module">
%s
window.core = {begin, figures, step, unpacked};
window.leave = mount(document.getElementById('here'), %s);
window.ready = true; // `wait_for_function` would call a function
</script>"""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        running = playwright.chromium.launch(executable_path=chromium(), args=flags, timeout=0)
        yield running
        running.close()


@pytest.fixture
def opened(browser):
    """Opens a playground in a page of its own. At the end nothing may have gone wrong, and nothing been asked for."""
    pages, wrong = [], []

    def opens(given, width=900, **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, offline=True, **options)
        page.set_default_timeout(1000 * HOURS)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("request", lambda request: wrong.append(request.url))
        page.set_content(PAGE % (playground.SCRIPT.read_text(encoding="utf-8"), json.dumps(given)))
        page.wait_for_function("window.ready")
        pages.append(page)
        return page

    yield opens
    for page in pages:
        page.close()
    assert not wrong


def step_of(page):
    return int(page.locator("[data-figure=state]").inner_text().split()[1])


def figure(page, name="perplexity"):
    return float(page.locator(f"[data-figure={name}]").inner_text())


def press(page, name):
    page.get_by_role("button", name=name, exact=True).press("Enter")


def reached(page, step):
    page.wait_for_function(f"+document.querySelector('[data-figure=state]').textContent.split(' ')[1] >= {step}")


def test_a_browser_takes_the_steps_of_the_module(opened):
    given, training = plane("remedies", seed=4), None
    options = {"rule": "EMA", "drift": 0.03, "follow": 0.01, "remedy": "LRU"}
    asked = {"plane": given, "options": options, "counts": [40, 120]}
    program = f"given => new Function('core', 'given', {json.dumps(STEPS)})(core, given)"
    training = Training(given, "EMA", 0.01, "LRU")
    for count, seen in zip([40, 120], opened(given).evaluate(program, asked)):
        training.advance(count, 0.03)
        same(seen, training)


@pytest.mark.parametrize("preset", playground.PRESETS)
def test_what_it_shows_after_some_steps_is_what_the_module_has(opened, preset):
    given = plane(preset, seed=6)
    page, training = opened(given), Training(given, given["rule"], given["follow"])
    for count in (0, 3):
        for _ in range(count):
            press(page, "Step")
        training.advance(count, given["drift"])
        moment = training.as_moment("")
        for name in ("perplexity", "gap", "modes"):
            shown = figure(page, name)
            assert shown == pytest.approx(getattr(moment, name), abs=0.051 if shown < 100 else 0.51), name
        assert f"step {count} · {moment.live} of {given['codebook_size']} codes live" in page.inner_text("body")
    assert f"Step 3: Perplexity {moment.perplexity:.1f}" in page.get_by_role("status").inner_text()


def test_drift_collapses_the_codebook_and_a_warm_up_cures_it(opened):
    page = opened(plane("drift", seed=0))
    begun = figure(page)
    press(page, "Run")
    reached(page, 150)
    press(page, "Pause")
    assert figure(page) < begun / 2 and step_of(page) >= 150
    stopped = step_of(page)
    page.get_by_role("button", name="warm-up").press("Enter")
    reached(page, stopped + 50)
    press(page, "Pause")
    assert figure(page) > 50 and figure(page, "gap") < 1.3


def test_a_remedy_brings_codes_back_and_is_one_at_a_time(opened):
    page = opened(plane("remedies", seed=0))
    press(page, "Run")
    reached(page, 60)
    assert figure(page) < 20
    press(page, "CVQ")
    press(page, "least recently used (LRU)")
    assert [one.inner_text() for one in page.locator("[aria-pressed=true]").all()] == ["least recently used (LRU)"]
    reached(page, step_of(page) + 120)
    press(page, "Pause")
    assert figure(page) > 25
    press(page, "least recently used (LRU)")
    assert page.locator("[aria-pressed=true]").count() == 0
    press(page, "Start anew")
    assert step_of(page) == 0


def deadly_corner(given):
    """A corner of the plane where no latent would choose the first code: whether right, whether below."""
    latents, codes = Training(given, "Lloyd", 1).now()
    for right, down in itertools.product([0, 1], repeat=2):
        codes[0] = 1.06 * latents.abs().max() * torch.tensor([2 * right - 1, 1 - 2 * down])
        if not (nearest_code(latents, codes) == 0).any():
            return right, down
    raise AssertionError("each corner is the nearest code of some latent")


def test_codes_are_dragged_by_the_mouse_and_die_where_no_latent_is(opened):
    given = plane("lloyd", seed=0)
    right, down = deadly_corner(given)
    page = opened(given)
    code, svg = page.locator(".vqp-code").first, page.locator("svg").bounding_box()
    before, live = figure(page), code.get_attribute("aria-label")
    assert "live" in live
    box = code.locator(".live").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(svg["x"] + svg["width"] / 2, svg["y"] + 90, steps=3)
    page.mouse.move(svg["x"] + (0.01 + 0.98 * right) * svg["width"], svg["y"] + (0.01 + 0.98 * down) * svg["height"])
    page.mouse.up()
    page.wait_for_function("document.querySelector('[role=status]').textContent.includes('Code 1 of 10, dead')")
    assert "is-dead" in code.get_attribute("class") and figure(page) < before
    press(page, "Step")
    assert "dead" in code.get_attribute("aria-label"), "a code that no latent chooses stays where it is"


def test_codes_are_moved_and_chosen_by_keys(opened):
    page = opened(plane("lloyd", seed=0))
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.vqp-code')"):
            break
    place = "[...document.activeElement.getAttribute('aria-label').matchAll(/[xy] (-?[\\d.]+)/g)].map(one => +one[1])"
    page.keyboard.press("PageDown")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Code 2 of 10, live")
    x, y = page.evaluate(place)
    for key in ("ArrowRight", "ArrowUp", "Shift+ArrowUp"):
        page.keyboard.press(key)
    page.wait_for_function("document.querySelector('[role=status]').textContent.startsWith('Code 2 of 10')")
    moved = page.evaluate(place)
    assert moved[0] > x and (moved[1] - y) / (moved[0] - x) == pytest.approx(11, rel=0.2)
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Code 10 of 10")
    assert page.locator(".vqp-code[tabindex='0']").count() == 1, "one stop for the Tab key, not one a code"


def test_sliders_and_rules_say_what_they_are_set_to(opened):
    page = opened(plane("remedies", seed=0))
    follow, drift = page.get_by_label("Codes follow"), page.get_by_label("Encoder spreads latents")
    assert drift.get_attribute("aria-valuetext") == "3 % a step"
    assert follow.get_attribute("aria-valuetext") == "1 % a step (decay 0.990)"
    follow.press("End")
    assert follow.get_attribute("aria-valuetext") == "100 % a step (decay 0.000)"
    page.get_by_role("radio", name="gradient").check()
    assert follow.get_attribute("aria-valuetext") == "learning rate 1.0"
    page.get_by_role("radio", name="Lloyd").check()
    assert follow.is_disabled()
    for kind in ("button", "slider", "radio"):
        for one in page.get_by_role(kind).all():
            named = one.get_attribute("aria-label") or one.evaluate("one => one.innerText || one.labels[0].innerText")
            assert named.strip(), kind


def test_nothing_moves_by_itself_where_motion_is_not_wanted(opened):
    page = opened(plane("drift", seed=0), reduced_motion="reduce")
    press(page, "Run 60 steps")
    assert step_of(page) == 60
    page.get_by_role("button", name="warm-up").press("Enter")
    assert step_of(page) % 60 == 0 and figure(page) > 50


@pytest.mark.parametrize("width", [320, 375, 700, 1280])
def test_it_fits(opened, width):
    page = opened(plane("remedies", seed=0), width=width)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = [one.bounding_box() for one in page.locator("button, input[type=range], .vqp-plane").all()]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] > 10 for box in boxes)


def test_it_can_be_taken_away_while_it_runs(opened):
    page = opened(plane("lloyd", seed=0))
    press(page, "Run")
    page.evaluate("leave()")
    page.evaluate("new Promise(requestAnimationFrame)")
    assert page.locator(".vqnotes-playground").count() == 0
