"""Counts of several meters, processes and sessions are put together as if one meter had counted all."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from torch import distributed

from vqnotes.metrics import UsageMeter

SIZES, INDEX = (300, 41), torch.from_numpy(np.random.default_rng(0).integers(0, 24, 341))  # of 32 codes


def counted_apart(rank, file, codes):
    """What one of two processes does: it counts its share, and puts it together twice."""
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    try:
        meter = UsageMeter(codes[rank]).update(INDEX.split(SIZES)[rank])
        try:
            both = [meter.all_reduce().counts.tolist() for _ in range(2)]
        except ValueError as error:
            return str(error)
        return meter.counts.tolist(), both
    finally:
        distributed.destroy_process_group()


def in_two_processes(folder, codes):
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        tasks = [pool.submit(counted_apart, rank, folder / "store", codes) for rank in (0, 1)]
        return [one.result() for one in tasks]


def test_two_processes_together_have_counted_what_one_pass_over_all_has(tmp_path):
    whole = UsageMeter(32).update(INDEX).counts.tolist()
    parts = [UsageMeter(32).update(one).counts.tolist() for one in INDEX.split(SIZES)]
    assert in_two_processes(tmp_path, (32, 32)) == [(part, [whole, whole]) for part in parts]


def test_processes_that_count_different_codes_are_refused_in_each(tmp_path):
    said = [f"the processes count 24 to 32 codes, here {size}: need as many in each" for size in (32, 24)]
    assert in_two_processes(tmp_path, (32, 24)) == said


def test_a_single_process_has_all():
    meter = UsageMeter(4).update([0, 3, 3])
    both = meter.all_reduce()
    assert both.counts.tolist() == [1, 0, 0, 2] and isinstance(both, UsageMeter)
    both.reset()
    assert meter.usage() == 0.5


def test_a_meter_goes_on_from_its_checkpoint(tmp_path):
    first, second = INDEX.split(SIZES)
    meter = UsageMeter(32).update(first)
    torch.save(meter.state_dict(), tmp_path / "meter.pt")
    meter.update(second)
    later = UsageMeter(32).update(first)
    later.load_state_dict(torch.load(tmp_path / "meter.pt", weights_only=True))
    assert later.update(second).counts.tolist() == meter.counts.tolist()
    assert later.perplexity() == meter.perplexity()


def test_a_checkpoint_is_a_copy():
    meter = UsageMeter(4).update([0])
    kept = meter.state_dict()
    other = UsageMeter(4)
    other.load_state_dict(kept)
    meter.update([1])
    other.update([2])
    assert kept["counts"].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    "state, said",
    [
        ({}, r"need a state with 'counts', as state_dict gives it, got \[\]"),
        ({"counts": torch.ones(5, dtype=torch.int64)}, r"need 4 whole numbers of at least 0, got torch.int64 \(5,\)"),
        ({"counts": torch.tensor([0, -2, 0, 0])}, r"need 4 whole numbers of at least 0, got .* \(4,\): .*-2"),
        ({"counts": torch.ones(4)}, r"need 4 whole numbers of at least 0, got torch.float32 \(4,\)"),
    ],
)
def test_a_state_of_something_else_is_refused(state, said):
    meter = UsageMeter(4).update([0, 1])
    with pytest.raises(ValueError, match=said):
        meter.load_state_dict(state)
    assert meter.counts.tolist() == [1, 1, 0, 0]
