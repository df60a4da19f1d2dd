"""Schedule-free optimisation that leaves frozen parameters alone: optax's own, inside `freeze`.

Defazio et al., "The road less scheduled", 2024 (https://arxiv.org/abs/2405.15682). The
parameters that are trained are not those to evaluate: take these with `schedule_free_params`.
"""

from __future__ import annotations

import jax
import optax
from optax import contrib

from jaxft.optim.checks import Scalar, known
from jaxft.optim.freeze import freeze
from jaxft.optim.lookup import TreeOrFunction
from jaxft.optim.paths import Tree, by_path, path_map


def schedule_free(
    tx: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    frozen: TreeOrFunction | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`optax.contrib.schedule_free` for the trainable parameters.

    >>> import jax.numpy as jnp
    >>> params = {'body': jnp.ones(1), 'head': jnp.ones(1)}
    >>> tx = schedule_free(optax.adamw(0.1, b1=0.0), 0.1, frozen={'body': True, 'head': False})
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> float(updates['body'][0]), bool(updates['head'][0] < 0)
    (0.0, True)

    Args:
      tx: base optimizer *without* momentum (Adam with b1=0), with the same learning rate.
      learning_rate: warm-up, then constant.
      b1: interpolation that takes the place of momentum, in (0, 1].
      frozen: True for parameters that stay as they are, or a function that says so for the
        parameters.

    Raises:
      ValueError: `b1` is not in (0, 1].
    """
    if known(b1) and not 0 < b1 <= 1:
        raise ValueError(f"b1={b1} of a schedule-free optimizer is not in (0, 1]: 0.9 is usual")
    inner = contrib.schedule_free(tx, learning_rate, b1)
    return inner if frozen is None else freeze(inner, frozen)


def schedule_free_params(state: optax.OptState, params: Tree) -> Tree:
    """The parameters to evaluate; frozen ones as they are.

    Raises:
      ValueError: the state is not that of a schedule-free optimizer.
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, contrib.ScheduleFreeState))
    found = [node for node in nodes if isinstance(node, contrib.ScheduleFreeState)]
    if len(found) != 1:
        raise ValueError(f"the state holds {len(found)} schedule-free optimizers, not 1")
    z = by_path(found[0].z)
    trained = by_path(params)
    trained = {path: trained[path] for path in z}
    evaluated = contrib.schedule_free_eval_params(found[0]._replace(z=z), trained)
    return path_map(lambda path, param: evaluated.get(path, param), params)
