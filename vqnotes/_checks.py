"""Checks of what a function is given: each raises ValueError with what was wrong."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pandas import DataFrame

LARGEST = 1e150  # in size: squares of more overflow even in float64


def check_latents(latents: Tensor, dim: int | None = None) -> None:
    """Raises ValueError unless latents are (..., dim), floating point, not empty, finite, and below 1e150 in size."""
    check_latents_form(latents, dim)
    if not _all_finite(latents):
        bad = int((~(latents.abs() < LARGEST)).sum())
        raise ValueError(f"latents hold {bad} NaN or infinite values, or above 1e150, shape {tuple(latents.shape)}")


def check_codebook(codebook: Tensor) -> None:
    """Raises ValueError unless the codebook is (K, D), floating point, not empty, finite, and below 1e150 in size."""
    check_codebook_form(codebook)
    if not _all_finite(codebook):
        raise ValueError(f"codebook holds NaN or infinite values, or above 1e150, shape {tuple(codebook.shape)}")


def check_latents_form(latents: Tensor, dim: int | None) -> None:
    """As `check_latents`, but does not look at the values."""
    if not (isinstance(latents, Tensor) and latents.is_floating_point() and latents.ndim and latents.numel()):
        raise ValueError(f"latents must be floating point (..., D) and not empty, got {_shown(latents)}")
    if dim is not None and latents.shape[-1] != dim:
        raise ValueError(f"latents have {latents.shape[-1]} dimensions, codes have {dim}: {tuple(latents.shape)}")


def check_codebook_form(codes: Tensor) -> None:
    """As `check_codebook`, but does not look at the values."""
    if not (isinstance(codes, Tensor) and codes.is_floating_point() and codes.ndim == 2 and codes.numel()):
        raise ValueError(f"codebook must be floating point (K, D) and not empty, got {_shown(codes)}")


def _all_finite(x: Tensor) -> bool:
    low, high = x.detach().aminmax()  # NaN if anything is; no copy of x
    return bool((low > -LARGEST) & (high < LARGEST))


def _shown(x: object) -> str:
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else str(type(x))


def check_index(index: Tensor) -> Tensor:
    """The index as a tensor; ValueError unless it holds integers, at least one."""
    index = torch.as_tensor(index)
    if index.numel() == 0 or index.is_floating_point() or index.is_complex():
        raise ValueError(f"index must hold integers, got {index.dtype} of shape {tuple(index.shape)}")
    return index


def check_labels(latents: Tensor, y: Tensor) -> Tensor:
    """The labels as int64 (N,) on the CPU; ValueError unless there is one, a whole number, for each latent."""
    check_latents(latents)
    labels = torch.as_tensor(y).flatten().cpu()
    if latents.ndim < 2 or len(labels) != latents.shape[:-1].numel():
        raise ValueError(f"{len(labels)} labels for latents of shape {tuple(latents.shape)}")
    if labels.is_complex() or (labels != labels.long()).any():
        raise ValueError(f"labels must be whole numbers, got {labels.dtype}: {labels}")
    return labels.long()


def check_not_negative(name: str, value: float) -> float:
    """The value; ValueError if it is below 0, infinite or NaN."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be at least 0, got {value}")
    return value


def check_share(name: str, value: float) -> float:
    """The value; ValueError if it is not in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
    return value


def check_positive(name: str, value: float) -> float:
    """The value; ValueError if it is not above 0, infinite or NaN."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0, got {value}")
    return value


def check_columns(runs: "DataFrame", *names: str) -> None:
    """ValueError unless a table has rows, and these columns."""
    missing = [name for name in names if name not in runs]
    if missing or len(runs) == 0:
        raise ValueError(f"need rows with columns {list(names)}, got {len(runs)} rows with {list(runs.columns)}")
