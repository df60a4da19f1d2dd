"""The devices of a run: one of them, all as a mesh, or those of one process under pmap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxft.training.parallel import BATCH_AXES, PMAP_AXIS, Parallel

AXES = (*BATCH_AXES, "context", "tensor")


def make_parallel(
    mode: str,
    *,
    data: int = -1,
    fsdp: int = 1,
    context: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Parallel:
    """Devices of a run, over all processes.

    Args:
      mode: 'jit', 'shard', 'pmap', or 'auto' (jit on one device, shard on more).
      data, fsdp, context, tensor: mesh sizes; data = -1 takes the devices that are left.
      devices: of a machine that is not here, to compile for under 'jit' or 'shard'; None: those that are.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or do not fit the processes.
    """
    given, there = devices, jax.devices() if devices is None else devices
    # By process: each one's part of the batch is then contiguous, in the order of their numbers.
    devices = sorted(there, key=lambda d: (d.process_index, d.id))
    processes = len({d.process_index for d in devices})
    if mode == "auto":
        mode = "jit" if len(devices) == 1 and fsdp == context == tensor == 1 else "shard"
    if mode != "shard" and max(fsdp, context, tensor) > 1:
        given_sizes = {"fsdp": fsdp, "context": context, "tensor": tensor}
        larger = [f"parallel.{name}={size}" for name, size in given_sizes.items() if size > 1]
        raise ValueError(f"{' and '.join(larger)}: needs parallel.mode='shard', not {mode!r}")
    if mode == "jit":
        if processes > 1:
            raise ValueError(
                "parallel.mode='jit' uses one device; with several processes use 'shard'"
            )
        return Parallel("jit", None, 1, None if given is None else devices[0])
    if mode == "pmap":
        if given is not None:
            raise ValueError("parallel.mode='pmap' compiles for devices that are here; use 'shard'")
        mesh = Mesh(np.array(jax.local_devices()), (PMAP_AXIS,))
        return Parallel("pmap", mesh, len(devices))
    sizes = _sizes(Sizes(data, fsdp, context, tensor), len(devices), processes)
    # Auto axes: the compiler lays out what lies between; Explicit ones need annotations in the model.
    mesh = Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    shards = sizes.data * sizes.fsdp
    sharers = max(1, sizes.context * sizes.tensor * processes // len(devices))
    return Parallel("shard", mesh, shards, None if given is None else devices[0], sharers)


class Sizes(NamedTuple):
    """Devices along each axis of a mesh, in the order of `AXES`."""

    data: int
    fsdp: int
    context: int
    tensor: int

    def __str__(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self._asdict().items())


def _sizes(asked: Sizes, count: int, processes: int) -> Sizes:
    """Of all devices, those that share a tensor in one process."""
    local, found = count // processes, asked
    if asked.data == -1:
        found = asked._replace(data=count // math.prod(asked[1:]))
    if min(found) < 1 or math.prod(found) != count:
        wrong = f"do not multiply to the {count} devices that are here"
    elif local % found.tensor:
        wrong = (
            f"do not fit: tensor={found.tensor} does not divide the {local} devices of a process, and "
            "devices that share a tensor must be in one process"
        )
    elif not _in_whole_processes(found.context * found.tensor, local):
        wrong = (
            f"do not fit: the {found.context * found.tensor} devices that share a row (context x tensor) "
            f"are neither a part of the {local} devices of a process nor several processes"
        )
    else:
        return found
    near = min(_factors(count, local), key=lambda sizes: _distance(sizes, asked))
    if asked.data == -1:
        near = near._replace(data=-1)
    raise ValueError(f"parallel.{asked} {wrong}; the nearest that do are {near}")


def _in_whole_processes(sharing: int, local: int) -> bool:
    """Whether so many devices that follow each other are of one process, or all of some."""
    return local % sharing == 0 or sharing % local == 0


def _factors(count: int, local: int) -> Iterator[Sizes]:
    """All that multiply to `count` and fit."""
    for tensor in _divisors(local):
        for context in _divisors(count // tensor):
            if _in_whole_processes(context * tensor, local):
                rest = count // (context * tensor)
                yield from (Sizes(rest // fsdp, fsdp, context, tensor) for fsdp in _divisors(rest))


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _distance(sizes: Sizes, asked: Sizes) -> tuple[float, int]:
    """By how many factors of two they differ, where a size is asked for; ties: fewer that share."""
    pairs = zip(sizes, asked, strict=True)
    apart = sum(abs(math.log2(size / max(want, 1))) for size, want in pairs if want != -1)
    return round(apart, 6), math.prod(sizes[1:])
