"""What an instructor hands out and takes back: notebooks without solutions, slides, grades."""

import re
import runpy
import subprocess
import sys

import nbformat
import pytest
from exercise_tools import code_of, exercises, filled
from helpers import printed
from notebook_tools import NOTEBOOKS, ROOT

sys.path.insert(0, str(ROOT / "tools"))
import handouts  # noqa: E402
from answers import Attempt, HandIn  # noqa: E402
from handouts import check_of, deck, grade, slides, student, tried, verdicts  # noqa: E402


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


def test_what_cannot_be_run_does_not_stop_the_others(tmp_path):
    (tmp_path / "broken.ipynb").write_text("half a notebo", encoding="utf-8")
    first, second, _ = (one for one in exercises(nbformat.read(NOTEBOOKS[0], as_version=4).cells) if one.stub)
    dies = f"import os\nbits_per_pixel = os._exit(1)\n{check_of(first.stub)}"
    right = filled(second.stub, code_of(second.solution))
    for name, sources in (("a_dies", [dies, right]), ("b_runs", [first.stub])):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    table = grade(tmp_path)
    assert table["student"].tolist() == ["a_dies"] * 3 + ["b_runs"] * 3 + ["broken"] * 3
    assert table["exercise"].tolist() == ["0.1", "0.2", "0.3"] * 3
    said = table["verdict"].tolist()
    assert said[:6] == ["the kernel died", "correct", "not found", "not attempted yet", "not found", "not found"]
    assert all("could not be read" in one and "JSON" in one for one in said[6:]) and table["points"].sum() == 1


def test_an_endless_loop_ends():
    stubborn = "while True:\n    try:\n        [0] * 2\n    except BaseException:\n        pass"
    for source in ("while True: pass", stubborn):
        assert tried([("0.1", Attempt((source,), "print(1)"))], 1) == ["stopped after 1 seconds"]


# ---------------------------------------------------------------- what students do to cells


def run_here(attempts, patience):
    """What `tried` does, without a kernel."""
    said = []
    for number, one in attempts:
        try:
            lines = printed("\n".join([*one.sources, "print('behind')", one.call]))
            said.append(re.findall(rf"^Exercise {number}: (.*)$", lines.rpartition("behind")[2], re.M)[-1])
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(handouts, "tried", run_here)


STUBS = {
    one.number: one
    for path in NOTEBOOKS
    for one in exercises(nbformat.read(path, as_version=4).cells)
    if one.kind == "Exercise"
}
CHECKS = {number: check_of(one.stub) for number, one in STUBS.items()}


def solved(path):
    notebook = nbformat.read(path, as_version=4)
    by_stub = {one.stub: one for one in STUBS.values()}
    for cell in notebook.cells:
        if cell.source in by_stub:
            cell.source = filled(cell.source, code_of(by_stub[cell.source].solution))
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_untouched_nothing_is_right_and_solved_everything_is(path, here, tmp_path):
    own = [number for number in CHECKS if int(number.split(".")[0]) == int(path.name[:2])]
    assert verdicts(path, CHECKS) == {
        number: "not attempted yet" if number in own else "not found" for number in CHECKS
    }
    nbformat.write(solved(path), tmp_path / "mine.ipynb")
    found = verdicts(tmp_path / "mine.ipynb", CHECKS)
    assert found == {number: "correct" if number in own else "not found" for number in CHECKS}


RIGHT = filled(STUBS["8.2"].stub, code_of(STUBS["8.2"].solution))
ANSWER, CALL = RIGHT.rsplit("\n\n", 1)
WRONG = "def revive(codebook, sums, counts, dead, fresh):\n    return codebook, sums, counts"


@pytest.mark.parametrize(
    "cells",
    [
        [RIGHT],
        [ANSWER, CALL],
        ["import torch", ANSWER],
        [CALL, "some = 1", ANSWER],
        [ANSWER],
        [STUBS["8.2"].stub, RIGHT],
        [RIGHT, STUBS["8.2"].stub],
        [WRONG, RIGHT, WRONG],
        [RIGHT.replace("(revive)", "(\n    revive,\n)")],
        [RIGHT.replace("revive(", "mine(").replace("check_mine(revive)", "check_revive(mine)")],
        [ANSWER, "import vqnotes.course.exercises.nb08 as nb\nnb.check_revive(revive)"],
        ["def one():\n    return 1", RIGHT.replace("counts[dead] = 1", "counts[dead] = one()")],
        [RIGHT.replace("counts[dead] = 1", "counts[dead] = one()"), "def one():\n    return 1"],
        ["ones = []", "ones.append(2)\nones[0] = 1", RIGHT.replace("counts[dead] = 1", "counts[dead] = ones[0]")],
        ["ones = 0", "ones = ones + 1", RIGHT.replace("counts[dead] = 1", "counts[dead] = ones"), "ones = 5"],
        ["from math import *", RIGHT.replace("counts[dead] = 1", "counts[dead] = exp(0)")],
        ["1 / 0", "%matplotlib inline\n" + RIGHT + "\n!ls"],
        ["%%time\n" + RIGHT],
        ["import time\nraise RuntimeError\n" + RIGHT],
        ["# Exercise 8.2\nthis is no Python", RIGHT],
    ],
)
def test_a_right_answer_counts_wherever_it_stands(cells, here, tmp_path):
    assert "counts[dead] = 1" in RIGHT
    notebook = nbformat.read(NOTEBOOKS[8], as_version=4)
    place = next(place for place, cell in enumerate(notebook.cells) if cell.source == STUBS["8.2"].stub)
    notebook.cells[place : place + 1] = map(nbformat.v4.new_code_cell, cells)
    for kind in ("code", "raw", "markdown") if cells == [RIGHT] else ("code",):
        if kind != "code":
            notebook.cells[place] = {"raw": nbformat.v4.new_raw_cell, "markdown": nbformat.v4.new_markdown_cell}[
                kind
            ](RIGHT)
        nbformat.write(notebook, tmp_path / "mine.ipynb")
        found = verdicts(tmp_path / "mine.ipynb", CHECKS)
        assert found["8.2"] == "correct" and found["8.1"] == found["8.3"] == "not attempted yet"
    nbformat.write(
        nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells))), tmp_path / "alone.ipynb"
    )
    assert verdicts(tmp_path / "alone.ipynb", CHECKS)["8.2"] == "correct"


@pytest.mark.parametrize(
    "cells, verdict",
    [
        ([WRONG], "wrong because"),
        ([WRONG, STUBS["8.2"].stub], "wrong because"),
        ([RIGHT.replace("def revive", "deff revive")], "SyntaxError"),
        ([RIGHT.replace("counts[dead] = 1", "counts[dead] = nowhere")], "wrong because it stops with NameError"),
        (["print('Exercise 8.2: correct')\n" + STUBS["8.2"].stub], "not attempted yet"),
        (["revive = 1 / 0", CALL], "ZeroDivisionError"),
        (["from vqnotes.course.exercises.nb08 import check_reports"], "not found"),
    ],
)
def test_a_wrong_answer_does_not(cells, verdict, here, tmp_path):
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    nbformat.write(notebook, tmp_path / "mine.ipynb")
    assert verdicts(tmp_path / "mine.ipynb", CHECKS)["8.2"].startswith(verdict)


def test_what_no_name_leads_to_is_found_by_running_all_cells_above(tmp_path):
    sources = ["1 / 0", "globals()['one'] = 1", RIGHT.replace("counts[dead] = 1", "counts[dead] = one"), WRONG]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, sources)))
    nbformat.write(notebook, tmp_path / "mine.ipynb")
    assert verdicts(tmp_path / "mine.ipynb", CHECKS)["8.2"] == "correct"


def test_an_answer_does_not_wait_for_trainings_that_it_does_not_need(here, tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=list(map(nbformat.v4.new_code_cell, ["codebook = 1 / 0", "for dead in range(3): 1 / 0", RIGHT]))
    )
    sources = [one.sources for one in next(HandIn(notebook.cells).attempts(CHECKS["8.2"]))]
    assert len(sources) == 1 and "1 / 0" not in "".join(sources[0])


def test_everybody_has_a_row_for_each_exercise(here, tmp_path, capsys):
    week = tmp_path / "Hand-ins, week 3"
    answers = {"ada/08.ipynb": [RIGHT], "ada/more/again.ipynb": [WRONG], "bob.ipynb": [STUBS["8.3"].stub]}
    answers |= {"ada/.ipynb_checkpoints/08-checkpoint.ipynb": [RIGHT], ".trash/eve.ipynb": [RIGHT]}
    answers |= {"__MACOSX/ada/._08.ipynb": [RIGHT]}
    for name, sources in answers.items():
        (week / name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, sources))), week / name)
    nbformat.write(solved(NOTEBOOKS[9]), week / "ada" / "09.ipynb")
    table = grade(week)
    assert table["student"].tolist() == ["ada"] * 7 + ["bob"] * 7
    assert table["exercise"].tolist() == ["8.1", "8.2", "8.3", "9.1", "9.2", "9.3", "9.5"] * 2
    assert table["points"].tolist() == [0, 1, 0, 1, 1, 1, 1] + [0] * 7
    ada, bob = ["", "ada/08.ipynb", ""] + ["ada/09.ipynb"] * 4, ["", "", "bob.ipynb"] + [""] * 4
    assert table["notebook"].tolist() == ada + bob
    assert table["verdict"].tolist()[7:] == ["not found", "not found", "not attempted yet"] + ["not found"] * 4
    assert re.search(r"^ada +5 +7$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize("arguments", [["grade"], ["grade", ""], ["grade", "a", "b", "c"], ["mark", "a"]])
def test_a_call_that_names_no_folder_is_refused(arguments, monkeypatch):
    """`make grade` without FOLDER gives an empty name, and must not grade the course itself."""
    script = str(ROOT / "tools" / "handouts.py")
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit, match="python tools/handouts.py grade FOLDER"):
        runpy.run_path(script, run_name="__main__")


def test_make_takes_a_folder_with_blanks_in_its_name():
    command = ["make", "--no-print-directory", "--dry-run", "--assume-old=.venv/ready"]
    command += ["grade", "FOLDER=Hand-ins, week 3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith('tools/handouts.py grade "Hand-ins, week 3"')


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
