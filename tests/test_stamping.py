"""The public address: found in the git remote in any of its forms, and written everywhere, once."""

import os
import re
import subprocess
import sys

import pytest
from mutants import copy_of_the_project
from notebook_tools import NOTEBOOKS, ROOT, project, repository
from stamping import ADDRESSED, NOTICE, of_remote, remote, site, stamp

REMOTES = [
    "https://github.com/some-one/other.name",
    "https://github.com/some-one/other.name.git",
    "https://github.com/some-one/other.name/",
    "https://user:secret@github.com/some-one/other.name.git",
    "http://git.example.org:8080/some-one/other.name",
    "ssh://git@github.com/some-one/other.name.git",
    "ssh://git@github.com:22/some-one/other.name",
    "git://codeberg.org/some-one/other.name.git",
    "git@github.com:some-one/other.name.git",
    "git@gitlab.example.org:some-one/other.name",
    "github.com:some-one/other.name.git",
    "github-at-work:some-one/other.name.git",
    "git@host:/some-one/other.name.git",
]
NOWHERE = [
    "",
    "/srv/git/course.git",
    "../course",
    "file:///srv/course.git",
    "C:/Users/me/course",
    r"C:\Users\me",
    "https://github.com/alone",
    "https://gitlab.com/group/part/name.git",
]


@pytest.mark.parametrize("address", REMOTES)
def test_owner_and_name_are_found_in_any_form_of_a_remote(address, capsys):
    assert of_remote(address) == "some-one/other.name"
    assert ("may not be on github.com" in capsys.readouterr().out) == ("github" not in address)


@pytest.mark.parametrize("address", NOWHERE)
def test_a_remote_without_owner_and_name_is_not_guessed_at(address):
    with pytest.raises(SystemExit, match=r"does not say owner/name\. Name them yourself: make stamp REPO=owner/name"):
        of_remote(address)


def test_a_message_shows_no_password():
    with pytest.raises(SystemExit) as raised:
        of_remote("https://user:secret@gitlab.com/group/part/name.git")
    assert "gitlab.com/group/part" in str(raised.value) and "secret" not in str(raised.value)


def git(folder, *words):
    subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True)


def test_the_remote_is_origin_or_the_only_one(tmp_path, monkeypatch):
    git(tmp_path, "init")
    with pytest.raises(SystemExit, match="no git remote called origin, but none at all.*REPO=owner/name"):
        remote(tmp_path)
    git(tmp_path, "remote", "add", "mine", "git@github.com:a/b.git")
    assert of_remote(remote(tmp_path)) == "a/b"
    git(tmp_path, "remote", "add", "theirs", "git@github.com:c/d.git")
    with pytest.raises(SystemExit, match=r"origin, but \['mine', 'theirs'\]"):
        remote(tmp_path)
    git(tmp_path, "remote", "add", "origin", "https://github.com/e/f")
    assert of_remote(remote(tmp_path)) == "e/f"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="cannot be asked for.*REPO=owner/name"):
        remote(tmp_path)


def test_without_git_history_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(SystemExit, match="not a git repository.*REPO=owner/name"):
        remote(tmp_path)


def addressed(folder):
    """The text of each file that may hold the address, by its name."""
    paths = {path for pattern in ADDRESSED for path in folder.glob(pattern)}
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_stamp_changes_the_address_everywhere_and_only_once(tmp_path):
    copy, kept = copy_of_the_project(tmp_path), addressed(ROOT)
    named = {name for name, text in kept.items() if repository() in text}
    changed = {path.relative_to(copy).as_posix() for path in stamp("Some-one/other.name", copy)}
    assert named <= changed and {"README.md", "CITATION.cff", "CHANGELOG.md", "pyproject.toml"} <= changed
    after = addressed(copy)
    for name, text in kept.items():
        plain = NOTICE.sub("", text)
        assert repository() not in after[name] and site(repository()) not in after[name], name
        assert after[name].count("Some-one/other.name") == plain.count(repository()), name
        assert after[name].count("some-one.github.io/other.name") == plain.count(site(repository())), name
        if name not in changed:
            assert after[name] == text
    assert stamp("Some-one/other.name", copy) == [], "what is done is done"
    with pytest.raises(SystemExit, match="owner/name"):
        stamp("nonsense", copy)


def test_stamp_writes_the_tag_of_this_version(tmp_path):
    copy, version = copy_of_the_project(tmp_path), project("version")
    one = copy / "notebooks" / NOTEBOOKS[0].name
    stamp("a/b", copy)
    text = one.read_text(encoding="utf-8")
    assert text.count(f"github.com/a/b@v{version}") == 1
    one.write_text(text.replace(f"@v{version}", "@v0.0.1"), encoding="utf-8")
    assert [path.name for path in stamp("a/b", copy)] == [one.name]
    assert one.read_text(encoding="utf-8") == text


def test_one_can_stamp_again_with_another_address(tmp_path):
    """What a fork of a published copy does: in it, the tools read the copy's own address."""
    copy = copy_of_the_project(tmp_path)
    git(copy, "init")
    git(copy, "remote", "add", "origin", "git@github.com:first/one.git")
    first = run(copy, "tools/stamping.py")
    assert first.startswith("first/one: ") and "commit" in first
    assert run(copy, "tools/stamping.py") == "first/one: 0 files changed.\n"
    git(copy, "remote", "set-url", "origin", "https://github.com/second/two.git")
    before = addressed(copy)
    run(copy, "tools/stamping.py")
    after = addressed(copy)
    changes = {"first/one": "second/two", "first.github.io/one": "second.github.io/two"}
    for name, text in before.items():
        for old, new in changes.items():
            text = text.replace(old, new)
        assert after[name] == text, name


def run(copy, *words):
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_says_what_to_do_until_it_is_stamped():
    notices = NOTICE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(notices) == (repository().split("/")[0] == "OWNER")
    assert all("make stamp" in one for one in notices)


def published():
    """All files under version control that hold text."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8")
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    kinds = {".md", ".yml", ".yaml", ".json", ".cff", ".toml", ".py", ".ipynb", ".txt", ".csv", ".js", ".svg", ""}
    return [path for path in paths if path.suffix in kinds and path.is_file()]


def test_nothing_that_is_published_names_a_folder_or_a_network_of_one_machine():
    private = re.compile(
        r"/(?:root|work|home|Users|tmp)/\w|\b(?:10|192\.168)(?:\.\d{1,3}){2,3}:\d|\.(?:internal|intranet|lan)\b"
    )
    for path in published():
        if path.parent != ROOT / "tests":  # there they are examples
            found = private.search(re.sub(r"[\w+/=]{200,}", "", path.read_text(encoding="utf-8")))  # no pictures
            assert found is None, (path.relative_to(ROOT).as_posix(), found)


def test_the_address_stands_only_where_it_is_stamped():
    for path in published():
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        assert name in addressed(ROOT) or not (repository() in text or site(repository()) in text), name
    assert project("Repository") == f"https://github.com/{repository()}"
