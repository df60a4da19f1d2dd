"""A run directory copied to a store while the run goes on, so that it can be read there at any moment.

The run lives in a local directory, where there are renames, locks and whole files; what is complete there is
copied. A store has no renames, so order is what keeps its copy whole:

- what belongs together (a checkpoint, `best/`) has a record `mirror/NAME.json` of its files and their
  SHA-256, which is written after all of them and removed before any of them changes. Without it nobody
  reads them.
- `best/config.json`, without which no library takes a folder for a checkpoint, is written after the rest of
  `best/` and removed before it changes.
- metrics and other small files are copied before the checkpoints that were complete when that began, so
  that they reach as far as each checkpoint does.
- `summary.json`, which declares the run finished, is copied last.
- a checkpoint is removed there after those that replace it have arrived.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jaxft.data.store import Store
from jaxft.training.reader import saved_steps

RECORDS = "mirror"
OWN = ".mirror"  # of the local directory: what belongs to the copying
_DECLARES = "summary.json"
_MAKES_WHOLE = {"best": "config.json"}
_PARTS = ("checkpoints", "best", "cache")

Listing = dict[str, tuple[int, str]]
Version = tuple[int, int, int]  # of a file: what changes when it does
Versions = dict[str, Version]


class Mirror:
    """Copies one run directory to one store. One thread at a time.

    Args:
      local: the run directory.
      store: the folder of its copy.
      check: called before anything is written: raises where this run no longer holds the copy.
    """

    def __init__(self, local: Path, store: Store, check: Callable[[], None] = lambda: None):
        self._local, self._store, self._check = local, store, check
        self._sent: dict[str, Version] = {}  # of small files: what was copied of them
        self._copied: dict[str, Versions] = {}  # of what belongs together, likewise
        self._there: dict[str, Listing] | None = None  # records in the store

    def sync(self) -> None:
        """Copy what has changed.

        Raises:
          StoreError: the store cannot be written; what it has is whole.
          OSError: a local file cannot be read.
        """
        self._check()
        there = self._records()
        steps = saved_steps(self._local / "checkpoints")  # before the metrics are read
        small = self._small()
        finished = _DECLARES in small
        if not finished and (not self._sent or _DECLARES in self._sent):
            self._sent.pop(_DECLARES, None)
            self._store.remove(_DECLARES)
        for name in sorted(small, key=lambda name: name == _DECLARES):
            if name != _DECLARES:
                self._send(name, small[name])
        for step in steps:
            self._item(f"checkpoints/{step}", fixed=True)
        self._item("best")
        if finished:
            self._send(_DECLARES, small[_DECLARES])
        now = {f"checkpoints/{step}" for step in steps}
        for gone in [name for name in there if name.startswith("checkpoints/") and name not in now]:
            self._remove(gone)

    def newest(self) -> int:
        """The last checkpoint of the local directory; 0 for none."""
        return max(saved_steps(self._local / "checkpoints"), default=0)

    def _records(self) -> dict[str, Listing]:
        if self._there is None:
            self._there = records(self._store)
        return self._there

    def _small(self) -> Versions:
        """Files that stand for themselves, by name, with what changes when they do."""
        found = {}
        for folder, below, names in os.walk(self._local):
            here = Path(folder).relative_to(self._local)
            if here == Path():
                below[:] = [name for name in below if name not in _PARTS and name[0] != "."]
            below[:] = [name for name in below if ".exporting-" not in name]
            for name in names:
                if not name.startswith(".") and not name.endswith(".tmp"):
                    status = (Path(folder) / name).stat()
                    found[(here / name).as_posix()] = _version(status)
        return found

    def _send(self, name: str, version: Version) -> None:
        if self._sent.get(name) == version:
            return
        try:
            content = (self._local / name).read_bytes()  # once: a log may grow meanwhile
        except FileNotFoundError:
            return
        self._store.write(name, content)
        self._sent[name] = version

    def _item(self, name: str, *, fixed: bool = False) -> None:
        """What belongs together. fixed: under its name never anything else."""
        there, folder = self._records(), self._local / name
        if (fixed and name in there) or not folder.is_dir():
            return
        versions = _versions(folder)  # before it is read: what changes meanwhile is looked at again
        if name in there and self._copied.get(name) == versions:
            return  # else a best model would be read whole at every look
        copy = self._local / OWN / "copy"
        listing = _linked(folder, copy)
        try:
            if not listing:
                return
            if there.get(name) == listing:
                self._copied[name] = versions
                return
            last = _MAKES_WHOLE.get(name)
            if last is not None:  # a finished run has all of its best model
                self._sent.pop(_DECLARES, None)
                self._store.remove(_DECLARES)
            self._unrecord(name, last)
            stale = set(self._store.files(f"{name}/")) - {f"{name}/{file}" for file in listing}
            for file in listing:
                if file != last:
                    self._store.upload(copy / file, f"{name}/{file}")
            for file in sorted(stale):
                self._store.remove(file)
            if last in listing:
                self._store.upload(copy / last, f"{name}/{last}")
            self._check()  # just before it counts
            content = {"files": {file: list(entry) for file, entry in listing.items()}}
            self._store.write(record_of(name), json.dumps(content, indent=1).encode())
            there[name], self._copied[name] = listing, versions
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def _remove(self, name: str) -> None:
        self._unrecord(name, None)
        for file in self._store.files(f"{name}/"):
            self._store.remove(file)

    def _unrecord(self, name: str, last: str | None) -> None:
        """Before any of its files changes: nobody is to read them."""
        self._records().pop(name, None)
        self._store.remove(record_of(name))
        if last is not None:
            self._store.remove(f"{name}/{last}")


class Copying:
    """A thread that keeps the copy up to date.

    Args:
      mirror: it is synced by this thread alone until `end`.
      every: seconds between two looks at the whole directory; new checkpoints are seen within one.
      failed: called in the thread, once, when the store could not be written.
    """

    def __init__(self, mirror: Mirror, every: float, failed: Callable[[], None]):
        self._mirror, self._every, self._failed = mirror, every, failed
        self._stop = threading.Event()
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Copy what is left. Raises StoreError: it could not be, now or before."""
        self._stop.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure
        self._mirror.sync()

    def _run(self) -> None:
        step, waited = self._mirror.newest(), 0.0
        pause = min(1.0, self._every)
        while not self._stop.wait(pause):
            waited += pause
            if waited < self._every and self._mirror.newest() == step:
                continue
            step, waited = self._mirror.newest(), 0.0
            try:
                self._mirror.sync()
            except FileNotFoundError:
                continue  # replaced while it was read: the next look sees what there is then
            except Exception as error:
                self.failure = error
                self._failed()
                return


def record_of(name: str) -> str:
    """The file in the store that says that an item is whole."""
    return f"{RECORDS}/{name.replace('/', '-')}.json"


def records(store: Store) -> dict[str, Listing]:
    """The items that are whole in a store, and their files."""
    found = {}
    for item in recorded(store.files(f"{RECORDS}/")):
        if (listing := record(store, item)) is not None:
            found[item] = listing
    return found


def recorded(names: Iterable[str]) -> list[str]:
    """The items of which there are records, of the names of a store's files."""
    stems = [n.removeprefix(f"{RECORDS}/").removesuffix(".json") for n in names if is_record(n)]
    steps = [stem.removeprefix("checkpoints-") for stem in stems]
    whole = [f"checkpoints/{step}" for step in steps if step.isdecimal()]
    return [*whole, "best"] if "best" in stems else whole


def is_record(name: str) -> bool:
    """Whether a file of a store is one that the copying of a run writes there."""
    return name.startswith(f"{RECORDS}/")


def record(store: Store, item: str) -> Listing | None:
    """The files of an item; None where it is not whole."""
    try:
        content: Any = json.loads(store.read(record_of(item)) or b"{}")
        return {file: (int(n), str(d)) for file, (n, d) in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # half of one, or none of ours: what it is of is copied again


def digest(path: Path) -> tuple[int, str]:
    """(bytes, SHA-256) of a file."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        return os.fstat(file.fileno()).st_size, found


def _version(status: os.stat_result) -> Version:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _versions(folder: Path) -> Versions:
    """Of all files of a folder; {} if it is just replaced."""
    try:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): _version(path.stat()) for path in files}
    except FileNotFoundError:
        return {}


def _linked(folder: Path, copy: Path) -> Listing:
    """Links to all files of a folder, which stay when it is deleted or replaced; {} if it just was.

    Copies where the file system has no links. What is written here is replaced by renames, never changed.
    """
    shutil.rmtree(copy, ignore_errors=True)
    try:
        before = folder.stat().st_ino
        shutil.copytree(folder, copy, copy_function=_link)
        if folder.stat().st_ino != before:
            return {}
    except (FileNotFoundError, shutil.Error):
        return {}
    names = [path for path in copy.rglob("*") if path.is_file() and not path.name.endswith(".tmp")]
    return {path.relative_to(copy).as_posix(): digest(path) for path in sorted(names)}


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)
