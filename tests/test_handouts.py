"""What an instructor hands out and takes back: notebooks without solutions, slides, grades."""

import re
import sys

import nbformat
import pytest
from exercise_tools import code_of, exercises, filled
from notebook_tools import NOTEBOOKS, ROOT

sys.path.insert(0, str(ROOT / "docs"))
from handouts import deck, grade, slides, student  # noqa: E402


@pytest.fixture(scope="module")
def handed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    student(folder)
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_students_get_everything_but_the_solutions(path, handed):
    ours, theirs = nbformat.read(path, as_version=4), nbformat.read(handed / "notebooks" / path.name, as_version=4)
    nbformat.validate(theirs)
    text = "\n".join(cell.source for cell in theirs.cells)
    solutions = (handed / "solutions" / f"{path.stem}.md").read_text(encoding="utf-8")
    for one in exercises(ours.cells):
        assert one.solution not in text and one.solution in solutions
    assert "<summary>Solution" not in text and "<summary>Answer" not in text
    assert text.count("<summary>Hint") == sum(one.kind == "Exercise" for one in exercises(ours.cells))
    code = [[cell for cell in notebook.cells if cell.cell_type == "code"] for notebook in (ours, theirs)]
    assert code[0] == code[1]
    assert [one[:5] for one in exercises(theirs.cells)] == [one[:5] for one in exercises(ours.cells)]


def test_slides_have_headings_figures_and_notes(tmp_path):
    slides(tmp_path)
    page = (tmp_path / "lecture.html").read_text(encoding="utf-8")
    tagged = [
        cell
        for path in NOTEBOOKS
        for cell in nbformat.read(path, as_version=4).cells
        if "slide" in cell.metadata.get("tags", [])
    ]
    assert 12 <= len(tagged) <= 20
    drawn = sum(cell.cell_type == "code" for cell in tagged)
    assert page.count('<aside class="notes">') == drawn
    pictures = re.findall(r"<img[^>]*>", page)
    assert len(pictures) >= drawn and all(re.search(r'alt="[^"]{20,}', one) for one in pictures)


def test_grading_runs_the_answers_with_our_own_checks(tmp_path, capsys):
    path = NOTEBOOKS[0]
    notebook = nbformat.read(path, as_version=4)
    first, second, third, _ = exercises(notebook.cells)
    stubs = {one.stub: one for one in (first, second, third)}
    for cell in notebook.cells:
        if cell.source == first.stub:
            cell.source = filled(first.stub, code_of(first.solution))
        elif cell.source == second.stub:
            cell.source = "raise RuntimeError('mine')\n" + second.stub
        elif cell.source == third.stub:  # a reader who prints what we would like to see
            cell.source = "print('Exercise 0.3: correct')\n" + third.stub
    (tmp_path / "ada").mkdir()
    nbformat.write(notebook, tmp_path / "ada" / "renamed.ipynb")
    table = grade(tmp_path)
    assert table["exercise"].tolist() == [one.number for one in stubs.values()]
    assert table["verdict"].tolist() == ["correct", "RuntimeError: mine", "not attempted yet"]
    assert table["points"].tolist() == [1, 0, 0]
    assert (tmp_path / "grades.csv").read_text().count("\n") == 4 and "renamed.ipynb" in capsys.readouterr().out


def test_a_notebook_that_cannot_be_run_does_not_stop_the_others(tmp_path):
    (tmp_path / "broken.ipynb").write_text("half a notebo", encoding="utf-8")
    (one, *_) = (one for one in exercises(nbformat.read(NOTEBOOKS[0], as_version=4).cells) if one.stub)
    for name, source in (("a_dies", f"import os\nos._exit(1)\n{one.stub}"), ("b_runs", one.stub)):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    table = grade(tmp_path).set_index("notebook")
    assert table["exercise"].to_dict() == {"a_dies.ipynb": "all", "b_runs.ipynb": "0.1", "broken.ipynb": "all"}
    assert "DeadKernelError" in table["verdict"]["a_dies.ipynb"] and "JSON" in table["verdict"]["broken.ipynb"]
    assert table["verdict"]["b_runs.ipynb"] == "not attempted yet" and table["points"].sum() == 0


def test_grading_nothing_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no notebook"):
        grade(tmp_path)


# ---------------------------------------------------------------- the teaching guide

GUIDE = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")


def section(title):
    return re.split(r"^## ", GUIDE.split(f"\n## {title}\n")[1], flags=re.M)[0]


def test_the_guide_matches_every_exercise_with_an_outcome():
    numbers = {one.number for path in NOTEBOOKS for one in exercises(nbformat.read(path, as_version=4).cells)}
    named = re.findall(r"\b\d+\.\d\b", section("What students can do afterwards"))
    assert set(named) == numbers and len(named) == len(numbers)


@pytest.mark.parametrize("title, minutes", [("One lecture, 50 minutes", 50), ("A lab, 3 hours", 180)])
def test_the_plans_fit_their_time(title, minutes):
    assert sum(map(int, re.findall(r"^\| (\d+) \|", section(title), re.M))) == minutes


def test_the_guide_names_sections_that_exist():
    rows = re.findall(r"\[(\d\d)\]\(\.\./notebooks/(.+?)\), \"(.+?)\"", GUIDE)
    assert len(rows) >= 15
    for number, name, heading in rows:
        cells = nbformat.read(ROOT / "notebooks" / name, as_version=4).cells
        assert name.startswith(number) and any(f"## {heading}\n" in f"{cell.source}\n" for cell in cells), heading
    headings = re.findall(r"^##? (.+)$", "\n".join(cell.source for cell in deck()), re.M)
    for mentioned in re.findall(r"\| ([^|]+) \|$", section("One lecture, 50 minutes"), re.M)[2:]:
        for start in mentioned.split(" · "):
            assert any(heading.startswith(start.rstrip("?")) for heading in headings), start
    for quoted in re.findall(r"\"(.+?)\"", section("A lab, 3 hours")):
        assert any(
            f"## {quoted}\n" in f"{cell.source}\n"
            for path in NOTEBOOKS
            for cell in nbformat.read(path, as_version=4).cells
        ), quoted


def test_the_exam_has_twenty_questions_with_answers():
    exam = section("Twenty questions for an exam")
    questions = re.findall(
        r"^\*\*(\d+)\.\*\* .{20,}\n\n<details><summary>Answer</summary>\n\n.{20,}\n\n</details>", exam, re.M
    )
    assert questions == [str(n) for n in range(1, 21)]
