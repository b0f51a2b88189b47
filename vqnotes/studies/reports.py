"""Other people's verdicts: public reports re-created as small models, what their threads found, what `diagnose` says.

python -m vqnotes.studies.reports   makes them, diagnoses them and writes the table into the folder you are in; what a
                                    table that is there already holds is not made again

What would point where a thread did was written down before the first model was diagnosed, and stays as it is: where
the verdict points elsewhere, the table says so. The threads are cited as owner/repository#number, of GitHub.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from vqnotes._files import replaced
from vqnotes._printing import say
from vqnotes.diagnosis import Diagnosis, diagnose, diagnose_model, diagnose_tokens
from vqnotes.studies import recreated

__all__ = [
    "REPORTS",
    "Expected",
    "Report",
    "as_markdown",
    "diagnosed",
    "diagnoses_of",
    "examined",
    "reports_diagnosed",
    "summary",
]

TABLE = Path(__file__).with_name("reports.csv")
SEEDS = range(9000, 9008)


@dataclass(frozen=True)
class Expected:
    """What of a diagnosis would point where the thread did; all that is given must be there.

    verdicts: one of these. part: the codebook whose verdict that is, "" for the whole. doubt: words of one of the
    doubts, which stand first in a report. evidence: the name of a figure that is over twice its reference.
    """

    verdicts: tuple[str, ...] = ()
    part: str = ""
    doubt: str = ""
    evidence: str = ""

    def met(self, found: dict[str, Diagnosis]) -> bool:
        """Whether the diagnoses (as from `diagnoses_of`) say so."""
        asked = found[self.part or next(iter(found))]
        if self.verdicts and asked.verdict not in self.verdicts:
            return False
        if self.doubt and not any(self.doubt in one for one in asked.doubts):
            return False
        figure = asked.evidence.get(self.evidence)
        return not self.evidence or (figure is not None and figure.value > 2 * figure.reference)

    def __str__(self) -> str:
        texts = [" or ".join(self.verdicts) + (f" of {self.part}" if self.part else "")]
        texts += [self.doubt and f"first: {self.doubt}", self.evidence and f"over twice as many {self.evidence}"]
        return "; ".join(text for text in texts if text)


@dataclass(frozen=True)
class Report:
    """A report, what its thread found, and how a small model comes by the same. source: owner/repository#number.

    make: from a seed, what the user would bring. door: the function that takes it.
    """

    name: str
    source: str
    symptom: str
    found: str
    expected: Expected
    make: Callable[[int], dict]
    door: Callable = diagnose_model

    @property
    def address(self) -> str:
        """Where the thread is."""
        repository, number = self.source.split("#")
        return f"https://github.com/{repository}/issues/{number}"


TOKENS, EMBEDDINGS = Expected(("token collapse",)), ("embedding collapse", "token and embedding collapse")
HEALTHY = Expected(("healthy",))
REPORTS = [
    Report(
        "sums without counts",
        "lucidrains/vector-quantize-pytorch#66",
        "after a k-means start, all codes are used in the first step and a few from the second on",
        "the moving sums began as the centroids, not as centroid times count; mended",
        TOKENS,
        recreated.forgotten_counts,
    ),
    Report(
        "counts from nothing",
        "nadavbh12/VQ-VAE#11",
        "with moving averages the loss does not converge, without them it does",
        "counts begin at 0, so that codes nobody chose are multiplied by a large number: begin at 1; not tried",
        TOKENS,
        recreated.counts_from_nothing,
    ),
    Report(
        "expiry undone",
        "facebookresearch/encodec#61",
        "expiry of dead codes changes nothing",
        "what expiry writes is overwritten by the moving averages in the same step; open (also WavTokenizer#89)",
        TOKENS,
        recreated.expiry_undone,
    ),
    Report(
        "threshold in hits",
        "jishengpeng/WavTokenizer#82",
        "1,200 latents a step, 4,096 codes, and codes below 2 hits a step start anew",
        "the asker works out that most codes would be reset at every step; no answer (expiry is undone there too)",
        TOKENS,
        recreated.threshold_in_hits,
    ),
    Report(
        "losses after the straight-through",
        "andylolu2/jax-vqvae-gpt#2",
        "the loss that should move the codes does not",
        "the losses were taken of the straight-through value, whose gradient goes to the latents; mended",
        TOKENS,
        recreated.loss_after_estimate,
    ),
    Report(
        "no gradient copied",
        "yangdongchao/RSTnet#2",
        "everything is coded by one and the same index",
        "the straight-through step was forgotten, so the reconstruction did not reach the encoder; mended",
        Expected(doubt="no gradient passes"),
        recreated.no_gradient_copied,
    ),
    Report(
        "beta on the codebook loss",
        "karpathy/deep-vector-quantization#2",
        "beta weighs the codebook loss instead of the commitment",
        "mended, and run again: it converges to about the same result",
        HEALTHY,
        recreated.beta_on_the_codes,
    ),
    Report(
        "reconstruction averaged",
        "EdoardoBotta/RQ-VAE-Recommender#65",
        "usage of a residual codebook of items goes towards 0",
        "the reconstruction error was averaged over features, the quantiser's loss summed over dimensions: sum both, "
        "and train for longer; mended",
        Expected(EMBEDDINGS),
        recreated.averaged_reconstruction,
    ),
    Report(
        "commitment loss rises",
        "lucidrains/meshgpt-pytorch#32",
        "the commitment loss grows with every epoch",
        "nothing to worry about while results are good: with moving averages it may even be left out",
        HEALTHY,
        recreated.free_commitment,
    ),
    Report(
        "learning rate",
        "AntixK/PyTorch-VAE#71",
        "the loss is unreasonably high and swings, training does not converge",
        "a learning rate of 0.005 is too high, 0.001 helps: several confirm",
        Expected(("token collapse", *EMBEDDINGS)),
        recreated.learning_too_fast,
    ),
    Report(
        "normalised output",
        "EdoardoBotta/RQ-VAE-Recommender#32",
        "the decoder ends with a normalisation, though inputs may not be normalised",
        "the reconstruction is then unlikely to work: leave that layer out",
        Expected(EMBEDDINGS),
        recreated.normalised_output,
    ),
    Report(
        "normal start",
        "lucidrains/vector-quantize-pytorch#19",
        "index collapse",
        "codes started from N(0, 1) where the paper's code has a uniform start; changed",
        TOKENS,
        recreated.normal_start,
    ),
    Report(
        "uniform start",
        "TencentARC/VQFR#10",
        "usage is low at the beginning of training",
        "place the codes anew by k-means on the latents",
        TOKENS,
        recreated.uniform_start,
    ),
    Report(
        "k-means on the first batch",
        "HonghuiBao2000/LETTER#2",
        "does the first batch stand for all items?",
        "the authors start from all items instead",
        TOKENS,
        recreated.first_batch,
    ),
    Report(
        "few kinds of data",
        "microsoft/unilm#1724",
        "pictures of one machine alone leave about 5,000 of 8,192 codes unused",
        "no answer; the asker adds pictures of others (in unilm#936 the authors have not tried small sets)",
        HEALTHY,
        recreated.few_kinds_of_data,
    ),
    Report(
        "rotation without expiry",
        "lucidrains/vector-quantize-pytorch#205",
        "with the rotation trick alone 40 to 90 % of the codes are dead",
        "close to 0 % with expiry of dead codes, which is kept",
        TOKENS,
        recreated.rotation_without_expiry,
    ),
    Report(
        "level never trained",
        "kaiidams/soundstream-pytorch#7",
        "the last of the residual codebooks is never used in training",
        "the number of levels was drawn from a range that leaves out its end",
        Expected(("token collapse",), part="quantizer.stages.2"),
        recreated.untrained_level,
    ),
    Report(
        "LFQ without a norm",
        "lucidrains/vector-quantize-pytorch#89",
        "lookup-free quantisation uses few codes",
        "it needs a normalisation before it (and the entropy loss was mended)",
        TOKENS,
        recreated.lfq_without_a_norm,
    ),
    Report(
        "padding counted",
        "lucidrains/vector-quantize-pytorch#62",
        "sequences are padded, and padding moves the codebook too: does that harm?",
        "a question; the library can be given a mask",
        TOKENS,
        recreated.padding_counted,
        diagnose,
    ),
    Report(
        "indices in half precision",
        "lucidrains/vector-quantize-pytorch#114",
        "an FSQ uses half of its codes in bfloat16, all of them in float32",
        "the index is computed in bfloat16, which has no odd numbers above 256; computed in float32 since",
        Expected(doubt="own choice is farther"),
        recreated.indices_in_half_precision,
        diagnose,
    ),
    Report(
        "distances that drown",
        "pytorch/pytorch#42479",
        "cdist returns 0 for points that are 109 apart",
        "the route by a matrix product loses the digits of points far from the origin",
        Expected(doubt="hardly vary beside their size"),
        recreated.drowned_distances,
        diagnose,
    ),
    Report(
        "perplexity of a batch",
        "bshall/VectorQuantizedVAE#3",
        "perplexity never exceeds 40 to 50, of 512 codes",
        "perplexity depends on the batch size: count the codes over an epoch",
        Expected(("cannot tell",)),
        recreated.batch_of_ids,
        diagnose_tokens,
    ),
    Report(
        "part of a large codebook",
        "baaivision/Emu3.5#25",
        "29,933 of 131,072 codes do not occur",
        "the authors find 77 % in use acceptable for so many",
        Expected(("part of the codes in use",)),
        recreated.ids_of_a_large_codebook,
        diagnose_tokens,
    ),
    Report(
        "items that collide",
        "EdoardoBotta/RQ-VAE-Recommender#46",
        "several items have the same tuple of ids",
        "another reader met it too: clusters of equal size (balanced k-means) helped, or fewer codes",
        Expected(evidence="items that share a tuple"),
        recreated.colliding_items,
        diagnose_tokens,
    ),
]


# ---------------------------------------------------------------- diagnoses


def diagnoses_of(report: Report, seed: int) -> dict[str, Diagnosis]:
    """Makes the model of this seed and diagnoses it; the whole comes first, as from `diagnose_model`."""
    found: Any = report.door(**report.make(seed))
    if isinstance(found, dict):
        return found
    return {"": getattr(found, "whole", found)}


def examined(report: Report, seeds: Iterable[int]) -> list[dict]:
    """One dict a seed: verdict, at fault, doubt, advice, used, effect, points.

    at fault: how many of several codebooks have a token collapse, each alone; None if there is one.
    doubt, advice: the first, or "". used, effect: how many codes are in use, and in effect; None if that is not said.
    points: whether the diagnosis is as `report.expected`.
    """
    rows = []
    for seed in seeds:
        found = diagnoses_of(report, seed)
        whole = found[report.expected.part or next(iter(found))]
        alone = [one.verdict == "token collapse" for one in list(found.values())[1:]]
        row = {
            "report": report.name,
            "seed": seed,
            "verdict": whole.verdict,
            "at fault": sum(alone) if alone else None,
        }
        row |= {"doubt": next(iter(whole.doubts), ""), "advice": next((one.remedy for one in whole.advice), "")}
        for name, figure in {"used": "codes in use", "effect": "codes in effect"}.items():
            evidence = whole.evidence.get(figure)
            row[name] = None if evidence is None else evidence.value
        rows.append(row | {"points": report.expected.met(found)})
    return rows


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Of a table with one row a report and seed, one row a report: its thread beside the diagnoses.

    Columns: report, source, found (by the thread), expected, verdicts (each with its number of seeds), doubt and
    advice (the most frequent first ones), used and at fault (means over seeds), seeds, and points: in how many of
    them the diagnosis points where the thread did.
    """
    rows = []
    for report in REPORTS:
        part = table[table["report"] == report.name]
        if not len(part):
            continue
        counts = part["verdict"].value_counts()
        verdicts = ", ".join(f"{verdict} {count}" for verdict, count in counts.items())
        said = {name: part[name].fillna("").mode().iloc[0] for name in ("doubt", "advice")}
        row = {"report": report.name, "source": report.source, "found": report.found}
        row |= {"expected": str(report.expected), "verdicts": verdicts} | said
        row |= {name: part[name].mean() for name in ("used", "at fault")}
        rows.append(row | {"seeds": len(part), "points": int(part["points"].sum())})
    return pd.DataFrame(rows)


def diagnosed(seeds: Sequence[int], reports: Sequence[Report] = REPORTS) -> pd.DataFrame:
    """Makes the models of these reports anew, one a seed, and returns their `summary`."""
    return summary(pd.DataFrame([row for report in reports for row in examined(report, seeds)]))


def reports_diagnosed() -> pd.DataFrame:
    """The `summary` of the table that comes with the module."""
    return summary(pd.read_csv(TABLE))


def as_markdown(table: pd.DataFrame) -> str:
    """A `summary` as the table of docs/reports.md."""
    lines = ["| report | what is seen | what the thread found | verdicts | points there |", "|---|---|---|---|---|"]
    known = {report.name: report for report in REPORTS}
    for row in table.to_dict("records"):
        one = known[row["report"]]
        first = f"; first: {one.expected.doubt}" if row["points"] and one.expected.doubt else ""
        link, count = f"[{one.source}]({one.address})", f"{row['points']} of {row['seeds']}"
        lines.append(f"| {one.name}: {link} | {one.symptom} | {one.found} | {row['verdicts']}{first} | {count} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vqnotes.studies.reports", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TABLE.name, help="the table (default: %(default)s, here)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame(columns=["report"])
    for report in REPORTS:
        if (table["report"] == report.name).any():
            continue
        rows = pd.DataFrame(examined(report, SEEDS))
        table = pd.concat([table, rows]) if len(table) else rows
        with replaced(options.out) as beside:
            table.to_csv(beside, index=False, float_format="%.5g")
    say(as_markdown(summary(table)))


if __name__ == "__main__":
    main()
