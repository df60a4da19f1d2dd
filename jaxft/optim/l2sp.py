"""Decay towards the pretrained weights instead of towards zero.

Li et al., "Explicit inductive bias for transfer learning with convolutional networks" (L2-SP), 2018
(https://arxiv.org/abs/1802.01483). The paper adds the penalty to the loss; here it is decoupled, as
weight decay is in AdamW, so that Adam does not rescale it. With SGD the two are the same.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxft.optim.checks import Scalar, known
from jaxft.optim.lookup import TreeOrFunction, lookup
from jaxft.optim.paths import Tree, by_path


class L2spState(NamedTuple):
    """`start`: the parameters at init, a copy; None where the decay is towards zero."""

    start: Tree


def l2sp(
    strength: Scalar, *, fresh: TreeOrFunction | None = None, fresh_strength: Scalar = 0.0
) -> optax.GradientTransformation:
    """Add `strength * (parameter - its value at init)`; chain it after the adaptive core.

    `init` must be given the pretrained parameters. They are kept in the state, one more copy of
    what is trained: as a constant of the compiled program they would be in it, and in every
    stage's again.

    >>> tx = l2sp(0.5)
    >>> state = tx.init(jnp.array([1.0]))
    >>> tx.update(jnp.array([0.0]), state, jnp.array([3.0]))[0].tolist()
    [1.0]

    Args:
      strength: the paper's alpha.
      fresh: True for parameters that are not pretrained (a new head): they decay towards zero; or
        a function that says so for the parameters.
      fresh_strength: their rate, the paper's beta.

    Raises:
      ValueError: (at init) a parameter has no entry in `fresh`; (at update) no params are given.
    """
    nothing_fresh = functools.partial(jax.tree.map, lambda _: False)
    is_fresh = nothing_fresh if fresh is None else lookup(fresh)
    fresh_decays = not known(fresh_strength) or bool(fresh_strength != 0)

    def init(params: Tree) -> L2spState:
        # A copy, so that params and state can both be donated to a compiled step.
        return L2spState(
            jax.tree.map(lambda p, new: None if new else jnp.copy(p), params, is_fresh(params))
        )

    def update(updates: Tree, state: L2spState, params: Tree | None = None):
        if params is None:
            raise ValueError("l2sp needs the parameters: call update(updates, state, params)")
        start = by_path(state.start)

        def decayed(update: jax.Array, param: jax.Array, path: str) -> jax.Array:
            if path in start:
                return update + jnp.asarray(strength, update.dtype) * (param - start[path])
            # In the update's type: a traced strength is float32, and would widen bfloat16.
            return (
                update + jnp.asarray(fresh_strength, update.dtype) * param
                if fresh_decays
                else update
            )

        leaves, treedef = jax.tree.flatten(updates)
        rows = zip(leaves, jax.tree.leaves(params), by_path(updates), strict=True)
        return jax.tree.unflatten(treedef, [decayed(*row) for row in rows]), state

    return optax.GradientTransformation(init, update)
