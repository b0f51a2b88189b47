"""What a diagnosis prints, in which order, and what is to be tried."""

from vqnotes.diagnosis.advice import Advice
from vqnotes.diagnosis.report import Diagnosis, Evidence

EVIDENCE = {
    "codes in use": Evidence(12, 1024, "at most", "a symptom only"),
    "optimality gap": Evidence(3.14159, 1.0, "k-means", ""),
}
FULL = Diagnosis(
    "token collapse",
    "Because <so>.",
    EVIDENCE,
    [Advice("first this", "start", "05"), Advice("then that", "any", "08")],
    ["one thing", "another"],
    doubts=["is it so?"],
)
REPORT = """\
First: is it so?
Diagnosis: token collapse
  Because <so>.

                  yours  reference      speaks for
  codes in use    12     1,024 at most  a symptom only
  optimality gap  3.14   1 k-means

What to try, in this order:
  1. first this [start; notebook 05]
  2. then that [any; notebook 08]

Note: one thing
Note: another"""


def test_a_report_is_printed_whole():
    assert str(FULL) == repr(FULL) == REPORT
    bare = Diagnosis("healthy", "All is well.", EVIDENCE, [])
    assert str(bare).splitlines() == ["Diagnosis: healthy", "  All is well.", *REPORT.splitlines()[3:7]]
    noted = Diagnosis("healthy", "All is well.", EVIDENCE, [], ["one thing"])
    assert str(noted) == str(bare) + "\n\nNote: one thing"


def test_a_report_is_shown_whole_in_a_notebook():
    shown = FULL._repr_html_()
    rest = shown
    for part in ["is it so?", "token collapse", "Because &lt;so&gt;.", "yours", "codes in use", "1,024 at most"] + [
        "3.14", "first this", "notebook 05", "then that", "one thing", "another"
    ]:  # fmt: skip
        assert part in rest, part
        rest = rest.partition(part)[2]
    bare = Diagnosis("healthy", "All is well.", EVIDENCE, [])._repr_html_()
    assert "What to try" not in bare and "Note" not in bare and "First" not in bare


def test_intervals_and_the_confidence_are_shown_where_there_are_any():
    evidence = {
        "codes in use": Evidence(1012, 1024, "at most", "a symptom only", (1012, 1024)),
        "entropy": Evidence(6.912, 6.931, "nats", "", (6.9112, 6.9131)),
        "optimality gap": Evidence(1.0, 1.0, "k-means", ""),
    }
    found = Diagnosis("healthy", "So it is.", evidence, [], confidence=0.961)
    expected = """\
Diagnosis: healthy (confidence 0.96)
  So it is.

                  yours  95% interval    reference      speaks for
  codes in use    1,012  1,012 .. 1,024  1,024 at most  a symptom only
  entropy         6.91   6.911 .. 6.913  6.93 nats
  optimality gap  1                      1 k-means"""
    assert str(found) == expected
    shown = found._repr_html_()
    assert "healthy (confidence 0.96)" in shown and "<th>95% interval</th>" in shown
    assert "<td>1,012 .. 1,024</td>" in shown and "<td></td>" in shown
    sure = Diagnosis("healthy", "So it is.", EVIDENCE, [], confidence=0.9999)
    assert "healthy (confidence above 0.99)" in str(sure) and "interval" not in str(sure)


def test_ends_of_an_interval_that_are_equal_stay_so():
    found = Diagnosis("healthy", "", {"gap": Evidence(1.0, 1.0, "k-means", "", (1.0, 1.0))}, [])
    assert "1  " in str(found) and "1 .. 1 " in str(found)
