"""Trees of rates, masks and labels, given as they are or as a function of the parameters.

As in optax, a mask may be a function `params -> tree`, called whenever the transform meets a tree: the
parameters at `init` and `update`, or their trainable part with its holes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxft.optim.paths import Tree, align, by_path

TreeOrFunction = Tree | Callable[[Tree], Tree]


def is_function(values: TreeOrFunction) -> bool:
    """Whether `values` is a function of the parameters.

    An Equinox module may have `__call__` and still be a tree of values: JAX knows it as a container.
    """
    return callable(values) and jax.tree_util.all_leaves([values])


def of(values: TreeOrFunction, params: Tree) -> Tree:
    """The tree itself, or what the function gives for `params`."""
    return values(params) if is_function(values) else values


def lookup(values: TreeOrFunction) -> Callable[[Tree], Tree]:
    """The function that gives, for a tree of parameters, the values in its structure.

    >>> lookup({'head/kernel': 0.5, 'body': 0.1})({'body': 7.0})
    {'body': 0.1}
    >>> lookup(lambda params: jax.tree.map(lambda p: p > 0, params))({'body': 7.0})
    {'body': True}

    Raises:
      ValueError: (when called) a parameter has no value.
    """
    known = None if is_function(values) else by_path(values)
    return lambda tree: align(values(tree) if known is None else known, tree)


def deferred(
    make: Callable[[Tree], optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
    """The transform that `make` gives for the tree at hand, made anew at every call.

    Making one costs time while a program is traced, none while it runs.
    """

    def init(params: Tree) -> Any:
        return make(params).init(params)

    def update(updates: Tree, state: Any, params: Tree | None = None, **extra_args: Any):
        tx = optax.with_extra_args_support(make(updates if params is None else params))
        return tx.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)
