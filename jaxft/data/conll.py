"""CoNLL files: a word and its tags on each line, and a blank line between two sentences.

A file is read once, when it is opened, and every line is checked; what is kept is where each sentence
begins (records.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data.files import Source
from jaxft.data.records import FileBytes, Records

SUFFIXES = (".conll", ".bio", ".iob", ".iob2")
_BETWEEN_DOCUMENTS = "-DOCSTART-"


def read_conll(path: Path) -> Source:
    """A row a sentence: 'tokens', the first field of its lines, and 'tags', the last, as lists.

    Fields are separated by tabs where the first line has one, else by blanks. Those between the first
    and the last (CoNLL-2003 has two) are columns 'field2', 'field3', …; where lines have one field
    there are tokens alone. Lines of -DOCSTART-, which separate documents, are passed over.

    Raises ValueError, naming the line: an empty file, another number of fields than in the first
    line, bytes that are not UTF-8.
    """
    file = FileBytes(path)
    records = Records(file)
    width, first, separator = 0, 0, None
    start, in_sentence = file.begin, False
    for number, raw in enumerate(_lines(file), start=1):
        line = _text(file.name, number, raw)
        if _separates(line):
            in_sentence = False
        else:
            if not width:
                separator = "\t" if "\t" in line else None
                width, first = len(line.split(separator)), number
            fields = line.split(separator)
            if len(fields) != width:
                raise ValueError(
                    f"{path.name}, line {number}: {len(fields)} field{'s' * (len(fields) != 1)} "
                    f"({line!r:.40}), but line {first} has {width}"
                )
            if not in_sentence:
                records.add(start, number)
            in_sentence = True
        start += len(raw)
    records.end()
    if not width:
        raise ValueError(f"{path.name}: the file is empty")
    place = {name: i for i, name in enumerate(_names(width))}

    def read(columns: Sequence[str], rows: np.ndarray) -> list[Sequence[Any]]:
        sentences = [_fields(raw.decode(), separator) for raw in records.each(rows)]
        return [[own[place[column]] for own in sentences] for column in columns]

    return Source(path.name, tuple(place), len(records), read, lines=records.lines)


def _fields(record: str, separator: str | None) -> list[list[str]]:
    """Of a sentence, and what stands behind it up to the next, a list for each field."""
    lines = (line.removesuffix("\r") for line in record.split("\n"))
    rows = (line.split(separator) for line in lines if not _separates(line))
    return list(map(list, zip(*rows, strict=True)))


def _separates(line: str) -> bool:
    """Whether a line stands between sentences."""
    return not line.strip() or line.startswith(_BETWEEN_DOCUMENTS)


def _names(width: int) -> list[str]:
    between = [f"field{number}" for number in range(2, width)]
    return ["tokens", *between, "tags"] if width > 1 else ["tokens"]


def _lines(file: FileBytes) -> Iterator[bytes]:
    r"""Lines with their ends. Only \n ends one: a word may hold another character that elsewhere does."""
    parts: list[bytes] = []
    for part in file.lines():
        parts.append(part)
        if part.endswith(b"\n"):
            yield b"".join(parts)
            parts.clear()
    if parts:
        yield b"".join(parts)


def _text(name: str, number: int, line: bytes) -> str:
    try:
        return line.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}, line {number}: byte 0x{line[error.start]:02x} is not UTF-8; save the file as "
            "UTF-8, for example by iconv -t UTF-8"
        ) from None
