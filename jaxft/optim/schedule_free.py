"""Schedule-free optimisation that leaves frozen parameters alone: optax's own, inside `freeze`.

Defazio et al., "The road less scheduled", 2024 (https://arxiv.org/abs/2405.15682). The
parameters that are trained are not those to evaluate: take these with `schedule_free_params`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxft.optim.checks import Scalar, known
from jaxft.optim.freeze import freeze
from jaxft.optim.lookup import TreeOrFunction
from jaxft.optim.paths import Tree, by_path, path_map


class WideState(NamedTuple):
    """`params`: those that train, in float32; `inner`: the state of optax's transform, of these."""

    params: Tree
    inner: contrib.ScheduleFreeState


def schedule_free(
    tx: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    frozen: TreeOrFunction | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`optax.contrib.schedule_free` for the trainable parameters.

    Parameters narrower than float32 get a float32 copy in the state, and everything is summed in it:
    optax's own sum of squared rates stops growing in bfloat16 after 256 updates, and the averages
    after it.

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
    inner = _wide(contrib.schedule_free(tx, learning_rate, b1))
    return inner if frozen is None else freeze(inner, frozen)


def schedule_free_params(state: optax.OptState, params: Tree) -> Tree:
    """The parameters to evaluate, in the types of `params`; frozen ones as they are.

    Raises:
      ValueError: the state is not that of a schedule-free optimizer.
    """
    kinds = (WideState, contrib.ScheduleFreeState)
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds))
    found = [node for node in nodes if isinstance(node, kinds)]
    if len(found) != 1:
        raise ValueError(f"the state holds {len(found)} schedule-free optimizers, not 1")
    trained, inner = by_path(params), found[0]
    if isinstance(inner, WideState):
        wide, inner = by_path(inner.params), inner.inner
        trained = {path: _widened(leaf, trained[path]) for path, leaf in wide.items()}
    z = by_path(inner.z)
    trained = {path: trained[path] for path in z}
    evaluated = contrib.schedule_free_eval_params(inner._replace(z=z), trained)

    def evaluated_or_param(path: str, param: jax.Array) -> jax.Array:
        return evaluated[path].astype(param.dtype) if path in evaluated else param

    return path_map(evaluated_or_param, params)


def _wide(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """`tx` on float32 copies of the parameters, where some of them are narrower."""

    def init(params: Tree) -> Any:
        leaves = jax.tree.leaves(params)
        if all(leaf.dtype == _wide_type(leaf) for leaf in leaves):
            return tx.init(params)
        wide = jax.tree.map(lambda p: jnp.array(p, _wide_type(p), copy=True), params)
        return WideState(wide, tx.init(wide))

    def update(updates: Tree, state: Any, params: Tree | None = None, **extra_args: Any):
        if not isinstance(state, WideState):
            return tx.update(updates, state, params, **extra_args)
        wide = jax.tree.map(_widened, state.params, params)
        updates = jax.tree.map(lambda g, p: g.astype(p.dtype), updates, wide)
        updates, inner = tx.update(updates, state.inner, wide, **extra_args)
        wide = optax.apply_updates(wide, updates)
        # In float32, so that applied to the narrow parameters it gives the wide ones, rounded.
        moved = jax.tree.map(lambda w, p: w.astype(p.dtype).astype(w.dtype) - p, wide, params)
        return moved, WideState(wide, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _widened(wide: jax.Array, param: jax.Array) -> jax.Array:
    """The float32 copy; the parameter itself where something else has moved it since."""
    return jnp.where(wide.astype(param.dtype) == param, wide, param.astype(wide.dtype))


def _wide_type(leaf: jax.Array) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)
