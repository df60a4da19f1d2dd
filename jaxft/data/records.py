"""Records of a text file that may be larger than memory: read by where each begins, a few at a time."""

from __future__ import annotations

import os
import weakref
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

# Files are read once and kept as long as all together are no larger: what is edited later then changes
# nothing, and no record costs a system call. Of another one only where its records begin is kept.
KEPT = 1 << 28
_MARK = b"\xef\xbb\xbf"  # of UTF-8
_BLOCK = 1 << 20  # read at a time when a file is read from end to end
_GAP = 1 << 14  # bytes between two wanted records that are read rather than passed over

# (UTF-32 first: its little-endian mark begins with that of UTF-16.)
_OTHER_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)  # fmt: skip


_in_memory: weakref.WeakSet[FileBytes] = weakref.WeakSet()


class FileBytes:
    """The bytes of a regular file, for any thread.

    Attributes:
      name: of the file, for messages.
      size: in bytes.
      begin: where the text begins: after the byte order mark of UTF-8, if there is one.
      kept: all of its bytes, where they are in memory.
    """

    def __init__(self, path: Path):
        """Raises OSError."""
        self.name = path.name
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        close = weakref.finalize(self, os.close, self._file)
        self._known = self._state()
        self.size = self._known[0]
        self.kept: bytes | None = None
        if sum(file.size for file in list(_in_memory)) + self.size <= KEPT:
            self.kept = self._from_file(0, self.size)
            _in_memory.add(self)
            close()  # of a thousand files, so many may not be open
        self.begin = len(_MARK) if self.read(0, len(_MARK)) == _MARK else 0

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` on, before `stop` and the file's end.

        Raises ValueError: the file is no longer what it was when it was opened.
        """
        stop = min(stop, self.size)
        return self._from_file(start, stop) if self.kept is None else self.kept[start:stop]

    def check(self) -> None:
        """Raises ValueError: the file is no longer what it was, and was not kept."""
        if self.kept is None and self._state() != self._known:
            raise ValueError(f"{self.name}: the file was changed while it was in use")

    def lines(self) -> Iterator[bytes]:
        r"""The lines of the text, each with its end: \n, \r\n or \r."""
        position, rest = self.begin, b""
        while position < self.size:
            # As much again as the line that did not end, or long lines would take quadratic time.
            block = self.read(position, position + max(_BLOCK, len(rest)))
            position += len(block)
            found = (rest + block).splitlines(keepends=True)
            rest = found.pop()  # goes on in the next block, be it with the \n of a \r\n
            yield from found
        if rest:
            yield rest

    def _from_file(self, start: int, stop: int) -> bytes:
        parts = []
        while start < stop and (part := os.pread(self._file, stop - start, start)):
            parts.append(part)
            start += len(part)
        if start < stop:
            raise ValueError(f"{self.name}: the file was changed while it was in use")
        self.check()
        return b"".join(parts)

    def _state(self) -> tuple[int, int]:
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns


def check_encoding(file: FileBytes) -> None:
    """ValueError for another encoding that the first bytes give away."""
    for mark, name in _OTHER_MARKS:
        if file.read(0, len(mark)) == mark:
            raise ValueError(
                f"{file.name}: the file is {name}; save it as UTF-8, for example: "
                f"iconv -f {name} -t UTF-8 {file.name}"
            )


# What can be done about a record that cannot be read.
MEND = "mend it, or leave it out by config.data.on_bad_row='skip'"


def left_out(name: str, lines: Sequence[int]) -> tuple[str, ...]:
    """The note on records that are left out, by the lines of the file in which they begin."""
    if not len(lines):
        return ()
    shown = ", ".join(map(str, lines[:5])) + ", …" * (len(lines) > 5)
    what = "1 record that cannot" if len(lines) == 1 else f"{len(lines)} records that cannot"
    return (f"{name}: {what} be read left out (line{'s' * (len(lines) > 1)} {shown})",)


class Lines:
    """The lines of a file as texts, each with its end.

    Attributes:
      position: where the next line begins.
      number: of the line that was given last, from 1.

    Raises ValueError, naming the line: bytes that are not UTF-8, a NUL byte.
    """

    def __init__(self, file: FileBytes):
        self.file, self.position, self.number = file, file.begin, 0

    def __iter__(self) -> Iterator[str]:
        for line in self.file.lines():
            self.position += len(line)
            self.number += 1
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{self._where()}: byte 0x{line[error.start]:02x} is not UTF-8; save the file as "
                    f"UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 {self.file.name}"
                ) from None
            if "\0" in text:
                raise ValueError(
                    f"{self._where()}: a NUL byte; the file is damaged, or no text in UTF-8"
                )
            yield text

    def _where(self) -> str:
        return f"{self.file.name}, line {self.number}"


class Records:
    """Where the records of a file are: 8 bytes each, 16 where some are not one line long.

    `add` is called for each in order, and `end` after the last; then there are

    starts [n + 1] int64: record i is the bytes starts[i] to starts[i + 1].
    lines [n]: the line of the file in which each begins.
    """

    def __init__(self, file: FileBytes):
        self.file = file
        self._starts, self._lines = array("q"), array("q")
        self.starts = np.zeros(1, np.int64)
        self.lines: Sequence[int] | np.ndarray = ()

    def __len__(self) -> int:
        return len(self.starts) - 1

    def add(self, start: int, line: int) -> None:
        """A record that begins at the byte `start`, in this line of the file."""
        self._starts.append(start)
        self._lines.append(line)

    def end(self) -> None:
        """There are no more: the last one goes on to the end of the file."""
        self._starts.append(self.file.size)
        self.starts = np.frombuffer(self._starts, np.int64)
        lines, self._lines = self._lines, array("q")
        together = lines and lines[-1] - lines[0] == len(lines) - 1
        self.lines = range(lines[0], lines[-1] + 1) if together else lines

    def places(self) -> dict[str, np.ndarray]:
        """What `Records.at` takes: 'starts', and 'lines', of which one says all if they are consecutive."""
        lines = self.lines[:1] if isinstance(self.lines, range) else self.lines
        return {"starts": self.starts, "lines": np.array(lines, np.int64)}

    @classmethod
    def at(cls, file: FileBytes, places: Mapping[str, np.ndarray]) -> Records:
        """The records of a file of which the places are known."""
        records, lines = cls(file), places["lines"]
        records.starts = places["starts"]
        together = len(lines) == 1
        records.lines = range(lines[0], lines[0] + len(records)) if together else lines
        return records

    def read(self, rows: np.ndarray) -> bytes:
        """The records of `rows` [k] int64, one after the other, each with a line end."""
        # The last record of a file may lack its line end.
        return b"".join(
            part if part[-1:] in (b"\n", b"\r") else part + b"\n" for part in self.each(rows)
        )

    def each(self, rows: np.ndarray) -> list[bytes]:
        """The records of `rows` [k] int64."""
        first, past = self.starts[rows], self.starts[rows + 1]
        apart = (first[1:] < past[:-1]) | (first[1:] - past[:-1] > _GAP)
        ends = [*(np.flatnonzero(apart) + 1).tolist(), len(rows)]
        found, begin = [], 0
        for end in ends:
            base = int(first[begin])
            data = self.file.read(base, int(past[end - 1]))
            cuts = zip(
                (first[begin:end] - base).tolist(), (past[begin:end] - base).tolist(), strict=True
            )
            found += [data[a:b] for a, b in cuts]
            begin = end
        return found
