"""Typical wrong answers to the exercises of notebook 02."""

MISTAKES = {
    "2.1": {
        "paired with itself": """
def cosine_distance(codebook):
    unit = codebook / codebook.norm(dim=1, keepdim=True)
    return (1 - unit @ unit.T).mean()
""",
        "that is the cosine": """
def cosine_distance(codebook):
    size = len(codebook)
    unit = F.normalize(codebook, dim=-1)
    return ((unit @ unit.T).sum() - size) / (size * size - size)
""",
        "each pair is added once": """
def cosine_distance(codebook):
    size, total = len(codebook), 0
    for i in range(size):
        for j in range(i):
            total = total + 1 - F.cosine_similarity(codebook[i], codebook[j], dim=0)
    return total / (size * (size - 1))
""",
        "the other axis": """
def cosine_distance(codebook):
    unit = F.normalize(codebook, dim=0)
    first, second = torch.triu_indices(len(unit), len(unit), 1)
    return (1 - (unit[first] * unit[second]).sum(dim=1)).mean()
""",
        "both codes have length 1": """
def cosine_distance(codebook):
    first, second = torch.triu_indices(len(codebook), len(codebook), 1)
    return (1 - (codebook @ codebook.T)[first, second]).mean()
""",
        "Euclidean": "def cosine_distance(codebook):\n    return torch.pdist(codebook).mean()",
    },
    "2.2": {
        "it gives nan": """
def modes_covered(latents, codebook, y):
    labels = y[torch.cdist(codebook, latents).argmin(dim=1)]
    shares = torch.bincount(labels, minlength=int(y.max()) + 1) / len(labels)
    return torch.exp(-torch.sum(shares * torch.log(shares)))
""",
        "in nats": """
def modes_covered(latents, codebook, y):
    labels = y[torch.cdist(codebook, latents).argmin(dim=1)]
    shares = labels.unique(return_counts=True)[1] / len(labels)
    return torch.distributions.Categorical(shares).entropy()
""",
        "in bits": """
def modes_covered(latents, codebook, y):
    labels = y[torch.cdist(codebook, latents).argmin(dim=1)]
    shares = labels.unique(return_counts=True)[1] / len(labels)
    return -(shares * shares.log2()).sum()
""",
        "the base of the power": """
def modes_covered(latents, codebook, y):
    labels = y[torch.cdist(codebook, latents).argmin(dim=1)]
    shares = labels.unique(return_counts=True)[1] / len(labels)
    return (-(shares * shares.log2()).sum()).exp()
""",
        "any code at all": """
def modes_covered(latents, codebook, y):
    return len({int(y[(latents - code).norm(dim=1).argmin()]) for code in codebook})
""",
        "shares of the points": """
def modes_covered(latents, codebook, y):
    shares = y.bincount() / len(y)
    return (-(shares * shares.log()).sum()).exp()
""",
        "dead codes are left out": """
def modes_covered(latents, codebook, y):
    distances = torch.cdist(codebook, latents)
    live = distances.argmin(dim=0).bincount(minlength=len(codebook)) > 0
    labels = y[distances.argmin(dim=1)][live]
    shares = labels.unique(return_counts=True)[1] / len(labels)
    return torch.prod(shares**-shares)
""",
        "each code counts once": """
def modes_covered(latents, codebook, y):
    distances = torch.cdist(codebook, latents)
    labels = y[distances.argmin(dim=1)][distances.argmin(dim=0)]
    shares = labels.unique(return_counts=True)[1] / len(labels)
    return torch.prod(shares**-shares)
""",
        "nearest to each latent": """
def modes_covered(latents, codebook, y):
    labels = y[torch.cdist(latents, codebook).argmin(dim=1)]
    shares = labels.unique(return_counts=True)[1] / len(labels)
    return torch.prod(shares**-shares)
""",
    },
    "2.3": {
        "no longer equally used": "perplexity = 100",
        "the others do not vanish": "perplexity = 33.3",
        "in nats": "perplexity = 98 / 300 * math.log(300) + 202 / 300 * math.log(300 / 101)",
        "in bits": "perplexity = 3.75",
        "more than a third each": "perplexity = 13.8",
        "102 codes": "perplexity = 300 ** (1 / 3) * 3 ** (2 / 3)",
        "the codes in the middle as one": "perplexity = math.exp(math.log(3))",
        "still chosen": "perplexity = 2",
    },
    "2.5": {
        "on the wrong side": """
def follow(latents, index, codebook, share, decay):
    one_hot = torch.nn.functional.one_hot(index, len(codebook)).float()
    sums = (1 - decay) * share[:, None] * codebook + decay * one_hot.T @ latents / len(latents)
    share = (1 - decay) * share + decay * one_hot.mean(dim=0)
    return sums / share[:, None], share
""",
        "the same part of the way": """
def follow(latents, index, codebook, share, decay):
    one_hot = torch.nn.functional.one_hot(index, len(codebook)).float()
    moved = codebook.clone()
    for k in index.unique():
        moved[k] = decay * codebook[k] + (1 - decay) * latents[index == k].mean(dim=0)
    return moved, decay * share + (1 - decay) * one_hot.mean(dim=0)
""",
        "moves to the origin": """
def follow(latents, index, codebook, share, decay):
    one_hot = torch.nn.functional.one_hot(index, len(codebook)).float()
    means = one_hot.T @ latents / one_hot.sum(dim=0).clamp_min(1)[:, None]
    return decay * codebook + (1 - decay) * means, decay * share + (1 - decay) * one_hot.mean(dim=0)
""",
        "divide the counts by N": """
def follow(latents, index, codebook, share, decay):
    one_hot = torch.nn.functional.one_hot(index, len(codebook)).float()
    sums = decay * share[:, None] * codebook + (1 - decay) * one_hot.T @ latents
    share = decay * share + (1 - decay) * one_hot.sum(dim=0)
    return sums / share[:, None], share
""",
        "jumps to the mean": """
def follow(latents, index, codebook, share, decay):
    one_hot = torch.nn.functional.one_hot(index, len(codebook)).float()
    moved = codebook.clone()
    for k in index.unique():
        moved[k] = latents[index == k].mean(dim=0)
    return moved, decay * share + (1 - decay) * one_hot.mean(dim=0)
""",
        "the old one": """
def follow(latents, index, codebook, share, decay):
    one_hot = torch.nn.functional.one_hot(index, len(codebook)).float()
    sums = decay * share[:, None] * codebook + (1 - decay) * one_hot.T @ latents / len(latents)
    return sums / (decay * share + (1 - decay) * one_hot.mean(dim=0))[:, None], share
""",
    },
}
