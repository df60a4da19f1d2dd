"""Calls side by side: all of them are made, and none goes on after one has failed."""

from __future__ import annotations

import threading

import jax
import pytest

from jaxft.config import override
from jaxft.search.trials.alone import HaltedError
from jaxft.search.trials.workers import Workers, check_workers
from jaxft.terminal import config_file
from tests.worlds import ROOT


def test_two_run_at_a_time_and_one_runs_in_no_thread():
    meeting, threads = threading.Barrier(2, timeout=60), []
    with Workers(2) as several:
        for _ in range(4):
            several.do(meeting.wait)  # for as long as nobody else has come
        several.wait()
    with Workers(1) as several:
        several.do(lambda: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()]


def test_what_a_call_raises_halts_the_others_and_is_what_is_raised():
    begun = threading.Event()

    def until_halted(several):
        begun.set()
        assert several.halt.wait(60)
        raise HaltedError

    def fails():
        begun.wait(60)
        raise FloatingPointError("not finite")

    later = []
    with pytest.raises(FloatingPointError, match="not finite"), Workers(2) as several:
        several.do(lambda: until_halted(several))
        several.do(fails)
        several.do(lambda: later.append("begun"))
    assert later == []
    with pytest.raises(KeyboardInterrupt), Workers(2) as several:
        several.do(lambda: until_halted(several))
        raise KeyboardInterrupt


def test_numbers_of_workers_that_cannot_be_are_refused(monkeypatch):
    given = config_file.load(f"{ROOT}/configs/text_classification.py", [])
    for count in (0, 65):
        with pytest.raises(ValueError, match=f"--workers={count} must be between 1 and 64"):
            check_workers(count, given)
    assert jax.local_device_count() > 1
    with pytest.raises(
        ValueError, match="needs trials of one device each, and config.parallel.mode='auto'"
    ):
        check_workers(2, given)
    check_workers(2, override(given, {"parallel.mode": "jit"}))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match="--workers=2 is for CPUs"):
        check_workers(2, given)
