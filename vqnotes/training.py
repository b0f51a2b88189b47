"""Training: one run from start to end, or many at once; with progress, interruptible, the same for the same seed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from vqnotes._batches import batches_of
from vqnotes._by_hand import errors_and_losses, is_known
from vqnotes._interrupts import interruptible, note_end
from vqnotes._optimizers import check_closure, optimizer_of
from vqnotes._stacked import Stacked, check_alike
from vqnotes._threads import threads_for, torch_threads_for
from vqnotes._workload import codes_compared, modes_kept, multiplications
from vqnotes.models import VQAutoencoder, latents_for_codes
from vqnotes.quantizers import BLIND_INITS

__all__ = ["History", "Plan", "fit", "fit_many"]


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


@dataclass(frozen=True)
class Plan:
    """The options that `fit` explains and `fit_many` shares. Raises ValueError for those that make no run.

    Plans are compared without the optimiser, which says what it is once it is made, and without the progress bar.
    """

    steps: int
    warmup: int
    init: str | None
    batch_size: int
    shuffle: bool
    lr: float
    codebook_lr: float | None
    optimizer: Callable[..., torch.optim.Optimizer] = field(compare=False)
    progress: bool = field(compare=False)

    def __post_init__(self) -> None:
        rates = all(0 < lr < float("inf") for lr in (self.lr, self.codebook_lr) if lr is not None)
        if self.steps < 1 or self.batch_size < 1 or not rates or not 0 <= self.warmup <= self.steps:
            raise ValueError(
                f"need steps >= 1, 0 <= warmup <= steps, batch_size >= 1 and learning rates > 0; got "
                f"steps={self.steps}, warmup={self.warmup}, batch_size={self.batch_size}, lr={self.lr}, "
                f"codebook_lr={self.codebook_lr}"
            )
        check_closure(getattr(self.optimizer, "func", self.optimizer))  # of a functools.partial


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
    shuffle: each pass through x is in a new random order; if False, in its own. Every input has its turn before any
    has the next: a pass is an epoch. Its last inputs and the first of the next pass may share a batch.
    codebook_lr: learning rate of the quantiser's parameters, None for `lr`. (EMA codes have none.)
    optimizer: a class of torch.optim or any other, or a function, called with a list of parameter groups; for
    options of its own, as in functools.partial(torch.optim.SGD, momentum=0.9). Its fused form is used if it has one.
    callback: called as callback(step, model) before each step and once after the last. It may change the model:
    parameters whose requires_grad it sets to False stand still, and so do EMA codes of a quantiser in eval mode.
    An interrupt (Ctrl-C, the stop button) ends the run before the next step: the history so far is returned, the
    model is as after that many steps, and a line says after how many. A second one ends it at once, within a step.
    Threads: where a step is small (`_threads.is_small`: fewer than 2^29 multiplications in the forward pass), PyTorch
    computes it on one, so that busy neighbours cost little; a larger step, and any callback, has as many as before.
    Raises ValueError for x that is not floating point or does not vary, steps < 1, batch_size < 1, a learning rate
    not above 0, warmup outside 0 .. steps, or an optimiser that needs a closure (LBFGS).
    """
    plan = Plan(steps, warmup, init, batch_size, shuffle, lr, codebook_lr, optimizer, progress)
    run = Run(model, x, seed)
    updates = optimizer_of(optimizer, run.named_parameters(), lr, codebook_lr)

    def measure(index: Tensor, quantize: bool) -> tuple[Tensor, Tensor]:
        return run(x[index[0]], quantize)

    (history,) = _train("fit", plan, [run], updates, measure, callback, shown=model)
    return history


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
    in a fraction of the time: one large operation does the work of R small ones. It is made by hand for the layers
    of PyTorch and the plain quantiser, by `torch.vmap` for all others.

    build: called as build(seed) to make a model; all must have the same structure and shapes.
    x: (N, ...) for all runs, or a list of one such tensor a seed, all of the same shape.
    callback: called as callback(step, models) before each step and once after the last. It may change the models
    as in `fit`; what stands still or is in eval mode is read from the first of them, for all.
    The other options are those of `fit`. An optimiser must treat every number for itself, as Adam and SGD do; one
    that looks at whole matrices would take those of R runs for one. A step's work is that of all runs together.
    An interrupt ends all runs after the same number of steps, and a line says after how many.
    Raises ValueError as `fit` does, and for no seed, a seed given twice, data or models of different shapes.
    """
    plan = Plan(steps, warmup, init, batch_size, shuffle, lr, codebook_lr, optimizer, progress)
    seeds = [int(seed) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"need at least one seed, and all different, got {seeds}")
    xs = [x] * len(seeds) if isinstance(x, Tensor) else list(x)
    if len(xs) != len(seeds) or any(one.shape != xs[0].shape for one in xs):
        shapes = [tuple(one.shape) for one in xs]
        raise ValueError(f"need one x for each of {len(seeds)} seeds, all of one shape, got {shapes}")
    models = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            models.append(build(seed))
    if len(set(map(id, models))) < len(models):
        raise ValueError("build must make a new model for each seed, it returned the same one twice")
    runs = [Run(model, one, seed) for model, one, seed in zip(models, xs, seeds)]
    check_alike(runs, seeds)

    inputs = x if isinstance(x, Tensor) else torch.cat(xs)
    first = torch.arange(len(seeds), device=inputs.device)[:, None] * (0 if isinstance(x, Tensor) else len(xs[0]))
    stacked = Stacked(runs)

    known = is_known(stacked, models[0])

    def measure(index: Tensor, quantize: bool) -> tuple[Tensor, Tensor]:
        batches = inputs[first + index]
        if known and (callback is None or is_known(stacked, models[0])):  # a callback may change the models
            return errors_and_losses(stacked, batches, quantize)
        return stacked(batches, quantize)

    try:
        updates = optimizer_of(optimizer, stacked.parameters.items(), lr, codebook_lr)
        histories = _train("fit_many", plan, runs, updates, measure, callback, shown=models)
    except ValueError as error:
        lost = [seed for seed, finite in zip(seeds, stacked.finite()) if not finite]
        if not lost:
            raise
        raise ValueError(f"{error} (seeds that diverged: {lost})") from error
    finally:
        stacked.unstack()
    return list(zip(models, histories))


# ---------------------------------------------------------------- the loop over steps


class Run(nn.Module):
    """A model, its data, its seed; a batch gives reconstruction error / variance of x, and the quantiser's loss."""

    variance: Tensor

    def __init__(self, model: VQAutoencoder, x: Tensor, seed: int):
        super().__init__()
        variance = x.var(correction=0) if x.numel() and x.is_floating_point() else torch.tensor(0.0)  # of all entries
        if not (torch.isfinite(variance) and variance > 0):
            shown = f"{x.dtype} {tuple(x.shape)}, variance {variance.item()}"
            raise ValueError(f"x must be floating point, finite, and vary: got {shown}")
        self.model, self.x, self.seed = model, x, seed
        self.register_buffer("variance", variance)

    def forward(self, batch: Tensor, quantize: bool) -> tuple[Tensor, Tensor]:
        if quantize:
            reconstruction, (_, _, quantizer_loss) = self.model(batch)
        else:
            reconstruction = self.model.decode(self.model.encode(batch))
            quantizer_loss = torch.full_like(self.variance, torch.nan)
        return F.mse_loss(reconstruction, batch) / self.variance, quantizer_loss


def _train(
    name: str,
    plan: Plan,
    runs: list[Run],
    optimizer: torch.optim.Optimizer,
    measure: Callable[[Tensor, bool], tuple[Tensor, Tensor]],
    callback: Callable | None,
    shown: VQAutoencoder | list[VQAutoencoder],
) -> list[History]:
    """The loop of `fit` and `fit_many` over the steps of R runs, R = 1 for `fit`.

    measure: from the batches' places in x (R, B), and whether the quantiser takes part, to the errors and the
    quantiser's losses of all runs. shown: what the callback gets beside the step.
    """
    models, seeds, x = [run.model for run in runs], [run.seed for run in runs], runs[0].x
    batches = batches_of(len(x), plan.batch_size, seeds, x.device, plan.shuffle)
    work = multiplications(models[0], x, plan.batch_size) * len(models)
    callback = callback or (lambda step, shown: None)
    curves = []  # what each step measured; it stays on the device, so that no step waits for it

    random_state = torch.random.fork_rng([x.device] if x.is_cuda else [])
    with interruptible() as stopped, modes_kept(*models), random_state, torch.enable_grad():
        for model in models:
            model.train()
        torch.manual_seed(seeds[0])  # for layers and quantisers that draw
        for step in tqdm(range(plan.steps), desc="training", leave=False, disable=not plan.progress):
            if step == plan.warmup:
                _start_codes(runs, plan.init)
            callback(step, shown)
            if stopped():
                break

            batch, quantize = next(batches), step >= plan.warmup
            with torch_threads_for(work):
                errors, quantizer_losses = measure(batch, quantize)
                loss = (errors + quantizer_losses if quantize else errors).sum()
                optimizer.zero_grad()
                if loss.requires_grad:  # False if the callback lets all parameters stand still
                    loss.backward()
                    optimizer.step()
            curves.append(torch.stack([errors, quantizer_losses]).detach().view(2, -1))
        else:  # no break: all steps are done
            if plan.warmup == plan.steps:
                _start_codes(runs, plan.init)
            callback(plan.steps, shown)

    title = f"{name} (seed {', '.join(map(str, seeds))})"
    note_end((name, plan, _key(runs, optimizer)), title, len(curves), plan.steps, "steps", cut=stopped())
    table = torch.stack(curves, dim=2) if curves else torch.empty(2, len(models), 0)
    return [History(errors, losses, stopped()) for errors, losses in zip(*table.tolist())]


def _start_codes(runs: list[Run], init: str | None) -> None:
    """Starts each codebook anew, from latents of x where it needs any; none if init is None."""
    for run in runs if init is not None else ():
        quantizer = run.model.quantizer
        latents = None if init in BLIND_INITS else latents_for_codes(run.model, run.x, run.seed)
        with threads_for(0 if latents is None else latents.numel() * codes_compared(quantizer)):
            quantizer.init_codes(init, latents, run.seed)


def _key(runs: list[Run], optimizer: torch.optim.Optimizer) -> str:
    """By what runs are the same when they are run again, beside their plan: all but the weights they start from."""
    data = [(run.seed, tuple(run.x.shape), run.variance.item()) for run in runs]
    return repr((data, runs[0], [tuple(parameter.shape) for parameter in runs[0].parameters()], optimizer))
