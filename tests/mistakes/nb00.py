"""Typical wrong answers to the exercises of notebook 00."""

MISTAKES = {
    "0.1": {
        "nats": "def bits_per_pixel(codes, side):\n    return math.log(codes) / (side * side)",
        "side × side pixels": "def bits_per_pixel(codes, side):\n    return math.log2(codes) / side",
        "bits of a square": "def bits_per_pixel(codes, side):\n    return math.log(codes, 2)",
        "do not take K bits": "def bits_per_pixel(codes, side):\n    return codes / side / side",
    },
    "0.2": {
        "mean over batches": """
def live_share(batches, size):
    shares = [len(batch.unique()) / size for batch in batches]
    return sum(shares) / len(shares)
""",
        "counted several times": """
def live_share(batches, size):
    live = 0
    for batch in batches:
        live += len(set(batch.tolist()))
    return live / size
""",
        "last batch alone": """
def live_share(batches, size):
    for batch in batches:
        live = batch.unique()
    return len(live) / size
""",
        "not of the latents": """
def live_share(batches, size):
    index = torch.cat(batches)
    return index.unique().numel() / index.numel()
""",
        "factor 100": "def live_share(batches, size):\n    return 100 * torch.cat(batches).unique().numel() / size",
        "number of live codes": "def live_share(batches, size):\n    return torch.cat(batches).unique().numel()",
    },
    "0.3": {
        "counts live codes": "effective_codes = 4",
        "entropy in bits": "effective_codes = 1 / 2 * 1 + 1 / 4 * 2 + 2 / 8 * 3",
        "entropy in nats": "effective_codes = 1.213",
        "most frequent code": "effective_codes = 1 / 0.5",
    },
}
