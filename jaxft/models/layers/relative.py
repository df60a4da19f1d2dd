"""Relative positions in buckets that widen with distance, each head with a bias for each (T5).

Raffel et al., 2020, arXiv:1910.10683, section 2.1; the buckets are those of Mesh TensorFlow, in
transformers' order of fp32 operations, so that a distance on the edge of two falls into the same one.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


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
