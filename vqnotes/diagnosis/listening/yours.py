"""How any quantiser is heard that its user describes: by two functions, or by its own `prepare()` and `codes()`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vqnotes.diagnosis.listening.calls import Ear, axis_of, first_argument
from vqnotes.diagnosis.listening.tracing import tensors_in
from vqnotes.nearest import nearest_code

__all__ = ["KNOWN", "TEN_LINES", "described", "ear_of", "ten_lines"]

KNOWN = "modules with the methods prepare() and codes()"


def ten_lines(latents: str, codes: str, index: str = "", names: str = "of the module in the model") -> str:
    """Those that describe a quantiser: what its functions return; names: whose name "vq" is."""
    third = f"\n\n    def index_of(module, returned):\n        return {index}" if index else ""
    return f"""Ten lines of your own say how any quantiser works:

    from vqnotes import diagnose_model

    def latents_of(module, entered):  # entered: the first argument that the module is called with
        return {latents}

    def codes_of(module):
        return {codes}{third}

    quantizers = {{"vq": (latents_of, codes_of{", index_of" if index else ""})}}  # "vq" is the name {names}
    print(diagnose_model(model, data, quantizers=quantizers))
"""


TEN_LINES = ten_lines(
    "entered.movedim(1, -1)  # what is compared with the codes: (..., D)",
    "module.embedding.weight  # the codes in use: (K, D)",
)

INDEX_OF = "a third function, index_of(module, returned), says which index each latent got"


def ear_of(module: nn.Module) -> type[Ear] | None:
    """The kind of ear that hears this module; None if it has no methods prepare() and codes()."""
    if not all(callable(getattr(module, name, None)) for name in ("prepare", "codes")):
        return None
    return _ear(lambda module, entered: module.prepare(entered), lambda module: module.codes(), None, KNOWN)


def described(model: nn.Module, quantizers: Any) -> dict[str, type[Ear]]:
    """The ears of the quantisers that are described: {name of the module: (latents_of, codes_of[, index_of])}.

    Raises ValueError for a name that is no module of the model, and for what is no such functions.
    """
    if not isinstance(quantizers, Mapping):
        raise ValueError(f"quantizers must be a dict, got {type(quantizers).__name__}. {TEN_LINES}")
    names = dict(model.named_modules())
    for name, functions in quantizers.items():
        if name not in names:
            known = ", ".join(repr(one) for one in names if one)
            raise ValueError(f"quantizers: {type(model).__name__} has no module {name!r}; it has {known or 'none'}")
        fits = isinstance(functions, tuple | list) and len(functions) in (2, 3) and all(map(callable, functions))
        if not fits:
            raise ValueError(
                f"quantizers[{name!r}] must be two or three functions, got {functions!r:.80}. {TEN_LINES}"
            )
    return {name: _ear(*functions, *[None] * (3 - len(functions))) for name, functions in quantizers.items()}


def _ear(
    latents_of: Callable, codes_of: Callable, index_of: Callable | None, how: str = "the functions of quantizers="
) -> type[Ear]:
    class YourEar(Ear):
        """Hears one module as it is described."""

        def hear(self, module: nn.Module, arguments: tuple, named: dict, output: Any) -> None:
            entered = first_argument(arguments, named)
            latents, codes = latents_of(module, entered), codes_of(module)
            shapes = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in (latents, codes)]
            both = isinstance(latents, Tensor) and isinstance(codes, Tensor)
            if not both or codes.ndim != 2 or not latents.ndim or latents.shape[-1] != codes.shape[1]:
                raise ValueError(
                    f"quantiser {self.name!r}: need latents (..., D) and codes (K, D), got {shapes[0]} and "
                    f"{shapes[1]}. {TEN_LINES}"
                )
            places = tuple(latents.shape[:-1])
            if index_of is not None:
                index, said = index_of(module, output), "index_of"
            else:
                index, said = _index(self.name, output, latents, codes)
            if not isinstance(index, Tensor) or index.numel() != latents[..., 0].numel():
                found = tuple(index.shape) if isinstance(index, Tensor) else type(index).__name__
                raise ValueError(
                    f"quantiser {self.name!r}: index_of must give one index for each latent {places}, got {found}"
                )
            alike = [one for one in tensors_in(output) if one.is_floating_point()]
            same = [one for one in alike if one.shape == entered.shape]
            self.note = f"heard by {how}; indices: {said}"
            self.keep(
                entered,
                [*same, *alike, entered][0],
                axis_of(entered, places, latents.shape[-1]),
                latents,
                codes,
                index.reshape(places).long(),
            )

    return YourEar


def _index(name: str, output: Any, latents: Tensor, codes: Tensor) -> tuple[Tensor, str]:
    """The indices that a module returned; or those of the rows that it returned; or else the nearest codes.

    Raises ValueError where it returned two that differ.
    """
    count, size = latents[..., 0].numel(), len(codes)
    found: list[Tensor] = []
    for one in tensors_in(output):
        whole = not one.is_floating_point() and one.dtype != torch.bool and one.numel() == count
        if whole and 0 <= one.min() and one.max() < size and not any(_same(one, other) for other in found):
            found.append(one)
    if len(found) > 1:
        shapes = " or ".join(f"{one.dtype} {tuple(one.shape)}" for one in found)
        raise ValueError(f"quantiser {name!r} returned {shapes}: either may be its indices; {INDEX_OF}")
    if found:
        return found[0], "those that it returned"
    rounding = 1e-3 * float(codes.abs().max())
    for one in tensors_in(output):
        for axis in range(one.ndim) if one.is_floating_point() and one.numel() == latents.numel() else ():
            if one.shape[axis] == codes.shape[1]:
                rows = one.movedim(axis, -1).reshape(count, -1)
                index = nearest_code(rows, codes.detach().to(rows.dtype))
                if torch.allclose(codes[index].to(rows.dtype), rows, rtol=1e-3, atol=rounding):
                    return index, "those of the codes that it returned"
    return nearest_code(latents.reshape(count, -1), codes.to(latents.dtype)), "the nearest codes, it returned none"


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.flatten().long(), other.flatten().long())
