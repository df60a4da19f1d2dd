"""Compressed files: unpacked once, so that rows can be read in any order."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from jaxft.data import files
from jaxft.data.kept_files import keep, kept_folder, place_of

SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
_BLOCK = 1 << 20


def unpacked(path: Path, cache: str | None) -> Path:
    """The unpacked file, which has the name without `.gz` (`.bz2`, `.xz`, `.zst`).

    cache: folder in which it is kept, under a hash of all of the compressed file's bytes; None: in the
      user's own cache.

    Raises ValueError: damaged, cut, not compressed in this way; the disk has too little room; an archive
    of several files.
    """
    name = path.with_suffix("").name
    if Path(name).suffix.lower() in ARCHIVES:
        raise refused(path)
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    found = place_of(kept_folder(cache), ("unpacked", digest.hexdigest()), name)
    if not found.exists():
        keep(found, _blocks(path), f"unpacking {path.name}")
    return found


def refused(path: Path) -> ValueError:
    """What to say of an archive."""
    return ValueError(
        f"{path.name}: an archive of several files; unpack it, and name the files that are wanted"
    )


def _blocks(path: Path) -> Iterator[bytes]:
    import pyarrow

    if not path.stat().st_size:
        raise ValueError(f"{path.name}: the file is empty")
    try:
        with path.open("rb") as packed, _opened(packed, path.suffix.lower()) as file:
            while block := file.read(_BLOCK):
                yield block
    except (EOFError, OSError, lzma.LZMAError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"{path.name}: damaged, or not compressed as its name says ({files.first_line(error)})"
        ) from None


def _opened(packed: BinaryIO, suffix: str) -> Any:
    if suffix == ".zst":  # which Python's own library has from 3.14 on
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.PythonFile(packed), "zstd")
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return openers[suffix](packed)
