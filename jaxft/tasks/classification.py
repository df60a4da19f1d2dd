"""Single-label classification: weighted softmax cross-entropy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def loss(
    outputs: dict[str, jax.Array], batch: dict[str, jax.Array], label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Sum over examples of weight x cross-entropy, and the sum of the weights.

    Args:
      outputs: 'logits' [..., C].
      batch: 'labels' [...] int and 'weight' [...] float32; weight 0 marks an empty slot.
      label_smoothing: share of the target spread evenly over the C classes (Szegedy et al. 2016).

    Returns:
      Two float32 scalars. Their quotient is the mean, to be taken after every sum over microbatches,
      devices and hosts: means of unequal batches must not be averaged.
    """
    logits = outputs["logits"].astype(jnp.float32)
    targets = jax.nn.one_hot(batch["labels"], logits.shape[-1], dtype=jnp.float32)
    targets = optax.smooth_labels(targets, label_smoothing) if label_smoothing else targets
    losses = optax.softmax_cross_entropy(logits, targets)
    return jnp.sum(losses * batch["weight"]), jnp.sum(batch["weight"])
