"""Studies: sweeps over settings and seeds, and those that the notebooks show in part, each with the table it made."""

__all__ = ["advice", "codebook_size", "generation", "remedies", "sweeps", "verdicts", "watching"]
