"""Files are written whole or not at all, with a full disk or an interrupt, by downloads and by all commands."""

import importlib
import resource
import shutil
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import nbformat
import notebook_tools
import pytest
import stamping
from helpers import press
from notebook_tools import HOURS, NOTEBOOKS, ROOT, repository
from served import PLAIN, X, cut, elsewhere, printed

from vqnotes import _files
from vqnotes.studies import parts


@contextmanager
def full_disk():
    """No file may grow beyond a kilobyte."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(path, text="new" * 1000):
    with _files.replaced(path) as beside:
        beside.write_text(text)


# ---------------------------------------------------------------- what they all write by


def test_a_file_is_replaced_or_made(tmp_path):
    for text in ("first", "second"):
        write(tmp_path / "table.csv", text)
        assert contents(tmp_path) == {(tmp_path / "table.csv").relative_to(tmp_path): text.encode()}


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_full_disk_leaves_a_file_as_it_was(tmp_path, old):
    if old:
        (tmp_path / "table.csv").write_bytes(old)
    before = contents(tmp_path)
    with pytest.raises(OSError, match="File too large"), full_disk():
        write(tmp_path / "table.csv")
    assert contents(tmp_path) == before


def test_what_cannot_be_replaced_is_kept(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_an_interrupt_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "table.csv"
    write(path, "old")
    with pytest.raises(KeyboardInterrupt), _files.replaced(path) as beside:
        beside.write_text("half")
        press()
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "old"


# ---------------------------------------------------------------- downloads


def test_a_kernel_interrupted_while_it_waits_for_a_download(server):
    content, over = (server.folder / X).read_bytes(), threading.Event()

    def interrupt(handler):
        cut(handler, content, lambda: waiting[0].send_signal(signal.SIGINT))
        over.wait(HOURS)

    server.answers[f"/{X}"] = interrupt
    code = (
        "try: said()\nexcept KeyboardInterrupt: print(os.listdir('cache'), flush=True)\n"
        "sys.stdin.readline(); print(said())"
    )
    waiting = [elsewhere(server, code)]
    assert waiting[0].stdout.readline() == "[]\n"
    del server.answers[f"/{X}"]
    over.set()
    waiting[0].stdin.write("go on\n")
    assert printed(waiting[0]) == [str(len(PLAIN["train", "x"]))]


# ---------------------------------------------------------------- commands


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of what the commands change, and the module of the hand-outs."""
    for path in (path for pattern in stamping.ADDRESSED for path in ROOT.glob(pattern)):
        place = tmp_path / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    monkeypatch.setattr(notebook_tools, "ROOT", tmp_path)
    monkeypatch.setattr(notebook_tools, "NOTEBOOKS", sorted((tmp_path / "notebooks").glob("*.ipynb"))[:1])
    monkeypatch.setattr(notebook_tools.NotebookClient, "execute", lambda self, **_: None)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    handouts = importlib.import_module("handouts")
    monkeypatch.setattr(handouts, "NOTEBOOKS", NOTEBOOKS[:1])
    monkeypatch.setattr(handouts, "verdicts", lambda path, checks: dict.fromkeys(checks, 400 * "wrong "))
    (tmp_path / "sheet.csv").write_text("old")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "one.csv").write_text("figure\n" + "0.125\n" * 500)
    monkeypatch.setattr(sys, "argv", ["command"])
    return tmp_path


def gathered_again(copy):
    """A study whose parts are all done: its table is written anew."""
    sys.argv = ["command", "--out", str(copy / "parts"), "--table", str(copy / "sheet.csv")]
    parts.command("command", "", None, [{"part": "one"}])


def completed_again(copy):
    """A study in one table, of which a part is missing: it is written anew."""
    with ThreadPoolExecutor(1) as pool:
        parts.completed(copy / "sheet.csv", [(0.125,)], lambda figure: [{"figure": figure}] * 500, pool, 1)


COMMANDS = {
    "league": (completed_again, ["sheet.csv"]),
    "validation": (gathered_again, ["sheet.csv"]),
    "run": (lambda copy: notebook_tools.run(copy / "notebooks" / NOTEBOOKS[1].name), []),
    "stamp": (lambda copy: stamping.stamp("some/other", copy), []),
    "stamp_readme": (lambda copy: notebook_tools.stamp_readme(), []),
    "student": (lambda copy: sys.modules["handouts"].student(copy), [f"notebooks/{NOTEBOOKS[0].name}"]),
    "slides": (lambda copy: sys.modules["handouts"].slides(copy), ["lecture.html"]),
    "grade": (lambda copy: sys.modules["handouts"].grade(copy), ["grades.csv"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_with_a_full_disk_leaves_all_as_it_was(copy, name):
    command, written = COMMANDS[name]
    (copy / "solutions").mkdir()
    for one in written:
        (copy / one).write_text((copy / one).read_text() if one.endswith("ipynb") else "old")
    before = contents(copy)
    with pytest.raises(OSError, match="File too large"), full_disk():
        command(copy)
    assert contents(copy) == before


def test_grades_may_go_elsewhere_than_among_the_hand_ins(copy):
    """In the container that `make grade-locked` starts, hand-ins can only be read."""
    (copy / "elsewhere").mkdir()
    sys.modules["handouts"].grade(copy / "notebooks", copy / "elsewhere")
    assert "wrong" in (copy / "elsewhere" / "grades.csv").read_text(encoding="utf-8")
    assert not (copy / "notebooks" / "grades.csv").exists()


def test_a_stamp_that_was_interrupted_can_be_done_again(copy, monkeypatch):
    old, replaced = repository(), _files.replaced

    def interrupted(path):
        if path.name == "README.md":
            raise KeyboardInterrupt
        return replaced(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stamping, "replaced", interrupted)
        stamping.stamp("some/other", copy)
    stamping.stamp("some/other", copy)
    assert not any(f"{old}".encode() in content for content in contents(copy).values())


def test_a_website_that_cannot_be_built_leaves_the_old_one(tmp_path, monkeypatch):
    pytest.importorskip("sphinx", reason="the website needs the extra `book`")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    book = importlib.import_module("book")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "index.html").write_text("old")
    with pytest.raises(OSError, match="File too large"), full_disk():
        book.build(tmp_path / "book")
    assert list(contents(tmp_path / "book").values()) == [b"old"]


def test_notebooks_are_whole_after_a_run(copy):
    path = copy / "notebooks" / NOTEBOOKS[1].name
    notebook_tools.run(path)
    nbformat.validate(nbformat.read(path, as_version=4))
    assert sorted(one.name for one in path.parent.iterdir()) == sorted(one.name for one in NOTEBOOKS)
