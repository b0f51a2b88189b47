"""A diagnosis of a whole model: runs it, listens to its quantisers, and leaves it as it was."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from vqnotes._checks import Array, dense_tensor
from vqnotes._progress import expect, progress_bar, stage
from vqnotes.diagnosis.inputs import axes_of
from vqnotes.diagnosis.listening import Listener
from vqnotes.diagnosis.listening.records import Heard
from vqnotes.diagnosis.listening.trials import without_gradient
from vqnotes.diagnosis.observed import seed_of
from vqnotes.diagnosis.report import Advice, Diagnosis

__all__ = ["diagnose_model"]

BATCH, MOST_LATENTS = 256, 2**18

STRAIGHT_THROUGH = Advice(
    "let a gradient pass the quantiser: latents + (codes - latents).detach(), and train again", "gradient", "01"
)


def diagnose_model(
    model: nn.Module,
    data: Any,
    *,
    labels: Array | None = None,
    places: tuple | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, Diagnosis]:
    """Runs the model on the data, listens to its quantisers, and diagnoses each: {name of the module: Diagnosis}.

    Finds this module's quantisers and, from vector-quantize-pytorch, `VectorQuantize`, `SimVQ` and what is made of
    them: `ResidualVQ`, `GroupedResidualVQ`, `HierarchicalVQ`. Latents and codes are taken as the quantiser compares
    them, after its projection or normalisation, and the indices are its own. What `mask=` or `lens=` exclude does
    not count.

    Quantisers that make one token together get one diagnosis of the whole, encoder and rate counted over all, and
    after it one of each codebook alone:
        {"vq": the whole, "vq.layers.0": its first level, ...}          each level codes what the last one left
        {"vq": the whole, "vq[head 0]": ..., "vq[head 1]": ...}         heads with separate codebooks, or groups
    Levels are told by what reaches them, groups by their latents being pieces of one tensor, not by any name.
    A quantiser that is called several times in a pass, at several scales perhaps, is judged on all its latents
    together, and its encoder is not.

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
    Raises ValueError if no quantiser is found or called, if the model cannot take the data, or as `diagnose` does.
    A quantiser that is not known can be diagnosed by hand: `diagnose(latents, codebook, inputs=...)`.
    """
    listener, places, seed = Listener(model), axes_of(places), seed_of(seed)
    with progress_bar("diagnose_model", progress):
        expect(1, 0)
        stage("listening")
        with _as_it_was(model, listener.names):
            with listener.listening():
                heard = Heard(listener, places, seed)
                for x, y in _batches(data, model):
                    heard.add(x, y)
                    if max(record.heard for record in heard.records) >= MOST_LATENTS:
                        break
            if not heard.count:
                raise ValueError("no data: not a single batch came")
            names = [name for record in heard.records for name in record.entries]
            cut = without_gradient(model, heard.first, names)
        found = {}
        for record in heard.records:
            for name, one in record.diagnoses(heard.inputs, heard.labels_of(labels), seed).items():
                found[name] = _no_gradient(one) if cut.issuperset(record.entries) else one
    return found


def _no_gradient(found: Diagnosis) -> Diagnosis:
    """The diagnosis, led by what comes before any verdict."""
    doubt = (
        "no gradient passes from the model's output to what enters the quantiser: its encoder learns nothing of it"
    )
    return replace(found, doubts=[doubt, *found.doubts], advice=[STRAIGHT_THROUGH, *found.advice])


def _batches(data: Any, model: nn.Module) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of inputs on the model's device, in its float type, each with its labels if there are any."""
    if isinstance(data, tuple) or hasattr(data, "shape"):
        parts = [dense_tensor(part, "data") for part in (data if isinstance(data, tuple) else [data])]
        if not all(part.ndim and len(part) == len(parts[0]) for part in parts):
            raise ValueError(
                f"data must have inputs along their first axis, got {[tuple(one.shape) for one in parts]}"
            )
        data = TensorDataset(*parts)
    if not isinstance(data, Dataset | Iterable):
        raise ValueError(f"data must be a tensor or array, batches of them, or a Dataset, got {type(data).__name__}")
    like = next((one for one in model.state_dict().values() if one.is_floating_point()), torch.empty(0))
    for batch in DataLoader(data, BATCH) if isinstance(data, Dataset) else data:
        x, *others = batch if isinstance(batch, list | tuple) and batch else [batch]
        shape = getattr(x, "shape", None)
        if not shape or not shape[0]:
            found = f"{type(batch).__name__} {tuple(shape or ())}"
            raise ValueError(f"a batch must be a tensor or array, or (x, y, ...), and not empty, got {found}")
        x = dense_tensor(x, "a batch")
        y = dense_tensor(others[0], "labels").cpu() if others and hasattr(others[0], "shape") else None
        countable = y is not None and y.ndim == 1 and len(y) == len(x) and not y.is_floating_point()
        yield x.to(like if x.is_floating_point() else like.device), y if countable else None


@contextmanager
def _as_it_was(model: nn.Module, names: list[str]) -> Iterator[None]:
    """Evaluation mode, no gradients; afterwards modes, buffers, quantisers and the random state are as before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, one) for module in model.modules() for name, one in module._buffers.items() if one is not None
    ]
    kept = [one for *_, one in buffers]
    kept += [one for name in names for one in model.get_submodule(name).parameters()]
    before = [copy.deepcopy(one.detach()) for one in kept]
    devices = {one.device for one in kept if one.device.type == "cuda"}
    try:
        with torch.no_grad(), torch.random.fork_rng(list(devices)):
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        for module, name, one in buffers:
            module._buffers[name] = one
        with torch.no_grad():
            for one, value in zip(kept, before):
                one.copy_(value)
