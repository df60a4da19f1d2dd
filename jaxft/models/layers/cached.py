"""Causal attention among the tokens of a batch and, where a block is given a cache, to those before them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxft.models.family import Carry, Context, Kept
from jaxft.models.layers import attention, ops
from jaxft.models.layers.sight import Places, Sight


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

    A cache with tokens takes one more of each sequence. It is written before it is read: read first, XLA
    copies all of it at each step. Other arguments as of `ops.attention`.

    Args:
        window: tokens that a token sees, itself included; None: all before it.
    """
    cache, at = context.cache, carry["positions"]
    if cache is None or cache.keys is None:
        reach = None if window is None else window - 1
        sight = Sight(Places(carry["segment_ids"], at), context.reads, causal=True, reach=reach)
        attended = attention.among(
            query, key, value, sight, rate=rate, seed=seed, scale=scale, cap=cap
        )
        return attended, {} if cache is None else {"entries": (key, value)}
    assert seed is None and key.shape[1] == 1, "one new token, without dropout"
    whole: Any = cache
    keys, values = (
        lax.dynamic_update_slice_in_dim(before, new.transpose(0, 2, 1, 3), whole.slot, axis=2)
        for before, new in ((whole.keys, key), (whole.values, value))
    )
    before = at - whole.positions  # [B, S]
    seen = (whole.positions >= 0) & (before >= 0)
    seen = seen if window is None else seen & (before < window)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    attended = _one_query(query * scale, keys, values, seen, cap)
    return attended, {"entries": (keys, values)}


def _one_query(
    query: jax.Array, keys: jax.Array, values: jax.Array, seen: jax.Array, cap: float | None
) -> jax.Array:
    """Query [B, 1, H, C], keys and values [B, G, S, C], seen [B, S] -> [B, 1, H, C]."""
    batch, _, heads, width = query.shape
    grouped = query.reshape(batch, keys.shape[1], -1, width)
    scores = jnp.einsum("bgqc,bgsc->bgqs", grouped, keys, preferred_element_type=jnp.float32)
    if cap is not None:
        scores = cap * jnp.tanh(scores / cap)
    scores = jnp.where(seen[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores).astype(values.dtype)
    return jnp.einsum("bgqs,bgsc->bgqc", weights, values).reshape(batch, 1, heads, width)
