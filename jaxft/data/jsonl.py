"""JSONL files: one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data.files import Source
from jaxft.data.records import FileBytes, Records


def read_jsonl(path: Path) -> Source:
    """A file of one JSON object per line. A key that a row lacks is None there, and so is NaN.

    Every line is parsed once now, and again when it is read; only where it begins is kept.

    Raises ValueError, naming the line, for what is not a JSON object or not UTF-8, for a key that an
    object has twice, and for what Python cannot hold (100,000 nested lists, an integer of 5,000
    digits).
    """
    file = FileBytes(path)
    records = Records(file)
    names: dict[str, None] = {}
    start = file.begin
    for number, line in enumerate(file.lines(), start=1):
        if line.strip():
            row = _json_object(f"{path.name}, line {number}", line)
            if not row.keys() <= names.keys():
                names.update(dict.fromkeys(row))
            records.add(start, number)
        start += len(line)
    records.end()
    if not records:
        raise ValueError(f"{path.name}: the file is empty")
    if not names:
        raise ValueError(f"{path.name}: the objects have no keys")

    def read(columns: Sequence[str], rows: np.ndarray) -> list[Sequence[Any]]:
        lines = records.read(rows).splitlines()
        found = [_JSON.decode(line.decode()) for line in lines if line.strip()]
        return [[row.get(column) for row in found] for column in columns]

    return Source(path.name, tuple(names), len(records), read, lines=records.lines)


def _json_object(where: str, line: bytes) -> dict[str, Any]:
    try:
        row = _JSON.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        mark = " (the file is UTF-16)" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise ValueError(
            f"{where}: byte 0x{line[error.start]:02x} is not UTF-8{mark}; save the file as UTF-8, "
            "for example by iconv -t UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError(f"{where}: the JSON is nested too deeply to be read") from None
    except ValueError as error:  # a key twice, an integer of thousands of digits
        raise ValueError(f"{where}: {str(error).partition(';')[0]}") from None
    if not isinstance(row, dict):
        raise ValueError(
            f"{where}: a {type(row).__name__}, where each line must be "
            'an object like {"text": "...", "label": "..."}'
        )
    for key in row:
        if not key.isascii() and any("\ud800" <= c <= "\udfff" for c in key):
            raise ValueError(f"{where}: the key {ascii(key)} holds half of a surrogate pair")
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"the object has {ascii(twice[0])} more than once")
    return row


# (One decoder: `json.loads` with these arguments would make one for each line, and take 1.8 x as long.)
_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=lambda _: None)
