"""metrics.jsonl: one JSON object per line, appended; a process may die in the middle of a line."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
# What rows of each kind have besides 'kind' and 'step'; numbers must be finite, the others text.
_NUMBERS: dict[str, tuple[str, ...]] = {
    "train": ("epoch", "loss", "learning_rate", "grad_norm", "seconds"),
    "eval": ("epoch", "seconds"),
    "event": (),
}
_TEXTS: dict[str, tuple[str, ...]] = {"train": (), "eval": ("split",), "event": ("name", "message")}


class RowFile:
    """Appends rows. A row is in the file when `write` returns.

    Args:
      path: the file; created if missing.
      after: rows of later steps are removed first (see `truncate_after`).

    Attributes:
      kept: the rows that were there and stay.
      copy: of the file as it was, where it held lines that are no rows; else None.

    Raises:
      ValueError: `path` is there and no file.
      OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, *, after: int):
        self._path = path
        self.kept, self.copy = truncate_after(path, after)
        # Unbuffered: a buffer that could not be written would raise once more when it is closed.
        self._file = open(path, "ab", buffering=0)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row.

        Raises:
          OSError: the file cannot be written.
        """
        line = memoryview((json.dumps(row, allow_nan=False) + "\n").encode())
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise unwritable(error, self._path) from error

    def close(self) -> None:
        """Nothing is pending: only the file handle is given back."""
        self._file.close()


def read_rows(path: Path) -> list[Row]:
    """Rows of a JSON-lines file; [] without a file. A line that is cut short is left out."""
    return list(each_row(path))


def each_row(path: Path) -> Iterator[Row]:
    """What `read_rows` returns, one after the other."""
    try:
        file = path.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # nested without end, or a number of 10,000 digits
                continue
            if isinstance(row, dict):
                yield row


def read_metrics(path: Path) -> list[Row]:
    """Rows of metrics.jsonl of a known kind, with their step; whatever else is there is left out."""
    return [row for row in read_rows(path) if _is_of_a_kind(row)]


def truncate_after(path: Path, step: int) -> tuple[list[Row], Path | None]:
    """Remove the rows of steps after `step`, and a half-written last line.

    So are those of the test, of whatever step: it is the last thing that a run does, and is done again.
    The file is replaced whole or not at all. Where it holds anything else that is no row of metrics,
    a copy of it as it was is made first, since that is somebody's.

    Returns:
      The rows that are left, and the path of the copy or None.
    """
    check_is_file(path)
    if not path.exists():
        return [], None
    lines = path.read_bytes().split(b"\n")
    rows = [_parse(line) for line in lines]
    kept = [i for i, row in enumerate(rows) if row is not None and _stays(row, step)]
    others = [line for line, row in zip(lines, rows, strict=True) if row is None and line.strip()]
    if others[-1:] == lines[-1:] and _is_cut_short(lines[-1]):
        others.pop()
    copy = _free_name(path.with_name(path.name + ".damaged")) if others else None
    try:
        if copy is not None:
            shutil.copyfile(path, copy)
    except OSError as error:
        raise unwritable(error, path) from error
    _replace(path, b"".join(lines[i] + b"\n" for i in kept))
    return [row for i in kept if (row := rows[i]) is not None], copy


def replace_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Make these the file's only rows; whole or not at all.

    Raises:
      OSError: it cannot be written.
    """
    _replace(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".tmp")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        raise unwritable(error, path) from error


def check_is_file(path: Path) -> None:
    """That nothing but a file stands at `path`: opening a named pipe would wait for ever.

    Raises:
      ValueError: a directory, a pipe or a device does.
    """
    if path.exists() and not path.is_file():
        raise ValueError(
            f"{path} is in the way, it is no file; move it, then give the same command"
        )


def _stays(row: Row, step: int) -> bool:
    return row["step"] <= step and not (row["kind"] == "eval" and row["split"] == "test")


def _parse(line: bytes) -> Row | None:
    """The row of a line; None if it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested without end
        return None
    return row if isinstance(row, dict) and _is_metrics_row(row) else None


def _is_of_a_kind(row: Row) -> bool:
    kind, step = row.get("kind"), row.get("step")
    if not isinstance(kind, str) or kind not in _TEXTS or type(step) is not int or step < 0:
        return False
    return all(isinstance(row.get(name), str) for name in _TEXTS[kind])


def _is_metrics_row(row: Row) -> bool:
    return _is_of_a_kind(row) and all(_is_finite(row.get(name)) for name in _NUMBERS[row["kind"]])


def _is_finite(value: Any) -> bool:
    # Not every int of a JSON file can become a float.
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _is_cut_short(line: bytes) -> bool:
    """Whether a process that died while it wrote a row can have left this at the file's end."""
    return line.startswith(b'{"kind": "') or b'{"kind": "'.startswith(line)


def _free_name(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number, free = number + 1, path.with_name(f"{path.name}-{number + 1}")
    return free


def unwritable(error: OSError, path: Path) -> OSError:
    """The error again, saying which file, why, and what to do."""
    advice = (
        "; free some space, then the same command continues" if error.errno == errno.ENOSPC else ""
    )
    reason = os.strerror(error.errno or 0).lower()
    return OSError(error.errno, f"cannot write {path}: {reason}{advice}")
