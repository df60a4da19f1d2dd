"""Small files of a checkpoint, which may hold anything: an error is one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_text(file: Path) -> str | None:
    """UTF-8 text; None if there is no such file.

    Raises ValueError for a directory, a named pipe (which would be waited for) or a device, for an
    empty file and for other bytes than UTF-8.
    """
    if not check_regular(file):
        return None
    data = file.read_bytes()
    if not data.strip():
        raise ValueError(f"{file}: the file is empty")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: byte {error.start} is not UTF-8") from None


def read_object(file: Path) -> dict[str, Any] | None:
    """A JSON object; None if there is no such file. Raises ValueError as `read_text` does."""
    text = read_text(file)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"{file}: not readable JSON (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"{file}: not readable JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file}: it must hold a JSON object, not a {type(value).__name__}")
    return value


def check_regular(file: Path) -> bool:
    """Whether the file exists; raises ValueError if it does but is no regular file."""
    if file.exists() and not file.is_file():
        raise ValueError(f"{file}: not a regular file")
    return file.exists()
