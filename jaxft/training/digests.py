"""Checksums of a checkpoint's files: made before it becomes visible, checked before it is read.

digests.json in the step's directory holds size and SHA-256 of each file, and a SHA-256 of that list.
Files rather than arrays, because then the library's own metadata is covered as well, nothing depends on how
arrays are laid out over devices and processes, and hashing happens in the thread that writes: 0.8 s of
one core per GB, where Orbax takes 5 s to compress and write it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

NAME = "digests.json"
# In Orbax's metadata of a step: says that there must be a digests.json, also when it is gone.
MARK = {"digests": NAME}
# Orbax writes these two after its last callback, together with the rename that makes a step visible.
_LAST = ("_CHECKPOINT_METADATA", "commit_success.txt")
_MISSING = "is missing"
_THREADS = 4  # hashing leaves the interpreter's lock

Digests = dict[str, tuple[int, str]]


def write(folder: Path) -> None:
    """Write digests.json for all files below `folder`, whole or not at all.

    Raises:
      OSError: a file cannot be read, or digests.json not be written.
    """
    paths = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    names = sorted(name for name in paths if name not in (NAME, f"{NAME}.tmp", *_LAST))
    with ThreadPoolExecutor(_THREADS) as pool:
        _store(
            folder, dict(zip(names, pool.map(lambda n: _digest(folder / n), names), strict=True))
        )


def seal(folder: Path) -> str:
    """Add the files that were written with the commit itself; returns what is missing, or ''.

    A kill before it leaves a checkpoint whose arrays are covered and those two files are not, which
    is restored like any other.
    """
    try:
        known = read(folder)
    except ValueError as error:
        return str(error)
    if known is None:
        return f"{NAME} is missing"
    for name, (size, _) in known.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or incomplete"
    present = [name for name in _LAST if (folder / name).is_file()]
    _store(folder, known | {name: _digest(folder / name) for name in present})
    return ""


def read(folder: Path) -> Digests | None:
    """What digests.json says; None for a checkpoint of an earlier version, which has none.

    Raises:
      ValueError: it is damaged, or is missing where it was written.
      OSError: it cannot be read.
    """
    if wrong := _not_a_file(folder / NAME):
        if wrong == _MISSING and not _is_marked(folder):
            return None
        raise ValueError(f"{NAME} {wrong}")
    text = (folder / NAME).read_bytes()
    try:
        content = json.loads(text)
        files: Mapping[str, Any] = content["files"]
        if content["sha256"] != _of_list(files) or text != _text(files):
            raise ValueError
        return {name: (int(size), str(digest)) for name, (size, digest) in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{NAME} has changed since it was written") from None


def check(
    folder: Path, digests: Digests, parts: Collection[str], *, share: tuple[int, int] = (0, 1)
) -> str:
    """What is wrong with the files of some parts of a checkpoint: the first in order, or ''.

    Args:
      folder: the step's directory.
      digests: what `read` gives.
      parts: names of its folders; files that lie in none are always checked.
      share: (number of this process, how many share the work).
    """
    names = sorted(n for n in digests if "/" not in n or n.split("/")[0] in parts)
    found = {name: _wrong_size(folder / name, digests[name][0]) for name in names}
    # Hashing is what takes time: the large ones first, so that processes have like amounts.
    rest = sorted((n for n in names if not found[n]), key=lambda n: (-digests[n][0], n))
    mine = rest[share[0] :: share[1]]
    with ThreadPoolExecutor(_THREADS) as pool:
        wrong = pool.map(lambda n: _wrong_content(folder / n, digests[n][1]), mine)
        found.update(zip(mine, wrong, strict=True))
    return next((f"{name} {words}" for name, words in found.items() if words), "")


def _wrong_size(path: Path, size: int) -> str:
    if wrong := _not_a_file(path):
        return wrong
    found = path.stat().st_size
    return "" if found == size else f"has {found} bytes instead of {size}"


def _wrong_content(path: Path, digest: str) -> str:
    try:
        found = _digest(path)[1]
    except OSError as error:
        return f"cannot be read: {os.strerror(error.errno or 0).lower()}"
    return "" if found == digest else "has changed since it was saved"


def _digest(path: Path) -> tuple[int, str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return os.fstat(file.fileno()).st_size, digest


def _not_a_file(path: Path) -> str:
    """Why there is no file at `path`, or ''. Opening a named pipe would wait for ever."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _MISSING
    return "" if stat.S_ISREG(mode) else "is no file"


def _is_marked(folder: Path) -> bool:
    try:
        metadata = json.loads((folder / _LAST[0]).read_bytes())
        return metadata["custom_metadata"]["digests"] == NAME
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _of_list(files: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _text(files: Mapping[str, Any]) -> bytes:
    content = {"files": files, "sha256": _of_list(files)}
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _store(folder: Path, digests: Digests) -> None:
    beside = folder / f"{NAME}.tmp"
    beside.write_bytes(_text({name: list(value) for name, value in digests.items()}))
    os.replace(beside, folder / NAME)
