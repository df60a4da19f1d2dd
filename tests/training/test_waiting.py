"""What counts as waiting for data: the devices have nothing to do, and the batch is not there."""

from __future__ import annotations

import threading

from jaxft.training.waiting import Waiting


class Clock:
    """Moved by the test alone."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Step:
    """Done when the test says so."""

    def __init__(self):
        self._done = threading.Event()

    def block_until_ready(self):
        self._done.wait()

    def finish(self, waiting: Waiting):
        self._done.set()
        while waiting._last.done is None:  # until the thread has seen it
            threading.Event().wait(0.001)


def test_only_time_in_which_the_devices_are_idle_counts():
    clock = Clock()
    with Waiting(clock) as waiting:
        steps = [Step() for _ in range(3)]

        def batches():
            clock.now = 5  # the first batch: nothing was to be computed yet
            yield 0
            clock.now = 9  # the step is still computed
            yield 1
            clock.now = 11
            steps[1].finish(waiting)  # idle from here on
            clock.now = 14
            yield 2
            clock.now = 24  # idle since before it was asked for
            yield 3

        given = batches()
        assert waiting.next(given) == 0 and waiting.seconds == 0
        waiting.handed_in(steps[0])
        assert waiting.next(given) == 1 and waiting.seconds == 0
        steps[0].finish(waiting)
        waiting.handed_in(steps[1])
        assert waiting.next(given) == 2 and waiting.seconds == 3
        waiting.handed_in(steps[2])
        clock.now = 15
        steps[2].finish(waiting)
        clock.now = 20  # what the host did in the meantime is no waiting
        assert waiting.next(given) == 3 and waiting.seconds == 7


class Broken:
    def block_until_ready(self):
        raise RuntimeError("raised again where it is read")


def test_a_step_that_fails_is_nothing_to_the_clock():
    with Waiting() as waiting:
        waiting.handed_in(Broken())
        assert waiting.next(iter([1])) == 1 and waiting.seconds == 0
