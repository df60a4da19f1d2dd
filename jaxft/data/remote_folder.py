"""A folder of another machine's storage, downloaded once: a checkpoint at 's3://bucket/models/bert'."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

from jaxft.data import files, remote
from jaxft.data.kept_files import keep, kept_folder, place_of
from jaxft.data.store import Store, StoreError, open_store

# Other forms of weights, of which a checkpoint is not read where it has safetensors.
_OTHERS = (".bin", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".ckpt", ".tflite", ".gguf")


def downloaded_folder(address: str, cache: str | None = None) -> tuple[Path, tuple[str, ...]]:
    """The folder at an address on the disk, and notes on it.

    Kept under what the store says of every file in it (size, ETag, time), so another one under the same
    address is downloaded anew, and one that was cut off goes on with the files that it lacks.

    cache: folder in which it is kept; None: in the user's own cache.

    Raises:
      ValueError: it is not there, or does not come whole; no room on the disk; no such kind of storage.
      StoreError: the store cannot be reached, after all attempts.
    """
    store = open_store(address)
    listing = store.versions()
    if not listing:
        raise ValueError(f"{store.shown}: there is no such folder, or nothing in it")
    if any(name.endswith(".safetensors") for name in listing):
        listing = {name: info for name, info in listing.items() if not name.endswith(_OTHERS)}
    version = json.dumps(listing, sort_keys=True)
    name = store.shown.rpartition("/")[2]
    folder = place_of(kept_folder(cache), ("folder", store.shown, version), name)
    lacking = [file for file in listing if not (folder / file).exists()]
    for file in lacking:
        _download(store, file, int(listing[file][0]), folder / file)
    if not lacking:
        return folder, ()
    if {name: info for name, info in store.versions().items() if name in listing} != listing:
        raise ValueError(f"{store.shown} was written to while it was downloaded; start again")
    size = sum(int(listing[file][0] or 0) for file in lacking)
    return folder, (
        f"{store.shown}: downloaded, {size / 1e6:,.1f} MB, and kept in {str(folder)!r}",
    )


def _download(store: Store, name: str, size: int, path: Path) -> None:
    read = functools.partial(store.blocks, name, size)
    blocks = remote.verified(read(), store.checksum(name, size), read)
    shown = f"{store.shown}/{name}"
    keep(path, _said(blocks, shown), f"downloading {shown}")


def _said(blocks: Iterator[bytes], shown: str) -> Iterator[bytes]:
    """The blocks; what goes wrong with them is no failure of this machine, as `keep` would take it."""
    try:
        yield from blocks
    except StoreError as error:
        raise ValueError(str(error)) from None
    except OSError as error:
        raise ValueError(f"{shown}: {files.first_line(error)}; start again") from None


def is_storage(address: str) -> bool:
    """Whether folders can be read there, as they cannot over HTTP."""
    return remote.is_remote(address) and not address.lower().startswith(("http://", "https://"))
