"""Tokenised texts on disk: one .npy file, memory-mapped, checked at every start without reading it.

The file is one int32 array [header | lengths | second | ids]: one file, so that replacing it is
atomic, and .npy rather than .npz, which cannot be mapped.

What is noticed. The header holds a checksum of all that follows, one of samples of it, the file's
size by its counts, and the time of its writing, which the file also carries as its modification
time. While size and time are those, only header, lengths, second and the samples (64 pieces of
4 KiB, first and last included) are read, whatever the size of the file; otherwise (copied, edited,
written in place) everything is read and held against the checksum. So every change made by
writing to the file is noticed, unless its modification time was put back; a disk that returns
other bytes under the same time is noticed if the bytes lie in a sample or break the counts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import struct
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np

# First words of a file. The version changes whenever the layout or its meaning does.
MAGIC, VERSION = 0x4A46_5431, 2
_HEADER = struct.Struct("<IIQQqq16s16s16s")  # as `_Header`, then a checksum of the header itself
_PIECES, _PIECE = 64, 4096
_LEFTOVER = re.compile(r"[0-9a-f]{32}\.[a-z0-9_]{8}\.tmp")
_LEFTOVER_AGE = 24 * 3600.0  # seconds; no tokenising that still runs began before


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokenised texts, one after the other.

    ids [total] int32: the tokens of example j are ids[offsets[j]:offsets[j + 1]].
    offsets [n + 1] int64.
    second [n] int32: where in example j token type 1 begins (its length if it never does).
    cached: read from the disk rather than made now.
    fingerprint: of all of the above, in hexadecimal; from the header where it is cached.
    largest: the largest id, -1 of no tokens.
    words [total] int32: the number in its example of the word that a token begins, -1 for one that
      begins none; None where texts are not given as words (words.py).
    cut: words that were left out because their example is too long.
    """

    ids: np.ndarray
    offsets: np.ndarray
    second: np.ndarray
    cached: bool
    fingerprint: str = ""
    largest: int = -1
    words: np.ndarray | None = None
    cut: int = 0

    def __len__(self) -> int:
        return len(self.second)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, special tokens included: [n] int32."""
        return np.diff(self.offsets).astype(np.int32)


def make_tokens(lengths: np.ndarray, second: np.ndarray, ids: np.ndarray) -> Tokens:
    """Tokens in memory, from int32 arrays; computes what the header keeps."""
    body = [np.ascontiguousarray(part, np.int32) for part in (lengths, second, ids)]
    return Tokens(
        body[2], _offsets(body[0]), body[1], cached=False,
        fingerprint=_checksum(body).hex(), largest=int(ids.max(initial=-1)),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Header:
    magic: int
    version: int
    examples: int
    tokens: int
    largest: int
    written: int  # the file's modification time, whole seconds, which every file system can keep
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


def save(path: Path, tokens: Tokens) -> None:
    """Writes the file whole or not at all; several processes may write the same one.

    Raises OSError naming the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    body = [tokens.lengths, tokens.second, tokens.ids]
    # Even seconds: some file systems keep no finer times.
    written = int(time.time()) // 2 * 2
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w+b") as file:
            size = _HEADER.size // 4 + sum(map(len, body))
            layout = {"descr": "<i4", "fortran_order": False, "shape": (size,)}
            np.lib.format.write_array_header_1_0(file, layout)
            start = file.tell()
            file.write(bytes(_HEADER.size))
            for part in body:
                file.write(part.data)
            header = _Header(
                MAGIC, VERSION, len(tokens), len(tokens.ids), tokens.largest, written,
                bytes.fromhex(tokens.fingerprint), _sample(file, start + _HEADER.size),
            )  # fmt: skip
            file.seek(start)
            file.write(header.pack())
        os.utime(temporary, (written, written))
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError):
            error.filename = str(path)  # a write, unlike an open, does not say of what
        raise


def load(path: Path, examples: int) -> Tokens | None:
    """The cached tokens, or None if the file is missing, damaged or of another version."""
    try:
        with path.open("rb") as file:
            return _read(path, file, examples)
    except (OSError, ValueError, EOFError, struct.error):
        return None


def _read(path: Path, file: BinaryIO, examples: int) -> Tokens | None:
    np.lib.format.read_magic(file)
    (count,), _, dtype = np.lib.format.read_array_header_1_0(file)
    start = file.tell()
    header = _Header.unpack(file.read(_HEADER.size))
    if header is None or (header.magic, header.version) != (MAGIC, VERSION):
        return None
    size = _HEADER.size // 4
    stat = os.fstat(file.fileno())
    if (
        dtype != np.int32
        or header.examples != examples
        or count != size + 2 * examples + header.tokens
        or stat.st_size != start + 4 * count
        or header.sample != _sample(file, start + _HEADER.size)
    ):
        return None
    body = np.memmap(file, np.int32, "r", start + _HEADER.size, (count - size,))
    lengths, second, ids = np.split(body, [examples, 2 * examples])
    if stat.st_mtime != header.written:
        if _checksum([body]) != header.checksum:
            return None
        _restore_time(path, header.written)
    if lengths.min(initial=0) < 0 or lengths.sum(dtype=np.int64) != len(ids):
        return None
    if (second < 0).any() or (second > lengths).any():
        return None
    return Tokens(
        ids, _offsets(lengths), np.asarray(second), True, header.checksum.hex(), header.largest
    )


def _restore_time(path: Path, written: int) -> None:
    """A file that was copied and found whole is not read whole again at the next start."""
    try:
        os.utime(path, (written, written))
    except OSError:  # not ours, or read-only: the next start reads it again
        pass


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _checksum(parts: list[np.ndarray]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.data)
    return digest.digest()


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
