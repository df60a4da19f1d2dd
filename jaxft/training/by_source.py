"""The losses of a mixture's sources, each over its own examples of a batch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Arrays = dict[str, jax.Array]
Loss = Callable[[Arrays, Arrays], tuple[jax.Array, jax.Array]]


def losses_by_source(
    outputs: Arrays, batch: Arrays, *, loss: Loss, count: int, axis_name: str | None = None
) -> jax.Array:
    """[count, 2] float32: of each source the sum of its losses and of their weights, over all devices.

    The loss is computed once more for each source but the first, without a gradient: of the batch in
    which all other examples are padding.

    batch: with 'source', the number of each slot's, [R, K] of rows of K texts or [B].
    axis_name: the mapped axis under pmap; None under jit.
    """
    outputs = jax.lax.stop_gradient(outputs)
    rest = [jnp.stack(loss(outputs, _only(batch, number))) for number in range(1, count)]
    first = jnp.stack(loss(outputs, batch)) - sum(rest)
    found = jnp.stack([first, *rest])
    return found if axis_name is None else jax.lax.psum(found, axis_name)


def _only(batch: Arrays, number: int) -> Arrays:
    """The batch in which what is of other sources is padding: of weight 0, in no segment, no row."""
    own = batch["source"] == number
    found = {**batch, "index": jnp.where(own, batch["index"], -1)}
    weights = [name for name in ("weight", "teacher_weight") if name in batch]
    for name, segments in batch.items():
        if name.endswith("segment_ids"):
            slots = own.shape[1]
            texts = batch["starts"].shape[1] // slots  # of an example
            slot = jnp.clip((segments - 1) // texts, 0, slots - 1)
            of_token = jnp.take_along_axis(own, slot, axis=1) & (segments > 0)
            found[name] = jnp.where(of_token, segments, 0)
            for weight in weights:
                if batch[weight].shape == segments.shape != own.shape:
                    found[weight] = jnp.where(of_token, batch[weight], 0)
    for weight in weights:
        if batch[weight].shape == own.shape:
            found[weight] = jnp.where(own, batch[weight], 0)
    return found
