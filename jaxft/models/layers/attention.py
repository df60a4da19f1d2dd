"""Attention among the tokens of rows, wherever they are."""

import math

import jax

from jaxft.models.layers import ops, relative, ring
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
    biases: jax.Array | None = None,
) -> jax.Array:
    """Query [B, Q, H, C], key and value [B, T, G, C] -> [B, Q, H, C]; arguments as of `ops.attention`.

    By `ring`, if rows are cut over the context axis of a mesh or are long, and every token looks. Of the few
    that a head reads, the scores are as few, and the compiler sums over the devices that have the others.

    Args:
        sight: which of them looks at which; None: each at all.
        biases: [1, H, Q, T] as of `ops.attention`; of rows that are `ring`'s [2 T, H], one for each distance,
            as `relative.distances_in_a_row` says.
    """
    if sight is not None and sight.reads is None and _for_ring(query, key, seed, biases):
        how = How(
            causal=sight.causal,
            reach=sight.reach,
            scale=1 / math.sqrt(query.shape[-1]) if scale is None else scale,
            cap=cap,
            rate=rate,
        )
        ordered = None if biases is None else relative.in_order(biases)
        places = sight.places, sight.looking
        return ring.attention(query, key, value, ordered, places, seed, how)
    mask = None if sight is None else sight.mask()
    if biases is not None and biases.ndim == 2:
        reads = None if sight is None else sight.reads
        biases = relative.by_distance(biases) if reads is None else relative.at(biases, reads)
    return ops.attention(
        query, key, value, mask, rate=rate, seed=seed, scale=scale, cap=cap, bias=biases
    )


def _for_ring(query: jax.Array, key: jax.Array, seed: ops.Seed, biases: jax.Array | None) -> bool:
    by_distance = biases is None or biases.ndim == 2
    return by_distance and ring.takes(query.shape[1], key.shape[1], seed)
