"""What to try: by the verdict and the kind of the quantiser, in the order of what it was worth to those who followed.

`studies.advice` has followed each piece, on models with the verdict. What did not help is not advised. Where fewer
than six of its models got a verdict, what is advised is what should help.
"""

from typing import NamedTuple

from vqnotes.diagnosis.observed import Kind

__all__ = ["ADVISED", "Advice", "advice_for"]


class Advice(NamedTuple):
    """What to try, the stage of the model that it changes, and the number of the notebook that shows it."""

    remedy: str
    stage: str
    notebook: str


WARM_UP = Advice("train without the quantiser first, then place the codes by k-means", "start", "05")
RESTART = Advice("restart dead codes from the first steps on, threshold well below N/K", "after step", "05")
REPAIR = Advice("without training again: k-means on these latents, then train the decoder", "start", "05")
REPAIR_EACH = Advice(
    "without training again: k-means for each codebook on what reaches it, in order; then train the decoder",
    "start",
    "05",
)
STORM = Advice(
    "codes are busy in the wrong places (clones, a restart storm): restart by an averaged use, threshold well below "
    "N/K",
    "after step",
    "05",
)
SIMVQ = Advice("codes that are a learnt map of a fixed table (SimVQ): none can die alone", "codes", "05")
GRID = Advice("a fixed grid in place of a codebook (FSQ)", "codes", "05")
STEPS = Advice("train longer: a grid cannot come to the latents, so they must come to it", "steps", "05")
SHAPE = Advice(
    "another shape of the grid, about as many codes in all: fewer directions with more levels each, and more with "
    "fewer; keep the better",
    "codes",
    "05",
)
WARM_UP_GRID = Advice("train without the quantiser first", "start", "05")
CODEBOOK = Advice("a codebook in place of the grid, placed by k-means after a warm-up", "codes", "05")
ENTROPY = Advice("a larger weight of the entropy loss", "loss", "05")
SOFTER = Advice("with an entropy loss (LFQ): an inverse temperature near 1", "loss", "05")
MORE_BETA = Advice("a larger beta, that brings the latents to the grid", "loss", "05")
WIDER = Advice("a wider or deeper encoder: no codes can part latents that coincide", "encoder", "04")
WIDER_PLACED = Advice(
    "both at once: a wider or deeper encoder, and codes by k-means after a training without the quantiser",
    "encoder",
    "04",
)
LESS_BETA = Advice("a smaller beta, in case the commitment loss holds the latents together", "loss", "01")
LONGER = Advice("a longer warm-up, so that weak directions are learnt before codes ignore them", "start", "06")
MORE_DIMENSIONS = Advice(
    "more latent dimensions, if the quantiser or a projection before it has few", "encoder", "05"
)
MORE_DIRECTIONS = Advice("more directions with fewer levels each", "codes", "05")
MORE_CODES = Advice("more codes", "structure", "05")
SECOND_STAGE = Advice("a second stage that codes what the first leaves (residual)", "structure", "05")
MORE_IN_EACH = Advice("more levels, or more codes in each: their bits add up", "structure", "05")
FINER_LEVELS = Advice("more levels in each direction", "structure", "05")
MORE_LATENTS_EACH = Advice("more latents for each input: a finer grid of places", "encoder", "03")

# What a verdict lacked: nothing of the model changes.
INPUTS = Advice("pass inputs= (or labels=), so that the encoder can be judged too", "data", "09")
LABELS = Advice("pass labels= that can be read off the inputs, so that the encoder can be judged too", "data", "09")
FIRST_BATCH = Advice("train for a step, or load the trained weights, and diagnose again", "start", "09")
MORE_INPUTS = Advice(
    "pass latents of more inputs, 32 or better hundreds; where each latent stands for itself, pass them as (N, D)",
    "data",
    "09",
)
MORE_LATENTS = Advice("pass more latents: at least 16 for each code", "data", "09")


CODES = [MORE_CODES, SECOND_STAGE]
ADVISED: dict[Kind, dict[str, list[Advice]]] = {
    Kind.LEARNT: {
        "token collapse": [REPAIR, WARM_UP],
        "embedding collapse": [WIDER, MORE_DIMENSIONS],
        "token and embedding collapse": [WIDER_PLACED, WIDER, WARM_UP, RESTART, REPAIR],
        "dimensional collapse": [LONGER],
        "rate limit": CODES,
    },
    Kind.EMA: {
        "token collapse": [REPAIR, WARM_UP, RESTART],
        "embedding collapse": [WIDER, MORE_DIMENSIONS],
        "token and embedding collapse": [WIDER_PLACED, WIDER, RESTART, WARM_UP, REPAIR],
        "dimensional collapse": [LONGER],
        "rate limit": CODES,
    },
    Kind.COMPUTED: {
        "token collapse": [WARM_UP],
        "embedding collapse": [WIDER, MORE_DIMENSIONS],
        "token and embedding collapse": [WIDER_PLACED, WARM_UP, WIDER],
        "dimensional collapse": [LONGER],
        "rate limit": CODES,
    },
    Kind.GRID: {
        "token collapse": [CODEBOOK, SHAPE, STEPS],
        "embedding collapse": [WIDER, MORE_DIRECTIONS],
        "token and embedding collapse": [WIDER, CODEBOOK],
        "dimensional collapse": [WARM_UP_GRID],
        "rate limit": [FINER_LEVELS, MORE_LATENTS_EACH],
    },
    Kind.STACK: {
        "token collapse": [WARM_UP],
        "embedding collapse": [WIDER, MORE_DIMENSIONS],
        "token and embedding collapse": [WIDER_PLACED, WIDER, WARM_UP, RESTART, REPAIR_EACH],
        "dimensional collapse": [LONGER],
        "rate limit": [MORE_IN_EACH],
    },
}
STORMS = (Kind.LEARNT, Kind.EMA)  # whose codes are restarted
NEED_PLACES = (WIDER_PLACED, WARM_UP, RESTART, REPAIR, STORM)  # nothing for codes that cannot be placed


def advice_for(verdict: str, *, kind: Kind, busy: bool, needs: list[Advice]) -> list[Advice]:
    """What to try, in order. busy: whether nearly all codes are in use. needs: what the verdict lacked.

    An unknown kind gets the advice for learnt codes, which says so where it is of no use for others.
    """
    known = Kind.LEARNT if kind is Kind.UNKNOWN else kind
    advised = list(ADVISED[known].get(verdict, []))
    if busy and verdict == "token collapse" and known in STORMS:
        advised.insert(0, STORM)
    if kind is Kind.UNKNOWN:
        advised = [
            one._replace(remedy=f"if your codes are learnt: {one.remedy}") if one in NEED_PLACES else one
            for one in advised
        ]
    return advised + needs
