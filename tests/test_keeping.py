"""A diagnosis that is kept is the same when it is read again, holds no latents, and a broken file is refused."""

import copy
import json
import math
import pickle
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from helpers import normal, random_measures

from vqnotes.diagnosis import (
    Diagnosis,
    StackDiagnosis,
    compare,
    diagnose,
    diagnose_stack,
    diagnose_tokens,
    draw,
    load,
    save,
)
from vqnotes.diagnosis.advice import Advice
from vqnotes.diagnosis.conditions import conditions
from vqnotes.diagnosis.keeping import VERSION, plain
from vqnotes.diagnosis.report import Evidence, not_started
from vqnotes.diagnosis.rules import Answer, path


@pytest.fixture(scope="module")
def one():
    latents = normal(600, 3)
    return diagnose(latents, latents[:8] * 0.01, inputs=latents)


@pytest.fixture(scope="module")
def stack():
    latents = normal(600, 3)
    rest = latents - latents[:1]
    return diagnose_stack([[(latents, latents[:8], None), (rest, rest[:4] / 9, None)]])


@pytest.fixture(scope="module")
def tokens():
    index = np.random.default_rng(0).integers(0, 5, (40, 6, 2))
    return diagnose_tokens(index, 16, stages_axis=-1, collisions=True)


def awkward():
    """Numbers and words that a file may lose."""
    evidence = {
        'a "b"\n\u2713': Evidence(math.inf, -math.inf, "c", "d", (-math.inf, math.nan)),
        "whole": Evidence(12, 16, "at most", ""),
        "real": Evidence(12.0, 0.1 + 0.2, "", ""),
        "tiny": Evidence(5e-324, np.float64(1 / 3), "", "", (np.float32(0.1), np.int64(2**53 + 1))),
        "minus": Evidence(-0.0, 1e308, "", ""),
    }
    words = "</script><b>\u03b2 \ud7ff"
    return Diagnosis(words, words, evidence, [Advice("a", "b", "05")], [words], None, [words], 1.0, False, [words])


def every():
    """Diagnoses with all kinds of conditions and paths."""
    for number, m in enumerate(random_measures(60)):
        compared = conditions(m).items()
        evidence = {name: Evidence(one.figure, 1, "", "", None, one) for name, one in compared}
        yield Diagnosis(f"{number}", "", evidence, [], path=path(m))


def test_what_is_read_again_is_the_same(one, stack, tokens, tmp_path):
    file = tmp_path / "found.json"
    for found in (one, stack, tokens, not_started(["vq"]), *every()):
        found.save(file)
        read = type(found).load(file)
        assert read == found and type(read) is type(found) and repr(read) == repr(found) and load(file) == found
        assert read.to_dict() == found.to_dict() == json.loads(file.read_text(encoding="utf-8"))
    save({"a": one, "b.c": tokens.parts[0][0]}, file)
    assert load(file) == {"a": one, "b.c": tokens.parts[0][0]} and isinstance(load(file), dict)
    assert [entry.name for entry in tmp_path.iterdir()] == ["found.json"]


def test_numbers_and_words_survive(tmp_path):
    found = awkward()
    found.save(tmp_path / "a")
    read = Diagnosis.load(tmp_path / "a")
    expected = plain_numbers(found)
    assert repr(read.evidence) == repr(expected.evidence) and str(read) == str(expected)
    assert (read.verdict, read.notes, read.started) == (found.verdict, found.notes, False)
    assert [type(one.value) for one in read.evidence.values()] == [float, int, float, float, float]


def plain_numbers(found):
    """The same with Python's own numbers in the place of NumPy's."""
    found = copy.deepcopy(found)
    found.evidence["tiny"] = Evidence(5e-324, 1 / 3, "", "", (float(np.float32(0.1)), 2**53 + 1))
    return found


def test_it_is_json_that_any_reader_takes(tmp_path):
    def refuse(word):
        raise ValueError(word)

    found = awkward().to_dict()
    assert json.loads(json.dumps(found, allow_nan=False), parse_constant=refuse) == found
    first = next(iter(found["evidence"].values()))
    assert (first["value"], first["reference"], first["interval"]) == ("Infinity", "-Infinity", ["-Infinity", "NaN"])
    assert (found["version"], found["kind"]) == (VERSION, "Diagnosis")


def test_no_latents_are_kept(one, stack, tmp_path):
    assert one.drawing is not None and "drawing" not in json.dumps(one.to_dict())
    assert '"drawing"' not in json.dumps(stack.to_dict()) and stack.parts[0][0].drawing is not None
    one.save(tmp_path / "a")
    read = Diagnosis.load(tmp_path / "a")
    assert read.drawing is None and (tmp_path / "a").stat().st_size < 12_000
    with pytest.raises(ValueError, match="comes from a file, which holds no latents"):
        draw(np.empty(4), read)
    with pytest.raises(TypeError, match="words and numbers, got Tensor"):
        plain({"a": [torch.ones(2)]})


def test_a_stack_is_still_a_tuple(stack):
    whole, parts = stack
    assert whole is stack.whole and parts is stack.parts and stack._fields == ("whole", "parts")
    assert repr(stack).startswith("StackDiagnosis(whole=") and stack == (whole, parts)
    assert stack._replace(parts=[]) == StackDiagnosis(whole, [])
    again = pickle.loads(pickle.dumps(stack))
    assert type(again) is StackDiagnosis and again == stack


# ---------------------------------------------------------------- what is refused


def written(tmp_path, found, change):
    given = found.to_dict()
    change(given)
    (tmp_path / "a").write_text(json.dumps(given), encoding="utf-8")
    return tmp_path / "a"


def at(*places, value):
    """Changes what stands at a place."""

    def change(given):
        *way, last = places
        for name in way:
            given = given[name]
        if value is None:
            del given[last]
        else:
            given[last] = value

    return change


GAP = ("evidence", "optimality gap")
LOST = ("evidence", "lost by its own codes", "condition")


@pytest.mark.parametrize(
    "change, says",
    [
        (at("version", value=VERSION + 1), rf"version {VERSION + 1} of .* reads version {VERSION}"),
        (at("version", value=True), "version True"),
        (at("version", value=None), "version None"),
        (at("format", value="another"), r"holds no diagnosis: write one by found.save"),
        (at("kind", value="StackDiagnosis"), "holds the kind 'StackDiagnosis', and what is asked for is Diagnosis"),
        (at("kind", value=["Diagnosis"]), "kind"),
        (at("verdict", value=None), r"the file lacks \['verdict'\]"),
        (at("verdict", value=3), "verdict is no str: 3"),
        (at("verdicts", value="healthy"), r"has \['verdicts'\], which are unknown"),
        (at("started", value="yes"), "started is no bool: 'yes'"),
        (at("confidence", value="high"), "confidence is no float: 'high'"),
        (at("notes", value="one"), "notes is no list"),
        (at("evidence", value=[]), "evidence is no dict"),
        (at(*GAP, value=3), "evidence.optimality gap is no Evidence: 3"),
        (at(*GAP, "value", value=True), "evidence.optimality gap.value is no float: True"),
        (at(*GAP, "value", value=None), r"evidence.optimality gap lacks \['value'\]"),
        (at(*GAP, "interval", value=[1.0]), "evidence.optimality gap.interval is no tuple"),
        (at(*GAP, "interval", 1, value=[]), r"evidence.optimality gap.interval\[1\] is no float"),
        (at("advice", 0, "stage", value=0), r"advice\[0\].stage is no str"),
        (at("path", 0, 1, value="perhaps"), r"path\[0\]\[1\] is no Answer: 'perhaps'"),
        (at("path", 0, 1, value={}), r"path\[0\]\[1\] is no Answer"),
        (at("path", 0, 0, value="weather"), "there is no question 'weather'"),
        (at(*GAP, "value", value=10**400), "evidence.optimality gap.value is no float: 1000"),
        (at(*LOST, "question", value="weather"), "there is no question 'weather'"),
        (at(*LOST, "threshold", value=0.0), "evidence.lost by its own codes has a condition with .* beside 0"),
        (at(*LOST, "threshold", value="Infinity"), "has a condition with .* beside inf"),
        (at(*LOST, "figure", value="NaN"), "has a condition with nan beside"),
    ],
)
def test_a_broken_file_is_refused_with_the_place(one, tmp_path, change, says):
    file = written(tmp_path, one, change)
    with pytest.raises(ValueError, match=says) as refused:
        Diagnosis.load(file)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"format": "vqnotes diagnosis", "version": 1', b"\xff\xfe\x00", b"[" * 10**5, b"[1]", b"9" * 5000],
    ids=["empty", "begun", "cut off", "no text", "too deep", "no dict", "a long number"],
)
def test_what_is_no_diagnosis_is_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    for reads in (Diagnosis.load, StackDiagnosis.load, load):
        with pytest.raises(ValueError, match="broken, or no JSON|holds no diagnosis"):
            reads(tmp_path / "a")


def test_every_cut_is_noticed(one, tmp_path):
    one.save(tmp_path / "a")
    text = (tmp_path / "a").read_text(encoding="utf-8").rstrip()
    for end in range(0, len(text), 97):
        (tmp_path / "a").write_text(text[:end], encoding="utf-8")
        with pytest.raises(ValueError, match="broken, or no JSON"):
            load(tmp_path / "a")


def places(given, place=()):
    """All places in plain data, as ways from the top."""
    yield place
    inside = given.items() if isinstance(given, dict) else enumerate(given) if isinstance(given, list) else ()
    for name, one in inside:
        yield from places(one, (*place, name))


def test_whatever_stands_in_a_file_is_refused_or_can_be_shown(one, tmp_path):
    rng, way = np.random.default_rng(0), [place for place in places(one.to_dict()) if place]
    values = [True, 0, -1, "NaN", "Infinity", "x", "", [], {}, [1, 2], {"a": 1}, 10**400, -0.0, 1e308]
    shown = refused = 0
    for _ in range(600):
        change = at(*way[rng.integers(len(way))], value=values[rng.integers(len(values))])
        try:
            found = Diagnosis.load(written(tmp_path, one, change))
        except ValueError:
            refused += 1
            continue
        assert str(found) and found._repr_html_() and str(compare(found, one)) and len(found.to_frame())
        shown += 1
    assert min(shown, refused) > 30


def test_several_by_name_are_checked_too(one, tmp_path):
    save({"a": one}, tmp_path / "a")
    text = (tmp_path / "a").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="kind 'diagnoses', and what is asked for is Diagnosis"):
        Diagnosis.load(tmp_path / "a")
    for wrong in ({"a": 3}, [], None):
        (tmp_path / "a").write_text(json.dumps(json.loads(text) | {"diagnoses": wrong}), encoding="utf-8")
        with pytest.raises(ValueError, match="is broken"):
            load(tmp_path / "a")


def test_a_file_without_what_has_a_default_is_read(one, tmp_path):
    """As one that was written before that was added."""
    read = Diagnosis.load(written(tmp_path, one, at("findings", value=None)))
    assert read.findings == [] and read.verdict == one.verdict


def test_no_file_is_an_os_error_and_an_old_one_stays(one, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        Diagnosis.load(tmp_path / "none")
    with pytest.raises(OSError):
        one.save(tmp_path / "none" / "a")
    file = tmp_path / "a"
    file.write_text("old", encoding="utf-8")
    broken = Diagnosis("healthy", "", {"a": Evidence(torch.ones(1), 1, "", "")}, [])
    with pytest.raises(TypeError):
        broken.save(file)

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    for write in (one.save, one.to_html):
        with pytest.raises(OSError, match="disk full"):
            write(file)
    assert file.read_text(encoding="utf-8") == "old" and [*tmp_path.iterdir()] == [file]


# ---------------------------------------------------------------- a table


def test_a_table_has_a_row_for_each_figure(one, stack):
    frame = one.to_frame()
    assert list(frame["evidence"]) == list(one.evidence)
    for row in frame.itertuples():
        evidence = one.evidence[row.evidence]
        assert (row.value, row.reference, row.compared_with, row.speaks_for) == evidence[:4]
        assert math.isnan(row.low) if evidence.interval is None else (row.low, row.high) == evidence.interval
        if evidence.condition is not None:
            compared = evidence.condition
            assert (row.question, row.answer, row.figure) == (
                compared.question,
                compared.answer.value,
                compared.figure,
            )
            assert (row.threshold, row.holds, row.close) == (compared.threshold, compared.holds, compared.close)
    assert frame["holds"].notna().sum() == sum(found.condition is not None for found in one.evidence.values()) > 3
    assert frame["value"].dtype == float
    several = stack.to_frame()
    assert list(several.columns) == ["codebook", "verdict", *frame.columns]
    assert list(several["codebook"].unique()) == ["whole", "level 0", "level 1"]
    assert set(several[several["codebook"] == "level 1"]["verdict"]) == {stack.parts[0][1].verdict}
    empty = not_started(["vq"]).to_frame()
    assert len(empty) == 0 and list(empty.columns) == list(frame.columns)


def test_parts_are_named_where_there_are_several(one):
    found = StackDiagnosis(one, [[one], [one, one]])
    assert list(found.to_frame()["codebook"].unique()) == [
        "whole",
        "part 0, level 0",
        "part 1, level 0",
        "part 1, level 1",
    ]


# ---------------------------------------------------------------- a page


class Page(HTMLParser):
    """What a page has in it, and what it would fetch."""

    def __init__(self, file):
        super().__init__()
        self.tags, self.images, self.fetched, self.open = [], [], [], []
        text = file.read_text(encoding="utf-8")
        self.feed(text)
        self.text = re.sub(r"base64,[^\"]+", "", text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        if tag == "img":
            self.images.append(given)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page_is_whole_and_fetches_nothing(one, stack, tmp_path):
    for found, figures in ((one, 2), (stack, 3)):  # panels and tree; a tree, and panels of two levels
        found.to_html(tmp_path / "a.html")
        page = Page(tmp_path / "a.html")
        assert page.open == [] and {"html", "title", "h1", "table"} <= set(page.tags)
        assert not {"script", "link", "iframe", "object", "embed", "svg", "base"} & set(page.tags)
        assert len(page.images) == figures and all(image["alt"] for image in page.images)
        assert all(re.match("data:image/png;base64,iVBOR", source) for source in page.fetched)
        assert "url(" not in page.text and "@import" not in page.text and "default-src 'none'" in page.text
    assert f"So the verdict is: {one.verdict}." in page_of(one, tmp_path).images[1]["alt"]


def page_of(found, tmp_path, **options):
    found.to_html(tmp_path / "a.html", **options)
    return Page(tmp_path / "a.html")


def test_a_page_has_the_figures_that_there_are(one, tokens, tmp_path):
    one.save(tmp_path / "a")
    assert len(page_of(Diagnosis.load(tmp_path / "a"), tmp_path).images) == 1  # the tree
    assert page_of(tokens, tmp_path).images == page_of(not_started(["vq"]), tmp_path).images == []
    without = page_of(one, tmp_path, figures=False)
    assert without.images == [] and one.reason in without.text and len(without.text) < 20_000
    assert len(page_of(StackDiagnosis(one, [[one]]), tmp_path).images) == 2  # the same diagnosis is drawn once


@pytest.mark.parametrize("dim, codes", [(1, 4), (2, 1), (5, 300)])
def test_odd_shapes_are_drawn_too(tmp_path, dim, codes):
    latents = normal(500, dim)
    found = diagnose(latents, latents[:codes], inputs=latents)
    assert len(page_of(found, tmp_path).images) == 2


def test_words_on_a_page_are_words(tmp_path):
    page = page_of(awkward(), tmp_path)
    assert "script" not in page.tags and "b" in page.tags and "&lt;/script&gt;" in page.text


def test_answers_are_kept_as_words(one):
    assert one.to_dict()["path"][-1][1] in {answer.value for answer in Answer}
