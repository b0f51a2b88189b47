"""What `fit` and `fit_many` share: the plan of a run, what it makes small, and the loop over its steps."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from vqnotes._interrupts import held, note_cut, note_whole
from vqnotes._threads import is_small, one_torch_thread, threads_for
from vqnotes._workload import codes_compared, modes_kept, multiplications
from vqnotes.models import VQAutoencoder, sample_latents
from vqnotes.quantizers import BLIND_INITS

LATENTS_PER_CODE = 32


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


@dataclass
class Plan:
    """The options of a run that do not depend on its seed."""

    steps: int
    warmup: int
    init: str | None
    batch_size: int
    shuffle: bool
    lr: float
    codebook_lr: float | None
    optimizer: Callable[..., torch.optim.Optimizer] = field(repr=False)
    progress: bool = field(repr=False)

    def __post_init__(self):
        self.codebook_lr = self.lr if self.codebook_lr is None else self.codebook_lr
        rates = 0 < self.lr < float("inf") and 0 < self.codebook_lr < float("inf")
        if self.steps < 1 or self.batch_size < 1 or not rates or not 0 <= self.warmup <= self.steps:
            raise ValueError(
                f"need steps >= 1, 0 <= warmup <= steps, batch_size >= 1 and learning rates > 0; got "
                f"steps={self.steps}, warmup={self.warmup}, batch_size={self.batch_size}, lr={self.lr}, "
                f"codebook_lr={self.codebook_lr}"
            )

        _check_closure(getattr(self.optimizer, "func", self.optimizer))  # of a functools.partial

    def optimizer_of(self, named_parameters: Iterable[tuple[str, Tensor]]) -> torch.optim.Optimizer:
        """The optimiser, in its fused form (one kernel for all tensors) if it has one."""
        by_rate = {self.lr: [], self.codebook_lr: []}
        for name, parameter in named_parameters:
            by_rate[self.codebook_lr if name.startswith("model.quantizer.") else self.lr].append(parameter)
        groups = [{"params": group, "lr": lr} for lr, group in by_rate.items() if group]
        own = getattr(self.optimizer, "keywords", {})  # of a functools.partial
        if "lr" in own:
            raise ValueError(f"the learning rate is fit's own: give lr={own['lr']} to fit, not to the optimiser")
        try:
            optimizer = self.optimizer(groups) if "fused" in own else self.optimizer(groups, fused=True)
        except (TypeError, RuntimeError):  # it does not know the word; it cannot be fused here, or with its options
            optimizer = self.optimizer(groups)
        _check_closure(optimizer)
        return optimizer


def _check_closure(optimizer: object) -> None:
    """ValueError if its steps must be given a closure, to measure the loss several times, as LBFGS does."""
    step = getattr(optimizer, "step", None)
    closure = step and inspect.signature(step).parameters.get("closure")
    if closure and closure.default is inspect.Parameter.empty:
        name = getattr(optimizer, "__name__", type(optimizer).__name__)
        raise ValueError(f"{name} needs a closure that measures the loss again: take one that steps by a gradient")


class Objective(nn.Module):
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


def run_steps(
    name: str,
    plan: Plan,
    models: list[VQAutoencoder],
    xs: list[Tensor],
    seeds: list[int],
    update: Callable[[Tensor, bool], Tensor],
    watch: Callable[[int], None],
    finish: Callable[[], None] = lambda: None,
) -> list[History]:
    """The loop over steps. update takes the batches' places in x (R, B) and gives error and loss (2, R).

    An interrupt lands before a step: the models are then as after a run of as many steps as the histories have. It is
    noted under the name, see `_interrupts.cut_off`. finish is called at the end, however it comes.
    """
    shapes = [tuple(one.shape) for one in (xs[0], *models[0].parameters())]
    same_run = (name, repr(plan), tuple(seeds), repr(shapes), repr(models[0]))
    histories, figures = [History() for _ in models], []  # figures stay on the device: no step waits for them
    device = xs[0].device
    batches = batches_of(len(xs[0]), plan.batch_size, seeds, device, plan.shuffle)
    random_state = torch.random.fork_rng([device] if device.type == "cuda" else [])

    def record() -> None:
        if figures:
            for history, errors, losses in zip(histories, *torch.stack(figures, dim=2).tolist()):
                history.reconstruction, history.quantizer = errors, losses

    try:
        with held() as let_interrupt_in, random_state, torch.enable_grad(), ExitStack() as at_end:
            at_end.callback(finish)
            at_end.callback(record)
            bar = tqdm(total=plan.steps, desc="training", leave=False, disable=not plan.progress)
            at_end.callback(bar.close)
            small = is_small(multiplications(models[0], xs[0], plan.batch_size) * len(models))
            alone = one_torch_thread if small else nullcontext
            for model in models:
                at_end.enter_context(modes_kept(model))
                model.train()
            torch.manual_seed(seeds[0])  # for quantisers that draw noise
            for step in range(plan.steps + 1):
                if step == plan.warmup and plan.init is not None:
                    for model, x, seed in zip(models, xs, seeds):
                        start_codes(model, plan.init, x, seed)
                watch(step)
                let_interrupt_in()
                if step == plan.steps:
                    break
                with alone():
                    figures.append(update(next(batches), step >= plan.warmup))
                bar.update()
            note_whole(same_run)
    except KeyboardInterrupt:
        for history in histories:
            history.interrupted = True
        note_cut(same_run, f"{name} (seed {', '.join(map(str, seeds))})", len(histories[0]), plan.steps, "steps")
    return histories


def start_codes(model: VQAutoencoder, init: str, x: Tensor, seed: int) -> None:
    """Starts the codebook anew, from latents of x (N, ...) where it needs any."""
    latents = None if init in BLIND_INITS else latents_for_codes(model, x, seed)
    with threads_for(0 if latents is None else latents.numel() * codes_compared(model.quantizer)):
        model.quantizer.init_codes(init, latents, seed)


def latents_for_codes(model: VQAutoencoder, x: Tensor, seed: int) -> Tensor:
    """A sample of the latents of x (N, ...) to start the codebook from, 32 a code or all there are, (count, D)."""
    wanted = LATENTS_PER_CODE * codes_compared(model.quantizer)
    return sample_latents(model, x, wanted, torch.Generator().manual_seed(seed))


def batches_of(
    length: int, batch_size: int, seeds: list[int], device: torch.device, shuffle: bool = True
) -> Iterator[Tensor]:
    """Each step's places in x (R, B), without end, by `passes`: taken for 16 steps at a time, and moved together."""
    streams = [passes(length, 16 * batch_size, seed, shuffle) for seed in seeds]
    for ahead in zip(*streams):
        yield from torch.stack(ahead).view(len(seeds), 16, batch_size).transpose(0, 1).to(device, non_blocking=True)


def passes(length: int, count: int, seed: int, shuffle: bool) -> Iterator[Tensor]:
    """All of 0 .. length - 1 over and over, `count` at a time: each pass in a new random order, or in their own."""
    generator, places = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.int64)
    torch.randperm(length, generator=generator)  # not used: by it `sample_latents` chooses what the codes start from
    while True:
        parts = [places]
        while sum(map(len, parts)) < count:
            parts.append(torch.randperm(length, generator=generator) if shuffle else torch.arange(length))
        places = torch.cat(parts)
        yield places[:count]
        places = places[count:].clone()


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of the optimiser; none if all that has a gradient stands still."""
    optimizer.zero_grad(set_to_none=True)
    if loss.requires_grad:
        loss.backward()
        optimizer.step()
