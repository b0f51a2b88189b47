"""Models of other libraries: each is installed by `make libraries-test`, and its case is skipped where it is not."""

import os

import libraries_page as page
import pytest
from library_models import CASES
from vector_quantize_models import PEERS

from vqnotes.studies.peers import verdicts_on_libraries

NAMES = [f"{case.package} {case.name}" for case in CASES]


@pytest.mark.filterwarnings("default")  # the libraries warn of each other
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_healthy_and_two_ill_models_are_told_apart(case):
    if not page.installed(case.package):
        assert os.environ.get("VQNOTES_LIBRARIES") != "all", f"{case.package} is not installed"
        pytest.skip(f"{case.package} is not installed: make libraries-test")
    found = page.rows_of(case)
    assert [row["verdict"] for row in found] == [*page.RIGHT]
    known = page.stored()[page.key_of(case)]
    assert [row["gradient"] for row in found] == [row["gradient"] for row in known]


def test_the_table_has_every_case_and_no_other():
    assert list(page.stored()) == [page.key_of(case) for case in [*CASES, *PEERS]]


def test_the_page_shows_the_table():
    text = page.PAGE.read_text(encoding="utf-8").split(page.BEGIN)[1].split(page.END)[0]
    assert text == page.section(page.stored())


def test_the_table_says_what_was_right():
    table = verdicts_on_libraries()
    assert list(table.columns) == page.COLUMNS
    assert (table.right == (table.verdict == table.expected)).all() and table.right.all()
    assert set(table.fault) == {"healthy", "crowded", "banished", "cornered", "inputs lost"}
    expected = {key: [row["expected"] for row in rows] for key, rows in page.stored().items()}
    assert expected == {page.key_of(peer): [*peer.right] for peer in PEERS} | {
        page.key_of(case): [*page.RIGHT] for case in CASES
    }
