"""The command line: its exit status is the verdict, its examples run as they stand, and nothing else is a verdict."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from helpers import normal
from notebook_tools import ROOT

from vqnotes import __main__ as command_line
from vqnotes.diagnosis import Diagnosis, StackDiagnosis, diagnose, diagnose_tokens, load
from vqnotes.diagnosis.report import VERDICTS, Evidence, not_started
from vqnotes.diagnosis.tokens import SEEN, TOKEN_VERDICTS
from vqnotes.kmeans import kmeans


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with latents, sound codes for them, and bad ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("given_")]:
        monkeypatch.delitem(sys.modules, name)
    latents = normal(2000, 2)
    np.save("latents.npy", latents.numpy())
    np.save("good.npy", kmeans(latents, 32)[0].numpy())
    np.save("bad.npy", latents[:32].numpy() / 99)
    return tmp_path


def run(*arguments):
    """The exit status, also of what ends by itself."""
    try:
        return command_line.main([str(one) for one in arguments])
    except SystemExit as ended:
        return ended.code


# ---------------------------------------------------------------- the real command


def shell(commands, folder):
    """Commands as somebody types them, where `vqnotes` and `python` are those that are tested."""
    tools = folder / "tools"
    tools.mkdir()
    for name, arguments in (("vqnotes", '-m vqnotes "$@"'), ("python", '"$@"')):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}\n', encoding="utf-8")
        (tools / name).chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(["sh", "-c", commands], cwd=folder, env=environment, capture_output=True, encoding="utf-8")


def example(command, capsys):
    """The lines of the example in its help."""
    assert run(*command, "--help") == 0
    text = capsys.readouterr().out
    block = re.search(r"^example:\n((?:  .*\n)+)", text, re.M)[1]
    return [line.strip() for line in block.splitlines()]


@pytest.mark.skipif(os.name == "nt", reason="writes a shell script")
def test_the_examples_run_as_they_stand(tmp_path, capsys):
    """All in one folder and one shell: each start of Python takes seconds."""
    own, tokens, model = (example([name], capsys) for name in ("diagnose", "tokens", "model"))
    assert example([], capsys) == own
    done = shell("\n".join([*own, "echo $?", *tokens, "echo $?", *model, "echo $?"]), tmp_path)
    assert re.findall(r"^\d$", done.stdout, re.M) == ["1", "1", "1"] and done.stderr == ""
    assert re.findall(r"^Diagnosis: ([a-z ]+) \(", done.stdout, re.M)[:2] == ["token collapse", "few codes in use"]


def test_help_comes_at_once():
    """Without torch, which takes seconds."""
    code = (
        "import sys\nfrom vqnotes.__main__ import main\n"
        "try:\n    main(['tokens', '--help'])\n"
        "except SystemExit as ended:\n    print(ended.code, {'torch', 'numpy', 'pandas'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "0 set()"
    assert "exit status:\n  0  healthy" in done.stdout and "vqnotes tokens ids.bin" in done.stdout


def test_a_reader_that_stops_reading_changes_no_status(here):
    code = (
        "import os, sys\nfrom vqnotes.__main__ import main\nread, write = os.pipe()\nos.close(read)\n"
        "os.dup2(write, 1)\nstatus = main(sys.argv[1:])\nprint(status, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "diagnose", "latents.npy", "bad.npy"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
    assert done.stderr == "1\n" and done.returncode == 0


def test_the_script_that_is_installed_is_this_one():
    declared = re.search(r'^\[project.scripts\]\nvqnotes = "(.*):(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert getattr(import_module(declared[1]), declared[2]) is command_line.main


# ---------------------------------------------------------------- the status


def one(verdict, doubts=()):
    return Diagnosis(verdict, "", {"a": Evidence(1, 1, "", "")}, [], doubts=[*doubts])


def test_every_verdict_has_a_status():
    expected = {"healthy": 0, "cannot tell": 2} | dict.fromkeys(SEEN, 0)
    for verdict in {*VERDICTS, *TOKEN_VERDICTS}:
        assert command_line.status(one(verdict)) == expected.get(verdict, 1), verdict
    assert command_line.status(one("healthy", ["look"])) == command_line.status(not_started(["vq"])) == 2
    assert command_line.status(one("token collapse", ["look"])) == 1
    assert command_line.status(one(SEEN[0], ["ids depend on their neighbours"])) == 0  # what was seen, was


def test_of_several_the_worst_counts():
    well, ill, unknown = one("healthy"), one("rate limit"), one("cannot tell")
    for parts, status in (([well], 0), ([well, unknown], 2), ([unknown, ill, well], 1)):
        assert command_line.status(StackDiagnosis(well, [parts])) == status
        assert command_line.status({str(i): part for i, part in enumerate(parts)}) == status


@pytest.mark.parametrize(
    "arguments, status, verdict",
    [
        (["good.npy", "--inputs", "latents.npy"], 0, "healthy"),
        (["bad.npy", "--inputs", "latents.npy"], 1, "token collapse"),
        (["good.npy"], 2, "cannot tell"),
    ],
)
def test_diagnose_says_what_the_function_says(here, capsys, arguments, status, verdict):
    assert run("diagnose", "latents.npy", *arguments) == status
    heard = capsys.readouterr()
    latents, codes = np.load("latents.npy"), np.load(arguments[0])
    expected = diagnose(latents, codes, inputs=latents if len(arguments) > 1 else None)
    assert heard.out == f"{expected}\n" and heard.err == "" and expected.verdict == verdict


def test_every_option_of_diagnose_arrives(here, monkeypatch):
    given = {}
    monkeypatch.setattr("vqnotes.diagnosis.diagnose", lambda *both, **named: given.update(named) or one("healthy"))
    for name in ("labels", "index", "mask", "reconstruction"):
        np.save(f"{name}.npy", np.arange(3) + len(name))
    options = [(f"--{name}", f"{name}.npy") for name in ("labels", "index", "mask", "reconstruction")]
    options += [("--channel-axis", -1), ("--places", "2,3"), ("--kind", "EMA codebook"), ("--seed", 7)]
    assert run("diagnose", "latents.npy", "good.npy", *(part for pair in options for part in pair), "--progress") == 0
    for name in ("labels", "index", "mask", "reconstruction"):
        assert given.pop(name)[0] == len(name)
    assert given == {
        "inputs": None,
        "channel_axis": -1,
        "places": (2, 3),
        "kind": "EMA codebook",
        "seed": 7,
        "progress": True,
    }


def test_progress_is_on_stderr(here, capsys):
    run("diagnose", "latents.npy", "good.npy", "--progress")
    with_bar = capsys.readouterr()
    run("diagnose", "latents.npy", "good.npy", "--no-progress")
    without = capsys.readouterr()
    assert with_bar.out == without.out and "k-means on the latents" in with_bar.err and without.err == ""


# ---------------------------------------------------------------- ids


def test_tokens_say_what_the_function_says(here, capsys):
    index = np.random.default_rng(0).integers(0, 40, (2000, 2)).astype("uint16")
    index.tofile("ids.bin")
    np.savez("ids.npz", ids=index)
    expected = diagnose_tokens(index, 64, seed=3)
    options = ["--codes", 64, "--seed", 3]
    for named in (["ids.bin", "--dtype", "uint16", "--length", 2], ["ids.bin:uint16:-1,2"], ["ids.npz:ids"]):
        assert run("tokens", *named, *options) == 1
        assert capsys.readouterr().out == f"{expected}\n"
    assert expected.verdict == "part of the codes in use"
    assert run("tokens", "ids.npz", "--codes", 40) == 0
    assert run("tokens", "ids.npz", "--codes", 4096) == 1
    np.save("few.npy", index[:20])
    assert run("tokens", "few.npy", "--codes", 4096) == 2


def test_tokens_of_several_codebooks(here, capsys):
    index = np.random.default_rng(0).integers(0, 40, (2000, 2))
    index[::7, 1] = -1
    np.save("ids.npy", index)
    options = ["--codes", 40, 50, "--stages-axis", -1, "--padding", -1, "--collisions", "--pairs", 0]
    assert run("tokens", "ids.npy", *options, "--json", "found.json") == 1
    expected = diagnose_tokens(index, [40, 50], stages_axis=-1, padding=-1, collisions=True, pairs=0)
    assert StackDiagnosis.load("found.json") == expected
    out = capsys.readouterr().out
    assert out.startswith(f"whole\n{expected.whole}\n\nlevel 0\n") and str(expected.parts[0][1]) in out


# ---------------------------------------------------------------- a model


MODEL = """
import beside
import torch
from vqnotes import VectorQuantizer, models

print("noise of a model")


def build():
    torch.manual_seed(beside.SEED)
    return models.mlp_autoencoder(4, VectorQuantizer(16, 2))


ready = build()


def batches():
    x = torch.randn(1024, 4, generator=torch.Generator().manual_seed(0))
    return [(part, torch.zeros(len(part), dtype=torch.int64)) for part in x.split(256)]


def broken():
    raise RuntimeError("no weights")


def leaves():
    raise SystemExit(0)


number = 3
"""


@pytest.fixture
def checkpoint(here):
    (here / "beside.py").write_text("SEED = 3\n", encoding="utf-8")
    (here / "torch.py").write_text("raise ImportError('the wrong torch')\n", encoding="utf-8")
    (here / "checkpoint.py").write_text(MODEL, encoding="utf-8")
    np.save("inputs.npy", normal(1024, 4).numpy())
    return here


def test_a_model_gets_a_verdict_on_each_quantiser(checkpoint, capsys):
    said = []
    for named in ("checkpoint.py:build", "checkpoint.py:ready"):
        assert run("model", named, "--data", "inputs.npy", "--json", "found.json") in (0, 1, 2)
        heard = capsys.readouterr()
        assert heard.err.startswith("noise of a model\n") and heard.out.startswith("quantizer\n")
        assert list(load("found.json")) == ["quantizer"] and str(load("found.json")["quantizer"]) in heard.out
        said.append(heard.out)
    assert said[0] == said[1]
    assert run("model", "checkpoint.py:build", "--data", "checkpoint.py:batches") in (0, 1, 2)
    assert capsys.readouterr().err.count("noise of a model") == 1  # the file runs once


@pytest.mark.parametrize(
    "model, data, says",
    [
        ("checkpoint.py", "inputs.npy", "need a Python file and a name in it, as in checkpoint.py:build"),
        ("inputs.npy:build", "inputs.npy", "need a Python file and a name in it"),
        ("nothing.py:build", "inputs.npy", "there is no file 'nothing.py:build'"),
        ("checkpoint.py:nothing", "inputs.npy", "stopped with AttributeError"),
        ("checkpoint.py:broken", "inputs.npy", "checkpoint.py:broken stopped with RuntimeError: no weights"),
        ("checkpoint.py:leaves", "inputs.npy", "stopped with SystemExit: 0"),
        ("checkpoint.py:number", "inputs.npy", "must be a torch.nn.Module, got int"),
        ("checkpoint.py:build", "latents.npy", "vqnotes model: "),
        ("checkpoint.py:build", "checkpoint.py:number", "data must be"),
    ],
)
def test_a_model_that_cannot_be_had_is_bad_input(checkpoint, capsys, model, data, says):
    assert run("model", model, "--data", data) == 3
    heard = capsys.readouterr()
    assert says in heard.err and heard.out == ""


# ---------------------------------------------------------------- files that come of it


def test_json_on_stdout_stands_alone(here, capsys):
    assert run("diagnose", "latents.npy", "bad.npy", "--json", "-") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "token collapse" and "lost by its own codes" not in found["evidence"]


def test_a_page_and_a_file_are_written_beside_the_report(here, capsys):
    options = ["--inputs", "latents.npy", "--html", "a.html", "--json", "a.json"]
    assert run("diagnose", "latents.npy", "bad.npy", *options) == 1
    assert capsys.readouterr().out == f"{load('a.json')}\n"
    assert (here / "a.html").read_text(encoding="utf-8").count("<img") == 2


def test_without_what_draws_the_page_has_no_figures_and_that_is_said(here, capsys, monkeypatch):
    find = command_line.find_spec
    monkeypatch.setattr(command_line, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert run("diagnose", "latents.npy", "bad.npy", "--html", "a.html") == 1
    assert "no figures: they need pip install 'vqnotes[course]'" in capsys.readouterr().err
    page = (here / "a.html").read_text(encoding="utf-8")
    assert "token collapse" in page and "<img" not in page


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["diagnose", "none.npy", "good.npy"], "vqnotes diagnose: there is no file 'none.npy'"),
        (["diagnose", "latents.npy", "codes.npy"], r"codes.npy is a broken .npy file"),
        (["diagnose", "latents.npy", "three.npy"], "dim|(2000, 2)"),
        (["diagnose", "latents.npy", "good.npy", "--inputs", "codes.npy"], "broken .npy"),
        (["diagnose", "latents.npy", "good.npy", "--kind", "new"], "kind must be one of"),
        (["diagnose", "latents.npy", "good.npy", "--places", "a"], "argument --places"),
        (["diagnose", "latents.npy", "good.npy", "--seed", "-1"], "seed must be in"),
        (["diagnose", "latents.npy", "good.npy", "--html", "no/a.html"], "no/a.html cannot be written"),
        (["diagnose", "latents.npy", "good.npy", "--json", "."], ". cannot be written: it is a folder"),
        (["diagnose", "latents.npy"], "arguments are required: codebook"),
        (["tokens", "ids.bin", "--codes", "8"], "say what it holds, as in ids.bin:float32"),
        (["tokens", "ids.bin", "--dtype", "uint16"], "arguments are required: --codes"),
        (["tokens", "ids.bin", "--dtype", "uint16", "--codes", "8"], "no whole number of uint16"),
        (["tokens", "ids.bin", "--dtype", "uint8", "--codes", "8", "--length", "2"], "--length 2 does not divide"),
        (["tokens", "ids.bin", "--dtype", "uint8", "--codes", "2"], "are not in 0 .. 1"),
        (["tokens", "ids.bin", "--dtype", "uint8", "--codes", "8", "9"], "size must be a whole number"),
        (["tokens", "latents.npy", "--codes", "8"], "whole numbers"),
        (["model", "checkpoint.py:build"], "arguments are required: --data"),
        (["heal"], "invalid choice"),
        ([], "required: COMMAND"),
    ],
)
def test_bad_input_has_a_status_of_its_own_and_says_what(here, capsys, arguments, says):
    (here / "codes.npy").write_bytes((here / "good.npy").read_bytes()[:140])
    (here / "ids.bin").write_bytes(bytes([1, 2, 3, 4, 5, 6, 7]))
    np.save("three.npy", np.ones((4, 3), dtype="f"))
    assert run(*arguments) == 3
    heard = capsys.readouterr()
    assert re.search(re.escape(says).replace(r"\|", "|"), heard.err) and heard.out == ""
    assert not re.search("Traceback", heard.err)


def test_nothing_but_a_verdict_has_the_status_of_one(here, capsys, monkeypatch):
    def fails(error):
        def diagnose(*_, **__):
            raise error

        monkeypatch.setattr("vqnotes.diagnosis.diagnose", diagnose)
        return run("diagnose", "latents.npy", "good.npy")

    for error in (RuntimeError("a defect"), MemoryError(), SystemExit(0)):
        assert fails(error) == 3 and "Traceback" in capsys.readouterr().err
    assert fails(KeyboardInterrupt()) == 130


def test_memory_maps_are_diagnosed_without_a_warning(here, recwarn):
    latents = torch.from_numpy(np.load("latents.npy"))
    for kind in (torch.float16, torch.float32, torch.float64):
        latents.to(kind).numpy().tofile("latents.bin")
        assert run("diagnose", f"latents.bin:{str(kind)[6:]}:-1,2", "good.npy", "--inputs", "latents.npy") == 0
    assert [str(one.message) for one in recwarn] == []
