"""Writes the table of docs/libraries.md: python tools/libraries_page.py

What `diagnose_model` says of small models of other libraries (library_models.py), healthy and ill ones.
All libraries must be installed, as `make libraries-test` does.
"""

import tempfile
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from library_models import CASES, DIM, HOP, SIDE, SIZE, Case
from notebook_tools import ROOT
from torch import Tensor, nn

from vqnotes.diagnosis import Diagnosis, diagnose_model
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code

PAGE = ROOT / "docs" / "libraries.md"
BEGIN, END = "<!-- made by tools/libraries_page.py -->\n", "<!-- end -->\n"
STEPS = 200


def installed(case: Case) -> str | None:
    """The version of its library; None if there is none."""
    try:
        return version(case.package)
    except PackageNotFoundError:
        return None


# ---------------------------------------------------------------- healthy and ill


def trained(case: Case, x: Tensor) -> nn.Module:
    """The model, after some steps of its encoder with a linear decoder in place of all behind it."""
    torch.manual_seed(0)
    model = case.build().eval()  # without dropout
    linear = nn.ConvTranspose1d(DIM, 1, HOP, HOP) if x.ndim == 3 else nn.ConvTranspose2d(DIM, 3, SIDE, SIDE)
    optimizer = torch.optim.Adam([*model.parameters(), *linear.parameters()], 1e-2)
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
    for tables in case.tables(model):
        rest = z
        for table in tables:
            compared = F.normalize(rest, dim=-1) if case.by_direction else rest
            index = nearest_code(compared, kmeans(compared, SIZE)[0])
            uses = torch.bincount(index, minlength=SIZE).clamp_min(1)[:, None]
            table.copy_(torch.zeros(SIZE, DIM).index_add_(0, index, rest) / uses)
            codes = F.normalize(table, dim=-1) if case.by_direction else table
            rest = rest - table[nearest_code(compared, codes)]


def crowd(table: Tensor) -> None:
    """Puts all codes into one place."""
    noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    table.copy_(table[:1] + 0.02 * table.std(0) * noise)


def banish(table: Tensor) -> None:
    """Leaves two codes where they are, and puts all others far away."""
    table[2:] = 0.1 * table[2:] + 100 * table.std() * F.one_hot(torch.tensor(0), DIM)


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
            for tables, own in zip(case.tables(model), codes):
                tables[0].copy_(own)
                if change:
                    change(tables[0])
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


def verdicts(found: dict[str, Diagnosis]) -> set[str]:
    """Those of a model's quantisers: of each the whole, and not its levels."""
    whole = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    return {str(found[name].verdict) for name in whole}


# ---------------------------------------------------------------- the page


def cells(found: dict[str, dict[str, Diagnosis]]) -> list[str]:
    """A row of the table, behind library, version and class."""
    doubts = [doubt for one in found["healthy"].values() for doubt in one.doubts]
    passes = "no" if any(doubt.startswith("no gradient") for doubt in doubts) else "yes"
    return [*(" and ".join(sorted(verdicts(one))) for one in found.values()), passes]


def row(case: Case) -> str:
    parts = [case.package, str(installed(case)), f"`{case.name}`", case.shown, *cells(diagnoses(case))]
    return f"| {' | '.join(parts)} |\n"


def stored() -> dict[tuple[str, str], list[str]]:
    """The rows that stand there now: {(library, class): cells}."""
    table = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip().splitlines()[2:]
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in table]
    return {(library, name.strip("`")): cells for library, _, name, _, *cells in rows}


def main() -> None:
    head = ["library", "version", "class", "a batch", "healthy", *ILL, "a gradient passes"]
    table = f"| {' | '.join(head)} |\n{'|---' * len(head)}|\n{''.join(map(row, CASES))}"
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
