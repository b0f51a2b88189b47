"""The bar of a diagnosis: its stages are those that were announced, and what is short stays silent."""

import re
import warnings

import pytest
import torch
from helpers import normal

from vqnotes import _progress
from vqnotes.diagnosis import CollapseWatch, diagnose, diagnose_model, diagnose_stack
from vqnotes.kmeans import kmeans
from vqnotes.models import mlp_autoencoder
from vqnotes.quantizers import VectorQuantizer


@pytest.fixture
def bars(monkeypatch):
    """The bars that were opened, each with all that it was told."""
    opened = []

    class Bar:
        def __init__(self, total, initial, desc, **options):
            self.total, self.n, self.said, self.closed = total, initial, [desc], False
            opened.append(self)

        def update(self, more):
            assert more >= 0 and not self.closed
            self.n += more

        def set_description(self, text):
            self.said.append(text)

        def close(self):
            self.closed = True

    monkeypatch.setattr(_progress, "tqdm", Bar)
    return opened


def stack(latents):
    first = kmeans(latents, 16)[0]
    left = latents - first[torch.cdist(latents, first).argmin(1)]
    return [[(latents, first, None), (left, kmeans(left, 8)[0], None)]]


LATENTS = normal(600, 4)
Y = (LATENTS[:, 0] > 0).long()


@pytest.mark.parametrize(
    "work",
    [
        lambda: diagnose(LATENTS, LATENTS[:16], progress=True),
        lambda: diagnose(LATENTS, LATENTS[:16], inputs=LATENTS, labels=Y, progress=True),
        lambda: diagnose(LATENTS[:20], LATENTS[:4], progress=True),
        lambda: diagnose_stack(stack(LATENTS), progress=True),
        lambda: diagnose_stack(stack(LATENTS), inputs=LATENTS, progress=True),
        lambda: diagnose_model(mlp_autoencoder(4, VectorQuantizer(16, 2)), LATENTS, progress=True),
    ],
)
def test_a_bar_has_as_many_stages_as_it_announces(work, bars):
    work()
    (bar,) = bars
    stages = bar.said[1:]
    assert len(stages) == bar.total and bar.closed
    assert bar.total - 1 <= bar.n <= bar.total  # the last stage ends with the work


def test_what_is_short_has_no_bar_unless_one_is_wanted(bars, capsys):
    diagnose(LATENTS, LATENTS[:16])
    diagnose_model(mlp_autoencoder(4, VectorQuantizer(16, 2)), LATENTS)
    assert not bars and capsys.readouterr().err == ""


def test_what_is_long_has_a_bar_unless_none_is_wanted(bars, monkeypatch):
    monkeypatch.setattr(_progress, "LONG", 2**20)
    model = mlp_autoencoder(4, VectorQuantizer(64, 2))
    diagnose(LATENTS, LATENTS[:64], progress=False)
    diagnose_model(model, LATENTS, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CollapseWatch(LATENTS).look(0, model)
    assert not bars
    diagnose(LATENTS, LATENTS[:64])
    diagnose_model(model, LATENTS)
    assert len(bars) == 2 and all(bar.closed for bar in bars)


def test_a_bar_is_closed_when_the_work_fails(bars):
    with pytest.raises(ValueError, match="not a single batch"):
        diagnose_model(mlp_autoencoder(4, VectorQuantizer(16, 2)), [], progress=True)
    assert bars[0].closed
    diagnose(LATENTS, LATENTS[:16])
    assert len(bars) == 1  # and it is forgotten


def test_the_bar_names_its_stages(capsys):
    diagnose(LATENTS, LATENTS[:16], labels=Y, progress=True)
    shown = capsys.readouterr().err
    percents = [int(one) for one in re.findall(r"(\d+)%\|", shown)]
    assert percents == sorted(percents) and percents[0] == 0 and len(set(percents)) >= 4
    assert "diagnose: k-means on the latents" in shown and "labels read off the latents" in shown


def test_work_adds_up(bars):
    with _progress.progress_bar("work", None):
        _progress.expect(1, 0.6 * _progress.LONG)  # the first of several quantisers
        assert not bars
        _progress.expect(1, 0.6 * _progress.LONG)
        assert bars[0].total == 2


def test_k_means_moves_the_bar_within_its_stage(bars):
    with _progress.progress_bar("work", True):
        _progress.expect(2, 0)
        _progress.stage("first")
        reached = [bars[0].n for _ in _progress.first_half(range(4))]
    assert reached == [0, 0.125, 0.25, 0.375]
    assert list(_progress.first_half([1, 2])) == [1, 2]
