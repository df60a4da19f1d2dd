"""Trees of parameters: nested dicts of arrays; str keys, int keys for list entries."""

import re
from typing import Any

import jax

Params = dict


def by_path(tree: Params) -> dict[str, Any]:
    """{'a': {0: {'kernel': x}}} -> {'a/0/kernel': x}, in the order of jax.tree.leaves.

    As `jaxft.optim.by_path`, which this part does not import.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nested(leaves: dict[str, Any]) -> Params:
    """{'a/0/kernel': x} -> {'a': {0: {'kernel': x}}}, the inverse of `by_path`."""
    tree: Params = {}
    for path, leaf in leaves.items():
        *above, name = (int(key) if key.isdecimal() else key for key in path.split("/"))
        inner = tree
        for key in above:
            inner = inner.setdefault(key, {})
        inner[name] = leaf
    return tree


def depth_at(path: str, rules: tuple[tuple[str, int], ...]) -> int:
    """That of the first (pattern, depth) which matches the whole path."""
    for pattern, depth in rules:
        if re.fullmatch(pattern, path):
            return depth
    raise AssertionError(f"no depth rule covers {path}")
