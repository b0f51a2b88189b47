"""Two diagnoses side by side: a change is one beyond the intervals, by hand and by how often chance makes one."""

import math

import pytest
from helpers import normal

from vqnotes.diagnosis import Diagnosis, StackDiagnosis, compare, diagnose, diagnose_stack, diagnose_tokens
from vqnotes.diagnosis.comparing import Comparison
from vqnotes.diagnosis.conditions import Condition
from vqnotes.diagnosis.report import Evidence
from vqnotes.diagnosis.rules import Answer
from vqnotes.kmeans import kmeans


def said(verdict="healthy", doubts=(), **evidence):
    """A diagnosis with figures given as (value, low, high), or as a value."""
    figures = {
        name: Evidence(one[0], 1.0, "beside", "", one[1:])
        if isinstance(one, tuple)
        else Evidence(one, 1.0, "beside", "")
        for name, one in evidence.items()
    }
    return Diagnosis(verdict, f"because {verdict}", figures, [], doubts=list(doubts))


@pytest.mark.parametrize(
    "before, after, interval, changed",
    [
        ((1.0, 0.7, 1.3), (1.2, 0.8, 1.6), (-0.3, 0.7), False),  # 0.2 -+ sqrt(0.4^2 + 0.3^2)
        ((1.0, 0.9, 1.3), (2.0, 1.6, 2.1), (0.5, 1 + 2**0.5 / 10), True),  # the sides that face each other
        ((2.0, 1.6, 2.1), (1.0, 0.9, 1.3), (-1 - 2**0.5 / 10, -0.5), True),
        ((1.0, 0.5, 1.375), (1.625, 1.125, 2.0), (0.0, 1.25), False),  # 0 itself is not left out
        ((1.0, 0.7, 1.31), (1.6, 1.3, 1.9), (0.6 - math.hypot(0.3, 0.31), 0.6 + math.hypot(0.3, 0.3)), True),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (0.0, 0.0), False),
        ((1.0, 1.1, 1.2), (3.0, 2.8, 2.9), (2 - math.hypot(0.2, 0.2), 2.0), True),  # a value beside its own interval
        ((math.inf, 50.0, math.inf), (1.2, 1.1, 1.3), None, True),
        ((math.inf, 1.25, math.inf), (1.2, 1.1, 1.3), None, False),
        ((math.inf, math.inf, math.inf), (math.inf, math.inf, math.inf), None, False),
        ((1.0, math.nan, 2.0), (1.2, 1.1, 1.3), None, None),
        (1.0, (5.0, 4.9, 5.1), None, None),
        ((5.0, 4.9, 5.1), 1.0, None, None),
    ],
)
def test_a_change_by_hand(before, after, interval, changed):
    (one,) = compare(said(a=before), said(a=after)).changes
    assert one.changed is changed and one.interval == (None if interval is None else pytest.approx(interval))


def test_what_chance_does_is_rarely_a_change():
    """Two samples of one model, for which nothing has changed; and one whose codes have moved."""
    codes = kmeans(normal(4000, 3, seed=1), 16)[0]
    first, second = (
        [
            diagnose(latents, codes, inputs=latents)
            for latents in (normal(1500, 3, seed=seed + 2 * i) for i in range(25))
        ]
        for seed in (100, 101)
    )
    told = [one.changed for pair in zip(first, second) for one in compare(*pair).changes if one.changed is not None]
    assert len(told) > 150 and sum(told) / len(told) < 0.1
    moved = diagnose(latents := normal(1500, 3, seed=7), codes + 0.5, inputs=latents)
    changes = {one.name: one for one in compare(first[0], moved).changes}
    assert changes["error / variance"].changed and changes["error / variance"].interval[0] > 0


def test_verdicts_figures_and_what_has_crossed_its_line():
    def condition(figure):
        return Condition("codebook", Answer.YES if figure > 1.4 else Answer.NO, figure, "times", 1.4)

    before = said("token collapse", ["look at that"], gap=(3.0, 2.5, 3.5), used=(9.0, 8.0, 10.0), gone=1.0)
    after = said("healthy", gap=(1.1, 1.0, 1.2), used=(9.5, 8.5, 10.5), new=7)
    for found, figure in ((before, 3.0), (after, 1.1)):
        found.evidence["gap"] = found.evidence["gap"]._replace(condition=condition(figure))
    found = compare(before, after)
    assert found.changed and [one.name for one in found.changes] == ["gap", "used", "gone", "new"]
    lines = str(found).splitlines()
    assert lines[:3] == ["First, before: look at that", "Verdict: token collapse -> healthy", "  because healthy"]
    cells = {line.split()[0]: line.split() for line in lines[5:9]}
    assert cells["gap"] == "gap 3 2.5 .. 3.5 1.1 1 .. 1.2 -1.9 yes yes -> no".split()
    assert cells["used"] == "used 9 8 .. 10 9.5 8.5 .. 10.5 +0.5 no".split()
    assert cells["gone"] == "gone 1 not measured".split() and cells["new"] == "new not measured 7".split()
    assert str(found).isascii() and repr(found) == str(found) and "not measured" in lines[-1]
    frame = found.to_frame().set_index("evidence")
    assert list(frame["changed"]) == [True, False, None, None] and set(frame["codebook"]) == {""}
    assert frame.loc["gap", "difference"] == pytest.approx(-1.9) and math.isnan(frame.loc["new", "before"])
    assert frame.loc["used", "low"] < 0 < frame.loc["used", "high"]


def test_nothing_changed():
    one = said(a=(1.0, 0.9, 1.1))
    found = compare(one, one)
    assert not found.changed and "Verdict: healthy, as before" in str(found) and found.notes == []
    assert compare(said(), said("cannot tell")).changed


def test_other_terms_are_told():
    before, after = said(a=1.0), said(a=1.0)
    after.evidence["a"] = after.evidence["a"]._replace(compared_with="of 9 latents")
    assert compare(before, after).notes[0] == "a: before beside those beside; after, of 9 latents"


def test_stacks_and_several_by_name_are_compared_one_by_one():
    latents = normal(600, 3)
    good = kmeans(latents, 8)[0]
    bad, sound = (
        diagnose_stack([[(latents, codes, None), (latents - latents[:1], good[:4], None)]])
        for codes in (good / 99, good)
    )
    found = compare(bad, sound)
    assert list(found.before) == ["whole", "level 0", "level 1"] and found.changed
    assert {one.codebook for one in found.changes if one.changed} == {"level 0"}  # the levels code different things
    assert "level 1:\nVerdict: " in str(found) and "<h4>level 0</h4>" in found._repr_html_()
    named = compare({"vq": bad.whole}, {"vq": sound.whole})
    assert isinstance(named, Comparison) and [one[1:] for one in named.changes] == [
        one[1:] for one in found.changes if one.codebook == "whole"
    ]
    ids = [diagnose_tokens(normal(500, seed=seed).abs().long(), 8) for seed in range(2)]
    assert not any(one.changed is None and one.name == "codes in effect" for one in compare(*ids).changes)


def test_what_does_not_belong_together_is_refused():
    one, stack = said(), StackDiagnosis(said(), [[said()]])
    for before, after, says in (
        (one, stack, r"got Diagnosis and StackDiagnosis of \['whole', 'level 0'\]"),
        (stack, StackDiagnosis(one, [[one, one]]), "same codebooks"),
        ({"a": one}, {"b": one}, r"several of \['a'\] and several of \['b'\]"),
        ({"": one}, one, "same codebooks"),
    ):
        with pytest.raises(ValueError, match=says):
            compare(before, after)


def test_words_in_html_are_words():
    found = compare(said("<b>", ["<i>"]), said("healthy"))._repr_html_()
    assert "<b>" not in found and "<i>" not in found and "&lt;i&gt;" in found
