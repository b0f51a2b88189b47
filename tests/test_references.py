"""The list of papers against the table of what was checked: ids, titles and years, against what, and when."""

import csv
import re
from datetime import date

import pytest
from notebook_tools import ROOT

LIST, TABLE = ROOT / "docs" / "references.bib", ROOT / "docs" / "references.csv"
PLAIN = {"``": '"', "''": '"', r"\%": "%", " -- ": " – ", "{": "", "}": ""}


def fields(body):
    """The fields of an entry, without the braces and signs of LaTeX."""
    found = dict(re.findall(r"^  (\w+)\s*=\s*\{(.*?)\},$", body, re.S | re.M))
    for sign, plain in PLAIN.items():
        found = {name: re.sub(r"\s+", " ", value).replace(sign, plain) for name, value in found.items()}
    return found


def papers():
    """Each paper of the list: its key and its fields."""
    entries = re.findall(r"^@\w+\{(\w+),\n(.*?)\n\}", LIST.read_text(encoding="utf-8"), re.S | re.M)
    return {key: fields(body) for key, body in entries}


def checked():
    """What was checked, by the id under which a paper is found."""
    with TABLE.open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


@pytest.mark.parametrize("paper", papers().values(), ids=papers())
def test_it_is_found_by_an_id_and_was_checked(paper):
    found = checked()[paper.get("eprint") or paper.get("doi") or paper["url"]]
    assert (found["title"], found["year"]) == (paper["title"], paper["year"])
    if "eprint" in paper:
        assert paper["doi"] == f"10.48550/arXiv.{paper['eprint']}"


def test_no_entry_escapes_the_reading_of_the_list():
    assert len(papers()) == LIST.read_text(encoding="utf-8").count("\n@") > 40


def test_each_row_says_against_what_and_when():
    for row in checked().values():
        assert row["checked against"] and date(2026, 11, 27) <= date.fromisoformat(row["checked on"]), row["id"]
