"""JSONL files: one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data.files import Source
from jaxft.data.records import MEND, FileBytes, Records, left_out

SUFFIXES = (".jsonl", ".ndjson")
_NEAR = 20  # characters on each side of a mistake that are shown


def read_jsonl(path: Path, *, skip: bool = False) -> Source:
    """A file of one JSON object per line. A key that a row lacks is None there, and so is NaN.

    Every line is parsed once now, and again when it is read; only where it begins is kept.

    skip: what would be refused is left out instead; the source's notes say how much, and where.

    Raises ValueError, naming the line, for what is not a JSON object or not UTF-8, for a key that an
    object has twice, and for what Python cannot hold (100,000 nested lists, an integer of 5,000
    digits).
    """
    file = FileBytes(path)
    records = Records(file)
    names: dict[str, None] = {}
    broken: list[int] = []
    start = file.begin
    for number, line in enumerate(file.lines(), start=1):
        if line.strip():
            try:
                row = _json_object(f"{path.name}, line {number}", line)
            except ValueError as error:
                if not skip:
                    raise ValueError(f"{error}; {MEND}") from None
                broken.append(number)
            else:
                if not row.keys() <= names.keys():
                    names.update(dict.fromkeys(row))
                records.add(start, number)
        start += len(line)
    records.end()
    if not records:
        what = "no line is a JSON object" if broken else "the file is empty"
        raise ValueError(f"{path.name}: {what}")
    if not names:
        raise ValueError(f"{path.name}: the objects have no keys")

    def read(columns: Sequence[str], rows: np.ndarray) -> list[Sequence[Any]]:
        if broken:  # which stand behind the record before them
            lines = [raw.splitlines()[0] for raw in records.each(rows)]
        else:
            lines = records.read(rows).splitlines()
        found = [JSON.decode(line.decode()) for line in lines if line.strip()]
        return [[row.get(column) for row in found] for column in columns]

    return Source(
        path.name, tuple(names), len(records), read, lines=records.lines,
        notes=left_out(path.name, broken),
    )  # fmt: skip


def _json_object(where: str, line: bytes) -> dict[str, Any]:
    try:
        row = JSON.decode(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {what_is_wrong(error, line)}") from None
    check_row(where, row)
    return row


def what_is_wrong(error: Exception, data: bytes = b"") -> str:
    """What decoding `data` as UTF-8, and that as JSON by `JSON`, raised."""
    if isinstance(error, UnicodeDecodeError):
        mark = " (the file is UTF-16)" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        return (
            f"byte 0x{data[error.start]:02x} is not UTF-8{mark}; save the file as UTF-8, "
            "for example by iconv -t UTF-8"
        )
    if isinstance(error, json.JSONDecodeError):
        near = error.doc[max(error.pos - _NEAR, 0) : error.pos + _NEAR].strip("\r\n")
        return f"not JSON ({error.msg} at column {error.colno}, in {near!a})"
    if isinstance(error, RecursionError):
        return "the JSON is nested too deeply to be read"
    return str(error).partition(";")[0]  # a key twice, an integer of thousands of digits


def check_row(where: str, row: Any) -> None:
    """ValueError for what is no JSON object, or has a key that cannot be written."""
    if not isinstance(row, dict):
        raise ValueError(
            f"{where}: a {type(row).__name__}, where each row must be "
            'an object like {"text": "...", "label": "..."}'
        )
    for key in row:
        if not key.isascii() and any("\ud800" <= c <= "\udfff" for c in key):
            raise ValueError(f"{where}: the key {ascii(key)} holds half of a surrogate pair")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"the object has {ascii(twice[0])} more than once")
    return row


# (One decoder: `json.loads` with these arguments would make one for each line, and take 1.8 x as long.)
JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=lambda _: None)
