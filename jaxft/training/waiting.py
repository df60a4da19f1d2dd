"""How long the devices had nothing to do because the next batch was not there yet."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Result(Protocol):
    """An array that may still be computed, as jax.Array is."""

    def block_until_ready(self) -> object: ...


@dataclasses.dataclass
class _Work:
    """What was handed in last, and when it was done: None while it is not."""

    result: Result
    done: float | None = None


class Waiting:
    """A clock that runs while a batch is waited for and no step is being computed.

    Time that the host waits does not count while the devices still have a step to compute. When a step
    is done is seen by a thread that waits for its result. Use as a context manager.

    Attributes:
      seconds: so far, the wait for the first batch left out.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.seconds = 0.0
        self._clock = clock
        self._last: _Work | None = None
        self._handed_in: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._watch, name="waiting", daemon=True)

    def __enter__(self) -> Waiting:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._handed_in.put(
            None
        )  # not joined: a device that hangs must not hang the end of the run

    def next(self, batches: Iterator[T]) -> T:
        """The next batch; the time that the devices are idle meanwhile is counted."""
        start = self._clock()
        batch = next(batches)
        done = self._last.done if self._last is not None else None
        if done is not None:
            self.seconds += max(0.0, self._clock() - max(start, done))
        return batch

    def handed_in(self, result: Result) -> None:
        """A step was dispatched that gives `result` when it is done."""
        self._last = _Work(result)
        self._handed_in.put(self._last)

    def _watch(self) -> None:
        while (work := self._handed_in.get()) is not None:
            try:
                work.result.block_until_ready()
            except Exception:  # raised again where the loop reads the metrics
                continue
            work.done = self._clock()
