"""Keep part of the parameters exactly as they are.

Three things make a parameter move although its gradient is zero: decoupled weight decay, momentum
of earlier steps, and noise. `freeze` therefore routes frozen parameters around the optimizer
altogether.
"""

from __future__ import annotations

import optax

from jaxft.optim.lookup import TreeOrFunction, lookup
from jaxft.optim.partition import FROZEN, TRAIN, train_labels


def freeze(
    tx: optax.GradientTransformation, frozen: TreeOrFunction
) -> optax.GradientTransformationExtraArgs:
    """`tx` for the trainable parameters, zero updates and no state for the frozen ones.

    `optax.multi_transform` of `tx` and `optax.set_to_zero()`. Clipping belongs *inside* `tx`:
    around `freeze` it would count the gradients of frozen parameters, and force them to be
    computed (measured on 12 blocks with 9 frozen: 20 matrix products inside, 38 outside, of 38
    without freezing).

    >>> import jax.numpy as jnp
    >>> params = {'body': jnp.ones(2), 'head': jnp.ones(2)}
    >>> tx = freeze(optax.adamw(0.1), {'body': True, 'head': False})
    >>> updates, _ = tx.update(params, tx.init(params), params)
    >>> updates['body'].tolist(), bool((updates['head'] < 0).all())
    ([0.0, 0.0], True)

    Args:
      tx: transform that sees only the trainable parameters.
      frozen: bools at the paths of the parameters, such as `select(params, patterns)`, or a
        function that gives them for the parameters.

    Returns:
      A transform for the full tree and for its trainable part (see `partition.split`) alike.

    Raises:
      ValueError: (at init) a parameter has no entry in `frozen`.
    """
    frozen_in = lookup(frozen)
    return optax.multi_transform(
        {TRAIN: tx, FROZEN: optax.set_to_zero()}, lambda tree: train_labels(frozen_in(tree))
    )
