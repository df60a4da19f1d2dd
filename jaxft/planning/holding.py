"""Bytes of arrays on one device, by their shardings; and of what a forward pass keeps for its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax


def width_of(dtype: str) -> int:
    """Bytes of a number of a compute type, as `config.model.dtype` names it."""
    return 2 if dtype == "bfloat16" else 4


def bytes_of(tree: Any) -> int:
    """On one device, of arrays or their shapes; whole where there is no sharding."""
    return sum(leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def leaf_bytes(leaf: Any) -> int:
    """Of one of them."""
    sharding = getattr(leaf, "sharding", None)
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def kept_bytes(loss: Callable[[Any, Any], Any], params: Any, rest: Any) -> int:
    """Of all devices: what the forward pass of a loss keeps for its gradient, arguments and casts of them
    left out. Before the compiler, which may keep less or compute some of it again.

    Args:
      loss: `(params, rest) -> scalar`, of which only shapes are looked at; the gradient is that by params.
      params, rest: arrays or their shapes.
    """
    found: list[Any] = []

    def traced(params: Any, rest: Any) -> Any:
        value, back = jax.vjp(lambda given: loss(given, rest), params)
        own = {id(leaf) for leaf in jax.tree.leaves((params, rest))}
        found.extend((x.shape, x.dtype) for x in jax.tree.leaves(back) if id(x) not in own)
        return value

    jax.eval_shape(traced, params, rest)
    shapes = {tuple(sorted(leaf.shape)) for leaf in jax.tree.leaves((params, rest))}
    return sum(
        math.prod(shape) * dtype.itemsize
        for shape, dtype in found
        if shape and tuple(sorted(shape)) not in shapes
    )
