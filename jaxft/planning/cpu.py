"""This machine as a device: what its cores reach is measured, as no table knows it."""

from __future__ import annotations

import re
import time
from pathlib import Path

from jaxft.planning.hardware import GIB, Chip

_SIDE = 1024
_TRIES = 5
_BESIDE = 170 * 2**20
_KEPT = 1.25


def cpu_chip(devices: int) -> Chip:
    """One of `devices` virtual devices that share this machine. It takes 0.2 s."""
    import jax
    import jax.numpy as jnp

    one = jnp.ones((_SIDE, _SIDE))
    product = jax.jit(lambda x: x @ x)
    product(one).block_until_ready()
    best = min(_timed(lambda: product(one).block_until_ready()) for _ in range(_TRIES))
    copied = jnp.ones((64 << 20) // 4)
    add = jax.jit(lambda x: x + 1)
    add(copied).block_until_ready()
    moved = min(_timed(lambda: add(copied).block_until_ready()) for _ in range(_TRIES))
    peak, bandwidth = 2 * _SIDE**3 / best, 2 * copied.nbytes / moved
    share = 1 / devices
    return Chip(
        "this machine's CPU", "cpu", peak * share, peak * share, int(_memory() * share),
        bandwidth * share, bandwidth * share, 0, None, None, 1, devices, reached=0.8,
    )  # fmt: skip


def process_bytes(needed: float) -> float:
    """What a process that trains has in memory at its fullest, told by this one, which has compiled the same.

    What it has now, interpreter, libraries and compiler; what evaluations, checkpoints and the report
    bring with them; and the program, of whose temporaries the allocator keeps some between the updates. The
    two constants are of runs of three sizes (BUILD_NOTES.md, "Plans").
    """
    return _resident() + _BESIDE + _KEPT * needed


def _resident() -> int:
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else 0


def _timed(run: object) -> float:
    began = time.perf_counter()
    run()  # type: ignore[operator]
    return time.perf_counter() - began


def _memory() -> int:
    """Bytes that are free on this machine; 8 GiB where it does not say."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else 8 * GIB
