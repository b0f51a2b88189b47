"""Training: one run from start to end, or many at once; with progress, interruptible, the same for the same seed."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from vqnotes._loop import History, Objective, Plan, descend, run_steps
from vqnotes.models import VQAutoencoder


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
    An interrupt (Ctrl-C, the stop button) ends the run before the next step, a second one at once: the history so far
    is returned, the model is as after that many steps, and a line says after how many.
    Threads: where a step is small (`_threads.is_small`: fewer than 2^29 multiplications in the forward pass), PyTorch
    computes it on one, so that busy neighbours cost little; a larger step, and any callback, has as many as before.
    Raises ValueError for x that is not floating point or does not vary, steps < 1, batch_size < 1, a learning rate
    not above 0, warmup outside 0 .. steps, or an optimiser that needs a closure (LBFGS).
    """
    plan = Plan(steps, warmup, init, batch_size, shuffle, lr, codebook_lr, optimizer, progress)
    objective = Objective(model, x)
    optimizer = plan.optimizer_of(objective.named_parameters())

    def update(index: Tensor, quantize: bool) -> Tensor:
        error, quantizer_loss = objective(x[index[0]], quantize)
        descend(optimizer, error + quantizer_loss if quantize else error)
        return torch.stack([error, quantizer_loss]).detach()[:, None]

    def watch(step: int) -> None:
        if callback is not None:
            callback(step, model)

    return run_steps("fit", plan, [model], [x], [seed], update, watch)[0]


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
    models = [_built(build, seed) for seed in seeds]
    if len(set(map(id, models))) < len(models):
        raise ValueError("build must make a new model for each seed, it returned the same one twice")
    objectives = [Objective(model, one) for model, one in zip(models, xs)]
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
        descend(optimizer, (errors + quantizer_losses if quantize else errors).sum())
        return torch.stack([errors, quantizer_losses]).detach()

    def watch(step: int) -> None:
        if callback is not None:
            callback(step, models)

    def unstack() -> None:
        for tensor in (tensor for tensors in own for tensor in tensors.values()):
            tensor.data = tensor.data.clone()

    try:
        histories = run_steps("fit_many", plan, models, xs, seeds, update, watch, unstack)
    except ValueError as error:
        lost = [seed for seed, tensors in zip(seeds, own) if not all(t.isfinite().all() for t in tensors.values())]
        if not lost:
            raise
        raise ValueError(f"{error} (seeds that diverged: {lost})") from error
    return list(zip(models, histories))


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
