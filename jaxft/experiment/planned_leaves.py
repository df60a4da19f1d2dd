"""The parameters of a run as a plan counts their traffic."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from jax.sharding import PartitionSpec

from jaxft.experiment.prepared import Prepared
from jaxft.models.architecture import Architecture as NativeArchitecture
from jaxft.planning.least import Leaf


def leaves_of(
    prepared: Prepared, placements: Mapping[str, PartitionSpec], trained: Collection[str]
) -> list[Leaf]:
    """In the order of the model's tree.

    Args:
      placements: by path, the axis of a mesh that cuts each dimension.
      trained: paths of what has a gradient.
    """
    tables = {row.path: row.depth for row in prepared.decisions if row.path.endswith("embedding")}
    tied = _tied(prepared, set(tables.values()))
    return [
        Leaf(
            row.shape, tuple(placements[row.path]), row.path in trained, row.depth, row.path in tables,
            tables.get(row.path) == 0 and row.path != tied,
        )
        for row in prepared.decisions
    ]  # fmt: skip


def _tied(prepared: Prepared, depths: set[int]) -> str:
    """Path of the table of inputs where it is that of the outputs, too: the head is given it, and no
    other lies at its depth."""
    architecture = prepared.architecture
    if not isinstance(architecture, NativeArchitecture):
        return ""
    own = architecture.num_blocks + 1 in depths
    return "" if own else architecture.family.heads[architecture.head].table
