"""Runs that are killed, stopped, or find no room at every stage: nothing is lost, and they go on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests import faults
from tests.faults import Fault
from tests.worlds import assert_same_weights, timeless

pytestmark = pytest.mark.slow
SHORT = ("--config.train.steps=8", "--config.eval.every=4 steps")
# Where there is no room any more, each in the launch after the one before, at its nth beginning in that.
STAGES = [
    ("start", 1), ("tokens", 1), ("log", 1), ("evaluation", 1), ("predictions", 1), ("save", 2),
    ("written", 2), ("visible", 2), ("export", 1), ("report", 1), ("summary", 1),
]  # fmt: skip


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    with faults.server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def whole(world, started, tmp_path_factory):
    """An undisturbed run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    status, err = started.run(faults.command(world, run, *SHORT))
    assert status == 0, err
    return run


def test_kills_at_random_moments_lose_nothing(world, tmp_path):
    """`python -m tests.faults --kills 100` is the same of more."""
    died = faults.kill_often(world, tmp_path, kills=8)
    assert sum(died.values()) - died["runs"] == 8


@pytest.mark.parametrize("phase", ["compile", "evaluation", "save", "export", "report"])
def test_sigterm_in_every_phase_is_one_line_and_its_own_status(
    world, started, whole, tmp_path, phase
):
    argv = faults.command(world, tmp_path / "run", *SHORT)
    number = 2 if phase in ("evaluation", "save") else 1
    status, err = started.run(argv, Fault(phase, "term", number))
    assert status == 128 + signal.SIGTERM, err
    assert err.count("\n") <= 1 and "Traceback" not in err, err
    faults.check_readable(tmp_path / "run")
    status, err = started.run(argv)
    assert status == 0, err
    assert_same_weights(tmp_path / "run", whole)


@contextlib.contextmanager
def small_disk(folder: Path, room: str = "24m"):
    """A file system of its own; the test is skipped where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of its own needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def saved(run: Path) -> list[int]:
    return sorted(int(p.name) for p in run.glob("checkpoints/*") if p.name.isdigit())


@pytest.mark.parametrize("action", ["fill", "read_only"])
def test_no_room_at_any_stage_keeps_the_last_checkpoint_and_the_run_goes_on(
    world, started, whole, tmp_path, action
):
    """The disk becomes full, or no more may be written, as a stage begins; there is room again after it."""
    if action == "read_only" and os.getuid():
        pytest.skip("that root is not asked for rights is undone by root alone")
    with small_disk(tmp_path / "disk") as disk:
        run = disk / "run"
        argv = faults.command(world, run, *SHORT)
        for stage, number in STAGES:
            before = max(saved(run), default=0)
            status, err = started.run(argv, Fault(stage, action, number, place=str(disk)))
            assert status in (1, 2), (stage, status, err)
            assert err.startswith("jaxft: error: ") and err.count("\n") == 1, (stage, err)
            words = ("no space left",) if action == "fill" else ("denied", "cannot write")
            assert any(word in err.lower() for word in words), (stage, err)
            assert max(saved(run), default=0) >= before, stage
            if run.exists():
                faults.check_readable(run)
            faults.writable_again(disk)
        assert saved(run)[-1] == 8
        status, err = started.run(argv)
        assert status == 0, err
        assert_same_weights(run, whole)
        assert timeless(run) == timeless(whole)
