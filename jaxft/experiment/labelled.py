"""Rows with what a model says of them: which columns the output has, and how each format holds them.

The columns are settled from all rows before any is predicted, so that no value of a later row can be
in the way; the rows are then written a few at a time.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data.sources import Source
from jaxft.experiment.output import Output
from jaxft.tasks.table import TASKS

FORMATS = (".csv", ".jsonl", ".parquet")
_ROWS = 1024  # written at a time
_LINE = 1 << 26  # characters of a line that is looked at
# A spreadsheet takes a cell that begins so for a formula (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_AS_TEXT = (str, Path, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID)
_PLAIN = {"text", "whole", "number", "truth"}


@dataclass(frozen=True)
class Layout:
    """Columns of an output.

    Attributes:
      suffix: of the file: one of FORMATS.
      kept: input column -> what its values become.
      left_out: input columns that this format cannot hold.
      added: the model's columns: name -> type.
      types: of every column in `kept`: 'text', 'whole', 'number', 'truth' or 'nested': lists and
        objects, which only .jsonl can hold; of those that are added the others have the JSON text.
      least_bytes: what the file will have at least; 0 where that is not known.
    """

    suffix: str
    kept: Mapping[str, Callable[[Any], Any]]
    left_out: tuple[str, ...]
    added: Mapping[str, str]
    types: Mapping[str, str]
    least_bytes: int


def settle(source: Source, suffix: str, columns: Mapping[str, str], *, prefix: str = "") -> Layout:
    """Decide on every column from all rows.

    Dates, times, decimals and paths are kept as text; class numbers as the names they stand for. A
    column of lists or objects is kept in JSON lines only; bytes, images and arrays nowhere.

    Args:
      suffix: one of FORMATS.
      columns: what is added, see `Task.columns`.
      prefix: before the names of the added columns.

    Raises:
      ValueError: the source has a column of the name of an added one.
    """
    added = {f"{prefix}{name}": kind for name, kind in columns.items()}
    taken = [name for name in added if name in source.columns]
    if taken:
        raise ValueError(
            f"{source.name} has a column {taken[0]!r} already, and nothing is overwritten; with "
            f"--prefix=new_ the predictions are in {f'new_{taken[0]}'!r}"
        )
    kept: dict[str, Callable[[Any], Any]] = {}
    types: dict[str, str] = {}
    first, size = source[0], 0
    for column in source.columns:
        classes = source.class_names.get(column)
        if classes is None and _kind(first[column]) == "other":
            continue  # not read whole: it may be all images of a data set, each decoded for this
        kind, column_size = _column_kind(_values(source, column), classes)
        if kind in _PLAIN or (kind == "nested" and suffix == ".jsonl"):
            kept[column] = _converter(suffix, kind, classes)
            types[column], size = kind, size + column_size
    left_out = tuple(column for column in source.columns if column not in kept)
    least = 0 if suffix == ".parquet" else size + len(source) * 4 * len(added)
    return Layout(suffix, kept, left_out, added, types, least)


def write_labelled(
    file: Output, layout: Layout, rows: Iterable[tuple[Mapping[str, Any], Sequence[Any]]], *,
    guard_formulas: bool = False,
) -> None:  # fmt: skip
    """Write (row of the source, values of the added columns) one after the other.

    Args:
      guard_formulas: put an apostrophe before every text of a CSV file that a spreadsheet would take
        for a formula.
    """
    whole = _merged(layout, rows)
    if layout.suffix == ".parquet":
        _write_parquet(file, layout, whole)
    elif layout.suffix == ".csv":
        guard: Callable[[Any], Any] = _without_formula if guard_formulas else lambda cell: cell
        header = [guard(name) for name in (*layout.kept, *layout.added)]
        file.write(_csv([header]))
        for chunk in _chunks(whole):
            file.write(_csv([guard(cell) for cell in row.values()] for row in chunk))
    else:
        for chunk in _chunks(whole):
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in chunk)
            # Half of a surrogate pair, which UTF-8 has not, becomes JSON's own escape of it.
            file.write("".join(lines).encode("utf-8", "backslashreplace"))


def is_labelled(path: Path) -> bool:
    """Whether a file holds rows as `write_labelled` writes them, whatever the task, labels and prefix."""
    try:
        first = _first_row(path)
    except (OSError, ValueError, RecursionError, csv.Error, StopIteration, TypeError):
        return False
    return any(task.is_output(first) for task in TASKS.values())


def _first_row(path: Path) -> dict[str, Any]:
    """Column -> value of the first row; the values of CSV files are texts."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            batch = next(file.iter_batches(batch_size=1))
            return dict(zip(batch.schema.names, (c[0].as_py() for c in batch.columns), strict=True))
    with path.open(encoding="utf-8-sig", newline="") as text:
        if path.suffix == ".jsonl":
            return {
                str(key): value for key, value in dict(json.loads(text.readline(_LINE))).items()
            }
        header = next(csv.reader([text.readline(_LINE)]))
        try:
            return dict(zip(header, next(csv.reader(text)), strict=False))
        except csv.Error:  # a field that is longer than the reader takes: the names are known
            return dict.fromkeys(header)


def _merged(
    layout: Layout, rows: Iterable[tuple[Mapping[str, Any], Sequence[Any]]]
) -> Iterator[dict[str, Any]]:
    as_json, lists = layout.suffix != ".jsonl", layout.suffix == ".parquet"
    for row, values in rows:
        merged = {column: convert(row[column]) for column, convert in layout.kept.items()}
        for (column, kind), value in zip(layout.added.items(), values, strict=True):
            nested = as_json and (kind == "nested" or (kind == "numbers" and not lists))
            merged[column] = json.dumps(value, ensure_ascii=False) if nested else value
        yield merged


def _values(source: Source, column: str) -> Iterator[Any]:
    return (value for _, (values,) in source.chunks((column,)) for value in values)


def _column_kind(values: Iterable[Any], classes: Sequence[str] | None) -> tuple[str, int]:
    """What a whole column is, and how many characters its texts have."""
    kinds, size = set(), 0
    for value in values:
        if classes is not None:
            value = _class_name(value, classes)
        kind = _kind(value)
        if kind == "text" and isinstance(value, str):
            size += len(value)
        kinds.add(kind)
        if kind == "other":
            break
    kinds.discard("missing")
    if len(kinds) <= 1:
        return (kinds.pop() if kinds else "text"), size
    if kinds == {"whole", "number"}:
        return "number", size
    if kinds <= _PLAIN:
        return "text", size
    return ("other" if "other" in kinds else "nested"), size


def _kind(value: Any) -> str:
    value = _python(value)
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int):
        return "whole" if -(2**63) <= value < 2**63 else "text"
    if isinstance(value, float):
        return "number"
    if isinstance(value, _AS_TEXT):
        return "text"
    if isinstance(value, dict | list | tuple):
        try:
            _jsonable(value)
        except TypeError:
            return "other"
        return "nested"
    return "other"


def _python(value: Any) -> Any:
    """A numpy scalar as Python's own; numpy's times, some of which are none of Python's, as text."""
    if isinstance(value, np.datetime64 | np.timedelta64):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def _converter(suffix: str, kind: str, classes: Sequence[str] | None) -> Callable[[Any], Any]:
    """What the values of a column become. Only Parquet needs one type for all of them."""

    def convert(value: Any) -> Any:
        value = _python(value) if classes is None else _class_name(value, classes)
        if value is None:
            return None
        if suffix == ".jsonl":
            return _jsonable(value)
        if suffix == ".csv":
            return _text(value) if isinstance(value, _AS_TEXT) else value
        if kind == "text":
            # Parquet's text is UTF-8, which has no halves of surrogate pairs.
            return _text(value).encode("utf-8", "backslashreplace").decode()
        return float(value) if kind == "number" else value

    return convert


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)


def _class_name(value: Any, classes: Sequence[str]) -> str | None:
    """None for what stands for no class, as the -1 of unlabelled splits."""
    number = _python(value)
    known = isinstance(number, int) and 0 <= number < len(classes)
    return classes[number] if known else None


def _jsonable(value: Any) -> Any:
    """The value in JSON's own types; TypeError for what has no place there."""
    value = _python(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, _AS_TEXT):
        return _text(value)
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    raise TypeError(f"a {type(value).__name__} has no place in JSON")


def _without_formula(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _csv(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    chunk = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _write_parquet(file: Output, layout: Layout, rows: Iterable[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    arrow = {
        "text": pa.string(), "whole": pa.int64(), "number": pa.float64(), "truth": pa.bool_(),
        "nested": pa.string(), "numbers": pa.list_(pa.float32()),
    }  # fmt: skip
    kinds = {**layout.types, **layout.added}
    schema = pa.schema([(column, arrow[kinds[column]]) for column in kinds])
    writer = pyarrow.parquet.ParquetWriter(pa.PythonFile(file, mode="w"), schema)
    try:
        for chunk in _chunks(rows):
            writer.write_table(pa.Table.from_pylist(chunk, schema))
        writer.close()
    except BaseException:
        writer.is_open = False  # else its destructor would write once more, and say that it cannot
        raise
