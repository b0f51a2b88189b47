"""The study of a watch: its table is whole, healthy trainings are left alone, and collapsed ones are not."""

import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from vqnotes.diagnosis import CollapseWatch
from vqnotes.studies import parts, sickened, watching
from vqnotes.studies.watching import alarms


@pytest.fixture(scope="module")
def table():
    return watching.trainings_watched()


def test_every_setting_is_there_with_all_its_seeds(table):
    found = table.groupby(["label", "case"])["seed"].apply(list)
    todo = {(one["label"], one["case"]): watching.CASES[one["label"]][1] for one in watching.settings()}
    assert sorted(found.index) == sorted(todo)
    for key, count in todo.items():
        assert found[key] == list(range(watching.FIRST_SEED, watching.FIRST_SEED + count))
    assert table["confirmed"].all() and (table["label"] == "healthy").sum() == 100
    assert (table["looks"] >= 300 / watching.EVERY + 1).all() and (
        table["warned"].notna() == (table["warnings"] > 0)
    ).all()


def test_healthy_trainings_are_left_alone_and_collapsed_ones_are_not(table):
    found = alarms(table).query("case == 'all'").set_index("label")
    assert found.loc["healthy", "share"] <= 0.05
    assert found.loc["token collapse", "warned"] == found.loc["token collapse", "runs"]
    late = table.query("label == 'token collapse'")
    assert (late["warned"] - late["started"]).max() <= 1.25 * watching.EVERY + 1
    assert (late["warnings"] <= 3).all()


def measured(table):
    """What the table says, in the words of the docstring of CollapseWatch."""
    found = alarms(table).query("case == 'all'").set_index("label")
    looks = (table.query("label == 'healthy'")["bad"] > 0).sum()
    healthy, collapsed, recovered = (found.loc[one] for one in ("healthy", "token collapse", "recovered"))
    return (
        f"Measured by `studies.watching`, with every={watching.EVERY} and no start, in runs of {sickened.STEPS} "
        f"steps: of {healthy['runs']} healthy trainings {healthy['warned']} got a warning (Wilson's 95 % interval: "
        f"{100 * healthy['low']:.1f} to {100 * healthy['high']:.1f} %), though {looks} had a look that found a "
        f"collapse of codes in use. Of {collapsed['runs']} that collapsed {collapsed['warned']} did, in the median "
        f"{collapsed['delay']:.0f} steps after their codes came into use. A codebook that collapses with the first "
        f"steps and recovers by itself is warned of as well: {recovered['warned']} of {recovered['runs']}."
    )


def test_the_watch_says_what_was_measured(table):
    said = " ".join(CollapseWatch.__doc__.split())
    assert measured(table) in said, f"the docstring must say: {measured(table)}"


def test_other_figures_are_other_words(table):
    """So that no figure in the sentence can be out of date without a failure."""
    now = measured(table)
    healthy, collapsed = table["label"] == "healthy", table["label"] == "token collapse"
    others = [
        table.assign(warnings=table["warnings"].where(~healthy, 1)),
        table.assign(warnings=table["warnings"].where(~collapsed, 0)),
        table.assign(warnings=table["warnings"].where(table["label"] != "recovered", 0)),
        table.assign(warned=table["warned"] + 1),
        table.assign(bad=table["bad"] + 1),
        table.assign(confirmed=table["confirmed"] & (table["seed"] != watching.FIRST_SEED)),
    ]
    assert len({now, *map(measured, others)}) == 7


def test_alarms_are_counted_with_wilsons_interval():
    rows = [("healthy", "a", 1, 0, math.nan, True)] * 9 + [("healthy", "b", 1, 2, 41, True)]
    rows += [("token collapse", "c", 0, 1, step, True) for step in (7, 8, 30)] + [("healthy", "b", 1, 1, 7, False)]
    names = ["label", "case", "started", "warnings", "warned", "confirmed"]
    found = alarms(pd.DataFrame(rows, columns=names)).set_index(["label", "case"])
    assert list(found.index) == [
        ("healthy", "all"),
        ("token collapse", "all"),
        ("healthy", "a"),
        ("healthy", "b"),
        ("token collapse", "c"),
    ]
    one = found.loc["healthy", "all"]
    # (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), with p = 0.1, n = 10, z = 1.96
    assert (one["runs"], one["warned"], one["share"], one["delay"]) == (10, 1, 0.1, 40)
    assert one[["low", "high"]].tolist() == pytest.approx([0.0179, 0.4042], abs=1e-4)
    assert found.loc[("token collapse", "c"), "delay"] == 8 and math.isnan(found.loc[("healthy", "a"), "delay"])


@pytest.mark.parametrize(
    "case, expected",
    [  # started, looks, bad, warnings, warned
        ("U(±1/K)", [0, 2, 2, 1, 7]),  # after a quarter of the wait it is confirmed
        ("library, expiry", [1, 1, 0, 0, math.nan]),  # not started at the only look
    ],
)
def test_a_training_is_watched_and_tried(case, expected):
    torch.set_num_threads(1)
    (row,) = watching.under_watch([8000], "any", case, steps=8)
    assert list(row.values())[:5] == pytest.approx(expected, nan_ok=True)
    assert 0 < row["floor"] < row["same codes"]


def test_their_codes_in_our_quantiser_choose_alike():
    torch.manual_seed(0)
    theirs, latents = watching.Library(16, 4), torch.randn(200, 4)
    theirs(latents)
    theirs.eval()
    assert torch.equal(theirs.as_ours()(latents).index, theirs(latents).index)


END = {"same codes": 0.03, "new codes": 0.03, "floor": 0.03}


def scripted(monkeypatch, trained, cut_at=None):
    """Trainings that take no time, noted as (label, case, seed)."""

    def under_watch(seeds, label, case):
        trained.append((label, case, *seeds))
        if len(trained) == cut_at:
            raise KeyboardInterrupt
        end = END | ({"new codes": 0.02} if label == "token collapse" else {})
        return [{"started": 0, "looks": 3, "bad": 0, "warnings": 0, "warned": math.nan} | end for _ in seeds]

    monkeypatch.setattr(watching, "under_watch", under_watch)


WANTED = [
    (label, case, seed)
    for label, (cases, number) in watching.CASES.items()
    for case in cases
    for seed in range(watching.FIRST_SEED, watching.FIRST_SEED + number)
]


def test_a_table_that_is_there_is_gone_on_with(monkeypatch, tmp_path, capsys):
    trained, out = [], tmp_path / "found.csv"
    monkeypatch.setattr("sys.argv", ["watching", "--out", str(out), "--workers", "1"])
    monkeypatch.setattr(watching, "processes", ThreadPoolExecutor)
    scripted(monkeypatch, trained, cut_at=3)
    with pytest.raises(KeyboardInterrupt):
        watching.main()
    assert len(pd.read_csv(out)) == 2
    watching.main()
    assert trained == WANTED[:3] + WANTED[2:]
    watching.main()
    assert len(trained) == len(WANTED) + 1
    assert list(pd.read_csv(out)[["label", "case", "seed"]].itertuples(index=False, name=None)) == WANTED
    assert "healthy" in capsys.readouterr().out and [path.name for path in tmp_path.iterdir()] == ["found.csv"]


def test_it_stops_by_itself_and_says_what_is_missing(monkeypatch, tmp_path):
    trained, out, clock = [], tmp_path / "found.csv", iter(range(1000))
    scripted(monkeypatch, trained)
    monkeypatch.setattr(parts, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(watching, "processes", ThreadPoolExecutor)
    monkeypatch.setattr("sys.argv", ["watching", "--out", str(out), "--workers", "4", "--limit-s", "10"])
    with pytest.raises(SystemExit, match=f"^(.*) of {len(WANTED)} trainings are in .*: run it again") as stopped:
        watching.main()
    done = int(str(stopped.value).split()[0])
    assert 4 <= done <= 10 and sorted(trained) == sorted(WANTED[:done]) and len(pd.read_csv(out)) == done
    monkeypatch.setattr("sys.argv", ["watching", "--out", str(out)])
    watching.main()
    assert sorted(trained) == sorted(WANTED) and len(pd.read_csv(out)) == len(WANTED)
