"""Models over several processes: each gets the verdict on what it was given, alone or with the others."""

import os
import pickle
from datetime import timedelta
from multiprocessing import get_context

import pytest
import torch
from test_diagnose_model_units import Forgetful, Linear, low_rank
from test_listening_found import Maps, crowded, inputs_of, model_of, placed
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from vqnotes.diagnosis import CollapseWatch, diagnose_model
from vqnotes.quantizers import VectorQuantizer

SECONDS = 240  # after which a process that waits for another one fails


def autoencoders(sick):
    """{name of the quantiser: (model, inputs)}: one that is known, one that is found by watching."""
    torch.manual_seed(0)
    x = low_rank(600, 12)
    known = Linear(Forgetful(32, 4, update="ema") if sick else VectorQuantizer(32, 4, update="ema"), x)
    if sick:
        known.vq.codes().data.copy_(crowded(known.encoder(x).detach(), 32))
    home_made, _ = model_of(Maps, crowded if sick else placed)
    return {"known": (known, x), "home-made": (home_made, inputs_of(Maps))}


def looked(rank, folder, size, who):
    """Writes what one of `size` processes finds, if it is among those who look, where they still train together.

    It ends at once: torch may wait for ever where a model over processes is cleared away after its group.
    """
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=SECONDS),
    )
    found = {}
    for sick in (False, True):
        for name, (model, x) in autoencoders(sick).items():
            model = DistributedDataParallel(model, find_unused_parameters=True)  # of a codebook by averages, too
            sync = model.require_forward_param_sync
            if rank in who:
                (vq,) = diagnose_model(model, x).items()
                watch = CollapseWatch(x, every=1)
                watch(0, model)
                found[name, sick] = vq[0], vq[1].verdict, [one[:19] for one in vq[1].doubts], watch.turns
            assert model.require_forward_param_sync == sync
            out = model(x[rank::size][:64])
            (out - x[rank::size][:64]).square().mean().backward()
            gradient = model.module.decoder.weight.grad.sum()
            both = [torch.zeros_like(gradient) for _ in range(size)]
            distributed.all_gather(both, gradient)
            assert all(torch.equal(one, both[0]) for one in both) and gradient != 0
    (folder / str(rank)).write_bytes(pickle.dumps(found))
    os._exit(0)


@pytest.mark.parametrize("size, who", [(1, [0]), (2, [0]), (2, [0, 1])])
def test_a_model_over_processes_gets_the_verdict_of_a_plain_one(tmp_path, size, who):
    tasks = [get_context("spawn").Process(target=looked, args=(rank, tmp_path, size, who)) for rank in range(size)]
    for one in tasks:
        one.start()
    for one in tasks:
        one.join(2 * SECONDS)
        one.kill()
    found = [pickle.loads((tmp_path / str(rank)).read_bytes()) for rank in range(size)]
    for rank in who:
        for name, cut in ("known", ["no gradient passes "]), ("home-made", []):
            for sick, verdict in (False, "healthy"), (True, "token collapse"):
                path, said, doubts, turns = found[rank][name, sick]
                assert path == "module.vq" and said == verdict and turns == [(0, path, verdict)]
                assert set(doubts).issuperset(cut if sick else []) and ("no gradient passes " in doubts) <= sick
