"""A sweep whose study is in PostgreSQL, shared by processes that have no directory in common."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.end_to_end.test_sweep import ended, found, start

SERVER = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SERVER and shutil.which("runuser") and importlib.util.find_spec("psycopg")),
        reason="no PostgreSQL (Debian: postgresql; pip: psycopg[binary])",
    ),
]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """The address of an empty database of a server on the loopback, which ends with the module."""
    folder = tmp_path_factory.mktemp("postgresql")
    for parent in [folder, *folder.parents]:
        with contextlib.suppress(PermissionError):
            parent.chmod(parent.stat().st_mode | 0o711)
    shutil.chown(folder, "postgres")  # the server does not run as root
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def as_postgres(program, *words, **how):
        command = ["runuser", "-u", "postgres", "--", str(SERVER / program), *map(str, words)]
        return subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, **how)

    data = folder / "data"
    as_postgres("initdb", "-D", data, "-A", "trust")
    options = f"-p {port} -c listen_addresses=localhost -c unix_socket_directories={folder}"
    as_postgres("pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
    try:
        as_postgres("createdb", "-h", "localhost", "-p", port, "studies")
        yield f"postgresql+psycopg://postgres@localhost:{port}/studies"
    finally:
        as_postgres("pg_ctl", "-D", data, "-m", "immediate", "stop")


def test_processes_with_directories_of_their_own_share_a_study_in_a_database(
    world, tmp_path, database
):
    folders = [tmp_path / "a", tmp_path / "b"]
    storage = f"--storage={database}", "--study=shared"
    processes = [start(world, folder, 24, *storage) for folder in folders]
    assert [process.wait() for process in processes] == [0, 0]
    last = start(world, folders[0], 24, *storage)
    assert last.wait() == 0
    assert [row["number"] for row in found(folders[0])] == list(range(24))
    assert {row["state"] for row in found(folders[0])} == {"complete", "pruned"}
    ran = [{path.stem for path in folder.glob("trials/*.json")} for folder in folders]
    numbers = [{name for name in names if name.isdigit()} for names in ran]
    assert not numbers[0] & numbers[1] and len(numbers[0] | numbers[1]) == 24
    assert all(numbers)  # both worked


def test_a_sweep_killed_in_the_middle_ends_as_the_undisturbed_one(world, tmp_path, database):
    whole = start(world, tmp_path / "whole", 12, f"--storage={database}", "--study=whole")
    assert whole.wait() == 0
    storage = f"--storage={database}", "--study=killed"
    for trials in (3, 7):
        process = start(world, tmp_path / "killed", 12, *storage)
        while process.poll() is None and ended(tmp_path / "killed") < trials:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(world, tmp_path / "killed", 12, *storage).wait() == 0
    assert found(tmp_path / "killed") == found(tmp_path / "whole")
