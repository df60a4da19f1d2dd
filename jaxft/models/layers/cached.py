"""Causal attention among the tokens of a batch and, where a block is given a cache, to those before them."""

import math

import jax
import jax.numpy as jnp

from jaxft.models.family import Carry, Context, Kept
from jaxft.models.layers import ops


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    carry: Carry,
    context: Context,
    *,
    rate: float,
    seed: ops.Seed,
    window: int | None = None,
    scale: float | None = None,
    cap: float | None = None,
) -> tuple[jax.Array, Kept]:
    """Query [B, Q, H, C] at `context.reads`, key and value [B, T, G, C] of all tokens -> [B, Q, H, C].

    The cache is only read: what is new of it is left as entries, to be written once for all blocks. Other
    arguments as of `ops.attention` and `ops.causal_mask`.
    """
    cache, reads = context.cache, context.reads
    mask = ops.causal_mask(carry["segment_ids"], carry["positions"], reads, window)
    kept: Kept = {} if cache is None else {"entries": (key, value)}
    if cache is None or cache.keys is None:
        attended = ops.attention(
            query, key, value, mask, rate=rate, seed=seed, scale=scale, cap=cap
        )
        return attended, kept
    at = ops.take(carry["positions"], reads)
    assert seed is None, "dropout with a cache"
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return _with_cache(query * scale, key, value, mask, at, cache, window, cap), kept


def _with_cache(query, key, value, mask, at, cache, window, cap):
    """Softmax over the slots of the cache and the new tokens together, which are not put side by side."""
    (batch, count, heads, width), slots = query.shape, cache.positions.shape[-1]
    before = at[:, None, :, None] - cache.positions[:, None, None, :]  # [B, 1, Q, S]
    seen = (cache.positions >= 0)[:, None, None, :] & (before > 0)
    seen = seen if window is None else seen & (before < window)
    key, value = (x.transpose(0, 2, 1, 3) for x in (key, value))  # [B, G, T, C], as in the cache
    groups = key.shape[1]
    query = query.transpose(0, 2, 1, 3).reshape(batch, groups, -1, width)

    def scores(keys):
        found = jnp.einsum("bgqc,bgsc->bgqs", query, keys, preferred_element_type=jnp.float32)
        found = found.reshape(batch, heads, count, -1)
        return found if cap is None else cap * jnp.tanh(found / cap)

    both = [
        jnp.where(allowed, scores(keys), jnp.finfo(jnp.float32).min)
        for allowed, keys in ((seen, cache.keys), (mask, key))
    ]
    weights = jax.nn.softmax(jnp.concatenate(both, axis=-1)).astype(value.dtype)
    weights = weights.reshape(batch, groups, -1, weights.shape[-1])
    out = jnp.einsum("bgqs,bgsc->bgqc", weights[..., :slots], cache.values)
    out = out + jnp.einsum("bgqt,bgtc->bgqc", weights[..., slots:], value)
    return out.reshape(batch, heads, count, width).transpose(0, 2, 1, 3)
