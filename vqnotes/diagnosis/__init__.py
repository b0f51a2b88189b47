"""The practitioner's door: which collapse is it, by which evidence, and what to try.

In the order of the work: `observed` takes in what people bring (`inputs` finds out which piece of them belongs to
which latent, `on_disk` reads files in parts), `measures` puts numbers beside references, `rules` makes a verdict of
them, `advice` knows what to try against it, `report` says all of it with the evidence, `drawing` and `tree` show it.
`conditions` holds figures beside thresholds, `showing` lays them out. `keeping` saves and loads a diagnosis, `pages`
makes a page of it, `comparing` sets two side by side. `tokens` does all of that for ids alone, by `ids` and
`estimates`. `model` listens to a whole model (`listening` has a file for each library), and `watch` does so during
training, in the loops of other libraries too (`callbacks`). `stability` and `perturbation` move latents and inputs
and see which indices stay, `collisions` counts equal tuples of indices. `conformance` tries a quantiser that
somebody wrote (by its `adapter`) for the bugs of notebook 08 (`defect_checks`).
A file imports only from those before it.
"""

from collections.abc import Sequence
from typing import Any

from vqnotes._checks import Array
from vqnotes._progress import progress_bar
from vqnotes.diagnosis import report
from vqnotes.diagnosis.collisions import Collisions, collisions
from vqnotes.diagnosis.comparing import Change, Comparison, compare, load, save
from vqnotes.diagnosis.drawing import draw, draw_watch
from vqnotes.diagnosis.measures import measure
from vqnotes.diagnosis.model import diagnose_model
from vqnotes.diagnosis.observed import observe, observe_stack
from vqnotes.diagnosis.on_disk import is_mapped, observe_mapped
from vqnotes.diagnosis.perturbation import input_stability
from vqnotes.diagnosis.report import Diagnosis, StackDiagnosis
from vqnotes.diagnosis.stability import Stability, index_stability
from vqnotes.diagnosis.stages import expect_stages
from vqnotes.diagnosis.tokens import diagnose_tokens
from vqnotes.diagnosis.tree import draw_tree
from vqnotes.diagnosis.watch import CollapseWarning, CollapseWatch

__all__ = [
    "Change",
    "CollapseWarning",
    "CollapseWatch",
    "Collisions",
    "Comparison",
    "Diagnosis",
    "Stability",
    "StackDiagnosis",
    "collisions",
    "compare",
    "index_stability",
    "input_stability",
    "diagnose",
    "diagnose_model",
    "diagnose_stack",
    "diagnose_tokens",
    "draw",
    "draw_tree",
    "draw_watch",
    "load",
    "save",
]


def diagnose(
    latents: Array,
    codebook: Array,
    *,
    labels: Array | None = None,
    inputs: Array | None = None,
    index: Array | None = None,
    mask: Array | None = None,
    channel_axis: int | None = None,
    places: tuple | None = None,
    reconstruction: Array | None = None,
    kind: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Diagnosis:
    """Which collapse is it, by which evidence, and what to try.

    latents: (..., D), or (N, D, ...) as maps have it. codebook: (K, D). Tensors or NumPy arrays of any float type, on
    any device. For a quantiser that normalises or projects, give both as they are when they are compared;
    `diagnose_model` finds them by itself.
    inputs: what was encoded. Either one for each latent, or (N, ...) for latents (N, places ..., D): then a latent is
    compared with the piece of the input at its place. The places may run along the last axes of the inputs, as in
    images (N, C, H, W), or the first, as in sequences (N, T, C); the sides must be multiples of the places. Latents
    (N, places, D) of images may also stand for square patches, row by row. Ids are no inputs: they have no mean.
    labels: a whole number for each latent, or for each input.
    Without inputs and labels the encoder cannot be judged: a sound codebook then gets "cannot tell".

    channel_axis: which axis of the latents holds D: -1, or 1 for (N, D, H, W). places: the axes of the inputs along
    which the latents' places run: (1,) for (N, T, C), (2,) for (N, C, T), (2, 3) for (N, C, H, W), (1, 2) for
    (N, H, W, C). Both are needed only where the shapes fit two readings.
    index: the model's own choice of codes, of the latents' shape without D. If it errs more than the nearest codes
    would, the quantiser compares otherwise than by distance: that is said first, and its codebook is not judged.
    mask: True where a latent counts, of the same shape; padding does not, and may be NaN, in the inputs too.
    reconstruction: the model's output, of the shape of the inputs. What the model rebuilds, its encoder has not lost.
    kind: how the codes come about, for advice that fits: "learnt codebook" (by gradient), "EMA codebook", "computed
    codebook" (a learnt map of a table: SimVQ), "fixed grid" (FSQ, LFQ) or "stack". None: they may be learnt or not.
    progress: a bar with the stage of the work; None: where it is long, as with thousands of codes.

    The codes are counted over all latents. References are measured on a random sample (by `seed`) of 16 latents a
    code, at least 8,192 and at most 262,144, in two halves: k-means is fitted to one, and judged on both. Memory
    is bounded by the sample, beside the latents themselves. Arrays on disk (`np.memmap`, as `np.load` gives them with
    mmap_mode="r") may be larger than memory: they are read in parts, and 2^25 numbers of each are kept. Before an
    encoder is convicted, a small network has tried to read the inputs off the latents.
    Sources: the two collapses, arXiv:2411.16550; dimensions against water-filling, arXiv:2605.06870; how often the
    verdict is right, `vqnotes.studies.verdicts` and notebook 09.
    Raises ValueError for what is empty, NaN, infinite, sparse, of mismatched shapes or open to two readings, for
    inputs that do not vary, for places or a reconstruction that no inputs belong to, and for an unknown kind.
    """
    beside: Any = {"labels": labels, "inputs": inputs, "index": index, "mask": mask, "reconstruction": reconstruction}
    options: Any = {"channel_axis": channel_axis, "places": places, "kind": kind, "seed": seed}
    with progress_bar("diagnose", progress):
        if any(map(is_mapped, (latents, *beside.values()))):
            observed = observe_mapped(latents, codebook, beside=beside, **options)
        else:
            observed = observe(latents, codebook, **beside, **options)
        expect_stages(observed)
        return report.report(observed, measure(observed))


def diagnose_stack(
    parts: Sequence[Sequence[tuple]],
    *,
    labels: Array | None = None,
    inputs: Array | None = None,
    mask: Array | None = None,
    places: tuple | None = None,
    reconstruction: Array | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> StackDiagnosis:
    """One verdict on codes that are put together (residual levels, heads, groups), and one on each codebook.

    parts: one for each head or group, a single one for a plain residual quantiser. Each is a list of levels, first to
    last, and each level a tuple (latents, codebook, index): the latents (N, places ..., D) that reach it, channels
    last; its codes (K, D); and the model's own indices (N, places ...), or None. All have the same places; D may
    differ from part to part.
    The other arguments are those of `diagnose`.

    The whole is judged by all parts together: the latents are those of the first levels side by side, the error is
    what is left after the last levels, the bits are the sum of all log2 K, and the reference is k-means in the same
    arrangement, level after level on what those before left. So are the encoder, dimensions and the rate.
    If a level codes something else than what the one before left, such as a projection of it or its direction, the
    whole has no error: it is then at fault if one of its codebooks is.
    Each codebook gets a verdict on its codes alone, beside k-means on what reaches it in the model: "healthy", "token
    collapse" or "cannot tell". Places that share a codebook are judged together, and get the same diagnosis.
    Raises ValueError as `diagnose` does, and for levels at different places.
    """
    beside: Any = {"labels": labels, "inputs": inputs, "mask": mask, "reconstruction": reconstruction}
    observed = observe_stack(parts, **beside, places=places, seed=seed)
    with progress_bar("diagnose_stack", progress):
        expect_stages(observed)
        return report.report_stack(observed, measure(observed))
