"""How often is `diagnose` right? Models of many kinds, what interventions show them to have, and the verdicts.

python -m vqnotes.studies.verdicts --out parts    trains them, a file a setting; run again, it goes on where it was
make validation                                   does so, and puts the table where `models_made` reads it

`families` says what the models see, `cases` how they are made, `interventions` what is done to find out what they
have. None of that is known to `diagnose`, which is given a part of the inputs and no labels.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vqnotes import models
from vqnotes._printing import say
from vqnotes.diagnosis import rules
from vqnotes.diagnosis.feeding import BATCH
from vqnotes.diagnosis.inputs import Unused
from vqnotes.diagnosis.listening import Listener
from vqnotes.diagnosis.listening.records import Heard
from vqnotes.diagnosis.measures import Measures, measure
from vqnotes.studies import interventions, parts
from vqnotes.studies.cases import CASES, left_out, seeds_of, settings
from vqnotes.studies.families import BEDS
from vqnotes.studies.judging import helped

__all__ = ["examine", "from_cells", "models_made", "sets_of", "to_cells"]

TABLE = Path(__file__).with_name("verdicts.csv")
RATIOS, MORE_RATIOS = (1, 2, 4, 8, 16, 32, 64), (128, 256)  # latents a code that are shown; the latter of few
FEWEST_LATENTS, MOST_LATENTS, FEW_CODES = 64, 2**15, 64
HELD_OUT = 1024  # latents, at least, on which errors are measured, of 128 inputs or more
LEAST, PER_CODE = 4096, 64  # latents of the inputs that models train on
AT_ONCE = 8192  # latents that are heard in one pass


# ---------------------------------------------------------------- one setting


def sets_of(bed: str, codebook_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs to train on, and inputs to measure errors on, as a bed has them for codebooks of this size."""
    place = BEDS[bed]
    latents = min(MOST_LATENTS, max(LEAST, PER_CODE * codebook_size))
    count, fresh = -(-latents // place.places), max(128, -(-HELD_OUT // place.places))
    x = place.inputs(count + fresh, seed)
    fresh = min(fresh, len(x) // 4)
    return x[fresh:], x[:fresh]


def shown(bed: str, codebook_size: int, x: Tensor, seed: int) -> Tensor:
    """The inputs that `diagnose` is given: so many that latents are 1 to 64 a code, of few codes up to 256."""
    rng, places = np.random.default_rng(seed), BEDS[bed].places
    ratio = int(rng.choice(RATIOS if codebook_size > FEW_CODES else RATIOS + MORE_RATIOS))
    latents = min(MOST_LATENTS, max(FEWEST_LATENTS, ratio * codebook_size))
    rows = rng.permutation(len(x))[: max(1, -(-latents // places))]
    return x[torch.from_numpy(rows)]


@torch.no_grad()
def measures_heard(model: models.VQAutoencoder, x: Tensor, seed: int) -> Measures:
    """The measures that `diagnose_model` takes of a model that has one quantiser."""
    model.eval()
    listener = Listener(model)
    with listener.listening():
        heard = Heard(listener, None, seed)
        for batch in x.split(max(BATCH, AT_ONCE // model.encode(x[:1])[..., 0].numel())):
            heard.add(batch, None)
    (record,) = heard.records
    inputs: Any = heard.inputs  # there are some once a batch was heard
    return measure(record.observed(inputs, None, seed))


def examine(
    bed: str, case: str, codebook_size: int, seeds: Iterable[int] | None = None, share: float = 1.0
) -> list[dict]:
    """Makes the models of one setting, intervenes, measures, and decides: a row of the table for each seed.

    seeds: those of the setting unless given. share: of the steps that a study has.
    Raises KeyError for an unknown bed or case.
    """
    seeds, how = list(seeds_of(bed, case, codebook_size) if seeds is None else seeds), CASES[case]
    start = time.perf_counter()
    xs, held_out = zip(*(sets_of(bed, codebook_size, seed) for seed in seeds))
    kept = interventions.made(seeds, xs, bed, case, codebook_size, share=share)
    made_after = time.perf_counter() - start
    of_setting = (kept, seeds, xs, held_out, bed, case, codebook_size, share)
    errors = interventions.interventions(*of_setting)
    if helped(pd.DataFrame(errors).astype(float))["longer warm-up"].any():
        errors = [one | apart for one, apart in zip(errors, interventions.taken_apart(*of_setting))]
    done_after, rows = time.perf_counter() - start, []
    for seed, model, x, error in zip(seeds, kept, xs, errors):
        m = measures_heard(model, shown(bed, codebook_size, x, seed), seed % 2**16)
        verdict, reason = rules.decide(m)
        quantizer = getattr(model.quantizer, "inner", model.quantizer)
        made = {"family": BEDS[bed].family, "bed": bed, "case": case, "codebook_size": codebook_size}
        made |= {"seed": seed, "made": how.made, "quantiser": type(quantizer).__name__, "dim": model.quantizer.dim}
        rows.append(made | error | to_cells(m) | {"verdict": verdict, "reason": reason, "draws": m.draws})
    took = {"making": made_after, "intervening": done_after - made_after}
    took |= {"measuring": time.perf_counter() - start - done_after}
    spent = {f"s {name}": seconds / len(rows) for name, seconds in took.items()}
    return [row | spent for row in rows]


# ---------------------------------------------------------------- measures as cells of a table, and back


def to_cells(m: Measures) -> dict[str, Any]:
    """All fields of the measures that are no tensors, those that are no plain values as JSON."""
    return {name: _cell(value) for name, value in _values(m).items()}


def _values(m: Measures) -> dict[str, Any]:
    values = {one.name: getattr(m, one.name) for one in fields(m)}
    return {name: one for name, one in values.items() if name != "draws" and not isinstance(one, Tensor)}


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return json.dumps(value, default=_plain) if value != () else None


def _plain(value: Any) -> Any:
    if isinstance(value, Measures):
        return {name: one for name, one in _values(value).items() if one is not None and one != ()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        return None
    return asdict(value)


WHOLE = {one.name for one in fields(Measures) if one.type in (int, int | None)}
KNOWN = [one.name for one in fields(Measures)]


def from_cells(table: pd.DataFrame) -> list[Measures]:
    """The measures in the rows of a table, without tensors. Fields that it does not have keep their defaults."""
    known = table[[name for name in KNOWN if name in table]].astype(object)
    return [_measures({name: value for name, value in row.items() if value is not None}) for row in _rows(known)]


def _rows(known: pd.DataFrame) -> list[dict]:
    return known.where(known.notna(), None).to_dict("records")


def _measures(row: dict[str, Any]) -> Measures:
    found = {name: _value(name, value) for name, value in row.items()}
    return Measures(**found)


def _value(name: str, value: Any) -> Any:
    value = json.loads(value) if isinstance(value, str) and value[:1] in ("[", "{") else value
    if name == "codebooks":
        return tuple(_measures(one) for one in value)
    if name == "unused":
        return Unused(*value)
    if name in WHOLE:
        return int(value)
    return tuple(value) if isinstance(value, list) else value


# ---------------------------------------------------------------- the table


def models_made() -> pd.DataFrame:
    """The table that comes with the module: one row a model, the errors of the interventions and the measures."""
    return pd.read_csv(TABLE)


if __name__ == "__main__":
    if missing := left_out():
        say(*missing)
    parts.command("python -m vqnotes.studies.verdicts", __doc__.splitlines()[0], examine, settings())
