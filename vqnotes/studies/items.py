"""Items that are to be named by codes: vectors, and the tree that they come from."""

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqnotes import data

__all__ = ["Items", "digit_items", "text_items", "tree_items"]

PACKAGES = ("numpy", "scipy", "sklearn")  # whose descriptions are items
LEFT_OUT = ("tests", "testing", "externals", "conftest.py")
WORDS = 8  # that a description has at least


class Items(NamedTuple):
    """Items as vectors x (N, D), float32, entries of mean 0 and variance 1; and a tree, known beforehand.

    tree: (N, depth) int64, the node above each item at each depth, from the root on. A node is numbered within its
    depth, so that equal numbers are one node. titles: one for each item, or none.
    """

    x: Tensor
    tree: Tensor
    titles: tuple[str, ...] = ()


def tree_items(seed: int, count: int = 4096, groups: int = 16, kinds: int = 16, dim: int = 32) -> Items:
    """Items of a tree: groups, kinds in each group, and items in each kind, as many as chance gives them.

    A vector is the sum of a normal one for its group, one half as long for its kind, and one a quarter as long of its
    own. Kinds are of uneven size, as those of a shop are: the n-th commonest has a share in proportion to 1/n.
    Raises ValueError unless all sizes are positive.
    """
    if min(count, groups, kinds, dim) < 1:
        raise ValueError(f"all sizes must be positive, got {count}, {groups}, {kinds}, {dim}")
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, groups * kinds + 1)
    kind = rng.permutation(groups * kinds)[rng.choice(groups * kinds, count, p=share / share.sum())]
    of_groups = rng.standard_normal((groups, dim))
    of_kinds = 0.5 * rng.standard_normal((groups * kinds, dim))
    x = of_groups[kind // kinds] + of_kinds[kind] + 0.25 * rng.standard_normal((count, dim))
    return Items(_scaled(x), torch.from_numpy(np.stack([kind // kinds, kind], axis=1)))


def digit_items() -> Items:
    """The 1,797 handwritten digits as items (1797, 64). Their tree has one depth: which digit it is."""
    x, y, _ = data.digit_vectors()
    return Items(_scaled(x.numpy()), y[:, None], tuple(f"a {digit}" for digit in y.tolist()))


def text_items(dim: int = 32) -> Items:
    """What NumPy, SciPy and scikit-learn say of their functions and classes: a description is an item.

    The first paragraph of each docstring, as TF-IDF of its words and an SVD to `dim` dimensions. The tree: package,
    and the part of it, such as scipy.stats. How many there are, some thousands, depends on the versions installed.
    The sources are read, and nothing is imported. Raises ValueError unless dim is positive.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    if dim < 1:
        raise ValueError(f"dim must be positive, got {dim}")
    found = [one for package in PACKAGES for one in _descriptions(package)]
    words = TfidfVectorizer(stop_words="english", sublinear_tf=True, min_df=2)
    x = TruncatedSVD(dim, random_state=0).fit_transform(words.fit_transform([text for _, _, text in found]))
    parts = [(part.split(".")[0], part) for part, _, _ in found]
    tree = np.stack([np.unique(depth, return_inverse=True)[1] for depth in zip(*parts)], axis=1)
    return Items(_scaled(x), torch.from_numpy(tree), tuple(f"{part}: {name}" for part, name, _ in found))


def _scaled(x: np.ndarray) -> Tensor:
    x = x - x.mean(axis=0)
    return torch.from_numpy(x / x.std()).float()


def _descriptions(package: str) -> list[tuple[str, str, str]]:
    """The part of the package, the name and the first paragraph of what is defined there and described."""
    spec = find_spec(package)
    root = Path((spec and spec.origin) or "").parent
    found = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root).parts
        if any(part in LEFT_OUT or part.startswith("test_") for part in inside):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            text = (ast.get_docstring(node) or "").split("\n\n")[0]
            if len(text.split()) >= WORDS:
                found.append((f"{package}.{inside[0].removesuffix('.py')}", node.name, text))
    return found
