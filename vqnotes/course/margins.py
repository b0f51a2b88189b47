"""How near the figures of a notebook's claims come to their bounds, from one base seed to the next.

`listen` is called in a kernel. From then on every comparison in the second argument of a `claim` is heard with both
of its sides, and the cell's outputs hold what was heard. `rooms` makes a table of that for several seeds.
"""

import ast
import operator
from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Listener", "compared", "evidence", "listen", "margin", "report", "rooms", "under", "witness"]

MIME = "application/vnd.vqnotes.comparison+json"
ENOUGH = 3.0  # standard deviations: for normal figures one seed in 740 falls
OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}
SYMBOLS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}


# ---------------------------------------------------------------- in the kernel: the source of a cell is changed


class Listener(ast.NodeTransformer):
    """Changes `claim(statement, a < b)` so that a and b are heard; what the claim is given stays what it was.

    A comparison is heard where its truth decides the claim: by itself, joined by `and`, after `not`, in `all` and
    `any` (the functions and the methods, over arrays, tables and generators), in a part of a table. So are
    `is_monotonic_increasing` and `is_monotonic_decreasing`, as differences. Under `or`, and in what is counted,
    nothing is: of `(a < b).sum() > 7` the sum is heard, not a. Where `x.verdict` is looked at, the evidence of x is.
    """

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if getattr(node.func, "id", "").endswith("claim") and len(node.args) > 1:
            statement, holds, *others = node.args
            node.args = [_call("under", statement), _heard(_Witness().visit(holds)), *others]
        return node


class _Witness(ast.NodeTransformer):
    def visit_Attribute(self, node: ast.Attribute) -> ast.Attribute:
        self.generic_visit(node)
        if node.attr == "verdict":
            node.value = _call("witness", ast.Constant(ast.unparse(node.value)), node.value)
        return node


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Attribute(ast.Name("__margins__", ast.Load()), name, ast.Load()), [*arguments], [])


def _heard(
    node: ast.expr, part: Callable = lambda whole: whole, most: bool = False, turned: bool = False
) -> ast.expr:
    """The expression with its comparisons heard. part: what of a comparison's result counts, as an expression of it.

    most: whether one element that holds is enough (`any`). turned: whether an odd number of `not` stands before it.
    """
    match node:
        case ast.BoolOp(op=ast.And()) if not turned:
            node.values = [_heard(one) for one in node.values]
        case ast.UnaryOp(op=ast.Not()):
            node.operand = _heard(node.operand, turned=not turned)
        case ast.Call(func=ast.Name(id="all" | "any" as name), args=[ast.GeneratorExp() | ast.ListComp() as each]):
            each.elt = _heard(each.elt, most=name == "any", turned=turned)
        case ast.Call(func=ast.Name(id="bool"), args=[one]):
            node.args = [_heard(one, turned=turned)]
        case ast.Call(func=ast.Name(id="all" | "any" as name), args=[one]) if not isinstance(one, ast.BoolOp):
            node.args = [_heard(one, part, name == "any", turned)]
        case ast.Call(func=ast.Attribute(value=one, attr="all" | "any" as name) as method, args=[]):
            method.value = _heard(one, part, name == "any", turned)
        case ast.Subscript(value=one, slice=which):
            node.value = _heard(
                one, lambda whole: part(ast.Subscript(whole, deepcopy(which), ast.Load())), most, turned
            )
        case ast.Attribute(value=one, attr="loc" | "iloc" | "values" as name):
            node.value = _heard(one, lambda whole: part(ast.Attribute(whole, name, ast.Load())), most, turned)
        case ast.Attribute(value=one, attr="is_monotonic_increasing" | "is_monotonic_decreasing" as name):
            sign = ">=" if name.endswith("increasing") else "<="
            steps = ast.parse(f"bool(({ast.unparse(one)}.diff().iloc[1:] {sign} 0).all())", mode="eval").body
            return _heard(steps, turned=turned)
        case ast.Compare(ops=ops) if {type(one) for one in ops} <= SYMBOLS.keys():
            symbols = [SYMBOLS[type(one)] for one in ops]
            sides = [node.left, *node.comparators]
            texts = ast.Constant(cast(Any, tuple(map(ast.unparse, sides))))
            arguments = ast.arguments([], [ast.arg("whole")], None, [], [], None, [])
            chosen = ast.Lambda(arguments, part(ast.Name("whole", ast.Load())))
            options = [ast.Constant(most), ast.Constant(turned)]
            return _call(
                "compared",
                texts,
                ast.Constant(cast(Any, tuple(symbols))),
                ast.Tuple(sides, ast.Load()),
                chosen,
                *options,
            )
    return node


# ---------------------------------------------------------------- in the kernel: what the changed source calls

_statement = ""


def listen() -> None:
    """From now on this kernel's claims are heard."""
    import sys

    from IPython import get_ipython

    shell = get_ipython()
    shell.user_ns["__margins__"] = sys.modules[__name__]
    shell.ast_transformers.append(Listener())


def under(statement: str) -> str:
    """Hands the statement of a claim through: what is compared next is compared for its sake."""
    global _statement
    _statement = statement
    return statement


def witness(name: str, diagnosis: object) -> object:
    """Hands a diagnosis through; its evidence is heard, each figure beside its reference."""
    for what, one in getattr(diagnosis, "evidence", {}).items():
        sides = {"left": float(one.value), "right": float(one.reference)}
        if np.isfinite([*sides.values()]).all():
            _publish({"evidence": f"{name}: {what}", "speaks_for": str(one.speaks_for), **sides})
    return diagnosis


def compared(texts: tuple, symbols: tuple, sides: tuple, part: Callable, most: bool, turned: bool) -> object:
    """What Python gives for `sides[0] symbols[0] sides[1] symbols[1] sides[2] ...`; each pair is heard."""
    outcome: object = True
    for place, symbol in enumerate(symbols):
        left, right = sides[place : place + 2]
        outcome = OPERATORS[symbol](left, right)
        try:
            found = margin(left, symbol, right, outcome, part, most, turned)
        except (TypeError, ValueError):  # no numbers: of this claim only its truth is known
            found = None
        if found is not None:
            _publish({"comparison": f"{texts[place]} {symbol} {texts[place + 1]}", **found})
        if place + 1 < len(symbols) and not outcome:
            break
    return outcome


def _publish(record: dict) -> None:
    from IPython.display import display

    display({MIME: {"statement": _statement, **record}}, raw=True)


def _numbers(side: object) -> np.ndarray:
    return np.asarray(side.detach().cpu().double() if hasattr(side, "detach") else side, dtype=float)


def margin(
    left: object, symbol: str, right: object, outcome: Any, part: Callable, most: bool = False, turned: bool = False
) -> dict | None:
    """How far a comparison is from its bound, negative where it does not hold, and both sides at that place.

    Of arrays the element that decides counts: the nearest to its bound, or with `most` the farthest. "difference" is
    in the unit of the figure, "ratio" the logarithm of the quotient, None unless all of both sides are above 0.
    part: takes the result of the comparison, gives what of it counts. None if the arrays do not match one by one.
    """
    lefts, rights = np.broadcast_arrays(_numbers(left), _numbers(right))
    agreed = np.asarray(outcome.cpu() if hasattr(outcome, "cpu") else outcome)
    if lefts.shape != agreed.shape or not (OPERATORS[symbol](lefts, rights) == agreed).all():
        return None
    places = np.arange(lefts.size).reshape(lefts.shape)
    if hasattr(outcome, "index") and hasattr(outcome, "loc"):  # a table: its parts are chosen by its names
        axes = {"index": outcome.index} | ({"columns": outcome.columns} if places.ndim == 2 else {})
        places = type(outcome)(places, **axes)
    which = np.asarray(part(places)).ravel()
    lefts, rights = lefts.ravel()[which], rights.ravel()[which]
    if not which.size or not np.isfinite(lefts - rights).all():
        return None
    if turned:
        symbol, most = OPPOSITE[symbol], not most
    sign, decides = (1 if "<" in symbol else -1), np.argmax if most else np.argmin
    differences = sign * (rights - lefts)
    place = int(decides(differences))
    positive = bool((lefts > 0).all() and (rights > 0).all())
    ratio = float(sign * np.log(rights / lefts)[decides(sign * np.log(rights / lefts))]) if positive else None
    sides = {"left": float(lefts[place]), "right": float(rights[place]), "symbol": symbol, "most": most}
    return {"difference": float(differences[place]), "ratio": ratio, **sides}


# ---------------------------------------------------------------- outside: from seed to seed

COLUMNS = ["statement", "comparison", "room", "nearest", "seed", "left", "symbol", "right", "scale", "seeds", "falls"]


def rooms(claims: dict[int, dict[str, str]], heard: dict[int, list[dict]]) -> "DataFrame":
    """One row a claim and comparison, the least room first: how far its figure stays from its bound over base seeds.

    claims: by seed, each statement met with "" or what was wrong. heard: by seed, what the kernel heard.
    room: mean distance to the bound, in standard deviations between seeds: (bound - mean) / deviation. Where both
    sides are positive for every seed, distance is the logarithm of their quotient, since errors and counts vary by
    factors (scale "ratio"); otherwise it is their difference. NaN for a single seed and where only the truth of a
    claim is known, infinite for what is the same for every seed. nearest: the same of the seed that comes nearest,
    below 0 if the claim falls there; seed, left, symbol, right: that seed and its figures.
    falls: the seeds whose claim does not hold, or was not reached.
    """
    import pandas as pd

    rows = []
    for statement in dict.fromkeys(one for found in claims.values() for one in found):
        falls = [seed for seed, found in claims.items() if found.get(statement, "not reached")]
        texts = dict.fromkeys(
            one["comparison"]
            for records in heard.values()
            for one in records
            if one["statement"] == statement and "comparison" in one
        )
        for text in texts or [""]:
            records = {
                seed: [one for one in records if one["statement"] == statement and one.get("comparison") == text]
                for seed, records in heard.items()
            }
            row = _room({seed: found for seed, found in records.items() if found})
            rows.append({"statement": statement, "comparison": text, "seeds": len(claims), "falls": falls} | row)
    table = pd.DataFrame(rows, columns=COLUMNS)
    order = sorted(table.index, key=lambda i: (not table["falls"][i], _last(table["room"][i]), i))
    return table.loc[order].reset_index(drop=True)


def _last(room: float) -> float:
    """For sorting: what has no number comes last."""
    return float(np.nan_to_num(room, nan=np.inf))


def _room(records: dict[int, list[dict]]) -> dict:
    """The room of one comparison, from what was heard of it by seed (in a loop or a generator more than once)."""
    if not records:
        return {"room": np.nan, "nearest": np.nan}
    every = [one for found in records.values() for one in found]
    scale = "difference" if any(one["ratio"] is None for one in every) else "ratio"
    decides = max if every[0]["most"] else min
    deciding = {seed: decides(found, key=lambda one: one[scale]) for seed, found in records.items()}
    distances = np.array([one[scale] for one in deciding.values()])
    seed = min(deciding, key=lambda seed: deciding[seed][scale])
    sides = {"seed": seed, "scale": scale} | {side: deciding[seed][side] for side in ("left", "symbol", "right")}
    if len(distances) == 1:
        return {"room": np.nan, "nearest": np.nan, **sides}
    deviation = distances.std(ddof=1)
    if deviation <= 1e-12 * np.abs(distances).max():
        far = np.inf if distances.min() >= 0 else -np.inf
        return {"room": far, "nearest": far, **sides}
    return {"room": distances.mean() / deviation, "nearest": distances.min() / deviation, **sides}


def evidence(heard: dict[int, list[dict]]) -> "DataFrame":
    """What the verdicts in claims rest on: each figure over its reference, the least, middle and most over seeds."""
    import pandas as pd

    found: dict[str, dict] = {}
    for seed, records in heard.items():
        for one in records:
            if "evidence" in one:  # asked about twice in one run, it is the same
                found.setdefault(one["evidence"], {})[seed] = one
    rows = []
    for name, by_seed in found.items():
        ratios = [one["left"] / one["right"] if one["right"] else np.nan for one in by_seed.values()]
        speaks = " / ".join(dict.fromkeys(one["speaks_for"] or "-" for one in by_seed.values()))
        least, middle, most = np.quantile(ratios, [0, 0.5, 1])
        rows.append({"evidence": name, "least": least, "middle": middle, "most": most, "speaks for": speaks})
    return pd.DataFrame(rows, columns=["evidence", "least", "middle", "most", "speaks for"])


def report(claims: dict[int, dict[str, str]], heard: dict[int, list[dict]]) -> str:
    """The table of `rooms` as text, and that of `evidence` below it."""
    lines = ["  room  nearest  seed  its figures", ""]
    for row in rooms(claims, heard).itertuples():
        numbers, sides = f"{'':15}", f"{'':>4}  {'only its truth is known':<26}"
        if row.comparison:
            numbers = f"{row.room:6.1f}  {row.nearest:7.1f}"
            sides = f"{row.seed:4.0f}  {f'{row.left:.4g} {row.symbol} {row.right:.4g}':<26}"
        falls = f"FALLS for {', '.join(map(str, row.falls))}: " if row.falls else ""
        near = "NEAR: " if not row.falls and row.room < ENOUGH else ""
        comparison = f"  [{row.comparison}]" if row.comparison else ""
        lines.append(f"{numbers}  {sides}  {falls}{near}{row.statement}{comparison}")
    behind = evidence(heard)
    if len(behind):
        lines += ["", "what the verdicts rest on, each figure over its reference:", "", "  least  middle    most"]
        lines += [
            f"{one.least:7.3g} {one.middle:7.3g} {one.most:7.3g}  {one.evidence}  [{one[-1]}]"
            for one in behind.itertuples()
        ]
    return "\n".join(lines)
