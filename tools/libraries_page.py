"""Writes the tables of docs/libraries.md and vqnotes/studies/libraries.csv: python tools/libraries_page.py [NAME ...]

What `diagnose_model` says of small models of other libraries (library_models.py, vector_quantize_models.py), healthy
and ill ones. `make libraries-test` installs the libraries. Rows of those that are not installed stay as they are; and
with names of libraries or classes, those of all others.
"""

import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
import vector_quantize_models as peers
from library_models import CASES, DIM, HOP, SIDE, SIZE, Case
from notebook_tools import ROOT
from torch import Tensor, nn
from vector_quantize_models import PEERS, Peer

from vqnotes._files import replaced
from vqnotes.diagnosis import Diagnosis, diagnose_model
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code
from vqnotes.studies.peers import LIBRARIES, verdicts_on_libraries

PAGE = ROOT / "docs" / "libraries.md"
BEGIN, END = "<!-- made by tools/libraries_page.py -->\n", "<!-- end -->\n"
STEPS = 200
RIGHT = "healthy", "token collapse", "token collapse"
PEER = "vector-quantize-pytorch"
COLUMNS = "library version class options batch fault verdict expected right refused gradient".split()


def installed(package: str) -> str | None:
    """The version of a library; None if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# ---------------------------------------------------------------- healthy and ill


def trained(case: Case, x: Tensor) -> nn.Module:
    """The model, after some steps of its encoder with a linear decoder in place of all behind it."""
    torch.manual_seed(0)
    model = case.build().eval()  # without dropout
    linear = nn.ConvTranspose1d(case.dim, 1, HOP, HOP) if x.ndim == 3 else nn.ConvTranspose2d(DIM, 3, SIDE, SIDE)
    optimizer = torch.optim.Adam([*model.parameters(), *linear.parameters()], 1e-2, fused=True)
    for _ in range(STEPS):
        some = x[torch.randperm(len(x))[:32]]
        z = case.encode(model, some)
        kept = F.normalize(z, dim=1) if case.by_direction else z
        loss = F.mse_loss(linear(kept), some) / some.var() + F.mse_loss(kept, z)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def place(case: Case, model: nn.Module, x: Tensor) -> None:
    """Fills the codebooks by k-means, each on what the one before left."""
    z = case.encode(model, x).movedim(1, -1).flatten(0, -2)
    stacks = case.tables(model)
    for tables in stacks:
        rest = z
        for table in tables:
            compared = F.normalize(rest, dim=-1) if case.by_direction else rest
            index = nearest_code(compared, kmeans(compared, SIZE)[0])
            uses = torch.bincount(index, minlength=SIZE).clamp_min(1)[:, None]
            table.copy_(torch.zeros(SIZE, case.dim).index_add_(0, index, rest) / uses)
            codes = F.normalize(table, dim=-1) if case.by_direction else table
            rest = rest - table[nearest_code(compared, codes)]
    case.put(model, stacks)


def crowd(table: Tensor) -> None:
    """Puts all codes into one place."""
    noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    table.copy_(table[:1] + 0.02 * table.std(0) * noise)


def banish(table: Tensor) -> None:
    """Leaves two codes where they are, and puts all others far away."""
    table[2:] = 0.1 * table[2:] + 100 * table.std() * F.one_hot(torch.tensor(0), table.shape[1])


ILL = {"crowded": crowd, "banished": banish}


def diagnoses(case: Case) -> dict[str, dict[str, Diagnosis]]:
    """Those of the healthy model, and of the model after something was done to the first codebook of each stack."""
    x = case.inputs()
    model = trained(case, x)
    place(case, model, x)
    codes = [tables[0].detach().clone() for tables in case.tables(model)]
    found = {}
    for how, change in {"healthy": None, **ILL}.items():
        with torch.no_grad():
            stacks = case.tables(model)
            for tables, own in zip(stacks, codes):
                tables[0].copy_(own)
                if change:
                    change(tables[0])
            case.put(model, stacks)
        found[how] = diagnose_model(loaded(case, model), case.batch(x), progress=False, **case.options)
    return found


def loaded(case: Case, model: Any) -> nn.Module:
    """The model, saved to a folder and loaded from there, as its library does."""
    with tempfile.TemporaryDirectory() as folder:
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(folder)
            return type(model).from_pretrained(folder)
        torch.save(model.state_dict(), f"{folder}/model.pt")
        again = case.build().eval()
        again.load_state_dict(torch.load(f"{folder}/model.pt", weights_only=True))
        return again


# ---------------------------------------------------------------- rows


def rows_of(case: Case | Peer) -> list[dict]:
    """The rows of the table that tell of a model, one for each fault."""
    if isinstance(case, Peer):
        found, right, gradient = peers.diagnoses(case), case.right, ""
        said = {"library": PEER, "class": case.name, "options": case.said, "batch": "", "refused": case.refused}
    else:
        found, right = diagnoses(case), RIGHT
        doubts = [doubt for one in found["healthy"].values() for doubt in one.doubts]
        gradient = "no" if any(doubt.startswith("no gradient") for doubt in doubts) else "yes"
        said = {"library": case.package, "class": case.name, "options": "", "batch": case.shown, "refused": ""}
    said |= {"version": installed(said["library"]), "gradient": gradient}
    heard = [(how, peers.verdict(one), expected) for (how, one), expected in zip(found.items(), right, strict=True)]
    return [
        said | {"fault": how, "verdict": verdict, "expected": expected, "right": verdict == expected}
        for how, verdict, expected in heard
    ]


def key_of(case: Case | Peer) -> tuple[str, str, str]:
    """Library, class and options."""
    return (PEER, case.name, case.said) if isinstance(case, Peer) else (case.package, case.name, "")


def stored() -> dict[tuple[str, str, str], list[dict]]:
    """The rows that are in the table now, by library, class and options."""
    table = verdicts_on_libraries() if LIBRARIES.exists() else pd.DataFrame(columns=COLUMNS)
    return {key: rows.to_dict("records") for key, rows in table.groupby(COLUMNS[:1] + COLUMNS[2:4], sort=False)}


# ---------------------------------------------------------------- the page


def section(found: dict[tuple[str, str, str], list[dict]]) -> str:
    """What stands between the two marks of the page."""
    others = [rows for (library, *_), rows in found.items() if library != PEER]
    own = [rows for (library, *_), rows in found.items() if library == PEER]
    faults = list(dict.fromkeys(tuple(row["fault"] for row in rows) for rows in own))
    parts = ["".join(_table(["library", "version", "class", "a batch", *RIGHT_HEAD], map(_cells, others)))]
    for some in faults:
        rows = [rows for rows in own if tuple(row["fault"] for row in rows) == some]
        parts.append(f"### {PEER} {rows[0][0]['version']}: {TITLES[some[1]]}\n\n")
        parts.append("".join(_table(["class and options", *some], map(_peer_cells, rows))))
    return "\n" + "\n".join(parts) + "\n"


RIGHT_HEAD = ["healthy", *ILL, "a gradient passes"]
TITLES = {"crowded": "codebooks", "cornered": "fixed grids"}


def _table(head: list[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |\n{'|---' * len(head)}|\n"
    for cells in rows:
        yield f"| {' | '.join(cells)} |\n"


def _cells(rows: list[dict]) -> list[str]:
    first = rows[0]
    verdicts = [row["verdict"] for row in rows]
    return [first["library"], first["version"], f"`{first['class']}`", first["batch"], *verdicts, first["gradient"]]


def _peer_cells(rows: list[dict]) -> list[str]:
    first = rows[0]
    described = " (described: the first level)" if first["refused"] else ""
    return [f"`{first['class']}({first['options']})`{described}", *(row["verdict"] for row in rows)]


def main() -> None:
    wanted = [case for case in [*CASES, *PEERS] if not sys.argv[1:] or {*key_of(case)} & {*sys.argv[1:]}]
    made = {key_of(case): rows_of(case) for case in wanted if installed(key_of(case)[0])}
    found = stored() | made
    found = {key: found[key] for key in map(key_of, [*CASES, *PEERS]) if key in found}
    with replaced(LIBRARIES) as beside:
        table = pd.DataFrame([row for rows in found.values() for row in rows], columns=COLUMNS)
        table.to_csv(beside, index=False, lineterminator="\n")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{section(stored())}{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
