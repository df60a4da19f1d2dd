"""The arithmetic of attention with some of the keys at a time, forward and backward, of one device.

Softmax is finished when all keys were seen: Dao, 2023, "FlashAttention-2", arXiv:2307.08691. Heads lie before
tokens here, and queries by the heads of their keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxft.models.layers import seeds
from jaxft.models.layers.sight import Places, visible

CHUNK = 512  # keys at a time
_LEAST = float(jnp.finfo(jnp.float32).min)


class How(NamedTuple):
    """What is fixed when a step is compiled; see `ops.attention` and `sight.Sight`."""

    causal: bool
    reach: int | None
    scale: float
    cap: float | None
    rate: float


class Place(NamedTuple):
    """Which part of all queries a device has.

    Attributes:
        whole: B, H and T of all devices.
        starts: `(B, H, T)` of what a device has `->` the numbers of its first row, head and token.
    """

    whole: tuple[int, int, int]
    starts: Callable[[int, int, int], tuple[jax.Array | int, ...]]


class Queries(NamedTuple):
    """Of one device: [B, G, H / G * Q, C] by heads of the keys, scaled, and what their scores depend on."""

    grouped: jax.Array
    places: Places
    heads: int
    seed: seeds.Seed
    how: How
    place: Place

    @classmethod
    def of(
        cls, query: jax.Array, groups: int, places: Places, seed: seeds.Seed, how: How, place: Place
    ) -> Queries:
        """Of [B, Q, H, C]."""
        query = query.transpose(0, 2, 1, 3)
        return cls(grouped(query * how.scale, groups), places, query.shape[1], seed, how, place)

    def scores(self, block: Block) -> tuple[jax.Array, jax.Array | None]:
        """[B, H, Q, T] fp32, and the slope of the cap there."""
        found = _product("bgqd,bgkd->bgqk", self.grouped, block.key)
        found = found.reshape(found.shape[0], self.heads, -1, found.shape[-1])
        if self.how.cap is None:
            return found, None
        bent = jnp.tanh(found / self.how.cap)
        return self.how.cap * bent, 1 - bent * bent

    def sees(self, block: Block) -> jax.Array:
        """[B, 1, Q, T]."""
        return visible(self.places, block.places, self.how.causal, self.how.reach)

    def dropped(self, weights: jax.Array, first: jax.Array) -> jax.Array:
        """Weights [B, H, Q, T] of keys from number `first` of the row on, as one device would drop them."""
        if self.seed is None:
            return weights
        starts = (*self.place.starts(*weights.shape[:3]), first)
        whole = (*self.place.whole, self.place.whole[-1])
        bits = seeds.tile_bits(weights.shape, self.seed, starts, whole)
        keep = bits >= jnp.uint32(round(self.how.rate * 2**32))
        return jnp.where(keep, weights * (1 / (1 - self.how.rate)), 0)


class Block(NamedTuple):
    """Keys and values [B, G, T, C], and where they are."""

    key: jax.Array
    value: jax.Array
    places: Places

    @classmethod
    def of(cls, key: jax.Array, value: jax.Array, places: Places) -> Block:
        """Of [B, T, G, C]."""
        return cls(key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3), places)

    def chunks(self) -> tuple[Block, int]:
        """The same with a first axis of chunks, and how many keys each has."""
        length = self.key.shape[2]
        size = chunk_of(length)

        def cut(x: jax.Array, axis: int) -> jax.Array:
            shape = (*x.shape[:axis], length // size, size, *x.shape[axis + 1 :])
            return jnp.moveaxis(x.reshape(shape), axis, 0)

        places = jax.tree.map(lambda x: cut(x, 1), self.places)
        return Block(cut(self.key, 2), cut(self.value, 2), places), size


def chunk_of(length: int) -> int:
    """Into equal chunks: the most keys up to `CHUNK`, or all where none divides well."""
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

    def added(self, queries: Queries, block: Block, seen: jax.Array, first: jax.Array) -> Sums:
        """With a chunk of keys, `first` being the number of its first in the row."""
        scores, _ = queries.scores(block)
        most = jnp.maximum(self.most, jnp.where(seen, scores, _LEAST).max(-1))
        weights = jnp.where(seen, jnp.exp(scores - most[..., None]), 0)
        before = jnp.exp(self.most - most)
        dropped = queries.dropped(weights, first).astype(block.value.dtype)
        values = _product("bgqk,bgkd->bgqd", grouped(dropped, block.key.shape[1]), block.value)
        values = self.values * before[..., None] + values.reshape(self.values.shape)
        return Sums(most, self.total * before + weights.sum(-1), values)


class Back(NamedTuple):
    """Of queries [B, H, Q] the log of their exponentials' sum, and of weight times its gradient the sum over
    all keys; of the output [B, G, H / G * Q, C] the gradient."""

    queries: Queries
    normaliser: jax.Array
    mean: jax.Array
    gradient: jax.Array

    def added(
        self, by_query: jax.Array, block: Block, seen: jax.Array, first: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """The gradient of the queries with that of a chunk's, and those of its keys and values."""
        queries, groups = self.queries, block.key.shape[1]
        scores, slope = queries.scores(block)
        weights = jnp.where(seen, jnp.exp(scores - self.normaliser[..., None]), 0)
        dropped = grouped(queries.dropped(weights, first).astype(block.value.dtype), groups)
        by_value = _product("bgqk,bgqd->bgkd", dropped, self.gradient)
        by_weights = _product("bgqd,bgkd->bgqk", self.gradient, block.value).reshape(weights.shape)
        by_scores = weights * (queries.dropped(by_weights, first) - self.mean[..., None])
        by_scores = by_scores if slope is None else by_scores * slope
        by_scores = grouped(by_scores.astype(queries.grouped.dtype), groups)
        by_key = _product("bgqk,bgqd->bgkd", by_scores, queries.grouped)
        by_query = by_query + _product("bgqk,bgkd->bgqd", by_scores, block.key)
        return by_query, (by_key, by_value)


_product: Callable[..., jax.Array] = functools.partial(
    jnp.einsum, preferred_element_type=jnp.float32
)


def grouped(x: jax.Array, groups: int) -> jax.Array:
    """[B, H, Q, N] -> [B, G, H / G * Q, N]."""
    return x.reshape(x.shape[0], groups, -1, x.shape[-1])
