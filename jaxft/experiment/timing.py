"""Seconds spent on each kind of work, for the summary."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up wall-clock seconds by name; `total` counts from when it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str, *, without: tuple[str, ...] = ()) -> Iterator[None]:
        """Count the block's time under `name`, less what is counted inside it under `without`."""
        start, inside = time.perf_counter(), self._sum(without)
        try:
            yield
        finally:
            spent = time.perf_counter() - start - (self._sum(without) - inside)
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def _sum(self, names: tuple[str, ...]) -> float:
        return sum(self.seconds.get(name, 0.0) for name in names)

    @property
    def total(self) -> float:
        """Seconds since the stopwatch was made."""
        return time.perf_counter() - self._start
