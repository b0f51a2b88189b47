"""Counts of codes that are put together: from several meters, from several processes, from a checkpoint."""

from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from vqnotes._checks import as_tensor

if TYPE_CHECKING:
    from typing_extensions import Self


class Counts:
    """What a `UsageMeter` can do with the counts that it has. counts: (size,) int64, on the CPU."""

    counts: Tensor

    def __add__(self, other: "Counts") -> "Self":
        if len(self.counts) != len(other.counts):
            raise ValueError(f"the meters count {len(self.counts)} and {len(other.counts)} codes: need as many")
        return self._with(self.counts + other.counts)

    def all_reduce(self, group: Any = None) -> "Self":
        """A new meter with the counts of all processes. This one keeps its own, so that none is counted twice.

        Every process of the group (None: all) must call it. Without torch.distributed, or before it is started, there
        is one process, and the new meter is a copy.
        Raises ValueError in each process if they count different numbers of codes.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return self._with(self.counts.clone())
        device = "cuda" if distributed.get_backend(group) == "nccl" else "cpu"
        size = len(self.counts)
        ends = torch.tensor([size, -size], device=device)
        distributed.all_reduce(ends, distributed.ReduceOp.MAX, group)
        if ends[0] != -ends[1]:
            found = f"{-int(ends[1])} to {int(ends[0])} codes, here {size}"
            raise ValueError(f"the processes count {found}: need as many in each")
        counts = self.counts.to(device, copy=True)
        distributed.all_reduce(counts, group=group)
        return self._with(counts.cpu())

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: {"counts": (size,) int64}, a copy."""
        return {"counts": self.counts.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint; what was counted here is forgotten.

        Raises ValueError unless state holds "counts", a whole number of at least 0 for each code of this meter.
        """
        if "counts" not in state:
            raise ValueError(f"need a state with 'counts', as state_dict gives it, got {sorted(state)}")
        counts = as_tensor(state["counts"], "counts")
        whole = not (counts.is_floating_point() or counts.is_complex())
        if not whole or counts.shape != self.counts.shape or (counts.long() < 0).any():
            found = f"{counts.dtype} {tuple(counts.shape)}"
            raise ValueError(f"need {len(self.counts)} whole numbers of at least 0, got {found}: {counts}")
        self.counts = counts.detach().to("cpu", torch.int64, copy=True)

    def _with(self, counts: Tensor) -> "Self":
        other = copy(self)
        other.counts = counts
        return other
