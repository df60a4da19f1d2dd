"""The gradient of one update: of the mean loss over microbatches and devices.

The step takes its gradient as an argument; what is here is the usual one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Arrays = dict[str, jax.Array]
# (params, batch, dropout key) -> (sum, (weight, kept)): two float32 scalars, and arrays that are of no
# gradient, can be added, and are the same on all devices
LossSum = Callable[[Any, Arrays, jax.Array], tuple[jax.Array, tuple[jax.Array, Any]]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What an update makes smaller.

    Attributes:
      outputs: (params, batch, dropout key) -> what the model gives.
      loss_sum: of a batch by itself.
    """

    outputs: Callable[[Any, Arrays, jax.Array], Arrays]
    loss_sum: LossSum

    def __call__(
        self, params: Any, batch: Arrays, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        return self.loss_sum(params, batch, key)


class Gradient(NamedTuple):
    """Of one global batch, the same on all devices.

    Attributes:
      loss: weighted mean, float32 scalar.
      weight: what it is the mean over, float32 scalar.
      grads: of `loss`, in the structure of the parameters.
      kept: what the forward passes left, summed over microbatches.
    """

    loss: jax.Array
    weight: jax.Array
    grads: Any
    kept: Any


# (objective, params, batch, key of the update) -> the gradient of its mean
GradientFn = Callable[[Objective, Any, Arrays, jax.Array], Gradient]


@dataclasses.dataclass(frozen=True)
class MeanGradient:
    """The gradient of the weighted mean loss.

    Gradients of loss *sums* are added and divided once by the summed weight, hence those of the whole
    batch also where microbatches or devices weigh differently.

    Attributes:
      parts: microbatches, one after the other; the batch's leading axis is a multiple of it.
      axis_name: the mapped axis under pmap, over which sums are added; None under jit. That dropout
        differs from device to device is the model's affair.
    """

    parts: int = 1
    axis_name: str | None = None

    def __call__(self, loss_sum: LossSum, params: Any, batch: Arrays, key: jax.Array) -> Gradient:
        value_and_grad = jax.value_and_grad(loss_sum, has_aux=True)
        sums, kept = _added(value_and_grad, params, batch, key, self.parts)
        if self.axis_name is not None:
            sums = jax.lax.psum(sums, self.axis_name)
        total, weight, grads = sums
        divisor = jnp.maximum(weight, 1e-9)  # an all-padding batch has a zero gradient, not a NaN
        grads = jax.tree.map(lambda g: g / divisor, grads)
        return Gradient(total / divisor, weight, grads, kept)


def _added(
    value_and_grad: Any, params: Any, batch: Arrays, key: jax.Array, parts: int
) -> tuple[tuple[jax.Array, jax.Array, Any], Any]:
    """Sums of (loss, weight, gradient) and of what is kept, over microbatches one after the other."""
    if parts == 1:
        (total, (weight, kept)), grads = value_and_grad(params, batch, key)
        return (total, weight, grads), kept

    def body(sums: Any, part_and_key: tuple[Arrays, jax.Array]) -> tuple[Any, Any]:
        (total, (weight, kept)), grads = value_and_grad(params, *part_and_key)
        return jax.tree.map(jnp.add, sums, (total, weight, grads)), kept

    zeros = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    keys = jax.random.split(key, parts)
    sums, kept = jax.lax.scan(body, zeros, (cut(batch, parts), keys))
    return sums, jax.tree.map(lambda x: x.sum(0), kept)


def cut(batch: Arrays, parts: int) -> Arrays:
    """[R, ...] -> [parts, R / parts, ...] of each array.

    Row r goes to microbatch r % parts: on every device a strided share of its own rows, so no row moves
    between devices (a contiguous split would gather the batch).
    """

    def strided(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

    return jax.tree.map(strided, batch)
