"""Models of other libraries: each is installed by `make libraries-test`, and its case is skipped where it is not."""

import importlib
import os
import re

import libraries_page as page
import pytest
import torch
from library_models import CASES
from vector_quantize_models import PEERS

from vqnotes.studies.peers import verdicts_on_libraries

NAMES = [f"{case.package} {case.name}" for case in CASES]
ON_A_HUB = [case for case in CASES if case.package in ("diffusers", "transformers")]


def need(case):
    """Skips the test where the library is not installed, unless all have to be."""
    if not page.installed(case.package):
        assert os.environ.get("VQNOTES_LIBRARIES") != "all", f"{case.package} is not installed"
        pytest.skip(f"{case.package} is not installed: make libraries-test")


def by_name(case, model, folder):
    """The model, saved to a folder and loaded from there by the function that the page shows."""
    section = page.PAGE.read_text(encoding="utf-8").split("## A public tokeniser, by its name")[1]
    shown = {}
    exec(re.search(r"```python\n(.*?)```", section, re.S)[1], shown)
    model.save_pretrained(folder / "vqvae")
    library = importlib.import_module(case.package)
    if case.package == "diffusers":
        return shown["public_tokenizer"](library, str(folder), subfolder="vqvae")
    return shown["public_tokenizer"](library, str(folder / "vqvae"))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", ON_A_HUB, ids=[case.name for case in ON_A_HUB])
def test_a_tokeniser_is_read_by_its_name(case, tmp_path):
    need(case)
    model = case.build().eval()
    again = by_name(case, model, tmp_path)
    state = again.state_dict()
    assert type(again) is type(model) and not again.training and state
    assert all(torch.equal(state[name], own) for name, own in model.state_dict().items())


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", ON_A_HUB[:2], ids=[case.name for case in ON_A_HUB[:2]])
def test_a_tokeniser_that_was_read_by_its_name_gets_the_verdict_of_the_page(case, tmp_path, monkeypatch):
    need(case)
    monkeypatch.setattr(page, "loaded", lambda case, model: by_name(case, model, tmp_path))
    assert [row["verdict"] for row in page.rows_of(case)] == [*page.RIGHT]


@pytest.mark.filterwarnings("default")  # the libraries warn of each other
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_healthy_and_two_ill_models_are_told_apart(case):
    need(case)
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
