"""A diagnosis of a whole model: finds its quantisers, listens to them, and can watch a training."""

import copy
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from vqnotes.diagnosis import diagnose
from vqnotes.pairing import UnpairedInputs
from vqnotes.quantizers import VectorQuantizer
from vqnotes.verdicts import Diagnosis

BATCH, MOST_LATENTS = 256, 2**18


def diagnose_model(model: nn.Module, data, *, labels=None, seed: int = 0) -> dict[str, Diagnosis]:
    """Runs the model on the data, listens to its quantisers, and diagnoses each: {name of the module: Diagnosis}.

    Finds this module's quantisers and, from vector-quantize-pytorch, `VectorQuantize`, `SimVQ` and, level by level,
    `ResidualVQ`; codebooks of separate heads are judged one by one. Latents and codes are taken as the quantiser
    compares them, after its projection or normalisation. Later levels of a residual quantiser code what is left, so
    they have no encoder of their own: what reaches them is compared with itself.

    data: inputs (N, ...) as a tensor or array; or inputs and labels as a tuple; or batches of either, as a DataLoader
    gives them, or a Dataset. The model is called with a batch of inputs, in its own float type. Of a batch
    (x, y, ...), y counts as labels if it is one whole number for each. At most the first 2^18 latents count.
    labels: one for each input, if data does not bring them.
    Where a quantiser's latents are not on a grid that the inputs fit, its encoder is not judged, and a note says so.
    The model runs in evaluation mode, without gradients. Its modes, buffers and quantisers are put back as they were,
    and torch's random state too.
    Raises ValueError if no quantiser is found or called, if the model cannot take the data, or as `diagnose` does.
    """
    ears = _ears(model)
    if not ears:
        known = "vqnotes' quantisers; VectorQuantize, SimVQ and ResidualVQ of vector-quantize-pytorch"
        raise ValueError(f"no quantiser found in {type(model).__name__}; known are {known}")
    inputs, found = [], []
    with _as_it_was(model, ears), _listening(ears):
        for x, y in _batches(data, model):
            try:
                model(x)
            except (RuntimeError, TypeError) as error:
                reason = f"{type(model).__name__} cannot be called with a batch {x.dtype} {tuple(x.shape)}"
                raise ValueError(f"{reason}: {error}") from error
            inputs.append(x.cpu())
            found.append(y)
            if max(ear.heard for ear in ears) >= MOST_LATENTS:
                break
    if not inputs:
        raise ValueError("no data: not a single batch came")
    if any(one.shape[1:] != inputs[0].shape[1:] for one in inputs):
        raise ValueError(f"inputs must be of one size, got batches {sorted({tuple(one.shape) for one in inputs})}")
    if idle := [ear.name for ear in ears if not ear.latents]:
        raise ValueError(f"quantisers were found but never called: {idle}")
    seen = torch.cat(inputs)
    if labels is None and all(y is not None for y in found):
        labels = torch.cat(found)
    elif labels is not None:
        labels = torch.as_tensor(labels)[: len(seen)]
    return {name: one for ear in ears for name, one in ear.diagnoses(seen, labels, seed)}


def _batches(data, model: nn.Module) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of inputs on the model's device, in its float type, each with its labels if there are any."""
    if isinstance(data, tuple):
        data = TensorDataset(*(torch.as_tensor(part) for part in data))
    elif hasattr(data, "shape"):
        data = TensorDataset(torch.as_tensor(data))
    like = next((one for one in model.state_dict().values() if one.is_floating_point()), torch.empty(0))
    for batch in DataLoader(data, BATCH) if isinstance(data, Dataset) else data:
        x, *others = batch if isinstance(batch, list | tuple) else [batch]
        if not hasattr(x, "shape") or not len(x):
            raise ValueError(f"a batch must be a tensor or array, or (x, y, ...), got {type(batch).__name__}")
        x = torch.as_tensor(x)
        y = torch.as_tensor(others[0]).cpu() if others and hasattr(others[0], "shape") else None
        countable = y is not None and y.ndim == 1 and len(y) == len(x) and not y.is_floating_point()
        yield x.to(like if x.is_floating_point() else like.device), y if countable else None


# ---------------------------------------------------------------- listening


class _Ear:
    """Listens to one quantiser: keeps the latents that it compares with its codes, and the codes."""

    def __init__(self, name: str, module: nn.Module, later: bool):
        self.name, self.module, self.later = name, module, later
        self.latents, self.codes, self.heard = [], None, 0

    def hooks(self) -> list:
        return [self.module.register_forward_hook(self.hear, with_kwargs=True)]

    def hear(self, module: nn.Module, arguments: tuple, named: dict, output) -> None:
        self.keep(module.prepare(_first(arguments, named)), module.codes())

    def keep(self, latents: Tensor, codes: Tensor) -> None:
        self.latents.append(latents.detach().cpu())
        self.codes = codes.detach().cpu()
        self.heard += latents[..., 0].numel()

    def diagnoses(self, inputs: Tensor, labels: Tensor | None, seed: int) -> Iterator[tuple[str, Diagnosis]]:
        yield self.name, self.judged(torch.cat(self.latents), self.codes, inputs, labels, seed)

    def judged(self, latents: Tensor, codes: Tensor, inputs: Tensor, labels, seed: int) -> Diagnosis:
        if self.later:
            inputs, labels = latents.reshape(-1, latents.shape[-1]), None
        try:
            return diagnose(latents, codes, inputs=inputs, labels=labels, seed=seed)
        except UnpairedInputs as error:
            found = diagnose(latents, codes, seed=seed)
            return replace(found, notes=[*found.notes, f"the inputs were not used: {error}"])
        except ValueError as error:
            raise ValueError(f"quantiser {self.name!r}: {error}") from error


def _first(arguments: tuple, named: dict) -> Tensor:
    """The first argument of a call, by position or by name."""
    return arguments[0] if arguments else next(iter(named.values()))


class _SimVQEar(_Ear):
    """SimVQ of vector-quantize-pytorch: codes are a map of frozen ones."""

    def hear(self, module: nn.Module, arguments: tuple, named: dict, output) -> None:
        latents = _first(arguments, named)
        self.keep(latents.movedim(1, -1) if module.channel_first else latents, module.codebook)


class _VectorQuantizeEar(_Ear):
    """VectorQuantize of vector-quantize-pytorch: its inner codebook gets ([heads,] batch, places, D)."""

    def hooks(self) -> list:
        return [
            self.module.register_forward_pre_hook(self.enter, with_kwargs=True),
            self.module.register_forward_hook(self.leave),
            self.module._codebook.register_forward_hook(self.hear, with_kwargs=True),
        ]

    def enter(self, module: nn.Module, arguments: tuple, named: dict) -> None:
        self.inside = True  # levels may share one codebook: only the one inside hears
        self.shape = _first(arguments, named).shape

    def leave(self, module: nn.Module, arguments: tuple, output) -> None:
        self.inside = False

    def hear(self, module: nn.Module, arguments: tuple, named: dict, output) -> None:
        if not getattr(self, "inside", False):
            return
        latents, codes = _first(arguments, named), module.embed
        chosen, index = output[:2]
        if latents.ndim == 3:  # a single head
            latents, chosen, index = latents[None], chosen[None], index[None]
        for head in range(len(codes)):
            in_use = codes[head][index[head]].to(chosen.dtype)
            if not torch.allclose(in_use, chosen[head], rtol=1e-3, atol=1e-3 * codes.abs().max().item()):
                raise ValueError(
                    f"quantiser {self.name!r} computes the codes it uses from its codebook: not supported"
                )
        self.keep(latents, codes)

    def diagnoses(self, inputs: Tensor, labels: Tensor | None, seed: int) -> Iterator[tuple[str, Diagnosis]]:
        latents = torch.cat(self.latents, dim=1)  # (heads, batch, places, D)
        for head, codes in enumerate(self.codes):
            name = self.name if len(self.codes) == 1 else f"{self.name}[head {head}]"
            grid = self.shape[2:] if self.module.accept_image_fmap else latents.shape[2:3]
            of_head = latents[head].reshape(latents.shape[1], *grid, latents.shape[-1])
            yield name, self.judged(of_head, codes, inputs, labels, seed)


def _ears(model: nn.Module) -> list[_Ear]:
    """One ear for each quantiser in the model, told by what it has, so that no other library need be imported."""
    later = set()
    for module in model.modules():
        if "Residual" in type(module).__name__:
            lists = (part for part in module.children() if isinstance(part, nn.ModuleList))
            later |= {level for levels in lists for level in list(levels)[1:]}
    ears = []
    for name, module in model.named_modules():
        if isinstance(module, VectorQuantizer):
            kind = _Ear
        elif isinstance(getattr(getattr(module, "_codebook", None), "embed", None), Tensor):
            kind = _VectorQuantizeEar
        elif hasattr(module, "frozen_codebook") and hasattr(module, "code_transform"):
            kind = _SimVQEar
        else:
            continue
        ears.append(kind(name or type(module).__name__, module, module in later))
    return ears


@contextmanager
def _listening(ears: list[_Ear]) -> Iterator[None]:
    hooks = [hook for ear in ears for hook in ear.hooks()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _as_it_was(model: nn.Module, ears: list[_Ear]) -> Iterator[None]:
    """Evaluation mode, no gradients; afterwards modes, buffers, quantisers and the random state are as before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, one) for module in model.modules() for name, one in module._buffers.items() if one is not None
    ]
    kept = [one for *_, one in buffers] + [one for ear in ears for one in ear.module.parameters()]
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


# ---------------------------------------------------------------- watching a training


class CollapseWarning(UserWarning):
    """The verdict on a model has turned during training."""


class CollapseWatch:
    """Looks at a model now and then, and warns as soon as the verdict on one of its quantisers turns bad.

        fit(model, x, callback=CollapseWatch(x[:1024]), ...)

    or, in a loop of your own, `watch(step, model)` before each step.

    probe: inputs on which the model is judged, the same each time. labels: one for each, if there are any.
    every: steps between two looks. None: it times itself, and looks as often as costs a twentieth of the time.
    start: the first look; with a warm-up, its length, since there are no codes before.
    turns: [(step, name of the quantiser, verdict)], one entry for each change, the first verdict included.
    latest: the newest diagnoses by name. A model that has become NaN gets a warning too, and the training goes on.
    Raises ValueError for every < 1 or start < 0.
    """

    def __init__(self, probe, *, labels=None, every: int | None = None, start: int = 0):
        if (every is not None and every < 1) or start < 0:
            raise ValueError(f"need every >= 1 and start >= 0, got every={every}, start={start}")
        self.probe = list(probe) if isinstance(probe, Iterator) else probe
        self.labels, self.every, self.start = labels, every, start
        self.rested = -math.inf  # when the time for the next look has come
        self.turns: list[tuple[int, str, str]] = []
        self.latest: dict[str, Diagnosis] = {}

    def __call__(self, step: int, model: nn.Module) -> None:
        now = time.perf_counter()
        if step < self.start or (now < self.rested if self.every is None else (step - self.start) % self.every):
            return
        self.look(step, model)
        self.rested = time.perf_counter() + 19 * (time.perf_counter() - now)

    def look(self, step: int, model: nn.Module) -> None:
        """Diagnoses the model now, notes what has changed, and warns if it is for the worse."""
        before = self.latest
        try:
            self.latest = diagnose_model(model, self.probe, labels=self.labels)
        except ValueError as error:
            if not before:  # the first look: the model or the probe is not what is needed
                raise
            warnings.warn(f"step {step}: no diagnosis, {error}", CollapseWarning, stacklevel=3)
            return
        for name, now in self.latest.items():
            if name in before and before[name].verdict == now.verdict:
                continue
            self.turns.append((step, name, now.verdict))
            if "collapse" in now.verdict:
                warnings.warn(f"step {step}, {name}: {now.verdict}. {now.reason}", CollapseWarning, stacklevel=3)
