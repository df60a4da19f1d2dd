"""Whether the copies of each parameter, which every update makes anew on each device, are still one.

They differ only where a device or a link is broken, or programs are not the same; no loss need show it, as
each device goes on from its own copy.
"""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_BYTES = 8


class ReplicasDifferError(OSError):
    """Copies that should be equal are not: the machine is at fault."""


def check_replicas(tree: Any, *, stacked: bool = False) -> None:
    """Compare all copies of all leaves, in all processes, each of which must call it.

    Each device's bytes are hashed on its host, which costs a copy of them there and about a second a GB; only
    hashes are sent.

    Args:
      tree: of jax.Arrays.
      stacked: the first axis of each has a copy for each device, as under pmap.

    Raises:
      ReplicasDifferError: one line with the first path that differs, and where, in every process.
    """
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    own = [_local(leaf, stacked) for leaf in leaves]
    pieces = [_pieces(leaf, stacked) for leaf in leaves]
    # [leaves, pieces, bytes], and which of them this process has: of one shape in all processes.
    digests = np.zeros((len(leaves), max(map(len, pieces)), _BYTES), np.uint8)
    here = np.zeros(digests.shape[:2], np.uint8)
    apart = np.zeros(len(leaves), np.uint8)
    for number, (found, places) in enumerate(zip(own, pieces, strict=True)):
        for place, hashes in found.items():
            digests[number, places.index(place)] = np.frombuffer(hashes[0], np.uint8)
            here[number, places.index(place)] = 1
            apart[number] |= len(set(hashes)) > 1
    everywhere = _gathered((digests, here, apart))
    for number, path in enumerate(paths):
        if where := _where(number, *everywhere):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ReplicasDifferError(
                f"copies of {name} differ {where}: a device or a link is at fault; without it, the same "
                "command continues from the last checkpoint, at which all were equal"
            )


def _local(leaf: jax.Array, stacked: bool) -> dict[str, list[bytes]]:
    """Which piece -> the hash of each copy that this process has, the first device's first."""
    found: dict[str, list[bytes]] = {}
    for shard in leaf.addressable_shards:
        data = np.ascontiguousarray(np.asarray(shard.data))
        digest = hashlib.blake2b(data.reshape(-1).view(np.uint8).data, digest_size=_BYTES).digest()
        found.setdefault(_place(shard.index, stacked), []).append(digest)
    return found


def _pieces(leaf: jax.Array, stacked: bool) -> list[str]:
    """All pieces that it is cut into, those of other processes too, in one order everywhere."""
    indices = leaf.sharding.devices_indices_map(leaf.shape).values()
    return sorted({_place(index, stacked) for index in indices})


def _place(index: Any, stacked: bool) -> str:
    return str(index[1:] if stacked else index)


def _gathered(arrays: Any) -> Any:
    """The same of all processes, on a new first axis."""
    if jax.process_count() == 1:
        return jax.tree.map(lambda x: x[None], arrays)
    return multihost_utils.process_allgather(arrays)


def _where(number: int, digests: np.ndarray, here: np.ndarray, apart: np.ndarray) -> str:
    """Between whom one leaf differs; '' where it does not."""
    if (devices := np.flatnonzero(apart[:, number])).size:
        return f"between devices of process {devices[0]}"
    for piece in range(here.shape[2]):
        having = np.flatnonzero(here[:, number, piece])
        for process in having[1:]:
            if not np.array_equal(
                digests[process, number, piece], digests[having[0], number, piece]
            ):
                return f"between processes {having[0]} and {process}"
    return ""
