"""How each parameter is cut over a mesh: by its family's tensor rule, then over fsdp."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxft.optim import match_rules

# Cutting a small parameter costs a gather at each use and saves nothing: 2**16 elements = 256 KiB.
MIN_FSDP_SIZE = 2**16


def param_specs(
    abstract: Any, rules: Sequence[tuple[str, PartitionSpec]], *, fsdp: int, tensor: int
) -> Any:
    """How each parameter is cut: by its rule over 'tensor', then a free dimension over 'fsdp'.

    A function of shapes and sizes: no device is asked.

    Args:
      abstract: a tree of things with `.shape`.
      rules: (path pattern, spec over 'tensor'); what none matches is cut over fsdp alone.
      fsdp, tensor: sizes of the mesh; an axis of one device cuts nothing.

    Returns:
      A tree of PartitionSpec with one entry a dimension.
    """
    chosen = match_rules(rules, abstract, default=PartitionSpec(), must_match=False)
    return jax.tree.map(
        lambda leaf, rule: _spec(leaf.shape, rule, fsdp=fsdp, tensor=tensor), abstract, chosen
    )


def _spec(shape: tuple[int, ...], rule: PartitionSpec, *, fsdp: int, tensor: int) -> PartitionSpec:
    """`rule` with fsdp on the largest free dimension that it divides."""
    axes = [*rule, *[None] * (len(shape) - len(rule))]
    for i, axis in enumerate(axes):
        if axis is not None and shape[i] % tensor:
            axes[i] = None  # e.g. 3 labels over 2 devices: kept whole
    free = [i for i, axis in enumerate(axes) if axis is None and shape[i] % fsdp == 0]
    if fsdp > 1 and free and math.prod(shape) >= MIN_FSDP_SIZE:
        axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*(None if axis == "tensor" and tensor == 1 else axis for axis in axes))
