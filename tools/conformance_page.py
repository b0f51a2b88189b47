"""Writes the table of docs/conformance.md, and vqnotes/studies/conformance.csv: python tools/conformance_page.py

Which quantisers of vector-quantize-pytorch pass which checks of `vqnotes.diagnosis.conformance`, in the version that
is installed. For each failure the page quotes the library's own line that leads to it; a line that is not there any
more, or a failure without one, stops the program.
"""

import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import pandas as pd
import vector_quantize_pytorch as theirs
from notebook_tools import ROOT
from torch import Tensor, nn
from vector_quantize_pytorch import vector_quantize_pytorch

from vqnotes._files import replaced
from vqnotes.diagnosis.conformance import NAMES, Adapter, Result, check, vector_quantize
from vqnotes.studies.peers import CONFORMANCE

PEER = "vector-quantize-pytorch"
PAGE = ROOT / "docs" / "conformance.md"
BEGIN, END = "<!-- made by tools/conformance_page.py -->\n", "<!-- end -->\n"
MARKS = {"passed": "✓", "failed": "✗", "not applicable": "–"}


def started(quantizer: nn.Module, kmeans_on: Tensor | None) -> nn.Module:
    """With its codes in place: the first call starts them, and is no step in evaluation mode."""
    if kmeans_on is not None:
        quantizer.eval()(kmeans_on[None])
    return quantizer


def called(quantizer: Any, latents: Tensor) -> tuple:
    """As one sequence, which all classes take. Losses of several levels are summed; FSQ has none."""
    latents_q, index, *loss = quantizer(latents[None])
    return latents_q[0], index[0], loss[0].sum() if loss else None


def sim_vq() -> Adapter:
    def build(codebook_size: int, dim: int, beta: float = 0.25) -> nn.Module:
        return theirs.SimVQ(dim, codebook_size, input_to_quantize_commit_loss_weight=beta)

    def place(quantizer: Any, codes: Tensor) -> None:
        quantizer.frozen_codebook.copy_(codes)
        nn.init.eye_(quantizer.code_transform.weight)

    def decode(quantizer: Any, index: Tensor) -> Tensor:
        return quantizer.indices_to_codes(index[None])[0]

    return Adapter(build, called, lambda quantizer: quantizer.codebook, "gradient", decode, place)


def residual_vq(**options: Any) -> Adapter:
    def build(codebook_size: int, dim: int, beta: float = 1.0, kmeans_on: Tensor | None = None) -> nn.Module:
        sizes = {"dim": dim, "num_quantizers": 4, "codebook_size": codebook_size}
        start = {"commitment_weight": beta, "kmeans_init": kmeans_on is not None}
        return started(theirs.ResidualVQ(**sizes, **start, **options), kmeans_on)

    def decode(quantizer: Any, index: Tensor) -> Tensor:
        return quantizer.get_output_from_indices(index[None])[0]

    return Adapter(build, called, None, "ema", decode)


def fixed_grid(build: Callable[..., nn.Module]) -> Adapter:
    def decode(quantizer: Any, index: Tensor) -> Tensor:
        return quantizer.indices_to_codes(index[None])[0]

    return Adapter(build, called, None, "fixed", decode, by_distance=False)


def fsq(codebook_size: int, dim: int) -> nn.Module:
    """With four levels a digit: 16 codes in 2 digits, 256 in 4, and a projection from and to the latents."""
    return theirs.FSQ([4] * round(codebook_size.bit_length() / 2 - 0.5), dim=dim)


def lfq(codebook_size: int, dim: int, beta: float = 0.25) -> nn.Module:
    return theirs.LFQ(codebook_size=codebook_size, dim=dim, commitment_loss_weight=beta)


EMA, LEARNT = "VectorQuantize", "VectorQuantize(learnable_codebook=True, ema_update=False)"
PLAIN, EXPIRY = "VectorQuantize(rotation_trick=False)", "VectorQuantize(threshold_ema_dead_code=2)"
ROWS: dict[str, Callable[[], Adapter]] = {
    EMA: vector_quantize,
    PLAIN: lambda: vector_quantize(rotation_trick=False),
    EXPIRY: lambda: vector_quantize(threshold_ema_dead_code=2),
    LEARNT: lambda: vector_quantize(learnable_codebook=True, ema_update=False),
    "VectorQuantize(use_cosine_sim=True)": lambda: vector_quantize(use_cosine_sim=True),
    "SimVQ": sim_vq,
    "ResidualVQ(num_quantizers=4)": residual_vq,
    "ResidualVQ(num_quantizers=4, rotation_trick=False)": lambda: residual_vq(rotation_trick=False),
    "FSQ": lambda: fixed_grid(fsq),
    "LFQ": lambda: fixed_grid(lfq),
}


class Cause(NamedTuple):
    """Why some rows fail a check: the library's own line, where it stands, and what it comes to."""

    check: str
    rows: tuple[str, ...]
    where: Any
    line: str
    says: str


CAUSES = [
    Cause(
        "off centre",
        (EMA, PLAIN, EXPIRY, LEARNT),
        vector_quantize_pytorch.cdist,
        "return (rearrange(x2, 'b i -> b i 1') + rearrange(y2, 'b j -> b 1 j') + xy).clamp(min = eps).sqrt()",
        "The distance is the small difference of large numbers where latents lie far from the origin, beside their "
        "spread. Around the origin nothing is wrong. A normalisation before the quantiser "
        "keeps them near.",
    ),
    Cause(
        "off centre",
        ("SimVQ",),
        theirs.SimVQ.forward,
        "dist = torch.cdist(x, implicit_codebook)",
        "PyTorch's `cdist` takes the same way where there are more than 25 latents or codes "
        "([pytorch #42479](https://github.com/pytorch/pytorch/issues/42479)).",
    ),
    Cause(
        "bfloat16",
        ("SimVQ",),
        theirs.SimVQ.forward,
        "dist = torch.cdist(x, implicit_codebook)",
        "It measures in the precision of the latents. `VectorQuantize` turns them to float32 first, and passes.",
    ),
    Cause(
        "threshold",
        (EXPIRY,),
        vector_quantize_pytorch.Codebook.expire_codes_,
        "expired_codes = self.cluster_size < self.threshold_ema_dead_code",
        "The threshold counts latents a step, as the library's README says: it is a setting that belongs to a batch "
        "size. Choose it well below the latents of a step over the number of codes.",
    ),
    Cause(
        "commitment loss",
        (LEARNT,),
        theirs.VectorQuantize.forward,
        "maybe_detach = torch.detach if not self.learnable_codebook or freeze_codebook else identity",
        "One squared error serves as commitment and as codebook loss, so `commitment_weight` weighs both: their "
        "ratio is always 1. That is a choice, and no harm where nobody takes the weight for the beta of the VQ-VAE.",
    ),
]


def cause_of(row: str, name: str) -> Cause:
    """Raises LookupError where a failure is not explained, or the line is not in the library any more."""
    for cause in CAUSES:
        if cause.check == name and row in cause.rows:
            if cause.line not in inspect.getsource(cause.where):
                raise LookupError(f"{cause.where.__qualname__} has no longer the line {cause.line!r}")
            return cause
    raise LookupError(f"{row} fails {name!r}, and CAUSES does not say why")


def table(found: dict[str, list[Result]]) -> str:
    lines = [f"| | {' | '.join(NAMES)} |", "|---" * (len(NAMES) + 1) + "|"]
    for row, results in found.items():
        lines.append(f"| `{row}` | {' | '.join(MARKS[one.status] for one in results)} |")
    return "\n".join(lines) + "\n"


def failures(found: dict[str, list[Result]]) -> str:
    """Each cause once, with the figures of every row that it has; raises LookupError as `cause_of` does."""
    figures: dict[str, list[str]] = {}
    causes: dict[str, Cause] = {}
    for row, results in found.items():
        for one in results:
            if one.status == "failed":
                cause = cause_of(row, one.name)
                key = f"{one.name}: {cause.rows}"
                causes[key] = cause
                figures.setdefault(key, []).append(f"- `{row}`: {one.says}")
    parts = []
    for key, cause in causes.items():
        where = f"{cause.where.__module__}.{cause.where.__qualname__}"
        quoted = f"```python\n{cause.line}  # {where}\n```"
        parts.append(f"**{cause.check}**\n\n" + "\n".join(figures[key]) + f"\n\n{quoted}\n\n{cause.says}\n")
    return "\n".join(parts)


def gradients(found: dict[str, list[Result]]) -> str:
    """The figure of the check of the gradient, for each row: passed says little of it."""
    says = {row: next(one.says for one in results if one.name == "gradient") for row, results in found.items()}
    return "".join(f"- `{row}`: {one}\n" for row, one in says.items())


def tested() -> dict[str, list[Result]]:
    """What the checks say of each of the rows."""
    return {row: check(make()) for row, make in ROWS.items()}


def as_table(found: dict[str, list[Result]]) -> pd.DataFrame:
    """One row for each quantiser and check: library, version, class, check, passed, detail."""
    said = {"library": PEER, "version": version(PEER)}
    return pd.DataFrame(
        said | {"class": row, "check": one.name, "passed": one.status, "detail": one.says}
        for row, results in found.items()
        for one in results
    )


def section(found: dict[str, list[Result]]) -> str:
    """What stands between the two marks of the page."""
    return (
        f"Version {version(PEER)}. ✓ passed, ✗ failed, – does not apply, or the adapter does "
        f"not say it.\n\n{table(found)}\n### What failed, and the lines that show it\n\n{failures(found)}\n"
        f"### How long the gradient is at the latents\n\nBeside that of what was returned:\n\n{gradients(found)}"
    )


def stored() -> str:
    """What stands there now."""
    return PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]


def main() -> None:
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    found = tested()
    with replaced(CONFORMANCE) as beside:
        as_table(found).to_csv(beside, index=False, lineterminator="\n")
    PAGE.write_text(f"{before}{BEGIN}\n{section(found)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
