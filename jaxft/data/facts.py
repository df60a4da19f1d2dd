"""What was found out about a large file, kept on the disk under a hash of all of its bytes.

So a later start need not parse the file to learn again where its records are, which labels they have and
that every text is one. Whatever is changed in the file is noticed, since the hash is of the bytes that
are there now: times and names do not count. What is kept is looked for under the hash of what it was made
of, as tokens are (token_cache.py), and is made anew where it is damaged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxft.base.whole_file import whole_file
from jaxft.data.records import FileBytes

# Files below this size are parsed at each start, which takes a second.
LEAST = 1 << 26
# Changes whenever a file is read to another effect, as it may be by another Python, whose csv it is.
VERSION = 2
_BLOCK = 1 << 20
_HEADER = 1 << 16  # bytes of the first line, at most
_KINDS = ("<i8", "<i4", "|u1")

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Facts:
    """Of one file.

    Attributes:
      folder: where they are kept; made if missing.
      key: of the file's bytes, and of how it is read.
    """

    folder: Path
    key: tuple[str, ...]

    def further(self, *key: str) -> Facts:
        """The same file, read in this way."""
        return dataclasses.replace(self, key=self.key + key)

    def known(self, what: tuple[str, ...], make: Callable[[], Arrays]) -> Arrays:
        """What `make` returns: arrays [n] of int64, int32 or uint8, a function of the file and of `what`.

        Raises:
          OSError: they cannot be written.
        """
        name = json.dumps([VERSION, sys.version_info[:3], self.key, what]).encode()
        path = self.folder / f"{hashlib.blake2b(name, digest_size=16).hexdigest()}.facts"
        found = _load(path)
        if found is None:
            found = make()
            _save(path, found)
        return found


def facts_of(file: FileBytes, folder: str | None) -> Facts | None:
    """The facts of a file; None where none are kept: it is small, or there is no folder for them."""
    if folder is None or file.size < LEAST:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, file.size, _BLOCK):
        digest.update(file.read(start, start + _BLOCK))
    return Facts(Path(folder), (digest.hexdigest(),))


def digest_of(array: np.ndarray) -> str:
    """For the `what` of facts that are of some rows."""
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()


def packed(value: Any) -> np.ndarray:
    """A JSON value as an array, to be kept."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def unpacked(array: np.ndarray) -> Any:
    """The value that was `packed`."""
    return json.loads(array.tobytes())


def _save(path: Path, arrays: Arrays) -> None:
    layout = [[name, array.dtype.str, len(array)] for name, array in arrays.items()]
    header = {"checksum": _checksum(layout, arrays), "arrays": layout}
    with whole_file(path) as file:
        file.write(json.dumps(header).encode() + b"\n")
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)


def _load(path: Path) -> Arrays | None:
    """None if the file is missing or damaged."""
    try:
        with path.open("rb") as file:
            return _read(file)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _read(file: BinaryIO) -> Arrays | None:
    header = json.loads(line := file.readline(_HEADER))
    layout = [(str(name), str(kind), int(count)) for name, kind, count in header["arrays"]]
    if any(kind not in _KINDS or count < 0 for _, kind, count in layout):
        return None
    size = sum(np.dtype(kind).itemsize * count for _, kind, count in layout)
    if len(line) + size != os.fstat(file.fileno()).st_size:
        return None
    arrays = {
        name: np.frombuffer(file.read(np.dtype(kind).itemsize * count), kind)
        for name, kind, count in layout
    }
    return arrays if _checksum(list(map(list, layout)), arrays) == header["checksum"] else None


def _checksum(layout: list[list[Any]], arrays: Arrays) -> str:
    digest = hashlib.blake2b(json.dumps(layout).encode(), digest_size=16)
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
