"""Studies: sweeps over settings and seeds, and those that the notebooks show in part, each with the table it made."""

__all__ = ["codebook_size", "generation", "large_codebooks", "remedies", "sweeps", "verdicts"]
