"""An export into a store (`--output=s3://bucket/models/mine`): whole there, or no checkpoint to anybody.

It is written to the disk first, where nothing is half done, then copied in an order that keeps it whole:
`jaxft-export.json`, which says what there is ours, comes before anything else; then `config.json`, without
which no library takes a folder for a checkpoint, is removed; then all other files come, `config.json` last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxft.data import remote
from jaxft.data.kept_files import kept_folder
from jaxft.data.remote_folder import is_storage
from jaxft.data.store import Store, StoreError, open_store
from jaxft.experiment.lock import is_alive
from jaxft.experiment.mirror import RECORDS, digest, is_record
from jaxft.experiment.stored_run import MARK, shown

_WRITER = "jaxft export"
_MAKES_WHOLE = "config.json"


@contextlib.contextmanager
def export_place(given: str, *reads: str) -> Iterator[str]:
    """The local directory to write an export to: `given` or, of a store, one that is copied at the end.

    Args:
      reads: what the export is made of: the run, the checkpoint that it began from.

    Raises:
      ValueError: a web address; a place in the store that holds anything but an earlier export of jaxft's, or
        that belongs to a run or is one of `reads`.
      OSError: it cannot be written there; what is there is no checkpoint, or the one before.
    """
    if not remote.is_remote(given):
        yield given
        return
    if not is_storage(given):
        raise ValueError(
            f"--output {shown(given)} is a web address; give a directory, or a store's, such as "
            "s3://bucket/models/mine"
        )
    store = open_store(given)
    before = _ours(store, [shown(place) for place in reads])
    with _folder(store.shown.rpartition("/")[2]) as folder:
        yield str(folder)
        try:
            _send(folder, store, before)
        except StoreError as error:
            raise OSError(
                errno.EIO,
                f"{error}; no half of an export is read there: the same command writes it",
            ) from error


def _ours(store: Store, reads: list[str]) -> set[str]:
    """The files there, of an earlier export; nothing is written to anything else."""
    if store.shown in reads:
        raise ValueError(
            f"--output {store.shown} is what the export is made of; give another place"
        )
    there = set(store.files())
    if "source.json" in there or any(map(is_record, there)):
        raise ValueError(f"--output {store.shown} is a run; give a place of its own")
    above = store
    while "/" in above.root.strip("/"):
        above = dataclasses.replace(
            above, root=above.root.rpartition("/")[0], shown=above.shown.rpartition("/")[0]
        )
        if above.root and above.read(f"{RECORDS}/run.json") is not None:
            raise ValueError(
                f"--output {store.shown} belongs to the run {above.shown}; give another"
            )
    try:
        mark = json.loads(store.read(MARK) or b"{}") if MARK in there else {}
        files = set(mark["files"]) if mark["written by"] == _WRITER else set()
    except (ValueError, KeyError, TypeError):
        files = set()
    if foreign := sorted(there - files - {MARK}):
        raise ValueError(
            f"--output {store.shown} holds {foreign[0]!r}, which jaxft did not export, so it is left as it "
            "is; give another place"
        )
    return there - {MARK}


@contextlib.contextmanager
def _folder(name: str) -> Iterator[Path]:
    """A place on the disk that ends with the block; those that kills have left are removed."""
    own, host = kept_folder(None).parent / "exports", socket.gethostname()
    own.mkdir(parents=True, exist_ok=True)
    for left in own.glob(f"{glob.escape(host)}-[0-9]*"):  # other hosts may share the folder
        number = left.name.removeprefix(f"{host}-")
        if number.isdecimal() and not is_alive(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    folder = own / f"{host}-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder / name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _send(folder: Path, store: Store, before: set[str]) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): digest(path) for path in paths}
    # Also of what was there, or a kill before it is removed would leave files of nobody.
    _mark(store, {**dict.fromkeys(sorted(before)), **files})
    store.remove(_MAKES_WHOLE)
    for name in files:
        if name != _MAKES_WHOLE:
            store.upload(folder / name, name)
    for name in sorted(before - files.keys()):
        store.remove(name)
    store.upload(folder / _MAKES_WHOLE, _MAKES_WHOLE)
    _mark(store, files)


def _mark(store: Store, files: Mapping[str, tuple[int, str] | None]) -> None:
    content = {"written by": _WRITER, "files": files}
    store.write(MARK, json.dumps(content, indent=1).encode())
