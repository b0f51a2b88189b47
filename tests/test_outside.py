"""The tools that ask the network: for Colab's versions, and whether what we link to is there."""

import datetime
import re

import colab_versions
import outside_links
import pytest
from notebook_tools import ROOT, project, repository
from served import listening

THEIRS = """\
NumPy==2.9.0
Pillow==12.0.0
torch @ https://example.org/torch-2.99.0%2Bcpu-cp313.whl
ruamel.yaml==0.1
of-no-use==1.0
"""


def test_the_list_of_colab_keeps_its_packages_and_takes_their_versions():
    ours = "# old head\nnumpy==2.1.3\npillow==11.0\nruamel_yaml==0.0\nforgotten==3.0\n"
    text, gone = colab_versions.renewed(ours, THEIRS, datetime.date(2027, 1, 2))
    assert text.splitlines()[2:] == ["numpy==2.9.0", "pillow==12.0.0", "ruamel_yaml==0.1"]
    assert text.startswith("# What Colab had installed on 2027-01-02,") and "old head" not in text
    assert gone == ["forgotten"]
    assert colab_versions.renewed(text, THEIRS, datetime.date(2027, 1, 2)) == (text, [])
    with pytest.raises(ValueError, match="not Colab's list of packages, but what starts with '<html>"):
        colab_versions.renewed(ours, "<html>404</html>", datetime.date(2027, 1, 2))


def test_the_list_of_colab_says_its_date():
    head = (ROOT / "tools" / "colab.txt").read_text(encoding="utf-8").splitlines()[0]
    assert datetime.date.fromisoformat(re.search(r"on (\d{4}-\d\d-\d\d), by its own published list", head)[1])


def test_without_a_network_the_list_of_colab_is_asked_for_as_a_file(monkeypatch):
    monkeypatch.setattr(colab_versions, "PUBLISHED", "http://127.0.0.1:9/list.txt")
    with pytest.raises(SystemExit, match="cannot be had.*Download it and name the file"):
        colab_versions.published()


def test_addresses_are_found_in_text_of_any_kind():
    text = "[a](https://a.org/x_(y)#part), <https://b.org/>. `https://c.org/d.` url = {https://f.org/g}, https://e.org/no"
    assert outside_links.addresses(text) == {
        "https://a.org/x_(y)",
        "https://b.org/",
        "https://c.org/d",
        "https://f.org/g",
    }


def test_our_own_addresses_are_asked_for_once_we_are_published(monkeypatch):
    found = outside_links.listed()
    assert "https://arxiv.org/abs/2411.16550" in found and "README.md" in found["https://arxiv.org/abs/2411.16550"]
    name = repository().split("/")[1]
    monkeypatch.setattr(outside_links, "repository", lambda: f"OWNER/{name}")
    left_out = outside_links.listed().keys()
    assert not [one for one in left_out if f"OWNER/{name}" in one or f"owner.github.io/{name}" in one]
    monkeypatch.setattr(outside_links, "repository", lambda: "some/other")
    assert f"{project('Repository')}/releases/tag/v0.1.0" in outside_links.listed()


def test_what_is_gone_is_told_from_what_is_unclear(tmp_path, monkeypatch, capsys):
    (tmp_path / "there").write_text("yes")
    with listening(tmp_path, secure=False) as server:
        server.answers["/busy"] = lambda handler: handler.begin(0, status=429)
        here = {name: server.address + name for name in ("there", "gone", "busy")}
        assert outside_links.answer(here["there"]) == ""
        assert outside_links.answer(here["gone"]).startswith("gone: 404")
        assert outside_links.answer(here["busy"]).startswith("unclear: 429")
        assert outside_links.answer("http://127.0.0.1:9/").startswith("gone: ")
        monkeypatch.setattr(outside_links, "listed", lambda: {one: {"README.md"} for one in here.values()})
        assert outside_links.main([]) == 1 and outside_links.main(["there"]) == 0
    said = capsys.readouterr().out
    assert f"{here['gone']}  in README.md" in said and "3 addresses, 1 gone" in said and "1 addresses, 0 gone" in said
