"""Files of the larger data sets: whatever goes wrong with them is said, and nothing broken is used or left behind."""

import gzip
import re
import socket
import threading
from contextlib import suppress

import pytest
from notebook_tools import HOURS
from served import CIFAR, IMAGES, LABELS, PLAIN, X, Y, check_fashion, cut, elsewhere, idx, in_cache, printed

from vqnotes import _downloads, data

PACKED, SIZE = gzip.compress(PLAIN["train", "x"], mtime=0), str(len(PLAIN["train", "x"]))
WITHOUT_RIGHTS = (  # root may read and write anything; what is to be imported must be so before
    "own = downloads._cache; downloads._cache = lambda: Path('first'); said(); downloads._cache = own\n"
    "os.geteuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534))\n"
)


def failure(*options):
    with pytest.raises(OSError, match="VQNOTES_DATA") as raised:
        data.fashion_mnist(*options)
    return str(raised.value)


def points_to(monkeypatch, url):
    file = data.FASHION_MNIST["train", "x"]
    monkeypatch.setitem(data.FASHION_MNIST, ("train", "x"), file._replace(url=url))


# ---------------------------------------------------------------- what works


def test_fashion_mnist_is_downloaded_once_and_read(server):
    check_fashion()
    assert in_cache(server) == [X, Y] and server.asked == [f"/{X}", f"/{Y}"]
    for path in server.folder.glob("*"):
        path.unlink()  # from here on only the cache can answer
    check_fashion(limit=5)


def test_cifar10_is_read_from_its_binary_archive(server):
    got = data.cifar10("train")
    assert got.x.shape == (10, 3, 32, 32) and got.y.tolist() == [3, 9] * 5
    assert got.x[0].flatten()[:3].tolist() == pytest.approx([0, 1 / 255, 2 / 255]) and got.x[1].sum() == 0
    assert data.cifar10("test", limit=1).y.tolist() == [3]
    assert in_cache(server) == [CIFAR]


@pytest.mark.parametrize("packed", [True, False])
def test_a_folder_of_your_own_comes_first(server, tmp_path, monkeypatch, packed):
    monkeypatch.setenv("VQNOTES_DATA", str(tmp_path))
    for name, array in ((X, IMAGES), (Y, LABELS)):
        if packed:  # gzipped in another way than the published file
            (tmp_path / name).write_bytes(gzip.compress(idx(array), compresslevel=1, mtime=1))
        else:
            (tmp_path / name.removesuffix(".gz")).write_bytes(idx(array))
    check_fashion()
    (tmp_path / CIFAR).write_bytes((server.folder / CIFAR).read_bytes())
    assert len(data.cifar10().x) == 10
    assert in_cache(server) == server.asked == []


def test_two_processes_at_once_both_succeed(server):
    started, both_asked = [], threading.Barrier(2)

    def answer(handler):  # so that neither can find what the other has downloaded
        started.append(both_asked.wait(HOURS))
        content = (server.folder / X).read_bytes()
        handler.begin(len(content))
        handler.wfile.write(content)

    server.answers[f"/{X}"] = answer
    both = [elsewhere(server, "print(said())") for _ in range(2)]
    assert [printed(one) for one in both] == [[SIZE]] * 2 and len(started) == 2
    assert in_cache(server) == [X]


def test_a_slow_server_that_delivers_is_waited_for(server, monkeypatch):
    content, pause = (server.folder / X).read_bytes(), threading.Event()

    def trickle(handler):
        handler.begin(len(content))
        for start in range(0, len(content), len(content) // 6):
            handler.wfile.write(content[start : start + len(content) // 6])
            handler.wfile.flush()
            pause.wait(_downloads.TIMEOUT / 4)  # longer than it in all

    server.answers[f"/{X}"] = trickle
    for timeout in (1, 8, 64):  # a machine that is too busy for the first has a chance with the next
        monkeypatch.setattr(_downloads, "TIMEOUT", timeout)
        with suppress(OSError):
            return check_fashion()
    pytest.fail("the server was not waited for")


def test_a_redirect_is_followed_and_the_file_keeps_its_own_name(server):
    (server.folder / "elsewhere").write_bytes((server.folder / X).read_bytes())
    headers = {"Location": "/elsewhere", "Content-Disposition": 'attachment; filename="../../other"'}
    server.answers[f"/{X}"] = lambda handler: handler.begin(0, 302, **headers)
    check_fashion()
    assert server.asked[:2] == [f"/{X}", "/elsewhere"] and in_cache(server) == [X, Y]


# ---------------------------------------------------------------- a download that fails


def test_a_refused_connection(server, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        points_to(monkeypatch, f"https://127.0.0.1:{closed.getsockname()[1]}/x")
        assert "refused" in failure()
    assert in_cache(server) == []


def test_a_server_that_cannot_prove_who_it_is(server, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    assert "certificate" in failure() and in_cache(server) == server.asked == []


@pytest.mark.parametrize("status", [404, 500])
def test_an_error_of_the_server(server, status):
    server.answers[f"/{X}"] = lambda handler: handler.send_error(status)
    assert str(status) in failure() and in_cache(server) == []
    del server.answers[f"/{X}"]
    check_fashion()


def test_a_connection_cut_in_the_middle(server):
    content = (server.folder / X).read_bytes()
    server.answers[f"/{X}"] = lambda handler: cut(handler, content, handler.connection.close)
    assert f"Could not get {X}" in failure() and in_cache(server) == []
    del server.answers[f"/{X}"]
    check_fashion()


def test_a_server_that_falls_silent(server, monkeypatch):
    monkeypatch.setattr(_downloads, "TIMEOUT", 0.5)
    content, over = (server.folder / X).read_bytes(), threading.Event()
    for silent in (lambda handler: cut(handler, content, over.wait), lambda handler: over.wait()):
        server.answers[f"/{X}"] = silent
        assert "timed out" in failure() and in_cache(server) == []
    over.set()


@pytest.mark.parametrize("change", [lambda whole: whole[: len(whole) // 2], lambda _: gzip.compress(b"other")])
def test_another_content_than_the_published(server, change):
    path = server.folder / X
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    assert "another checksum" in failure() and in_cache(server) == []
    path.write_bytes(whole)
    check_fashion()


def test_a_full_disk(server):
    code = (
        "size = resource.RLIMIT_FSIZE; most = resource.getrlimit(size)[1]\n"
        "resource.setrlimit(size, (4096, most)); print(said())\n"
        "resource.setrlimit(size, (most, most)); print(os.listdir('cache'), said())"
    )
    full, again = printed(elsewhere(server, code))
    assert full.startswith(f"OSError: Could not get {X}") and "File too large" in full and "VQNOTES_DATA" in full
    assert again == f"[] {SIZE}"


# ---------------------------------------------------------------- the cache


def test_a_broken_file_in_the_cache_is_replaced_if_it_can_be(server):
    check_fashion()
    (server.cache / X).write_bytes(b"half a file")
    (server.folder / X).rename(server.folder / "away")
    failure()
    assert (server.cache / X).read_bytes() == b"half a file" and in_cache(server) == [X, Y]
    (server.folder / "away").rename(server.folder / X)
    check_fashion()


def test_a_file_where_the_cache_should_be_is_kept(server):
    server.cache.write_bytes(b"mine")
    assert str(server.cache) in failure() and server.cache.read_bytes() == b"mine"


def test_a_folder_where_the_file_should_be_is_kept(server):
    (server.cache / X / "mine").mkdir(parents=True)
    assert "directory" in failure() and (server.cache / X / "mine").is_dir() and server.asked == []


def test_a_cache_that_may_not_be_written_or_read(server, tmp_path):
    tmp_path.chmod(0o755)  # for the authority's certificate
    check_fashion()
    for name, forbidden in (("locked", "."), ("hidden", X)):
        (tmp_path / name).mkdir()
        (tmp_path / name / X).write_bytes(PACKED)
        (tmp_path / name / forbidden).chmod(0)
    server.cache.chmod(0o555)
    code = "".join(
        f"downloads._cache = lambda: Path({folder!r}); print(said({split!r}))\n"
        for folder, split in (("cache", "train"), ("cache", "test"), ("cache/new", "test"))
        + (("locked", "train"), ("hidden", "train"))
    )
    whole, *refused = printed(elsewhere(server, WITHOUT_RIGHTS + code))
    server.cache.chmod(0o755)
    (tmp_path / "locked").chmod(0o755)
    assert whole == SIZE and len(refused) == 4
    assert all(re.match("OSError: Could not get .*Permission denied", one) for one in refused), refused
    assert in_cache(server) == [X, Y] and (tmp_path / "locked" / X).read_bytes() == PACKED


# ---------------------------------------------------------------- files of your own, and of the system


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip at all",
        b"",
        gzip.compress(b"other", mtime=0),
        gzip.compress(PLAIN["train", "y"]),
        gzip.compress(PLAIN["test", "x"]),
        PACKED[:-9],
        PACKED[: len(PACKED) // 2],
        PACKED[:2000] + bytes(100) + PACKED[2100:],
        PACKED + b"more",
        None,
    ],
    ids=["not packed", "empty", "other", "labels", "test", "no end", "half", "damaged", "longer", "a folder"],
)
def test_a_wrong_file_of_your_own_is_named_and_kept(server, tmp_path, monkeypatch, content):
    monkeypatch.setenv("VQNOTES_DATA", str(tmp_path))
    for name, load in ((X, data.fashion_mnist), (CIFAR, data.cifar10)):
        path = tmp_path / name
        path.mkdir() if content is None else path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path} is not usable.*Replace it, or remove it"):
            load()
        assert path.is_dir() if content is None else path.read_bytes() == content
    assert in_cache(server) == server.asked == []


@pytest.mark.parametrize("content", [PLAIN["train", "x"][:-1], PLAIN["train", "x"] + b"1", PLAIN["test", "x"]])
def test_a_wrong_unpacked_file_of_your_own_is_named(server, tmp_path, monkeypatch, content):
    monkeypatch.setenv("VQNOTES_DATA", str(tmp_path))
    (tmp_path / "x-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match="x-ubyte is not usable: its content differs"):
        data.fashion_mnist()


def test_a_file_of_your_own_that_may_not_be_read_is_named(server, tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / X).write_bytes(PACKED)
    (tmp_path / "own" / X).chmod(0)
    (tmp_path / "file").write_bytes(b"")
    code = "os.environ['VQNOTES_DATA'] = {!r}; print(said())\n"
    said = printed(elsewhere(server, WITHOUT_RIGHTS + code.format("own") + code.format("file")))
    assert said[0].startswith(f"ValueError: own/{X} is not usable") and "Permission denied" in said[0]
    assert said[1].startswith(f"ValueError: file/{X} is not usable") and "Not a directory" in said[1]


@pytest.mark.parametrize(
    "content",
    [b"no gzip at all", PACKED[:-9], gzip.compress(PLAIN["test", "x"]), None],
    ids=["not packed", "no end", "test", "a folder"],
)
def test_a_wrong_file_of_the_system_is_passed_over(server, tmp_path, monkeypatch, content):
    monkeypatch.setattr(_downloads, "DEBIAN_FASHION_MNIST", tmp_path)
    (tmp_path / X).mkdir() if content is None else (tmp_path / X).write_bytes(content)
    (tmp_path / Y).write_bytes(gzip.compress(idx(LABELS), mtime=1))
    check_fashion()
    assert in_cache(server) == [X]
