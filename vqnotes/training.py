"""Training: one run from start to end, or many at once; with progress, interruptible, the same for the same seed."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from tqdm.auto import tqdm

from vqnotes.interrupts import held
from vqnotes.models import VQAutoencoder, sample_latents

LATENTS_PER_CODE = 32  # given to the codebook's initialisation, where there are so many


@dataclass
class History:
    """What happened, one entry a finished step: reconstruction error on the batch, and the quantiser's loss.

    The error is the mean square over the variance of the data: 0 is perfect, 1 is what a constant picture gives.
    The quantiser's loss is NaN during warm-up. interrupted: whether the run was stopped before its last step.
    """

    reconstruction: list[float] = field(default_factory=list)
    quantizer: list[float] = field(default_factory=list)
    interrupted: bool = False

    def __len__(self) -> int:
        return len(self.reconstruction)


# ---------------------------------------------------------------- one run, many runs


def fit(
    model: VQAutoencoder,
    x: Tensor,
    *,
    steps: int,
    seed: int,
    warmup: int = 0,
    init: str | None = "kmeans",
    batch_size: int = 256,
    shuffle: bool = True,
    lr: float = 1e-3,
    codebook_lr: float | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    callback: Callable[[int, VQAutoencoder], None] | None = None,
    progress: bool = True,
) -> History:
    """Trains the model in place on reconstruction error + quantiser loss, on batches of x (N, ...).

    The reconstruction error counts relative to the variance of x, as in DeepMind's VQ-VAE example, so that a
    quantiser's beta means the same on any data.
    steps: updates in all. warmup: how many of them, from the start, leave the quantiser out (a plain autoencoder).
    init: how the codebook is started after the warm-up, see `VectorQuantizer.init_codes`; None leaves it as it is.
    seed: of the batches and of the initialisation; the model's own weights are the caller's.
    shuffle: batches are drawn at random; if False, they run through x in its own order, over and over.
    codebook_lr: learning rate of the quantiser's parameters, None for `lr`. (EMA codes have none.)
    optimizer: one of torch.optim's classes that know fused=True: Adam, AdamW, SGD.
    callback: called as callback(step, model) before each step and once after the last. It may change the model:
    parameters whose requires_grad it sets to False stand still, and so do EMA codes of a quantiser in eval mode.
    An interrupt (Ctrl-C, the stop button) ends the run before the next step, a second one at once: the history so far
    is returned, and the model is as after that many steps.
    Raises ValueError for x that is not floating point or does not vary, steps < 1, batch_size < 1, a learning rate
    not above 0, or warmup outside 0 .. steps.
    """
    plan = _Plan(steps, warmup, init, batch_size, shuffle, lr, codebook_lr, optimizer, progress)
    objective = _Objective(model, x)
    optimizer = plan.optimizer_of(objective.named_parameters())

    def update(index: Tensor, quantize: bool) -> Tensor:
        error, quantizer_loss = objective(x[index[0]], quantize)
        _descend(optimizer, error + quantizer_loss if quantize else error)
        return torch.stack([error, quantizer_loss]).detach()[:, None]

    def watch(step: int) -> None:
        if callback is not None:
            callback(step, model)

    return _train(plan, [model], [x], [seed], update, watch)[0]


def fit_many(
    build: Callable[[int], VQAutoencoder],
    x: Tensor | Sequence[Tensor],
    *,
    seeds: Iterable[int],
    steps: int,
    warmup: int = 0,
    init: str | None = "kmeans",
    batch_size: int = 256,
    shuffle: bool = True,
    lr: float = 1e-3,
    codebook_lr: float | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    callback: Callable[[int, list[VQAutoencoder]], None] | None = None,
    progress: bool = True,
) -> list[tuple[VQAutoencoder, History]]:
    """Trains one model a seed, all at once, and returns (model, History) for each, in the order of the seeds.

    For each seed it is `torch.manual_seed(seed); model = build(seed); fit(model, x, seed=seed, ...)` up to rounding,
    in a fraction of the time: `torch.vmap` makes one large operation of R small ones.

    build: called as build(seed) to make a model; all must have the same structure and shapes.
    x: (N, ...) for all runs, or a list of one such tensor a seed, all of the same shape.
    callback: called as callback(step, models) before each step and once after the last. It may change the models
    as in `fit`; what stands still or is in eval mode is read from the first of them, for all.
    The other options are those of `fit`. An interrupt ends all runs after the same number of steps.
    Raises ValueError as `fit` does, and for no seed, a seed given twice, data or models of different shapes.
    """
    plan = _Plan(steps, warmup, init, batch_size, shuffle, lr, codebook_lr, optimizer, progress)
    seeds = [int(seed) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"need at least one seed, and all different, got {seeds}")
    xs = [x] * len(seeds) if isinstance(x, Tensor) else list(x)
    if len(xs) != len(seeds) or any(one.shape != xs[0].shape for one in xs):
        shapes = [tuple(one.shape) for one in xs]
        raise ValueError(f"need one x for each of {len(seeds)} seeds, all of one shape, got {shapes}")
    models = [_built(build, seed) for seed in seeds]
    if len(set(map(id, models))) < len(models):
        raise ValueError("build must make a new model for each seed, it returned the same one twice")
    objectives = [_Objective(model, one) for model, one in zip(models, xs)]
    _check_alike(objectives, seeds)

    # Everything gets a leading axis R; the tensors of each model become views of its row, so it is always up to date.
    parameters, buffers = stack_module_state(objectives)
    own = [dict(objective.named_parameters()) | dict(objective.named_buffers()) for objective in objectives]
    for run, tensors in enumerate(own):
        for name, tensor in tensors.items():
            tensor.data = (parameters | buffers)[name].data[run]
    inputs = x if isinstance(x, Tensor) else torch.cat(xs)
    first = torch.arange(len(seeds), device=inputs.device)[:, None] * (0 if isinstance(x, Tensor) else len(xs[0]))
    optimizer = plan.optimizer_of(parameters.items())

    def objective(parameters: dict, buffers: dict, batch: Tensor, quantize: bool) -> tuple[Tensor, Tensor]:
        return functional_call(objectives[0], (parameters, buffers), (batch, quantize))

    objective_of_each = torch.vmap(objective, in_dims=(0, 0, 0, None), randomness="different")

    def update(index: Tensor, quantize: bool) -> Tensor:
        for name, parameter in parameters.items():
            parameter.requires_grad_(own[0][name].requires_grad)
        errors, quantizer_losses = objective_of_each(parameters, buffers, inputs[first + index], quantize)
        _descend(optimizer, (errors + quantizer_losses if quantize else errors).sum())
        return torch.stack([errors, quantizer_losses]).detach()

    def watch(step: int) -> None:
        if callback is not None:
            callback(step, models)

    def unstack() -> None:
        for tensor in (tensor for tensors in own for tensor in tensors.values()):
            tensor.data = tensor.data.clone()

    try:
        histories = _train(plan, models, xs, seeds, update, watch, unstack)
    except ValueError as error:
        lost = [seed for seed, tensors in zip(seeds, own) if not all(t.isfinite().all() for t in tensors.values())]
        if not lost:
            raise
        raise ValueError(f"{error} (seeds that diverged: {lost})") from error
    return list(zip(models, histories))


# ---------------------------------------------------------------- what both share


@dataclass
class _Plan:
    """The options of a run that do not depend on its seed."""

    steps: int
    warmup: int
    init: str | None
    batch_size: int
    shuffle: bool
    lr: float
    codebook_lr: float | None
    optimizer: Callable[..., torch.optim.Optimizer]
    progress: bool

    def __post_init__(self):
        self.codebook_lr = self.lr if self.codebook_lr is None else self.codebook_lr
        rates = 0 < self.lr < float("inf") and 0 < self.codebook_lr < float("inf")
        if self.steps < 1 or self.batch_size < 1 or not rates or not 0 <= self.warmup <= self.steps:
            raise ValueError(
                f"need steps >= 1, 0 <= warmup <= steps, batch_size >= 1 and learning rates > 0; got "
                f"steps={self.steps}, warmup={self.warmup}, batch_size={self.batch_size}, lr={self.lr}, "
                f"codebook_lr={self.codebook_lr}"
            )

    def optimizer_of(self, named_parameters: Iterable[tuple[str, Tensor]]) -> torch.optim.Optimizer:
        groups = {self.lr: [], self.codebook_lr: []}
        for name, parameter in named_parameters:
            groups[self.codebook_lr if name.startswith("model.quantizer.") else self.lr].append(parameter)
        return self.optimizer([{"params": group, "lr": lr} for lr, group in groups.items() if group], fused=True)


class _Objective(nn.Module):
    """What training makes small: a batch to (reconstruction error / variance of x, quantiser's loss), two scalars."""

    def __init__(self, model: VQAutoencoder, x: Tensor):
        super().__init__()
        variance = x.var(correction=0) if x.numel() and x.is_floating_point() else torch.tensor(0.0)  # of all entries
        if not (torch.isfinite(variance) and variance > 0):
            shown = f"{x.dtype} {tuple(x.shape)}, variance {variance.item()}"
            raise ValueError(f"x must be floating point, finite, and vary: got {shown}")
        self.model = model
        self.register_buffer("variance", variance)

    def forward(self, batch: Tensor, quantize: bool) -> tuple[Tensor, Tensor]:
        if quantize:
            reconstruction, (_, _, quantizer_loss) = self.model(batch)
        else:
            reconstruction = self.model.decode(self.model.encode(batch))
            quantizer_loss = torch.full_like(self.variance, torch.nan)
        return F.mse_loss(reconstruction, batch) / self.variance, quantizer_loss


def _train(
    plan: _Plan,
    models: list[VQAutoencoder],
    xs: list[Tensor],
    seeds: list[int],
    update: Callable[[Tensor, bool], Tensor],
    watch: Callable[[int], None],
    finish: Callable[[], None] = lambda: None,
) -> list[History]:
    """The loop over steps. update takes the batches' places in x (R, B) and gives error and loss (2, R).

    An interrupt lands before a step: the models are then as after a run of as many steps as the histories have.
    finish is called at the end, however it comes.
    """
    batches, samples = ([torch.Generator().manual_seed(seed) for seed in seeds] for _ in range(2))
    histories = [History() for _ in models]
    length, device = len(xs[0]), xs[0].device
    in_order = torch.arange(plan.batch_size).expand(len(models), -1)
    random_state = torch.random.fork_rng([device] if device.type == "cuda" else [])
    try:
        with held() as let_interrupt_in, random_state, ExitStack() as at_end:
            at_end.callback(finish)
            bar = tqdm(total=plan.steps, desc="training", leave=False, disable=not plan.progress)
            at_end.callback(bar.close)
            for model in models:
                at_end.callback(model.train, model.training)
                model.train()
            torch.manual_seed(seeds[0])  # for quantisers that draw noise
            for step in range(plan.steps + 1):
                if step == plan.warmup and plan.init is not None:
                    for model, x, seed, sample in zip(models, xs, seeds, samples):
                        count = LATENTS_PER_CODE * len(model.quantizer.codes())
                        model.quantizer.init_codes(plan.init, sample_latents(model, x, count, sample), seed)
                watch(step)
                let_interrupt_in()
                if step == plan.steps:
                    break
                if plan.shuffle:
                    index = torch.stack([torch.randint(length, (plan.batch_size,), generator=own) for own in batches])
                else:
                    index = (in_order + step * plan.batch_size) % length
                figures = update(index.to(device), step >= plan.warmup).tolist()
                for history, error, quantizer_loss in zip(histories, *figures):
                    history.quantizer.append(quantizer_loss)
                    history.reconstruction.append(error)
                bar.update()
    except KeyboardInterrupt:
        whole = min(len(history) for history in histories)
        for history in histories:
            history.interrupted = True
            del history.quantizer[whole:], history.reconstruction[whole:]
    return histories


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    if loss.requires_grad:  # not if all that has a gradient stands still
        loss.backward()
        optimizer.step()


def _built(build: Callable[[int], VQAutoencoder], seed: int) -> VQAutoencoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(seed)


def _check_alike(modules: list[nn.Module], seeds: list[int]) -> None:
    """ValueError unless the state of all modules has the same names, shapes and types."""
    layouts = [{name: (tuple(t.shape), t.dtype) for name, t in module.state_dict().items()} for module in modules]
    for seed, layout in zip(seeds, layouts):
        if layout != layouts[0]:
            differs = sorted(dict(layout.items() ^ layouts[0].items()))[0]
            raise ValueError(
                f"build must return models of the same shapes: {differs.removeprefix('model.')} is "
                f"{layouts[0].get(differs)} for seed {seeds[0]} and {layout.get(differs)} for seed {seed}"
            )
