"""How long a diagnosis takes: its stages, and about how much work they are, so that a long one has a bar."""

from vqnotes._progress import expect
from vqnotes.diagnosis.observed import FEWEST, Observed

__all__ = ["expect_stages"]

STEPS = 25  # of k-means, about
BESIDE = 16  # multiplications that a score is worth in time, beside those of its product


def expect_stages(observed: Observed) -> None:
    """Tells the bar how many stages `measure` has, and how much work: one pass over all latents, and k-means."""
    alone = observed.codebooks if len(observed.levels) > 1 else []
    references = 2 if len(observed.sample) >= FEWEST else 0
    stages = len(alone) * (1 + references) + (0 if alone else 1) + references
    stages += 2 * observed.has_inputs + (observed.labels is not None)
    points = STEPS * len(observed.sample) // 2
    work = sum(
        (len(one.latents) + points) * len(one.codes) * (one.codes.shape[1] + BESIDE) for one in observed.levels
    )
    expect(stages, work)
