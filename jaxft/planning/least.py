"""The least that a device must receive in an update, by kind of collective: docs/plan.md derives it.

Counted as a ring moves it, so that an all-reduce is a reduce-scatter and an all-gather. It is what any
program must send that keeps the placement it is given and gathers no more than it uses; a program may send
less of one kind and more of another, so sums are what is to be compared.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from jaxft.planning.hlo import Collective, on_the_wire

_SAME = ("data", "context")  # axes over which parameters are the same


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter, as far as traffic is concerned.

    Attributes:
      shape: of the whole array.
      placement: the axis of the mesh that cuts each dimension, or None.
      trains: it has a gradient.
      depth: stem 0, blocks 1.., head.
      is_table: an input or output embedding: no gradient is passed on through it.
      is_looked_up: and only rows of it are read; it is no operand of a product.
    """

    shape: tuple[int, ...]
    placement: tuple[str | None, ...]
    trains: bool
    depth: int
    is_table: bool = False
    is_looked_up: bool = False

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


def least(
    leaves: Iterable[Leaf], mesh: Mapping[str, int], *, lowest: int, tokens: int, width: int,
    compute: int, accumulate: int = 1,
) -> tuple[Collective, ...]:  # fmt: skip
    """What each device receives of the others, by kind and axes; `count` is 0.

    Args:
      mesh: axis -> devices. What goes around a context axis for attention is not counted.
      lowest: depth of the lowest parameter that trains; the backward pass does not reach below.
      tokens: of an update, over all devices.
      width: bytes of a gradient's number as it is summed.
      compute: bytes of a number in the computation, in which parameters are gathered.
      accumulate: microbatches: parameters are gathered for each, gradients summed once.
    """
    fsdp, tensor, context = (mesh.get(axis, 1) for axis in ("fsdp", "tensor", "context"))
    data = mesh.get("data", 1) * context  # over both, parameters are the same and tokens are cut
    sums: dict[tuple[str, tuple[str, ...]], float] = {}

    def add(kind: str, axes: tuple[str, ...], size: float) -> None:
        moved = on_the_wire(kind, size, math.prod(mesh.get(axis, 1) for axis in axes))
        sums[kind, axes] = sums.get((kind, axes), 0.0) + moved

    for leaf in leaves:
        own = leaf.size / (tensor if "tensor" in leaf.placement else 1)
        is_cut = "fsdp" in leaf.placement and fsdp > 1
        if is_cut and leaf.is_looked_up:
            # A device reads, of the table or of what others looked up for it, no more than it has tokens.
            read = tokens / (data * fsdp) * leaf.shape[-1]
            add("all-gather", ("fsdp",), min(own * accumulate, read) * compute)
            if leaf.trains:
                add("reduce-scatter", ("fsdp",), min(own, read) * width)
                add("all-reduce", _SAME, own * width / fsdp)
            continue
        if is_cut:
            # Forward; and backward, where the gradient of what it is applied to is needed.
            again = leaf.depth > lowest and not leaf.is_table
            add("all-gather", ("fsdp",), accumulate * (1 + again) * own * compute)
        if leaf.trains and is_cut:
            add("reduce-scatter", ("fsdp",), own * width)
            add("all-reduce", _SAME, own * width / fsdp)
        elif leaf.trains:
            add("all-reduce", ("data", "fsdp", "context"), own * width)
        # A kernel whose inputs are cut gives a sum over the axis: of its outputs, and on the way back of the
        # gradient of what the kernels before it read, which are as wide.
        if tensor > 1 and len(leaf.shape) > 1 and leaf.placement[0] == "tensor":
            hidden = tokens / (data * fsdp) * leaf.shape[-1] * compute
            add("all-reduce", ("tensor",), (1 + (leaf.depth >= lowest)) * hidden)
    return tuple(
        Collective(kind, math.prod(mesh.get(axis, 1) for axis in axes), axes, moved, 0)
        for (kind, axes), moved in sums.items()
        if moved
    )


def gathered(leaves: Iterable[Leaf], mesh: Mapping[str, int], *, compute: int) -> float:
    """Bytes a device of the largest block twice, as the next is gathered while one is used; 0 where fsdp
    cuts nothing.

    Args:
      mesh, compute: as of `least`.
    """
    blocks: dict[int, float] = {}
    for leaf in leaves:
        own = leaf.size / (mesh.get("tensor", 1) if "tensor" in leaf.placement else 1)
        blocks[leaf.depth] = blocks.get(leaf.depth, 0.0) + own
    return 2 * max(blocks.values()) * compute if mesh.get("fsdp", 1) > 1 else 0.0
