"""The notebooks as files: run in order, really compared, linked, small, and the same where they must be the same."""

import ast
import functools
import io
import re

import nbformat
import numpy as np
import pytest
import torch
from nbval.plugin import get_sanitize_patterns
from notebook_tools import (
    FOLDED,
    NOTEBOOKS,
    PICTURES,
    ROOT,
    SHOWN,
    TITLE,
    badge,
    clean,
    picture,
    pictures,
    setup_cell,
    without_pip,
)
from PIL import Image

from vqnotes import quantizers

ALLOWED_TAGS = {"nbval-ignore-output", "slide", FOLDED}
MOST_LINES = 15  # of an open cell
MACHINE_PATH = re.compile(r"/(?:home|root|Users|tmp|work|opt|usr)/|[A-Z]:\\\\")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path):
    return "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def test_notebooks_are_numbered_without_gaps():
    numbers = [int(path.name[:2]) for path in NOTEBOOKS]
    assert numbers == list(range(len(numbers)))
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", path.name) for path in NOTEBOOKS)


@each_notebook
def test_every_cell_was_run_in_order_without_error_or_warning(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", cell.source


@each_notebook
def test_nbval_really_compares_at_least_nine_cells_in_ten(path):
    cells = code_cells(path)
    ignored = [cell for cell in cells if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    assert len(ignored) <= len(cells) / 10
    for cell in cells:
        assert set(cell.metadata.get("tags", [])) <= ALLOWED_TAGS
        assert "NBVAL" not in cell.source
    for i, cell in enumerate(cells):  # nbval compares no picture: a claim must stand next to each
        if "plots.show(" in cell.source:
            assert any("claim(" in near.source for near in cells[max(0, i - 1) : i + 3]), cell.source


def test_nbval_loads_every_rule_of_sanitize_cfg():
    text = (ROOT / "tests" / "sanitize.cfg").read_text(encoding="utf-8")
    rules = get_sanitize_patterns(text)
    assert len(rules) == text.count("regex:") == 2
    bar = "training:  12%|█▏        | 12/100 [00:01<00:09,  9.8it/s]"
    assert re.sub(*rules[0], bar) == "" and re.sub(*rules[0], "12% of 3") == "12% of 3"
    lines = "✓ One  ⟨a = 1⟩\n✓ Two\n✓ Three  ⟨a = 2 · b = 3⟩"
    assert re.sub(*rules[1], lines) == "✓ One  ⟨⟩\n✓ Two\n✓ Three  ⟨⟩"


@each_notebook
def test_open_cells_are_short_and_plain_and_folded_ones_say_what_they_do(path):
    for cell in code_cells(path):
        first, *rest = cell.source.splitlines()
        folded = FOLDED in cell.metadata.get("tags", [])
        assert folded == first.startswith(TITLE), cell.source
        if folded or "vqnotes.course.exercises" in cell.source:
            continue
        assert len(rest) < MOST_LINES, cell.source
        assert ":=" not in cell.source and "options.pop" not in cell.source, cell.source


@each_notebook
def test_a_claim_stands_in_every_printed_tick(path):
    ticks = [line for cell in code_cells(path) for o in cell.outputs for line in o.get("text", "").splitlines()]
    assert sum(line.startswith("✓ ") for line in ticks) >= 6


@each_notebook
def test_the_file_is_clean_and_small(path):
    raw = path.read_text(encoding="utf-8")
    notebook = read(path)
    nbformat.validate(notebook)
    assert len(raw.encode()) < 600_000
    assert "widgets" not in notebook.metadata and notebook.metadata.kernelspec.name == "python3"
    text = raw
    for output in (o for cell in code_cells(path) for o in cell.outputs):
        for kind in PICTURES:
            text = text.replace(output.get("data", {}).get(kind, "\0"), "")
    assert not MACHINE_PATH.search(text), MACHINE_PATH.search(text)
    cleaned = read(path)
    clean(cleaned)
    assert cleaned == notebook, "run it through `make run`"


@each_notebook
def test_sections_and_cells_are_as_readers_need_them(path):
    lesson = prose(path).split("\n## Exercises\n")
    assert len(lesson) == 2 and "\n## What we saw\n" in lesson[1]
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= 30, cell.source
        if cell.source != setup_cell():  # JupyterLab shows about 95 characters on a screen 1280 pixels wide
            assert max(map(len, cell.source.splitlines())) <= 92, cell.source
        assert not re.search(r";\s*$", cell.source), "a trailing semicolon changes what nbval sees"
        assert "to_jshtml" not in cell.source and "clear_output" not in cell.source and "%time" not in cell.source


@each_notebook
def test_the_opening_and_the_end_are_complete(path):
    text = prose(path)
    assert re.match(rf"# {path.name[:2]} · .+\?\n", text), "the title is a question"
    for part in ("You will be able to", "What to know first:", "Time:", "Where it ends:"):
        assert f"**{part}**" in text
    assert text.count("Predict before you run") >= 1
    for heading in ("What we saw", "What this does not show", "Further reading"):
        assert f"\n## {heading}\n" in text


@each_notebook
def test_the_badge_opens_this_notebook(path):
    assert prose(path).count("colab.research.google.com/github") == 1 and badge(path) in prose(path)


@each_notebook
def test_the_set_up_cell_is_the_same_everywhere(path):
    assert [cell.source for cell in code_cells(path)].count(setup_cell()) == 1
    assert code_cells(path)[0].source == setup_cell()
    for cell in code_cells(path)[1:]:  # another library: only if it is missing
        assert "pip install" not in cell.source or re.match(r"try:\n    import .*\nexcept ImportError:", cell.source)


@each_notebook
def test_links_between_notebooks_resolve(path):
    links = re.findall(r"\]\(([^)]+)\)", prose(path))
    for link in links:
        if not link.startswith("https://"):
            assert (path.parent / link).is_file(), link
    position = NOTEBOOKS.index(path)
    end = prose(path).rsplit("---", 1)[1]
    for neighbour in NOTEBOOKS[max(0, position - 1) : position] + NOTEBOOKS[position + 1 : position + 2]:
        assert neighbour.name in end


@each_notebook
def test_figures_are_there_described_and_not_empty(path):
    figures = list(pictures(read(path)))
    assert len(figures) == sum(cell.source.count("plots.show(") for cell in code_cells(path)) >= 2
    for content, alt in figures:
        assert len(alt.split()) >= 6
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("L"), dtype=float)
        assert min(pixels.shape) > 150 and pixels.std() > 5


def defined(body):
    """Public names of the functions and classes of a module, and of the methods of its classes."""
    nodes = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    names = {node.name for node in nodes if not node.name.startswith("_") and node.name != "forward"}
    return names.union(*(defined(node.body) for node in nodes if isinstance(node, ast.ClassDef)))


@functools.cache
def defined_in_the_module():
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "vqnotes").rglob("*.py")]
    return set().union(*(defined(ast.parse(source).body) for source in sources))


@each_notebook
def test_code_uses_the_module_and_does_not_copy_it(path):
    if path.name.startswith("01"):
        return  # there the quantiser is taught; the next test compares it
    for cell in code_cells(path)[1:]:
        names = defined(ast.parse(without_pip(cell.source)).body)
        assert not names & defined_in_the_module(), names & defined_in_the_module()


def definitions(path):
    """What a notebook imports, and the functions and classes that it defines, as a namespace."""
    space, defining = {}, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef
    for cell in code_cells(path)[1:]:
        for node in ast.parse(cell.source).body:
            if isinstance(node, defining):
                exec(compile(ast.Module([node], []), path.name, "exec"), space)
    return space


def test_the_quantiser_taught_in_01_is_the_one_in_the_module():
    taught = definitions(NOTEBOOKS[1])
    rng = np.random.default_rng(0)
    for _ in range(20):
        latents = torch.from_numpy(rng.standard_normal((50, 4))).float().requires_grad_()
        codebook = torch.from_numpy(rng.standard_normal((16, 4))).float()
        assert torch.equal(taught["nearest_code"](latents, codebook), quantizers.nearest_code(latents, codebook))
        results = []
        for quantizer in (taught["VectorQuantizer"](16, 4), quantizers.VectorQuantizer(16, 4)):
            quantizer.load_state_dict({"codebook": codebook})
            latents_q, index, loss = quantizer(latents)
            gradients = torch.autograd.grad(latents_q.square().sum() + loss, [latents, quantizer.codebook])
            results.append((latents_q, index, loss, *gradients))
        assert all(torch.allclose(ours, theirs) for ours, theirs in zip(*results, strict=True))


# ---------------------------------------------------------------- the README and the public address


def test_the_readme_lists_every_notebook_with_its_badge():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        question = read(path).cells[0].source.splitlines()[0].split(": ", 1)[1]
        assert badge(path) in readme and f"notebooks/{path.name}" in readme and question in readme
    for link in re.findall(r"\]\(([^)]+)\)", readme):
        assert link.startswith(("https://", "#")) or (ROOT / link).exists(), link


def test_pictures_in_docs_are_those_of_the_notebooks():
    for path in NOTEBOOKS:
        for name, start_of_alt in SHOWN.get(path.stem, {}).items():
            assert (ROOT / "docs" / name).read_bytes() == picture(read(path), start_of_alt)


def test_the_cheat_sheet_in_docs_is_the_one_of_09():
    sheet = (ROOT / "docs" / "cheatsheet.md").read_text(encoding="utf-8")
    rows = [line for line in sheet.splitlines() if line.startswith("|")]
    (nine,) = [path for path in NOTEBOOKS if path.name.startswith("09")]
    assert "\n".join(rows) in prose(nine) and len(rows) >= 10
    assert "(decision_tree.png)" in sheet
    for link in re.findall(r"\]\(([^)]+)\)", sheet):
        assert (ROOT / "docs" / link).exists(), link
