"""Typical wrong answers to the exercises of notebook 04."""

_SHARE = """
def share_of_start(table):
    of_starts, grand = table.mean(dim=[1, 2]), table.mean()
    explained = ((of_starts - grand) ** 2).mean()
    total = ((table - grand) ** 2).mean()
    return {result}
"""

_INTERACTION = """
def interaction(table):
    (bad_narrow, bad_wide), (good_narrow, good_wide) = table
    n = table.shape[-1]
    each = {each}
    return each.mean(), {error}
"""
_DIFFERENCES = "(good_wide - bad_wide) - (good_narrow - bad_narrow)"
_ERROR = "each.std() / n**0.5"

MISTAKES = {
    "4.1": {
        "share of the width": """
def share_of_start(table):
    return table.numpy().mean(axis=0).mean(axis=-1).var() / table.numpy().var()
""",
        "means of the cells": """
def share_of_start(table):
    cells = table.mean(dim=-1)
    return (cells - cells.mean()).square().sum() / (table - table.mean()).square().sum() * table.shape[-1]
""",
        "both variances": """
def share_of_start(table):
    starts = table.flatten(1).mean(dim=1)
    return torch.var(starts) / torch.var(table)
""",
        "in both": """
def share_of_start(table):
    starts = table.flatten(1).mean(dim=1)
    return starts.var().item() / table.numpy().var()
""",
        "standard deviations": """
def share_of_start(table):
    table = table.numpy()
    return table.mean(axis=(1, 2)).std() / table.std()
""",
        "leaves unexplained": _SHARE.format(result="explained / (total - explained)"),
        "between seeds alone": """
def share_of_start(table):
    starts = table.flatten(1).mean(dim=1)
    within = (table - table.mean(dim=2, keepdim=True)) ** 2
    return (starts - starts.mean()).pow(2).mean() / within.mean()
""",
        "sum over a few means": """
def share_of_start(table):
    starts, grand = table.mean(dim=(1, 2)), table.mean()
    return ((starts - grand) ** 2).sum() / ((table - grand) ** 2).sum()
""",
    },
    "4.2": {
        "old share": "new_share = 0.9",
        "effects themselves": "new_share = 30 / (30 + 40)",
        "of the width": "new_share = 40**2 / (30**2 + 40**2)",
        "root of the share": "new_share = 30 / 50",
        "start with the width": "new_share = 30**2 / 40**2",
    },
    "4.3": {
        "independent": """
def interaction(table):
    mean, n = table.mean(dim=2), table.shape[2]
    variances = [table[start, width].var() / n for start in (0, 1) for width in (0, 1)]
    return mean[1, 1] - mean[0, 1] - mean[1, 0] + mean[0, 0], sum(variances) ** 0.5
""",
        "single seeds": _INTERACTION.format(each=_DIFFERENCES, error="each.std()"),
        "divided by n:": _INTERACTION.format(each=_DIFFERENCES, error="torch.std(each) / n"),
        "take n - 1": """
import numpy as np

def interaction(table):
    table = table.numpy()
    each = np.diff(np.diff(table, axis=0), axis=1)[0, 0]
    return each.mean(), np.std(each) / np.sqrt(len(each))
""",
        "sign": _INTERACTION.format(each="(good_narrow - bad_narrow) - (good_wide - bad_wide)", error=_ERROR),
        "mean effect": _INTERACTION.format(each="table[1].mean(0) - table[0].mean(0)", error=_ERROR),
        "sum of the effects": _INTERACTION.format(
            each="(good_wide - bad_wide) + (good_narrow - bad_narrow)", error=_ERROR
        ),
        "corner to corner": _INTERACTION.format(each="good_wide - bad_narrow", error=_ERROR),
    },
}
