"""A quantiser that grows with the course: the functions that a reader wrote in 01, 02, 05 and 09, kept in my_vq.py.

A notebook that builds on them takes the reader's where they are there and right, and the course's for the others.
"""

import ast
import contextlib
import importlib
import inspect
import io
import runpy
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqnotes._by_index import rows, shares
from vqnotes._files import replaced
from vqnotes._printing import say
from vqnotes.course import exercises
from vqnotes.metrics import perplexity
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import Quantized, straight_through

__all__ = ["FILE", "PARTS", "MyQuantizer", "keep", "mine"]

FILE = Path("my_vq.py")  # beside the notebooks
IMPORTS = "import math\n\nimport torch\nimport torch.nn.functional as F\n"
HEAD = f'"""My quantiser, as I wrote it in the course."""\n\n{IMPORTS}'
PARTS = {"quantize": "01", "follow": "02", "restart": "05", "in_effect": "09"}  # and where each is written


# ---------------------------------------------------------------- the course's copies


def _quantize(latents: Tensor, codebook: Tensor, beta: float) -> Quantized:
    index = nearest_code(latents, codebook)
    chosen = rows(codebook, index)
    loss = F.mse_loss(chosen, latents.detach()) + beta * F.mse_loss(latents, chosen.detach())
    return Quantized(straight_through(chosen, latents), index, loss)


def _follow(latents: Tensor, index: Tensor, codebook: Tensor, share: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    new = (1 - decay) * shares(index, share)
    sums = torch.zeros_like(codebook).index_add(0, index, latents) * (1 - decay) / len(latents)
    total = decay * share + new
    moved = (decay * share[:, None] * codebook + sums) / total.clamp_min(torch.finfo(total.dtype).tiny)[:, None]
    return torch.where(new[:, None] > 0, moved, codebook), total


def _restart(latents: Tensor, codebook: Tensor, uses: Tensor, threshold: float) -> Tensor:
    stale = (uses < threshold * uses.mean()).nonzero().flatten()[: len(latents)]
    return codebook.index_copy(0, stale, latents[torch.randperm(len(latents))[: len(stale)]])


OURS: dict[str, Callable[..., Any]] = {
    "quantize": _quantize,
    "follow": _follow,
    "restart": _restart,
    "in_effect": perplexity,
}


# ---------------------------------------------------------------- the reader's


def _trouble(name: str, function: object) -> str:
    """Why a function is not what its exercise asks for; "" if it is."""
    checks = importlib.import_module(f"{exercises.__name__}.nb{PARTS[name]}")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        getattr(checks, f"check_{name}")(function)
    verdict = said.getvalue().strip().partition(": ")[2]
    return "" if verdict == "correct" else verdict


def _loaded(file: Path) -> dict[str, Any]:
    """What a my_vq.py defines: it is the reader's own, and run. Its errors are raised."""
    return runpy.run_path(str(file))


def _sources(text: str) -> dict[str, str]:
    """The source of each function in the text of a my_vq.py."""
    nodes = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    return {node.name: ast.get_source_segment(text, node) or "" for node in nodes}


def keep(function: Callable, file: Path | str = FILE) -> None:
    """Writes a function of the reader's into my_vq.py if its exercise is solved, and says so in one line.

    It must have the name of one of PARTS, and stand by itself: what it needs beside torch, F and math, inside of it.
    Another function of that name in the file is replaced, all else in it stays. Raises ValueError for another name,
    and for a file that is no Python.
    """
    name, file = getattr(function, "__name__", repr(function)), Path(file)
    if name not in PARTS:
        raise ValueError(f"function must be one of {', '.join(PARTS)}, got {name!r}")
    if trouble := _trouble(name, function):
        say(f"{name} is not kept: {trouble}. The course's copy stands in for it.")
        return
    source = textwrap.dedent(inspect.getsource(function)).strip()
    try:
        known = file.read_text(encoding="utf-8") if file.exists() else HEAD
        there = _sources(known)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no Python ({error}): mend it, or remove it to start anew") from error
    text = known.replace(there[name], source) if name in there else f"{known.rstrip()}\n\n\n{source}\n"
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / FILE.name).write_text(f"{HEAD}\n\n{source}\n", encoding="utf-8")
            trouble = _trouble(name, _loaded(Path(folder) / FILE.name)[name])
    except Exception as error:
        trouble = f"by itself it stops with {type(error).__name__}: {error}"
    if trouble:
        say(f"{name} is not kept, since it does not work without the notebook: {trouble}")
        return
    with replaced(file) as beside:
        beside.write_text(text, encoding="utf-8")
    say(f"{name} is kept in {file.name}.")


def mine(file: Path | str = FILE) -> dict[str, Callable[..., Any]]:
    """The functions of PARTS by name: the reader's where my_vq.py has them and they are right, else the course's.

    One line says which are whose, and why one of the reader's is not taken. The file is run: it is the reader's own.
    """
    file, wrong = Path(file), []
    found: dict[str, Callable[..., Any]] = {}
    try:
        defined = _loaded(file) if file.exists() else {}
    except Exception as error:
        defined, wrong = {}, [f"{file.name} stops with {type(error).__name__}: {error}"]
    for name in PARTS:
        trouble = _trouble(name, defined[name]) if name in defined else "missing"
        if not trouble:
            found[name] = defined[name]
        elif name in defined:
            wrong.append(f"{name}: {trouble}")
    theirs, rest = ", ".join(found) or "none", ", ".join(name for name in PARTS if name not in found) or "none"
    say(f"⟨Yours: {theirs}. The course's: {rest}.⟩" + "".join(f" ({one})" for one in wrong))
    return OURS | found


# ---------------------------------------------------------------- put together


class MyQuantizer(nn.Module):
    """A vector quantiser out of the functions of `mine`, called and trained as those of the course.

    codebook_size: K. dim: D. beta: weight of the commitment loss. decay: None to train the codes by the loss, else of
    their moving averages. threshold: codes whose averaged use is below this share of the mean use N/K start anew
    among the latents of the step; 0 for never, above 0 with a decay only. functions: those of `mine`.
    Codes start uniform in (-1/K, 1/K), each with a share of 1/K of the latents behind it.
    Raises ValueError for a size below 1, or a threshold without averages.
    """

    codebook: Tensor
    share: Tensor
    functions: dict[str, Callable[..., Any]]

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        functions: dict[str, Callable[..., Any]] | None = None,
        *,
        beta: float = 0.25,
        decay: float | None = None,
        threshold: float = 0.0,
    ):
        super().__init__()
        if codebook_size < 1 or dim < 1:
            raise ValueError(f"codebook_size and dim must be positive, got {codebook_size} and {dim}")
        if threshold and decay is None:
            raise ValueError(
                f"codes that start anew need averages of their use: got threshold={threshold} without decay"
            )
        self.codebook_size, self.dim, self.beta, self.decay = codebook_size, dim, beta, decay
        self.threshold, self.functions = threshold, OURS if functions is None else functions
        codes = torch.empty(codebook_size, dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        if decay is None:
            self.codebook = nn.Parameter(codes)
        else:
            self.register_buffer("codebook", codes)
        self.register_buffer("share", torch.full((codebook_size,), 1 / codebook_size))

    def prepare(self, latents: Tensor) -> Tensor:
        return latents

    def codes(self) -> Tensor:
        return self.codebook

    def forward(self, latents: Tensor) -> Quantized:
        """latents (..., D) to Quantized(latents_q (..., D), index (...,), loss)."""
        flat = latents.reshape(-1, self.dim)
        latents_q, index, loss = self.functions["quantize"](flat, self.codebook.clone(), self.beta)
        if self.training and self.decay is not None:
            self._after_step(flat.detach(), index)
        return Quantized(latents_q.view_as(latents), index.view(latents.shape[:-1]), loss)

    @torch.no_grad()
    def _after_step(self, latents: Tensor, index: Tensor) -> None:
        codebook, share = self.functions["follow"](latents, index, self.codebook, self.share, self.decay)
        if self.threshold:
            renewed = self.functions["restart"](latents, codebook, share * len(latents), self.threshold)
            moved = (renewed != codebook).any(dim=1)
            codebook, share = renewed, torch.where(moved, share.mean(), share)  # they are not stale at once again
        self.codebook.copy_(codebook)
        self.share.copy_(share)

    @torch.no_grad()
    def place_codes(self, codes: Tensor, share: Tensor) -> None:
        """Puts the codes at the given places (K, D); share (K,), of the latents that each has."""
        self.codebook.copy_(codes)
        self.share.copy_(share)
