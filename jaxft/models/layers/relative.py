"""Relative positions in buckets that widen with distance, each head with a bias for each (T5).

Raffel et al., 2020, arXiv:1910.10683, section 2.1; the buckets are those of Mesh TensorFlow, in
transformers' order of fp32 operations, so that a distance on the edge of two falls into the same one.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def buckets(distances: np.ndarray, *, both_ways: bool, count: int, farthest: int) -> np.ndarray:
    """The bucket int32 of each distance, which is the position looked at less that of the looking token.

    Args:
        both_ways: of an encoder, half of whose buckets are for what comes after; else all of that is 0.
        count: of buckets. The nearer half of those of one direction hold one distance each.
        farthest: from this distance on it is the last bucket.
    """
    distances = np.asarray(distances)
    after = both_ways * (distances > 0)
    count = count // 2 if both_ways else count
    away = np.abs(distances) if both_ways else -np.minimum(distances, 0)
    exact = count // 2
    with np.errstate(divide="ignore"):
        logarithm = np.log(away.astype(np.float32) / np.float32(exact))
    share = logarithm / np.float32(math.log(farthest / exact)) * np.float32(count - exact)
    wide = exact + np.where(away < exact, 0, share).astype(np.int64)
    found = np.where(away < exact, away, np.minimum(wide, count - 1))
    return (found + after * count).astype(np.int32)


def distances_in_a_row(length: int) -> np.ndarray:
    """[2 L]: 0, 1, ..., L - 1, none (0), -(L - 1), ..., -1: in the order that `by_distance` takes."""
    own = np.arange(2 * length)
    return np.where(own < length, own, np.where(own == length, 0, own - 2 * length))


def by_distance(values: jax.Array) -> jax.Array:
    """Values [2 L, H] of `distances_in_a_row` -> [1, H, L, L], of what is looked at by whom.

    Repeats and cuts instead of indices: their gradient is a sum, and no scatter.
    """
    twice, heads = values.shape
    length = twice // 2
    turned = jnp.broadcast_to(values.T[:, None, :], (heads, length, twice)).reshape(heads, -1)
    # Rows of one less, so each begins one later: element k of row q is value k - q.
    rows = turned[:, : length * (twice - 1)].reshape(heads, length, twice - 1)
    return rows[None, :, :, :length]


def in_order(values: jax.Array) -> jax.Array:
    """Values [2 L, H] of `distances_in_a_row` -> [H, 2 L] of -L (which is none), ..., L - 1."""
    return jnp.roll(values, len(values) // 2, axis=0).T


def of_chunks(
    ordered: jax.Array, query: jax.Array | int, key: jax.Array | int, size: int
) -> jax.Array:
    """[H, 2 L] of `in_order` -> [H, S, S] of `size` tokens from number `query` of the row on, looking at
    those from `key` on."""
    start = _start(ordered, query, key, size)
    return _of_window(lax.dynamic_slice(ordered, start, (len(ordered), 2 * size)))


def added(
    ordered: jax.Array, query: jax.Array | int, key: jax.Array | int, gradient: jax.Array
) -> jax.Array:
    """[H, 2 L] with what a gradient [H, S, S] of `of_chunks` adds."""
    heads, size, _ = gradient.shape
    start, window = _start(ordered, query, key, size), (heads, 2 * size)
    pull = jax.linear_transpose(_of_window, jax.ShapeDtypeStruct(window, gradient.dtype))
    (more,) = pull(gradient)
    return lax.dynamic_update_slice(
        ordered, lax.dynamic_slice(ordered, start, window) + more, start
    )


def _start(ordered: jax.Array, query: jax.Array | int, key: jax.Array | int, size: int) -> Any:
    return 0, key - query - size + ordered.shape[1] // 2


def _of_window(own: jax.Array) -> jax.Array:
    """[H, 2 S] of -S, ..., S - 1 more than the first distance -> [H, S, S]."""
    return by_distance(jnp.roll(own, own.shape[1] // 2, axis=1).T)[0]


def at(values: jax.Array, reads: jax.Array) -> jax.Array:
    """Values [2 L, H] of `distances_in_a_row` -> [B, H, K, L] of those at `reads` [B, K], looking at all."""
    length = len(values) // 2
    found = jnp.take(values, (jnp.arange(length) - reads[..., None]) % (2 * length), axis=0)
    return found.transpose(0, 3, 1, 2)
