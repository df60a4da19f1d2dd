"""Attention among the tokens of rows, wherever they are."""

import math

import jax

from jaxft.models.layers import ops, ring
from jaxft.models.layers.blockwise import How
from jaxft.models.layers.sight import Sight


def among(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    sight: Sight | None,
    *,
    rate: float,
    seed: ops.Seed,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Query [B, Q, H, C], key and value [B, T, G, C] -> [B, Q, H, C]; arguments as of `ops.attention`.

    By `ring`, if rows are cut over the context axis of a mesh or are long, and every token looks. Of the few
    that a head reads, the scores are as few, and the compiler sums over the devices that have the others.

    Args:
        sight: which of them looks at which; None: each at all.
    """
    if sight is not None and sight.reads is None and ring.takes(key.shape[1], seed):
        how = How(
            causal=sight.causal,
            reach=sight.reach,
            scale=1 / math.sqrt(query.shape[-1]) if scale is None else scale,
            cap=cap,
            rate=rate,
        )
        return ring.attention(query, key, value, sight.places, seed, how)
    mask = None if sight is None else sight.mask()
    return ops.attention(query, key, value, mask, rate=rate, seed=seed, scale=scale, cap=cap)
