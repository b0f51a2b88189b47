"""The quantiser that grows with the course: what a reader wrote is kept if it is right, and then taken."""

import importlib
import importlib.util

import nbformat
import pytest
import torch
from exercise_tools import code_of, exercises
from helpers import normal
from notebook_tools import NOTEBOOKS

from vqnotes import quantizers
from vqnotes.course import exercises as checks
from vqnotes.course.growing import OURS, PARTS, MyQuantizer, keep, mine
from vqnotes.diagnosis.conformance import Adapter, check

SOLUTIONS = {
    name: code_of(one.solution)
    for path in NOTEBOOKS
    for one in exercises(nbformat.read(path, as_version=4).cells)
    for name in PARTS
    if one.kind == "Exercise" and f"def {name}(" in one.solution
}
IMPORTS = "import math\nimport torch\nimport torch.nn.functional as F\n\n\n"


@pytest.fixture
def written(tmp_path):
    """From the text of a module to its functions, whose source Python can find."""
    count = iter(range(100))

    def load(text):
        path = tmp_path / f"notebook{next(count)}.py"
        path.write_text(IMPORTS + text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def file(tmp_path):
    return tmp_path / "kept" / "my_vq.py"


@pytest.fixture(autouse=True)
def folder(file):
    file.parent.mkdir()


def test_every_part_is_an_exercise():
    assert SOLUTIONS.keys() == PARTS.keys() == OURS.keys()


@pytest.mark.parametrize("name", PARTS)
def test_the_courses_copy_solves_its_exercise(name, capsys):
    module = importlib.import_module(f"{checks.__name__}.nb{PARTS[name]}")
    for _ in range(5):
        getattr(module, f"check_{name}")(OURS[name])
        assert capsys.readouterr().out.endswith(": correct\n")


def test_solutions_are_kept_and_come_back(written, file, capsys):
    for name, solution in SOLUTIONS.items():
        keep(getattr(written(solution), name), file)
        assert capsys.readouterr().out == f"{name} is kept in my_vq.py.\n"
    found = mine(file)
    assert capsys.readouterr().out == f"⟨Yours: {', '.join(PARTS)}. The course's: none.⟩\n"
    assert not any(found[name] is OURS[name] for name in PARTS)
    assert [path.name for path in file.parent.iterdir()] == ["my_vq.py"]


def test_without_a_file_the_courses_copies_are_taken(file, capsys):
    assert mine(file) == OURS
    assert capsys.readouterr().out == f"⟨Yours: none. The course's: {', '.join(PARTS)}.⟩\n"


@pytest.mark.parametrize(
    "text, because",
    [
        ("def in_effect(index, codebook_size):\n    return ...\n", "not attempted yet"),
        ("def in_effect(index, codebook_size):\n    return index.unique().numel()\n", "however rarely"),
        ("def in_effect(index, codebook_size):\n    return 1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_what_is_not_right_is_not_kept(text, because, written, file, capsys):
    keep(written(text).in_effect, file)
    said = capsys.readouterr().out
    assert said.startswith("in_effect is not kept: ") and because in said and not file.exists()


def test_what_needs_the_notebook_is_not_kept(written, file, capsys):
    helped = SOLUTIONS["in_effect"].replace("torch.bincount(index, minlength=codebook_size)", "counted(index, 0)")
    helper = "def counted(index, size):\n    return torch.bincount(index)\n\n\n"
    keep(written(helper + helped).in_effect, file)
    said = capsys.readouterr().out
    assert "does not work without the notebook" in said and "'counted'" in said and not file.exists()


def test_a_new_version_takes_the_place_of_the_old_one_and_all_else_stays(written, file, capsys):
    keep(written(SOLUTIONS["follow"]).follow, file)
    file.write_text(file.read_text(encoding="utf-8") + "\n\nMY_NOTE = 'ä'\n", encoding="utf-8")
    keep(written(SOLUTIONS["in_effect"]).in_effect, file)
    changed = SOLUTIONS["follow"].replace("return", "# better\n    return")
    keep(written(changed).follow, file)
    text = file.read_text(encoding="utf-8")
    assert text.count("def follow(") == 1 and "# better" in text and "MY_NOTE = 'ä'" in text and "in_effect" in text
    capsys.readouterr()
    mine(file)
    assert "Yours: follow, in_effect." in capsys.readouterr().out


def test_a_file_that_was_spoilt_is_told_of_and_left_alone(written, file, capsys):
    file.write_text("def quantize(:\n", encoding="utf-8")
    assert mine(file) == OURS
    assert "my_vq.py stops with SyntaxError" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no Python"):
        keep(written(SOLUTIONS["follow"]).follow, file)
    assert file.read_text(encoding="utf-8") == "def quantize(:\n"
    file.write_text("def in_effect(index, codebook_size):\n    return len(index)\n", encoding="utf-8")
    assert mine(file) == OURS
    assert "(in_effect: wrong because" in capsys.readouterr().out


def test_another_function_is_refused(file):
    with pytest.raises(ValueError, match="quantize, follow, restart, in_effect, got 'normal'"):
        keep(normal, file)


# ---------------------------------------------------------------- put together


@pytest.mark.parametrize("decay", [None, 0.9])
def test_steps_are_those_of_the_module(decay):
    latents = normal(200, 3)
    torch.manual_seed(1)
    own = MyQuantizer(16, 3, decay=decay)
    options = {"update": "gradient"} if decay is None else {"update": "ema", "decay": decay}
    other = quantizers.VectorQuantizer(16, 3, **options)
    place = normal(16, 3, seed=1), torch.full((16,), 1 / 16)
    own.place_codes(*place)
    other.place_codes(*place)
    for _ in range(3):
        flows = []
        for one in (own, other):
            z = latents.clone().requires_grad_()
            out = one(z)
            # moving averages have no codebook loss in the module; here it is there, and moves nothing
            wanted = [z] if decay else [z, one.codebook]
            flows.append((out.latents_q, out.index, *torch.autograd.grad(out.loss + out.latents_q.sum(), wanted)))
        for mine_, theirs in zip(*flows):
            torch.testing.assert_close(mine_, theirs)
        torch.testing.assert_close(own.codes(), other.codes())


def test_codes_that_start_anew_are_latents_and_not_stale_at_once():
    latents = normal(400, 3)
    quantizer = MyQuantizer(8, 3, decay=0.5, threshold=0.5)
    quantizer.place_codes(torch.cat([normal(4, 3), 100 + normal(4, 3)]), torch.tensor([0.25] * 4 + [0.0] * 4))
    quantizer(latents)
    assert (quantizer.codebook[4:, None] == latents).all(dim=2).any(dim=1).all()
    assert (quantizer.share[4:] > 0.5 / 8).all()
    before = quantizer.codebook.clone()
    quantizer.eval()(latents)
    assert torch.equal(before, quantizer.codebook)


@pytest.mark.parametrize("options, update", [({}, "gradient"), ({"decay": 0.9}, "ema")])
def test_it_passes_the_checks_of_the_museum(options, update):
    adapter = Adapter(
        lambda codebook_size, dim, beta=0.25: MyQuantizer(codebook_size, dim, beta=beta, **options),
        call=lambda quantizer, latents: quantizer(latents),
        codes=lambda quantizer: quantizer.codes(),
        update=update,
    )
    results = check(adapter)
    assert not [str(one) for one in results if one.status == "failed"]
    assert sum(one.status == "passed" for one in results) >= 5


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="positive, got 0 and 2"):
        MyQuantizer(0, 2)
    with pytest.raises(ValueError, match="threshold=0.1 without decay"):
        MyQuantizer(4, 2, threshold=0.1)
