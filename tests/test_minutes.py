"""Minutes in openings, at parts, in the README and in the teaching guide are those that are counted."""

import copy
import re
from functools import cache

import nbformat
import pytest
from exercise_tools import exercises
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_tools import (
    FOLDED,
    LONGEST,
    MARK,
    NOTEBOOKS,
    PART,
    ROOT,
    ROUNDED,
    TIMES,
    WIDGET,
    minutes_of,
    minutes_to_read,
    stamp_minutes,
    stamp_times,
    stamped,
)

NAMED = re.compile(r"(?:[Ee]xercises?|Think) (\d+\.\d(?:(?:, | and )\d+\.\d)*)")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def is_part(cell):
    return PART in cell.metadata.get("tags", [])


def wrong(notebook):
    """What is wrong with the minutes that a notebook states."""
    again = copy.deepcopy(notebook)
    stamp_times(again, TIMES.search(notebook.cells[0].source)[1])
    return ["not as measured"] * (again != notebook) + ["too long"] * (max(minutes_to_read(notebook)) > LONGEST)


# ---------------------------------------------------------------- the notebooks


@each_notebook
def test_a_notebook_states_what_is_measured_and_no_sitting_is_too_long(path):
    assert wrong(read(path)) == [], "run tools/notebook_tools.py minutes, or begin another part"
    minutes = stamped(path)
    assert minutes[0] in ROUNDED.values()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"\(notebooks/{path.name}\) \| [^|]+ \| ([^|]+) \|", readme)
    assert row == " · ".join(minutes)


@each_notebook
def test_a_part_begins_before_a_section_with_one_sentence(path):
    cells = read(path).cells
    for cell, after in zip(cells, cells[1:]):
        if is_part(cell):
            assert cell.cell_type == after.cell_type == "markdown" and after.source.startswith("## ")
            known = MARK.sub("", cell.source)
            assert known != cell.source and re.fullmatch(r"[^.]{40,250}\.", known), known
    for heading in ("Exercises", "What we saw"):  # from the one to the other nothing is read: each begins a cell
        assert sum(cell.source.startswith(f"## {heading}\n") for cell in cells) == 1


@each_notebook
def test_an_hour_is_enough_for_what_it_names(path):
    """Where the opening says what to do with one hour in whole notebooks or parts of this one."""
    opening = read(path).cells[0].source
    hour = re.search(r"\*\*One hour:\*\* ([^·\n]*)", opening)[1]
    run, *sittings = stamped(path)[0], *map(int, stamped(path)[1].split(" + "))
    if re.match("all of it(?! up to)|run this notebook", hour):
        needed = sum(sittings)
    elif parts := re.match(r"read parts? (\d)(?: and (\d))?", hour):
        needed = sum(sittings[int(part) - 1] for part in parts.groups() if part)
    else:
        return
    assert needed + of_exercises(hour) + next(most for most, text in ROUNDED.items() if text == run) <= 60, hour


@cache
def practised():
    """Minutes of all exercises, by their numbers."""
    return {one.number: one.minutes for path in NOTEBOOKS for one in exercises(read(path).cells)}


def of_exercises(text):
    """Minutes of the exercises that a text names."""
    return sum(practised()[number] for named in NAMED.findall(text) for number in re.findall(r"\d+\.\d", named))


def of_parts(text):
    """Minutes of the notebooks, or of the parts of them, that a text names."""
    total = 0
    for number, *parts in re.findall(r"Notebook (\d\d)(?:, parts? (\d)(?: and (\d))?)?", text):
        minutes = [int(part) for part in stamped(NOTEBOOKS[int(number)])[1].split(" + ")]
        total += sum(minutes[int(part) - 1] for part in parts if part) if any(parts) else sum(minutes)
    return total


def section(heading):
    """A section of the teaching guide."""
    guide = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
    return guide.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_the_lab_leaves_time_for_the_parts_and_exercises_that_it_names():
    lab = section("A lab, 3 hours")
    rows = [(int(minutes), text) for minutes, text in re.findall(r"^\| (\d+) \| (.+) \|$", lab, re.M)]
    needed = {text: (of_parts(text) + of_exercises(text.split("Who is fast")[0]), minutes) for minutes, text in rows}
    assert lab.count(", part ") >= 4
    assert {text: both for text, both in needed.items() if both[0] > both[1]} == {}


def test_no_evening_of_the_unit_is_longer_than_75_minutes():
    rows = re.findall(r"^\| (\d+) \| (.*)\| (.*)\| (.*)\|$", section("A unit, two weeks"), re.M)
    assert [int(row[0]) for row in rows] == [*range(1, 11)]
    for day, in_class, at_home, stated in rows:
        lesson = re.search(r"\((\d+) min\)", in_class)
        assert of_parts(in_class) + of_exercises(in_class) <= (int(lesson[1]) if lesson else 0), day
        others = sum(map(int, re.findall(r"\((\d+) minutes\)", at_home)))
        needed = of_parts(at_home) + of_exercises(at_home) + others
        assert needed == int(stated.strip() or 0) <= 75, (day, needed)


# ---------------------------------------------------------------- the measure


def words(count):
    return new_markdown_cell(" ".join(["word", "$K$", "**bold**"] * (count // 3)))


def code(source="", *outputs, folded=False):
    return new_code_cell(source, outputs=list(outputs), metadata={"tags": [FOLDED]} if folded else {})


def shown(data):
    return new_output("display_data", data=data)


def printed(text):
    return new_output("stream", text=text)


PICTURE = shown({"image/png": "", "text/plain": "<figure with 1 axes>"})
LINES = "a = 1\n\n" * 25
COSTS = {
    "words": (words(150), 1),
    "a table of Markdown: its words": (new_markdown_cell("| a | b |\n|---|---|\n" + "| c - · d |\n" * 74), 1),
    "a fold": (new_markdown_cell("<details><summary>Solution</summary>\n\nmuch\n\n</details>"), 0),
    "lines": (code(LINES), 1),
    "folded lines": (code(LINES, folded=True), 0),
    "lines that are printed": (code("", printed("a  1\n" * 25)), 1),
    "claims that are printed": (code("", printed("✓ A claim  ⟨a = 1⟩\n" * 25)), 0),
    "a picture of a folded cell": (code(LINES, PICTURE, folded=True), 1),
    "two tables": (code("", *[shown({"text/html": "", "text/plain": "a  b"})] * 2), 2),
    "an explorer": (code("", shown({WIDGET: {}, "text/plain": "[Explorer: a (3).]"})), 1),
    "a progress bar": (code("", shown({WIDGET: {}, "text/plain": ""})), 0),
}


@pytest.mark.parametrize("name", COSTS)
def test_a_minute_is_150_words_25_lines_or_one_figure(name):
    cell, minutes = COSTS[name]
    assert minutes_of(cell) == pytest.approx(minutes)


def made():
    """A notebook of two parts, of 10 and 5 minutes, as an author leaves it: nothing is stamped but a first run."""
    time = "**Time:** 1 min to run on two cores · 1 min to read · 1 min for the exercises"
    task = "## Exercises\n\n### Exercise 0.1 · Count\n\n> **Difficulty:** ●○○ · **Time:** 3 minutes\n\nCount."
    return new_notebook(
        cells=[
            new_markdown_cell(f"# 00?\n\n{time}"),
            words(1350),
            new_markdown_cell("Codes live.", metadata={"tags": [PART]}),
            new_markdown_cell("## Next"),
            words(450),
            new_markdown_cell(task),
            code(LINES),
            words(3000),
            new_markdown_cell("## What we saw"),
            code(LINES),
        ]
    )


def test_minutes_are_written_into_the_opening_and_the_marks():
    notebook = made()
    stamp_times(notebook, "½")
    opening, mark = notebook.cells[0].source, notebook.cells[2].source
    line = "½ min to run on two cores · 10 + 5 min to read, in two sittings · 3 min for the exercises"
    assert opening == f"# 00?\n\n**Time:** {line}" and TIMES.search(opening).groups() == ("½", "10 + 5", "3")
    assert mark == "---\n\n**Part 2 of 2** · 5 min to read · **So far:** Codes live."
    assert wrong(notebook) == [] and minutes_to_read(made()) == minutes_to_read(notebook), "the stamp does not count"
    del notebook.cells[2]
    stamp_times(notebook, "½")
    assert "· 14 min to read · 3 min" in notebook.cells[0].source


PLANTED = {
    "another number in the opening": lambda cells: put(cells[0], "10 + 5", "10 + 6"),
    "the sum in the opening": lambda cells: put(cells[0], "10 + 5", "15"),
    "other minutes of exercises": lambda cells: put(cells[0], "3 min", "4 min"),
    "another number in a mark": lambda cells: put(cells[2], "5 min", "4 min"),
    "another part in a mark": lambda cells: put(cells[2], "2 of 2", "1 of 2"),
    "a mark by hand": lambda cells: cells[2].metadata.pop("tags"),
    "more text": lambda cells: cells.append(words(150)),
    "more code": lambda cells: cells.append(code(LINES)),
    "one more figure": lambda cells: cells.insert(4, code("", PICTURE)),
    "a part of over thirty minutes": lambda cells: cells.append(words(4500)),
}


def put(cell, old, new):
    assert cell.source.count(old) == 1
    cell.source = cell.source.replace(old, new)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_deviation_is_noticed(name):
    notebook = made()
    stamp_times(notebook, "1")
    assert wrong(notebook) == []
    PLANTED[name](notebook.cells)
    assert wrong(notebook) == ["not as measured"] + ["too long"] * ("thirty" in name)
    stamp_times(notebook, "1")
    assert wrong(notebook) == ["too long"] * ("thirty" in name), "a stamp cures all but length"


def test_text_is_stamped_without_a_run(tmp_path, capsys):
    path = tmp_path / "00.ipynb"
    nbformat.write(made(), path)
    stamp_minutes(path)
    assert wrong(read(path)) == [] and stamped(path) == ("1", "10 + 5", "3") and "10 + 5" in capsys.readouterr().out
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 00?\n\n**Time:** not run yet")]), path)
    with pytest.raises(SystemExit, match="run it"):
        stamp_minutes(path)
