"""Tokens where they are, and the vocabulary cut over the tensor axis, under `jit` over a mesh in context."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

# What a result is: an array of tokens, a sum over them, or such a sum for each row of the vocabulary.
TOKENS, SUM, ROWS = "tokens", "sum", "rows"
CONTEXT = "context"  # the axis over which the tokens of a row are cut


@dataclasses.dataclass(frozen=True)
class Share:
    """The rows of the unembedding that a device has.

    Attributes:
      vocabulary: rows that there are.
      tensor: the axis over which they are cut, in equal parts of which the last ones may have some that are
        none; None: a device has all.
      axes: those over which tokens are cut, where `tensor` is not None.
    """

    vocabulary: int
    tensor: str | None = None
    axes: tuple[str, ...] = ()

    def ids(self, rows: int) -> jax.Array:
        """[rows] int32: what they are rows of; `vocabulary` and above of none."""
        first = 0 if self.tensor is None else lax.axis_index(self.tensor) * rows
        return first + jnp.arange(rows, dtype=jnp.int32)

    def present(self, logits: jax.Array) -> jax.Array:
        """Logits [C, rows] with the least of all numbers in the place of those of no row."""
        if self.tensor is None:
            return logits
        real = self.ids(logits.shape[-1]) < self.vocabulary
        return jnp.where(real, logits, jnp.finfo(logits.dtype).min)

    def added(self, x: jax.Array) -> jax.Array:
        return x if self.tensor is None else lax.psum(x, self.tensor)

    def largest(self, x: jax.Array) -> jax.Array:
        return x if self.tensor is None else lax.pmax(x, self.tensor)

    def normaliser(self, logits: jax.Array) -> jax.Array:
        """[C]: the log of the sum of all exponentials."""
        if self.tensor is None:
            return jax.nn.logsumexp(logits, axis=-1)
        largest = self.largest(logits.max(-1))
        return largest + jnp.log(self.added(jnp.exp(logits - largest[:, None]).sum(-1)))

    def at(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """[C]: of each token the logit of its label."""
        ids = self.ids(logits.shape[-1])
        own = labels - ids[0]
        found = jnp.take_along_axis(logits, own[:, None], axis=-1, mode="clip")[:, 0]
        if self.tensor is None:
            return found
        return self.added(jnp.where((own >= 0) & (own < len(ids)), found, 0))

    def best(self, logits: jax.Array) -> jax.Array:
        """[C]: which row has the largest logit, the first of several."""
        if self.tensor is None:
            return logits.argmax(-1)
        ids, own = self.ids(logits.shape[-1]), logits.max(-1)
        place = jnp.where(own == self.largest(own), ids[logits.argmax(-1)], self.vocabulary)
        return lax.pmin(place, self.tensor)

    def mean(self, logits: jax.Array) -> jax.Array:
        """[C]: over the vocabulary."""
        if self.tensor is None:
            return logits.mean(-1)
        real = self.ids(logits.shape[-1]) < self.vocabulary
        return self.added(jnp.where(real, logits, 0).sum(-1)) / self.vocabulary

    def most(self, count: jax.Array) -> jax.Array:
        """The largest on any device: loops in which devices wait for each other are of one length."""
        return count if self.tensor is None else lax.pmax(count, self.axes)


def where_tokens_are(
    function: Callable[..., Any], by: Any, *, axes: tuple[str, ...], tensor: str
) -> Callable[..., Any]:
    """`function(share, features, (unembedding, bias, cap), labels, weight)`, run where the tokens are.

    Args:
      by: TOKENS, SUM or ROWS in the structure of its results; results may be None.
      axes: of the mesh in context over which the first axis of tokens is cut; `CONTEXT` cuts the second.
      tensor: the axis over which the vocabulary is.
    """

    def run(features, head, labels, weight):
        unembedding, bias, cap = head
        vocabulary = len(unembedding)
        by_rows, by_tokens, parts = _cutting(axes, tensor, labels.shape)
        if not by_rows and not by_tokens:
            return function(Share(vocabulary), features, head, labels, weight)
        tokens, whole = PartitionSpec(by_rows or None, *by_tokens), PartitionSpec()
        cutting = (*by_rows, *by_tokens)
        rows = PartitionSpec(tensor) if parts > 1 else whole
        share = Share(vocabulary, tensor, cutting) if parts > 1 else Share(vocabulary)
        specs = {TOKENS: tokens, SUM: whole, ROWS: rows}

        def local(*given):
            results = function(share, *given)
            return jax.tree.map(
                lambda kind, x: x if kind == TOKENS else lax.psum(x, cutting), by, results
            )

        mapped = jax.shard_map(
            local,
            in_specs=(tokens, (rows, rows, whole), tokens, tokens),
            out_specs=jax.tree.map(specs.__getitem__, by),
            check_vma=False,
        )
        missing = -vocabulary % parts
        padded = (_padded(unembedding, missing), _padded(bias, missing), cap)
        results = mapped(features, padded, labels, weight)
        return jax.tree.map(
            lambda kind, x: x[:vocabulary] if kind == ROWS and missing else x, by, results
        )

    return run


def _padded(x: jax.Array | None, missing: int) -> jax.Array | None:
    if x is None or not missing:
        return x
    return jnp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1)))


def _cutting(
    axes: tuple[str, ...], tensor: str, shape: tuple[int, ...]
) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Axes of the mesh in context over which rows are cut, and tokens of them; the vocabulary's parts.

    None under vmap of it or pmap, where the tokens are those of one device already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    found = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    there = tuple(name for name in axes if found.get(name) == AxisType.Auto)
    by_rows = there if shape[0] % math.prod(mesh.shape[name] for name in there) == 0 else ()
    context = mesh.shape[CONTEXT] if found.get(CONTEXT) == AxisType.Auto else 1
    by_tokens = len(shape) == 2 and context > 1 and shape[1] % context == 0
    parts = mesh.shape[tensor] if found.get(tensor) == AxisType.Auto else 1
    return by_rows, (CONTEXT,) * by_tokens, parts
