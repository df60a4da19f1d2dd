"""Parquet files, and the class names that Hugging Face datasets keeps in their metadata."""

from __future__ import annotations

import collections
import json
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data import records
from jaxft.data.files import Source, some

# Bytes of decoded columns that are kept: of a file with more the row groups that were read last.
KEPT = 1 << 31


def read_parquet(path: Path) -> Source:
    """A Parquet file; class names stored by Hugging Face datasets in its metadata are used.

    Values without an equivalent in Python (a time in nanoseconds, a year above 9999) are given as
    text. Metadata of another shape is passed over.

    Raises ValueError: not Parquet, truncated, encrypted, of a type that pyarrow cannot read; without
    rows or columns; two columns of one name.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        # Small ones are kept, so that what is edited later changes nothing. As one file: the names
        # of its folders (`lang=en`) are no columns.
        small = path.stat().st_size <= records.KEPT
        file = pyarrow.parquet.ParquetFile(
            pyarrow.BufferReader(path.read_bytes()) if small else path
        )
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path.name}: not a readable Parquet file ({_first(error)})") from None
    names = file.schema_arrow.names
    if not names:
        raise ValueError(f"{path.name}: the file has no columns")
    if file.metadata.num_rows == 0:
        raise ValueError(f"{path.name}: the file has no rows")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path.name}: there are several columns called {some(twice)}")
    metadata = file.schema_arrow.metadata or {}
    return Source(
        name=path.name,
        columns=tuple(names),
        count=file.metadata.num_rows,
        read=_RowGroups(path.name, file).read,
        class_names=_class_names(metadata, names, of=_itself),
        item_names=_class_names(metadata, names, of=_items),
    )


class _RowGroups:
    """The values of a Parquet file, a row group of a column decoded when it is asked for.

    Rows that ascend decode each once. Others are read fast as long as `KEPT` holds all groups.
    """

    def __init__(self, name: str, file: Any):
        self._name, self._file = name, file
        counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._ends = np.cumsum(counts)
        self._kept: collections.OrderedDict[tuple[int, str], Any] = collections.OrderedDict()
        self._lock = threading.Lock()  # images are read in several threads

    def read(self, columns: Sequence[str], rows: np.ndarray) -> list[Sequence[Any]]:
        """See `Source.read`. Raises ValueError for what is damaged."""
        group = np.searchsorted(self._ends, rows, side="right")
        ends = [*(np.flatnonzero(np.diff(group)) + 1).tolist(), len(rows)]
        found: list[list[Any]] = [[] for _ in columns]
        begin = 0
        for end in ends:
            number, part = int(group[begin]), rows[begin:end]
            first = int(self._ends[number - 1]) if number else 0
            for values, column in zip(found, columns, strict=True):
                values += self._values(number, column, part - first, part)
            begin = end
        return list(found)

    def _values(self, group: int, column: str, places: np.ndarray, rows: np.ndarray) -> list[Any]:
        import pyarrow

        decoded = self._decoded(group, column)
        first, count = int(places[0]), len(places)
        together = np.array_equal(places, np.arange(first, first + count))
        values = decoded.slice(first, count) if together else decoded.take(pyarrow.array(places))
        try:
            return values.to_pylist()
        except (pyarrow.ArrowException, ValueError, OverflowError):
            where = [f"{self._name}, row {row + 1}" for row in rows.tolist()]
            return [_python(value, of) for value, of in zip(values, where, strict=True)]

    def _decoded(self, group: int, column: str) -> Any:
        import pyarrow

        with self._lock:
            if (group, column) in self._kept:
                self._kept.move_to_end((group, column))
                return self._kept[group, column]
            try:
                decoded = self._file.read_row_group(group, columns=[column]).column(column)
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                raise ValueError(
                    f"{self._name}: column {column!r} cannot be read ({_first(error)})"
                ) from None
            self._kept[group, column] = decoded
            while len(self._kept) > 1 and sum(part.nbytes for part in self._kept.values()) > KEPT:
                self._kept.popitem(last=False)
            return decoded


def _python(value: Any, where: str) -> Any:
    """The Python value of an Arrow scalar, or its text where Python has none."""
    import pyarrow

    try:
        return value.as_py()
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        try:
            return value.cast(pyarrow.string()).as_py()
        except (pyarrow.ArrowException, ValueError, OverflowError):
            raise ValueError(f"{where}: a value cannot be read ({_first(error)})") from None


def _class_names(
    metadata: Mapping[bytes, bytes], columns: Collection[str], *, of: Callable[[Any], Any]
) -> dict[str, tuple[str, ...]]:
    """The names of features that are a `ClassLabel`, of columns that exist; {} where none is.

    of: gives the part of a feature that is looked at.
    """
    try:
        stored = json.loads(metadata.get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):  # not JSON, not UTF-8
        return {}
    for key in ("info", "features"):
        stored = stored.get(key) if isinstance(stored, dict) else None
    features = stored.items() if isinstance(stored, dict) else ()
    found = {column: _names(of(feature)) for column, feature in features if column in columns}
    return {column: names for column, names in found.items() if names}


def _itself(feature: Any) -> Any:
    return feature


def _items(feature: Any) -> Any:
    """What the lists of a column hold; written in three ways by three versions of datasets."""
    if isinstance(feature, list):
        return feature[0] if len(feature) == 1 else None
    return feature.get("feature") if isinstance(feature, dict) else None


def _names(feature: Any) -> tuple[str, ...]:
    """Of a ClassLabel: its names, if they are texts and none is there twice. Else none."""
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return ()
    names = feature.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names) if len(set(names)) == len(names) else ()


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
