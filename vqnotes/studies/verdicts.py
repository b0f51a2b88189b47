"""How often is `diagnose` right? Models made sick on purpose, each confirmed to be so, and the verdicts on them.

python -m vqnotes.studies.verdicts   trains them and writes the table into the folder you are in
make validation                     does so, and puts it where `models_made` reads it

What a model has follows from how it was made, and is confirmed by interventions that `diagnose` knows nothing of. Two
copies of the model train their decoder on, with the encoder held: one keeps its codes, the other has new ones, by
k-means on its own latents. If new codes help, the codebook was at fault. If the error stays far above that of as many
codes placed straight on the inputs, the encoder was.
"""

import argparse
import copy
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from vqnotes import data, models, training
from vqnotes._files import replaced
from vqnotes._printing import say
from vqnotes.diagnosis import rules
from vqnotes.diagnosis.measures import Measures, measure
from vqnotes.diagnosis.observed import observe
from vqnotes.diagnosis.report import VERDICTS
from vqnotes.kmeans import kmeans
from vqnotes.metrics import reconstruction_error
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import VectorQuantizer
from vqnotes.remedies.codes import SimVQ
from vqnotes.remedies.gradients import RotationTrick
from vqnotes.remedies.replacement import CodeExpiry, LeastRecentlyUsed
from vqnotes.studies import remedies as league
from vqnotes.studies import sweeps

__all__ = [
    "CASES",
    "LABELS",
    "SIZES",
    "Case",
    "confirmed",
    "decoders_trained_on",
    "examine",
    "floor",
    "inputs_of",
    "made",
    "models_made",
    "pace",
    "settings",
    "thresholds",
    "verdicts",
    "wide_view",
    "with_decoders_trained_on",
]

LABELS = VERDICTS[:-1]
TABLE = Path(__file__).with_name("verdicts.csv")
SEEDS = {"set": range(3), "judged": range(4000, 4003)}  # thresholds are set on one half and judged on the other
VECTORS, PICTURES = ("modes", "rings", "digits"), ("photographs", "wide view")
FIRST_GUESS = {"gap": 1.5, "excess": 0.03, "loss": 1.3, "dimensions": 0.4, "rate": 0.25}
STEPS, DECODER_STEPS, MOST_POINTS = 300, 150, 8192
MEASURES = [one.name for one in fields(Measures) if one.name not in ("counts", "codebooks")]


@dataclass(frozen=True)
class Case:
    """One way to make a model: what it then has, and what was done. halves: which of the two halves it belongs to."""

    label: str
    kind: Callable = VectorQuantizer
    options: dict = field(default_factory=dict)
    width: int = 64
    dim: int = 8
    init: str = "kmeans"
    warmup: float = 0.5
    halves: tuple = ("set", "judged")
    families: tuple = (*VECTORS, *PICTURES)


EMA, SET, JUDGED = {"update": "ema"}, ("set",), ("judged",)
CASES = {
    "plain": Case("healthy"),
    "EMA": Case("healthy", options=EMA, halves=SET),
    "expiry": Case("healthy", CodeExpiry, {"memory": 0.9}, halves=SET),
    "rotation trick": Case("healthy", RotationTrick, halves=JUDGED),
    "SimVQ": Case("healthy", SimVQ, halves=JUDGED),
    "16 dimensions": Case("healthy", LeastRecentlyUsed, {"patience": 100}, dim=16),
    "U(±1/K)": Case("token collapse", init="uniform", warmup=0),
    "N(0, 1)": Case("token collapse", init="normal", warmup=0, halves=SET),
    "k-means untrained, EMA": Case("token collapse", options=EMA, warmup=0),
    "U(±1/K), rotation": Case("token collapse", RotationTrick, init="uniform", warmup=0, halves=JUDGED),
    "U(±1/K) after warm-up": Case("token collapse", init="uniform", halves=JUDGED),
    "width 1": Case("embedding collapse", width=1),
    "width 2": Case("embedding collapse", width=2, families=VECTORS),
    "width 2, EMA": Case("embedding collapse", options=EMA, width=2, halves=JUDGED, families=VECTORS),
    "width 2, U(±1/K)": Case("token and embedding collapse", width=2, init="uniform", families=VECTORS),
    "width 1, N(0, 1)": Case("token and embedding collapse", width=1, init="normal"),
    "2 dimensions": Case("dimensional collapse", dim=2, families=("modes", "digits")),
    "2 dimensions, EMA": Case(
        "dimensional collapse", options=EMA, dim=2, halves=JUDGED, families=("modes", "digits")
    ),
    "few codes": Case("rate limit"),
    "few codes, EMA": Case("rate limit", options=EMA, halves=JUDGED),
}
SIZES: dict[
    str, dict[str, tuple[int, ...]]
] = {  # family: half: sizes of the codebook; and the few codes of a rate limit
    "modes": {"set": (64, 256), "judged": (64, 128), "few": (2, 4)},
    "rings": {"set": (64, 256), "judged": (64, 128), "few": (2, 4)},
    "digits": {"set": (64, 96), "judged": (64, 80), "few": (2, 4)},
    "photographs": {"set": (64, 256), "judged": (64, 128), "few": (2, 3)},
    "wide view": {"set": (128,), "judged": (64,), "few": (2,)},
}


def settings() -> list[dict]:
    """All that is trained: half, family, case, codes."""
    return [
        {"half": half, "family": family, "case": name, "codes": codes}
        for half in SEEDS
        for family, sizes in SIZES.items()
        for name, case in CASES.items()
        if half in case.halves and family in case.families
        for codes in sizes["few" if case.label == "rate limit" else half]
    ]


# ---------------------------------------------------------------- made and confirmed


def inputs_of(family: str, seed: int) -> data.LabelledData:
    """The data of a family; of photographs and "wide view" 300 crops of 32 x 32 pixels, without labels.

    Raises ValueError for an unknown family.
    """
    if family not in SIZES:
        raise ValueError(f"family must be one of {list(SIZES)}, got {family!r}")
    if family in PICTURES:
        crops = data.random_crops(data.photographs(), 300, 32, seed=seed)
        return data.LabelledData(crops, None)  # type: ignore[arg-type]  # all other data have labels
    if family == "digits":
        return data.digit_vectors()
    return league.modes(seed) if family == "modes" else data.rings(16, 300, 8, seed)


def made(
    seeds: Iterable[int], family: str, case: str, codes: int, steps: int = STEPS, callback: Callable | None = None
) -> list[tuple]:
    """One model a seed with its data: [(data, model)].

    codes: K. callback: as `fit_many` calls it. Raises as `examine`.
    """
    how, sets = CASES[case], [inputs_of(family, seed) for seed in seeds]

    def build(seed: int) -> models.VQAutoencoder:
        quantizer = how.kind(codes, how.dim, **how.options)
        if sets[0].x.ndim < 4:
            return models.mlp_autoencoder(sets[0].x.shape[1], quantizer, width=how.width)
        model = models.image_autoencoder(3, quantizer, width=how.width)
        if family == "wide view":
            model.encoder = wide_view(how.width, how.dim)
        return model

    plan = {"init": how.init, "warmup": int(how.warmup * steps), "steps": steps} | pace(family)
    runs = training.fit_many(build, [one.x for one in sets], seeds=seeds, callback=callback, **plan)
    return [(one, model) for one, (model, _) in zip(sets, runs)]


def wide_view(width: int, dim: int) -> nn.Sequential:
    """An encoder like those of large image models: a latent sees 5 x 5 patches of 4 x 4 pixels, not its own alone.

    Images (N, 3, H, W) to latents (N, H/4, W/4, dim).
    """
    layers = [models.ToPatches(4), models.MixNeighbours(48, width), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers, models.MixNeighbours(width, width), nn.LeakyReLU(0.1), nn.Linear(width, dim))


def pace(family: str) -> dict:
    """Batch size and learning rate, as options of `fit`."""
    pace = {"batch_size": 16, "lr": 3e-3} if family in PICTURES else {"batch_size": league.BATCH, "lr": league.LR}
    return pace | {"progress": False}


def with_decoders_trained_on(entered: list[tuple], family: str, init: str | None, steps: int) -> list[tuple]:
    """Copies whose decoder alone learnt for some more steps, after `init` of the codes: [(data, model)], as entered.

    entered: as from `made`.
    """
    copies = [copy.deepcopy(model) for _, model in entered]

    def hold(step: int, runs: list) -> None:
        for model in runs:
            model.encoder.requires_grad_(False)
            model.quantizer.requires_grad_(False).eval()

    xs, seeds = [one.x for one, _ in entered], range(len(entered))
    plan = {"init": init, "steps": steps, "callback": hold} | pace(family)
    runs = training.fit_many(lambda seed: copies[seed], xs, seeds=seeds, **plan)
    return [(one, model) for (one, _), (model, _) in zip(entered, runs)]


def decoders_trained_on(entered: list[tuple], family: str, init: str | None, steps: int) -> list[float]:
    """Their relative errors, one `metrics.reconstruction_error` a model. Arguments as `with_decoders_trained_on`."""
    trained = with_decoders_trained_on(entered, family, init, steps)
    return [reconstruction_error(models.evaluate(model, one.x).reconstruction, one.x) for one, model in trained]


def floor(x: Tensor, codes: int) -> float:
    """Relative error of as many codes placed by k-means on the inputs x (N, P), or on the patches of images."""
    points = models.ToPatches(4)(x).flatten(0, 2) if x.ndim == 4 else x
    points = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:MOST_POINTS]]
    centroids, _ = kmeans(points, codes)
    return ((points - centroids[nearest_code(points, centroids)]).square().mean() / x.var(correction=0)).item()


def examine(seeds: Iterable[int], half: str, family: str, case: str, codes: int, steps: int = STEPS) -> list[dict]:
    """Trains, intervenes and measures one setting: one dict a seed, a row of the table that `models_made` reads.

    Raises ValueError for an unknown family, KeyError for an unknown case.
    """
    entered, rows = made(seeds, family, case, codes, steps), []
    more = max(1, steps * DECODER_STEPS // STEPS)
    control, new = (decoders_trained_on(entered, family, init, more) for init in (None, "kmeans"))
    for (one, model), kept, renewed in zip(entered, control, new):
        latents = model.quantizer.prepare(model.encode(one.x).detach())
        f = measure(observe(latents, model.quantizer.codes(), labels=one.y, inputs=one.x, channel_axis=-1))
        outcome = {"same codes": kept, "new codes": renewed, "floor": floor(one.x, codes)}
        rows.append({"label": CASES[case].label} | outcome | {name: getattr(f, name) for name in MEASURES})
    return rows


# ---------------------------------------------------------------- the table, and what it says


def confirmed(table: pd.DataFrame) -> pd.Series:
    """Whether the interventions agree with the label: one truth value a row.

    cured: by how much new codes reduce the error, beside a copy that kept its codes and trained its decoder as long;
    over 1.1 they help, within 5 % they make no difference, and what lies between confirms nothing. left: the error
    with new codes over the floor. readable: labels read off the latents as well as off the inputs, above chance
    (photographs have no labels).
    """
    cured, left = table["same codes"] / table["new codes"], table["new codes"] / table["floor"]
    damage = table["same codes"] / table["floor"]
    chance = table["chance"]
    readable = (table["separability"] - chance) / (table["separability_inputs"] - chance)
    codes, same = cured >= 1.1, (cured > 0.95) & (cured < 1.05)
    low, high = ~(readable < 0.75), ~(readable > 0.9)
    holds = {
        "healthy": same & (damage < 1.4) & (table["floor"] < 0.25),
        "token collapse": codes & low,
        "embedding collapse": same & high & (left > 1.5),
        "token and embedding collapse": codes & high & (left > 1.5),
        "dimensional collapse": same & low & (left > 1.2),
        "rate limit": same & (damage < 1.2) & (table["floor"] >= 0.25),
    }
    return pd.Series(np.select([table["label"] == name for name in holds], list(holds.values()), False), table.index)


def verdicts(table: pd.DataFrame, thresholds: dict = rules.THRESHOLDS, labels: bool = False) -> pd.Series:
    """What `rules.decide` says of each row, with or without the measures that need labels."""
    known = table.reindex(columns=MEASURES)  # a table may be older than the newest measures
    known = known if labels else known.assign(separability=None, separability_inputs=None)
    rows = known.astype(object).where(known.notna(), None).to_dict("records")
    return pd.Series([rules.decide(Measures(**row), thresholds)[0] for row in rows], table.index)


def thresholds(table: pd.DataFrame) -> dict[str, float]:
    """Thresholds that are most often right on the table, one after the other, three times over.

    Of values that do equally well, from a quarter of FIRST_GUESS to four times it, the middle of the longest row.
    "gap" and "loss" are at least 1: below, the codebook or the encoder does better than what it is compared with.
    """
    chosen = rules.THRESHOLDS | FIRST_GUESS
    for name in [*FIRST_GUESS] * 3:
        values = FIRST_GUESS[name] * np.geomspace(0.25, 4, 49)
        values = values[values >= 1] if name in ("gap", "loss") else values
        right = np.array([(verdicts(table, chosen | {name: value}) == table["label"]).mean() for value in values])
        rows = np.split(values, np.flatnonzero(np.diff(right == right.max())) + 1)
        best = max((row for row in rows if row[0] in values[right == right.max()]), key=len)
        chosen[name] = float(f"{np.sqrt(best[0] * best[-1]):.2g}")
    return chosen


def models_made() -> pd.DataFrame:
    """The table that comes with the module: one row a model, its measures, and whether its label is `confirmed`."""
    table = pd.read_csv(TABLE)
    return table.assign(confirmed=confirmed(table))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vqnotes.studies.verdicts", description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each (default: 2)")
    parser.add_argument("--out", type=Path, default=TABLE.name, help="the table (default: %(default)s, here)")
    options = parser.parse_args()
    parts = []
    with ProcessPoolExecutor(options.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for half, seeds in SEEDS.items():
            todo = [setting for setting in settings() if setting["half"] == half]
            parts.append(sweeps.sweep(examine, todo, seeds=seeds, executor=pool))
            if parts[-1].attrs["failed"]:
                raise SystemExit("some runs failed: nothing was written")
    table = pd.concat(parts)
    with replaced(options.out) as beside:
        table.to_csv(beside, index=False, float_format="%.5g")
    table = table.assign(confirmed=confirmed(table)).query("confirmed")
    say(f"thresholds by the first half: {thresholds(table[table['half'] == 'set'])}")
    for half, part in table.groupby("half"):
        say(half, pd.crosstab(part["label"], verdicts(part)).to_string())


if __name__ == "__main__":
    main()
