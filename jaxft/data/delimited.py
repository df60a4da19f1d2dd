"""CSV and TSV files: UTF-8 with or without a byte order mark, a header, one row per record.

CSV follows RFC 4180: a field in double quotes may hold delimiters, line ends, and quotes written
twice. TSV has two dialects in the wild, plain (GLUE: a quote is a character like any other) and
quoted (pandas, the csv module); `_tab_separated` says how they are told apart.

A file is read through once, when it is opened, and every record is checked; what is kept is where each
begins (records.py).
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data.facts import facts_of, packed, unpacked
from jaxft.data.files import Source, some
from jaxft.data.records import MEND, FileBytes, Lines, Records, check_encoding, left_out

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
# A field of 131,072 characters is where csv stops unless told otherwise, for the whole process.
_FIELD_LIMIT = 2**31 - 1
_FIELD_LIMIT_LOCK = threading.Lock()
_PROBED_ROWS, _PROBED = 20, 1 << 16  # how much of a file is looked at for its delimiter; bytes
_EXPLAINED = 1 << 26  # bytes of a record that are looked at to say which of its quotes is wrong
_LINE_END = re.compile(r"\r\n|\n|\r")

Fields = list[list[str]]  # of each record


def read_delimited(
    path: Path, delimiter: str, *, given: str = "", cache: str | None = None, skip: bool = False
) -> Source:
    """A table whose fields are separated by `delimiter`.

    delimiter: the one of the file's suffix. If by it the header is a single column, and by another
      of `DELIMITERS` the header and the first rows all have the same number of columns, at least
      two, that one is used, and the source's notes say so.
    given: used instead, and nothing is detected.
    cache: folder in which what is found in a large file is kept (facts.py); None: nowhere.
    skip: records with too few or too many fields are left out; the source's notes say which.

    Raises ValueError, naming the line: an empty file, no header, a row with too few or too many
    fields, a quote that is never closed, bytes that are not UTF-8, a NUL byte.
    """
    file = FileBytes(path)
    check_encoding(file)
    notes: tuple[str, ...] = ()
    if not given and (found := _detected(file, delimiter)):
        notes = (f"{path.name}: its fields are separated by {DELIMITERS[found]}, by its header",)
        delimiter = found
    delimiter = given or delimiter
    facts = facts_of(file, cache)
    if facts is None:
        header, records, dialect, broken = _read(file, delimiter, skip)
    else:
        facts = facts.further("delimited", delimiter, *("skip",) * skip)
        kept = facts.known(("records",), lambda: _found(_read(file, delimiter, skip)))
        header, dialect, broken = (unpacked(kept[key]) for key in ("header", "dialect", "broken"))
        records = Records.at(file, kept)
    parse = _parser(dialect, delimiter)
    notes += left_out(path.name, broken)
    if not header:
        raise ValueError(f"{path.name}: the file is empty")
    header = _header(path, header, delimiter)
    if not records:
        raise ValueError(f"{path.name}: there are no rows after the header")
    number = {name: i for i, name in enumerate(header)}

    def read(columns: Sequence[str], rows: np.ndarray) -> list[Sequence[Any]]:
        if broken:  # which stand behind the record before them
            found = [parse(raw.decode())[0] for raw in records.each(rows)]
        else:
            found = parse(records.read(rows).decode())
        return [[fields[number[column]] for fields in found] for column in columns]

    return Source(
        path.name, tuple(header), len(records), read, lines=records.lines, notes=notes, facts=facts
    )


# Reading records: the header, where the records after it are, and the dialect of the file

Read = tuple[list[str], Records, str, list[int]]  # the last: lines of what is left out


def _read(file: FileBytes, delimiter: str, skip: bool) -> Read:
    return (_tab_separated if delimiter == "\t" else _quoted)(file, delimiter, skip)


def _found(read: Read) -> dict[str, np.ndarray]:
    """What is kept of it."""
    header, records, dialect, broken = read
    texts = {"header": packed(header), "dialect": packed(dialect), "broken": packed(broken)}
    return {**texts, **records.places()}


def _parser(dialect: str, delimiter: str) -> Callable[[str], Fields]:
    """How a text of some records is parsed: 'quoted' as CSV, 'lines' a line each, 'quoted lines'."""

    def quoted(text: str) -> Fields:
        with _any_field_size():
            return [f for f in csv.reader(_split(text), delimiter=delimiter, strict=True) if f]

    field = _unquoted if dialect == "quoted lines" else str

    def lines(text: str) -> Fields:
        bare = (line.rstrip("\r\n") for line in _split(text))
        return [list(map(field, line.split(delimiter))) for line in bare if line]

    return quoted if dialect == "quoted" else lines


def _quoted(file: FileBytes, delimiter: str, skip: bool) -> Read:
    """The records of RFC 4180. Blank lines are passed over."""
    records, lines, broken = Records(file), Lines(file), list[int]()
    header: list[str] = []
    start, line = lines.position, 1
    with _any_field_size():
        try:
            for fields in csv.reader(lines, delimiter=delimiter, strict=True):
                if header and fields:  # csv gives [] for a blank line
                    if skip and len(fields) != len(header):
                        broken.append(line)
                    else:
                        _check_width(file.name, fields, header, line)
                        records.add(start, line)
                header = header or fields
                # A record may span lines, so the next one starts after the last line read.
                start, line = lines.position, lines.number + 1
        except csv.Error as error:
            line, why = _bad_quote(file, delimiter, start, line) or (line, str(error))
            raise ValueError(
                f"{file.name}, line {line}: bad quoting ({why}); a quote inside a quoted field is "
                'written twice (""), and an opened quote must be closed'
            ) from None
    records.end()
    return header, records, "quoted", broken


def _split(text: str) -> io.StringIO:
    """By lines, with their ends."""
    return io.StringIO(text, newline="")


def _tab_separated(file: FileBytes, delimiter: str, skip: bool) -> Read:
    """The records of a TSV file in its dialect.

    Where every line has as many tabs as the header, a line is a row: nothing can be swallowed by a
    quote. Quotes then are characters, unless all fields with a quote in them are quoted as a whole
    (`"…"`, with quotes inside written twice), which is what a writer that quotes gives. Where the
    lines differ, fields may hold tabs and line ends, so the file is read like CSV; if it is not
    that either, the error is of the first line with another number of fields.
    """
    records, lines, broken = Records(file), Lines(file), list[int]()
    header: list[str] = []
    quotes, all_quoted = False, True
    start = lines.position
    for line in lines:
        if bare := line.rstrip("\r\n"):
            fields = bare.split(delimiter)
            if header and len(fields) != len(header):
                if not broken and (read := _as_quoted(file, delimiter)):
                    return read
                if not skip:
                    _check_width(file.name, fields, header, lines.number)
                broken.append(lines.number)
                start = lines.position
                continue
            if '"' in bare:
                quotes = True
                all_quoted = all_quoted and _all_quoted(fields)
            if header:
                records.add(start, lines.number)
            header = header or fields
        start = lines.position
    records.end()
    if quotes and all_quoted:
        return list(map(_unquoted, header)), records, "quoted lines", broken
    return header, records, "lines", broken


def _as_quoted(file: FileBytes, delimiter: str) -> Read | None:
    """Read like CSV; None where it is not that."""
    try:
        return _quoted(file, delimiter, skip=False)
    except ValueError:
        return None


_WHOLE_FIELD = re.compile(r'"(?:[^"]|"")*+"', re.DOTALL)


def _all_quoted(fields: list[str]) -> bool:
    """Whether each quote is that of a properly quoted field."""
    return all(_WHOLE_FIELD.fullmatch(field) for field in fields if '"' in field)


def _unquoted(field: str) -> str:
    return field[1:-1].replace('""', '"') if field.startswith('"') else field


def _check_width(name: str, fields: list[str], header: list[str], line: int) -> None:
    if len(fields) != len(header):
        raise ValueError(
            f"{name}, line {line}: {len(fields)} fields, but the header has {len(header)} "
            f"({some(header)}); it is {' | '.join(fields)!a:.80}; {MEND}"
        )


def _bad_quote(file: FileBytes, delimiter: str, start: int, line: int) -> tuple[int, str] | None:
    """(line in which the offending quote was opened, what is wrong) of the record at the byte `start`.

    A record may span lines, so the quote can be opened long after the record begins.
    """
    text = file.read(start, start + _EXPLAINED).decode("utf-8", "replace")
    position = 0
    field = re.compile(rf'(?:"(?:[^"]|"")*+"|[^"{re.escape(delimiter)}\r\n][^{re.escape(delimiter)}'
                       rf"\r\n]*|)(?:{re.escape(delimiter)}|\r\n|\n|\r)")  # fmt: skip
    while found := field.match(text, position):
        position = found.end()
    if position >= len(text) or text[position] != '"':
        return None
    line += len(_LINE_END.findall(text, 0, position))
    closed = _WHOLE_FIELD.match(text, position)
    if closed is None or closed.end() == len(text):
        return line, "the quote opened here is never closed"
    after = text[closed.end() : closed.end() + 12]
    return line, f"the field opened here is closed and then goes on with {after!r}"


@contextlib.contextmanager
def _any_field_size() -> Iterator[None]:
    """Within the block csv accepts fields of any size; the limit belongs to the whole process."""
    with _FIELD_LIMIT_LOCK:
        before = csv.field_size_limit(_FIELD_LIMIT)
        try:
            yield
        finally:
            csv.field_size_limit(before)


# The header


def _detected(file: FileBytes, delimiter: str) -> str | None:
    """The delimiter that the header and the first rows agree on, where the suffix's splits nothing."""
    text = file.read(file.begin, _PROBED).decode("utf-8", "replace")
    whole = file.size <= _PROBED
    first = _first_records(text, delimiter, whole)
    if first and len(first[0]) > 1:
        return None
    for other in DELIMITERS:
        counts = {len(record) for record in _first_records(text, other, whole)}
        if len(counts) == 1 and counts.pop() > 1:
            return other
    return None


def _first_records(text: str, delimiter: str, whole: bool) -> Fields:
    """The header and some rows; nothing where they cannot be read with this delimiter."""
    try:
        with _any_field_size():
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=whole)
            records = [r for r in itertools.islice(reader, _PROBED_ROWS + 1) if r]
    except csv.Error:
        return []
    # The last record of a part may be cut.
    return records if whole or len(records) > _PROBED_ROWS else records[:-1] or records


def _header(path: Path, header: list[str], delimiter: str) -> list[str]:
    header = [name.strip() for name in header]
    if len(header) == 1:
        for other in DELIMITERS:
            if other != delimiter and other in header[0]:
                raise ValueError(
                    f"{path.name}: the header {header[0]!r} is not separated by {delimiter!r}, and "
                    f"not all of the first rows by {other!r}; name it by config.data.delimiter"
                )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{path.name}: the header names {some(twice)} more than once")
    numbers = [name for name in header if name and _is_number(name)]
    if numbers:
        raise ValueError(
            f"{path.name}: the first line must name the columns, but it holds {some(numbers)}"
        )
    return header


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
