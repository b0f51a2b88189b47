"""The tree that is drawn is the one that is asked: its lit leaf is the verdict, whatever the measures."""

import re

import ipywidgets
import numpy as np
import pytest
from helpers import normal, random_measures

from vqnotes._printing import in_digits
from vqnotes.course import explorers
from vqnotes.diagnosis import diagnose, diagnose_stack, diagnose_tokens, draw_tree
from vqnotes.diagnosis.conditions import conditions
from vqnotes.diagnosis.report import VERDICTS, Diagnosis, not_started
from vqnotes.diagnosis.rules import THRESHOLDS, TREE, Answer, decide, path, times
from vqnotes.diagnosis.tree import ASKED, LEAVES, PLACES, in_words, links


def lit_leaf(drawn):
    """Follows the lit links from the first question to the verdict; each question on the way has one."""
    name, taken = next(iter(TREE)), 0
    while name in TREE:
        (link,) = [one for one in drawn if one.question == name and one.lit]
        name, taken = link.leads_to, taken + 1
    assert taken == sum(one.lit for one in drawn)
    return name


def test_the_lit_leaf_is_the_verdict():
    verdicts = set()
    for m in random_measures(6000):
        verdict, reason = decide(m)
        assert lit_leaf(links(path(m))) == verdict and reason
        assert in_words(path(m)).endswith(f"So the verdict is: {verdict}.")
        verdicts.add(verdict)
    assert verdicts == set(VERDICTS)


def test_other_thresholds_take_other_paths():
    for m in random_measures(300):
        other = THRESHOLDS | {"gap": 1e9, "loss": 1e9, "labels": -1e9, "rate": 1e9, "dimensions": 0.0}
        verdict = lit_leaf(links(path(m, other)))
        assert verdict == decide(m, other)[0]
        assert verdict in ("healthy", "cannot tell", "rate limit", "embedding collapse")
        if verdict == "embedding collapse":
            assert m.spread == 0


def test_every_question_and_leaf_has_a_place_of_its_own():
    assert PLACES.keys() == TREE.keys()
    leaves = {(one.question, one.leads_to) for one in links() if one.leads_to not in TREE}
    assert LEAVES.keys() == leaves and {name for _, name in leaves} == set(VERDICTS)
    places = [*PLACES.values(), *LEAVES.values()]
    assert len(set(places)) == len(places)


def test_the_questions_name_the_thresholds():
    named = {name for one in TREE.values() for name in re.findall(r"{(\w+)}", one.words)}
    assert named == THRESHOLDS.keys() - {"excess of latents", "effect", "trifle", "differs", "errs"}  # errs: in words
    assert THRESHOLDS["errs"] == 1 and TREE["codebook"].words.endswith("a larger error on the latents?")


def words_of(ax):
    return [one.get_text() for one in ax.texts]


def test_a_diagnosis_lights_its_path(ax):
    latents = normal(3000, 3)
    found = diagnose(latents, latents[:8] * 0.01, inputs=latents)
    frame = draw_tree(ax, found)
    assert found.verdict == "token collapse"
    assert list(frame.columns) == ["question", "answer", "leads_to", "lit"] and len(frame) == len(links())
    lit = frame[frame["lit"]]
    assert list(zip(lit["question"], lit["answer"])) == [(name, answer.value) for name, answer in found.path]
    assert lit["leads_to"].iloc[-1] == found.verdict
    bold = {one.get_text() for one in ax.texts if one.get_weight() == "bold"}
    assert bold == {"yes", "no", "token collapse"}
    assert sum(line.get_linewidth() > 2 for line in ax.lines) == len(found.path)
    own, gap = found.evidence["lost by its own codes"], found.evidence["optimality gap"]
    (codebook,) = [text for text in words_of(ax) if "yours" in text and "k-means" in text]
    more = f"{own.value - own.reference:.3g} more"
    asked = [times(own.value / own.reference), more, times(gap.value)]  # in the order of the question's words
    assert codebook.endswith(f"yours: {', '.join(asked)}") and "over 1.4 times" in codebook
    (encoder,) = [text for text in words_of(ax) if "yours" in text and "encoder" in text]
    lost, best = found.evidence["lost by the encoder"], found.evidence["lost with the best codes"]
    asked = [times(lost.value / lost.reference), f"{in_digits(lost.reference - lost.value)} less"]
    assert encoder.endswith(f"yours: {', '.join(asked)}, {in_digits(lost.value / best.value)} of it")
    assert sum("yours" in text for text in words_of(ax)) == 2


def test_every_condition_is_shown_below_its_question():
    """Each row of the evidence with a condition has its place in the order of the words."""
    places = [row for rows in ASKED.values() for row in rows]
    for m in random_measures(400):
        assert conditions(m).keys() <= set(places)
    assert len(set(places)) == len(places)


def test_the_bare_tree_has_all_leaves_and_thresholds(ax):
    frame = draw_tree(ax)
    text = "\n".join(words_of(ax))
    assert not frame["lit"].any() and "yours" not in text and len({*ax.lines}) >= len(LEAVES)
    assert all(one.get_weight() == "normal" for one in ax.texts)
    for verdict in VERDICTS:
        assert verdict.replace(" and ", " and\n") in words_of(ax)
    for name in ("gap", "excess", "loss", "extra", "before", "labels", "dimensions", "rate"):
        assert f"{THRESHOLDS[name]:g}" in text


def test_the_whole_of_a_stack_has_a_path_and_its_parts_have_none(ax):
    latents = normal(600, 2)
    found = diagnose_stack([[(latents, latents[:8], None)]])
    assert draw_tree(ax, found.whole)["lit"].any()
    tokens = diagnose_tokens(np.arange(4000) % 8, 8)
    for other in (found.parts[0][0], tokens, not_started(["vq"])):
        with pytest.raises(ValueError, match="was not reached by this tree"):
            draw_tree(ax, other)


def test_too_few_latents_of_a_stack_that_shares_its_codebook_are_no_error():
    """Its levels together may clear their codebook where the latents of the whole are too few to be measured."""
    labels, codes = np.arange(20) % 2, normal(2, 2)
    latents = codes[labels]
    found = diagnose_stack([[(latents, codes, None), (latents, codes, None), (latents, codes, None)]], labels=labels)
    assert found.whole.verdict in VERDICTS and found.whole.reason


# ---------------------------------------------------------------- the explorer


def test_sliders_move_the_path(monkeypatch):
    box = explorers.tree_explorer()
    *controls, picture = box.children
    draws, verdicts = np.random.default_rng(0), set()
    assert "So the verdict is: healthy." in picture.value and "data:image/" in picture.value
    monkeypatch.setattr(explorers, "_tree", lambda measures: explorers.plt.figure(figsize=(1, 1)))  # drawing is slow
    for _ in range(60):
        for one in controls:
            if isinstance(one, ipywidgets.Checkbox):
                one.value = bool(draws.random() < 0.8)
            else:
                low, high = (one.min, one.max)
                value = low + draws.random() ** 2 * (high - low)
                one.value = int(value) if isinstance(one, ipywidgets.IntSlider) else round(float(value), 2)
        m = explorers.measures_of(*(one.value for one in controls))
        assert in_words(path(m)).replace("&", "&amp;") in picture.value
        verdicts.add(decide(m)[0])
    assert len(verdicts) >= 5


def test_any_setting_of_the_sliders_can_be_measured():
    draws, ends = np.random.default_rng(1), list(explorers.FIGURES.values())
    verdicts = set()
    for _ in range(3000):
        figures = [draws.choice([low, high, first, draws.uniform(low, high)]) for low, high, first in ends]
        m = explorers.measures_of(int(figures[0]), *map(float, figures[1:]), *(draws.random(2) < 0.8))
        verdicts.add(decide(m)[0])
    assert verdicts == set(VERDICTS)


def test_the_explorer_is_shown_with_a_line_for_those_who_cannot(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    explorers.explore_tree()
    assert shown[0]["text/plain"].startswith("[Explorer: the tree of questions, codes, encoder: times")


def test_a_path_in_words():
    taken = [("several codes", Answer.YES), ("encoder", Answer.UNKNOWN), ("codebook alone", Answer.NO)]
    expected = "several codes: yes; encoder: unknown; codebook alone: no. So the verdict is: cannot tell."
    assert in_words(taken) == expected
    assert Diagnosis("cannot tell", "", {}, [], path=taken).path == taken
