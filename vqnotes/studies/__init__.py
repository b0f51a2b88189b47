"""Studies: sweeps over settings and seeds, and those that the notebooks show in part, each with the table it made."""

__all__ = [
    "advice",
    "codebook_size",
    "generation",
    "large_codebooks",
    "peers",
    "recreated",
    "remedies",
    "reports",
    "sweeps",
    "verdicts",
    "watching",
]
