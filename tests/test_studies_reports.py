"""Other people's reports: each is re-created, the table is whole, and the page says what the table says."""

import re

import pandas as pd
import pytest
import torch
from helpers import normal
from test_names import TEXTS

from vqnotes.diagnosis.report import VERDICTS, Diagnosis, Evidence
from vqnotes.diagnosis.tokens import TOKEN_VERDICTS
from vqnotes.quantizers import VectorQuantizer
from vqnotes.studies import recreated, reports
from vqnotes.studies.reports import REPORTS, Expected

SEED = 77  # of none of the models in the table
COLUMNS = "report|source|found|expected|verdicts|doubt|advice|used|at fault|seeds|points".split("|")
NAMES = [report.name for report in REPORTS]


@pytest.fixture(scope="module")
def table():
    return reports.reports_diagnosed()


# ---------------------------------------------------------------- the list and its table


@pytest.mark.parametrize("report", REPORTS, ids=NAMES)
def test_a_report_is_re_created_and_diagnosed(report, monkeypatch):
    monkeypatch.setattr(recreated, "STEPS", 20)  # what comes out is in the table
    torch.set_num_threads(1)
    before = torch.get_rng_state()
    (row,) = reports.examined(report, [SEED])
    assert torch.equal(before, torch.get_rng_state())
    assert list(row) == "report|seed|verdict|at fault|doubt|advice|used|effect|points".split("|")
    assert (row["report"], row["seed"]) == (report.name, SEED) and isinstance(row["points"], bool)
    assert row["verdict"] in VERDICTS + TOKEN_VERDICTS


@pytest.mark.parametrize("report", REPORTS, ids=NAMES)
def test_a_report_says_whose_it_is_and_what_was_found(report):
    assert re.fullmatch(r"[\w.-]+/[\w.-]+#[1-9]\d*", report.source)
    assert report.address == "https://github.com/{}/issues/{}".format(*report.source.split("#"))
    assert report.name and report.symptom and report.found and str(report.expected)
    assert set(report.expected.verdicts) <= {*VERDICTS, *TOKEN_VERDICTS}
    diagnosis = "".join(text for name, text in TEXTS.items() if name.startswith("vqnotes/diagnosis/"))
    assert report.expected.doubt in diagnosis and report.expected.evidence in diagnosis


def test_reports_are_named_once_and_made_once():
    for parts in (NAMES, [report.source for report in REPORTS], [report.make for report in REPORTS]):
        assert len(set(parts)) == len(parts) >= 20
    makers = {name for name in recreated.__all__ if name.islower()}
    assert makers == {report.make.__name__ for report in REPORTS}


def test_every_report_is_in_the_table_with_all_its_seeds(table):
    rows = pd.read_csv(reports.TABLE)
    assert rows.groupby("report")["seed"].apply(list).to_dict() == dict.fromkeys(NAMES, list(reports.SEEDS))
    assert SEED not in set(rows["seed"]) and list(table["report"]) == NAMES
    assert list(table.columns) == COLUMNS
    assert ((table["points"] >= 0) & (table["points"] <= table["seeds"])).all()


def test_the_page_has_the_table_and_explains_where_diagnose_points_elsewhere(table):
    page = TEXTS["docs/reports.md"]
    assert reports.as_markdown(table) in page, "python -m vqnotes.studies.reports prints the table for the page"
    explained = re.findall(r"^- \*\*(.+?)\.\*\*", page, re.M)
    assert explained == list(table["report"][table["points"] < table["seeds"] / 2])


# ---------------------------------------------------------------- what would point there


def found(verdict="healthy", doubts=(), **evidence):
    figures = {name: Evidence(*values, "by chance", "") for name, values in evidence.items()}
    return Diagnosis(verdict, "Because.", figures, [], doubts=list(doubts))


def test_what_would_point_there_is_asked_of_the_part_that_is_meant():
    both = {"whole": found(), "whole.level": found("token collapse", ["codes far away"], shared=(5, 2))}
    assert Expected(("healthy", "rate limit")).met(both) and not Expected(("token collapse",)).met(both)
    of_level = {"part": "whole.level"}
    assert Expected(("token collapse",), **of_level).met(both) and Expected(doubt="far", **of_level).met(both)
    assert not Expected(doubt="near", **of_level).met(both) and not Expected(doubt="far").met(both)
    assert Expected(evidence="shared", **of_level).met(both) and not Expected(evidence="shared").met(both)
    assert not Expected(evidence="shared").met({"": found(shared=(4, 2))})
    assert str(Expected(("a", "b"), "c", "d", "e")) == "a or b of c; first: d; over twice as many e"


def test_a_summary_counts_verdicts_and_seeds():
    first, second = REPORTS[0].name, REPORTS[1].name
    rows = [
        (first, 1, "healthy", None, None, "this", 4, 2, False),
        (first, 2, "token collapse", 2, "d", "that", 8, 2, True),
    ]
    rows += [
        (first, 3, "token collapse", 1, "d", "that", 9, 2, True),
        (second, 1, "healthy", None, None, None, 1, 1, True),
    ]
    names = ["report", "seed", "verdict", "at fault", "doubt", "advice", "used", "effect", "points"]
    one, other = reports.summary(pd.DataFrame(rows, columns=names)).to_dict("records")
    assert (one["verdicts"], one["doubt"], one["advice"]) == ("token collapse 2, healthy 1", "d", "that")
    assert (one["used"], one["at fault"], one["seeds"], one["points"]) == (7, 1.5, 3, 2)
    assert (other["report"], other["source"], other["advice"]) == (second, REPORTS[1].source, "")


def test_a_table_that_is_there_is_gone_on_with(monkeypatch, tmp_path, capsys):
    made = []

    def examined(report, seeds):
        made.append(report.name)
        if len(made) == 3:
            raise KeyboardInterrupt
        row = {"verdict": "healthy", "at fault": None, "doubt": "", "advice": "", "used": 1, "effect": 1}
        return [{"report": report.name, "seed": seed} | row | {"points": True} for seed in seeds]

    monkeypatch.setattr(reports, "examined", examined)
    monkeypatch.setattr("sys.argv", ["reports", "--out", str(tmp_path / "found.csv")])
    with pytest.raises(KeyboardInterrupt):
        reports.main()
    reports.main()
    assert made == NAMES[:3] + NAMES[2:]
    assert len(pd.read_csv(tmp_path / "found.csv")) == len(NAMES) * len(reports.SEEDS)
    assert "8 of 8" in capsys.readouterr().out and [path.name for path in tmp_path.iterdir()] == ["found.csv"]


# ---------------------------------------------------------------- the defects are there


def stepped(quantizer, how="uniform", steps=5):
    quantizer.init_codes(how, normal(512, 4), seed=0)
    for step in range(steps):
        quantizer(normal(128, 4, seed=step))
    return quantizer.codes().detach()


def test_expiry_that_is_undone_changes_no_bit():
    plain, undone = (kind(256, 4, decay=0.5) for kind in (recreated.AveragedTwice, recreated.UndoneExpiry))
    assert (
        torch.equal(stepped(plain, "normal"), stepped(undone, "normal"))
        and (plain.counts < 0.1 * plain.counts.mean()).any()
    )


def test_sums_without_counts_shrink_the_codes_and_counts_from_nothing_throw_them_out():
    start = stepped(recreated.AveragedTwice(16, 4), "kmeans", 0).norm(dim=1)
    sound, short, far = (
        stepped(kind(16, 4), "kmeans", 1).norm(dim=1) / start
        for kind in (recreated.AveragedTwice, recreated.CountsForgotten, recreated.CountsFromNothing)
    )
    assert (sound > 0.9).all() and (short < 0.5).all() and far.max() > 10


def gradients(kind):
    quantizer, latents = kind(16, 4, beta=0.25), normal(128, 4).requires_grad_()
    quantizer.init_codes("normal", seed=0)
    value, _, loss = quantizer(latents)
    loss.backward()
    return latents.grad, quantizer.codebook.grad, value


def test_losses_are_taken_of_the_wrong_thing():
    latents, codes, _ = gradients(VectorQuantizer)
    swapped, moved, _ = gradients(recreated.BetaOnTheCodebook)
    assert torch.allclose(swapped, 4 * latents) and torch.allclose(moved, codes / 4)
    away, none, _ = gradients(recreated.LossOfTheEstimate)
    assert torch.allclose(away, -3 * latents, atol=1e-7) and none is None
    assert not gradients(recreated.NoGradientCopied)[2].requires_grad


def test_the_last_level_is_left_out_of_training_alone():
    torch.manual_seed(0)
    quantizer, latents = recreated.UntrainedLevel([8, 8, 8], 4), normal(64, 4)
    assert quantizer(latents).index.shape == (64, 2)
    assert quantizer.eval()(latents).index.shape == (64, 3) and len(quantizer.stages) == 3


def test_ids_lose_their_odd_numbers_and_items_share_theirs():
    index = recreated.indices_in_half_precision(SEED)["index"]
    above = index[(index > 256) & (index < 999)]  # what is rounded beyond the last code is the last code
    assert len(above) > 1000 and not (above % 2).any() and (index[index < 256] % 2).any()
    items = recreated.colliding_items(SEED)["index"].view(-1, 3, 3)
    assert (items == items[:, :1]).all(dim=2).all(dim=1).float().mean() > 0.5
    batch = recreated.batch_of_ids(SEED)
    assert len(batch["index"]) == 64 and batch["size"] == 512


def test_padding_is_what_the_codes_sit_on(monkeypatch):
    monkeypatch.setattr(recreated, "STEPS", 20)
    brought = recreated.padding_counted(SEED)
    assert brought["mask"].float().mean() == 0.25 and not brought["inputs"][~brought["mask"]].any()
    assert len(brought["codebook"].unique(dim=0)) < 0.75 * len(brought["codebook"])
