"""Arrow files, tables in memory, and what they share with Parquet: columns that are decoded by groups."""

from __future__ import annotations

import collections
import functools
import json
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data import files
from jaxft.data.files import Source, some
from jaxft.data.records import FileBytes

SUFFIXES = (".arrow", ".feather")
# Bytes of decoded columns that are kept: of a file with more the groups that were read last.
KEPT = 1 << 31


def read_arrow(path: Path) -> Source:
    """An Arrow file, as a file (Feather, version 2) or as a stream (what Hugging Face datasets writes).

    It is mapped: of what is not compressed nothing is copied, and compressed batches of a file are
    decoded when they are asked for (those of a stream all at once).

    Raises ValueError: neither of the two, truncated, compressed in a way that pyarrow cannot read; what
    `from_groups` raises.
    """
    import pyarrow

    file = FileBytes(path)
    data = pyarrow.memory_map(str(path)) if file.kept is None else pyarrow.BufferReader(file.kept)
    try:
        schema, counts, batch = _opened(data)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        old = " (Feather files of version 1 are not read)" if _is_old(path) else ""
        raise ValueError(
            f"{path.name}: not a readable Arrow file ({files.first_line(error)}){old}"
        ) from None

    def decode(group: int, column: str) -> Any:
        file.check()
        found = batch(group, column).column(column)
        # Nothing has looked at its offsets, by which memory is read.
        found.validate(full=True)
        return found

    return from_groups(path.name, schema, counts, decode)


def _opened(data: Any) -> tuple[Any, list[int], Callable[[int, str], Any]]:
    """(schema, rows of each batch, (batch, column) -> a RecordBatch that has the column)."""
    import pyarrow
    from pyarrow import ipc

    try:
        schema = ipc.open_file(data).schema
    except pyarrow.ArrowInvalid:
        data.seek(0)
        stream = ipc.open_stream(data)
        batches = list(stream)
        return stream.schema, [found.num_rows for found in batches], lambda i, _: batches[i]

    @functools.cache
    def reader(field: int) -> Any:
        """Of one column alone: the others are not decompressed."""
        return ipc.open_file(data, options=ipc.IpcReadOptions(included_fields=[field]))

    counts = []
    if schema.names:
        first = min(range(len(schema)), key=lambda i: _width(schema.types[i]))
        of_first = reader(first)
        counts = [of_first.get_batch(i).num_rows for i in range(of_first.num_record_batches)]
    return schema, counts, lambda i, column: reader(schema.names.index(column)).get_batch(i)


def _width(kind: Any) -> int:
    """Bits of a value of this type; many where they are of no fixed number."""
    try:
        return kind.bit_width
    except ValueError:
        return 1 << 30


def _is_old(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"FEA1"


def from_table(name: str, data: Any) -> Source:
    """The rows of a `pyarrow.Table` in memory."""
    return from_groups(name, data.schema, [data.num_rows], lambda _, column: data.column(column))


def from_groups(
    name: str, schema: Any, counts: Sequence[int], decode: Callable[[int, str], Any]
) -> Source:
    """A source over columns of Arrow that are decoded a group of rows at a time.

    Class names that Hugging Face datasets stored in the metadata are used. Values without an
    equivalent in Python (a time in nanoseconds, a year above 9999) are given as text. Metadata of
    another shape is passed over.

    schema: of the columns. counts: rows of each group. decode: group, column -> its values.

    Raises ValueError: no rows or no columns; two columns of one name.
    """
    names = schema.names
    if not names:
        raise ValueError(f"{name}: the file has no columns")
    if not sum(counts):
        raise ValueError(f"{name}: the file has no rows")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{name}: there are several columns called {some(twice)}")
    metadata = schema.metadata or {}
    return Source(
        name=name,
        columns=tuple(names),
        count=sum(counts),
        read=_Groups(name, counts, decode).read,
        class_names=class_names(metadata, names, of=itself),
        item_names=class_names(metadata, names, of=items),
    )


class _Groups:
    """The values of columns, a group of rows of a column decoded when it is asked for.

    Rows that ascend decode each once. Others are read fast as long as `KEPT` holds all groups.
    """

    def __init__(self, name: str, counts: Sequence[int], decode: Callable[[int, str], Any]):
        self._name, self._decode = name, decode
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
                decoded = self._decode(group, column)
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                raise ValueError(
                    f"{self._name}: column {column!r} cannot be read ({files.first_line(error)})"
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
            raise ValueError(
                f"{where}: a value cannot be read ({files.first_line(error)})"
            ) from None


def class_names(
    metadata: Mapping[bytes, bytes], columns: Collection[str], *, of: Callable[[Any], Any]
) -> dict[str, tuple[str, ...]]:
    """The names of features that are a `ClassLabel`, of columns that exist; {} where none is.

    metadata: of the schema, where Hugging Face datasets keeps them.
    of: gives the part of a feature that is looked at: `itself` or `items`.
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


def itself(feature: Any) -> Any:
    """Of a column of classes."""
    return feature


def items(feature: Any) -> Any:
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
