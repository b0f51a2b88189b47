"""The paper, in the form that JOSE asks for, and what else says how to cite and to use the course."""

import json
import re
from collections import Counter

import nbformat
import yaml
from exercise_tools import exercises
from notebook_tools import NOTEBOOKS, ROOT, project, repository
from stamping import site

PAPER = (ROOT / "paper" / "paper.md").read_text(encoding="utf-8")
_, HEAD, TEXT = PAPER.split("---\n", 2)
WANTED = [
    "Summary",
    "Statement of need",
    "Learning objectives",
    "Content and design",
    "Instructional use",
    "Story of the project",
    "Acknowledgements",
    "References",
]


def bibliography():
    """The fields of each entry of the list of papers, by its key."""
    head = yaml.safe_load(HEAD)
    entries = re.split(r"^@\w+", (ROOT / "paper" / head["bibliography"]).read_text(encoding="utf-8"), flags=re.M)[1:]
    return {entry[1:].split(",")[0]: dict(re.findall(r"^ *(\w+) *= \{(.*)\}", entry, re.M)) for entry in entries}


def test_the_paper_has_the_parts_that_the_journal_asks_for():
    head = yaml.safe_load(HEAD)
    assert {"title", "tags", "authors", "affiliations", "date", "bibliography"} <= head.keys()
    assert {author["affiliation"] for author in head["authors"]} <= {one["index"] for one in head["affiliations"]}
    assert re.findall(r"^# (.*)$", TEXT, re.M) == WANTED
    assert 700 < len(TEXT.split()) < 1400


NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()
LEAST = re.compile(r"at\s+least\s+(\w+)\s+(?:exercises|in\s+each\s+notebook)", re.I)


def test_texts_count_notebooks_and_exercises_as_they_are():
    counted = re.compile(rf"\b({'|'.join(NUMBERS)}|\d+)\s+(?:Jupyter\s+)?notebooks\b", re.I)
    pages = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("*.cff"),
        ROOT / ".zenodo.json",
        ROOT / "pyproject.toml",
    ]
    texts = {path.name: path.read_text(encoding="utf-8") for path in pages if path.name != "CHANGELOG.md"}
    texts["paper.md"] = TEXT
    said = [(name, number.lower()) for name, text in texts.items() for number in counted.findall(text)]
    assert {"paper.md", "reviewers.md"} <= {name for name, _ in said}
    assert {number for _, number in said} <= {NUMBERS[len(NOTEBOOKS)], str(len(NOTEBOOKS))}, said
    kinds = [Counter(one.kind for one in exercises(nbformat.read(path, as_version=4).cells)) for path in NOTEBOOKS]
    least = {name: LEAST.findall(texts[name]) for name in ("README.md", "reviewers.md", "paper.md")}
    assert least == dict.fromkeys(least, [NUMBERS[min(kind["Exercise"] for kind in kinds)]])
    assert {kind["Think"] for kind in kinds} == {1}


def test_the_readme_says_which_notebooks_hold_controls():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    texts = {path.name[:2]: path.read_text(encoding="utf-8") for path in NOTEBOOKS}
    without = re.search(r"All but (.*) hold\s+explorers:", readme)[1]
    assert re.findall(r"\d\d", without) == [number for number, text in texts.items() if "[Explorer" not in text]
    playground = re.search(r"(\d\d[^.:]*) hold\s+the \*\*playground\*\*", readme)[1]
    assert re.findall(r"\d\d", playground) == [number for number, text in texts.items() if "show_playground(" in text]


def test_the_paper_names_every_notebook():
    design = TEXT.split("# Content and design\n")[1].split("\nFive habits")[0]
    named = [int(one) for group in re.findall(r"\((\d\d(?:, \d\d)*)\)", design) for one in group.split(", ")]
    assert named == [*range(len(NOTEBOOKS))]


def test_every_reference_of_the_paper_is_listed_and_can_be_found():
    entries = bibliography()
    cited = set(re.findall(r"@([a-z]+\d{4}[a-z]*)", TEXT))
    assert len(cited) >= 5 and cited <= entries.keys(), cited - entries.keys()
    assert all({"doi", "url"} & entries[key].keys() for key in cited)


def test_what_has_an_arxiv_id_has_the_doi_that_belongs_to_it():
    for key, fields in bibliography().items():
        if "eprint" in fields:
            assert (
                fields["doi"].startswith("10.")
                and "arXiv" not in fields["doi"]
                or (fields["doi"] == f"10.48550/arXiv.{fields['eprint']}")
            ), key


def test_the_archive_knows_what_the_citation_says():
    archive = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert archive["title"] == citation["title"] and archive["license"] == citation["license"] == project("license")
    assert archive["keywords"] == citation["keywords"]
    related = {one["identifier"] for one in archive["related_identifiers"]}
    assert related == {project("Repository"), "arXiv:" + citation["references"][0]["doi"].split("arXiv.")[1]}


def test_the_package_page_leads_out_of_itself_to_what_is_there():
    """It is shown where the package is, not in the repository: a link that is relative there leads nowhere."""
    page, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("PACKAGE.md", "README.md"))
    assert project("readme") == "PACKAGE.md"
    links = re.findall(r"\]\(([^)]+)\)", page)
    allowed = (f"https://github.com/{repository()}", f"https://{site(repository())}/")
    assert len(links) > 5 and all(link.startswith(allowed) for link in links), links
    for path in re.findall(r"/blob/main/([^)]+)\)", page):
        assert (ROOT / path).is_file(), path
    block = re.compile(r"```python\n(.*?)```", re.S)
    assert block.findall(page)[0] == block.findall(readme)[0]


def test_the_licences_are_there_whole_and_said_where_readers_look():
    text = (ROOT / "LICENSE-CC-BY-4.0.txt").read_text(encoding="utf-8")
    assert text.startswith("Attribution 4.0 International\n") and "Section 8 -- Interpretation." in text
    assert text.rstrip().endswith("Creative Commons may be contacted at creativecommons.org.")
    for name in ("README.md", "docs/index.md", "CONTRIBUTING.md"):
        said = (ROOT / name).read_text(encoding="utf-8")
        assert "CC BY 4.0" in said and "MIT" in said, name


def test_each_question_has_three_sentences_and_says_where_it_was_asked_and_is_shown():
    page = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    parts = re.split(r"^## ", page, flags=re.M)[1:]
    assert len(parts) >= 12
    for part in parts:
        heading, answer, asked = (one.strip() for one in re.split(r"\n\n", part)[:3])
        sentences = re.split(r"(?<=[.?!])\s+(?=[A-Z`])", re.sub(r"\s+", " ", answer))
        assert len(sentences) == 3, (heading, sentences)
        assert heading.endswith("?") or heading.endswith(".")
        assert re.search(r"https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+", asked), heading
        assert re.search(r"Shown in\s+\[\d\d[,\w]", asked) and re.search(r"\.\./notebooks/\w+\.ipynb#", asked), (
            heading
        )
