"""What makes remedies combine by inheritance: which do not work together, and which options a combination has."""

import inspect
from typing import Any

from torch import nn


class Combinable(nn.Module):
    """A module that is combined with others of its kind by inheritance, and shows the options of all of them.

    A class says which others it does not work with, and why, in `excludes` and `comes_before`: {other class: reason}.
    It keeps each option as an attribute of the same name, which is what `repr` shows.
    Raises ValueError when it is made of classes that do not work together.
    """

    excludes: dict[type, str] = {}
    comes_before: dict[type, str] = {}
    __signature__: inspect.Signature  # of each class: the options of all that it inherits from

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__signature__ = signature_of(cls)

    def __new__(cls, *size: Any, **options: Any) -> Any:
        check_combination(cls)
        return super().__new__(cls)

    def extra_repr(self) -> str:
        names = [name for name in type(self).__signature__.parameters if hasattr(self, name)]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def check_combination(kind: type) -> None:
    """Raises ValueError, with the reason, if remedies that `kind` inherits from do not work together in this order.

    What a class itself says in `excludes` and `comes_before` counts for all that inherit from it.
    """
    order, made_of = kind.__mro__, f"class {kind.__name__}({', '.join(base.__name__ for base in kind.__bases__)})"
    for one in order:
        for other, why in vars(one).get("excludes", {}).items():
            if other in order:
                raise ValueError(f"{kind.__name__}: {why}; got {made_of}")
        for other, why in vars(one).get("comes_before", {}).items():
            if other in order and order.index(other) < order.index(one):
                first = f"{one.__name__} must come before {other.__name__}"
                raise ValueError(f"{kind.__name__}: {why}, so {first}; got {made_of}")


def signature_of(kind: type) -> inspect.Signature:
    """All that `kind(...)` takes: the options of every class that it inherits from, each with its first default.

    Each class names its own options and passes the rest on (`*size, **options`), since what comes next depends on
    the combination. So no class can spell them all out; here they are put together, for `help` and completion.
    The size is said as by the first class that names it. A class that passes nothing on is the last to be asked.
    """
    size: dict[str, inspect.Parameter] = {}
    options: dict[str, inspect.Parameter] = {}
    for one in kind.__mro__:
        if "__init__" not in vars(one):
            continue
        own = list(inspect.signature(vars(one)["__init__"]).parameters.values())[1:]
        size = size or {each.name: each for each in own if each.kind is each.POSITIONAL_OR_KEYWORD}
        new = [each for each in own if each.kind is each.KEYWORD_ONLY and each.name not in size | options]
        options |= {each.name: each for each in new}
        if not any(each.kind is each.VAR_KEYWORD for each in own):
            break
    return inspect.Signature([*size.values(), *options.values()])
