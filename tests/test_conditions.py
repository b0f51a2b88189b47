"""Each figure beside its threshold: as the rule compares them, drawn to the line, and close to it or not."""

import dataclasses
import random

import pytest
from helpers import random_measures

from vqnotes.diagnosis import rules
from vqnotes.diagnosis.conditions import CLOSE, QUESTIONS, Condition, conditions
from vqnotes.diagnosis.rules import THRESHOLDS, Answer

ANSWERS = {
    "codebook": rules.codebook_at_fault,
    "encoder": rules.inputs_lost,
    "labels": rules.labels_lost,
    "dimensions": rules.dimensions_missing,
    "rate": rules.rate_too_low,
}


def by_question(found):
    return {name: [one for one in found.values() if one.question == name] for name in QUESTIONS}


def test_conditions_say_what_the_rule_says():
    """Yes only where all hold, no only where one does not; what is not known may be either."""
    seen = set()
    for m in random_measures(4000):
        for question, each in by_question(conditions(m)).items():
            if not each:
                continue
            answer, holds = ANSWERS[question](m), all(one.holds for one in each)
            assert {one.answer for one in each} == {answer}
            assert answer is not (Answer.NO if holds else Answer.YES), (question, m)
            seen.add((question, answer, holds))
    assert len(seen) >= 3 + 4 + 4 + 2 + 2


def test_every_threshold_of_the_tree_is_beside_a_figure():
    used = {one.threshold for m in random_measures(400) for one in conditions(m).values()}
    of_what_is_kept = {THRESHOLDS[name] - 1 for name in ("gap", "loss")}
    assert (
        used == {THRESHOLDS[name] for name in THRESHOLDS.keys() - {"effect", "inputs", "differs"}} | of_what_is_kept
    )


def base(**change):
    """Sound measures, far from every threshold."""
    sound = next(
        m
        for m in random_measures(4000)
        if rules.decide(m)[0] == "healthy" and m.gap is not None and m.inputs_loss is not None
        and m.separability is None and m.inputs_low is None
    )  # fmt: skip
    near = dict(codes=64, ceiling=1.0, perplexity=60.0, sample=9000, best=0.1, best_low=0.1, error=0.1, gap=1.0)
    near |= dict(gap_high=1.0, inputs_loss=0.1, encoder_loss=0.05, codes_loss=0.2)
    near |= dict(dimensions=5.0, best_dimensions=5.0, own_loss=0.2, best_loss=0.1)
    return dataclasses.replace(sound, **(near | change))


def close(m):
    return sorted(name for name, one in conditions(m).items() if one.close)


def test_a_figure_is_close_only_where_it_decides():
    assert close(base()) == []
    assert close(base(own_loss=0.27, gap=1.5)) == ["lost by its own codes"]  # the difference holds: the ratio decides
    assert close(base(own_loss=0.027, codes_loss=0.02)) == []  # neither holds: one alone would change nothing
    both = ["lost by its own codes", "more than by the best codes"]
    assert close(base(own_loss=0.0565, codes_loss=0.04, gap=1.5)) == both  # all must hold
    assert close(base(own_loss=0.4, gap=1.1)) == ["optimality gap"]  # they lose much more, and err hardly more
    without = dict(inputs_loss=None, encoder_loss=None, codes_loss=None, own_loss=None, dimensions=None)
    assert close(base(error=0.15, gap=1.35, **without)) == ["optimality gap"]
    assert close(base(encoder_loss=0.14, codes_loss=0.2)) == ["lost by the encoder"]
    assert close(base(encoder_loss=0.14, codes_loss=0.3)) == []
    assert close(base(encoder_loss=0.2, codes_loss=0.36)) == ["lost with the best codes"]
    labels = dict(separability=0.6, separability_inputs=0.9, chance=0.1)
    assert close(base(encoder_loss=0.2, codes_loss=0.36, **labels)) == []  # labels convict the encoder, too
    assert close(base(dimensions=2.1)) == ["dimensions filled"]  # what it costs is far from the line
    assert close(base(dimensions=1.5, codes_loss=0.185, own_loss=0.185)) == ["lost for want of dimensions"]
    assert close(base(dimensions=5.0, codes_loss=0.185, own_loss=0.185)) == []
    assert close(base(codes_loss=0.33, own_loss=0.33)) == ["left by k-means"]
    collapsed = base(codes_loss=0.33, own_loss=0.9, error=0.9, gap=4.0)
    assert rules.decide(collapsed)[0] == "token collapse" and close(collapsed) == []  # the rate was not asked after


def test_how_close_is_close():
    one = Condition("rate", Answer.NO, 1.0, "", 1.0, decides=True)
    for figure in (1 - CLOSE + 1e-9, 1.0, 1 + CLOSE - 1e-9):
        assert one._replace(figure=figure).close and not one._replace(figure=figure, decides=False).close
    assert not one._replace(figure=1 - CLOSE - 1e-3).close and not one._replace(figure=1 + CLOSE + 1e-3).close


@pytest.mark.parametrize(
    "figure, bar",
    [
        (-1.0, "[..........|.....]"),
        (0.0, "[..........|.....]"),
        (1.0, "[##########|.....]"),
        (0.75, "[#######...|.....]"),
        (0.999, "[#########.|.....]"),
        (1.001, "[##########|#....]"),
        (1.2, "[##########|##...]"),
        (float("inf"), "[##########|#####]"),
    ],
)
def test_a_bar_to_the_threshold(figure, bar):
    for threshold in (1.0, 0.25):
        assert Condition("rate", Answer.NO, figure * threshold, "", threshold).bar == bar


def test_a_bar_is_beyond_its_line_only_if_the_figure_is():
    draws = random.Random(0)
    for _ in range(2000):
        one = Condition("rate", Answer.NO, draws.uniform(0, 3), "", draws.choice(list(THRESHOLDS.values())))
        assert ("|#" in one.bar) == one.holds and len(one.bar) == 18 and ("#|" in one.bar or not one.holds)
