"""A run or a checkpoint in a store (`--run=s3://bucket/runs/mine`), copied to the disk for those who read it.

Of a run that is what is whole in the store just then: its small files, and of checkpoints and `best/` those
that are asked for, each file held against the SHA-256 of its record (see `mirror.py`). It lies in the user's
cache, under a hash of all that, so nothing is downloaded twice, and a run that goes on disturbs no reader:

    files/HASH/mine/    a run directory: small files, and links to
    files/HASH/best/    `best/` or a checkpoint
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from jaxft.data import remote
from jaxft.data.kept_files import check_room, kept_folder, place_of
from jaxft.data.remote_folder import downloaded_folder, is_storage
from jaxft.data.store import WAITS, Store, StoreError, open_store
from jaxft.experiment.mirror import Listing, digest, is_record, record, recorded
from jaxft.training.reader import saved_steps

# Whoever waits sits before a terminal: a quarter of a minute, and not the two that a run waits.
_WAITS = WAITS[:4]
_ATTEMPTS = 4  # to read a run that goes on
MARK = "jaxft-export.json"  # of an export in a store: says that all is ours, see stored_export.py

# Of the names of what is whole ('best', 'checkpoints/8'), those that are needed.
Choose = Callable[[str, Collection[str]], Collection[str]]


class _Changed(Exception):
    """The run went on while it was read; says what is not there as it was any more."""


def shown(place: str | Path) -> str:
    """The place as messages say it: an address without the keys that may be in it."""
    text = str(place)
    return remote.without_secrets(text).rstrip("/") if remote.is_remote(text) else text


def place_given(place: str | Path) -> str | Path:
    """What a function was given for a command's --run: an address as it is, a path with its ~ replaced."""
    return str(place) if remote.is_remote(str(place)) else Path(place).expanduser()


def with_best(place: str | Path) -> Path:
    """The directory of a run with its `best/`, or of a checkpoint; a local one as it is given.

    Raises:
      ValueError: there is nothing of the kind in the store; one line. StoreError: it cannot be reached.
    """

    def choose(name: str, whole: Collection[str]) -> Collection[str]:
        if "best" not in whole:
            raise ValueError(
                f"{name} has no best/ that is whole: finish the run with the command that began it, or write "
                f"one of what it has by now: python -m jaxft.export --run {name} --output DIR"
            )
        return ("best",)

    return _local(place, choose)


def with_records(place: str | Path) -> Path:
    """The directory of a run with its small files alone. Errors: see `with_best`."""
    return _local(place, lambda name, whole: ())


def with_checkpoint(
    place: str | Path, step: int | None, best_of: Callable[[Path, int], int | None]
) -> Path:
    """The directory of a run with the checkpoint of `step`, else with the newest and the best so far.

    best_of: of the run's directory and its newest checkpoint, the best step that this one knows.

    Errors: see `with_best`; also that there is no such checkpoint.
    """
    best: int | None = None

    def choose(name: str, whole: Collection[str]) -> Collection[str]:
        steps = sorted(int(item.rpartition("/")[2]) for item in whole if item != "best")
        if not steps:
            raise ValueError(f"{name}: the run has no complete checkpoint there yet")
        if step is not None and step not in steps:
            raise ValueError(f"--step={step} is not kept; there are {', '.join(map(str, steps))}")
        wanted = {steps[-1] if step is None else step, *(one for one in steps if one == best)}
        return [f"checkpoints/{one}" for one in sorted(wanted)]

    for _ in range(_ATTEMPTS):
        path = _local(place, choose)
        if step is not None or not is_storage(str(place)):
            return path
        there = saved_steps(path / "checkpoints")
        best = best_of(path, there[-1]) if there else None
        if best is None or best in there:
            return path
    raise ValueError(f"{shown(place)}: its best checkpoint changes while it is read; give --step")


def _local(place: str | Path, choose: Choose) -> Path:
    """A local directory as it is; of a store what is whole there, with what is chosen of it."""
    address = str(place)
    if not remote.is_remote(address):
        return Path(place)
    if not is_storage(address):
        raise ValueError(
            f"{shown(address)} is a web address; a run or a checkpoint is read from a directory, or from a "
            "store such as s3://bucket/runs/mine"
        )
    store = open_store(address, _WAITS)
    for _ in range(_ATTEMPTS):
        try:
            found = _read(store, choose)
        except _Changed as error:
            what = error
        else:
            return found or downloaded_folder(address)[0]
    raise StoreError(f"{store.shown}: {what}, {_ATTEMPTS} times in a row; start again")


def _read(store: Store, choose: Choose) -> Path | None:
    """The kept copy of a run as it is now; None where it is no run that jaxft copied there."""
    listing = store.versions()
    if not listing:
        raise ValueError(f"{store.shown}: there is no such folder, or nothing in it")
    copied = any(map(is_record, listing))
    if "config.json" not in listing:
        why = "it has no config.json" + (" yet" if copied or MARK in listing else "")
        raise ValueError(f"{store.shown} holds no run and no checkpoint: {why}")
    if not copied:
        return None
    items = {item: _record(store, item) for item in choose(store.shown, recorded(listing))}
    small = {name: version for name, version in listing.items() if "/" not in name}
    key = json.dumps([small, items], sort_keys=True)
    name = store.shown.rpartition("/")[2]
    path = place_of(kept_folder(None), ("run", store.shown, key), name)
    if not path.exists():
        folders = {item: _item(store, item, items[item], listing) for item in items}
        with _beside(path) as new:
            for file in small:
                if (content := store.read(file)) is not None:
                    (new / file).write_bytes(content)
            for item, folder in folders.items():
                (new / item).parent.mkdir(exist_ok=True)
                (new / item).symlink_to(folder.absolute(), target_is_directory=True)
    return path


def _record(store: Store, item: str) -> Listing:
    if (found := record(store, item)) is None:
        raise _Changed(f"{item} has changed while it was read")
    return found


def _item(store: Store, item: str, files: Listing, there: Mapping[str, list[str]]) -> Path:
    """The kept copy of a checkpoint or of `best/`."""
    key = ("item", store.shown, item, json.dumps(files, sort_keys=True))
    path = place_of(kept_folder(None), key, item.rpartition("/")[2])
    if path.exists():
        return path
    size = sum(size for size, _ in files.values())
    if any(there.get(f"{item}/{file}", [""])[0] != str(n) for file, (n, _) in files.items()):
        raise _Changed(f"{item} has changed while it was read")
    with _beside(path) as new:
        check_room(new, size, 0, f"downloading {store.shown}/{item}")
        for file, known in files.items():
            try:
                store.download(f"{item}/{file}", new / file)
            except StoreError:
                if record(store, item) == files:
                    raise
                raise _Changed(f"{item} has changed while it was read") from None
            if digest(new / file) != known:  # of another one, or cut off on the way
                raise _Changed(f"{item}/{file} is not what was copied there")
    return path


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when it is whole; where another process was first, that stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{path.name}."))
    try:
        yield new
        try:
            os.rename(new, path)
        except OSError:
            if not path.exists():
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
