"""A run directory and its copy in a store: whole at every moment, held by one, fetched, and what fails."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from jaxft import train
from jaxft.data.store import Store, StoreError, open_store
from jaxft.experiment import mirror, workdir
from jaxft.experiment.mirror import Copying, Mirror, digest, record_of, records
from jaxft.experiment.workdir import Hold, fetch, located
from jaxft.terminal.flags import parse

CHANGES = {"write", "remove"}


class Cut(BaseException):
    """Stands for a kill."""


class Faulty:
    """A file system that fails at, or dies before or within, the n-th of its changes; from 1."""

    def __init__(self, system, *, fails=(), dies=0, within=False, watch=lambda: None):
        self.system, self.fails, self.dies, self.within = system, set(fails), dies, within
        self.watch, self.changes = watch, 0

    def __getattr__(self, name):
        return getattr(self.system, name)

    def _changed(self):
        self.changes += 1
        if self.changes == self.dies and not self.within:
            raise Cut
        if self.changes in self.fails:
            raise OSError(5, "503 SLOW_DOWN: please reduce your request rate")

    def open(self, path, mode="rb"):
        if mode != "wb":
            return self.system.open(path, mode)
        self._changed()
        return _Cut(self, path)

    def rm_file(self, path):
        self._changed()
        self.system.rm_file(path)
        self.watch()


class _Cut:
    """A file that appears when it is whole, as an object of a store does; or half, where it is cut."""

    def __init__(self, owner, path):
        self.owner, self.path, self.file = owner, path, open(f"{path}.part", "wb")

    def __enter__(self):
        return self

    def write(self, block):
        if self.owner.changes == self.owner.dies and self.owner.within:
            self.file.write(block[: len(block) // 2])
            raise Cut
        self.file.write(block)

    def __exit__(self, *_):
        self.file.close()
        os.replace(self.file.name, self.path)
        self.owner.watch()


def store_at(folder: Path, **faults) -> Store:
    store = open_store(f"file://{folder}", waits=(0.0, 0.0))
    return Store(store.shown, Faulty(store.system, **faults), store.root, store.waits)


def files(folder: Path, *names: str, content: str = "") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content or f"{name} as it was\n")


def begun(run: Path) -> None:
    files(
        run, "config.json", "metrics.jsonl", "checkpoints/4/params/d", "checkpoints/4/digests.json"
    )
    files(
        run, "checkpoints/4.orbax-checkpoint-tmp/params", ".lock", "cache/tokens", "config.json.tmp"
    )


def went_on(run: Path) -> None:
    shutil.rmtree(run / "checkpoints/4")
    files(run, "metrics.jsonl", content="longer\n")
    files(run, "checkpoints/8/params/d", "checkpoints/8/digests.json", "predictions/eval.jsonl")


def finished(run: Path, content: str = "first\n") -> None:
    files(run, "best/config.json", "best/model.safetensors", "best/tokenizer.json", content=content)
    files(run, "report.html", "summary.json", content=content)


def again(run: Path) -> None:
    """Another best, of which one file is not there any more."""
    shutil.rmtree(run / "best")
    files(run, "best/config.json", "best/model.safetensors", content="second\n")


def assert_whole(place: Path) -> None:
    """Of a store that may be read at any moment."""
    found = records(open_store(f"file://{place}", waits=()))
    for item, listing in found.items():
        assert {
            p.relative_to(place / item).as_posix() for p in (place / item).rglob("*") if p.is_file()
        } == set(listing)
        for name, known in listing.items():
            assert digest(place / item / name) == known, (item, name)
    best = place / "best"
    if (best / "config.json").exists() and (best / "config.json").stat().st_size > 3:
        versions = {p.read_text() for p in best.rglob("*") if p.is_file()}
        assert len(versions) == 1 and (best / "model.safetensors").exists()
    if (place / "summary.json").exists():
        assert "best" in found
    if "checkpoints/8" in found:
        assert (place / "metrics.jsonl").read_text() == "longer\n"


def copied(run: Path, store: Store) -> None:
    mirror = Mirror(run, store)
    for change in (begun, went_on, finished, again):
        change(run)
        mirror.sync()


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_the_copy_is_whole_after_every_change_and_after_a_kill_at_any(tmp_path, every):
    whole = tmp_path / "whole"
    whole_store = store_at(whole, watch=lambda: assert_whole(whole))
    copied(tmp_path / "run", whole_store)
    count = whole_store.system.changes
    expected = {
        p.relative_to(whole).as_posix(): p.read_bytes()
        for p in whole.rglob("*") if p.is_file()
    }  # fmt: skip
    assert {"checkpoints/8/params/d", "best/config.json", "summary.json"} <= set(expected)
    assert not any("4" in name or "tmp" in name or "cache" in name for name in expected)
    for dies in range(1, count + 1, every):
        for within in (False, True):
            run, place = tmp_path / f"run-{dies}", tmp_path / f"store-{dies}"
            with pytest.raises(Cut):
                copied(run, store_at(place, dies=dies, within=within))
                raise Cut  # a removal cannot be cut within
            # (Of a store, unlike of files, half an object never appears.)
            if not within:
                assert_whole(place) if place.exists() else None
            for change in (begun, went_on, finished, again):
                change(run) if change is not went_on or (run / "checkpoints/4").exists() else None
            Mirror(run, store_at(place)).sync()
            assert_whole(place)
            found = {
                p.relative_to(place).as_posix(): p.read_bytes()
                for p in place.rglob("*")
                if p.is_file()
            }
            assert {k: v for k, v in found.items() if k.startswith(("best/", "checkpoints/8"))} == {
                k: v for k, v in expected.items() if k.startswith(("best/", "checkpoints/8"))
            }
            shutil.rmtree(run), shutil.rmtree(place)


def test_what_passes_is_tried_again_and_what_does_not_is_one_line(tmp_path):
    run = tmp_path / "run"
    begun(run)
    Mirror(run, store_at(tmp_path / "a", fails=(1, 2, 5, 7))).sync()
    assert set(records(store_at(tmp_path / "a"))) == {"checkpoints/4"}
    with pytest.raises(
        StoreError, match=r"a: cannot remove summary.json after 3 attempts \(.*503 SLOW_DOWN"
    ):
        Mirror(run, store_at(tmp_path / "a", fails=range(1, 99))).sync()
    refusing = store_at(tmp_path / "b")
    refusing.system._changed = lambda: (_ for _ in ()).throw(OSError("AWS Error ACCESS_DENIED"))
    with pytest.raises(StoreError, match="cannot remove summary.json .*ACCESS_DENIED"):
        Mirror(run, refusing).sync()


def test_a_model_that_has_not_changed_is_not_read_again(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(mirror, "digest", lambda path: read.append(path.name) or digest(path))
    run, store = tmp_path / "run", store_at(tmp_path / "store")
    begun(run)
    finished(run)
    copy = Mirror(run, store)
    copy.sync()
    assert "config.json" in read
    read.clear()
    copy.sync()
    assert not read
    again(run)  # another one
    copy.sync()
    assert "config.json" in read
    assert_whole(tmp_path / "store")


def test_a_run_is_told_when_its_copy_fails_for_good(tmp_path):
    told = []
    begun(tmp_path / "run")
    mirror = Mirror(tmp_path / "run", store_at(tmp_path / "store", fails=range(1, 99)))
    copying = Copying(mirror, 0.01, lambda: told.append(True))
    copying._thread.join()
    with pytest.raises(StoreError, match="after 3 attempts"):
        copying.end()
    assert told == [True]


def test_another_machine_fetches_all_and_nothing_that_is_damaged(tmp_path):
    run, store = tmp_path / "run", store_at(tmp_path / "store")
    copied(run, store)
    fetch(tmp_path / "other", store)
    for name in ("config.json", "checkpoints/8/params/d", "best/model.safetensors", "summary.json"):
        assert (tmp_path / "other" / name).read_bytes() == (run / name).read_bytes()
    assert not (tmp_path / "other/best/tokenizer.json").exists()
    (tmp_path / "store/checkpoints/8/params/d").write_text("checkpoints/8/params/d as it wAs\n")
    with pytest.raises(StoreError, match="checkpoints/8/params/d is not what was copied there"):
        fetch(tmp_path / "third", store)
    assert not (tmp_path / "third/checkpoints/8").exists()
    (tmp_path / "store" / record_of("checkpoints/8")).unlink()
    fetch(tmp_path / "fourth", store)  # without its record it is none
    assert not (tmp_path / "fourth/checkpoints").exists()


def test_one_holds_a_place_and_whoever_is_silent_loses_it(tmp_path, monkeypatch):
    store = store_at(tmp_path / "store")
    first = Hold(tmp_path / "one", store, silence=0.3, every=0.05)
    first.take()
    with pytest.raises(ValueError, match="holds another run than"):
        (tmp_path / "other/checkpoints/3").mkdir(parents=True)
        Hold(tmp_path / "other", store, 0.3, 0.05).take()
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(ValueError, match="in use by another process"):
        Hold(tmp_path / "two", store, 0.3, 0.05).take()
    first._ended.set()  # dies
    first._thread.join()
    second = Hold(tmp_path / "two", store, silence=0.3, every=0.05)
    second.take()
    first._ended.clear()
    first._beat()
    with pytest.raises(StoreError, match="elsewhere has taken over"):
        first.check()
    first.release()
    assert json.loads(store.read("mirror/run.json"))["holder"] is not None
    second.release()
    assert json.loads(store.read("mirror/run.json"))["holder"] is None
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(ValueError, match="holds no run, but .* is the copy of one"):
        Hold(tmp_path / "two", store, 0.3, 0.05).take()


def test_only_a_run_itself_may_be_in_a_store():
    values, _ = parse(["train", "--workdir=s3://bucket/run"], train.FLAGS)
    assert values.workdir == "s3://bucket/run"
    with pytest.raises(ValueError, match="--local_copy='s3://b/x' is a remote place"):
        parse(["train", "--workdir=s3://bucket/run", "--local_copy=s3://b/x"], train.FLAGS)


def test_where_a_run_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # or the region would be asked for
    directory, store = located("s3://key:secret@bucket/runs/mine")
    assert directory.path.parent == tmp_path / "jaxft/runs" and directory.path.name.startswith(
        "mine-"
    )
    assert store is not None and store.shown == "s3://bucket/runs/mine"
    assert located("s3://bucket/runs/mine", str(tmp_path / "x"))[0].path == tmp_path / "x"
    assert located(str(tmp_path))[1] is None
    with pytest.raises(ValueError, match="--local_copy is of a remote"):
        located(str(tmp_path), "x")
    with pytest.raises(ValueError, match="nosuch://"):
        workdir.located("nosuch://bucket/x")
