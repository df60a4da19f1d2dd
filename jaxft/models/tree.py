"""Trees of parameters: nested dicts of arrays; str keys, int keys for list entries."""

import re
from collections.abc import Mapping
from typing import Any

import jax

Params = dict


def by_path(tree: Params) -> dict[str, Any]:
    """{'a': {0: {'kernel': x}}} -> {'a/0/kernel': x}, in the order of jax.tree.leaves.

    As `jaxft.optim.by_path`, which this part does not import.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nested(leaves: Mapping[str, Any]) -> Params:
    """{'a/0/kernel': x} -> {'a': {0: {'kernel': x}}}, the inverse of `by_path`.

    Keys are numbers where all beside them are, so that 10 follows 9.
    """
    tree: Params = {}
    for path, leaf in leaves.items():
        *above, name = path.split("/")
        inner = tree
        for key in above:
            inner = inner.setdefault(key, {})
        inner[name] = leaf
    return _numbered(tree)


def _numbered(tree: Params) -> Params:
    numbers = all(key.isdecimal() for key in tree)
    return {
        int(key) if numbers else key: _numbered(value) if isinstance(value, dict) else value
        for key, value in tree.items()
    }


def depth_at(path: str, rules: tuple[tuple[str, int], ...]) -> int:
    """That of the first (pattern, depth) which matches the whole path."""
    for pattern, depth in rules:
        if re.fullmatch(pattern, path):
            return depth
    raise AssertionError(f"no depth rule covers {path}")
