"""What shapes the losses of classes: the factor of the focal one, and the divergence of two passes."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def focal_factor(log_right: jax.Array, gamma: float) -> jax.Array:
    """(1 - p)^gamma of the focal loss (Lin et al. 2017): what is predicted well already counts less.

    log_right: log p, the logarithm of the probability of what is right.
    """
    # At p = 1 a power below 1 has an infinite slope; a number of that size changes nothing else.
    wrong = jnp.maximum(-jnp.expm1(log_right), 1e-6)
    return wrong**gamma


def divergence(first: jax.Array, second: jax.Array) -> jax.Array:
    """The mean of KL(p | q) and KL(q | p) of the softmax of two logits [..., C] (Liang et al. 2021)."""
    p, q = (jax.nn.log_softmax(logits.astype(jnp.float32)) for logits in (first, second))
    return 0.5 * jnp.sum((jnp.exp(p) - jnp.exp(q)) * (p - q), -1)


def label_divergence(first: jax.Array, second: jax.Array) -> jax.Array:
    """The same of labels that each apply or not: the mean over labels of logits [..., C]."""
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    difference = jax.nn.sigmoid(first) - jax.nn.sigmoid(second)
    return 0.5 * jnp.mean(difference * (first - second), -1)
