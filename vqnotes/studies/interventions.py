"""What is done to a model to find out what it has: trained anew with other codes, a wider encoder, more time.

`diagnose` uses none of this. Each intervention ends alike: the encoder is held, and a decoder trains on for as long
as that of a control which kept its codes. Errors are those on inputs that no training has seen, relative to their
variance.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqnotes import models, training
from vqnotes._stacked import Stacked
from vqnotes.kmeans import kmeans
from vqnotes.metrics import reconstruction_error
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies.codes import CosineCodes
from vqnotes.remedies.residual import ResidualVQ
from vqnotes.remedies.scalar import FSQ, LFQ
from vqnotes.studies.cases import CASES, Peer
from vqnotes.studies.families import BEDS, HIDDEN

__all__ = ["CHANGES", "ERRORS", "PARTS", "decoders_trained_on", "has_room", "interventions", "made", "taken_apart"]

DECODER_STEPS, DECODER_LR = 150, 3e-3
PER_CODE, AT_LEAST, AT_MOST = 16, 8192, 2**15  # latents that codes are placed on
FEW = 128  # codes, up to which four times as many are tried
MORE = 4
CHANGES = ("wider encoder", "longer training", "longer warm-up")
ERRORS: tuple[str, ...] = ("as made", "same codes", "new codes", "more codes", "fewer codes", "all latents")
ERRORS += tuple(f"{change}{codes}" for change in CHANGES for codes in ("", ", all latents"))
PARTS = ("longer decoder", "more dimensions", "longer warm-up alone")  # of the longer warm-up, each by itself


def made(
    seeds: Iterable[int],
    xs: Sequence[Tensor],
    bed: str,
    case: str,
    codebook_size: int,
    *,
    share: float = 1.0,
    change: str = "",
) -> list[models.VQAutoencoder]:
    """One model a seed, trained on its inputs.

    codebook_size: K. share: of the steps that the bed has. change: one of CHANGES, or none. "wider encoder": it has
    more hidden units. "longer training": twice as many steps, more of them behind the quantiser. "longer warm-up":
    twice as many, more of them before there is a quantiser, and more latent dimensions where they can be chosen.
    "more dimensions" and "longer warm-up alone": one of these two without the other.
    Raises KeyError for an unknown bed or case, ValueError for another change.
    """
    known = (*CHANGES, *PARTS[1:])
    if change and change not in known:
        raise ValueError(f"change must be one of {known}, got {change!r}")
    place, how = BEDS[bed], CASES[case]
    width = max(HIDDEN, 2 * how.width) if change == "wider encoder" else how.width
    dim = how.dim or place.dim
    if change in ("longer warm-up", "more dimensions") and has_room(bed, case):
        dim = max(8, 2 * dim)

    def build(seed: int) -> models.VQAutoencoder:
        return place.autoencoder(how.quantizer(codebook_size, dim), width)

    steps = max(1, int(share * place.plan["steps"]))
    warmup = int(how.warmup * steps)
    if change.startswith("longer warm-up"):
        warmup += steps
    if change.startswith("longer"):
        steps *= 2
    plan = place.plan | {"init": how.init, "warmup": warmup, "steps": steps, "progress": False}
    if not how.peer:
        return [model for model, _ in training.fit_many(build, list(xs), seeds=seeds, **plan)]
    found = []
    for seed, x in zip(seeds, xs):  # what updates itself in place cannot be trained many at once
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found.append(build(seed))
            training.fit(found[-1], x, seed=seed, **plan)
    return found


def has_room(bed: str, case: str) -> bool:
    """Whether the number of latent dimensions can be chosen. Raises KeyError for an unknown bed or case."""
    return CASES[case].room and not BEDS[bed].slow


# ---------------------------------------------------------------- what the decoder is given


@torch.no_grad()
def _latents(model: models.VQAutoencoder, x: Tensor) -> Tensor:
    model.eval()
    return torch.cat([model.encode(part) for part in x.split(1024)])


@torch.no_grad()
def _some(latents: Tensor, size: int, seed: int) -> Tensor:
    """Rows of the latents (..., D), on which so many codes are placed."""
    rows = latents.flatten(0, -2)
    count = min(AT_MOST, max(AT_LEAST, PER_CODE * size))
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]]


def _prepared(quantizer: Any, latents: Tensor) -> Tensor:
    """Latents as they are compared with the codes."""
    return quantizer.prepare(latents)


def _back(quantizer: Any, codes: Tensor) -> Tensor:
    """What was compared, as the decoder gets it."""
    return quantizer.back(codes) if isinstance(quantizer, Peer) else codes


@torch.no_grad()
def anew(quantizer: Any, latents: Tensor, seed: int) -> nn.Module:
    """A copy of the quantiser whose codes are placed by k-means on latents (..., D), to be used without training.

    A fixed grid, and a quantiser of another library, give way to one that has as many codes, for latents as they
    are compared.
    """
    if isinstance(quantizer, Peer):
        compared = quantizer.prepare(latents[:1]).shape[-1]
        levels = getattr(quantizer.inner, "num_quantizers", 1)
        sizes = [quantizer.codebook_size] * levels
        kind = CosineCodes if quantizer.by_direction else VectorQuantizer
        placed: Any = ResidualVQ(sizes, compared) if levels > 1 else kind(sizes[0], compared)
        latents = quantizer.prepare(latents)
    elif isinstance(quantizer, FSQ | LFQ):
        placed = VectorQuantizer(quantizer.codebook_size, quantizer.dim)
        latents = quantizer.prepare(latents)
    else:
        placed = copy.deepcopy(quantizer)
    stages = getattr(placed, "stages", [placed])
    placed.init_codes("kmeans", _some(latents, max(one.codebook_size for one in stages), seed), seed)
    return placed.eval()


@torch.no_grad()
def _with_codes_anew(quantizer: Any, latents: Tensor, others: Tensor, seed: int) -> list[Tensor]:
    """Both sets of latents (..., D) as codes that were placed anew on the first give them to the decoder."""
    placed = anew(quantizer, latents, seed)
    stands_in = isinstance(quantizer, Peer | FSQ | LFQ)
    given = [_prepared(quantizer, one) if stands_in else one for one in (latents, others)]
    return [_back(quantizer, placed(one).latents_q) for one in given]


@torch.no_grad()
def _with_codes(quantizer: Any, latents: Tensor, others: Tensor, count: int, seed: int) -> list[Tensor]:
    """The same with so many codes, of a plain quantiser."""
    latents, others = (_prepared(quantizer, one) for one in (latents, others))
    codes = kmeans(_some(latents, count, seed), count, seed)[0]
    return [_back(quantizer, codes[nearest_code(one, codes)]) for one in (latents, others)]


@torch.no_grad()
def _bare(quantizer: Any, *both: Tensor) -> list[Tensor]:
    """Latents as they are compared, in place of codes."""
    return [_back(quantizer, _prepared(quantizer, one)) for one in both]


# ---------------------------------------------------------------- decoders


class _Reader(nn.Module):
    """A decoder, what it is given, and what it should make of it."""

    given: Tensor
    x: Tensor
    variance: Tensor

    def __init__(self, decoder: nn.Module, given: Tensor, x: Tensor):
        super().__init__()
        self.decoder = copy.deepcopy(decoder)
        self.register_buffer("given", given.clone())
        self.register_buffer("x", x.clone())
        self.register_buffer("variance", x.var(correction=0))

    def forward(self, rows: Tensor, _: object) -> Tensor:
        return F.mse_loss(self.decoder(self.given[rows]), self.x[rows]) / self.variance


def decoders_trained_on(
    decoders: Sequence[nn.Module], given: Sequence[Tensor], xs: Sequence[Tensor], steps: int, batch_size: int
) -> list[nn.Module]:
    """Copies of the decoders that were trained for some more steps, all at once.

    given: for each what it gets, (n, ..., D), and xs: what it should rebuild, (n, ...). All have the same shapes.
    """
    readers = [_Reader(*one).train() for one in zip(decoders, given, xs, strict=True)]
    together, generator = Stacked(readers), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(together.parameters.values(), lr=DECODER_LR)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(xs[0]), (batch_size,), generator=generator).expand(len(readers), -1)
            optimizer.zero_grad()
            together(rows, None).sum().backward()
            optimizer.step()
    together.unstack()
    return [reader.decoder.eval() for reader in readers]


@torch.no_grad()
def _error(decoder: nn.Module, given: Tensor, x: Tensor) -> float:
    return reconstruction_error(torch.cat([decoder(part) for part in given.split(1024)]), x)


def interventions(
    kept: Sequence[models.VQAutoencoder],
    seeds: Sequence[int],
    xs: Sequence[Tensor],
    held_out: Sequence[Tensor],
    bed: str,
    case: str,
    codebook_size: int,
    share: float = 1.0,
) -> list[dict[str, float | None]]:
    """The errors of one model a seed, and of what was made of it; None where there is no such intervention.

    as made: without any further training. same codes: the control. new codes: by k-means. more codes: four times as
    many, of few. fewer codes: a fourth. all latents: as many codes as latents. CHANGES: trained from the
    same start in this way, and then with new codes, or as many as there are latents. held_out: inputs that errors
    are those on. share: as for `made`.
    """
    batch, steps = BEDS[bed].plan["batch_size"], max(1, int(share * DECODER_STEPS))
    found: list[dict[str, float | None]] = [{} for _ in seeds]
    sizes = {"more codes": MORE * codebook_size} if codebook_size <= FEW else {}
    sizes = {} if CASES[case].of_levels else sizes | {"fewer codes": max(1, codebook_size // MORE)}

    arms: list[tuple[int, str, nn.Module, list[Tensor]]] = []  # place, name, decoder, what it gets of both sets
    for place, (model, seed, x, fresh) in enumerate(zip(kept, seeds, xs, held_out)):
        with torch.no_grad():
            quantizer, both = model.quantizer.eval(), (_latents(model, x), _latents(model, fresh))
            own = [quantizer(one).latents_q for one in both]
        ways = {"same codes": own, "new codes": _with_codes_anew(quantizer, *both, seed)}
        ways |= {name: _with_codes(quantizer, *both, count, seed) for name, count in sizes.items()}
        ways |= {"all latents": _bare(quantizer, *both)}
        found[place] |= dict.fromkeys(ERRORS) | {"as made": _error(model.decoder, own[1], fresh)}
        arms += [(place, name, model.decoder, given) for name, given in ways.items()]
    _errors_into(found, arms, xs, held_out, steps, batch)

    for name in CHANGES:
        if name == "wider encoder" and BEDS[bed].slow:  # a linear map has no hidden units
            continue
        changed = made(seeds, xs, bed, case, codebook_size, share=share, change=name)
        _errors_into(found, _arms(name, changed, seeds, xs, held_out), xs, held_out, steps, batch)
    return found


def _arms(
    name: str, changed: Sequence, seeds: Sequence[int], xs: Sequence[Tensor], held_out: Sequence[Tensor]
) -> list:
    """What decoders of models that were trained otherwise are given: new codes, or the latents."""
    arms = []
    for place, (model, seed, x, fresh) in enumerate(zip(changed, seeds, xs, held_out)):
        both = _latents(model, x), _latents(model, fresh)
        quantizer = model.quantizer.eval()
        arms.append((place, name, model.decoder, _with_codes_anew(quantizer, *both, seed)))
        arms.append((place, f"{name}, all latents", model.decoder, _bare(quantizer, *both)))
    return arms


def taken_apart(
    kept: Sequence[models.VQAutoencoder],
    seeds: Sequence[int],
    xs: Sequence[Tensor],
    held_out: Sequence[Tensor],
    bed: str,
    case: str,
    codebook_size: int,
    share: float = 1.0,
) -> list[dict[str, float | None]]:
    """What a longer warm-up brings with it, each by itself: errors by the names of PARTS, one model a seed.

    longer decoder: encoder and new codes are held, and the decoder alone trains for as many more steps. more
    dimensions, longer warm-up alone: where dimensions can be chosen; None elsewhere. The arguments are those of
    `interventions`.
    """
    plan, found = BEDS[bed].plan, [dict[str, float | None].fromkeys(PARTS) for _ in seeds]
    batch, steps = plan["batch_size"], max(1, int(share * DECODER_STEPS))
    arms = _arms(PARTS[0], kept, seeds, xs, held_out)[::2]  # with new codes
    _errors_into(found, arms, xs, held_out, steps + max(1, int(share * plan["steps"])), batch)
    for name in PARTS[1:] if has_room(bed, case) else ():
        changed = made(seeds, xs, bed, case, codebook_size, share=share, change=name)
        _errors_into(found, _arms(name, changed, seeds, xs, held_out)[::2], xs, held_out, steps, batch)
    return found


def _errors_into(
    found: list[dict], arms: list[tuple], xs: Sequence[Tensor], held_out: Sequence[Tensor], steps: int, batch: int
) -> None:
    """Trains the decoders of all arms on, and writes down their errors by name."""
    decoders, given = [decoder for _, _, decoder, _ in arms], [both[0].detach() for *_, both in arms]
    trained = decoders_trained_on(decoders, given, [xs[place] for place, *_ in arms], steps, batch)
    for decoder, (place, name, _, both) in zip(trained, arms):
        found[place][name] = _error(decoder, both[1].detach(), held_out[place])
