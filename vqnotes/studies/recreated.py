"""Small models that have what public reports tell of, each made the way it came about there.

A function makes one from a seed, and returns what its user would bring: the arguments of `diagnose`, of
`diagnose_model`, or of `diagnose_tokens`. Whose report it is, and what came out, says `studies.reports`.
The defects are written anew, in the stages of `VectorQuantizer`. The trainings are those of `studies.verdicts`, where
a report does not say otherwise: 32 modes in 16 dimensions, 64 codes of 8 dimensions.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqnotes import data, models, training
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import Quantized, VectorQuantizer
from vqnotes.remedies.replacement import CodeExpiry, RandomRestart
from vqnotes.remedies.residual import ResidualVQ
from vqnotes.remedies.scalar import FSQ, LFQ
from vqnotes.studies import remedies as league

__all__ = [
    "averaged_reconstruction",
    "batch_of_ids",
    "beta_on_the_codes",
    "colliding_items",
    "counts_from_nothing",
    "drowned_distances",
    "expiry_undone",
    "few_kinds_of_data",
    "first_batch",
    "forgotten_counts",
    "free_commitment",
    "ids_of_a_large_codebook",
    "indices_in_half_precision",
    "learning_too_fast",
    "lfq_without_a_norm",
    "loss_after_estimate",
    "no_gradient_copied",
    "normal_start",
    "normalised_output",
    "padding_counted",
    "rotation_without_expiry",
    "threshold_in_hits",
    "uniform_start",
    "untrained_level",
]

CODES, DIM, STEPS = league.CODES, 8, 300
FIRST, EPSILON = 1024, 1e-5  # latents of a first batch; of Laplace smoothing


class Theirs(nn.Module):
    """A quantiser of vector-quantize-pytorch in the place of ours. vq: it; dim: D of its latents."""

    def __init__(self, vq: nn.Module, codebook_size: int, dim: int):
        super().__init__()
        self.vq, self.codebook_size, self.dim = vq, codebook_size, dim

    def forward(self, latents: Tensor) -> Quantized:
        latents_q, index, loss = self.vq(latents)
        return Quantized(latents_q, index, loss.sum())


def _trained(
    make: Callable[[], nn.Module], x: Tensor, seed: int, end: nn.Module | None = None, **plan: Any
) -> dict[str, Any]:
    """A model with this quantiser, trained on x (N, ..., P), and x. end: of the decoder. plan: options of `fit`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.mlp_autoencoder(x.shape[-1], make())
        if end is not None:
            model.decoder = nn.Sequential(model.decoder, end)
        options: dict[str, Any] = {"steps": STEPS, "batch_size": league.BATCH, "lr": league.LR, "progress": False}
        training.fit(model, x, seed=seed, **options | plan)
    return {"model": model, "data": x}


def _modes(seed: int) -> Tensor:
    return league.modes(seed).x


# ---------------------------------------------------------------- moving averages


class AveragedTwice(VectorQuantizer):
    """EMA codes as most code has them: the average of sums over that of counts, which are smoothed."""

    counts: Tensor
    sums: Tensor

    def __init__(self, *size: int, batch: int = league.BATCH, **options: Any):
        super().__init__(*size, update="ema", **options)
        self.batch = batch
        self.register_buffer("counts", torch.ones(self.codebook_size))
        self.register_buffer("sums", self.codebook.clone())

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        super().place_codes(codes, share)
        self.counts.copy_(self.batch * share if share.any() else torch.ones_like(share))
        self.sums.copy_(codes * self.counts[:, None])

    @torch.no_grad()
    def after_step(self, latents: Tensor, index: Tensor) -> None:
        chosen = F.one_hot(index, self.codebook_size).to(latents.dtype)
        new = 1 - cast(float, self.decay)
        self.counts.lerp_(chosen.sum(0), new)
        self.sums.lerp_(chosen.T @ latents, new)
        total = self.counts.sum()
        smooth = (self.counts + EPSILON) / (total + self.codebook_size * EPSILON) * total
        self.codebook.copy_(self.sums / smooth[:, None])


class CountsForgotten(AveragedTwice):
    """Sums that start as the centroids, and not as centroid times count."""

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        super().place_codes(codes, share)
        self.sums.copy_(codes)


class CountsFromNothing(AveragedTwice):
    """Counts that start at 0, while the sums start as the codes."""

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        super().place_codes(codes, share)
        self.counts.zero_()


class UndoneExpiry(AveragedTwice):
    """Dead codes are put onto latents; then all codes are computed from averages that do not know of it."""

    @torch.no_grad()
    def after_step(self, latents: Tensor, index: Tensor) -> None:
        dead = self.counts < 0.1 * self.counts.mean()
        self.codebook[dead] = latents[: int(dead.sum())]
        super().after_step(latents, index)


def forgotten_counts(seed: int) -> dict:
    """k-means codes whose moving sums begin without their counts, ten steps of 16 latents a code later."""
    batch, after = 16 * CODES, 10
    make = lambda: CountsForgotten(CODES, DIM, batch=batch, decay=0.8)  # noqa: E731
    plan: dict[str, Any] = {"steps": STEPS // 2 + after, "warmup": STEPS // 2, "batch_size": batch}
    return _trained(make, _modes(seed), seed, **plan)


def counts_from_nothing(seed: int) -> dict:
    """Codes from N(0, 1) whose moving counts begin at 0."""
    return _trained(lambda: CountsFromNothing(CODES, DIM), _modes(seed), seed, init="normal")


def expiry_undone(seed: int) -> dict:
    """Codes from U(-1/K, 1/K), and an expiry that the moving averages overwrite."""
    return _trained(lambda: UndoneExpiry(CODES, DIM), _modes(seed), seed, init="uniform")


def threshold_in_hits(seed: int) -> dict:
    """256 codes, 75 latents a step, and a restart of all codes with a moving count below 2."""
    make = lambda: RandomRestart(256, DIM, threshold=2, update="ema")  # noqa: E731
    return _trained(make, _modes(seed), seed, batch_size=75)


# ---------------------------------------------------------------- losses and gradients


class LossOfTheEstimate(VectorQuantizer):
    """The losses are taken of the straight-through value, so that the codes have no gradient."""

    def forward(self, latents: Tensor) -> Quantized:
        quantized = super().forward(latents)
        return quantized._replace(loss=self.loss(latents, quantized.latents_q))


class NoGradientCopied(VectorQuantizer):
    """The codes go to the decoder as they are: no gradient of the reconstruction reaches the encoder."""

    def estimate(self, latents: Tensor, chosen: Tensor) -> Tensor:
        return chosen.detach()


class BetaOnTheCodebook(VectorQuantizer):
    """The commitment has weight 1, the codebook loss beta."""

    def loss(self, latents: Tensor, chosen: Tensor) -> Tensor:
        return F.mse_loss(latents, chosen.detach()) + self.beta * F.mse_loss(chosen, latents.detach())


class Overweight(ResidualVQ):
    """Its loss counts `factor` times."""

    factor = 1.0

    def forward(self, latents: Tensor) -> Quantized:
        quantized = super().forward(latents)
        return quantized._replace(loss=self.factor * quantized.loss)


def loss_after_estimate(seed: int) -> dict:
    """Losses of the straight-through value."""
    return _trained(lambda: LossOfTheEstimate(CODES, DIM), _modes(seed), seed, init="uniform")


def no_gradient_copied(seed: int) -> dict:
    """EMA codes from N(0, 1) that pass no gradient on; the commitment counts as much as the reconstruction."""
    return _trained(lambda: NoGradientCopied(CODES, DIM, update="ema", beta=1), _modes(seed), seed, init="normal")


def beta_on_the_codes(seed: int) -> dict:
    """beta on the other term, with a sound start."""
    return _trained(lambda: BetaOnTheCodebook(CODES, DIM), _modes(seed), seed, warmup=STEPS // 2)


def averaged_reconstruction(seed: int) -> dict:
    """A residual quantiser whose loss is summed over dimensions and levels, beside an average over all pixels.

    Inputs have P = 64 pixels: a squared error that is averaged over them counts P times less than one that is summed.
    """
    x, levels = data.digit_vectors().x, 3

    def make() -> nn.Module:
        quantizer = Overweight([CODES] * levels, DIM, beta=0.1)
        quantizer.factor = float(x.shape[1] * DIM * levels)
        return quantizer

    return _trained(make, x, seed)


def free_commitment(seed: int) -> dict:
    """A residual quantiser with EMA codes and no commitment loss: nothing keeps the latents near the codes."""
    make = lambda: ResidualVQ([CODES] * 2, DIM, update="ema", decay=0.8, beta=0)  # noqa: E731
    return _trained(make, _modes(seed), seed, warmup=STEPS // 2)


def learning_too_fast(seed: int) -> dict:
    """A sound model at twenty times its learning rate."""
    return _trained(lambda: VectorQuantizer(CODES, DIM), _modes(seed), seed, lr=20 * league.LR)


class Unit(nn.Module):
    """Brings vectors (..., P) to length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


def normalised_output(seed: int) -> dict:
    """A decoder that ends with a normalisation, on inputs that are not normalised."""
    make = lambda: VectorQuantizer(CODES, DIM)  # noqa: E731
    return _trained(make, _modes(seed), seed, end=Unit(), warmup=STEPS // 2)


# ---------------------------------------------------------------- starts, data and replacement


class UntrainedLevel(ResidualVQ):
    """In training its last level is never drawn."""

    def forward(self, latents: Tensor) -> Quantized:
        every = self.stages
        if self.training:
            self.stages = every[:-1]
        try:
            return super().forward(latents)
        finally:
            self.stages = every


def normal_start(seed: int) -> dict:
    """Codes from N(0, 1)."""
    return _trained(lambda: VectorQuantizer(CODES, DIM), _modes(seed), seed, init="normal")


def uniform_start(seed: int) -> dict:
    """Codes from U(-1/K, 1/K)."""
    return _trained(lambda: VectorQuantizer(CODES, DIM), _modes(seed), seed, init="uniform")


def first_batch(seed: int) -> dict:
    """k-means on the first 1,024 of items that are sorted by kind; EMA codes from then on."""
    x, y, _ = league.modes(seed)
    first, half = x[y.argsort()][:FIRST], STEPS // 2

    def place(step: int, model: models.VQAutoencoder) -> None:
        if step == half:
            with torch.no_grad():
                model.quantizer.init_codes("kmeans", model.encode(first), seed)

    make = lambda: VectorQuantizer(CODES, DIM, update="ema")  # noqa: E731
    return _trained(make, x, seed, warmup=half, init=None, callback=place)


def few_kinds_of_data(seed: int) -> dict:
    """128 codes, and inputs that are next to equal within each of 32 kinds."""
    x, y, centers = league.modes(seed)
    narrow = centers[y] + 0.02 * (x - centers[y])  # type: ignore[index]  # modes have centres
    return _trained(lambda: VectorQuantizer(128, DIM), narrow, seed, warmup=STEPS // 2, init="data")


def rotation_without_expiry(seed: int) -> dict:
    """ResidualVQ of vector-quantize-pytorch with the options of the report; but codes never expire."""
    from vector_quantize_pytorch import ResidualVQ as Residual

    options: dict[str, Any] = {"dim": 64, "codebook_dim": 32, "codebook_size": 256, "num_quantizers": 3}
    options |= {"decay": 0.8, "commitment_weight": 0.1, "rotation_trick": True}
    make = lambda: Theirs(Residual(**options), 256**3, 64)  # noqa: E731
    return _trained(make, _modes(seed), seed, init=None)


def untrained_level(seed: int) -> dict:
    """Three levels with expiry, the last of which no training step draws."""
    make = lambda: UntrainedLevel([CODES] * 3, DIM, kind=CodeExpiry, update="ema", memory=0.9)  # noqa: E731
    return _trained(make, _modes(seed), seed, init="normal")


def lfq_without_a_norm(seed: int) -> dict:
    """Lookup-free quantisation to 6 bits, with nothing that keeps the latents centred."""
    return _trained(lambda: LFQ(6), _modes(seed), seed, init=None)


def padding_counted(seed: int) -> dict:
    """Sequences of 32 tokens, 24 of them padding, whose padding counts for k-means and for moving averages.

    To `diagnose` padding is masked.
    """
    from vector_quantize_pytorch import VectorQuantize

    tokens, length = _modes(seed).reshape(600, 8, 16), 32
    x = F.pad(tokens, (0, 0, 0, length - tokens.shape[1]))
    make = lambda: Theirs(VectorQuantize(dim=DIM, codebook_size=CODES, kmeans_init=True), CODES, DIM)  # noqa: E731
    model = _trained(make, x, seed, init=None)["model"]
    mask = (torch.arange(length) < tokens.shape[1]).expand(len(x), -1)
    brought = {"latents": model.encode(x).detach(), "codebook": model.quantizer.vq.codebook.detach()}
    return brought | {"inputs": x, "mask": mask, "places": (1,), "channel_axis": -1}


# ---------------------------------------------------------------- search and counting


def indices_in_half_precision(seed: int) -> dict:
    """Indices of an FSQ of 1,000 codes, computed in bfloat16, beside its latents and its grid."""
    with torch.random.fork_rng(devices=[]):
        quantizer = FSQ([8, 5, 5, 5])
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((16_000, 4))).float()
    latents, codes = quantizer.prepare(x), quantizer.codes()
    digits = ((quantizer.decode(quantizer.assign(latents, codes)) + 1) * (quantizer.sizes // 2)).round()
    index = (digits.bfloat16() * quantizer.basis.bfloat16()).sum(-1).long().clamp_max(len(codes) - 1)
    return {"latents": latents, "codebook": codes, "index": index, "inputs": x}


def drowned_distances(seed: int) -> dict:
    """Latents 1,000 from the origin, and indices by |z|^2 + |e|^2 - 2 z.e in float32."""
    x = _modes(seed)
    latents = x + 1000
    codes = kmeans(latents, CODES, seed)[0]
    distances = latents.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * latents @ codes.T
    return {"latents": latents, "codebook": codes, "index": distances.argmin(1), "inputs": x}


def batch_of_ids(seed: int) -> dict:
    """The 64 ids of one batch, of 512 codes that are all in use."""
    x = _modes(seed)
    index = nearest_code(x, kmeans(x, 512, seed)[0])
    batch = np.random.default_rng(seed).choice(len(x), 64, replace=False)
    return {"index": index[torch.from_numpy(batch)], "size": 512}


def ids_of_a_large_codebook(seed: int) -> dict:
    """2^20 ids of 16,384 codes, 23 % of which never occur, the others unequally often."""
    rng, live = np.random.default_rng(seed), int(0.77 * 16_384)
    weights = rng.gamma(2, size=live)
    codes = rng.permutation(16_384)[:live]
    return {"index": codes[rng.choice(live, 2**20, p=weights / weights.sum())], "size": 16_384}


def colliding_items(seed: int) -> dict:
    """Three ids each of 4,800 items: 1,600 products in three variants that hardly differ."""
    products = _modes(seed)[:1600].repeat_interleave(3, dim=0)
    noise = np.random.default_rng(seed).standard_normal(tuple(products.shape))
    items = products + 1e-3 * torch.from_numpy(noise).float()
    with torch.random.fork_rng(devices=[]):
        quantizer = ResidualVQ([CODES] * 3, 16)
    quantizer.init_codes("kmeans", items, seed)
    with torch.no_grad():
        index = quantizer(items).index
    return {"index": index, "size": CODES, "stages_axis": -1, "collisions": True}
