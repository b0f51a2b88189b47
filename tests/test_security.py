"""What comes from outside is not run, not used before it is checked, and shown and written as nothing but text."""

import ast
import csv
import gzip
import importlib
import tarfile
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import nbformat
import pytest
from notebook_tools import NOTEBOOKS, ROOT, without_pip
from served import CIFAR, NAMES, RECORDS, X, archive, check_fashion, in_cache, listening, member

from vqnotes import _downloads, data
from vqnotes.course import explorers
from vqnotes.diagnosis.advice import Advice
from vqnotes.diagnosis.report import Diagnosis, Evidence

# ---------------------------------------------------------------- no code from outside is run

RUNS_SOLUTIONS = ROOT / "tools" / "exercise_tools.py"  # the course's own, for the tests: that is what it is for
SOURCES = sorted({*(ROOT / "vqnotes").rglob("*.py"), *(ROOT / "tools").glob("*.py")} - {RUNS_SOLUTIONS})
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pd.read_pickle", "pandas.read_pickle"}
NEEDED = {"np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
NEEDED["torch.load"] = ("weights_only", True)
BANNED = {"shell": True, "escape": False, "description_allow_html": True, "allow_pickle": True}


def dangers(source):
    """The lines of a program that could run what is not its own, or show text as HTML."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            bad = any(name.split(".")[0] in MODULES for name in names) or "read_pickle" in names
        elif isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {one.arg: one.value for one in node.keywords}
            constants = {name: getattr(value, "value", value) for name, value in given.items()}
            name, value = NEEDED.get(called, ("", None))
            bad = called in CALLS or called.endswith("read_pickle") or (name and constants.get(name) is not value)
            bad = bad or any(name in given and constants[name] is not (not worst) for name, worst in BANNED.items())
        else:
            continue
        if bad:
            yield node.lineno


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import a, dill as b",
        "from shelve import open",
        "eval('1')",
        "exec(compile('1', '', 'exec'))",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=maybe)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pd.read_pickle(path)",
        "table.to_html(escape=False)",
    ],
)
def test_the_search_finds_what_is_dangerous(line):
    assert list(dangers(f"x = 1\n{line}")) in ([2], [2, 2])


def test_the_search_lets_pass_what_is_not():
    harmless = "import numpy as np\nmodel.eval()\nre.compile('a')\nnp.load(path, allow_pickle=False)\n"
    assert not list(dangers(harmless + "torch.load(path, weights_only=True)\nsubprocess.run(['ls'], shell=False)"))


@pytest.mark.parametrize("path", [*SOURCES, *NOTEBOOKS], ids=lambda path: path.name)
def test_nothing_dangerous_is_done(path):
    """Grading does run what students wrote, in a kernel of its own: tools/handouts.py says where to do it."""
    sources = [path.read_text(encoding="utf-8")]
    if path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        sources = [without_pip(cell.source) for cell in cells if cell.cell_type == "code"]
    assert not [line for source in sources for line in dangers(source)]


# ---------------------------------------------------------------- downloads


@pytest.mark.parametrize(
    "change",
    [
        {"url": "http://127.0.0.1/x"},
        {"url": "ftp://127.0.0.1/x"},
        {"url": "file:///etc/passwd"},
        {"url": "/etc/passwd"},
        {"sha256": ""},
        {"sha256": None},
        {"sha256": "0" * 63},
        {"sha256": "0" * 63 + "\n"},
        {"sha256": "g" * 64},
        {"sha256": "md5:" + "0" * 32},
        {"name": ""},
        {"name": ".."},
        {"name": "../x"},
        {"name": "/tmp/x"},
        {"name": "folder/x"},
    ],
    ids=str,
)
def test_a_file_without_name_https_or_checksum_is_refused(server, change):
    with pytest.raises(ValueError, match="plain name, an https address and a SHA-256"):
        _downloads.download(data.FASHION_MNIST["train", "x"]._replace(**change))
    assert server.asked == [] and not server.cache.exists()


def test_every_published_file_has_name_https_and_checksum(monkeypatch, tmp_path):
    monkeypatch.setattr(_downloads, "_cache", lambda: tmp_path)
    for file in (*_downloads.FASHION_MNIST.values(), _downloads.CIFAR10):
        (tmp_path / file.name).mkdir()  # so that nothing is asked
        with pytest.raises(OSError, match="directory"):
            _downloads.download(file)


@pytest.mark.parametrize("hops", [[], ["/second"], ["/second", "/third"]])
def test_a_redirect_to_http_is_refused(server, hops):
    with listening(server.folder, secure=False) as plain:
        path = f"/{X}"
        for target in [*hops, plain.address + X]:
            server.answers[path] = lambda handler, target=target: handler.begin(0, 302, Location=target)
            path = target
        with pytest.raises(OSError, match="not https"):
            data.fashion_mnist()
        assert plain.asked == [] and server.asked == [f"/{X}", *hops] and in_cache(server) == []


def test_a_redirect_to_https_is_followed_and_still_checked(server, tmp_path):
    with listening(tmp_path) as other:
        server.answers[f"/{X}"] = lambda handler: handler.begin(0, 302, Location=f"{other.address}../{X}")
        (tmp_path / X).write_bytes(b"other")
        with pytest.raises(OSError, match="another checksum"):
            data.fashion_mnist()
        assert in_cache(server) == [] and other.asked
        (tmp_path / X).write_bytes((server.folder / X).read_bytes())
        check_fashion()


# ---------------------------------------------------------------- archives

BATCHES = [f"cifar-10-batches-bin/{name}" for names in _downloads.CIFAR10_MEMBERS.values() for name in names]
WHOLE = [member(name) for name in BATCHES]
LINKS = {"type": tarfile.SYMTYPE, "size": 0}


def read(server, monkeypatch, packed):
    monkeypatch.setattr(data, "CIFAR10", server.file(CIFAR, packed))
    return data.cifar10("test")


def test_a_hostile_archive_writes_nothing(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = [
        member("../outside"),
        member(str(tmp_path / "absolute")),
        member("cifar-10-batches-bin/../../up"),
        member("link", linkname="/etc", **LINKS),
        member("link/inside"),
        member("device", type=tarfile.CHRTYPE, size=0),
        member("queue", type=tarfile.FIFOTYPE, size=0),
    ]
    before = {path for path in tmp_path.parent.rglob("*")}
    got = read(server, monkeypatch, archive(*hostile, *(member(name) for name in BATCHES)))
    assert got.y.tolist() == [3, 9]
    assert {path for path in tmp_path.parent.rglob("*")} - before == {server.cache, server.cache / CIFAR}


@pytest.mark.parametrize(
    "batch",
    [
        None,
        {"content": RECORDS[:-1]},
        {"content": RECORDS * 2},
        {"content": b"", "type": tarfile.DIRTYPE},
        {"content": b"", "linkname": "/etc/passwd", **LINKS},
        {"content": b"", "linkname": "other", **LINKS},
        {"content": b"", "linkname": "other", "type": tarfile.LNKTYPE},
        {"content": RECORDS, "linkname": "other", "type": tarfile.LNKTYPE},
        {"content": b"", "type": tarfile.FIFOTYPE},
    ],
    ids=["missing", "short", "long", "folder", "link out", "link", "hard link", "hard link with content", "pipe"],
)
def test_an_archive_of_another_structure_is_refused(server, monkeypatch, batch):
    members = [member("cifar-10-batches-bin/other"), *([member(BATCHES[-1], **batch)] if batch else [])]
    with pytest.raises(ValueError, match=rf"{CIFAR}.*test_batch.bin"):
        read(server, monkeypatch, archive(*members))


@pytest.mark.parametrize(
    "packed",
    [b"", b"no gzip", gzip.compress(b"no archive" * 100), archive(*WHOLE)[:-900]],
    ids=["empty", "not packed", "no archive", "truncated"],  # the bytes hold the time
)
def test_what_is_no_archive_is_refused(server, monkeypatch, packed):
    with pytest.raises(ValueError, match=f"{CIFAR} is not the archive"):
        read(server, monkeypatch, packed)


def test_bombs_are_not_unpacked(server, tmp_path, monkeypatch):
    """Files of your own that hold far more than the data set: little of it comes into memory."""
    monkeypatch.setenv("VQNOTES_DATA", str(tmp_path))
    huge = 64 * 2**20
    bomb = gzip.compress(bytes(huge), compresslevel=1)
    for name, load in ((X, data.fashion_mnist), (CIFAR, data.cifar10), ("x-ubyte", data.fashion_mnist)):
        if name.endswith("gz"):
            (tmp_path / name).write_bytes(bomb)
        else:
            (tmp_path / X).unlink()
            with (tmp_path / name).open("wb") as sparse:
                sparse.truncate(huge)
        tracemalloc.start()
        with pytest.raises(ValueError, match=f"{name} is not usable"):
            load()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < huge / 50, name


def test_the_known_sizes_are_those_of_the_sets():
    sizes = {key: file.unpacked_size for key, file in _downloads.FASHION_MNIST.items()}
    images = {split: 16 + count * 28 * 28 for split, count in (("train", 60_000), ("test", 10_000))}
    labels = {split: 8 + count for split, count in (("train", 60_000), ("test", 10_000))}
    assert sizes == {(split, part): {"x": images, "y": labels}[part][split] for split, part in NAMES}


# ---------------------------------------------------------------- what is shown and written

SCRIPT = "<script>alert('1')</script><img src=x onerror=\"alert(2)\">&amp;"


class Seen(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.attributes = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def test_a_diagnosis_shows_text_as_text():
    evidence = {SCRIPT: Evidence(1.0, 2.0, SCRIPT, SCRIPT)}
    page = Seen(Diagnosis(SCRIPT, SCRIPT, evidence, [Advice(SCRIPT, SCRIPT, SCRIPT)], [SCRIPT])._repr_html_())
    assert page.text.count(SCRIPT) == 9 and not {"script", "img"} & set(page.tags)


def test_an_explorer_shows_text_as_text():
    box = explorers.explorer(lambda *_: (plt.figure(figsize=(1, 1)), SCRIPT), {SCRIPT: [SCRIPT, "b"], "n": [1, 2]})
    page = Seen(box.children[-1].value)
    assert page.tags == ["img", "p"] and page.text == dict(page.attributes)["alt"] == SCRIPT
    assert {name for name, _ in page.attributes} == {"src", "alt", "style"}
    for control in box.children[:-1]:
        assert isinstance(control, ipywidgets.ToggleButtons | ipywidgets.SelectionSlider)
        assert not getattr(control, "description_allow_html", False)  # ipywidgets 7 has no such option


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(1)", "\t=1", "\n=1", " =1", "ada, =1"])
def test_grades_hold_no_formulas(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    handouts = importlib.import_module("handouts")
    said = {"0.1": name, "0.2": "correct", "0.3": "wrong"}
    monkeypatch.setattr(handouts, "verdicts", lambda path, checks: dict.fromkeys(checks, "not found") | said)
    (tmp_path / name).mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / name / "mine.ipynb")
    table = handouts.grade(tmp_path)
    assert table["notebook"].tolist() == [str(Path(name) / "mine.ipynb")] * 3 and table["verdict"][0] == name
    with (tmp_path / "grades.csv").open(newline="", encoding="utf-8") as stored:
        rows = [*csv.DictReader(stored)]
    assert len(rows) == 3 and not [entry for row in rows for entry in row.values() if entry[0] in "=+-@\t\r\n "]
    assert rows[0]["notebook"].removeprefix("'") == table["notebook"][0]
    assert rows[0]["verdict"].removeprefix("'") == name
    assert rows[0]["student"].removeprefix("'") == table["student"][0] == Path(name).parts[0]
