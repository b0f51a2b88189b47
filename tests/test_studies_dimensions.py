"""The study of dimensions: what it measures, beside cases worked by hand; its arms; its settings; its table."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import normal
from torch import nn

from vqnotes import metrics, models
from vqnotes.quantizers import VectorQuantizer
from vqnotes.studies import dimensions, parts
from vqnotes.studies.dimensions import AnothersError, examine

SETTING = {"arm": "reference", "optimizer": "SGD", "lr": 0.375, "size": 1e-3, "K": 8, "warmup": 0, "steps": 12}


@pytest.fixture
def short(monkeypatch):
    for name, value in {"CHECKED": (6, 30), "ROWS": 512, "FRESH": 256, "REFITTED_ON": 64}.items():
        monkeypatch.setattr(dimensions, name, value)
    dimensions.gaussian_numbers.cache_clear()
    yield
    dimensions.gaussian_numbers.cache_clear()


def model(passed, K=4):
    """A linear autoencoder that lets through so many directions, strongest first, with K codes by k-means."""
    encoder, decoder = (nn.Linear(dimensions.DIM, dimensions.DIM, bias=False) for _ in range(2))
    with torch.no_grad():
        encoder.weight.copy_(torch.diag((torch.arange(dimensions.DIM) < passed).float()))
        decoder.weight.copy_(torch.eye(dimensions.DIM))
    found = models.VQAutoencoder(encoder, VectorQuantizer(K, dimensions.DIM), decoder)
    found.quantizer.init_codes("kmeans", found.encode(dimensions.gaussian_numbers(3)).detach())
    return found


def test_what_is_measured_of_a_net_that_passes_one_direction():
    found = dimensions._measured(model(1), dimensions.gaussian_numbers(3), dimensions.gaussian_numbers(4, 8192))
    assert found["learnt"] == found["d_eff of latents"] == found["d_eff of codes"] == found["d_eff of rows"] == 1
    total, best = dimensions.VARIANCES.sum(), 0.1175  # the error of the best four codes for one Gaussian (Max, 1960)
    assert found["error"] == pytest.approx((total - 1 + best) / total, rel=0.01)
    assert found["repaired"] == pytest.approx(found["error"], rel=0.01) and found["gap"] == pytest.approx(1, abs=0.02)
    assert found["filled"] == pytest.approx(1, abs=0.1) and 3.5 < found["perplexity"] <= 4


def test_a_repair_mends_codes_and_not_latents():
    broken = model(4, K=16)
    with torch.no_grad():
        broken.quantizer.codebook.mul_(0.01)
    found = dimensions._measured(broken, dimensions.gaussian_numbers(3), dimensions.gaussian_numbers(4, 8192))
    whole = dimensions._measured(model(4, K=16), dimensions.gaussian_numbers(3), dimensions.gaussian_numbers(4, 8192))
    assert found["error"] > 0.95 > 1.2 * whole["error"] and found["gap"] > 2
    assert found["repaired"] == pytest.approx(whole["error"], rel=0.02)


def test_idle_codes_count_in_the_rows_alone():
    idle = model(1, K=64)
    with torch.no_grad():
        idle.quantizer.codebook[4:] = 100 * normal(60, dimensions.DIM)
    found = dimensions._measured(idle, dimensions.gaussian_numbers(3), dimensions.gaussian_numbers(4, 8192))
    assert found["d_eff of codes"] == 1 and found["d_eff of rows"] > 15 and found["perplexity"] <= 4


def test_the_decoder_gets_the_error_of_another_while_it_learns():
    quantizer, latents = AnothersError(4, 3, update="ema", decay=0.9), normal(16, 3).requires_grad_()
    quantizer.init_codes("kmeans", latents.detach())
    codes = quantizer.codebook.clone()
    latents_q, index, _ = quantizer(latents)
    error = codes[index] - latents.detach()
    assert torch.allclose(latents_q.detach()[1:], latents.detach()[1:] + error[:-1])
    latents_q.sum().backward()
    assert torch.equal(latents.grad, torch.ones(16, 3))
    quantizer.eval()
    latents_q, index, _ = quantizer(latents)
    assert torch.equal(latents_q.detach(), quantizer.codebook[index])


def test_the_net_goes_by_plain_descent_and_the_codes_by_adam():
    net, codes = (nn.Parameter(torch.ones(2)) for _ in range(2))
    both = dimensions._NetBySGD([{"params": [net], "lr": 0.5}, {"params": [codes], "lr": 0.1}])
    net.grad, codes.grad = torch.full((2,), 3.0), torch.full((2,), 3.0)
    both.step()
    assert torch.equal(net.detach(), torch.full((2,), -0.5)) and torch.allclose(codes.detach(), torch.full((2,), 0.9))


def test_codes_that_are_refitted_lie_where_k_means_has_them(short, monkeypatch):
    seen = []
    monkeypatch.setattr(dimensions, "_measured", lambda model, x, fresh: seen.append(model) or {})
    examine(**SETTING | {"arm": "refitted each step"}, seeds=[3])
    latents = seen[-1].encode(dimensions.gaussian_numbers(3)[:64]).detach()
    assert torch.allclose(seen[-1].quantizer.codebook, dimensions.kmeans(latents, 8)[0])


@pytest.mark.parametrize("arm", dimensions.ARMS)
@pytest.mark.parametrize("optimizer, warmup", [("SGD", 0), ("SGD", 5), ("Adam", 0)])
def test_each_arm_gives_a_row_a_seed_and_a_step(arm, optimizer, warmup, short):
    rows = pd.DataFrame(examine(**SETTING | {"arm": arm, "optimizer": optimizer, "warmup": warmup}, seeds=(3, 4)))
    assert list(zip(rows["step"], rows["seed"])) == [(6, 3), (6, 4), (12, 3), (12, 4)] and set(rows["arm"]) == {arm}
    assert np.isfinite(rows.drop(columns=["arm", "optimizer"])).all(axis=None) and (rows["error"] > 0).all()


def test_offline_codes_are_those_of_k_means(short):
    (row,) = examine(**SETTING | {"arm": "offline"}, seeds=[3])
    codes, _ = dimensions.kmeans(dimensions.gaussian_numbers(3, 512), 8)
    assert row["error"] == pytest.approx(
        metrics.quantization_error(dimensions.gaussian_numbers(500_003, 256), codes), rel=1e-2
    )


@pytest.mark.parametrize("wrong", [{"arm": "beta 2"}, {"optimizer": "RMSprop"}])
def test_unknown_names_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        examine(**SETTING | wrong)


def test_it_goes_on_where_it_stopped(tmp_path, short, monkeypatch, capsys):
    small = [SETTING, SETTING | {"arm": "beta 0"}]
    (tmp_path / f"{parts.name_of(SETTING)}.csv").write_text("arm,seed\nreference,7\n", encoding="utf-8")
    table = tmp_path / "table.csv"
    words = ["dimensions", "--workers", "1", "--out", str(tmp_path), "--match", "reference", "--table", str(table)]
    monkeypatch.setattr("sys.argv", words)
    parts.command("dimensions", "", examine, small)
    assert "1 of 1 settings were done before" in capsys.readouterr().out and pd.read_csv(table)["seed"].tolist() == [
        7
    ]


def test_the_table_has_every_setting_with_every_seed():
    stored, settings = dimensions.stored_table(), dimensions.settings()
    names = list(settings[0])
    runs = stored.groupby(names)["seed"].agg(lambda seeds: sorted(set(seeds)))
    assert set(runs.index) == {tuple(one[name] for name in names) for one in settings}
    for setting, seeds in runs.items():
        assert seeds == list(dimensions.SEEDS if dict(zip(names, setting))["K"] == 64 else dimensions.FEW), setting
    trained = stored[stored["arm"] != "offline"]
    assert trained.notna().all(axis=None)
    last = trained.groupby(names)["step"].max()
    assert (last == last.index.get_level_values("steps")).all()
    assert not stored.duplicated([*names, "seed", "step"]).any()


def test_a_setting_of_the_table_comes_out_again():
    setting = SETTING | {"K": 16, "steps": 480}
    again = pd.DataFrame(examine(**setting, seeds=dimensions.FEW[:2]))
    stored = dimensions.stored_table().query("arm == 'reference' and K == 16 and warmup == 0").set_index("seed")
    for name in ("error", "repaired", "filled"):
        assert again[name].tolist() == pytest.approx(stored.loc[again["seed"], name].tolist(), rel=0.03), name
