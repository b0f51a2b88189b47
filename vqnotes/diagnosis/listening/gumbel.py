"""How the Gumbel quantiser of wav2vec 2.0 and its kin is heard, as transformers has it.

A linear map makes V numbers of each latent for each group, and the largest of them decides. Latents and codevectors
are never compared, and need not have as many dimensions. What an index tells of its latent is the mean of the latents
that got it; so these are the codes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vqnotes.diagnosis.listening.calls import TEN_LINES, Ear, first_argument
from vqnotes.diagnosis.observed import Kind

__all__ = ["KNOWN", "GumbelEar", "ear_of"]

KNOWN = "the Gumbel quantiser of wav2vec 2.0 in transformers"

FAR = 10  # of the latents' own lengths: there are codes that no latent gets


def ear_of(module: nn.Module) -> type[Ear] | None:
    """The kind of ear that hears this module; None if it is no such quantiser."""
    told_by = ("codevectors", "weight_proj", "num_groups", "num_vars")
    return GumbelEar if all(hasattr(module, name) for name in told_by) else None


class GumbelEar(Ear):
    """Wav2Vec2GumbelVectorQuantizer and its copies: groups side by side, which all see the whole latent."""

    module: Any
    scores: Tensor
    note = "codes are the means of the latents that got each of them: latents are not compared with its codevectors"

    @staticmethod
    def kind(module: Any) -> Kind:
        return Kind.LEARNT

    def hooks(self) -> list:
        return [self.module.weight_proj.register_forward_hook(self.hear_scores), *super().hooks()]

    def hear_scores(self, module: nn.Module, arguments: tuple, output: Tensor) -> None:
        """The linear map was called."""
        self.scores = output

    def hear(self, module: Any, arguments: tuple, named: dict, output: Any) -> None:
        """Raises ValueError if other codevectors come out than those of the largest numbers."""
        entered, groups = first_argument(arguments, named), module.num_groups
        index = self.scores.unflatten(-1, (groups, -1)).argmax(-1).movedim(-1, 0)  # (groups, batch, places)
        table = module.codevectors.reshape(groups, module.num_vars, -1)
        chosen = torch.cat([own[one] for own, one in zip(table, index)], -1)
        if chosen.shape != output[0].shape or not torch.allclose(chosen, output[0], rtol=1e-3, atol=1e-4):
            raise ValueError(
                f"quantiser {self.name!r}: looked for the rows of its codevectors {tuple(module.codevectors.shape)} "
                f"with the largest of the numbers {tuple(self.scores.shape)}, found others. {TEN_LINES}"
            )
        weights = module.weight_proj.weight.unflatten(0, (groups, -1))
        codes = torch.stack([_means(entered, one, rows) for one, rows in zip(index, weights)])
        self.keep(entered, output[0], -1, entered.expand(groups, *entered.shape), codes, index)


def _means(latents: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """Of the latents with each index, (K, D); where there are none, a place out of reach, where its row points."""
    flat, index = latents.reshape(-1, latents.shape[-1]).float(), index.flatten()
    uses = torch.bincount(index, minlength=len(rows))
    means = flat.new_zeros(len(rows), flat.shape[1]).index_add_(0, index, flat) / uses.clamp_min(1)[:, None]
    far = flat.mean(0) + FAR * flat.norm(dim=-1).max() * nn.functional.normalize(rows.float(), dim=-1)
    return torch.where(uses[:, None] > 0, means, far)
