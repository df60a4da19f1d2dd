"""Small files of a checkpoint, which may hold anything: what is wrong is one line that names the file."""

from __future__ import annotations

import json
import os
import re
import reprlib
import stat
from collections import Counter
from pathlib import Path
from typing import Any

# The config of 20,000 classes has 1.5 MB, the index of a model of 700 GB 10 MB, a tokenizer of 256,000
# tokens 35 MB.
_MOST_BYTES = 64 * 2**20
_DEEPEST = 50  # levels of JSON; a config has 3
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60


def brief(value: Any) -> str:
    """As repr, but one line of bounded length, whatever a file holds."""
    return _repr.repr(value)


def require_plain(path: str | Path) -> os.stat_result:
    """The status of a plain file or of a link to one; opening a pipe would wait for a writer.

    Raises:
      ValueError: it is something else.
      OSError: it is not there or cannot be looked at.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "special")
        raise ValueError(f"{path} is {kind}; a plain file is needed")
    return status


def read_text(path: str | Path) -> str | None:
    """Text in UTF-8; None where there is no such file.

    Raises:
      ValueError: no plain file, larger than 64 MiB, empty or not UTF-8. One line with path.
      OSError: it cannot be read.
    """
    try:
        text = _decoded(path, _bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not text.strip():
        raise ValueError(f"{path}: the file is empty")
    return text


def read_json(path: str | Path) -> Any:
    """A JSON file in UTF-8, without what another reader would read otherwise.

    Raises:
      ValueError: no plain file, larger than 64 MiB, not UTF-8, no JSON, a key twice in an object, half
        a surrogate pair in a string, or nested deeper than 50 levels. One line with path.
      OSError: it is not there or cannot be read.
    """
    data = _bytes(path)
    text = _decoded(path, data)
    try:
        if not text.strip():
            raise ValueError("the file is empty")
        value = json.loads(text, object_pairs_hook=_object)
        _check_depth(value)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{path} has half a surrogate pair (\\ud800 to \\udfff) in it") from None
    except RecursionError:
        raise ValueError(f"{path} is nested deeper than {_DEEPEST} levels") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    return value


def read_object(path: str | Path) -> dict[str, Any] | None:
    """The JSON object of a file; None where there is no such file.

    Raises:
      ValueError: as `read_json`, or it holds something else than an object.
      OSError: it cannot be read.
    """
    try:
        value = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value


def _bytes(path: str | Path) -> bytes:
    size = require_plain(path).st_size
    if size > _MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; at most {_MOST_BYTES:,} are read")
    with open(path, "rb") as file:
        return file.read()


def _decoded(path: str | Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.start} is {data[error.start]:#x}"
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {brief(twice)} stands twice in one object")
    return found


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise RecursionError
