"""The gradient of a loss that compares all examples of a batch with each other, in the memory of a few.

Gao et al. 2021 (arXiv:2101.06983): embed everything without keeping what a gradient needs, take the loss and
its gradient by the embeddings, then embed a part at a time once more and pull that gradient back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.training.gradient import Arrays, Gradient, Objective, cut

# (outputs, batch) -> embeddings [R, ...]
Embed = Callable[[Arrays, Arrays], jax.Array]
# (embeddings [..., R, …], what the loss reads of the batch, with the same first axes) -> (sum, weight)
Contrast = Callable[[jax.Array, Arrays], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class CachedGradient:
    """The gradient of the whole batch's loss, over microbatches and devices.

    Attributes:
      embed, contrast: of the task.
      parts, axis_name: as of `MeanGradient`. Each microbatch has the same dropout in both passes; one
        microbatch is embedded once.
    """

    embed: Embed
    contrast: Contrast
    parts: int = 1
    axis_name: str | None = None

    def __call__(
        self, objective: Objective, params: Any, batch: Arrays, key: jax.Array
    ) -> Gradient:

        def embedded(params: Any, part: Arrays, key: jax.Array) -> jax.Array:
            return self.embed(objective.outputs(params, part, key), part)

        if self.parts == 1:
            embeddings, pull = jax.vjp(lambda params: embedded(params, batch, key), params)
            total, weight, given = self._compared(embeddings, batch)
            (grads,) = pull(given)
        else:
            cuts, keys = cut(batch, self.parts), jax.random.split(key, self.parts)
            _, embeddings = jax.lax.scan(
                lambda _, own: (None, embedded(params, *own)), None, (cuts, keys)
            )
            total, weight, given = self._compared(embeddings, cuts)

            def body(grads: Any, own: Any) -> tuple[Any, None]:
                part, key, cotangent = own
                _, pull = jax.vjp(lambda params: embedded(params, part, key), params)
                return jax.tree.map(jnp.add, grads, pull(cotangent)[0]), None

            zeros = jax.tree.map(jnp.zeros_like, params)
            grads, _ = jax.lax.scan(body, zeros, (cuts, keys, given))
        if self.axis_name is not None:
            grads = jax.lax.psum(grads, self.axis_name)
        divisor = jnp.maximum(weight, 1e-9)  # an all-padding batch has a zero gradient, not a NaN
        return Gradient(total / divisor, weight, jax.tree.map(lambda g: g / divisor, grads), {})

    def _compared(
        self, embeddings: jax.Array, batch: Arrays
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(loss sum, weight) of all devices, and the gradient of the sum by these embeddings."""
        facts = {name: batch[name] for name in ("weight", "labels") if name in batch}
        if self.axis_name is not None:
            embeddings, facts = jax.lax.all_gather((embeddings, facts), self.axis_name)
        value_and_grad = jax.value_and_grad(self.contrast, has_aux=True)
        (total, weight), given = value_and_grad(embeddings, facts)
        if self.axis_name is not None:
            given = given[jax.lax.axis_index(self.axis_name)]
        return total, weight, given
