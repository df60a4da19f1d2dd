"""How many trials fit into the memory that is there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxft.training.programs import Programs

# Of what is free: besides the program there are the first states, batches that are made, and what the
# allocator cannot use.
_SHARE = 0.7


def free_bytes() -> int | None:
    """On each of this process's devices, or of the machine where they are its CPU; None: nobody knows."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    # Devices of a CPU are parts of one machine.
    return int(_SHARE * int(found[1]) * 1024) // len(jax.local_devices()) if found else None


def affordable(
    count: int, size: int, budget: int | None, needs: Callable[[int], int | None]
) -> int:
    """How many trials of `count` to run at once: as many as fit, in groups about equally large.

    A program for all of them is compiled first, which usually is the one that runs. Only where it needs
    more than there is, another one, for the fewest, tells what each trial needs: trainable leaves, slots,
    gradients and activations.

    Args:
      size: devices; the number is a multiple of it, and at least that.
      budget: bytes a device; None: as many as there are.
      needs: bytes a device of the program for so many; None: the backend does not say.
    """
    whole = -(-count // size) * size
    if budget is None or (all_of_them := needs(whole)) is None or all_of_them <= budget:
        return count
    if whole == size or (fewest := needs(size)) is None:
        return min(count, size)
    each = max((all_of_them - fewest) / (whole - size), 1.0)
    fitting = size + int((budget - fewest) / each) // size * size
    if fitting <= size:
        return min(count, size)
    groups = -(-count // fitting)
    return -(-count // groups)


def program_bytes(programs: Programs, head: tuple[Any, ...], batch: dict[str, Any]) -> int | None:
    """What the program for arguments `(*head, batch)`, which may be shapes, needs on each device:
    arguments, results and temporaries. None: the backend does not say."""
    programs.compile(head, [batch])
    return programs.bytes(batch)
