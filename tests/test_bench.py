"""`make bench`: its rows are made whole, what is not installed is said, and the load beside it ends with it."""

import signal
import subprocess
import sys
from contextlib import contextmanager

import bench
import bench_peers
import bench_tools
import numpy as np
import psutil
import pytest
import torch
from helpers import normal
from notebook_tools import HOURS, ROOT

from vqnotes import nearest_code

SMALL = ((64, 4, 8), (65, 3, 16))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench_peers, "SIZES", SMALL)
    monkeypatch.setattr(bench_peers, "STEPS", (1, 2))
    monkeypatch.setattr(bench_peers, "CODEBOOKS", (4, 16))
    latents = type("Data", (), {"x": normal(300, 3)})
    monkeypatch.setattr(bench_peers.data, "gaussian_modes", lambda **_: latents)


def one_section(*rows, error=None):
    def section(repeats, device):
        yield from rows
        if error:
            raise error

    return section


# ---------------------------------------------------------------- the command


def test_a_median_is_said_with_its_ends():
    assert bench_tools.said([3.0, 1.0, 1.5]) == "1.50 (1.00 .. 3.00)" and bench_tools.said([2.0]) == "2.00"


@pytest.mark.parametrize("words", [["quantiser"], ["--repeats", "0"], ["--busy", "-1"], ["--device", "tpu"]])
def test_what_cannot_be_measured_is_refused(words):
    with pytest.raises(SystemExit) as refused:
        bench.main(words)
    assert refused.value.code == 2


def test_a_section_that_fails_stops_no_other(monkeypatch, capsys):
    row = ("case", "a / b", "1.00", ">= 1")
    missing = ModuleNotFoundError("No module named 'faster'", name="faster")
    sections = {"first": one_section(row, error=missing), "second": one_section(row), "third": one_section(row)}
    monkeypatch.setattr(bench, "SECTIONS", sections)
    assert bench.main(["first", "second"]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if line.startswith("| ")][1:]
    assert said[::2] == ["| case | a / b | 1.00 | >= 1 |"] * 2 and "first | faster is not installed" in said[1]
    sections["second"] = one_section(row, error=ValueError("it broke"))
    assert bench.main(["second", "third"]) == 1
    shown = capsys.readouterr()
    assert shown.out.count("| case | a / b") == 2 and "it broke" in shown.err


def test_the_header_says_what_runs_beside_it(monkeypatch, capsys):
    running = []

    @contextmanager
    def busy(processes):
        running.append(processes)
        yield
        running.append("ended")

    def section(repeats, device):
        assert running[-1] in (0, 3)
        yield "", "", "", ""

    monkeypatch.setattr(bench, "SECTIONS", {"one": section})
    monkeypatch.setattr(bench, "busy", busy)
    for number in (3, 0):
        assert bench.main(["one", "--busy", str(number), "--repeats", "2"]) == 0
        first = capsys.readouterr().out.splitlines()[0]
        assert "2 repeats" in first and ("beside 3 busy processes" in first) == (number == 3)
    assert running == [3, "ended", 0, "ended"]


def test_the_load_ends_with_a_bench_that_is_interrupted():
    command = [sys.executable, ROOT / "tools" / "bench.py", "start", "--busy", "2", "--repeats", str(10**6)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert "beside 2 busy processes" in running.stdout.readline()
        load: list[psutil.Process] = []
        while len(load) < 2:
            children = psutil.Process(running.pid).children()
            load = [one for one in children if "getppid" in " ".join(one.cmdline())]
        running.send_signal(signal.SIGINT)
        assert running.wait(HOURS) != 0
        assert psutil.wait_procs(load, timeout=HOURS)[1] == []


# ---------------------------------------------------------------- the search


def test_answers_that_are_not_the_nearest_are_counted():
    latents, codes = torch.tensor([[0.0], [1.0], [2.0], [0.5]]), torch.tensor([[0.0], [1.0]])
    answers = {"right, of two as near either": np.array([0, 1, 1, 1]), "wrong": torch.tensor([1, 1, 0, 0])}
    assert list(bench_peers.not_nearest(answers, latents, codes).values()) == [0, 2]


def test_peers_find_what_we_find():
    for count, dim, size in SMALL:
        latents, codes = normal(count, dim), normal(size, dim, seed=1)
        for name, peer in bench_peers.searches(latents, codes).items():
            assert np.array_equal(peer(), nearest_code(latents, codes)), name


def test_the_search_is_measured_with_one_thread_and_with_two(small):
    before = torch.get_num_threads()
    rows = list(bench_peers.search(1, "cpu"))
    assert {len(row) for row in rows} == {4} and torch.get_num_threads() == before
    ratios = [row for row in rows if row[1] == "scipy vq / nearest_code"]
    assert [row[0].rpartition(", ")[2] for row in ratios] == ["1 thread", "2 threads"] * len(SMALL)
    wrong = [row[2] for row in rows if "not the nearest" in row[1]]
    assert len(wrong) == 2 * len(SMALL) and all(one.startswith("nearest_code 0, ") for one in wrong)


def test_threads_are_as_before_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ValueError), bench_peers.threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ValueError
    assert torch.get_num_threads() == before


def test_without_faiss_one_row_says_so():
    code = (
        "import sys; sys.modules['faiss'] = None; sys.path.insert(0, 'tools')\nimport bench_peers\n"
        "print(next(bench_peers.search(1, 'cpu'))[1], next(bench_peers.kmeans(1, 'cpu'))[1], *bench_peers.METHODS)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.count("not installed") == 2 and "faiss" not in run.stdout


# ---------------------------------------------------------------- k-means


ENDS = torch.tensor([[-1.0], [1.0]])  # a code at c has the error 1 + c^2


def toward(*errors):
    """A method with one code for ENDS, and such errors after 1, 2, ... steps."""
    return bench_peers.Method(
        lambda x, size: None, lambda x, _, count: torch.tensor([[(errors[count - 1] - 1) ** 0.5]])
    )


def test_the_first_number_of_steps_within_the_bound_counts(monkeypatch):
    monkeypatch.setattr(bench_peers, "STEPS", (1, 2, 4))
    track = bench_peers.Track(toward(9.0, 4.0, 4.0, 1.0), ENDS, 1)
    assert [track.first_within(bound) for bound in (9.5, 4.5, 1.01, 0.9)] == [1, 2, 4, None]
    assert track.after(2)[0] == pytest.approx(4) and track.after(2)[1] >= track.start_s and track.again(2) > 0


def test_methods_beside_ours_are_named_with_what_they_reached(small, monkeypatch):
    methods = {"kmeans": toward(4.0, 1.0), "quick": toward(1.01, 1.0), "stuck": toward(9.0, 3.0)}
    monkeypatch.setattr(bench_peers, "METHODS", methods)
    monkeypatch.setattr(bench_peers, "CODEBOOKS", (1,))
    monkeypatch.setattr(bench_peers.data, "gaussian_modes", lambda **_: type("Data", (), {"x": ENDS}))
    names, figures = zip(*[row[1:3] for row in bench_peers.kmeans(1, "cpu") if row[0] != "faiss"])
    assert "kmeans: seconds to within 2 %, 2 steps" in names and "quick, 1 steps / kmeans, to within 2 %" in names
    assert figures[names.index("stuck: error after 2 steps / best; seconds")].startswith("3.000; ")


def test_every_k_means_is_one(small):
    """More steps lower the error, and the codes are in the latents' place."""
    x = normal(300, 3) + 5
    for name, method in bench_peers.METHODS.items():
        track = bench_peers.Track(method, x, 16)
        assert track.after(20)[0] < track.after(1)[0] < 2 * track.after(20)[0], name
    rows = list(bench_peers.kmeans(1, "cpu"))
    assert {len(row) for row in rows} == {4}
    assert sum("stops of itself" in row[1] for row in rows) == len(bench_peers.CODEBOOKS)
