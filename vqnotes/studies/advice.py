"""What is the advice of `diagnose` worth? Models with a verdict, and what becomes of them where it is followed.

python -m vqnotes.studies.advice   follows it and writes the table into the folder you are in; what a table that is
                                   there already holds is not done again
make advice                        does so, and puts it where `models_advised` reads it

Each case makes models that should get a verdict, and follows all that may help them, one way at a time: what
`diagnosis.advice` advises, and what was thought of and is not advised. Beside it stands a control that goes on as
before. Advice to train anew: the same seed and data, as many steps, only this is changed; the control is the model as
it was. Advice for a trained model: its decoder trains on after it, and that of the control as long without it. "Train
longer" alone has more steps than its control, since that is what it says.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from vqnotes import data, models, training
from vqnotes._printing import say
from vqnotes.diagnosis import advice, diagnose_model
from vqnotes.diagnosis.advice import Advice
from vqnotes.diagnosis.observed import Kind
from vqnotes.diagnosis.report import VERDICTS
from vqnotes.metrics import reconstruction_error
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies.codes import SimVQ
from vqnotes.remedies.replacement import CodeExpiry, RandomRestart
from vqnotes.remedies.residual import ResidualVQ
from vqnotes.remedies.scalar import FSQ, LFQ
from vqnotes.studies import sickened
from vqnotes.studies.parts import completed, processes

__all__ = ["CASES", "SEEDS", "WAYS", "Case", "Recipe", "Way", "examine", "made", "models_advised", "outcomes"]

TABLE = Path(__file__).with_name("advice.csv")
SEEDS, STEPS, DECODER_STEPS = range(9000, 9008), 300, 150
CODES, DIM = 64, 8
VECTORS, PICTURES = 2400, 100  # that a verdict rests on, about: with so few codes no more are needed


@dataclass(frozen=True)
class Recipe:
    """How a model is made and trained: quantizer(*size, **options); warmup is a share of the steps."""

    quantizer: Callable = VectorQuantizer
    size: tuple = (CODES, DIM)
    options: dict = field(default_factory=dict)
    family: str = "modes"
    width: int = 64
    patch: int = 4
    init: str | None = "kmeans"
    warmup: float = 0.5
    steps: int = STEPS

    def but(self, **changes: Any) -> "Recipe":
        """The same with these changes; `options` are added to those there are."""
        changes["options"] = self.options | changes.get("options", {})
        return replace(self, **changes)


@dataclass(frozen=True)
class Case:
    """Models that should get the verdict: their kind, how they are made, and the ways that may help, by name.

    Those that get another verdict count for that one, if any case of it has the same way.
    """

    kind: Kind
    verdict: str
    recipe: Recipe
    ways: tuple[str, ...]


@dataclass(frozen=True)
class Way:
    """How a piece of advice is followed: by training anew after these changes of the recipe, each on its own, and
    keeping the model with the smallest error. Without changes: by new codes for the model as it is.
    """

    advice: Advice
    changes: tuple[Callable[[Recipe], Recipe], ...] = ()


def _more_codes(recipe: Recipe) -> Recipe:
    """Sixteen times as many: in a grid by twice the levels in each of its directions, or by four bits."""
    if recipe.quantizer is FSQ:
        return recipe.but(options={"levels": tuple(4 * levels for levels in recipe.options["levels"])})
    if recipe.quantizer is LFQ:
        return recipe.but(size=(recipe.size[0] + 4,))
    size, *others = recipe.size
    return recipe.but(size=(tuple(4 * one for one in size) if recipe.quantizer is ResidualVQ else 16 * size, *others))


def _expiring(recipe: Recipe) -> Recipe:
    quick = {"memory": 0.9}  # runs of a few hundred steps cannot wait for an average over a hundred
    if recipe.quantizer is ResidualVQ:
        return recipe.but(options=quick | {"kind": CodeExpiry})
    return replace(recipe, quantizer=CodeExpiry, options=_of_codebook(recipe) | quick)


def _of_codebook(recipe: Recipe) -> dict:
    """Those of its options that any codebook has."""
    return {name: value for name, value in recipe.options.items() if name in ("beta", "update", "decay")}


def _second_stage(recipe: Recipe) -> Recipe:
    size, dim = recipe.size
    return replace(recipe, quantizer=ResidualVQ, size=((size, CODES), dim), options=_of_codebook(recipe))


def _other_codebook(kind: Callable, size: tuple, init: str | None, **options: Any) -> Callable[[Recipe], Recipe]:
    warmup = 0.5 if init == "kmeans" else 0.0
    return lambda recipe: replace(recipe, quantizer=kind, size=size, options=options, init=init, warmup=warmup)


def _way(one: Advice, *changes: Callable[[Recipe], Recipe], **but: Any) -> Way:
    return Way(one, (*changes, *([lambda recipe: recipe.but(**but)] if but else [])))


def _levels(*levels: int) -> Callable[[Recipe], Recipe]:
    return lambda recipe: recipe.but(options={"levels": levels})


WAYS = {
    "warm-up, k-means": _way(advice.WARM_UP, init="kmeans", warmup=0.5),
    "expiry": _way(advice.RESTART, _expiring),
    "averaged expiry": _way(advice.STORM, _expiring),
    "k-means, decoder": _way(advice.REPAIR),
    "k-means each, decoder": _way(advice.REPAIR_EACH),
    "SimVQ": _way(advice.SIMVQ, _other_codebook(SimVQ, (CODES, DIM), None)),
    "FSQ": _way(advice.GRID, _other_codebook(FSQ, (), None, levels=(4, 4, 4))),
    "codebook": _way(advice.CODEBOOK, _other_codebook(VectorQuantizer, (CODES, DIM), "kmeans")),
    "four times the steps": _way(advice.STEPS, lambda recipe: recipe.but(steps=4 * recipe.steps)),
    "another shape": _way(advice.SHAPE, _levels(8, 8), _levels(3, 3, 3, 3)),
    "warm-up": _way(advice.WARM_UP_GRID, warmup=0.5),
    "softer entropy": _way(advice.SOFTER, options={"inverse_temperature": 1.0}),
    "more entropy": _way(advice.ENTROPY, options={"entropy_weight": 1.0}),
    "more commitment": _way(advice.MORE_BETA, options={"beta": 1.0}),
    "wider encoder": _way(advice.WIDER, width=64),
    "wider encoder, warm-up, k-means": _way(advice.WIDER_PLACED, width=64, init="kmeans", warmup=0.5),
    "smaller beta": _way(advice.LESS_BETA, options={"beta": 0.025}),
    "longer warm-up": _way(advice.LONGER, init="kmeans", warmup=0.75),
    "8 dimensions": _way(advice.MORE_DIMENSIONS, lambda recipe: recipe.but(size=(recipe.size[0], DIM))),
    "more directions": _way(advice.MORE_DIRECTIONS, _levels(4, 4, 4), _levels(3, 3, 3, 3)),
    "more codes": _way(advice.MORE_CODES, _more_codes),
    "second stage": _way(advice.SECOND_STAGE, _second_stage),
    "more in each level": _way(advice.MORE_IN_EACH, _more_codes),
    "finer levels": _way(advice.FINER_LEVELS, _more_codes),
    "smaller patches": _way(advice.MORE_LATENTS_EACH, patch=2),
}

EMA = {"update": "ema"}
PLAIN = {
    Kind.LEARNT: Recipe(),
    Kind.EMA: Recipe(options=EMA),
    Kind.COMPUTED: Recipe(SimVQ),
    Kind.GRID: Recipe(FSQ, (), {"levels": (4, 4, 4)}, init=None, warmup=0),
    Kind.STACK: Recipe(ResidualVQ, ((8, 8), DIM)),
}
BITS = Recipe(LFQ, (6,), init=None, warmup=0)
COLLAPSED = {"init": "uniform", "warmup": 0}
PLACED = {
    Kind.LEARNT: ("warm-up, k-means", "expiry", "k-means, decoder", "SimVQ", "FSQ"),
    Kind.EMA: ("warm-up, k-means", "expiry", "k-means, decoder", "SimVQ", "FSQ"),
    Kind.COMPUTED: ("warm-up, k-means", "k-means, decoder", "FSQ"),
    Kind.GRID: ("four times the steps", "another shape", "warm-up", "codebook"),
    Kind.STACK: ("warm-up, k-means", "expiry", "k-means each, decoder"),
}
OF_BITS = ("four times the steps", "softer entropy", "more entropy", "more commitment", "warm-up", "codebook")
FINER = dict.fromkeys(PLAIN, ("more codes", "second stage")) | {
    Kind.GRID: ("finer levels", "codebook"),
    Kind.STACK: ("more in each level",),
}
FEW: dict[Kind, dict[str, Any]] = {
    Kind.LEARNT: {"size": (3, DIM)},
    Kind.EMA: {"size": (3, DIM)},
    Kind.COMPUTED: {"size": (3, DIM)},
    Kind.GRID: {"options": {"levels": (3,)}},
    Kind.STACK: {"size": ((2, 2), DIM)},
}


def _cases() -> dict[str, Case]:
    found = {}

    def add(kind: Kind, verdict: str, what: str, recipe: Recipe, ways: Sequence[str]) -> None:
        found[f"{kind.value}, {what}, {recipe.family}"] = Case(kind, verdict, recipe, tuple(ways))

    for kind, plain in PLAIN.items():
        grid = kind is Kind.GRID
        tokens = plain if grid else plain.but(**COLLAPSED)
        encoder = ("wider encoder", *(() if grid else ("smaller beta",)))
        for family, width in (("modes", 2), ("photographs", 1)):
            narrow: dict[str, Any] = {"family": family, "width": width}
            add(kind, "token collapse", "misplaced", tokens.but(family=family), PLACED[kind])
            add(kind, "embedding collapse", "narrow", plain.but(**narrow), encoder)
            if not grid:
                ways = ("wider encoder, warm-up, k-means", *encoder, *PLACED[kind])
                add(kind, "token and embedding collapse", "narrow, misplaced", tokens.but(**narrow), ways)
            few = plain.but(family=family, **FEW[kind])
            add(kind, "rate limit", "few codes", few, (*FINER[kind], *(("smaller patches",) if width == 1 else ())))
        for family in ("modes", "digits"):
            flat: dict[str, Any] = {"options": {"levels": (8, 8)}} if grid else {"size": (plain.size[0], 2)}
            ways = ("more directions",) if grid else ("8 dimensions", "longer warm-up", "smaller beta")
            add(kind, "embedding collapse", "2 dimensions", plain.but(family=family, **flat), ways)
    held = Recipe(options={"beta": 30.0})
    add(Kind.LEARNT, "embedding collapse", "heavy commitment", held, ("smaller beta",))
    for family in ("modes", "photographs"):
        simvq = Recipe(SimVQ, family=family, init=None, warmup=0)
        add(Kind.COMPUTED, "token collapse", "as it comes", simvq, PLACED[Kind.COMPUTED])
        add(Kind.GRID, "token collapse", "bits", BITS.but(family=family), OF_BITS)
        ways = ("wider encoder", "four times the steps", "codebook")
        coarse = BITS.but(family=family, width=2 if family == "modes" else 1)
        add(Kind.GRID, "token and embedding collapse", "narrow, bits", coarse, ways)
    for kind, plain in ((Kind.LEARNT, PLAIN[Kind.LEARNT]), (Kind.EMA, PLAIN[Kind.EMA].but(options={"decay": 0.9}))):
        storm = plain.but(quantizer=RandomRestart, options={"threshold": 2.0, "memory": 0.0}, **COLLAPSED)
        add(kind, "token collapse", "storm", storm, ("averaged expiry", "k-means, decoder"))
        slow = plain.but(size=(CODES, 32), family="slow", warmup=0.1, steps=480)
        add(kind, "dimensional collapse", "codes too early", slow, ("longer warm-up", "smaller beta"))
    return found


CASES = _cases()


# ---------------------------------------------------------------- followed


def _inputs(family: str, seed: int) -> data.LabelledData:
    """Those of `sickened.inputs_of`, or of "slow": Gaussian numbers with variances from 1 to 0.001, (4800, 32)."""
    if family != "slow":
        return sickened.inputs_of(family, seed)
    x = torch.randn(4800, 32, generator=torch.Generator().manual_seed(seed))
    return data.LabelledData(x * torch.logspace(0, -1.5, 32), None)  # type: ignore[arg-type]


def _linear(quantizer: VectorQuantizer) -> models.VQAutoencoder:
    """A linear autoencoder with very small weights, which learns one direction after the other (notebook 06)."""
    encoder, decoder = (nn.Linear(quantizer.dim, quantizer.dim, bias=False) for _ in range(2))
    for half in (encoder, decoder):
        nn.init.normal_(half.weight, std=1e-3)
    return models.VQAutoencoder(encoder, quantizer, decoder)


def made(recipe: Recipe, seeds: Sequence[int]) -> list[tuple]:
    """One model a seed with its data, trained: [(data, model)]. Raises ValueError for an unknown family."""
    sets, slow = [_inputs(recipe.family, seed) for seed in seeds], recipe.family == "slow"

    def build(seed: int) -> models.VQAutoencoder:
        quantizer = recipe.quantizer(*recipe.size, **recipe.options)
        if slow:
            return _linear(quantizer)
        if sets[0].x.ndim == 4:
            return models.image_autoencoder(3, quantizer, width=recipe.width, patch=recipe.patch)
        return models.mlp_autoencoder(sets[0].x.shape[1], quantizer, width=recipe.width)

    plan: dict[str, Any] = {"init": recipe.init, "warmup": int(recipe.warmup * recipe.steps), "steps": recipe.steps}
    plan |= sickened.pace(recipe.family) | ({"optimizer": torch.optim.SGD, "lr": 0.375} if slow else {})
    runs = training.fit_many(build, [one.x for one in sets], seeds=seeds, **plan)
    return [(one, model) for one, (model, _) in zip(sets, runs)]


def examine(seeds: Sequence[int], case: str) -> list[dict]:
    """Makes the models of a case and follows all its ways: one row for each way and seed.

    verdict and before: of the model as it is made, with its error relative to the variance of the inputs. control,
    control verdict: of what went on without the advice. after, after verdict: with it.
    Raises KeyError for an unknown case.
    """
    chosen, seeds, rows = CASES[case], list(seeds), []
    entered = made(chosen.recipe, seeds)
    before, decoded = _judged(entered), None
    for way in chosen.ways:
        changes, control = WAYS[way].changes, before
        if not changes:
            decoded = decoded or _judged(_decoders_trained_on(entered, chosen.recipe, None))
            after, control = _judged(_decoders_trained_on(entered, chosen.recipe, "kmeans")), decoded
        else:
            tried = [_judged(made(change(chosen.recipe), seeds)) for change in changes]
            after = [min(each, key=lambda one: one[1]) for each in zip(*tried)]
        for seed, *each in zip(seeds, before, control, after):
            (verdict, error), (beside, of_control), (new, now) = each
            row = {"verdict": verdict, "before": error, "control verdict": beside, "control": of_control}
            rows.append({"case": case, "way": way, "seed": seed} | row | {"after verdict": new, "after": now})
    return rows


def _judged(entered: list[tuple]) -> list[tuple[str, float]]:
    """Of each model its verdict, of the whole if it is a stack, and its error."""
    found = []
    for one, model in entered:
        some = slice(None, None, max(1, round(len(one.x) / (PICTURES if one.x.ndim == 4 else VECTORS))))
        heard = diagnose_model(model, one.x[some], labels=None if one.y is None else one.y[some])
        error = reconstruction_error(models.evaluate(model, one.x).reconstruction, one.x)
        found.append((next(iter(heard.values())).verdict, error))
    return found


def _decoders_trained_on(entered: list[tuple], recipe: Recipe, init: str | None) -> list[tuple]:
    return sickened.with_decoders_trained_on(entered, recipe.family, init, recipe.steps * DECODER_STEPS // STEPS)


# ---------------------------------------------------------------- the table, and what it says


def models_advised() -> pd.DataFrame:
    """The table that comes with the module: one row for each case, way and seed, see `examine`.

    Not all cases are done. The verdicts of its models are those of the rule at the time. Errors do not depend on it.
    """
    return pd.read_csv(TABLE)


def outcomes(table: pd.DataFrame | None = None) -> pd.DataFrame:
    """What following the advice does, by kind and verdict; within them, what helped most stands first.

    table: as `models_advised`, which it is if None. A model counts for the verdict that it got.
    Columns: kind, verdict, advice (its remedy); models: how many; error ratio: the median over models of the error
    after over that of the control; low, high: its bootstrap 95 % interval; cured: the share of the models that are
    healthy after; advised: whether `diagnose` advises it.
    """
    table = models_advised() if table is None else table
    wanted = {(case.kind.value, case.verdict, way) for case in CASES.values() for way in case.ways}
    table = table.assign(kind=table["case"].map({name: case.kind.value for name, case in CASES.items()}))
    rows = []
    for (kind, verdict, way), part in table.groupby(["kind", "verdict", "way"], sort=False):
        if (kind, verdict, way) not in wanted:
            continue
        ratio = (part["after"] / part["control"]).to_numpy()
        low, high = _interval(ratio)
        one = WAYS[way].advice
        rows.append(
            {
                "kind": kind,
                "verdict": verdict,
                "advice": one.remedy,
                "models": len(part),
                "error ratio": np.median(ratio),
                "low": low,
                "high": high,
                "cured": (part["after verdict"] == "healthy").mean(),
                "advised": one in advice.advice_for(verdict, kind=Kind(kind), busy=one == advice.STORM, needs=[]),
            }
        )
    found = pd.DataFrame(rows)
    for name, order in (("kind", [one.value for one in Kind]), ("verdict", list(VERDICTS))):
        found[name] = pd.Categorical(found[name], order)
    found = found.sort_values(["kind", "verdict", "error ratio"], ignore_index=True)
    return found.astype({"kind": str, "verdict": str})


def _interval(values: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """Bootstrap 95 % interval of the median."""
    random = np.random.default_rng(0)
    medians = np.median(random.choice(values, (draws, len(values))), axis=1)
    return tuple(np.quantile(medians, [0.025, 0.975]))


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """A table's rows in the order of the cases."""
    return table.sort_values("case", key=lambda names: names.map([*CASES].index), kind="stable", ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vqnotes.studies.advice", description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each (default: 2)")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="no case starts after so many seconds")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--out", type=Path, default=TABLE.name, help="the table (default: %(default)s, here)")
    options = parser.parse_args()
    known = set(pd.read_csv(options.out)["case"]) if options.out.exists() else set()
    todo = [(SEEDS, case) for case in CASES if options.only in case and case not in known]
    with processes(options.workers) as pool:
        table, left = completed(options.out, todo, examine, pool, options.workers, options.limit_s, in_order)
    if len(table):
        say(outcomes(table).round(3).to_string(index=False))
    if left:
        raise SystemExit(f"to be done: {len(left)} cases")


if __name__ == "__main__":
    main()
