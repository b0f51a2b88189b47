"""Which collapse is it? A verdict on a codebook and its latents, by references and not by bare thresholds.

`figures.figures_of` takes the figures, `decide` is the rule, `diagnose` does both and explains.
"""

import torch

from vqnotes.figures import AT_MOST, PER_CODE, Figures, measured
from vqnotes.pairing import observe
from vqnotes.verdicts import INPUTS, MORE_LATENTS, Diagnosis, Drawing, Evidence, StackDiagnosis, advice_for

# Set by `validation.thresholds` on one half of the models in validation.csv, and judged on the other half; "effect",
# "before" and "labels" are set by what they mean.
THRESHOLDS = {
    # A codebook is at fault if its error is more than so many times that of k-means,
    "gap": 1.3,
    "excess": 0.05,  # and the difference is more than this share of the latents' variance;
    "effect": 0.25,  # or if, with a sound encoder, less than this share of the codes is in effect (perplexity).
    # An encoder is at fault if it loses more than so many times what codes placed on the inputs lose,
    "loss": 1.5,
    "before": 0.5,  # and most of what the best codes for its latents would leave over is lost before them;
    "labels": 0.75,  # or if labels can be read off the latents less than so well as off the inputs.
    "dimensions": 0.39,  # Dimensions are missing if codes fill less than this share of those that the bits pay for.
    "rate": 0.22,  # The rate is the limit if k-means itself leaves more than this share of the variance.
}


def codebook_at_fault(f: Figures, thresholds: dict = THRESHOLDS) -> bool | None:
    """Whether k-means on the same latents does much better; None if they are too few to say."""
    if f.gap is None:
        return None
    few = f.perplexity < thresholds["effect"] * f.ceiling * f.codes and not encoder_at_fault(f, thresholds)
    if f.gap > thresholds["gap"] and (few or f.error - f.best > thresholds["excess"]):
        return True
    cleared = f.gap_high <= thresholds["gap"] or (f.error - f.best_low <= thresholds["excess"] and not few)
    return False if cleared or f.sample >= PER_CODE * f.codes else None


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
    much = f.encoder_loss > thresholds["loss"] * f.inputs_loss
    return much and f.encoder_loss > thresholds["before"] * f.codes_loss


def dimensions_missing(f: Figures, thresholds: dict = THRESHOLDS) -> bool:
    """Whether codes fill far fewer dimensions than the inputs pay for; K codes fill K - 1 at most."""
    return f.inputs_loss is not None and f.dimensions < thresholds["dimensions"] * min(f.paid, f.codes - 1)


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
    codes = f"codes leave {_times(f.gap)} the error of k-means on the same latents" if f.gap is not None else ""
    if f.spread == 0:
        coincide = "all latents are equal"
    elif inputs_lost(f, thresholds):
        ratio = _times(f.encoder_loss / f.inputs_loss)
        coincide = f"the encoder alone loses {ratio} what {f.inputs_codes} codes of the inputs would lose"
    else:
        coincide = "labels cannot be read off the latents as off the inputs"
    if f.codes == 1:
        return "rate limit", "A single code carries 0 bits."
    if embeddings and tokens:
        return "token and embedding collapse", f"The {codes}; and {coincide}."
    if embeddings:
        return "embedding collapse", f"Different inputs have latents that coincide: {coincide}."
    if tokens:
        return "token collapse", f"The codebook is at fault: its {codes}."
    if tokens is None:
        most = ", the most that are looked at," if f.sample == AT_MOST else ""
        return "cannot tell", f"{f.sample:,} latents{most} are too few to clear {f.codes:,} codes."
    if embeddings is None:
        return "cannot tell", "The codebook is about as good as k-means; nothing was given to judge the encoder by."
    if dimensions_missing(f, thresholds):
        return (
            "dimensional collapse",
            f"Codes share their bits over {f.dimensions:.1f} dimensions; the inputs would pay for {f.paid:.1f}.",
        )
    if f.left > thresholds["rate"]:
        return "rate limit", f"Nothing is broken, but the best {f.codes:,} codes leave {f.left:.0%} of the variance."
    return "healthy", f"The {codes}, and the latents keep what the inputs offer."


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

    latents: (..., D), or maps (N, D, H, W); if both axes fit, the last one counts. codebook: (K, D). Tensors or NumPy
    arrays of any float type, on any device. For a quantiser that normalises or projects, give both as they are when
    they are compared; `probing.diagnose_model` finds them by itself.
    inputs: what was encoded, one for each latent; or images, sequences (N, C, ...) or (N, ...) whose sides are
    multiples of the latents' grid: then a latent is compared with the patch at its place. Latents (N, places, D) of
    images count as square patches, row by row.
    labels: a whole number for each latent, or for each input.
    Without inputs and labels the encoder cannot be judged: a sound codebook then gets "cannot tell".

    The codes are counted over all latents. References are measured on a random sample (by `seed`) of 16 latents a
    code, at least 8,192 and at most 262,144, in two halves: k-means is fitted to one, and judged on both. Memory
    is bounded by the sample, beside the latents themselves.
    Sources: the two collapses, arXiv:2411.16550; dimensions against water-filling, arXiv:2605.06870; how often the
    verdict is right, `validation` and notebook 09.
    Raises ValueError for what is empty, NaN, infinite, of mismatched shapes, or inputs that do not vary.
    """
    layout = {"channel_axis": channel_axis, "places": places}
    beside = {"labels": labels, "inputs": inputs, "reconstruction": reconstruction}
    seen = observe(latents, codebook, index=index, mask=mask, **beside, **layout)
    f = measured(seen, seed)
    some = torch.randperm(len(seen.counted), generator=torch.Generator().manual_seed(seed))[:2000]
    verdict, reason = decide(f)
    tokens, embeddings = codebook_at_fault(f), encoder_at_fault(f)
    needs = ([INPUTS] if embeddings is None else []) + (
        [MORE_LATENTS] if tokens is None and f.sample < AT_MOST else []
    )
    busy = f.usage > 0.8 * f.ceiling
    return Diagnosis(
        verdict,
        reason,
        _evidence(f, tokens),
        advice_for(verdict, size=f.codes, busy=busy, needs=needs if verdict != "rate limit" else []),
        _notes(f, tokens, embeddings),
        Drawing(seen.counted[some].float(), seen.codes.float(), f.counts),
    )


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
    """One verdict on codes that are put together, and one on each codebook: residual levels, heads, groups.

    parts: a list with one entry for each head or group, a single one for a plain residual stack. Each is a list of
    levels, first to last, and each level a tuple (latents, codebook, index or None): the latents (N, places ..., D)
    that reach it, channels last, in the shape that all levels share but for D.
    """
    raise NotImplementedError


def _evidence(f: Figures, tokens: bool | None) -> dict[str, Evidence]:
    """All figures that were measured, each with its reference and what it speaks for."""
    at_codes = {True: "token collapse", False: "a sound codebook", None: "too few latents"}[tokens]
    at_encoder = {True: "embedding collapse", False: "a sound encoder", None: ""}
    at_most = f"at most, with {f.latents:,} latents"
    found = {
        "codes in use": Evidence(round(f.usage * f.codes), round(f.ceiling * f.codes), at_most, "a symptom only"),
        "codes in effect": Evidence(f.perplexity, f.codes, "codes (perplexity)", "a symptom only"),
    }
    if f.distinct < f.codes:
        found["different codes"] = Evidence(f.distinct, f.codes, "codes", "clones")
    if f.gap is not None:
        by = f"k-means, {f.reference_codes:,} codes"
        found["error / variance"] = Evidence(f.error, f.best, by, at_codes)
        found["optimality gap"] = Evidence(f.gap, 1.0, by, at_codes)
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
    if f.best is not None:
        limit = "rate limit" if f.left > THRESHOLDS["rate"] else ""
        found["left by k-means"] = Evidence(f.left, THRESHOLDS["rate"], "and more is a rate limit", limit)
    return found


def _notes(f: Figures, tokens: bool | None, embeddings: bool | None) -> list[str]:
    notes = []
    if tokens is None and f.codes > 1:
        notes.append(f"the codebook is not judged: {f.latents:,} latents for {f.codes:,} codes")
    if embeddings is None:
        notes.append("the encoder is not judged: without inputs, or labels and inputs, latents have no reference")
    elif f.inputs_loss is None:
        notes.append("dimensions are not judged: without inputs they have no reference")
    if f.sample < f.latents:
        notes.append(f"references are measured on {f.sample:,} of {f.latents:,} latents")
    if f.error is not None:
        notes.append(f"error / variance is {f.error:.3g} with a standard error of {f.error_deviation:.1g}")
    return notes
