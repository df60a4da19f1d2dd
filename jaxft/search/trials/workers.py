"""Trials that run side by side: threads of one process, which has weights, data and programs once.

A small model's update leaves cores of a CPU idle, while one operation waits for the other; the updates of
another trial fill them. Each trial computes by the same programs on the same threads of XLA as it does alone,
and so has the same bits, however many run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

import jax

from jaxft.search.trials.alone import HaltedError


class Workers:
    """Calls what it is given in so many threads, in the order given; with one, at once and in no thread.

    A context manager. It leaves when all calls have ended, or raises what the first one that failed has
    raised, once the others have seen `halt`.

    Args:
      count: of threads.

    Attributes:
      halt: set where a call has failed, or the block was left by an error such as an interrupt.
    """

    def __init__(self, count: int):
        self.halt = threading.Event()
        self._pool = ThreadPoolExecutor(count, "trial") if count > 1 else None
        self._calls: list[Future[None]] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        try:
            if kind is None:
                self.wait()
        except BaseException:
            self.halt.set()
            raise
        finally:
            if kind is not None:
                self.halt.set()
            self._pool.shutdown(cancel_futures=True)

    def do(self, call: Callable[[], None]) -> None:
        """Call it, or let a thread do so that is free."""
        if self._pool is None:
            call()
        else:
            self._calls.append(self._pool.submit(self._called, call))

    def wait(self) -> None:
        """Until all calls have ended. What one has raised is raised when the others have been halted."""
        wait(self._calls, return_when=FIRST_EXCEPTION)
        calls, self._calls = self._calls, []
        if self.halt.is_set():  # the first that has ended need not be the one that failed
            wait(calls)
        for one in calls:
            error = one.exception()
            if error is not None and not isinstance(error, HaltedError):
                raise error

    def _called(self, call: Callable[[], None]) -> None:
        """In a thread; nothing is begun after one has failed."""
        if self.halt.is_set():
            raise HaltedError
        try:
            call()
        except BaseException:
            self.halt.set()
            raise


def check_workers(count: int, config: Any) -> None:
    """Raises ValueError where so many trials cannot run side by side; one line."""
    most = 64
    if not 1 <= count <= most:
        raise ValueError(f"--workers={count} must be between 1 and {most}")
    if count == 1:
        return
    if jax.default_backend() != "cpu":
        raise ValueError(
            f"--workers={count} is for CPUs, of which one trial leaves cores idle; on "
            f"{jax.default_backend()!r} give 1"
        )
    if jax.local_device_count() > 1 and config.parallel.mode != "jit":
        raise ValueError(
            f"--workers={count} needs trials of one device each, and config.parallel.mode="
            f"{config.parallel.mode!r} has {jax.local_device_count()} for each; set it to 'jit'"
        )
