"""SIGTERM and Ctrl-C: during training they ask for a save, elsewhere they end the run with one last line."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax

_ASKING = (signal.SIGTERM, signal.SIGINT)
# One key press reaches a process twice where a launcher passes on what the terminal sent to the group.
_ONE_PRESS = 1.0


class Stopped(BaseException):
    """A signal that came where there is nothing to save. Not an Exception: nothing recovers from it.

    Attributes:
      number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        """Such as 'SIGTERM'."""
        return signal.Signals(self.number).name


@dataclasses.dataclass
class Stop:
    """Number of the signal that asks to stop, agreed on by all processes; 0 for none."""

    received: int = 0

    def requested(self, step: int) -> bool:
        """True at the same step in every process: all must save together."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self.received = signal.SIGTERM
        return bool(self.received)


@contextmanager
def saved_first() -> Iterator[Stop]:
    """Note SIGTERM or Ctrl-C instead of dying of it, so that the loop can save.

    SIGTERM again changes nothing: launchers send it to the whole group and then pass on their own. A
    second Ctrl-C, a second after the first, ends the process as usual.
    """
    stop, first = Stop(), 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if number == signal.SIGINT and stop.received and time.monotonic() - first > _ONE_PRESS:
            signal.default_int_handler(number, frame)
        first = first if stop.received else time.monotonic()
        stop.received = stop.received or number

    with _handled(note):
        yield stop


@contextmanager
def raised() -> Iterator[None]:
    """Raise `Stopped` in the main thread at SIGTERM or Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handled(stop):
        yield


def leave(status: int) -> None:
    """End the process with this status.

    After a signal at once: Python would wait for threads that compile a program nobody will run. With
    several processes together, since the others are aborted when the first of them ends without a word.
    """
    if status > 128:
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """`handler` for both signals; nothing outside the main thread, where Python has no signals.

    Nor with several processes: the distributed service watches for SIGTERM itself.
    """
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield
        return
    # What the parent has set to be ignored (nohup) stays ignored.
    heard = [number for number in _ASKING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
