"""Cross-entropy of tokens, from what a head that predicts tokens gives: its logits, or what they are made
of, of which the logits of all tokens are never there at once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxft.tasks.contract import Arrays
from jaxft.tasks.vocabulary_loss import vocabulary_loss, vocabulary_statistics


def loss_sum(
    outputs: Arrays, labels: jax.Array, weight: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Sum over tokens of weight x cross-entropy, float32 scalar, in nats.

    Args:
      outputs: 'logits' [R, L, V], or 'features' [R, L, D], 'unembedding' [V, D] and perhaps 'bias' [V]
        and 'cap' (see models/vocabulary.py).
      labels: [R, L] int32, from 0 to below V where the weight is not 0.
      weight: [R, L] float32, at least 0.
      label_smoothing: share of the target spread over the vocabulary.
    """
    if "logits" not in outputs:
        return vocabulary_loss(
            outputs["features"], outputs["unembedding"], labels, weight,
            bias=outputs.get("bias"), cap=outputs.get("cap"), label_smoothing=label_smoothing,
        )  # fmt: skip
    scores = jax.nn.log_softmax(outputs["logits"].astype(jnp.float32))
    own = jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
    losses = -(1 - label_smoothing) * own - label_smoothing * scores.mean(-1)
    return jnp.sum(jnp.where(weight > 0, losses, 0) * weight)


def statistics(
    outputs: Arrays, labels: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(negative log-likelihood in nats, whether it is the likeliest token) of each token that counts,
    [R, L] float32; 0 where the weight is 0. Not to be differentiated. Arguments as of `loss_sum`.
    """
    if "logits" not in outputs:
        found = vocabulary_statistics(
            outputs["features"], outputs["unembedding"], labels, weight,
            bias=outputs.get("bias"), cap=outputs.get("cap"),
        )  # fmt: skip
        return found.nll, found.hit.astype(jnp.float32)
    scores = jax.nn.log_softmax(outputs["logits"].astype(jnp.float32))
    own = jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
    hit = jnp.argmax(scores, -1) == labels
    return jnp.where(weight > 0, -own, 0), ((weight > 0) & hit).astype(jnp.float32)


def next_tokens(batch: Arrays) -> tuple[jax.Array, jax.Array]:
    """(labels [R, L] int32, weight [R, L] float32): of each token the one that follows it in its text.

    The last of a text has weight 0 and, where there is 'counted' [R, L], so have those before a token
    of which it is 0.
    """
    ids, segments = batch["input_ids"], batch["segment_ids"]
    follows = (segments == _next(segments)) & (segments > 0)
    if "counted" in batch:
        follows &= _next(batch["counted"]) > 0
    return jnp.where(follows, _next(ids), 0), follows.astype(jnp.float32)


def by_text(values: jax.Array, batch: Arrays) -> jax.Array:
    """[R, L] -> [R, K]: sums over the tokens of each of the K texts that a row has room for."""
    texts = batch["starts"].shape[1]

    def sums(values: jax.Array, segments: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, segments, num_segments=texts + 1)[1:]

    return jax.vmap(sums)(values, batch["segment_ids"])


def _next(values: jax.Array) -> jax.Array:
    """[R, L], what stands one to the right; 0, which is padding, past the end."""
    return jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
