"""JSON files: a list of objects, or an object that holds one; SQuAD's nesting made rows."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data import files
from jaxft.data.files import Source, some
from jaxft.data.jsonl import JSON, check_row, read_jsonl, what_is_wrong
from jaxft.data.records import FileBytes, Records, check_encoding
from jaxft.data.squad import is_squad, squad_rows

_BLANK = re.compile(r"[ \t\r\n]*")
_FORMS = (
    'a JSON file holds a list of objects, [{"text": "..."}, ...], or an object with one such list'
)


def read_json(path: Path, *, skip: bool = False) -> Source:
    """The rows of a JSON file. A key that a row lacks is None there, and so is NaN.

    - A list of objects: a row each. Where they begin is kept, and they are parsed again when they are read;
      the whole text is in memory only now.
    - An object with one list of objects, whatever its key: the same, in memory.
    - SQuAD's form of these: rows of questions, see `squad.squad_rows`.
    - An object of columns: lists of one length, or (pandas' `to_json`) objects with the same keys.
    - An object on each line, which is JSONL: the source's notes say so. `skip` is as there.

    Raises ValueError, naming the line: anything else; what `read_jsonl` refuses in a row.
    """
    file = FileBytes(path)
    check_encoding(file)
    raw = file.read(file.begin, file.size)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path.name}, line {line}: {what_is_wrong(error, raw)}") from None
    del raw
    begin = _past_blanks(text, 0)
    if text[begin : begin + 1] == "[":
        return _from_list(file, text, begin + 1)
    if text[begin : begin + 1] != "{":
        what = f"begins with {text[begin : begin + 12]!r}" if text[begin:] else "is empty"
        raise ValueError(f"{path.name}: the file {what}; {_FORMS}")
    try:
        value, end = JSON.raw_decode(text, begin)
    except (ValueError, RecursionError) as error:
        raise ValueError(_said(file.name, error)) from None
    if _past_blanks(text, end) < len(text):
        source = read_jsonl(path, skip=skip)
        notes = (f"{path.name}: an object on each line, read as JSONL", *source.notes)
        return dataclasses.replace(source, notes=notes)
    return _from_object(path.name, value)


def _past_blanks(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position


def _said(name: str, error: Exception, row: int | None = None) -> str:
    where = name if row is None else f"{name}, row {row}"
    if isinstance(error, json.JSONDecodeError):
        where = f"{name}, line {error.lineno}" + ("" if row is None else f" (row {row})")
    return f"{where}: {what_is_wrong(error)}"


# A list


def _from_list(file: FileBytes, text: str, position: int) -> Source:
    """The rows of the list whose first item is behind `position`."""
    records, names, count = Records(file), dict[str, None](), 0
    byte, line, counted = file.begin, 1, 0
    position = _past_blanks(text, position)
    while text[position : position + 1] != "]" or count:
        count += 1
        try:
            row, end = JSON.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise ValueError(_said(file.name, error, count)) from None
        between = text[counted:position]
        byte += len(between) if between.isascii() else len(between.encode())
        line, counted = line + between.count("\n"), position
        check_row(f"{file.name}, line {line}", row)
        if not row.keys() <= names.keys():
            names.update(dict.fromkeys(row))
        records.add(byte, line)
        position = _past_blanks(text, end)
        if (mark := text[position : position + 1]) == "]":
            break
        if mark != ",":
            what = f"goes on with {text[position : position + 12]!r}" if mark else "ends"
            raise ValueError(
                f"{file.name}, line {line}: after row {count} the list {what}, where ',' or ']' belongs"
            )
        position = _past_blanks(text, position + 1)
    if rest := text[_past_blanks(text, position + 1) :]:
        raise ValueError(f"{file.name}: behind the list the file goes on with {rest[:12]!r}")
    records.end()
    if not count:
        raise ValueError(f"{file.name}: the list is empty")
    if not names:
        raise ValueError(f"{file.name}: the objects have no keys")

    def read(columns: Sequence[str], rows: np.ndarray) -> list[Sequence[Any]]:
        found = [JSON.raw_decode(raw.decode())[0] for raw in records.each(rows)]
        return [[row.get(column) for row in found] for column in columns]

    return Source(file.name, tuple(names), count, read, lines=records.lines)


# An object


def _from_object(name: str, value: dict[str, Any]) -> Source:
    lists = {key: inner for key, inner in value.items() if _is_rows(inner)}
    if len(lists) == 1:
        (rows,) = lists.values()
        return squad_rows(name, rows) if is_squad(rows) else _from_rows(name, rows)
    if lists:
        raise ValueError(
            f"{name}: the object has several lists of objects ({some(list(lists))}); give a file of "
            "one of them"
        )
    if columns := _columns(value):
        return files.table(name, columns)
    raise ValueError(f"{name}: an object of {some(list(value))}; {_FORMS}")


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _from_rows(name: str, rows: Sequence[dict[str, Any]]) -> Source:
    names: dict[str, None] = {}
    for number, row in enumerate(rows, start=1):
        check_row(f"{name}, row {number}", row)
        names.update(dict.fromkeys(row))
    if not names:
        raise ValueError(f"{name}: the objects have no keys")
    return files.table(name, {key: [row.get(key) for row in rows] for key in names})


def _columns(value: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Of an object of columns; {} where it is none."""
    found = list(value.values())
    if all(isinstance(column, list) and column for column in found):
        return dict(value) if len({len(column) for column in found}) == 1 else {}
    if all(isinstance(column, dict) and column for column in found):
        keys = list(found[0])
        if all(list(column) == keys for column in found):
            return {name: list(column.values()) for name, column in value.items()}
    return {}
