"""The website that `make book` makes: complete, without a broken link, with a description of every picture."""

import base64
import importlib.metadata
import json
import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from accessibility import Axe, site
from browser import FLAGS, chromium, sync_playwright
from notebook_tools import HOURS, METADATA, NOTEBOOKS, ROOT, WIDGET, badge, clean, pictures, repository
from served import listening
from test_notebooks import each_notebook, read

from vqnotes.course import playground

for needed in ("sphinx", "myst_nb", "sphinx_book_theme", "sphinxcontrib.bibtex"):
    pytest.importorskip(needed, reason="the website needs the extra `book`")

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # between Sphinx and its extensions

PATIENCE = 1000 * HOURS  # ms: as long as all tests wait
ALT = 'A [b] *c* _d_ `e` <f> & "g" \\ h.'
DOT = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
EXERCISE = """\
# 99 · An exercise?

<details>
<summary>Solution</summary>

Look at the **first** line.

```python
solution = 42
```

</details>
"""


def example():
    """A notebook with what the others have, or will have: a folded solution, widgets, an awkward picture."""
    widget = {WIDGET: {"model_id": "", "version_major": 2, "version_minor": 0}, "text/plain": ""}
    picture = {"image/png": base64.b64encode(DOT).decode(), "text/plain": "<figure>"}
    shown = [(widget, {}), (picture, {"image/png": {"alt": ALT}})]
    outputs = [nbformat.v4.new_output("display_data", data, metadata=metadata) for data, metadata in shown]
    cells = [nbformat.v4.new_markdown_cell(EXERCISE)]
    cells += [nbformat.v4.new_code_cell(source, outputs=outputs) for source in ("explore(model)", "fit(model)")]
    cells.append(nbformat.v4.new_code_cell("show_playground('drift', seed=7)", outputs=[played()]))
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def as_written(book, alt):
    """A description as the site has it: all of it, but from MyST below 5, as on Python 3.10, not what was escaped."""
    return (
        alt
        if int(importlib.metadata.version("myst-parser").split(".")[0]) >= 5
        else re.sub(book.tool.ESCAPED, "", alt)
    )


in_a_browser = pytest.mark.skipif(
    sync_playwright is None or chromium() is None, reason="Chromium or playwright is missing"
)
FETCHED = {
    "img",
    "script",
    "iframe",
    "embed",
    "object",
    "video",
    "audio",
    "source",
    "track",
    "input",
}  # by the browser
FOLLOWED = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}
IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?\s*((?:https?:)?//[^"')\s]+)""")


def played():
    """The output of a playground, as a notebook keeps it."""
    data, _ = playground.Playground("drift", seed=7)._repr_mimebundle_()
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data)])]
    clean(notebook)
    return notebook.cells[0].outputs[0]


class Page(HTMLParser):
    """What the tests ask of a page: its links, its ids, its images, its scripts, and what is fetched for it."""

    def __init__(self, path):
        super().__init__()
        self.path, self.text = path, path.read_text(encoding="utf-8")
        self.links, self.ids, self.images, self.scripts = [], set(), [], []
        self.fetched = IN_STYLE.findall(self.text)
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.links += [found[name] for name in ("href", "src", "action") if found.get(name)]
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag in FETCHED or (tag == "link" and FOLLOWED & set(found.get("rel", "").split())):
            held = [found.get(name) or "" for name in ("src", "href", "data", "poster", "srcset")]
            self.fetched += [one for one in held if re.match(r"(https?:)?//", one)]
        if tag == "img":
            self.images.append(found)
        if tag == "script":
            self.scripts.append(found.get("src", ""))


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The website with the example beside the notebooks, built once, and its pages by their addresses."""
    folder = tmp_path_factory.mktemp("website")
    nbformat.write(example(), folder / "99_example.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
        tool = importlib.import_module("book")
        patch.setattr(tool, "NOTEBOOKS", [*NOTEBOOKS, folder / "99_example.ipynb"])
        assert tool.build(folder / "book") == 0, "a warning is an error"
    pages = {path.relative_to(folder / "book").as_posix(): path for path in (folder / "book").rglob("*.html")}
    pages = {address: Page(path) for address, path in pages.items() if not address.startswith("_static/")}
    return SimpleNamespace(tool=tool, folder=folder / "book", pages=pages)


def page_of(book, path):
    return book.pages[f"{path.parent.name}/{path.stem}.html"]


def test_every_notebook_and_page_is_in_the_navigation_of_every_page(book):
    wanted = [f"notebooks/{path.stem}.html" for path in NOTEBOOKS]
    wanted += [f"docs/{path.stem}.html" for path in book.tool.PAGES]
    wanted += [f"api/{name}.html" for name in sorted(book.tool.API)]
    assert {"docs/cheatsheet.html", "docs/glossary.html", "docs/references.html"} < set(wanted)
    found = re.findall(r'toctree-l1"><a [^>]*href="([^"#]+)"', book.pages["index.html"].text)
    order = [address for address in dict.fromkeys(found) if "99_example" not in address]
    assert order == wanted, "the notebooks in order, then the pages, then the modules"
    for page in book.pages.values():
        names = {unquote(link).rsplit("/", 1)[-1] for link in page.links}
        assert {address.rsplit("/", 1)[-1] for address in wanted} - {page.path.name} <= names, page.path


def test_no_link_and_no_anchor_is_broken(book):
    by_path = {page.path: page for page in book.pages.values()}
    for page in book.pages.values():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            assert target.is_file(), f"{page.path.name}: {link}"
            if parts.fragment and target in by_path:
                assert unquote(parts.fragment) in by_path[target].ids, f"{page.path.name}: {link}"


def test_links_to_other_places_are_https(book):
    for page in book.pages.values():
        schemes = {urlsplit(link).scheme for link in page.links} - {""}
        assert schemes <= {"https", "data"}, (page.path, schemes)
        assert not any(link.startswith("//") for link in page.links)


def test_every_picture_is_described(book):
    for page in book.pages.values():
        for image in page.images:
            assert image.get("alt", "").strip(), (page.path.name, image)
    assert [image["alt"] for image in book.pages["notebooks/99_example.html"].images].count(
        as_written(book, ALT)
    ) == 2


@each_notebook
def test_a_notebook_shows_its_pictures_with_their_own_descriptions(book, path):
    page = page_of(book, path)
    here = [image for image in page.images if image["src"].startswith("../_images/")]
    here = [image for image in here if not image["src"].endswith("open_in_colab.svg")]
    shown = [((page.path.parent / image["src"]).read_bytes(), image["alt"]) for image in here]
    assert shown == [(picture, as_written(book, alt)) for picture, alt in pictures(read(path))]


@each_notebook
def test_the_colab_buttons_open_this_notebook(book, path):
    links = [
        link for link in page_of(book, path).links if link.startswith("https://colab.research.google.com/github")
    ]
    assert len(links) >= 2, "the badge and the button of the theme"
    assert {f"({link})" for link in links} == {badge(path)[badge(path).rindex("(") :]}


@each_notebook
def test_the_notebook_to_download_is_the_notebook(book, path):
    assert f"../_sources/notebooks/{path.name}" in page_of(book, path).links
    assert (book.folder / "_sources" / "notebooks" / path.name).read_bytes() == path.read_bytes()


def test_what_a_browser_fetches_is_seen_in_any_form(tmp_path):
    (tmp_path / "page.html").write_text(
        """<link rel="shortcut icon" href="https://a.org/i"><img src="//c.org/p">
        <link rel="canonical" href="https://b.org/">
        <style>@import "https://d.org/s"; p { background: url( 'http://e.org/f') }</style><a href="https://f.org">g</a>
        <video poster="https://h.org/v"></video><script src="_static/own.js"></script><iframe src="https://i.org"></iframe>""",
        encoding="utf-8",
    )
    hosts = [urlsplit(one).netloc[0] for one in Page(tmp_path / "page.html").fetched]
    assert sorted(hosts) == ["a", "c", "d", "e", "h", "i"]


def test_no_page_asks_another_server_for_anything(book):
    for page in book.pages.values():
        assert page.fetched == [], page.path
        assert not re.search("vnd.jupyter.widget|embed-amd|require.min.js", page.text), page.path
    for path in (book.folder / "_static").rglob("*.css"):
        assert not IN_STYLE.findall(path.read_text(encoding="utf-8")), path


@in_a_browser
def test_a_browser_without_a_network_shows_the_pages_and_asks_for_nothing(book):
    """Scripts are run here, which the test above only reads past."""
    outside, wrong = [], []
    with listening(book.folder, secure=False) as site, sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        window = started.new_page()
        window.set_default_timeout(PATIENCE)
        elsewhere = re.compile(f"^(?!{re.escape(site.address)}|data:|blob:)")
        window.route(elsewhere, lambda route: (outside.append(route.request.url), route.abort()))
        window.on("pageerror", lambda error: wrong.append(str(error)))
        for address in ("index.html", "notebooks/99_example.html", "docs/glossary.html", "api/metrics.html"):
            window.goto(site.address + address, wait_until="load", timeout=PATIENCE)
            assert window.locator("article h1").is_visible(), address
            assert window.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)"), address
        window.goto(f"{site.address}search.html?q=perplexity", timeout=PATIENCE)
        window.wait_for_selector("#search-results li a")
        switch, dark = (
            window.locator(f"button.theme-{one}")
            for one in ("switch-button:visible", "change-button[data-mode=dark]")
        )
        while window.evaluate("document.documentElement.dataset.theme") != "dark":
            switch.click()  # opens the menu; again if it was not ready yet, or has closed
            if dark.is_visible():
                dark.dispatch_event("click")
        started.close()
    assert outside == [] and wrong == []


OF_EACH_KIND = ("index", "docs/conformance", "api/metrics", "notebooks/09_diagnose_your_own")
LOOKED_AT = {
    ("light", 1280): (
        *OF_EACH_KIND,
        *("search", "docs/faq", "docs/glossary", "docs/references", "notebooks/99_example"),
    ),
    ("dark", 1280): OF_EACH_KIND,
    ("light", 390): OF_EACH_KIND,
}


@in_a_browser
@pytest.mark.skipif(Axe is None, reason="axe-playwright-python is missing")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="the theme's last version for 3.10 has tables no key scrolls")
@pytest.mark.parametrize("mode, width", LOOKED_AT)
def test_axe_finds_nothing_serious_in_the_pages(book, mode, width):
    found = site(book.folder, [f"{name}.html" for name in LOOKED_AT[mode, width]], mode, width)
    assert {address: one.grave for address, one in found.items() if one.grave} == {}
    assert all(one.passed > 20 for one in found.values())


@in_a_browser
@pytest.mark.skipif(Axe is None, reason="axe-playwright-python is missing")
def test_axe_finds_what_is_planted_in_a_page(book, tmp_path):
    text = book.pages["notebooks/99_example.html"].text.replace('"../', f'"{book.folder.as_uri()}/')
    dim = '<style>html[data-theme="dark"] article h1 { color: #555 !important; }</style></head>'
    planted = text.replace("</head>", dim, 1).replace("</summary>", '<img src="x.png"></summary>', 1)
    (tmp_path / "page.html").write_text(planted, encoding="utf-8")
    found = {mode: site(tmp_path, ["page.html"], mode)["page.html"].grave for mode in ("light", "dark")}
    rules = {mode: {text.split()[0] for text in grave} for mode, grave in found.items()}
    assert rules == {"light": {"image-alt"}, "dark": {"image-alt", "color-contrast"}}


def test_every_function_and_class_that_a_module_offers_stands_on_its_page(book):
    for name in book.tool.API:
        module = importlib.import_module(f"vqnotes.{name}")
        offered = {one: getattr(module, one) for one in module.__all__}
        offered = [one for one, it in offered.items() if callable(it) and it.__module__.startswith("vqnotes")]
        left = {one for one in offered if f"vqnotes.{name}.{one}" not in book.pages[f"api/{name}.html"].ids}
        assert offered and not left, (name, left)


def test_controls_become_a_sentence_and_progress_bars_nothing(book):
    page = book.pages["notebooks/99_example.html"].text
    assert page.count("to move the controls") == 1
    assert page.index("explore") < page.index("to move the controls") < page.index("fit")


def test_a_playground_stands_in_the_page_with_what_it_starts_from(book):
    page = book.pages["notebooks/99_example.html"].text
    assert page.count(playground.SCRIPT.read_text(encoding="utf-8")) == 1
    assert json.dumps(playground.plane("drift", seed=7)) in page and "needs JavaScript" in page
    stored = [
        str(cell.outputs) for path in NOTEBOOKS for cell in read(path).cells if "show_playground(" in cell.source
    ]
    assert len(stored) == sum(page.text.count("mount(document.") for page in book.pages.values()) - 1


@in_a_browser
def test_a_playground_runs_from_a_file_without_a_network(book):
    wrong = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS, timeout=0)
        page = browser.new_page(offline=True)
        page.set_default_timeout(1000 * HOURS)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto((book.folder / "notebooks" / "99_example.html").as_uri())
        page.get_by_role("button", name="Step", exact=True).press("Enter")
        assert page.locator("[data-figure=state]").inner_text().startswith("step 1 ·")
        browser.close()
    assert not [one for one in wrong if "MathJax" not in one]


def test_hints_and_solutions_are_folded_with_their_code_inside(book):
    page = book.pages["notebooks/99_example.html"].text
    (folded,) = re.findall(r"<details>.*?</details>", page, re.S)
    assert re.search(r"<summary>\s*Solution\s*</summary>", folded) and "<strong>first</strong>" in folded
    assert 'class="highlight' in folded and "```" not in folded


def test_the_search_index_knows_the_notebooks_and_the_words(book):
    index = (book.folder / "searchindex.js").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert f'"notebooks/{path.stem}"' in index
    assert '"perplex"' in index or '"perplexity"' in index


def test_links_out_of_the_website_lead_to_the_repository(book):
    where = f"https://github.com/{repository()}/blob/main/"
    text = "[a](../README.md#cite) [b](cheatsheet.md) [c](../notebooks/x.ipynb) [d](https://e.org) [f](#g) [h](no.md)"
    text += "\n[i][j]\n\n[j]: ../README.md#cite\n[k]: ../notebooks/x.ipynb"
    assert book.tool.linked(text, ROOT / "docs") == text.replace("../README.md", f"{where}README.md")


def test_the_glossary_has_the_words_of_00(book):
    table = "\n".join(cell.source for cell in read(NOTEBOOKS[0]).cells).split("## The words", 1)[1]
    words = [row.split("|")[1].strip() for row in re.findall(r"^\|.*\|$", table.split("\n## ", 1)[0], re.M)[2:]]
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^- \*\*(.+?)\*\*: (.+)$", glossary, re.M)
    terms = {term for term, _ in entries}
    assert len(words) >= 8 and len(terms) > 50
    words = {word.strip("*") for word in words}
    assert {"live code", "dead code"} | words - {"live, dead code"} <= terms
    assert all(re.search(r"\[\d\d\]$", meaning) for _, meaning in entries), "each entry ends with a notebook"


# ---------------------------------------------------------------- the list of papers


def texts():
    """All that may cite a paper: notebooks, README, pages, the module."""
    for path in NOTEBOOKS:
        yield from (cell.source for cell in read(path).cells)
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "vqnotes").rglob("*.py")]:
        yield path.read_text(encoding="utf-8")


def papers():
    from pybtex.database import parse_file

    return parse_file(ROOT / "docs" / "references.bib", "bibtex").entries


def test_every_paper_that_is_cited_stands_in_the_list():
    everything = "\n".join(texts())
    listed = {paper.fields.get(name) for paper in papers().values() for name in ("eprint", "doi")}
    ids = set(re.findall(r"(?<![\d.])\d\d(?:0[1-9]|1[0-2])\.\d{4,5}(?!\d)", everything))
    ids |= set(re.findall(r"doi(?:\.org/|:)(10\.[^),;\s\]]+)", everything))
    assert len(ids) > 15 and ids <= listed, ids - listed


def test_every_paper_in_the_list_is_cited():
    everything = re.sub(r"\s+", " ", "\n".join(texts()))
    for key, paper in papers().items():
        names = " and ".join(" ".join(person.last_names) for person in paper.persons["author"])
        marks = [paper.fields.get(name) for name in ("eprint", "doi", "shorttitle")]
        marks += [re.sub("[{}]", "", paper.fields["title"]).split(":")[0], f"{names}, {paper.fields['year']}"]
        assert any(mark in everything for mark in marks if mark), key
