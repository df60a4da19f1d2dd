"""Sharpness-aware minimisation of the trainable parameters: optax's own, freeze-aware.

Foret et al., "Sharpness-aware minimization for efficiently improving generalization", 2021
(https://arxiv.org/abs/2010.01412). Each update costs a second gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxft.optim.checks import Scalar
from jaxft.optim.clip import Norm
from jaxft.optim.lookup import TreeOrFunction, lookup
from jaxft.optim.partition import FROZEN, TRAIN, merge, split, train_labels
from jaxft.optim.paths import Tree


def sam(
    tx: optax.GradientTransformation,
    radius: Scalar,
    *,
    frozen: TreeOrFunction | None = None,
    norm: Norm = optax.tree.norm,
) -> optax.GradientTransformationExtraArgs:
    """Update with the gradient taken `radius` uphill; frozen parameters move in neither step.

    `update(grads, state, params, grad_fn=…)` needs `grad_fn(params) -> grads` of the same batch.
    Where the gradient is zero no way leads uphill, and the gradient where it stands is taken.

    >>> loss = lambda params: jnp.sum(params['head'] ** 2) + jnp.sum(params['body'] ** 2)
    >>> params = {'body': jnp.ones(1), 'head': jnp.ones(1)}
    >>> tx = sam(optax.sgd(0.1), 0.5, frozen={'body': True, 'head': False})
    >>> updates, _ = tx.update(
    ...     jax.grad(loss)(params), tx.init(params), params, grad_fn=jax.grad(loss))
    >>> float(updates['body'][0]), round(float(updates['head'][0]), 3)  # -0.1 * 2 * (1 + 0.5)
    (0.0, -0.3)

    Args:
      tx: the optimizer proper.
      radius: the paper's rho, 0.05 for many models.
      frozen: True for parameters that stay as they are, or a function that says so for the
        parameters.
      norm: of gradients.

    Raises:
      ValueError: (at update) no `grad_fn` or no params are given.
    """
    uphill = optax.chain(optax.stateless(_normalised(norm)), optax.sgd(radius))
    inner = contrib.sam(tx, uphill, opaque_mode=True)
    frozen_in = None if frozen is None else lookup(frozen)

    def parts(tree: Tree) -> tuple[Tree, Tree]:
        if frozen_in is None:
            return tree, jax.tree.map(lambda _: None, tree)
        found = split(tree, train_labels(frozen_in(tree)), names=(TRAIN, FROZEN))
        return found[TRAIN], found[FROZEN]

    def init(params: Tree) -> Any:
        return inner.init(parts(params)[0])

    def update(
        updates: Tree,
        state: Any,
        params: Tree | None = None,
        *,
        grad_fn: Callable[[Tree], Tree] | None = None,
        **extra_args: Any,
    ):
        del extra_args
        if grad_fn is None or params is None:
            raise ValueError("sam needs update(grads, state, params, grad_fn=params -> grads)")
        trained, held = parts(params)
        gradient, unused = parts(updates)
        moved, state = inner.update(
            gradient, state, trained, grad_fn=lambda p, _: parts(grad_fn(merge(p, held)))[0]
        )
        return merge(moved, jax.tree.map(jnp.zeros_like, unused)), state

    return optax.GradientTransformationExtraArgs(init, update)


def _normalised(norm: Norm) -> Callable[[Tree, Tree | None], Tree]:
    """The gradient at length 1; zeros stay zeros, of which optax's `normalize` makes NaN."""

    def update(updates: Tree, params: Tree | None) -> Tree:
        del params
        length = norm(updates)
        factor = jnp.where(length == 0, 0.0, 1 / jnp.where(length == 0, 1.0, length))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)

    return update
