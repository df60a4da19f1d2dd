"""Parquet files, and the class names that Hugging Face datasets keeps in their metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from jaxft.data.files import Source, some


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
        # As one file: the names of its folders (`lang=en`) are no columns.
        with pyarrow.parquet.ParquetFile(path) as file:
            data = file.read()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path.name}: not a readable Parquet file ({_first(error)})") from None
    names = data.column_names
    if not names:
        raise ValueError(f"{path.name}: the file has no columns")
    if data.num_rows == 0:
        raise ValueError(f"{path.name}: the file has no rows")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path.name}: there are several columns called {some(twice)}")

    def column(name: str) -> list[Any]:
        values = data.column(name)
        try:
            return values.to_pylist()
        except (pyarrow.ArrowException, ValueError, OverflowError):
            return [_python(value, f"{path.name}, row {i + 1}") for i, value in enumerate(values)]

    return Source(
        name=path.name,
        columns=tuple(names),
        count=data.num_rows,
        read_row=lambda row: {
            name: _python(data.column(name)[row], f"{path.name}, row {row + 1}") for name in names
        },
        read_column=column,
        class_names=_class_names(data.schema.metadata or {}, names, of=_itself),
        item_names=_class_names(data.schema.metadata or {}, names, of=_items),
    )


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
