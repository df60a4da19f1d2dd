"""Google's storage, from an emulator on the loopback; for S3 and for faults see end_to_end/test_stores.py."""

from __future__ import annotations

import pytest

from jaxft.data.remote import downloaded, matching
from jaxft.data.store import open_store
from tests import stores


@pytest.fixture(scope="module")
def bucket():
    with stores.serving("gs") as port, pytest.MonkeyPatch.context() as patched:
        patched.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://localhost:{port}")
        yield stores.address("gs")


def test_files_are_written_listed_read_and_removed(bucket, tmp_path):
    store = open_store(f"{bucket}/runs/mine", waits=())
    assert store.files() == {} and store.read("a/b.json") is None
    whole = bytes(range(256)) * 40_000  # more than is sent and read at once
    (tmp_path / "here").write_bytes(whole)
    store.write("a/b.json", b"{}")
    store.upload(tmp_path / "here", "c")
    assert store.files() == {"a/b.json": 2, "c": len(whole)}
    assert store.files("a/") == {"a/b.json": 2}
    assert store.read("a/b.json") == b"{}"
    assert b"".join(store.blocks("c", len(whole))) == whole
    store.download("c", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == whole
    before = store.versions()
    store.write("a/b.json", b"[]")  # as long as before
    assert store.versions()["a/b.json"] != before["a/b.json"]
    for name in ("a/b.json", "a/b.json", "c"):
        store.remove(name)
    assert store.files() == {}


def test_reading_goes_on_from_where_it_broke_off(bucket, monkeypatch):
    whole = bytes(range(256)) * 50_000  # four blocks
    store = open_store(f"{bucket}/broken", waits=(0.0,))
    store.write("a", whole)
    original, opened = type(store.system).open, []

    class Breaking:
        """Its connection is cut one block later than that of the one before."""

        def __init__(self, system, *given, **more):
            self._file = original(system, *given, **more)
            self.seek, self.close = self._file.seek, self._file.close
            opened.append(self)
            self._most = len(opened) << 22

        def read(self, size):
            if self._file.tell() >= self._most:
                raise OSError("the connection was cut")
            return self._file.read(size)

    monkeypatch.setattr(type(store.system), "open", lambda *given, **more: Breaking(*given, **more))
    assert b"".join(store.blocks("a", len(whole))) == whole
    assert len(opened) == 4


def test_data_is_downloaded_once_and_anew_when_it_changes(bucket, tmp_path):
    store = open_store(f"{bucket}/data", waits=())
    for name in ("part-1.csv", "part-0.csv"):
        store.write(name, b"text,label\na,b\n")
    found = matching(f"{bucket}/data/part-*.csv")
    assert found == [f"{bucket}/data/part-{number}.csv" for number in (0, 1)]
    address, _ = found
    path, notes = downloaded(address, str(tmp_path))
    assert path.read_bytes() == b"text,label\na,b\n" and "gs://bucket/data" in notes[0]
    assert downloaded(address, str(tmp_path)) == (path, ())
    store.write("part-0.csv", b"text,label\nc,d\n")
    assert downloaded(address, str(tmp_path))[0].read_bytes() == b"text,label\nc,d\n"
    with pytest.raises(ValueError, match="gs://bucket/data/none.csv: cannot be downloaded"):
        downloaded(f"{bucket}/data/none.csv", str(tmp_path))
