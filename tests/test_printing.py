"""What is printed for people gets into any file: also where that holds no tick and no Greek letter, as on Windows."""

import ast
import io
import os
import re
import subprocess
import sys

import pytest
from notebook_tools import ROOT

from vqnotes._printing import IN_WORDS, in_digits, printable, say

TEXT = "✓ β = 0.25 ± 1 · é 数"


@pytest.mark.parametrize(
    "encoding, expected",
    [
        ("utf-8", TEXT),
        ("utf-16", TEXT),
        ("cp1252", "ok beta = 0.25 ± 1 · é ?"),
        ("ascii", "ok beta = 0.25 +- 1 * ? ?"),
        ("cp437", "ok ß = 0.25 ± 1 · é ?".replace("ß", "β" if "β".encode("cp437", "ignore") else "beta")),
    ],
)
def test_what_cannot_be_encoded_is_said_in_words(encoding, expected):
    assert printable(TEXT, encoding) == expected
    assert expected.encode(encoding)


@pytest.mark.parametrize(
    "value, said",
    [(1024, "1,024"), (0.10634, "0.106"), (999.4, "999"), (999.9, "1,000"), (11512.3, "11,500"), (-1234.0, "-1,230"),
     (3.2e12, "3.2e+12"), (float("inf"), "inf"), (float("nan"), "nan"), (0.0, "0")],
)  # fmt: skip
def test_numbers_are_read_without_exponents(value, said):
    assert in_digits(value) == said


def test_the_words_are_plain():
    assert all(word.isascii() and not sign.isascii() for sign, word in IN_WORDS.items())


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_say_prints_what_print_would_if_it_could(encoding, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, newline="\n"))
    say("✓ one", 2, flush=True)
    assert written.getvalue() == b"ok one\n2\n"
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # has no encoding
    say("✓ one")
    assert sys.stdout.getvalue() == "✓ one\n"


PRINTS = {
    "an exercise": """
from vqnotes.course.exercises import check
check('1.2', 1, 2, None, [(1, '2 · bits / D, η² and ✓')])""",
    "a study in one table": """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from vqnotes.studies import parts
parts.completed(Path(sys.argv[2]), [("β",)], lambda one: [{"setting": one}], ThreadPoolExecutor(1), 1)""",
    "a study in parts": """
import sys
from pathlib import Path
from vqnotes.studies import parts
folder = Path(sys.argv[2]).parent
(folder / "one.csv").write_text("figure")
sys.argv = ["command", "--out", str(folder), "--table", str(folder / "β.csv")]
parts.command("command", "", None, [{"part": "one"}])""",
}


@pytest.mark.parametrize("name", PRINTS)
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_commands_and_checks_print_into_any_file(name, encoding, tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", PRINTS[name]]
    command += [] if name == "an exercise" else ["--out", str(tmp_path / "table.csv")]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert re.search("beta|bits / D", done.stdout.decode(encoding))


def test_the_module_prints_in_no_other_way():
    """A bare print is one sentence of ours away from a UnicodeEncodeError."""
    allowed = {"_printing.py"}
    for path in (ROOT / "vqnotes").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        lines = [
            node.lineno for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        ]
        assert not lines or path.name in allowed, f"{path}, lines {lines}: use say"
