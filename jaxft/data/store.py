"""A folder of another machine's storage: listed, read, written and removed, with bounded retries.

S3, Google's storage and whatever else `remote.filesystem` reaches. Nothing is renamed there, since such a
store cannot; a file appears when all of it has arrived, so what several of them mean together is up to the
order in which they are written (see `experiment/mirror.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from jaxft.data import files, remote

T = TypeVar("T")

# Seconds between attempts, beside the library's own of a second or so: two minutes in all.
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0)
_BLOCK = 1 << 22
# What no waiting mends: the words of S3, of Google's storage and of the libraries in between.
_HOPELESS = re.compile(
    r"ACCESS.?DENIED|NO.?SUCH.?BUCKET|InvalidAccessKey|SignatureDoesNotMatch|Forbidden|Bucket .*not found"
    r"|PermissionDenied|UNAUTHENTICATED|InvalidBucketName|NOT_FOUND: Permanent.*CreateResumableUpload",
    re.IGNORECASE,
)


class StoreError(OSError):
    """The store cannot be reached, or refuses; one line."""


@dataclasses.dataclass(frozen=True)
class Store:
    """See `open_store`.

    Attributes:
      shown: its address as messages say it.
      system: a file system of fsspec.
      root: the folder in it.
      waits: seconds between the attempts of each operation.
    """

    shown: str
    system: Any
    root: str
    waits: tuple[float, ...] = WAITS

    def files(self, below: str = "") -> dict[str, int]:
        """Size of each file by its name, whose first letters are those of a folder `below`."""
        return self._listed(below, lambda info: int(info["size"] or 0))

    def versions(self) -> dict[str, list[str]]:
        """Of each file its size, and what else changes when it does."""
        keys = ("size", "etag", "ETag", "mtime", "updated")
        return self._listed("", lambda info: [str(info.get(key) or "") for key in keys])

    def checksum(self, name: str, size: int) -> str | None:
        """See `remote.checksum`."""
        return self._tried(
            lambda: remote.checksum(self.system, self._path(name), size), f"read {name}"
        )

    def blocks(self, name: str, size: int) -> Iterator[bytes]:
        """All of a file of so many bytes; where reading breaks off, it goes on from there."""
        done, file = 0, None

        def block() -> bytes:
            nonlocal file
            try:
                if file is None:
                    file = self.system.open(self._path(name), "rb")
                    if done:
                        file.seek(done)
                expected = min(_BLOCK, size - done)
                if len(found := file.read(expected)) == expected:
                    return found
                raise OSError(f"{done + len(found):,} of {size:,} bytes arrived")
            except BaseException:
                _close(file)
                file = None
                raise

        try:
            while done < size:
                found = self._tried(block, f"read {name}")
                done += len(found)
                yield found
        finally:
            _close(file)

    def read(self, name: str) -> bytes | None:
        """All of a small file; None: it is not there."""

        def content() -> bytes | None:
            try:
                return self.system.cat_file(self._path(name))
            except FileNotFoundError:
                return None

        return self._sure(content, f"read {name}")

    def write(self, name: str, content: bytes) -> None:
        """A small file, whole or not at all."""
        self._tried(lambda: self._sent(iter([content]), len(content), name), f"write {name}")

    def upload(self, path: Path, name: str) -> None:
        """A file of this machine."""

        def sent() -> None:
            self._sent(_blocks(path), path.stat().st_size, name)

        self._tried(sent, f"write {name}")

    def download(self, name: str, path: Path) -> None:
        """Into a file of this machine, which is replaced."""

        size = self._sure(lambda: int(self.system.info(self._path(name))["size"]), f"read {name}")

        def fetched() -> None:
            with path.open("wb") as here:
                for block in remote.read(self.system, self._path(name)):
                    here.write(block)
            if path.stat().st_size != size:
                raise OSError(f"{path.stat().st_size:,} of {size:,} bytes arrived")

        path.parent.mkdir(parents=True, exist_ok=True)
        self._tried(fetched, f"read {name}")

    def remove(self, name: str) -> None:
        """Does nothing where there is no such file."""

        def gone() -> None:
            try:
                self.system.rm_file(self._path(name))
            except FileNotFoundError:
                pass

        self._tried(gone, f"remove {name}")

    def _sure(self, action: Callable[[], T], what: str) -> T:
        """What it gives twice in a row, and nothing at all if it does so three times.

        pyarrow takes the head of an answer that was cut off for an answer: of a listing it then gives no
        files, of a file no bytes, and no error.
        """
        found, seen = self._tried(action, what), 1
        for wait in (0.0, 0.0, *self.waits):
            time.sleep(wait)
            again = self._tried(action, what)
            found, seen = again, seen + 1 if again == found else 1
            if seen == (2 if found else 3):
                return found
        raise StoreError(f"{self.shown}: cannot {what} (no two answers were the same)")

    def _listed(self, below: str, told: Callable[[dict[str, Any]], T]) -> dict[str, T]:
        """What `told` makes of what is said of each file by its name; {} where there is no such folder."""
        folder = f"{self.root}/{below}".rstrip("/")
        cut = len(self.root.lstrip("/")) + 1

        def listed() -> dict[str, T]:
            self.system.invalidate_cache()
            try:
                found = _below(self.system, folder)
            except FileNotFoundError:
                return {}
            files = {path: info for path, info in found.items() if info["type"] == "file"}
            return {path.lstrip("/")[cut:]: told(info) for path, info in files.items()}

        return self._sure(listed, f"list {below or 'its files'}")

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _sent(self, blocks: Iterator[bytes], size: int, name: str) -> None:
        path = self._path(name)
        if "file" in self.system.protocol:  # a mounted one, whose folders must be there
            self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
        with self.system.open(path, "wb") as file:
            for block in blocks:
                file.write(block)
        self.system.invalidate_cache()
        if (found := self.system.info(path)["size"]) != size:
            raise OSError(f"{found:,} of {size:,} bytes arrived")

    def _tried(self, action: Callable[[], T], what: str) -> T:
        """`action`, again where it fails for a reason that may pass.

        Raises StoreError: it does not; nothing more was tried.
        """
        for wait in (*self.waits, None):
            try:
                return action()
            except FileNotFoundError as error:
                if error.filename is not None and os.path.isabs(str(error.filename)):
                    raise  # of this machine
                failure: Exception = error
            except (OSError, ValueError) as error:  # the second where an upload was lost midway
                failure = error
            if wait is None or _HOPELESS.search(str(failure)):
                break
            time.sleep(wait)
        again = f" after {len(self.waits) + 1} attempts" if wait is None else ""
        raise StoreError(f"{self.shown}: cannot {what}{again} ({files.first_line(failure)})")


def open_store(address: str, waits: tuple[float, ...] = WAITS) -> Store:
    """The folder at an address such as 's3://bucket/runs/mine'. Nothing is asked of it yet.

    Raises ValueError: no such kind of storage, or a library is missing; StoreError: of S3, where no region
    is given, the bucket's could not be found. One line.
    """
    shown = remote.without_secrets(address).rstrip("/")
    try:
        system, root = remote.filesystem(address)
    except OSError as error:
        raise StoreError(f"{shown}: cannot be reached ({files.first_line(error)})") from None
    return Store(shown, system, root.rstrip("/"), waits)


def _below(system: Any, folder: str) -> dict[str, dict[str, Any]]:
    """What is said of each file in a folder and its folders, by path."""
    # Here and not above: 30 ms, which a run without a store need not take.
    from pyarrow.fs import FileSelector, FileSystem, FileType

    # Pyarrow's own lists all in one request.
    if isinstance(getattr(system, "fs", None), FileSystem):
        # Of Google's storage it says that there is no folder by an error which may as well be of the network.
        lenient = system.fs.type_name == "gcs"
        selector = FileSelector(folder, allow_not_found=lenient, recursive=True)
        found = system.fs.get_file_info(selector)
        files = [info for info in found if info.type == FileType.File]
        return {f.path: {"type": "file", "size": f.size, "mtime": f.mtime} for f in files}
    # Left to itself it takes a folder that cannot be listed for an empty one.
    return system.find(folder, detail=True, on_error="raise")


def _close(file: Any) -> None:
    """What is wrong with a connection that is not needed any more does not matter."""
    with contextlib.suppress(OSError):
        if file is not None:
            file.close()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block
