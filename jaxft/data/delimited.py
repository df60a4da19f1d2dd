"""CSV and TSV files: UTF-8 with or without a byte order mark, a header, one row a record.

CSV follows RFC 4180: a field in double quotes may hold delimiters, line ends, and quotes written
twice. TSV has two dialects in the wild, plain (GLUE: a quote is a character like any other) and
quoted (pandas, the csv module); `_tab_separated` says how they are told apart.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from jaxft.data.files import Source, some, table

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
# A field of 131,072 characters is where csv stops unless told otherwise, for the whole process.
_FIELD_LIMIT = 2**31 - 1
_FIELD_LIMIT_LOCK = threading.Lock()
_PROBED_ROWS, _PROBED = 20, 1 << 16  # how much of a file is looked at for its delimiter; bytes
_LINE_END = re.compile(r"\r\n|\n|\r")
# (UTF-32 first: its little-endian mark begins with that of UTF-16.)
_OTHER_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)  # fmt: skip

Records = list[list[str]]


def read_delimited(path: Path, delimiter: str, *, given: str = "") -> Source:
    """A table whose fields are separated by `delimiter`.

    delimiter: the one of the file's suffix. If by it the header is a single column, and by another
      of `DELIMITERS` the header and the first rows all have the same number of columns, at least
      two, that one is used, and the source's notes say so.
    given: used instead, and nothing is detected.

    Raises ValueError, naming the line: an empty file, no header, a row with too few or too many
    fields, a quote that is never closed, bytes that are not UTF-8, a NUL byte.
    """
    data = _checked(path)
    notes: tuple[str, ...] = ()
    if not given and (found := _detected(data, delimiter)):
        notes = (f"{path.name}: its fields are separated by {DELIMITERS[found]}, by its header",)
        delimiter = found
    delimiter = given or delimiter
    try:
        rows, lines = (_tab_separated if delimiter == "\t" else _quoted)(path, data, delimiter)
    except UnicodeDecodeError:
        raise _not_utf8(path, data) from None
    if not rows:
        raise ValueError(f"{path.name}: the file is empty")
    header = _header(path, rows.pop(0), delimiter)
    if not rows:
        raise ValueError(f"{path.name}: there are no rows after the header")
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    return table(path.name, columns, lines=lines[1:], notes=notes)


def _checked(path: Path) -> bytes:
    """The file's bytes; ValueError for another encoding that its first bytes or NULs give away."""
    data = path.read_bytes()
    for mark, name in _OTHER_MARKS:
        if data.startswith(mark):
            raise ValueError(
                f"{path.name}: the file is {name}; save it as UTF-8, for example: "
                f"iconv -f {name} -t UTF-8 {path.name}"
            )
    if (at := data.find(b"\0")) >= 0:
        line = data.count(b"\n", 0, at) + 1
        raise ValueError(
            f"{path.name}, line {line}: a NUL byte; the file is damaged, or no text in UTF-8"
        )
    return data


def _lines(data: bytes) -> TextIO:
    """Line by line, so that the whole text is never beside the rows that are made of it."""
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")


def _not_utf8(path: Path, data: bytes) -> ValueError:
    at = 0
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
    line = data.count(b"\n", 0, at) + 1
    return ValueError(
        f"{path.name}, line {line}: byte 0x{data[at]:02x} is not UTF-8; "
        f"save the file as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 {path.name}"
    )


# Reading records


def _quoted(path: Path, data: bytes, delimiter: str) -> tuple[Records, list[int]]:
    """The records of RFC 4180 and the line each begins in. Blank lines are passed over."""
    rows: Records = []
    lines: list[int] = []
    start = 1
    with _any_field_size():
        reader = csv.reader(_lines(data), delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if row:  # csv gives [] for a blank line
                    rows.append(row)
                    lines.append(start)
                    _check_width(path, row, rows[0], start)
                # A row may span lines, so the next one starts after the last line read.
                start = reader.line_num + 1
        except csv.Error as error:
            line, why = _bad_quote(data, delimiter, start) or (start, str(error))
            raise ValueError(
                f"{path.name}, line {line}: bad quoting ({why}); a quote inside a quoted field is "
                'written twice (""), and an opened quote must be closed'
            ) from None
    return rows, lines


def _tab_separated(path: Path, data: bytes, delimiter: str) -> tuple[Records, list[int]]:
    """The records of a TSV file in its dialect, and the line each begins in.

    Where every line has as many tabs as the header, a line is a row: nothing can be swallowed by a
    quote. Quotes then are characters, unless all fields with a quote in them are quoted as a whole
    (`"…"`, with quotes inside written twice), which is what a writer that quotes gives. Where the
    lines differ, fields may hold tabs and line ends, so the file is read like CSV; if it is not
    that either, the error is of the first line with another number of fields.
    """
    numbered = ((n, line.rstrip("\r\n")) for n, line in enumerate(_lines(data), 1))
    split = [(n, line.split(delimiter)) for n, line in numbered if line]
    lines, rows = [n for n, _ in split], [row for _, row in split]
    if rows and all(len(row) == len(rows[0]) for row in rows):
        return ([[_unquoted(f) for f in row] for row in rows] if _all_quoted(rows) else rows), lines
    try:
        return _quoted(path, data, delimiter)
    except ValueError:
        for row, line in zip(rows, lines, strict=True):
            _check_width(path, row, rows[0], line)
        raise


_WHOLE_FIELD = re.compile(r'"(?:[^"]|"")*+"', re.DOTALL)


def _all_quoted(rows: Records) -> bool:
    """Whether there are quotes, and each is that of a properly quoted field."""
    with_quotes = (field for row in rows for field in row if '"' in field)
    first = next(with_quotes, None)
    return first is not None and all(
        _WHOLE_FIELD.fullmatch(field) for field in itertools.chain((first,), with_quotes)
    )


def _unquoted(field: str) -> str:
    return field[1:-1].replace('""', '"') if field.startswith('"') else field


def _check_width(path: Path, row: list[str], header: list[str], line: int) -> None:
    if len(row) != len(header):
        raise ValueError(
            f"{path.name}, line {line}: {len(row)} fields, but the header has {len(header)} "
            f"({some(header)})"
        )


def _bad_quote(data: bytes, delimiter: str, start: int) -> tuple[int, str] | None:
    """(line in which the offending quote was opened, what is wrong) of the record of line `start`.

    A record may span lines, so the quote can be opened long after the record begins.
    """
    text = data.decode("utf-8-sig")
    position = 0
    for end in itertools.islice(_LINE_END.finditer(text), start - 1):
        position = end.end()
    field = re.compile(rf'(?:"(?:[^"]|"")*+"|[^"{re.escape(delimiter)}\r\n][^{re.escape(delimiter)}'
                       rf"\r\n]*|)(?:{re.escape(delimiter)}|\r\n|\n|\r)")  # fmt: skip
    while found := field.match(text, position):
        position = found.end()
    if position >= len(text) or text[position] != '"':
        return None
    line = len(_LINE_END.findall(text, 0, position)) + 1
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


def _detected(data: bytes, delimiter: str) -> str | None:
    """The delimiter that the header and the first rows agree on, where the suffix's splits nothing."""
    text = data[:_PROBED].decode("utf-8-sig", "replace")
    whole = len(data) <= _PROBED
    first = _first_records(text, delimiter, whole)
    if first and len(first[0]) > 1:
        return None
    for other in DELIMITERS:
        counts = {len(record) for record in _first_records(text, other, whole)}
        if len(counts) == 1 and counts.pop() > 1:
            return other
    return None


def _first_records(text: str, delimiter: str, whole: bool) -> Records:
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
