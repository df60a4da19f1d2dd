"""Take a tree of parameters apart by label, and put it together again.

What is not in the differentiated part has no gradient, hence no backward work, no optimizer slot
and no influence on norms: splitting guarantees what masking leaves to the compiler's dead-code
elimination.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import jax

from jaxft.optim.paths import Tree, align, leaf_paths

TRAIN, FROZEN = "train", "frozen"


def split(params: Tree, labels: Tree, names: Iterable[Hashable] = ()) -> dict[Hashable, Tree]:
    """One tree a label, each of the structure of `params` with None where another label stands.

    >>> parts = split({'body': 1.0, 'head': 2.0}, {'body': 'frozen', 'head': 'train'})
    >>> parts['train'], parts['frozen']
    ({'body': None, 'head': 2.0}, {'body': 1.0, 'head': None})

    Differentiate one part and close over the other:
    `jax.grad(lambda train: loss(merge(train, frozen)))(train)`.

    Args:
      params: any pytree.
      labels: hashable labels at the paths of `params` (any container, see `paths.align`).
      names: labels that are in the result even when no leaf has them.

    Raises:
      ValueError: a parameter has no label.
    """
    found = jax.tree.leaves(align(labels, params))
    leaves, treedef = jax.tree.flatten(params)
    names = dict.fromkeys((*names, *found))
    return {name: _only(name, found, leaves, treedef) for name in names}


def merge(*parts: Tree) -> Tree:
    """The inverse of `split`: at each place the one leaf that is not None.

    >>> merge({'a': None, 'b': 2.0}, {'a': 1.0, 'b': None})
    {'a': 1.0, 'b': 2.0}

    Raises:
      ValueError: two parts hold a leaf at the same place, or have different structures.
    """

    def pick(*leaves: Any) -> Any:
        present = [leaf for leaf in leaves if leaf is not None]
        if len(present) > 1:
            raise ValueError(f"{_shared_path(parts)!r} is in more than one of the merged parts")
        return present[0] if present else None

    return jax.tree.map(pick, *parts, is_leaf=_is_none)


def train_labels(frozen: Tree) -> Tree:
    """'frozen' where the tree of bools is True, 'train' elsewhere.

    >>> train_labels({'body': True, 'head': False})
    {'body': 'frozen', 'head': 'train'}
    """
    return jax.tree.map(lambda is_frozen: FROZEN if is_frozen else TRAIN, frozen)


def _only(name: Hashable, labels: list[Hashable], leaves: list[Any], treedef: Any) -> Tree:
    kept = [leaf if label == name else None for label, leaf in zip(labels, leaves, strict=True)]
    return jax.tree.unflatten(treedef, kept)


def _shared_path(parts: tuple[Tree, ...]) -> str:
    seen: set[str] = set()
    for part in parts:
        paths = set(leaf_paths(part))
        if seen & paths:
            return min(seen & paths)
        seen |= paths
    return ""


def _is_none(node: Any) -> bool:
    return node is None
