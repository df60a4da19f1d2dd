"""The loss of images that are mixed with others, of the loss of a task on images as they are."""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxft.data.mixing import OTHER
from jaxft.tasks.contract import Arrays


def mixed_loss(
    outputs: Arrays, batch: Arrays, *, loss: Callable[[Arrays, Arrays], tuple[jax.Array, jax.Array]]
) -> tuple[jax.Array, jax.Array]:
    """(sum of the weighted losses, sum of the weights): each loss is `share` of the one that the target of
    the image itself gives, and the rest that of the other's.

    For cross-entropies it is that of the mixed target, smoothed or not; for squared errors it is larger
    than that by what the two targets differ, with the same gradient.

    batch: with 'share' [B] and 'other_…' of `data.mixing.mixed_targets`; without, nothing is mixed.
    """
    if "share" not in batch:
        return loss(outputs, batch)
    weight, share = batch["weight"], batch["share"]
    others = {name.removeprefix(OTHER): x for name, x in batch.items() if name.startswith(OTHER)}
    own, own_weight = loss(outputs, {**batch, "weight": weight * share})
    other, other_weight = loss(outputs, {**batch, **others, "weight": weight * (1 - share)})
    return own + other, own_weight + other_weight
