"""What a diagnosis prints, in which order, and what is to be tried."""

import torch
from helpers import normal

from vqnotes.diagnosis import diagnose
from vqnotes.diagnosis.advice import Advice
from vqnotes.diagnosis.conditions import Condition
from vqnotes.diagnosis.report import Diagnosis, Evidence
from vqnotes.diagnosis.rules import Answer
from vqnotes.diagnosis.showing import BARS
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code

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


def conditioned(answer=Answer.NO):
    gap = Condition("codebook", answer, 1.38, "times", 1.4, decides=True)
    more = Condition("codebook", answer, 0.051, "more", 0.048, decides=True)
    filled = Condition("dimensions", Answer.YES, 0.2, "of them", 0.39, below=True)
    return {
        "codes in use": Evidence(12, 1024, "at most", "a symptom only"),
        "dimensions filled": Evidence(2.0, 10.0, "by codes", "", None, filled),
        "optimality gap": Evidence(1.38, 1.0, "k-means", "", None, gap),
        "error / variance": Evidence(0.185, 0.134, "k-means", "", (0.18, 0.19), more),
    }


def test_the_conditions_of_a_question_stand_together():
    found = Diagnosis("healthy", "So it is.", conditioned(), [], findings=["Close to it.", "Codes are spare."])
    expected = """\
Diagnosis: healthy
  So it is.
  Close to it.
  Codes are spare.

                yours  reference      speaks for
  codes in use  12     1,024 at most  a symptom only

                       yours  95% interval  reference      compared     holds if
  Is the codebook at fault? No: both would have to hold.
    optimality gap     1.38                 1 k-means      1.38 times   over 1.4    [#########.|.....]  no, but close
    error / variance   0.185  0.18 .. 0.19  0.134 k-means  0.051 more   over 0.048  [##########|#....]  yes, but close
  Are dimensions missing? Yes.
    dimensions filled  2                    10 by codes    0.2 of them  under 0.39  [#####.....|.....]  yes"""
    assert str(found) == expected
    shown = found._repr_html_()
    for line in ["Close to it.", "Codes are spare.", "Is the codebook at fault? No: both would have to hold."]:
        assert line in shown
    label = "1.38 times, holds if over 1.4: no, but close"
    assert f'aria-label="{label}"' in shown and shown.count('role="img"') == 3
    assert shown.count(BARS[True]) == 4 and shown.count(BARS[False]) == 2  # two pieces a bar
    assert "script" not in shown and "class=" not in shown and "[#" not in shown


def test_the_answer_to_a_question_is_said():
    for answer, said in [(Answer.YES, "Yes: both hold."), (Answer.UNKNOWN, "Not known.")]:
        assert f"Is the codebook at fault? {said}" in str(Diagnosis("healthy", "", conditioned(answer), []))
    less = conditioned()["error / variance"].condition._replace(figure=-0.02)
    evidence = {"error / variance": Evidence(0.1, 0.12, "k-means", "", None, less)}
    assert "0.02 less" in str(Diagnosis("healthy", "", evidence, []))
    assert evidence["error / variance"].threshold == 0.048 and evidence["error / variance"].holds is False
    assert EVIDENCE["codes in use"].threshold is None is EVIDENCE["codes in use"].holds


def test_bars_stand_out_on_light_and_dark_pages():
    """By the contrast that WCAG 2.1 asks of graphics, 3 to 1."""

    def luminance(color):
        parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for color in BARS.values():
        for page in ("#ffffff", "#111111"):
            low, high = sorted((luminance(color), luminance(page)))
            assert (high + 0.05) / (low + 0.05) >= 3, (color, page)


def test_a_decoder_that_loses_what_the_codes_tell_is_doubted():
    latents = normal(2048, 3)
    codes, _ = kmeans(latents, 64)
    rebuilt = codes[nearest_code(latents, codes)]
    for reconstruction, said in ((rebuilt, False), (rebuilt + 1.0, True), (0.0 * rebuilt, True)):
        found = diagnose(latents, codes, inputs=latents, reconstruction=reconstruction)
        assert found.verdict == "healthy"
        assert any("comes behind the codes" in doubt for doubt in found.doubts) == said


def test_codes_that_lie_badly_and_tell_much_are_a_finding():
    """Crowded at the centre they leave nearly all of the latents. The nearest still tells a direction."""
    latents = normal(4000, 2)
    circle = torch.arange(8) * 2 * torch.pi / 8
    crowded = 0.01 * torch.stack([circle.cos(), circle.sin()], dim=1)
    found = diagnose(latents, crowded, inputs=latents)
    assert found.verdict != "token collapse" and any("Codes that lie badly" in one for one in found.findings)
    for inputs, codes in ((None, crowded), (latents, kmeans(latents, 8)[0])):
        assert not any("Codes that lie badly" in one for one in diagnose(latents, codes, inputs=inputs).findings)
