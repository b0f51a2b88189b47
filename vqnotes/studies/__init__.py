"""Studies: sweeps over settings and seeds, and those that the notebooks show in part, each with the table it made."""

__all__ = [
    "advice",
    "codebook_size",
    "consequences",
    "dimensions",
    "drift",
    "entrants",
    "generation",
    "item_names",
    "items",
    "large_codebooks",
    "next_items",
    "peers",
    "recreated",
    "remedies",
    "reports",
    "semantic_ids",
    "sweeps",
    "tuning",
    "verdicts",
    "watching",
]
