"""This machine as a device: what its cores reach is measured, as no table knows it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path

from jaxft.planning.hardware import GIB, Chip

_SIDE = 1024
_TRIES = 5
_BESIDE = 120 * 2**20  # evaluation, Orbax and logs, which a plan does not load


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


def process_bytes(memory: Mapping[str, float], own: int, highest: int) -> float:
    """What a process that trains has in memory at its fullest, told by one that has compiled the same.

    Either while the step is compiled, or in an update during which a checkpoint is written: of what it saves,
    trained parameters and slots, Orbax has a copy by then, and TensorStore up to another; half of it is
    counted. An export comes when slots and copies are gone.

    Args:
      memory: of a plan.
      own, highest: `resident` bytes of this process after compiling, which has no weight.
    """
    arguments = sum(memory[n] for n in ("trainable", "frozen", "slots", "statistics", "others"))
    saved = memory["trainable"] + memory["slots"]
    updating = own + _BESIDE + memory["needed"] + 1.5 * saved
    return max(updating, highest + arguments)


def resident() -> tuple[int, int]:
    """Bytes that this process has in memory, now and at its fullest so far; 0 where nobody says."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0, 0
    now, highest = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "VmHWM"))
    return (int(now[1]) * 1024 if now else 0), (int(highest[1]) * 1024 if highest else 0)


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
