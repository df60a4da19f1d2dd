"""The devices of a run: one of them, all as a mesh, or those of one process under pmap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxft.training.parallel import BATCH_AXES, PMAP_AXIS, Parallel

AXES = (*BATCH_AXES, "tensor")


def make_parallel(
    mode: str,
    *,
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Parallel:
    """Devices of a run, over all processes.

    Args:
      mode: 'jit', 'shard', 'pmap', or 'auto' (jit on one device, shard on more).
      data, fsdp, tensor: mesh sizes; data = -1 takes the devices that are left.
      devices: of a machine that is not here, to compile for under 'jit' or 'shard'; None: those that are.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or tensor spans processes.
    """
    given, there = devices, jax.devices() if devices is None else devices
    # By process: each one's part of the batch is then contiguous, in the order of their numbers.
    devices = sorted(there, key=lambda d: (d.process_index, d.id))
    processes = len({d.process_index for d in devices})
    if mode == "auto":
        mode = "jit" if len(devices) == 1 and fsdp == tensor == 1 else "shard"
    if mode != "shard" and (fsdp > 1 or tensor > 1):
        raise ValueError(
            f"parallel.fsdp={fsdp} and parallel.tensor={tensor} need parallel.mode='shard', not {mode!r}"
        )
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
    sizes = _sizes(data, fsdp, tensor, len(devices), processes)
    # Auto axes: the compiler lays out what lies between; Explicit ones need annotations in the model.
    mesh = Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return Parallel("shard", mesh, sizes[0] * sizes[1], None if given is None else devices[0])


def _sizes(data: int, fsdp: int, tensor: int, count: int, processes: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor) of all devices, those that share a tensor in one process."""
    local = count // processes
    found = (count // (fsdp * tensor) if data == -1 else data, fsdp, tensor)
    if min(found) < 1 or math.prod(found) != count:
        wrong = f"do not multiply to the {count} devices that are here"
    elif local % tensor:
        wrong = (
            f"do not fit: tensor={tensor} does not divide the {local} devices of a process, and devices that "
            "share a tensor must be in one process"
        )
    else:
        return found
    near = min(_factors(count, local), key=lambda sizes: _distance(sizes, (data, fsdp, tensor)))
    rest = f"data={-1 if data == -1 else near[0]}, fsdp={near[1]}, tensor={near[2]}"
    raise ValueError(
        f"parallel.data={data}, fsdp={fsdp}, tensor={tensor} {wrong}; the nearest that do are {rest}"
    )


def _factors(count: int, local: int) -> Iterator[tuple[int, int, int]]:
    """Every (data, fsdp, tensor) that multiplies to `count`, tensor dividing `local`."""
    for tensor in (n for n in range(1, local + 1) if local % n == 0):
        rest = count // tensor
        yield from ((rest // n, n, tensor) for n in range(1, rest + 1) if rest % n == 0)


def _distance(sizes: tuple[int, ...], asked: tuple[int, ...]) -> tuple[float, int]:
    """By how many factors of two they differ, where a size is asked for; ties: fewer that share."""
    pairs = zip(sizes, asked, strict=True)
    apart = sum(abs(math.log2(size / max(want, 1))) for size, want in pairs if want != -1)
    return round(apart, 6), sizes[1] * sizes[2]
