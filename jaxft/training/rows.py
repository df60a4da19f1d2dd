"""metrics.jsonl: one JSON object a line, appended; a process may die in the middle of a line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class RowFile:
    """Appends rows. A row is in the file when `write` returns.

    Args:
      path: the file; created if missing.
      after: rows of later steps are removed first (see `truncate_after`).

    Attributes:
      kept: the rows that were there and stay.
    """

    def __init__(self, path: Path, *, after: int):
        self._path = path
        self.kept = truncate_after(path, after)
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
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def truncate_after(path: Path, step: int) -> list[Row]:
    """Remove the rows of steps after `step`, and a half-written last line; returns what is left.

    The file is replaced whole or not at all.
    """
    rows = [row for row in read_rows(path) if row["step"] <= step]
    if path.exists():
        beside = path.with_name(path.name + ".tmp")
        try:
            beside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            os.replace(beside, path)
        except OSError as error:
            raise unwritable(error, path) from error
    return rows


def unwritable(error: OSError, path: Path) -> OSError:
    """The error again, saying which file, why, and what to do."""
    advice = (
        "; free some space, then the same command continues" if error.errno == errno.ENOSPC else ""
    )
    reason = os.strerror(error.errno or 0).lower()
    return OSError(error.errno, f"cannot write {path}: {reason}{advice}")
