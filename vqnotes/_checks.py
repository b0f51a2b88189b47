"""Checks of what a function is given: each raises ValueError with what is wrong, or returns it, arrays as tensors."""

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pandas import DataFrame

Array = Tensor | np.ndarray  # or what NumPy makes one of: a list of lists, a column of a table
LARGEST = 1e150  # in size: squares of more overflow even in float64


def as_tensor(given: Array, name: str = "input") -> Tensor:
    """A tensor as it is, an array as a tensor; ValueError for what is neither."""
    if isinstance(given, Tensor):
        return given
    try:
        return torch.from_numpy(np.require(given, requirements=("C", "W")))  # what torch cannot share is copied
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a tensor or an array of numbers, got {type(given)}") from error


def dense_tensor(given: Any, name: str) -> Tensor:
    """A dense tensor without its gradient, from a tensor or an array of numbers; ValueError for anything else."""
    try:
        tensor = (_shared(given) if isinstance(given, np.ndarray) else torch.as_tensor(given)).detach()
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{name} must be a tensor or an array of numbers, got {type(given).__name__}") from error
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        kind = "nested" if tensor.is_nested else f"{tensor.layout} on {tensor.device}"
        raise ValueError(f"{name} must be a dense tensor with its values (see to_dense), got one that is {kind}")
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _shared(array: np.ndarray) -> Tensor:
    """A tensor of the same numbers; that they must not be written to is no news here, where nobody does."""
    if array.flags.writeable:
        return torch.as_tensor(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(array)


def real_numbers(given: Any, name: str) -> Tensor:
    """As `dense_tensor`, on the CPU; ValueError for complex numbers too."""
    tensor = dense_tensor(given, name).cpu()
    if tensor.is_complex():
        raise ValueError(f"{name} must be real numbers, got {tensor.dtype} {tuple(tensor.shape)}")
    return tensor


def check_latents(latents: Array, dim: int | None = None) -> Tensor:
    """Raises ValueError unless latents are (..., dim), floating point, not empty, finite, and below 1e150 in size."""
    latents = check_latents_form(latents, dim)
    if not _all_finite(latents):
        bad = int((~(latents.abs() < LARGEST)).sum())
        raise ValueError(f"latents hold {bad} NaN or infinite values, or above 1e150, shape {tuple(latents.shape)}")
    return latents


def check_codebook(codebook: Array) -> Tensor:
    """Raises ValueError unless the codebook is (K, D), floating point, not empty, finite, and below 1e150 in size."""
    codebook = check_codebook_form(codebook)
    if not _all_finite(codebook):
        raise ValueError(f"codebook holds NaN or infinite values, or above 1e150, shape {tuple(codebook.shape)}")
    return codebook


def check_latents_form(latents: Array, dim: int | None) -> Tensor:
    """As `check_latents`, but does not look at the values."""
    latents = as_tensor(latents, "latents")
    if not (latents.is_floating_point() and latents.ndim and latents.numel()):
        raise ValueError(f"latents must be floating point (..., D) and not empty, got {_shown(latents)}")
    if dim is not None and latents.shape[-1] != dim:
        raise ValueError(f"latents have {latents.shape[-1]} dimensions, codes have {dim}: {tuple(latents.shape)}")
    return latents


def check_codebook_form(codebook: Array) -> Tensor:
    """As `check_codebook`, but does not look at the values."""
    codebook = as_tensor(codebook, "codebook")
    if not (codebook.is_floating_point() and codebook.ndim == 2 and codebook.numel()):
        raise ValueError(f"codebook must be floating point (K, D) and not empty, got {_shown(codebook)}")
    return codebook


def _all_finite(x: Tensor) -> bool:
    low, high = x.detach().aminmax()  # NaN if anything is; no copy of x
    return bool((low > -LARGEST) & (high < LARGEST))


def _shown(x: Tensor) -> str:
    return f"{x.dtype} {tuple(x.shape)}"


def check_index(index: Array) -> Tensor:
    """The index as a tensor; ValueError unless it holds integers, at least one."""
    index = as_tensor(index, "index")
    if index.numel() == 0 or index.is_floating_point() or index.is_complex():
        raise ValueError(f"index must hold integers, got {index.dtype} of shape {tuple(index.shape)}")
    return index


def check_labelled(latents: Array, labels: Array) -> tuple[Tensor, Tensor]:
    """Latents (..., D), and labels as int64 (N,) on the CPU; ValueError unless each has one, a whole number."""
    latents, labels = check_latents(latents), as_tensor(labels, "labels").flatten().cpu()
    if latents.ndim < 2 or len(labels) != latents.shape[:-1].numel():
        raise ValueError(f"{len(labels)} labels for latents of shape {tuple(latents.shape)}")
    if labels.is_complex() or (labels.is_floating_point() and (labels != labels.long()).any()):
        raise ValueError(f"labels must be whole numbers, got {labels.dtype}: {labels}")
    return latents, labels.long()


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
