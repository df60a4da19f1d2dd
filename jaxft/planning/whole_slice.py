"""Slices of TPUs over all of whose chips XLA sums where it could scatter, and which sends twice as much.

Where one group is every chip of such a slice, libtpu 0.0.42 (November 2026) takes a sum in two or three
dimensions for gradients, on a v5p for gathers, too; with a group of half of the chips it does not. Compiled
with two kernels (BUILD_NOTES.md, "Plans"): v5e and v6e 8x8 and 16x16, v5p 4x4x4, 4x4x8 and 8x8x8; and not so
v5e 4x8 and 8x16, v5p 2x2x4 and 2x4x4 (their gathers). On a v5e 4x4 it depends on the model: ViT-H is sent in
pieces, a block of width 1,024 is summed; it is taken to scatter.
Others are judged by these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxft.planning.hlo import Collective
from jaxft.planning.topology import Topology

_GRADIENTS = ("reduce-scatter",)
_BOTH = ("reduce-scatter", "all-gather")


def is_summed(topology: Topology, mesh: Mapping[str, int]) -> bool:
    """Whether fsdp goes over all chips of such a slice."""
    return mesh.get("fsdp", 1) == topology.devices and bool(_summed(topology))


def as_compiled(
    found: tuple[Collective, ...], topology: Topology, mesh: Mapping[str, int]
) -> tuple[Collective, ...]:
    """The least traffic with what XLA sums instead: the same results for twice the bytes."""
    if not is_summed(topology, mesh):
        return found
    kinds = _summed(topology)
    return tuple(
        dataclasses.replace(one, kind="all-reduce", bytes=2 * one.bytes) if one.kind in kinds else one
        for one in found
    )  # fmt: skip


def _summed(topology: Topology) -> tuple[str, ...]:
    """What is a sum where one group is all of a slice."""
    sizes = topology.shape
    if topology.platform != "tpu":
        return ()
    if len(sizes) == 3:
        return _BOTH if min(sizes) >= 4 else ()
    return _GRADIENTS if min(sizes) >= 8 and len(set(sizes)) == 1 else ()
