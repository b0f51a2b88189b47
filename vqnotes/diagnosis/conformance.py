"""Bring your own quantiser: the tests of the museum in notebook 08 as a kit, for a quantiser from anywhere.

An `Adapter` says how a quantiser is built, called and read; `check` tries it and returns one `Result` for each of the
`NAMES`. Each check is a short function: a result that failed shows its lines and the figures that came of them.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vqnotes.diagnosis.adapter import Adapter, Kit, NotApplicable, first_line
from vqnotes.diagnosis.defect_checks import CHECKS
from vqnotes.metrics import UsageMeter
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies.replacement import RandomRestart

__all__ = ["NAMES", "Adapter", "Result", "check", "ours", "vector_quantize"]

NAMES = tuple(CHECKS)


class Result(NamedTuple):
    """What came of one check. status: "passed", "failed" or "not applicable".

    claim: what was checked. says: the figures, or why it does not apply. lines: the check itself.
    """

    name: str
    status: str
    claim: str
    says: str
    lines: str

    def __str__(self) -> str:
        text = f"{self.name}: {self.status}. {self.claim} {self.says}"
        return f"{text}\n\n{self.lines}" if self.status == "failed" else text


def check(adapter: Adapter, *, only: Iterable[str] | None = None, seed: int = 0) -> list[Result]:
    """Tries a quantiser by the checks of these names, or by all; one result each, in the order of `NAMES`.

    A check that the quantiser stops with an error has failed. All are on normal latents on the CPU, drawn by `seed`.
    The random numbers of torch are afterwards as they were before.
    Sources of the defects: notebook 08, with the reports of each.
    Raises ValueError for a name that is not among `NAMES`, and for an adapter that does not return what it should.
    """
    names = NAMES if only is None else tuple(only)
    if unknown := set(names) - set(NAMES):
        raise ValueError(f"no check is called {sorted(unknown)}; there are {', '.join(NAMES)}")
    with torch.random.fork_rng(devices=[]):
        kit = Kit(adapter, seed)
        kit.enter()
        return [_result(name, kit) for name in NAMES if name in names]


def _result(name: str, kit: Kit) -> Result:
    function = CHECKS[name]
    try:
        passed, says = function(kit)
        status = "passed" if passed else "failed"
    except NotApplicable as reason:
        status, says = "not applicable", str(reason)
    except Exception as error:
        status, says = "failed", f"It raises {type(error).__name__}: {first_line(error)}"
    claim = inspect.cleandoc(function.__doc__ or "").splitlines()[0]
    return Result(name, status, claim, says, inspect.getsource(function))


def ours(kind: Callable[..., VectorQuantizer] = VectorQuantizer, **options: Any) -> Adapter:
    """The adapter of `VectorQuantizer` or of a remedy that takes (codebook_size, dim), with these options of it."""

    def build(codebook_size: int, dim: int, beta: float = 0.25, kmeans_on: Tensor | None = None) -> VectorQuantizer:
        quantizer = kind(codebook_size, dim, beta=beta, **options)
        if kmeans_on is not None:
            quantizer.init_codes("kmeans", kmeans_on)
        return quantizer

    sample = build(2, 1)
    return Adapter(
        build,
        call=lambda quantizer, latents: quantizer(latents),
        codes=lambda quantizer: quantizer.codes(),
        update=sample.update,
        decode=lambda quantizer, index: quantizer.decode(index),
        place=lambda quantizer, codes: quantizer.place_codes(codes, torch.zeros(len(codes))),
        usage=_usage,
        expires=isinstance(sample, RandomRestart),
    )


def _usage(batches: Sequence[Tensor], codebook_size: int) -> float:
    meter = UsageMeter(codebook_size)
    for batch in batches:
        meter.update(batch)
    return meter.usage()


def vector_quantize(**options: Any) -> Adapter:
    """The adapter of `VectorQuantize` of vector-quantize-pytorch with these options of it; the library is needed."""
    from vector_quantize_pytorch import VectorQuantize

    def build(codebook_size: int, dim: int, beta: float = 1.0, kmeans_on: Tensor | None = None) -> nn.Module:
        start = {"kmeans_init": kmeans_on is not None}
        quantizer: nn.Module = VectorQuantize(dim, codebook_size, commitment_weight=beta, **start, **options)
        if kmeans_on is not None:  # the first call places the codes, and is no step in evaluation mode
            quantizer.eval()(kmeans_on)
        return quantizer

    return Adapter(
        build,
        call=lambda quantizer, latents: quantizer(latents),
        codes=lambda quantizer: quantizer.codebook,
        update="gradient" if options.get("learnable_codebook") else "ema",
        decode=lambda quantizer, index: quantizer.get_output_from_indices(index),
        expires=options.get("threshold_ema_dead_code", 0) > 0,
        by_distance=not options.get("use_cosine_sim", False),
    )
