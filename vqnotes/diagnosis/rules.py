"""Which collapse is it? A verdict on a codebook and its latents, by references and not by bare thresholds.

`measures` takes the figures, `decide` is the rule.
"""

from vqnotes.diagnosis.measures import AT_MOST, PER_CODE, TRIFLE, Figures

# Set by `studies.verdicts.thresholds` on one half of the models in its table, and judged on the other half; "effect",
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
        ratio = times(f.encoder_loss / f.inputs_loss)
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
    return f"codes{put_together} leave {times(f.gap)} the error of k-means on the same latents"


def _not_cleared(f: Figures, thresholds: dict) -> str:
    """Why the codebook was not judged."""
    if compares_otherwise(f, thresholds):
        return "The quantiser chooses other codes than the nearest, so distances do not tell how good its codes are."
    most = ", the most that are looked at," if f.sample == AT_MOST else ""
    return f"{f.sample:,} latents{most} are too few to clear {f.codes:,} codes."


def times(ratio: float) -> str:
    return f"{ratio:.3g} times"
