"""Where a run lives: a local directory, or one that is copied to a store (`--workdir=s3://bucket/runs/mine`).

The store is what counts, and the local directory its copy, which may be ahead by what has not arrived there
yet. A start on a machine without the copy fetches it. One process at a time holds the place in the store: it
says so every few seconds, and whoever finds it silent may take it over.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxft.data.kept_files import kept_folder
from jaxft.data.remote import is_remote
from jaxft.data.store import Store, StoreError, open_store
from jaxft.experiment.directory import RunDirectory
from jaxft.experiment.lock import is_alive
from jaxft.experiment.mirror import OWN, RECORDS, Copying, Listing, Mirror, digest, records
from jaxft.training.reader import saved_steps

EVERY = 20.0  # seconds between two looks for what has changed, and between two signs of life
SILENCE = 90.0  # seconds after which a holder that gave none is taken for dead
_RUN = f"{RECORDS}/run.json"


def located(place: str, local_copy: str = "") -> tuple[RunDirectory, Store | None]:
    """The directory of a run, and the store that it is copied to, if it is.

    Args:
      place: a local directory or an address.
      local_copy: of an address: the local directory; '': one in the user's cache, by the address.

    Raises:
      ValueError: a local place with `local_copy`, or an address of no known kind.
    """
    if not is_remote(place):
        if local_copy:
            raise ValueError(f"--local_copy is of a remote --workdir, and {place} is a local one")
        return RunDirectory(place), None
    store = open_store(place)
    name = hashlib.blake2b(store.shown.encode(), digest_size=8).hexdigest()
    own = kept_folder(None).parent / "runs" / f"{store.shown.rpartition('/')[2]}-{name}"
    return RunDirectory(Path(local_copy).expanduser() if local_copy else own), store


@contextlib.contextmanager
def claimed(directory: RunDirectory, store: Store | None) -> Iterator[None]:
    """Hold a run directory, here and in the store; what the store has more is fetched, and copied on.

    At the end all is copied. Where the store fails for good, the process is sent SIGTERM, so that the run
    saves and stops.

    Raises:
      ValueError: another process holds it, or the store and the local directory hold other runs.
      OSError: it cannot be created or written; StoreError: not in the store, after all attempts.
    """
    with directory.claimed():
        if store is None:
            yield
            return
        hold = Hold(directory.path, store)
        hold.take()
        copying = Copying(Mirror(directory.path, store, hold.check), EVERY, _stop)
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                copying.end()
                hold.release()
            raise
        try:
            copying.end()
        except StoreError as error:
            hold.release(quietly=True)
            raise OSError(
                errno.EIO,
                f"{error}; the run is whole in {directory.path}, and the same command copies it on",
            ) from error
        hold.release()


class Hold:
    """The right of one process to write a place in a store."""

    def __init__(self, local: Path, store: Store, silence: float = SILENCE, every: float = EVERY):
        self._local, self._store, self._silence, self._every = local, store, silence, every
        self._own = local / OWN / "run.json"
        self._token, self._beats = secrets.token_hex(8), 0
        self._run, self._lost = "", ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="hold", daemon=True)

    def take(self) -> None:
        """Hold it from now on, with all of the run here. Errors: see `claimed`."""
        there, here = _json(self._store.read(_RUN)), _json(_bytes(self._own))
        steps = saved_steps(self._local / "checkpoints")
        if not there and here:
            raise ValueError(
                f"{self._store.shown} holds no run, but {self._local} is the copy of one that was there: "
                "remove that, too, to begin again"
            )
        if there and (here.get("run") != there["run"] if here else steps):
            raise ValueError(
                f"{self._local} holds another run than {self._store.shown}; remove it to go on with the one "
                "in the store"
            )
        if holder := there.get("holder"):
            self._wait_for_silence(holder)
        self._run = there.get("run") or secrets.token_hex(8)
        self._say()
        # First, so that a fetch that is cut off is one of this run.
        self._own.parent.mkdir(parents=True, exist_ok=True)
        self._own.write_text(json.dumps({"run": self._run}))
        if there:
            fetch(self._local, self._store)
        self._thread.start()

    def check(self) -> None:
        """Raises StoreError where another process has taken over."""
        if self._lost:
            raise StoreError(
                f"{self._store.shown}: {self._lost} has taken over, and goes on with it"
            )

    def release(self, *, quietly: bool = False) -> None:
        """Hold it no longer."""
        self._ended.set()
        self._thread.join()  # or its last sign of life could come after the word that there is none
        if self._lost:
            return
        try:
            self._store.write(_RUN, json.dumps({"run": self._run, "holder": None}).encode())
        except StoreError:
            if not quietly:
                raise

    def _wait_for_silence(self, holder: dict[str, Any]) -> None:
        who = f"{holder['host']}, process {holder['process']}"
        here = holder["host"] == socket.gethostname()
        if here and not is_alive(holder["process"]):
            return
        if not here:
            print(f"{self._store.shown} is held by {who}; waiting for signs of life", flush=True)
            time.sleep(self._silence)
            if _json(self._store.read(_RUN)).get("holder") in (None, holder):
                return
        raise ValueError(f"{self._store.shown} is in use by another process ({who})")

    def _say(self) -> None:
        self._beats += 1
        holder = {"host": socket.gethostname(), "process": os.getpid(), "token": self._token,
                  "beat": self._beats}  # fmt: skip
        self._store.write(_RUN, json.dumps({"run": self._run, "holder": holder}).encode())

    def _beat(self) -> None:
        while not self._ended.wait(self._every):
            try:
                if not (found := _json(self._store.read(_RUN))):
                    continue  # what cannot be read says nothing
                holder = found.get("holder") or {}
                if holder.get("token") != self._token:
                    self._lost = f"{holder.get('host', 'another machine')}"
                    return
                if not self._ended.is_set():
                    self._say()
            except StoreError:
                continue  # said where the copy fails


def fetch(local: Path, store: Store) -> None:
    """Bring a local directory up to a store: checkpoints and what else is whole there and not here.

    Raises:
      StoreError: it cannot be read, or a file is not what its record says.
    """
    there, here = records(store), saved_steps(local / "checkpoints")
    steps = sorted(int(name.rpartition("/")[2]) for name in there if name != "best")
    if here and max(steps, default=0) <= max(here):
        return  # this was ahead, or is as far
    small = [
        name for name in store.files()
        if not name.startswith((f"{RECORDS}/", "checkpoints/", "best/", ".", "cache/"))
    ]  # fmt: skip
    if "summary.json" not in small:
        (local / "summary.json").unlink(missing_ok=True)
    for name in small:
        if name != "summary.json":
            _file(local, store, name)
    # The newest last: where it is, those are that it needs.
    for name in [name for name in there if name == "best"] + [f"checkpoints/{n}" for n in steps]:
        if name == "best" or not (local / name).exists():
            _item(local, store, name, there[name])
    if "summary.json" in small:
        _file(local, store, "summary.json")


def _file(local: Path, store: Store, name: str) -> None:
    beside = local / OWN / "file"
    content = store.read(name)
    if content is None:
        return
    beside.parent.mkdir(parents=True, exist_ok=True)
    beside.write_bytes(content)
    (local / name).parent.mkdir(parents=True, exist_ok=True)
    os.replace(beside, local / name)


def _item(local: Path, store: Store, name: str, listing: Listing) -> None:
    beside, target = local / OWN / "item", local / name
    shutil.rmtree(beside, ignore_errors=True)
    for file, known in listing.items():
        store.download(f"{name}/{file}", beside / file)
        if digest(beside / file) != known:
            raise StoreError(f"{store.shown}/{name}/{file} is not what was copied there")
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(beside, target)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _json(content: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
