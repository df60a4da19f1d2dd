"""The arithmetic of attention of some queries to some keys at a time, forward and backward, of one device.

Softmax is finished when all keys were seen: Dao, 2023, "FlashAttention-2", arXiv:2307.08691. Heads lie before
tokens here, and queries by the heads of their keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxft.models.layers import relative, seeds
from jaxft.models.layers.sight import Places, visible

CHUNK = 512  # queries, and keys, at a time
_LEAST = float(jnp.finfo(jnp.float32).min)


class How(NamedTuple):
    """What is fixed when a step is compiled; see `ops.attention` and `sight.Sight`."""

    causal: bool
    reach: int | None
    scale: float
    cap: float | None
    rate: float


class Part(NamedTuple):
    """Of the scores [B, H, Q, T] of all devices, what all chunks of one device have in common.

    Attributes:
        whole: B, H, Q and T.
        row: the number of the device's first.
        head: the number of its first.
        seed: of dropout; None: there is none.
        biases: of its heads for each distance [H, 2 T], see `relative.in_order`; None: there are none.
    """

    how: How
    whole: tuple[int, int, int, int]
    row: jax.Array | int
    head: jax.Array | int
    seed: seeds.Seed
    biases: jax.Array | None

    def scores(self, queries: Queries, keys: Keys) -> tuple[jax.Array, jax.Array | None]:
        """[B, H, Q, T] fp32, and the slope of the cap there."""
        found = _product("bgqd,bgkd->bgqk", queries.grouped, keys.key)
        found = found.reshape(len(found), -1, queries.places.segments.shape[-1], found.shape[-1])
        slope = None
        if self.how.cap is not None:
            bent = jnp.tanh(found / self.how.cap)
            found, slope = self.how.cap * bent, 1 - bent * bent
        if self.biases is not None:
            size = found.shape[-1]
            found = found + relative.of_chunks(self.biases, queries.first, keys.first, size)
        return found, slope

    def sees(self, queries: Queries, keys: Keys) -> jax.Array:
        """[B, 1, Q, T]."""
        return visible(queries.places, keys.places, self.how.causal, self.how.reach)

    def dropped(self, weights: jax.Array, queries: Queries, keys: Keys) -> jax.Array:
        """Weights [B, H, Q, T], as one device would drop them."""
        if self.seed is None:
            return weights
        starts = (self.row, self.head, queries.first, keys.first)
        bits = seeds.tile_bits(weights.shape, self.seed, starts, self.whole)
        keep = bits >= jnp.uint32(round(self.how.rate * 2**32))
        return jnp.where(keep, weights * (1 / (1 - self.how.rate)), 0)


class Queries(NamedTuple):
    """A chunk, or many with one more axis before the others.

    Attributes:
        grouped: [B, G, H / G * Q, C] by heads of the keys, scaled.
        places: [B, Q].
        first: number in the row of the first.
    """

    grouped: jax.Array
    places: Places
    first: jax.Array

    @classmethod
    def of(
        cls, query: jax.Array, groups: int, places: Places, firsts: jax.Array, scale: float
    ) -> Queries:
        """Chunks [N, ...] of [B, N * Q, H, C]."""
        count = len(firsts)
        return cls(grouped(chunks(query * scale, count), groups), _of(places, count), firsts)


class Keys(NamedTuple):
    """A chunk of keys and values [B, G, T, C], or many with one more axis before the others.

    Attributes:
        places: [B, T].
        first: number in the row of the first.
    """

    key: jax.Array
    value: jax.Array
    places: Places
    first: jax.Array

    @classmethod
    def of(cls, key: jax.Array, value: jax.Array, places: Places, firsts: jax.Array) -> Keys:
        """Chunks [N, ...] of [B, N * T, G, C]."""
        count = len(firsts)
        return cls(chunks(key, count), chunks(value, count), _of(places, count), firsts)


def _of(places: Places, count: int) -> Places:
    return jax.tree.map(lambda x: x.reshape(len(x), count, -1).swapaxes(0, 1), places)


def chunks(x: jax.Array, count: int) -> jax.Array:
    """[B, N * Q, H, C] -> [N, B, H, Q, C]."""
    batch, length, heads, width = x.shape
    cut = x.reshape(batch, count, length // count, heads, width)
    return cut.transpose(1, 0, 3, 2, 4)


def joined(x: jax.Array) -> jax.Array:
    """The inverse."""
    count, batch, heads, size, width = x.shape
    return x.transpose(1, 0, 3, 2, 4).reshape(batch, count * size, heads, width)


def grouped(x: jax.Array, groups: int) -> jax.Array:
    """[..., H, Q, N] -> [..., G, H / G * Q, N]."""
    return x.reshape(*x.shape[:-3], groups, -1, x.shape[-1])


def chunk_of(length: int) -> int:
    """Into equal chunks: the most tokens up to `CHUNK`, or all where none divides well."""
    fewest = -(-length // CHUNK)
    parts = next(n for n in range(fewest, length + 1) if length % n == 0)
    return length // parts if parts <= 2 * fewest else length


class Sums(NamedTuple):
    """Of each query over the keys that were seen: the largest score and the sum of exponentials [B, H, Q],
    and the sum [B, H, Q, C] of values by these."""

    most: jax.Array
    total: jax.Array
    values: jax.Array

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Sums:
        """Before any key, of queries [B, H, Q, C]."""
        zeros = jnp.zeros(shape, jnp.float32)
        return cls(jnp.full(shape[:-1], _LEAST, jnp.float32), zeros[..., 0], zeros)

    def finished(self) -> tuple[jax.Array, jax.Array]:
        """The output [B, H, Q, C], 0 of a query that saw nothing, and the log of the sum of exponentials."""
        real = self.total > 0
        safe = jnp.where(real, self.total, 1)
        return self.values / safe[..., None], jnp.where(real, self.most + jnp.log(safe), 0)

    def added(self, part: Part, queries: Queries, keys: Keys, seen: jax.Array) -> Sums:
        """With the keys that are seen."""
        scores, _ = part.scores(queries, keys)
        most = jnp.maximum(self.most, jnp.where(seen, scores, _LEAST).max(-1))
        weights = jnp.where(seen, jnp.exp(scores - most[..., None]), 0)
        before = jnp.exp(self.most - most)
        dropped = part.dropped(weights, queries, keys).astype(keys.value.dtype)
        values = _product("bgqk,bgkd->bgqd", grouped(dropped, keys.key.shape[1]), keys.value)
        values = self.values * before[..., None] + values.reshape(self.values.shape)
        return Sums(most, self.total * before + weights.sum(-1), values)


class Gradients(NamedTuple):
    """By biases [H, 2 T], queries [B, G, H / G * Q, C], and keys and values [B, G, T, C], all fp32."""

    by_biases: jax.Array | None
    by_query: jax.Array
    by_key: jax.Array
    by_value: jax.Array


class Back(NamedTuple):
    """Of queries [B, H, Q] the log of their exponentials' sum, and of weight times its gradient the sum over
    all keys; of the output [B, G, H / G * Q, C] the gradient."""

    queries: Queries
    normaliser: jax.Array
    mean: jax.Array
    gradient: jax.Array

    def added(self, part: Part, keys: Keys, seen: jax.Array, found: Gradients) -> Gradients:
        """With what these queries and the keys that they see add."""
        queries, groups = self.queries, keys.key.shape[1]
        scores, slope = part.scores(queries, keys)
        weights = jnp.where(seen, jnp.exp(scores - self.normaliser[..., None]), 0)
        dropped = part.dropped(weights, queries, keys).astype(keys.value.dtype)
        by_value = _product("bgqk,bgqd->bgkd", grouped(dropped, groups), self.gradient)
        by_weights = _product("bgqd,bgkd->bgqk", self.gradient, keys.value).reshape(weights.shape)
        dropped = part.dropped(by_weights, queries, keys)
        by_scores = weights * (dropped - self.mean[..., None])
        by_biases = found.by_biases
        if by_biases is not None:
            at = queries.first, keys.first
            by_biases = relative.added(by_biases, *at, by_scores.sum(0))
        by_scores = by_scores if slope is None else by_scores * slope
        by_scores = grouped(by_scores.astype(queries.grouped.dtype), groups)
        return Gradients(
            by_biases,
            found.by_query + _product("bgqk,bgkd->bgqd", by_scores, keys.key),
            found.by_key + _product("bgqk,bgqd->bgkd", by_scores, queries.grouped),
            found.by_value + by_value,
        )


_product: Callable[..., jax.Array] = functools.partial(
    jnp.einsum, preferred_element_type=jnp.float32
)
