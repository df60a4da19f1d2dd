"""The cache of compiled programs: what a killed process leaves half written is not kept."""

from __future__ import annotations

import os
import zlib

import pytest

from jaxft.experiment import compilation


@pytest.fixture(autouse=True)
def notes(monkeypatch):
    """Notes are removed with the test, not with the process."""
    open_notes = []
    monkeypatch.setattr(compilation.atexit, "register", lambda *call: open_notes.append(call))
    yield
    for forget, *arguments in open_notes:
        forget(*arguments)


@pytest.fixture
def cache(tmp_path):
    """A cache with a whole entry, a torn one, and one that is as old as it is torn."""
    for name in ("whole", "torn", "old"):
        (tmp_path / f"{name}-cache").write_bytes(zlib.compress(os.urandom(1000)))
    for name in ("torn", "old"):
        whole = (tmp_path / f"{name}-cache").read_bytes()
        (tmp_path / f"{name}-cache").write_bytes(whole[:-9])
    os.utime(tmp_path / "old-cache", (1, 1))
    return tmp_path


def entries(cache) -> set[str]:
    return {path.name.removesuffix("-cache") for path in cache.glob("*-cache")}


def test_a_torn_entry_of_a_killed_process_is_removed(cache):
    note = cache / f"{compilation._WRITER}99999999"
    note.touch()
    os.utime(note, (2, 2))
    compilation._mend(cache)
    assert entries(cache) == {"whole", "old"}  # the old one is not that process's
    assert not note.exists()


def test_nothing_is_looked_at_after_processes_that_ended_well(cache):
    compilation._mend(cache)
    assert entries(cache) == {"whole", "torn", "old"}


def test_a_live_process_is_left_to_write(cache):
    compilation._mend(cache)
    own = cache / f"{compilation._WRITER}{os.getpid()}"
    os.utime(own, (2, 2))
    compilation._mend(cache)
    assert own.exists() and "torn" in entries(cache)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    compilation._mend(tmp_path / "file" / "cache")
