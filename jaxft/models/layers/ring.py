"""Attention in long rows, which may be cut over the context axis of a mesh: none is then whole on any device.

Each device keeps its queries. Keys and values go around, and whoever has some adds what its queries see of
them by the softmax that is finished at the end: Liu et al., 2023, "Ring Attention with Blockwise Transformers
for Near-Infinite Context", arXiv:2310.01889. Written by hand are both directions: the gradients of keys and
values travel with them, and what is kept from one pass to the other is as large as the queries. While a block
is there, the next is on its way. Where the work of devices would differ, `slices.py` says which tokens they
work on, and halves of queries, keys and values are sent there, and of the output and gradients back.

No array has more than `blockwise.CHUNK` queries and keys. Chunks of which no query may see a key are left
out: half of those of a causal row, and most of a sliding window or of many texts. Rows of more than `LONG`
tokens that are not cut are a ring of one.

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
from jaxft.models.layers.blockwise import (
    Back,
    Gradients,
    How,
    Keys,
    Part,
    Queries,
    Sums,
    chunks,
    grouped,
    joined,
)
from jaxft.models.layers.sight import Places
from jaxft.models.layers.slices import Slices

CONTEXT, TENSOR = mesh.CONTEXT, mesh.TENSOR
# Scores of all pairs take 2 GiB there for each row, of 32 heads in fp32. Forward and backward of 8 heads of
# 64 on a core: 5.6 s by all pairs, 2.5 s by chunks (2048 tokens: 1.6 and 0.7 s). Not timed on an accelerator.
LONG = 4096


def takes(queries: int, keys: int, seed: seeds.Seed) -> bool:
    """Whether rows of so many tokens, each of which looks, are for this file."""
    if mesh.cuts_tokens(queries) and mesh.cuts_tokens(keys):
        return True
    # Under pmap dropout has no tiles.
    return max(queries, keys) > LONG and (seed is None or len(seed) == 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    biases: jax.Array | None,
    places: tuple[Places, Places | None],
    seed: seeds.Seed,
    how: How,
) -> jax.Array:
    """Query [B, Q, H, C], key and value [B, T, G, C] -> [B, Q, H, C].

    Args:
        biases: of a row's tokens to themselves [H, 2 T], see `relative.in_order`; None: there are none.
        places: of the keys [B, T], and of the queries [B, Q] where these are others than the keys.
    """
    return _forward(query, key, value, biases, places, seed, how)[0]


def _forward(query, key, value, biases, places, seed, how):
    seed = None if how.rate == 0 else seed
    cut = _Cut.of(query.shape, key.shape[1], key.shape[2], how)
    run = cut.mapped(
        functools.partial(_forward_here, how, cut),
        (*(cut.heads,) * 3, cut.biases, cut.tokens, PartitionSpec()),
        (cut.heads, cut.kept),
    )
    out, kept = run(query, key, value, biases, places, seed)
    return out, (*kept, biases, seed, out)


def _backward(how, residuals, gradient):
    queries, keys, normaliser, biases, seed, out = residuals
    count, _, groups, size, _ = keys.key.shape
    cut = _Cut.of(out.shape, count * size, groups, how)
    run = cut.mapped(
        functools.partial(_backward_here, how, cut),
        (*cut.kept, cut.biases, PartitionSpec(), cut.heads, cut.heads),
        (*(cut.heads,) * 3, cut.biases),
    )
    return *run(queries, keys, normaliser, biases, seed, out, gradient), None, None


attention.defvjp(_forward, _backward)


class _Cut(NamedTuple):
    """Where an array of the whole mesh is: rows over `rows`, heads over `tensor` if it divides them.

    Not cut at all where there is no context axis: the compiler lays out what there is.
    """

    ring: bool
    rows: tuple[str, ...]
    tensor: str | None
    shape: tuple[int, int, int, int]  # B, H, Q, T of all devices
    slices: Slices  # of queries
    looked_at: Slices

    @classmethod
    def of(cls, query: tuple[int, ...], keys: int, groups: int, how: How) -> _Cut:
        """Of queries of shape [B, Q, H, C] to so many keys, of so many heads."""
        batch, length, heads, _ = query
        shape = batch, heads, length, keys
        if not (mesh.cuts_tokens(length) and mesh.cuts_tokens(keys)):
            whole = (Slices(1, each, False) for each in (length, keys))
            return cls(False, (), None, shape, *whole)
        count = mesh.sizes()[CONTEXT]
        slices = [Slices.of(count, x // count, how.causal, how.reach) for x in (length, keys)]
        divides = mesh.divides(heads) and mesh.divides(groups)
        return cls(True, mesh.row_axes(batch) or (), TENSOR if divides else None, shape, *slices)

    @property
    def heads(self) -> PartitionSpec:
        """Of [B, T, H, C]."""
        return PartitionSpec(self.rows or None, CONTEXT, self.tensor)

    @property
    def tokens(self) -> PartitionSpec:
        """Of [B, T]."""
        return PartitionSpec(self.rows or None, CONTEXT)

    @property
    def biases(self) -> PartitionSpec:
        """Of [H, 2 T]."""
        return PartitionSpec(self.tensor)

    @property
    def kept(self) -> tuple[Any, ...]:
        """Of queries, keys and the normaliser: of chunks [N, B, H, ...] and their places [N, B, Q]."""
        heads: Any = PartitionSpec(CONTEXT, self.rows or None, self.tensor)
        places: Any = PartitionSpec(CONTEXT, self.rows or None)
        firsts: Any = PartitionSpec(CONTEXT)
        return Queries(heads, places, firsts), Keys(heads, heads, places, firsts), heads

    def mapped(self, function: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        if not self.ring:
            return function
        return jax.shard_map(function, in_specs=inputs, out_specs=outputs, check_vma=False)

    def part(
        self, how: How, seed: seeds.Seed, biases: jax.Array | None, batch: int, heads: int
    ) -> Part:
        """What this device has, so many rows and heads."""
        row = lax.axis_index(self.rows) * batch if self.rows else 0
        head = lax.axis_index(self.tensor) * heads if self.tensor else 0
        return Part(how, self.shape, row, head, seed, biases)

    def firsts(self) -> tuple[jax.Array, jax.Array]:
        """Of the chunks [N] of queries, and of keys, that this device works on, the number of the first in
        the row."""
        here = lax.axis_index(CONTEXT) if self.ring else jnp.zeros((), jnp.int32)
        return self.slices.firsts(here), self.looked_at.firsts(here)

    def around(self, look: Callable[[Any, Any], Any], kept: Any, moving: Any) -> Any:
        """(kept, moving) after `look(kept, moving) -> (kept, moving)` of what each device had.

        What moves ends one step from home, where `home` sends it.
        """
        if not self.ring:
            return look(kept, moving)

        def step(state, _):
            kept, moving = look(*state)
            return (kept, _sent(moving, _next)), None

        (kept, moving), _ = lax.scan(step, (kept, moving), length=self.slices.devices - 1)
        return look(kept, moving)

    def summed(self, x: Any) -> Any:
        """Over the devices that have other tokens or rows."""
        return lax.psum(x, (*self.rows, CONTEXT)) if self.ring else x

    def home(self, x: Any) -> Any:
        """Of tokens [B, T, ...] that went around, to the devices that have their slices."""
        if not self.ring:
            return x
        if not self.slices.paired:
            return _sent(x, _next)
        return self._halves(x, _next, lambda i, count: self.slices.other(_next(i, count)))

    def exchanged(self, x: Any) -> Any:
        """Of tokens [B, T, ...], from the device that has their slice to the one that works on them; or
        back."""
        if not self.slices.paired:
            return x
        return self._halves(x, None, lambda i, count: self.slices.other(i))

    def _halves(self, x: Any, first: _To | None, second: _To) -> Any:
        def halves(leaf: jax.Array) -> jax.Array:
            one, two = jnp.split(leaf, 2, axis=1)
            one = one if first is None else _sent(one, first)
            return jnp.concatenate([one, _sent(two, second)], axis=1)

        return jax.tree.map(halves, x)


_To = Callable[[int, int], int]  # (number of a device, how many there are) -> of another


def _next(device: int, count: int) -> int:
    return (device + 1) % count


def _sent(x: Any, to: _To) -> Any:
    count = lax.axis_size(CONTEXT)
    pairs = [(i, to(i, count)) for i in range(count)]
    return jax.tree.map(lambda leaf: lax.ppermute(leaf, CONTEXT, pairs), x)


def _forward_here(how, cut, query, key, value, biases, places, seed):
    (batch, _, heads, width), groups = query.shape, key.shape[2]
    query, key, value, (places, looking) = cut.exchanged((query, key, value, places))
    part, (firsts, of_keys) = cut.part(how, seed, biases, batch, heads), cut.firsts()
    looking = places if looking is None else looking
    queries = Queries.of(query, groups, looking, firsts, how.scale)

    def look(sums, keys):
        def of_queries(_, numbered):
            queries, sums = numbered

            def see(sums, keys):
                seen = part.sees(queries, keys)
                # One branch is run: what nobody sees costs nothing.
                return lax.cond(
                    seen.any(), lambda sums: sums.added(part, queries, keys, seen), _as_it_is, sums
                ), None

            return None, lax.scan(see, sums, keys)[0]

        return lax.scan(of_queries, None, (queries, sums))[1], keys

    keys = Keys.of(key, value, places, of_keys)
    start = Sums.none((len(firsts), batch, heads, cut.slices.size, width))
    sums, _ = cut.around(look, start, keys)
    out, normaliser = sums.finished()
    return cut.exchanged(joined(out.astype(query.dtype))), (queries, keys, normaliser)


def _backward_here(how, cut, queries, keys, normaliser, biases, seed, out, gradient):
    (batch, _, heads, _), groups = out.shape, keys.key.shape[2]
    part, count = cut.part(how, seed, biases, batch, heads), len(normaliser)
    # Over all keys, of weight times its gradient; with dropout, too, as `out` is of the dropped weights.
    mean = (out.astype(jnp.float32) * gradient.astype(jnp.float32)).sum(-1, keepdims=True)
    mean, gradient = (chunks(x, count) for x in cut.exchanged((mean, gradient)))
    backs = Back(queries, normaliser, mean[..., 0], grouped(gradient, groups))

    def look(found, moving):
        keys, by_keys = moving

        def of_queries(state, numbered):
            (by_biases, by_keys), (back, by_query) = state, numbered

            def see(state, numbered):
                keys, by_key = numbered
                seen, found = part.sees(back.queries, keys), Gradients(*state, *by_key)
                found = lax.cond(
                    seen.any(), lambda found: back.added(part, keys, seen, found), _as_it_is, found
                )
                return found[:2], found[2:]

            (by_biases, by_query), by_keys = lax.scan(see, (by_biases, by_query), (keys, by_keys))
            return (by_biases, by_keys), by_query

        by_biases, by_query = found
        state, by_query = lax.scan(of_queries, (by_biases, by_keys), (backs, by_query))
        return (state[0], by_query), (keys, state[1])

    zeros = jnp.zeros(keys.key.shape, jnp.float32)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (biases, queries.grouped))
    (by_biases, by_query), (_, by_keys) = cut.around(look, start, (keys, (zeros, zeros)))
    by_query = (by_query * how.scale).reshape(count, batch, heads, -1, by_query.shape[-1])
    by_query = cut.exchanged(joined(by_query).astype(out.dtype))
    pairs = zip(by_keys, (keys.key, keys.value), strict=True)
    by_keys = [joined(x).astype(of.dtype) for x, of in pairs]
    return by_query, *cut.home(by_keys), cut.summed(by_biases)


def _as_it_is(x):
    return x
