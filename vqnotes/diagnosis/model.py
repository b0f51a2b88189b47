"""A diagnosis of a whole model: runs it, listens to its quantisers, and leaves it as it was."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vqnotes._checks import Array
from vqnotes._progress import expect, progress_bar, stage
from vqnotes.diagnosis.advice import Advice
from vqnotes.diagnosis.feeding import Feed
from vqnotes.diagnosis.inputs import axes_of
from vqnotes.diagnosis.listening import Listener
from vqnotes.diagnosis.listening.records import Heard
from vqnotes.diagnosis.listening.trials import without_gradient
from vqnotes.diagnosis.observed import seed_of
from vqnotes.diagnosis.report import Diagnosis

__all__ = ["as_it_was", "diagnose_model", "diagnoses_of", "hear"]

MOST_LATENTS = 2**18

STRAIGHT_THROUGH = Advice(
    "let a gradient pass the quantiser: latents + (codes - latents).detach(), and train again", "gradient", "01"
)


def diagnose_model(
    model: nn.Module,
    data: Any,
    *,
    labels: Array | None = None,
    places: tuple | None = None,
    quantizers: dict | None = None,
    call: Callable[[Any, Any], Any] | None = None,
    inputs: str | int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, Diagnosis]:
    """Runs the model on the data, listens to its quantisers, and diagnoses each: {name of the module: Diagnosis}.

    Knows this module's quantisers and, from vector-quantize-pytorch, `VectorQuantize`, `SimVQ` and what is made of
    them: `ResidualVQ`, `GroupedResidualVQ`, `HierarchicalVQ`; its grids `FSQ`, `LFQ`, `LatentQuantize`,
    `BinaryMapper`, and stacks of them; and the Gumbel quantiser of wav2vec 2.0 in transformers. Latents and codes are
    taken as the quantiser compares them, after its projection or normalisation, and the indices are its own. What
    `mask=` or `lens=` exclude does not count.

    The model is also watched during a pass, for others. A table (K, D) of its own (a parameter, a buffer,
    or made of them alone) is a codebook if its rows come out by indices that the inputs decide. The latents are what
    was compared with it. A note says what was found, and how many of the indices are the nearest code. So are found
    home-made quantisers, those of VQGAN and its kin, of diffusers, Encodec, DAC: in modules or not, at distance or in
    direction, also one after another. Rows that come out by indices which the batch brings, as tokens, are none.
    Beside quantisers that are known, a table is judged only if the indices are the nearest code; a note names others.

    Quantisers that make one token together get one diagnosis of the whole, encoder and rate counted over all, and
    after it one of each codebook alone:
        {"vq": the whole, "vq.layers.0": its first level, ...}          each level codes what the last one left
        {"vq": the whole, "vq[head 0]": ..., "vq[head 1]": ...}         heads with separate codebooks, or groups
    Levels are told by what reaches them, groups by their latents being pieces of one tensor, not by any name.
    Quantisers whose library places the codes at the first batch (vector-quantize-pytorch, with kmeans_init=True) get
    "cannot tell" before that, and nothing is measured: `started` of the diagnosis is False.
    A quantiser that is called several times in a pass, at several scales perhaps, is judged on all its latents
    together, and its encoder is not; and at each call by its codes alone, up to 16 calls:
        {"vq": all its latents, "vq[call 0]": the first call, "vq[call 1]": ...}

    quantizers: how the quantisers work, where they are not known and not found: {"vq": (latents_of, codes_of)}, by
    the module's name. latents_of(module, entered) gives what is compared with the codes, (..., D), from the first
    argument of the module's call; codes_of(module) the codes in use, (K, D). The indices are those that the module
    returned, or those of the codes that it returned, or else the nearest. A third function, index_of(module,
    returned), says otherwise. A module with methods `prepare(latents)` and `codes()` needs none of this.
    call: how the model is called with a batch, as in `lambda model, batch: model(**batch)`; the batch may then be a
    dict, or anything that holds tensors, and is given as data has it, with its tensors on the model's device and in
    its float type. None: model(x).
    inputs: which tensor of such a batch the latents code, by key or position. None: the first of a tuple, or the only
    one of a float type.
    data: inputs (N, ...) as a tensor or array; or inputs and labels as a tuple; or batches of either, as a DataLoader
    gives them, or a Dataset. The model is called with a batch of inputs, in its own float type. Of a batch
    (x, y, ...), y counts as labels if it is one whole number for each. Batches may differ in length along the axes
    of the places. The batch with which 2^18 latents were heard is the last.
    labels: one for each input, if data does not bring them.
    places: the axes of the inputs along which the latents' places run: (1,) for sequences (N, T, C), (2,) for
    (N, C, T), (2, 3) for images (N, C, H, W). None: the model is asked. The inputs are changed at one place, and
    where the latents move decides; if that is nowhere clearly, the encoder is not judged, and a note says so.
    progress: a bar with the stage of the work; None: where it is long, as with thousands of codes.
    If the model returns something of the inputs' shape, it counts as their reconstruction, unless it also depends on
    anything but the codes of one quantiser (or one unit of them), such as a skip connection.

    Memory: a fair sample by `seed` is kept of what was heard: of the inputs and their reconstructions 2^25 numbers,
    but at least those that belong to 512 latents; of the latents of each quantiser 2^25 numbers, but at least 16
    latents a code. Uses of the codes are counted over all that was heard.
    The model runs in evaluation mode, without gradients. Its modes, buffers and quantisers are put back as they were,
    and torch's random state too. Whether a gradient passes the quantisers is tried on a copy of the model.
    Raises ValueError if no quantiser is found or called, if what was compared can be read in two ways, if quantizers
    or inputs name what is not there, if the model cannot take the data, or as `diagnose` does. What refuses a model
    for its quantiser says what was looked for, what was found, and how to describe it in ten lines.
    """
    with progress_bar("diagnose_model", progress):
        heard = hear(model, data, places=places, quantizers=quantizers, call=call, inputs=inputs, seed=seed)
        return diagnoses_of(heard, labels)


def hear(
    model: nn.Module,
    data: Any,
    *,
    places: tuple | None = None,
    quantizers: dict | None = None,
    call: Callable[[Any, Any], Any] | None = None,
    inputs: str | int | None = None,
    seed: int = 0,
) -> Heard:
    """What is heard of the quantisers of a model that runs on the data. Raises ValueError: see `diagnose_model`."""
    feed = Feed(model, call, inputs)
    listener, places, seed = Listener(model, quantizers, feed.call_with), axes_of(places), seed_of(seed)
    expect(1, 0)
    stage("listening")
    with as_it_was(model, listener.names):
        with listener.listening():
            heard = Heard(listener, places, seed)
            for x, y in feed.batches(data):
                heard.add(x, y)
                if max(record.heard for record in heard.records) >= MOST_LATENTS:
                    break
        if not heard.count:
            raise ValueError("no data: not a single batch came")
        feed.rewind()
        heard.cut = without_gradient(listener, heard.first, [name for one in heard.records for name in one.entries])
    return heard


def diagnoses_of(heard: Heard, labels: Array | None, **measuring: Any) -> dict[str, Diagnosis]:
    """The diagnosis of each quantiser that was heard, by name. measuring: options of `measure`."""
    found = {}
    for record in heard.records:
        for name, one in record.diagnoses(heard.inputs, heard.labels_of(labels), heard.seed, **measuring).items():
            one = replace(one, notes=[*one.notes, *heard.listener.unjudged]) if name == record.unit.name else one
            found[name] = _no_gradient(one) if heard.cut.issuperset(record.entries) else one
    return found


def _no_gradient(found: Diagnosis) -> Diagnosis:
    """The diagnosis, led by what comes before any verdict."""
    doubt = (
        "no gradient passes from the model's output to what enters the quantiser: its encoder learns nothing of it"
    )
    return replace(found, doubts=[doubt, *found.doubts], advice=[STRAIGHT_THROUGH, *found.advice])


@contextmanager
def as_it_was(model: nn.Module, names: list[str]) -> Iterator[None]:
    """Evaluation mode, no gradients; afterwards modes, buffers, quantisers and the random state are as before.

    names: of the quantisers, as far as they are known. Without any, what may be a codebook is put back.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module, name, one) for module in model.modules() for name, one in module._buffers.items()]
    kept = [one for *_, one in buffers if one is not None]
    kept += [one for name in names for one in model.get_submodule(name).parameters()]
    kept += [] if names else _perhaps_codes(model)
    before = [copy.deepcopy(one.detach()) for one in kept]
    devices = {one.device for one in kept if one.device.type == "cuda"}
    parallel = [one for one in model.modules() if isinstance(one, nn.parallel.DistributedDataParallel)]
    syncs = [one.require_forward_param_sync for one in parallel]
    try:
        for each in parallel:  # it would wait for the others at each call, who may not call it
            each.require_forward_param_sync = False
        with torch.no_grad(), torch.random.fork_rng(list(devices)):
            _evaluate(model)
            yield
    finally:
        for each, sync in zip(parallel, syncs):
            each.require_forward_param_sync = sync
        for module, training in modes:
            module.training = training
        for module, name, one in buffers:
            module._buffers[name] = one
        with torch.no_grad():
            for one, value in zip(kept, before):
                one.copy_(value)


def _evaluate(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError as error:  # the module of an exported program
        raise ValueError(
            f"{type(model).__name__} has no evaluation mode: {error} If it was exported, give the model as it was "
            f"before; or give arrays: diagnose(latents, codebook)"
        ) from error


def _perhaps_codes(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of embeddings, and of all modules that are not torch's own."""
    modules = [one for one in model.modules() if isinstance(one, nn.Embedding) or not _is_of_torch(one)]
    return [parameter for module in modules for parameter in module.parameters(recurse=False)]


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")
