"""One process a run directory, also where the file system has no locks."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys

import pytest

from jaxft.experiment import lock
from jaxft.experiment.directory import RunDirectory
from jaxft.terminal.errors import describe, exit_status


def holder(directory, **changes):
    known = {"host": socket.gethostname(), "pid": os.getpid(), "time": "2026-01-01 00:00:00"}
    (directory / ".lock.holder").write_text(json.dumps({**known, **changes}))


@pytest.fixture(params=["ENOSYS", "ENOTSUP", "ENOLCK"])
def no_locks(request, monkeypatch):
    def flock(*_):
        number = getattr(errno, request.param)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    monkeypatch.setattr(lock, "_WRITE_SECONDS", 0)


def test_two_claims_with_the_kernels_lock(tmp_path, capfd):
    run = RunDirectory(tmp_path / "run")
    with run.claimed():
        with pytest.raises(OSError, match="is in use by another jaxft process") as error:
            with RunDirectory(run.path).claimed():
                pass
        assert exit_status(error.value) == 2
    with run.claimed():  # free again
        assert sorted(os.listdir(run.path)) == [".lock"]
    assert capfd.readouterr().err == ""


def test_a_start_that_is_refused_leaves_nothing(tmp_path):
    made, there = RunDirectory(tmp_path / "runs" / "new"), RunDirectory(tmp_path / "there")
    there.path.mkdir()
    for run in (made, there):
        with pytest.raises(ValueError), run.claimed():
            raise ValueError
    assert os.listdir(tmp_path) == ["there"]
    with made.claimed():
        (made.path / "config.json").touch()
    assert sorted(os.listdir(made.path)) == [".lock", "config.json"]


def test_without_locks_a_run_goes_on_with_a_warning(tmp_path, capfd, no_locks):
    run = RunDirectory(tmp_path / "run")
    with run.claimed():
        named = json.loads((run.path / ".lock.holder").read_text())
        assert named["host"] == socket.gethostname() and named["pid"] == os.getpid()
    assert not (run.path / ".lock.holder").exists()
    (warning,) = capfd.readouterr().err.splitlines()
    assert warning == (
        f"jaxft: warning: {run.path} is on a file system without locks; "
        "start no second process on it"
    )


def test_without_locks_a_living_process_of_this_host_is_refused(tmp_path, no_locks):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        holder(tmp_path, pid=other.pid)
        with pytest.raises(OSError, match="in use by another") as error:
            with RunDirectory(tmp_path).claimed():
                pass
        other.stdin.close()
    assert exit_status(error.value) == 2 and f"process {other.pid};" in describe(error.value)
    with RunDirectory(tmp_path).claimed():  # it has ended
        pass


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({"pid": os.getpid()}, ""),  # a process of an earlier container that had our number
        ({"pid": 2**22 + 1}, ""),  # ended
        ({"pid": 10**30}, ""),
        ({"pid": "x"}, ""),
        ({"host": "other", "pid": 7}, "Process 7 on other began with it at 2026-01-01 00:00:00"),
    ],
)
def test_without_locks_what_a_kill_has_left_does_not_keep_out(
    tmp_path, capfd, no_locks, left, said
):
    holder(tmp_path, **left)
    with RunDirectory(tmp_path).claimed():
        pass
    assert said in capfd.readouterr().err
    assert not (tmp_path / ".lock.holder").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "\udcff"])
def test_without_locks_a_damaged_holder_does_not_keep_out(tmp_path, no_locks, content):
    (tmp_path / ".lock.holder").write_bytes(content.encode(errors="surrogateescape"))
    with RunDirectory(tmp_path).claimed():
        pass


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write to --workdir") as error:
        with RunDirectory(tmp_path / "file" / "run").claimed():
            pass
    assert exit_status(error.value) == 2


def test_a_remote_place_is_no_directory_to_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is a remote place"):
        with RunDirectory("gs://bucket/run").claimed():
            pass
    assert not list(tmp_path.iterdir())
