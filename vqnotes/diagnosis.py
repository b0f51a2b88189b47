"""Which collapse is it? A verdict on a codebook and its latents, by references and not by bare thresholds.

`figures.figures_of` takes the figures, `decide` is the rule, `diagnose` does both and explains.
"""

from dataclasses import replace

import torch

from vqnotes.figures import AT_MOST, PER_CODE, TRIFLE, Figures, measure_observed
from vqnotes.pairing import Observed, observe, observe_stack
from vqnotes.verdicts import INPUTS, MORE_LATENTS, Diagnosis, Drawing, Evidence, StackDiagnosis, advice_for

# Set by `validation.thresholds` on one half of the models in validation.csv, and judged on the other half; "effect",
# "before", "labels", "trifle" and "differs" are set by what they mean.
THRESHOLDS = {
    # A codebook is at fault if its error is more than so many times that of k-means,
    "gap": 1.4,
    "excess": 0.048,  # and the difference is more than this share of the latents' variance;
    "effect": 0.25,  # or if, with a sound encoder, less than this share of the codes is in effect (perplexity).
    # An encoder is at fault if it loses more than so many times what codes placed on the inputs lose,
    "loss": 1.5,
    "before": 0.5,  # and most of what the best codes for its latents would leave over is lost before them;
    "labels": 0.75,  # or if labels can be read off the latents less than so well as off the inputs.
    "trifle": TRIFLE,  # A difference below this share of the variance convicts neither.
    "dimensions": 0.39,  # Dimensions are missing if codes fill less than this share of those that the bits pay for.
    "rate": 0.24,  # The rate is the limit if k-means itself leaves more than this share of the variance.
    "differs": 1.1,  # A quantiser whose own choice of codes errs so many times more than the nearest is not judged.
}


def codebook_at_fault(f: Figures, thresholds: dict = THRESHOLDS) -> bool | None:
    """Whether k-means on the same latents does much better; None if they are too few to say.

    Where the levels of a stack code different things, the whole has no error: then whether one of them is at fault.
    """
    if compares_otherwise(f, thresholds):
        return None
    if f.codebooks and f.gap is None:
        answers = [codebook_at_fault(one, thresholds) for one in f.codebooks if one.spread > 0]
        return True if any(answers) else (False if answers and None not in answers else None)
    if f.gap is None:
        return None
    few = any(one.perplexity < thresholds["effect"] * one.ceiling * one.codes for one in f.each if one.spread > 0)
    few = few and not encoder_at_fault(f, thresholds)
    needed = thresholds["trifle"] if few else thresholds["excess"]
    if f.gap > thresholds["gap"] and f.error - f.best > needed:
        return True
    cleared = f.gap_high <= thresholds["gap"] or f.error - f.best_low <= needed
    return False if cleared or f.sample >= PER_CODE * max(one.codes for one in f.each) else None


def compares_otherwise(f: Figures, thresholds: dict = THRESHOLDS) -> bool:
    """Whether the quantiser's own choice of codes is not by distance, at least not for these latents and codes."""
    return any(one.own_ratio is not None and one.own_ratio > thresholds["differs"] for one in f.each)


def encoder_at_fault(f: Figures, thresholds: dict = THRESHOLDS) -> bool | None:
    """Whether latents hold much less of inputs or labels than could be; None if nothing is there to compare with."""
    if f.spread == 0:
        return True if f.latents > 1 else None
    answers = [one for one in (inputs_lost(f, thresholds), labels_lost(f, thresholds)) if one is not None]
    return any(answers) if answers else None


def inputs_lost(f: Figures, thresholds: dict = THRESHOLDS) -> bool | None:
    """Whether the encoder loses more of the inputs than codes of the inputs would, and most of what is lost."""
    if f.inputs_loss is None or f.inputs_loss > 0.95:
        return None
    much = f.encoder_loss > max(thresholds["loss"] * f.inputs_loss, f.inputs_loss + thresholds["trifle"])
    return much and f.encoder_loss > thresholds["before"] * f.codes_loss


def dimensions_missing(f: Figures, thresholds: dict = THRESHOLDS) -> bool:
    """Whether codes fill far fewer dimensions than the inputs pay for; K codes fill K - 1 at most."""
    if f.inputs_loss is None or f.dimensions is None:
        return False
    return f.dimensions < thresholds["dimensions"] * min(f.paid, 2**f.rate - 1)


def labels_lost(f: Figures, thresholds: dict = THRESHOLDS) -> bool | None:
    """Whether labels are read off the latents much worse, above chance, than off the inputs.

    Without inputs, labels that are nearly always read off still clear the encoder; nothing can convict it.
    """
    best = 1.0 if f.separability_inputs is None else f.separability_inputs
    if f.separability is None or best - f.chance < 0.1:
        return None
    kept = (f.separability - f.chance) / (best - f.chance)
    return kept < thresholds["labels"] if f.separability_inputs is not None or kept > 0.9 else None


def decide(f: Figures, thresholds: dict = THRESHOLDS) -> tuple[str, str]:
    """The verdict on these figures, and the reason in a sentence."""
    tokens, embeddings = codebook_at_fault(f, thresholds), encoder_at_fault(f, thresholds)
    codes = _codes_beside_kmeans(f)
    if f.spread == 0:
        coincide = "all latents are equal"
    elif inputs_lost(f, thresholds):
        ratio = _times(f.encoder_loss / f.inputs_loss)
        coincide = f"the encoder alone loses {ratio} what {f.inputs_codes} codes of the inputs would lose"
    else:
        coincide = "labels cannot be read off the latents as off the inputs"
    if f.rate == 0:
        return "rate limit", "A single code carries 0 bits."
    if embeddings and tokens:
        return "token and embedding collapse", f"The {codes}; and {coincide}."
    if embeddings:
        return "embedding collapse", f"Different inputs have latents that coincide: {coincide}."
    if tokens:
        return "token collapse", f"The codebook is at fault: its {codes}."
    if tokens is None:
        return "cannot tell", _not_cleared(f, thresholds)
    if embeddings is None:
        return "cannot tell", "The codebook is about as good as k-means; nothing was given to judge the encoder by."
    if dimensions_missing(f, thresholds):
        return (
            "dimensional collapse",
            f"Codes share their bits over {f.dimensions:.1f} dimensions; the inputs would pay for {f.paid:.1f}.",
        )
    if f.left > thresholds["rate"]:
        best = f"{f.codes:,} codes" if not f.codebooks else f"codes of {f.rate:.0f} bits"
        return "rate limit", f"Nothing is broken, but the best {best} leave {f.left:.0%} of the variance."
    return "healthy", f"The {codes}, and the latents keep what the inputs offer."


def decide_codebook(f: Figures, thresholds: dict = THRESHOLDS) -> tuple[str, str]:
    """The verdict on one of several codebooks, by itself: "healthy", "token collapse" or "cannot tell"."""
    if f.spread == 0:
        return "healthy", "Nothing is left for this codebook to code: all that reaches it is equal."
    tokens = codebook_at_fault(f, thresholds)
    if tokens is None:
        return "cannot tell", _not_cleared(f, thresholds)
    codes = f"{_codes_beside_kmeans(f)} that reach it"
    return ("token collapse", f"This codebook is at fault: its {codes}.") if tokens else ("healthy", f"Its {codes}.")


def _codes_beside_kmeans(f: Figures) -> str:
    if f.codebooks and f.gap is None:
        return "codebooks, each alone, were judged by k-means on the latents"
    put_together = " put together" if f.codebooks else ""
    if f.gap is None:
        return ""
    if f.gap > THRESHOLDS["gap"] and f.error < THRESHOLDS["trifle"]:
        return f"codes{put_together} leave next to nothing ({f.error:.1g} of the variance) of the latents"
    return f"codes{put_together} leave {_times(f.gap)} the error of k-means on the same latents"


def _not_cleared(f: Figures, thresholds: dict) -> str:
    """Why the codebook was not judged."""
    if compares_otherwise(f, thresholds):
        return "The quantiser chooses other codes than the nearest, so distances do not tell how good its codes are."
    most = ", the most that are looked at," if f.sample == AT_MOST else ""
    return f"{f.sample:,} latents{most} are too few to clear {f.codes:,} codes."


def _times(ratio: float) -> str:
    return f"{ratio:.3g} times"


def diagnose(
    latents,
    codebook,
    *,
    labels=None,
    inputs=None,
    index=None,
    mask=None,
    channel_axis: int | None = None,
    places: tuple | None = None,
    reconstruction=None,
    seed: int = 0,
) -> Diagnosis:
    """Which collapse is it, by which evidence, and what to try.

    latents: (..., D), or (N, D, ...) as maps have it. codebook: (K, D). Tensors or NumPy arrays of any float type, on
    any device. For a quantiser that normalises or projects, give both as they are when they are compared;
    `probing.diagnose_model` finds them by itself.
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
    mask: True where a latent counts, of the same shape; padding does not.
    reconstruction: the model's output, of the shape of the inputs. What the model rebuilds, its encoder has not lost.

    The codes are counted over all latents. References are measured on a random sample (by `seed`) of 16 latents a
    code, at least 8,192 and at most 262,144, in two halves: k-means is fitted to one, and judged on both. Memory
    is bounded by the sample, beside the latents themselves. Before an encoder is convicted, a small network has tried
    to read the inputs off the latents.
    Sources: the two collapses, arXiv:2411.16550; dimensions against water-filling, arXiv:2605.06870; how often the
    verdict is right, `validation` and notebook 09.
    Raises ValueError for what is empty, NaN, infinite, of mismatched shapes or open to two readings, and for inputs
    that do not vary.
    """
    layout = {"channel_axis": channel_axis, "places": places}
    beside = {"labels": labels, "inputs": inputs, "reconstruction": reconstruction}
    return diagnose_observed(observe(latents, codebook, index=index, mask=mask, **beside, **layout), seed)


def diagnose_observed(seen: Observed, seed: int = 0) -> Diagnosis:
    """What `diagnose` says on a codebook, from what was observed."""
    return _explained(seen, measure_observed(seen, seed), seed)


def diagnose_stack(
    parts,
    *,
    labels=None,
    inputs=None,
    mask=None,
    places: tuple | None = None,
    reconstruction=None,
    seed: int = 0,
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
    beside = {"labels": labels, "inputs": inputs, "reconstruction": reconstruction}
    return diagnose_observed_stack(observe_stack(parts, mask=mask, places=places, **beside), seed)


def diagnose_observed_stack(seen: Observed, seed: int = 0) -> StackDiagnosis:
    """What `diagnose_stack` says, from what was observed."""
    f = measure_observed(seen, seed)
    if len(seen.places) == 1:
        f = replace(f, bits=seen.total_bits, codebooks=(measure_observed(seen.alone([0]), seed),))
    alone = {}
    for group, figures in zip(seen.shared, f.codebooks):
        alone |= dict.fromkeys(group, _explained(seen.alone(group), figures, seed, of_several=True))
    numbers = iter(range(len(seen.places)))
    return StackDiagnosis(
        _explained(seen, f, seed), [[alone[next(numbers)] for _ in levels] for levels in seen.parts]
    )


def _explained(seen: Observed, f: Figures, seed: int, of_several: bool = False) -> Diagnosis:
    """The diagnosis of a codebook or of a whole; of_several: of one codebook of a whole, which has no encoder."""
    verdict, reason = decide_codebook(f) if of_several else decide(f)
    tokens, embeddings = codebook_at_fault(f), encoder_at_fault(f)
    needs = [INPUTS] if embeddings is None and not of_several else []
    if tokens is None and f.sample < AT_MOST and not compares_otherwise(f):
        needs.append(MORE_LATENTS)
    advice = advice_for(
        verdict,
        size=max(one.codes for one in f.each),
        busy=f.usage > 0.8 * f.ceiling,
        needs=needs if verdict != "rate limit" else [],
        several=of_several or bool(f.codebooks),
    )
    drawing = None
    if not f.codebooks:
        some = torch.randperm(len(seen.counted), generator=torch.Generator().manual_seed(seed))[:2000]
        drawing = Drawing(seen.counted[some].float(), seen.places[0].codes.float(), f.counts)
    evidence, notes = _evidence(f, tokens, of_several), _notes(seen, f, tokens, embeddings, of_several)
    return Diagnosis(verdict, reason, evidence, advice, notes, drawing, _doubts(seen, f))


def _evidence(f: Figures, tokens: bool | None, of_several: bool) -> dict[str, Evidence]:
    """All figures that were measured, each with its reference and what it speaks for."""
    at_codes = {True: "token collapse", False: "a sound codebook", None: "too few latents"}[tokens]
    if compares_otherwise(f):
        at_codes = "not compared by distance"
    at_encoder = {True: "embedding collapse", False: "a sound encoder", None: ""}
    spare = f.different is not None and f.different < f.codes
    at_most = f"at most, with {f.different:,} different latents" if spare else f"at most, with {f.latents:,} latents"
    in_effect = min(f.codes, f.different) if spare else f.codes
    found = {
        "codes in use": Evidence(round(f.usage * f.codes), round(f.ceiling * f.codes), at_most, "a symptom only"),
        "codes in effect": Evidence(f.perplexity, in_effect, "codes (perplexity)", "a symptom only"),
    }
    if f.distinct < f.codes:
        found["different codes"] = Evidence(f.distinct, f.codes, "codes", "clones")
    if f.gap is not None:
        by = f"k-means, {f.reference_codes:,} codes" + (" in the same levels and parts" if f.codebooks else "")
        found["error / variance"] = Evidence(f.error, f.best, by, at_codes)
        found["optimality gap"] = Evidence(f.gap, 1.0, by, at_codes)
    if f.dimensions is not None and not of_several:
        paid = "paid for by the " + ("latents" if f.inputs_loss is None else "inputs")
        few = "dimensional collapse" if dimensions_missing(f) else ""
        found["dimensions filled"] = Evidence(f.dimensions, f.paid, paid, few)
    if f.inputs_loss is not None:
        by = f"{f.inputs_codes} codes of the inputs"
        speaks = at_encoder[inputs_lost(f)]
        found["lost by the encoder"] = Evidence(f.encoder_loss, f.inputs_loss, by, speaks)
        by = "of it lost before them"
        found["lost with the best codes"] = Evidence(f.codes_loss, f.encoder_loss, by, speaks)
    if f.separability is not None:
        with_inputs = f.separability_inputs is not None
        best, by = (f.separability_inputs, "from the inputs") if with_inputs else (f.chance, "by guessing")
        found["labels read off"] = Evidence(f.separability, best, by, at_encoder[labels_lost(f)])
    if f.best is not None and not of_several:
        limit = "rate limit" if f.left > THRESHOLDS["rate"] else ""
        found["left by k-means"] = Evidence(f.left, THRESHOLDS["rate"], "and more is a rate limit", limit)
    return found


def _doubts(seen: Observed, f: Figures) -> list[str]:
    """What should be looked at before the verdict counts: latents and codes that cannot be what is compared."""
    doubts = []
    for one in f.each:
        which = f"one of the codebooks ({one.codes:,} codes): " if f.codebooks else ""
        if compares_otherwise(one):
            doubts.append(
                f"{which}for {one.own_differs:.0%} of the latents the quantiser's own choice is farther than the "
                f"nearest code, and the error {_times(one.own_ratio)} as large: it compares otherwise than by "
                f"distance, or these are not the latents and codes that it compares"
            )
        if one.gap_directions is not None and one.gap_directions <= THRESHOLDS["gap"]:
            doubts.append(
                f"{which}all codes have one length and latents have not. Brought to one length, they are coded "
                f"with {_times(one.gap_directions)} the error of k-means: does the quantiser compare directions? "
                f"Then give the latents normalised"
            )
        elif one.gap_scaled is not None and one.gap_scaled <= THRESHOLDS["gap"]:
            doubts.append(
                f"{which}the codes are at another scale than the latents. Moved to their centre and "
                f"{_times(one.scale)} as wide, they would leave {_times(one.gap_scaled)} the error of k-means: is "
                f"something between the two, a projection or a normalisation? If not, these codes were never placed "
                f"on the latents"
            )
    rounding = min(torch.finfo(seen.latents.dtype).eps, torch.finfo(torch.float32).eps)
    if f.size is not None and f.size**2 * rounding > 0.01:
        doubts.append(
            f"the latents hardly vary beside their size, by one part in {f.size:,.0f}: a quantiser that subtracts "
            f"squares of that size chooses by rounding. Take their mean off before they are compared"
        )
    return doubts


def _notes(seen: Observed, f: Figures, tokens: bool | None, embeddings: bool | None, of_several: bool) -> list[str]:
    notes = []
    if seen.mask is not None:
        masked = len(seen.latents) - len(seen.rows)
        notes.append(f"{masked:,} of {len(seen.latents):,} latents are masked and do not count")
    if seen.inputs is not None and seen.inputs.axes is not None:
        axes, shape = seen.inputs.axes, seen.inputs.shape
        notes.append(f"a latent stands beside a piece {seen.inputs.piece} of inputs {shape}, along places={axes}")
    if f.different is not None and f.different < f.codes:
        notes.append(f"{f.codes - f.different:,} codes are spare: only {f.different:,} latents differ")
    if tokens is None and f.rate > 0 and f.spread > 0 and not compares_otherwise(f):
        notes.append(f"the codebook is not judged: {f.latents:,} latents for {f.codes:,} codes")
    if f.codebooks:
        notes.append(f"all codes of a latent together carry {f.rate:.1f} bits")
        if f.gap is None and f.best is not None:
            notes.append("the whole has no error: a level codes something else than what the one before left")
    if of_several:
        notes.append("of several codebooks each is judged by its codes alone; the encoder, by all of them together")
    elif embeddings is None:
        notes.append("the encoder is not judged: without inputs, or labels and inputs, latents have no reference")
    elif f.inputs_loss is None:
        notes.append("dimensions are not judged: without inputs they have no reference")
    if f.reader is not None:
        itself = "" if f.model_loss is None else f"; the model as a whole leaves {f.model_loss:.3g}"
        notes.append(f"lost by the encoder is what {f.reader}, the best of the readers, leaves of the inputs{itself}")
    if f.sample < f.latents:
        notes.append(f"references are measured on {f.sample:,} of {f.latents:,} latents")
    if f.error is not None:
        notes.append(f"error / variance is {f.error:.3g} with a standard error of {f.error_deviation:.1g}")
    return notes
