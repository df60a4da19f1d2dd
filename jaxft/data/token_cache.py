"""Tokenised texts on disk: shards of up to `SHARD` examples, memory-mapped, checked without reading them.

A shard is one file [header | lengths | second | ids], written while its texts are tokenised and visible
only once it is whole. Its name is a hash of what it was made from (text.py), so that after a kill, or
when rows are added at the end, whole shards are found again. It is one .npy file, which other programs
can open, and not .npz, which cannot be mapped. lengths and second are int32, ids uint16 where the
vocabulary allows, else int32.

What is detected: the header holds a checksum of all that follows, one of samples of it, the file's
size by its counts, and the time of its writing, which the file also carries as its modification
time. While size and time are those, only header, lengths, second and the samples (64 pieces of
4 KiB, first and last included) are read, whatever the size of the file; otherwise (copied, edited,
written in place) everything is read and held against the checksum. So every change made by
writing to the file is detected, unless its modification time was put back; a disk that returns
other bytes under the same time is detected if the bytes lie in a sample or break the counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import re
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxft.data.targets import offsets_of
from jaxft.data.tokens import Tokens, checksum

# Examples in a file: few files of many texts, and what a kill can cost is minutes.
SHARD = 1 << 22

# First words of a file. The version changes whenever the layout or its meaning does.
MAGIC, VERSION = 0x4A46_5431, 3
_HEADER = struct.Struct("<IIQQqqQ16s16s16s")  # as `_Header`, then a checksum of the header itself
_START = 128  # of the header: after that of numpy
_BODY = _START + _HEADER.size
_IDS: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<i4")}  # by their bytes
_PIECES, _PIECE = 64, 4096
_LEFTOVER = re.compile(r"[0-9a-f]{32}\.[a-z0-9_]{8}\.tmp")
_LEFTOVER_AGE = 24 * 3600.0  # seconds; a file that is still written to is younger


def shards(rows: np.ndarray) -> list[np.ndarray]:
    """[n] -> [SHARD], [SHARD], …, [rest]."""
    return np.split(rows, range(SHARD, len(rows), SHARD))


@dataclasses.dataclass(frozen=True)
class _Header:
    magic: int
    version: int
    examples: int
    tokens: int
    largest: int
    written: int  # the file's modification time, whole seconds, which every file system can keep
    width: int  # bytes of an id
    checksum: bytes  # of all that follows the header
    sample: bytes

    def pack(self) -> bytes:
        plain = _HEADER.pack(*dataclasses.astuple(self), bytes(16))
        return plain[:-16] + hashlib.blake2b(plain, digest_size=16).digest()

    @classmethod
    def unpack(cls, raw: bytes) -> _Header | None:
        """None if it is not what `pack` gave."""
        header = cls(*_HEADER.unpack(raw)[:-1])
        return header if header.pack() == raw else None


class Writer:
    """The tokens of a shard, written in parts; 8 bytes an example are in memory."""

    def __init__(self, file: BinaryIO, examples: int, vocabulary: int):
        self._file = file
        self._ids = _IDS[2 if 0 < vocabulary <= 1 << 16 else 4]
        self._body = np.zeros((2, examples), np.int32)  # lengths, second
        self._examples = self._tokens = 0
        self._largest = -1
        file.seek(_BODY + self._body.nbytes)

    def append(self, lengths: np.ndarray, second: np.ndarray, ids: np.ndarray) -> None:
        """The next examples, as int32 (see `Tokens`)."""
        end = self._examples + len(lengths)
        self._body[:, self._examples : end] = lengths, second
        self._file.write(np.ascontiguousarray(ids, self._ids).data)
        self._examples, self._tokens = end, self._tokens + len(ids)
        self._largest = max(self._largest, int(ids.max(initial=-1)))

    def finish(self) -> int:
        """Writes what is known at the end; returns the modification time that the file must have."""
        assert self._examples == self._body.shape[1]
        size = _HEADER.size + self._body.nbytes + self._ids.itemsize * self._tokens
        self._file.seek(0)
        self._file.write(_numpy_header(size))
        self._file.seek(_BODY)
        self._file.write(self._body.data)
        self._file.flush()
        _, ids = _body(self._file, self._examples, self._tokens, self._ids)
        # Even seconds: some file systems keep no finer times.
        header = _Header(
            MAGIC, VERSION, self._examples, self._tokens, self._largest, int(time.time()) // 2 * 2,
            self._ids.itemsize, checksum([*self._body, ids]), _sample(self._file, _BODY),
        )  # fmt: skip
        self._file.seek(_START)
        self._file.write(header.pack())
        return header.written


@contextlib.contextmanager
def writing(path: Path, examples: int, vocabulary: int = 0) -> Iterator[Writer]:
    """Within the block a shard is written; after it, it is there whole, or not at all.

    Several processes may write the same one. vocabulary: ids are from 0 to below it; 0: any int32.

    Raises OSError naming the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w+b") as file:
            writer = Writer(file, examples, vocabulary)
            yield writer
            written = writer.finish()
        os.utime(temporary, (written, written))
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write, unlike an open, does not say of what
        raise


def load(path: Path, examples: int) -> Tokens | None:
    """The shard's tokens, or None if the file is missing, damaged or of another version."""
    try:
        with path.open("rb") as file:
            return _read(path, file, examples)
    except (OSError, ValueError, EOFError, struct.error):
        return None


def _read(path: Path, file: BinaryIO, examples: int) -> Tokens | None:
    first = file.read(_START)
    header = _Header.unpack(file.read(_HEADER.size))
    if header is None or (header.magic, header.version) != (MAGIC, VERSION):
        return None
    stat = os.fstat(file.fileno())
    size = 8 * examples + header.width * header.tokens
    if (
        header.examples != examples
        or first != _numpy_header(_HEADER.size + size)
        or stat.st_size != _BODY + size
        or header.sample != _sample(file, _BODY)
    ):
        return None
    (lengths, second), ids = _body(file, examples, header.tokens, _IDS[header.width])
    if stat.st_mtime != header.written:
        if checksum([lengths, second, ids]) != header.checksum:
            return None
        _restore_time(path, header.written)
    if lengths.min(initial=0) < 0 or lengths.sum(dtype=np.int64) != len(ids):
        return None
    if (second < 0).any() or (second > lengths).any():
        return None
    return Tokens(
        ids, offsets_of(lengths), np.asarray(second), True, header.checksum.hex(), header.largest
    )


def _numpy_header(size: int) -> bytes:
    """Of a .npy file of so many bytes."""
    written = io.BytesIO()
    layout = {"descr": "|u1", "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(written, layout)
    assert written.tell() == _START
    return written.getvalue()


def _body(
    file: BinaryIO, examples: int, tokens: int, kind: np.dtype[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """lengths and second [2, examples] int32, ids [tokens]: the file, mapped."""
    size = 8 * examples + kind.itemsize * tokens
    mapped: np.ndarray = np.memmap(file, np.uint8, "r", _BODY, (size,))
    return mapped[: 8 * examples].view("<i4").reshape(2, examples), mapped[8 * examples :].view(
        kind
    )


def _restore_time(path: Path, written: int) -> None:
    """A file that was copied and found whole is not read whole again at the next start."""
    try:
        os.utime(path, (written, written))
    except OSError:  # not ours, or read-only: the next start reads it again
        pass


def _sample(file: BinaryIO, start: int) -> bytes:
    """Digest of evenly spaced pieces of the file from `start` on."""
    digest = hashlib.blake2b(digest_size=16)
    last = max(start, file.seek(0, os.SEEK_END) - _PIECE)
    for place in np.unique(np.linspace(start, last, _PIECES).astype(np.int64)).tolist():
        file.seek(place)
        digest.update(file.read(_PIECE))
    return digest.digest()


def _remove_leftovers(folder: Path) -> None:
    """Temporary files of processes that were killed while they wrote; nobody else's files."""
    for path in folder.glob("*.tmp"):
        try:
            if (
                _LEFTOVER.fullmatch(path.name)
                and path.stat().st_mtime < time.time() - _LEFTOVER_AGE
            ):
                path.unlink()
        except OSError:  # gone meanwhile, or not ours to remove
            continue
