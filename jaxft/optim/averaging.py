"""Averages of the weights along a run (EMA, SWA), and between two models (WiSE-FT).

Averaging changes no update: the transforms here go last in a chain, pass updates through, and
keep the average in their state, from which `averaged` takes it for evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxft.optim.checks import Scalar, known
from jaxft.optim.paths import Tree, by_path, path_map


class AverageState(NamedTuple):
    """`step`: updates done, int32 scalar; `average`: of the parameters, float32 or wider."""

    step: jax.Array
    average: Tree


def weight_ema(
    decay: Scalar, *, warm_up: bool = True, accumulator_dtype: Any = None
) -> optax.GradientTransformation:
    """Exponential moving average of the parameters, which starts at their value at init.

    Tarvainen and Valpola, "Mean teachers are better role models", 2017
    (https://arxiv.org/abs/1703.01780). `decay` 0.999 averages about the last 1,000 updates.

    At update t (1 is the first) the old average is kept by `min(decay, (1 + t) / (10 + t))`, the
    warm-up of TensorFlow's `tf.train.ExponentialMovingAverage(num_updates=t)`: about the last tenth
    of the updates so far counts until `decay` is reached (0.999 at update 8,990), and after ten
    updates less than 1/10,000 of the weights at init is left. With `decay` from the start, 100
    updates of 0.999 would end with 90 % of them.

    >>> params = jnp.array([1.0])
    >>> tx = optax.chain(optax.sgd(1.0), weight_ema(0.999))
    >>> updates, state = tx.update(jnp.array([11.0]), tx.init(params), params)
    >>> averaged(state, params).round(5).tolist()  # 2/11 * 1 + 9/11 * (1 - 11)
    [-8.0]

    Args:
      decay: share of the old average that is kept, in [0, 1).
      warm_up: False keeps `decay` from the first update on.
      accumulator_dtype: of the average; None is the parameter's own, float32 where that is narrower:
        in bfloat16 an average stops moving as soon as a step is below 1/256 of it.

    Raises:
      ValueError: `decay` is not in [0, 1).
    """
    if known(decay) and not 0 <= decay < 1:
        raise ValueError(f"the decay {decay} of an average is not in [0, 1)")

    def share(count: jax.Array) -> jax.Array:
        # The new parameters' share, 1 - decay, of which float32 has more digits than of the decay.
        least = jnp.asarray(1 - decay, jnp.float32)
        return jnp.maximum(least, 9 / (10 + count.astype(jnp.float32))) if warm_up else least

    return _average(share, accumulator_dtype)


def swa(
    start: int | jax.Array, every: int | jax.Array = 1, *, accumulator_dtype: Any = None
) -> optax.GradientTransformation:
    """Equal average of the parameters after update `start` (1 is the first) and every so many.

    Before, the "average" is the current parameters. Meant for a constant or cyclic learning rate
    at the end of a run. Izmailov et al., "Averaging weights leads to wider optima and better
    generalization", 2018 (https://arxiv.org/abs/1803.05407). `accumulator_dtype` as in `weight_ema`.

    >>> params = jnp.array([0.0])
    >>> tx = optax.chain(optax.sgd(1.0), swa(start=2))
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...     updates, state = tx.update(jnp.array([-1.0]), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> params.tolist(), averaged(state, params).tolist()  # the average of 2 and 3
    ([3.0], [2.5])
    """
    if (known(start) and start < 1) or (known(every) and every < 1):
        raise ValueError(f"start and every count updates from 1, got {start} and {every}")

    def weight(count: jax.Array) -> jax.Array:
        since = count - start
        members = since // every + 1
        share = jnp.where(since % every == 0, 1.0 / jnp.maximum(members, 1), 0.0)
        return jnp.where(since < 0, 1.0, share)

    return _average(weight, accumulator_dtype)


def averaged(state: optax.OptState, params: Tree) -> Tree:
    """`params` with the average in place of every parameter that has one (frozen ones have none).

    The result has the types of `params`.

    Raises:
      ValueError: the state holds no average, or more than one.
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, AverageState))
    found = [node for node in nodes if isinstance(node, AverageState)]
    if len(found) != 1:
        raise ValueError(
            f"the optimizer state holds {len(found)} averages, not 1: chain weight_ema or swa"
        )
    average = by_path(found[0].average)

    def mean_or_param(path: str, param: jax.Array) -> jax.Array:
        return average[path].astype(param.dtype) if path in average else param

    return path_map(mean_or_param, params)


def wise_ft(pretrained: Tree, fine_tuned: Tree, alpha: Scalar) -> Tree:
    """`(1 - alpha) * pretrained + alpha * fine_tuned`: more robust off the training distribution.

    Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), 2022
    (https://arxiv.org/abs/2109.01903). Both models must have the same head, for instance one
    fitted by linear probing first.

    >>> wise_ft(jnp.array([0.0]), jnp.array([4.0]), 0.25).tolist()
    [1.0]

    Raises:
      ValueError: `alpha` is not in [0, 1], or the trees have different structures.
    """
    if known(alpha) and not 0 <= alpha <= 1:
        raise ValueError(
            f"alpha {alpha} is not in [0, 1]: 0 is the pretrained model, 1 the fine-tuned"
        )
    mixed = optax.incremental_update(fine_tuned, pretrained, alpha)
    # A traced alpha is float32, and would widen bfloat16.
    return jax.tree.map(lambda mean, p: jnp.asarray(mean, jnp.result_type(p)), mixed, fine_tuned)


def _average(
    weight: Callable[[jax.Array], jax.Array], accumulator_dtype: Any
) -> optax.GradientTransformation:
    """Average that moves by the share `weight(this update, from 1)` to the new parameters."""

    def accumulator(param: jax.Array) -> jax.Array:
        wide = jnp.promote_types(param.dtype, jnp.float32)
        # A copy, so that params and state can both be donated to a compiled step.
        dtype = wide if accumulator_dtype is None else accumulator_dtype
        return jnp.array(param, dtype, copy=True)

    def init(params: Tree) -> AverageState:
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(accumulator, params))

    def update(updates: Tree, state: AverageState, params: Tree | None = None):
        if params is None:
            raise ValueError("averaging needs the parameters: call update(updates, state, params)")
        count = optax.safe_increment(state.step)
        share = weight(count)
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(
            lambda mean, p: ((1 - share) * mean + share * p).astype(mean.dtype), state.average, new
        )
        return updates, AverageState(count, average)

    return optax.GradientTransformation(init, update)
