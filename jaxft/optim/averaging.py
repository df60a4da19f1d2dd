"""Averages of the weights along a run (EMA, SWA), and between two models (WiSE-FT).

Averaging changes no update: the transforms here go last in a chain, pass updates through, and
keep the average in their state, from which `averaged` takes it for evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxft.optim.checks import Scalar, known
from jaxft.optim.paths import Tree, by_path, path_map


class AverageState(NamedTuple):
    """`step`: updates done, int32 scalar; `average`: of the parameters, in their own types."""

    step: jax.Array
    average: Tree


def weight_ema(decay: Scalar) -> optax.GradientTransformation:
    """Exponential moving average of the parameters, which starts at their value at init.

    Tarvainen and Valpola, "Mean teachers are better role models", 2017
    (https://arxiv.org/abs/1703.01780). `decay` 0.999 averages about the last 1,000 updates.

    >>> params = jnp.array([1.0])
    >>> tx = optax.chain(optax.sgd(1.0), weight_ema(0.75))
    >>> updates, state = tx.update(jnp.array([4.0]), tx.init(params), params)
    >>> averaged(state, params).tolist()  # 0.75 * 1 + 0.25 * (1 - 4)
    [0.0]
    """
    if known(decay) and not 0 <= decay < 1:
        raise ValueError(f"the decay {decay} of an average is not in [0, 1)")
    return _average(lambda count: jnp.asarray(1 - decay, jnp.float32))


def swa(start: int, every: int = 1) -> optax.GradientTransformation:
    """Equal average of the parameters after update `start` (1 is the first) and every so many.

    Before, the "average" is the current parameters. Meant for a constant or cyclic learning rate
    at the end of a run. Izmailov et al., "Averaging weights leads to wider optima and better
    generalization", 2018 (https://arxiv.org/abs/1803.05407).

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

    return _average(weight)


def averaged(state: optax.OptState, params: Tree) -> Tree:
    """`params` with the average in place of every parameter that has one (frozen ones have none).

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
    return path_map(lambda path, param: average.get(path, param), params)


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
    return optax.incremental_update(fine_tuned, pretrained, alpha)


def _average(weight: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformation:
    """Average that moves by the share `weight(this update, from 1)` to the new parameters."""

    def init(params: Tree) -> AverageState:
        # A copy, so that params and state can both be donated to a compiled step.
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

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
