"""When a checkpoint is due by the clock: at the same step in every process."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# With several processes the first one's clock counts. It tells the others by a program of its own, every
# so many steps, and the answer is read so many later: by then it is there, and no step waits for it.
_EVERY, _LATER = 16, 8


class Alarm:
    """Rings where `minutes` have passed since it was made or set last; never where they are None.

    All processes must ask at the same steps.
    """

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic):
        self._seconds = None if minutes is None else 60 * minutes
        self._clock, self._since = clock, clock()
        self._said: jax.Array | None = None
        self._told = _telling() if minutes is not None and jax.process_count() > 1 else None

    def set(self) -> None:
        """From now on."""
        self._since = self._clock()

    def rings(self, step: int) -> bool:
        """Whether a checkpoint is due after `step`."""
        if self._seconds is None:
            return False
        due = self._clock() - self._since >= self._seconds
        if self._told is None:
            return due
        if step % _EVERY == 0:
            self._said = self._told(due)
        if step % _EVERY != _LATER or self._said is None:
            return False
        said, self._said = self._said, None
        return bool(said.addressable_data(0))


def _telling() -> Callable[[bool], jax.Array]:
    """A function that gives every process what the first one gave it; it does not wait for the others."""
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    cut = NamedSharding(mesh, PartitionSpec("devices"))
    greatest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def told(due: bool) -> jax.Array:
        own = np.full(jax.local_device_count(), due and jax.process_index() == 0, np.int32)
        return greatest(jax.make_array_from_process_local_data(cut, own))

    return told
