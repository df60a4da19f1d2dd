"""Remote files, downloaded once: over HTTP, from S3, Google's storage, and wherever fsspec reaches."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import urllib.request
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from jaxft.data import files
from jaxft.data.kept_files import keep, kept_folder, place_of

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.")
_WEB = ("http", "https")
# What pyarrow reaches by itself, with the usual credentials; the names of its extras are fsspec's.
_ARROW = {"s3": "s3", "gs": "gs", "gcs": "gs", "abfs": "abfs", "abfss": "abfss"}
_BLOCK = 1 << 20
_PATIENCE = 60.0  # seconds without a byte
_LONGEST = 100  # of the name of a kept file
_TWICE = 1 << 28  # bytes that may be read again where there is no checksum


class _Remote(NamedTuple):
    """size: in bytes, where it is known. version: changes when the file does. blocks: of its bytes.

    checksum: see `checksum`. again: the bytes once more.
    """

    size: int | None
    version: str
    blocks: Iterator[bytes]
    checksum: str | None = None
    again: Callable[[], Iterator[bytes]] = lambda: iter(())


def is_remote(spec: str) -> bool:
    """Whether it is an address, such as 's3://bucket/train.csv'."""
    return _ADDRESS.match(spec) is not None


def downloaded(address: str, cache: str | None) -> tuple[Path, tuple[str, ...]]:
    """The file of this address on the disk, and notes on it.

    It is downloaded where what the server says of it (its size, ETag or time) is not that of an earlier
    download. Where the server cannot be reached, what was downloaded last is taken, with a note.

    cache: folder in which it is kept; None: in the user's own cache.

    Raises ValueError: it is not there, or not to be had; the download ended early; no room on the disk.
    """
    shown, folder = without_secrets(address), kept_folder(cache)
    name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(address).path).rpartition("/")[2])[-_LONGEST:]
    record = place_of(folder, ("address", address), "version.json")
    with contextlib.closing(_blocks(address)) as found:
        try:
            remote = next(found)
        except _UNREACHED as error:
            if (path := _earlier(folder, address, record, name)) is None:
                raise ValueError(f"{shown}: cannot be downloaded ({_why(error)})") from None
            why = f"not reached ({_why(error)}); what was downloaded before is used"
            return path, (f"{shown}: {why}",)
        path = place_of(folder, ("downloaded", address, remote.version), name or "data")
        if path.exists():
            return path, ()
        keep(path, _whole(remote, shown), f"downloading {shown}")
        keep(record, [json.dumps(remote.version).encode()], f"downloading {shown}")
    size = f"{path.stat().st_size / 1e6:,.1f} MB"
    return path, (f"{shown}: downloaded, {size}, and kept in {str(path.parent)!r}",)


# (Of the libraries behind fsspec, each with errors of its own, those that follow Python's.)
_UNREACHED = (OSError, http.client.HTTPException)


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None)  # of urllib: the error of the operating system
    return files.first_line(reason if isinstance(reason, Exception) else error)


def without_secrets(address: str) -> str:
    """Without user, password and query, in which keys may be."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _earlier(folder: Path, address: str, record: Path, name: str) -> Path | None:
    try:
        version = str(json.loads(record.read_bytes()))
    except (OSError, ValueError):
        return None
    path = place_of(folder, ("downloaded", address, version), name or "data")
    return path if path.exists() else None


def _whole(remote: _Remote, shown: str) -> Iterator[bytes]:
    count, why = 0, ""
    try:
        for block in verified(remote.blocks, remote.checksum, remote.again):
            count += len(block)
            yield block
    except _UNREACHED as error:
        why = f" ({_why(error)})"
    if why or (remote.size is not None and count != remote.size):
        of = f" of {remote.size:,}" if remote.size is not None else ""
        raise ValueError(f"{shown}: the download ended after {count:,}{of} bytes{why}; start again")


def _blocks(address: str) -> Generator[_Remote, None, None]:
    """One `_Remote`, which can be read as long as this is not closed."""
    if urlsplit(address).scheme.lower() in _WEB:
        with urllib.request.urlopen(address, timeout=_PATIENCE) as response:
            said = response.headers
            size = said.get("Content-Length", "")
            version = [said.get("ETag"), said.get("Last-Modified"), size]
            yield _Remote(
                int(size) if size.isdigit() else None, json.dumps(version), _read(response)
            )
        return
    system, path = filesystem(address)
    info = _sure_info(system, path)
    if info["type"] != "file":
        raise ValueError(f"{without_secrets(address)}: a folder; name the files in it")
    version = [
        str(info.get(key)) for key in ("size", "etag", "ETag", "mtime", "created", "updated")
    ]
    with _opened(system, path) as file:
        yield _Remote(
            info.get("size"), json.dumps(version), _read(file),
            checksum(system, path, info.get("size") or 0), lambda: read(system, path),
        )  # fmt: skip


def checksum(system: Any, path: str, size: int) -> str | None:
    """What should be the MD5 of a file's bytes, in hexadecimal, if they are to be held against one.

    Of an object of S3 that was written in one piece it is the ETag, unless it is encrypted by a key of KMS.
    '': it is not known, so two readings are to be compared; None: of other stores, and of what is too large
    to be read twice.
    """
    arrow: Any = getattr(system, "fs", None)
    if getattr(arrow, "type_name", "") != "s3":
        return None
    etag = ""
    for _ in range(3):  # none may be of an answer that was cut off
        with arrow.open_input_stream(path) as file:
            etag = etag or (file.metadata() or {}).get(b"ETag", b"").decode().strip('"')
    if re.fullmatch("[0-9a-f]{32}", etag):
        return etag
    return "" if size <= _TWICE else None


def verified(
    blocks: Iterable[bytes], checksum: str | None, again: Callable[[], Iterable[bytes]]
) -> Iterator[bytes]:
    """The blocks, whose MD5 is held against the checksum, and where that differs against a second reading.

    pyarrow fills up with whatever is in memory what an answer lacks that was cut off in its header.

    Raises OSError: the two readings differ.
    """
    digest = hashlib.md5(usedforsecurity=False)
    for block in blocks:
        digest.update(block)
        yield block
    if checksum is not None and digest.hexdigest() != checksum:
        second = hashlib.md5(usedforsecurity=False)
        for block in again():
            second.update(block)
        if second.digest() != digest.digest():
            raise OSError("two readings of it differ")


def _sure_info(system: Any, path: str) -> Any:
    """What is said of a file twice: pyarrow takes an answer that was cut off for one of a file of 0 bytes."""
    found, again = system.info(path), system.info(path)
    if found != again:
        raise OSError("two answers about it differ; start again")
    return found


def read(system: Any, path: str) -> Iterator[bytes]:
    """The blocks of a file in a file system of fsspec, from its first to its last."""
    with _opened(system, path) as file:
        yield from _read(file)


def _opened(system: Any, path: str) -> Any:
    """To be read from the first byte to the last."""
    # A file of pyarrow's in which one can seek may ask Google's storage again as it is closed, with the
    # GIL held for as long as the answer takes.
    arrow = hasattr(getattr(system, "fs", None), "type_name")
    return system.open(path, "rb", **({"seekable": False} if arrow else {}))


def _read(file: Any) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block


def filesystem(address: str) -> tuple[Any, str]:
    """(a file system of fsspec, the path in it).

    Raises ValueError: no such kind of storage, or its library is not installed.
    """
    import fsspec
    import pyarrow
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem

    scheme = urlsplit(address).scheme.lower()
    try:
        if scheme in _ARROW:
            found = _ARROW[scheme] + address[len(scheme) :]
            if found.startswith("gs:") and "retry_limit_seconds" not in found:
                # Left to itself it tries for a quarter of an hour.
                found += f"{'&' if '?' in found else '?'}retry_limit_seconds={_PATIENCE:.0f}"
            system, path = FileSystem.from_uri(found)
            return ArrowFSWrapper(system), path
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError, pyarrow.ArrowException) as error:
        raise ValueError(f"{without_secrets(address)}: {_why(error)}") from None


def matching(pattern: str) -> list[str]:
    """The addresses that a pattern stands for ('s3://bucket/part-*.parquet'), sorted.

    Raises ValueError: over HTTP, where nothing can be listed; there are none.
    """
    shown = without_secrets(pattern)
    if urlsplit(pattern).scheme.lower() in _WEB:
        raise ValueError(f"{shown}: files of a web server cannot be listed; name each")
    system, path = filesystem(pattern)
    try:
        # Left to itself it takes a folder that cannot be listed for an empty one.
        found = sorted(system.glob(path, on_error="raise"))
    except FileNotFoundError:
        found = []
    except _UNREACHED as error:
        raise ValueError(f"{shown}: cannot be listed ({_why(error)})") from None
    if not found:
        raise ValueError(f"{shown}: no file has such a name")
    return [_as_given(system.unstrip_protocol(one), pattern) for one in found]


def _as_given(address: str, pattern: str) -> str:
    """With the scheme, the account and the server that the pattern names."""
    given = urlsplit(pattern)
    account, at, _ = given.netloc.rpartition("@")
    query = f"?{given.query}" if given.query else ""
    return f"{given.scheme}://{account}{at}{address.partition('://')[2]}{query}"
