"""Attention in long rows, which may be cut over the context axis of a mesh: none is then whole on any device.

Each device keeps its queries. Keys and values go around, and whoever has some adds what its queries see of
them by the softmax that is finished at the end: Liu et al., 2023, "Ring Attention with Blockwise Transformers
for Near-Infinite Context", arXiv:2310.01889. Written by hand are both directions: the gradients of keys and
values travel with them, and what is kept from one pass to the other is as large as the queries. While a block
is there, the next is on its way.

No array has more than `blockwise.CHUNK` keys for each query of a device. A chunk of which no query may see
anything is left out, as most are of a sliding window. Rows of more than `LONG` tokens that are not cut are a
ring of one.

The gradient and dropout are those of `ops.attention`. But a query that may look at nothing, which is padding,
gets 0 and not the mean of all values: nothing reads it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxft.models.layers import mesh, seeds
from jaxft.models.layers.blockwise import Back, Block, How, Place, Queries, Sums, grouped
from jaxft.models.layers.sight import Places

CONTEXT, TENSOR = mesh.CONTEXT, mesh.TENSOR
# Scores of all pairs take 2 GiB there for each row, of 32 heads in fp32. Forward and backward of 8 heads of
# 64 on a core: 5.6 s by all pairs, 2.5 s by chunks (2048 tokens: 1.6 and 0.7 s). Not timed on an accelerator.
LONG = 4096


def takes(length: int, seed: seeds.Seed) -> bool:
    """Whether rows of so many tokens, each of which looks, are for this file."""
    if mesh.cuts_tokens(length):
        return True
    return length > LONG and (seed is None or len(seed) == 2)  # under pmap dropout has no tiles


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, places: Places, seed: seeds.Seed, how: How
) -> jax.Array:
    """Query [B, T, H, C], key and value [B, T, G, C], places [B, T] -> [B, T, H, C]."""
    return _forward(query, key, value, places, seed, how)[0]


def _forward(query, key, value, places, seed, how):
    seed = None if how.rate == 0 else seed
    cut = _Cut.of(query, key)
    run = cut.mapped(
        functools.partial(_forward_here, how, cut),
        (*(cut.heads,) * 3, cut.tokens, PartitionSpec()),
        (cut.heads, cut.sums),
    )
    out, normaliser = run(query, key, value, places, seed)
    return out, (query, key, value, places, seed, out, normaliser)


def _backward(how, residuals, gradient):
    query, key, value, places, seed, out, normaliser = residuals
    cut = _Cut.of(query, key)
    run = cut.mapped(
        functools.partial(_backward_here, how, cut),
        (*(cut.heads,) * 3, cut.tokens, PartitionSpec(), cut.heads, cut.sums, cut.heads),
        (cut.heads,) * 3,
    )
    return *run(query, key, value, places, seed, out, normaliser, gradient), None, None


attention.defvjp(_forward, _backward)


class _Cut(NamedTuple):
    """Where an array of the whole mesh is: rows over `rows`, heads over `tensor` if it divides them.

    Not cut at all where there is no context axis: the compiler lays out what there is.
    """

    ring: bool
    rows: tuple[str, ...]
    tensor: str | None
    shape: tuple[int, int, int]  # B, H, T of all devices

    @classmethod
    def of(cls, query: jax.Array, key: jax.Array) -> _Cut:
        batch, length, heads, _ = query.shape
        shape = batch, heads, length
        if not mesh.cuts_tokens(length):
            return cls(False, (), None, shape)
        divides = mesh.divides(heads) and mesh.divides(key.shape[2])
        return cls(True, mesh.row_axes(batch) or (), TENSOR if divides else None, shape)

    @property
    def place(self) -> Place:
        return Place(self.shape, self.starts)

    @property
    def heads(self) -> PartitionSpec:
        """Of [B, T, H, C]."""
        return PartitionSpec(self.rows or None, CONTEXT, self.tensor)

    @property
    def tokens(self) -> PartitionSpec:
        """Of [B, T]."""
        return PartitionSpec(self.rows or None, CONTEXT)

    @property
    def sums(self) -> PartitionSpec:
        """Of [B, H, T]."""
        return PartitionSpec(self.rows or None, self.tensor, CONTEXT)

    def mapped(self, function: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        if not self.ring:
            return function
        return jax.shard_map(function, in_specs=inputs, out_specs=outputs, check_vma=False)

    def starts(self, batch: int, heads: int, tokens: int) -> tuple[jax.Array | int, ...]:
        """Of this device, the number of its first row, head and token."""
        row = lax.axis_index(self.rows) * batch if self.rows else 0
        head = lax.axis_index(self.tensor) * heads if self.tensor else 0
        return row, head, lax.axis_index(CONTEXT) * tokens if self.ring else 0

    def around(self, look: Callable[[Any, Any, Any], Any], kept: Any, moving: Any) -> Any:
        """(kept, moving) after `look(kept, moving, owner) -> (kept, moving)` of what each device had.

        What moves ends one step from home, where `home` sends it.
        """
        if not self.ring:
            return look(kept, moving, 0)
        count, here = lax.axis_size(CONTEXT), lax.axis_index(CONTEXT)

        def step(state, number):
            kept, moving = state
            kept, moving = look(kept, moving, (here - number) % count)
            return (kept, _sent(moving)), None

        (kept, moving), _ = lax.scan(step, (kept, moving), jnp.arange(count - 1))
        return look(kept, moving, (here + 1) % count)

    def home(self, moving: Any) -> Any:
        return _sent(moving) if self.ring else moving


def _sent(x: Any) -> Any:
    """To the next device of the ring, from the one before."""
    count = lax.axis_size(CONTEXT)
    ring = [(i, (i + 1) % count) for i in range(count)]
    return jax.tree.map(lambda leaf: lax.ppermute(leaf, CONTEXT, ring), x)


def _forward_here(how, cut, query, key, value, places, seed):
    queries = Queries.of(query, key.shape[2], places, seed, how, cut.place)
    batch, length, heads, width = query.shape

    def look(sums, block, owner):
        chunks, size = block.chunks()

        def see(sums, numbered):
            number, chunk = numbered
            seen, first = queries.sees(chunk), owner * length + number * size

            def add(sums):
                return sums.added(queries, chunk, seen, first)

            # One branch is run: what nobody sees costs nothing.
            return lax.cond(seen.any(), add, lambda sums: sums, sums), None

        sums, _ = lax.scan(see, sums, (jnp.arange(length // size), chunks))
        return sums, block

    start = Sums.none((batch, heads, length, width))
    sums, _ = cut.around(look, start, Block.of(key, value, places))
    out, normaliser = sums.finished()
    return out.astype(query.dtype).transpose(0, 2, 1, 3), normaliser


def _backward_here(how, cut, query, key, value, places, seed, out, normaliser, gradient):
    groups, length = key.shape[2], key.shape[1]
    queries = Queries.of(query, groups, places, seed, how, cut.place)
    out, gradient = (x.transpose(0, 2, 1, 3) for x in (out, gradient))
    # Over all keys, of weight times its gradient; with dropout, too, as `out` is of the dropped weights.
    mean = (out.astype(jnp.float32) * gradient.astype(jnp.float32)).sum(-1)
    back = Back(queries, normaliser, mean, grouped(gradient, groups))

    def look(by_query, moving, owner):
        block, (by_key, by_value) = moving
        chunks, size = block.chunks()

        def see(by_query, numbered):
            number, chunk = numbered
            seen, first = queries.sees(chunk), owner * length + number * size
            zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (chunk.key, chunk.value))

            def add(found):
                return back.added(found, chunk, seen, first)

            return lax.cond(seen.any(), add, lambda found: (found, zeros), by_query)

        by_query, more = lax.scan(see, by_query, (jnp.arange(length // size), chunks))
        more = [jnp.moveaxis(x, 0, 2).reshape(by_key.shape) for x in more]
        return by_query, (block, (by_key + more[0], by_value + more[1]))

    block = Block.of(key, value, places)
    zeros = jnp.zeros(block.key.shape, jnp.float32)
    start = jnp.zeros(queries.grouped.shape, jnp.float32)
    by_query, (_, by_others) = cut.around(look, start, (block, (zeros, zeros)))
    by_query = (by_query * how.scale).reshape(out.shape)
    by_key, by_value = cut.home(by_others)
    found = zip((by_query, by_key, by_value), (query, key, value), strict=True)
    return tuple(x.transpose(0, 2, 1, 3).astype(of.dtype) for x, of in found)
