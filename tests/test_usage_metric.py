"""The metric of torchmetrics counts as `UsageMeter` does: a case is skipped where torchmetrics is not installed."""

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from torch import distributed

from vqnotes.diagnosis.callbacks import usage_metric
from vqnotes.metrics import UsageMeter

torchmetrics = pytest.importorskip("torchmetrics")
SIZES, INDEX = (300, 41), torch.from_numpy(np.random.default_rng(0).integers(0, 24, 341))  # of 32 codes
FIGURES = ("perplexity", "usage")


def of_meter(figure, *indices):
    meter = UsageMeter(32)
    for one in indices:
        meter.update(one)
    return pytest.approx(getattr(meter, figure)(), rel=1e-6)


@pytest.mark.parametrize("figure", FIGURES)
def test_over_batches_it_is_what_the_meter_is(figure):
    first, second = INDEX.split(SIZES)
    metric = usage_metric(32, figure)
    assert isinstance(metric, torchmetrics.Metric)
    metric.update(first.reshape(30, 10))
    assert metric.compute() == of_meter(figure, first)
    assert metric(second) == of_meter(figure, second)  # forward: of this batch
    assert metric.compute() == of_meter(figure, first, second)
    for other in copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)):
        other.update(second)
        assert other.compute() == of_meter(figure, first, second, second)
        assert metric.compute() == of_meter(figure, first, second)
    metric.reset()
    metric.update(second)
    assert metric.compute() == of_meter(figure, second)


def test_a_checkpoint_and_a_collection_take_it():
    metric, other = usage_metric(32), usage_metric(32)
    metric.persistent(True), other.persistent(True)
    metric.update(INDEX)
    other.load_state_dict(metric.state_dict())
    assert torch.equal(other.counts, UsageMeter(32).update(INDEX).counts)
    both = torchmetrics.MetricCollection({name: usage_metric(32, name) for name in FIGURES})
    both.update(INDEX)
    assert both.compute() == {name: of_meter(name, INDEX) for name in FIGURES}


def test_what_is_no_use_is_refused():
    with pytest.raises(ValueError, match=r"figure must be one of \('perplexity', 'usage'\), got 'dead'"):
        usage_metric(32, "dead")
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        usage_metric(0)
    with pytest.raises(ValueError, match=r"index must be in 0 .. 31, got 0 .. 32"):
        usage_metric(32).update(torch.arange(33))
    with pytest.raises(ValueError, match="no index counted yet"), pytest.warns(UserWarning, match="before"):
        usage_metric(32).compute()


def counted(rank, file):
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    try:
        found = []
        for figure in FIGURES:
            metric = usage_metric(32, figure)
            metric.update(INDEX.split(SIZES)[rank])
            found.append(float(metric.compute()))
            assert torch.equal(metric.counts, UsageMeter(32).update(INDEX.split(SIZES)[rank]).counts)
        return found
    finally:
        distributed.destroy_process_group()


def test_two_processes_together_are_one_pass_over_all(tmp_path):
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        found = [one.result() for one in [pool.submit(counted, rank, tmp_path / "store") for rank in (0, 1)]]
    assert found[0] == found[1] == [of_meter(figure, INDEX) for figure in FIGURES]
