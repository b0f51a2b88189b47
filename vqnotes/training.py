"""Training: one run from start to end, with progress, interruptible, the same for the same seed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from vqnotes.models import VQAutoencoder

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


class Outcome(NamedTuple):
    """A model's answer on a whole data set: latents (N, ..., D), index (N, ...), reconstruction like the input."""

    latents: Tensor
    index: Tensor
    reconstruction: Tensor


def fit(
    model: VQAutoencoder,
    x: Tensor,
    *,
    steps: int,
    seed: int,
    warmup: int = 0,
    init: str | None = "kmeans",
    batch_size: int = 256,
    lr: float = 1e-3,
    callback: Callable[[int, VQAutoencoder], None] | None = None,
    progress: bool = True,
) -> History:
    """Trains the model in place on reconstruction error + quantiser loss, by Adam on random batches of x (N, ...).

    The reconstruction error counts relative to the variance of x, as in DeepMind's VQ-VAE example, so that a
    quantiser's beta means the same on any data.
    steps: updates in all. warmup: how many of them, from the start, leave the quantiser out (a plain autoencoder).
    init: how the codebook is started after the warm-up, see `VectorQuantizer.init_codes`; None leaves it as it is.
    seed: of the batches and of the initialisation; the model's own weights are the caller's.
    callback: called as callback(step, model) before each step and once after the last.
    An interrupt (Ctrl-C, the stop button) ends the run: the history so far is returned, the model stays usable.
    Raises ValueError for x that is not floating point or does not vary, steps < 1, batch_size < 1, lr <= 0 or
    warmup outside 0 .. steps.
    """
    variance = x.var(correction=0) if x.numel() and x.is_floating_point() else torch.tensor(0.0)  # of all entries
    if not (torch.isfinite(variance) and variance > 0):
        shown = f"{x.dtype} {tuple(x.shape)}, variance {variance.item()}"
        raise ValueError(f"x must be floating point, finite, and vary: got {shown}")
    if steps < 1 or batch_size < 1 or not lr > 0 or not 0 <= warmup <= steps:
        raise ValueError(
            f"need steps >= 1, 0 <= warmup <= steps, batch_size >= 1 and lr > 0; "
            f"got steps={steps}, warmup={warmup}, batch_size={batch_size}, lr={lr}"
        )
    batches, sample = (torch.Generator().manual_seed(seed) for _ in range(2))  # batches do not depend on `init`
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr, fused=True)
    history, was_training = History(), model.training
    model.train()
    bar = tqdm(total=steps, desc="training", leave=False, disable=not progress)
    try:
        for step in range(steps + 1):
            if step == warmup and init is not None:
                count = LATENTS_PER_CODE * len(model.quantizer.codes())
                model.quantizer.init_codes(init, sample_latents(model, x, count, sample), seed)
            if callback is not None:
                callback(step, model)
            if step == steps:
                break
            batch = x[torch.randint(len(x), (batch_size,), generator=batches).to(x.device)]
            if step < warmup:
                reconstruction, quantizer_loss = model.decode(model.encode(batch)), torch.tensor(torch.nan)
                error = loss = F.mse_loss(reconstruction, batch) / variance
            else:
                reconstruction, quantized = model(batch)
                error, quantizer_loss = F.mse_loss(reconstruction, batch) / variance, quantized.loss
                loss = error + quantizer_loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            history.quantizer.append(quantizer_loss.item())
            history.reconstruction.append(error.item())
            bar.update()
    except KeyboardInterrupt:
        history.interrupted = True
        del history.quantizer[len(history) :]
    finally:
        bar.close()
        model.train(was_training)
    return history


@torch.no_grad()
def sample_latents(model: VQAutoencoder, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` latents (count, D), as they leave the encoder now, or all that random inputs give if they are fewer.

    Of inputs that give many latents each, four times as many as needed are encoded, so that the choice is wide.
    """
    per_input = model.encode(x[:1])[..., 0].numel()
    inputs = count if per_input == 1 else 4 * count // per_input + 1
    some = x[torch.randperm(len(x), generator=generator)[:inputs].to(x.device)]
    latents = model.encode(some)
    latents = latents.reshape(-1, latents.shape[-1])
    return latents[torch.randperm(len(latents), generator=generator)[:count].to(x.device)]


@torch.no_grad()
def evaluate(model: VQAutoencoder, x: Tensor, batch_size: int = 1024) -> Outcome:
    """Latents, indices and reconstructions of all of x (N, ...), in evaluation mode and without gradients."""
    was_training = model.training
    model.eval()
    try:
        parts = []
        for batch in x.split(batch_size):
            latents = model.encode(batch)
            quantized = model.quantizer(latents)
            parts.append(Outcome(latents, quantized.index, model.decode(quantized.latents_q)))
    finally:
        model.train(was_training)
    return Outcome(*(torch.cat(part) for part in zip(*parts)))
