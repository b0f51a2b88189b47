"""Typical wrong answers to the exercises of notebook 09."""

VERDICT = """
def verdict(own, best, encoder, inputs, filled, most):
    token = {token}
    embedding = encoder / inputs > 1.5
    {first}
    if token and embedding:
        return "token and embedding collapse"
    if token or embedding:
        return "token collapse" if token else "embedding collapse"
    if filled / most < 0.4:
        return "dimensional collapse"
    return "rate limit" if best - encoder > 0.3 else "healthy"
"""
TOKEN = "own / best > 1.4 and own - best > 0.015"

BOUNDS = """
def gap_bounds(codebook, centroids, fitted, new):
    def error(latents, codes):
        distances = (latents[:, None] - codes[None]).square().sum(-1).min(1).values
        return {error}

    every = torch.cat([fitted, new])
    return {low}, {high}
"""
LOW, HIGH = "error(new, codebook) / error(new, centroids)", "error(fitted, codebook) / error(fitted, centroids)"

MISTAKES = {
    "9.1": {
        "stops at the codebook": VERDICT.format(token=TOKEN, first="if token: return 'token collapse'"),
        "stops at the encoder": VERDICT.format(token=TOKEN, first="if embedding: return 'embedding collapse'"),
        "costs next to nothing": VERDICT.format(token="own / best > 1.4", first=""),
        "a difference alone": VERDICT.format(token="own - best > 0.015", first=""),
        "not if one of them is": VERDICT.format(token=TOKEN.replace("and", "or"), first=""),
        "the last question": VERDICT.format(token=TOKEN, first="if best - encoder > 0.3: return 'rate limit'"),
        "asked for too early": """
def verdict(own, best, encoder, inputs, filled, most):
    codebook = own / best > 1.4 and own - best > 0.015
    bad_encoder = encoder / inputs > 1.5
    if codebook or bad_encoder:
        names = ["token"] * codebook + ["embedding"] * bad_encoder
        return " and ".join(names) + " collapse"
    return "rate limit" if best - encoder > 0.3 else "healthy" if filled / most >= 0.4 else "dimensional collapse"
""",
        "once encoder and codebook are sound": VERDICT.format(
            token=TOKEN, first="if filled / most < 0.4: return 'dimensional collapse'"
        ),
    },
    "9.2": {
        "are swapped": BOUNDS.format(error="distances.mean()", low=HIGH, high=LOW),
        "upside down": BOUNDS.format(error="distances.mean()", low=f"1 / ({LOW})", high=f"1 / ({HIGH})"),
        "mean distances": BOUNDS.format(error="distances.sqrt().mean()", low=LOW, high=HIGH),
        "these are roots": BOUNDS.format(error="distances.mean().sqrt()", low=LOW, high=HIGH),
        "same for both": BOUNDS.format(
            error="distances.mean()",
            low=LOW.replace("(new, codeb", "(every, codeb"),
            high=HIGH.replace("(fitted, codeb", "(every, codeb"),
        ),
        "keep the halves apart": BOUNDS.format(
            error="distances.mean()", low=LOW.replace("new", "every"), high=HIGH.replace("fitted", "every")
        ),
    },
    "9.3": {
        "would save 2 %": 'first = "a"',
        "dead codes are a symptom": 'first = "b"',
        "more codes cannot help": 'first = "D"',
        "not enough for the inputs": 'first = "e"',
        "a letter is asked for": 'first = "a wider encoder"',
    },
    "9.5": {
        "however rarely": """
def in_effect(index, codebook_size):
    return len(set(index.tolist()))
""",
        "that is the entropy": """
def in_effect(index, codebook_size):
    share = torch.bincount(index, minlength=codebook_size) / len(index)
    return -torch.xlogy(share, share).sum()
""",
        "the same base": """
def in_effect(index, codebook_size):
    share = torch.bincount(index) / len(index)
    share = share[share > 0]
    return (-(share * share.log2()).sum()).exp()
""",
        "share of the codebook": """
def in_effect(index, codebook_size):
    share = torch.bincount(index) / len(index)
    return (-torch.xlogy(share, share).sum()).exp() / codebook_size
""",
        "leave them out": """
def in_effect(index, codebook_size):
    share = torch.bincount(index, minlength=codebook_size) / len(index)
    return (-(share * share.log()).sum()).exp()
""",
    },
}
