"""Data that is in memory already: a data frame, a data set, rows, columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.data import files, hugging_face
from jaxft.data.arrow import from_table
from jaxft.data.files import Source

KINDS = "a list of dicts, a dict of columns, a pandas DataFrame, a pyarrow Table or a Hugging Face Dataset"


def from_memory(name: str, data: Any) -> Source:
    """A source over `data`, one of `KINDS`; a source is returned as it is. Columns are not copied.

    name: for messages.

    Raises ValueError: none of these; no rows; columns of different lengths, or whose names are no texts.
    """
    if isinstance(data, Source):
        return data
    library = type(data).__module__.partition(".")[0]
    if library == "datasets" and hasattr(data, "column_names") and not isinstance(data, dict):
        return _from_dataset(name, data)
    if library == "pandas" and hasattr(data, "columns"):
        return _from_frame(name, data)
    if library == "pyarrow" and hasattr(data, "schema"):
        return from_table(name, data)
    if isinstance(data, Mapping) and data:
        return _from_columns(name, data)
    if isinstance(data, Sequence) and data and all(isinstance(row, Mapping) for row in data):
        keys = dict.fromkeys(key for row in data for key in row)
        return _from_columns(name, {key: [row.get(key) for row in data] for key in keys})
    what = (
        f"a {type(data).__name__}"
        if not isinstance(data, Sequence | Mapping) or data
        else "nothing"
    )
    if isinstance(data, Sequence) and not isinstance(data, str) and data:
        row = next(row for row in data if not isinstance(row, Mapping))
        what = f"a {type(data).__name__} with a {type(row).__name__} ({row!r:.40})"
    raise ValueError(f"{name} is {what}; give {KINDS}")


def _from_dataset(name: str, data: Any) -> Source:
    if not hasattr(data, "__len__"):
        raise ValueError(
            f"{name} is a streamed dataset, which has no random access; load it with streaming=False (a run "
            "can be trained on one: config.data.stream)"
        )
    return hugging_face.from_datasets(data, name)


def _from_frame(name: str, frame: Any) -> Source:
    import pyarrow

    if not len(frame):
        raise ValueError(f"{name}: there are no rows")
    _check_names(name, list(frame.columns))
    try:
        return from_table(name, pyarrow.Table.from_pandas(frame, preserve_index=False))
    except (
        pyarrow.ArrowException,
        ValueError,
        TypeError,
    ):  # objects that Arrow does not have: images
        return files.table(name, {column: frame[column].tolist() for column in frame.columns})


def _from_columns(name: str, columns: Mapping[Any, Any]) -> Source:
    _check_names(name, list(columns))
    values = {column: _listed(name, column, value) for column, value in columns.items()}
    counts = {column: len(value) for column, value in values.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{column!r} {count:,}" for column, count in counts.items())
        raise ValueError(f"{name}: its columns have different lengths: {said}")
    if not next(iter(counts.values()), 0):
        raise ValueError(f"{name}: there are no rows")
    return files.table(name, values)


def _listed(name: str, column: str, value: Any) -> Sequence[Any]:
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return list(value.tolist())
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__"):
        raise ValueError(
            f"{name}: column {column!r} is a {type(value).__name__}, not a list of values"
        )
    return value if isinstance(value, Sequence) else list(value)


def _check_names(name: str, columns: Sequence[Any]) -> None:
    for column in columns:
        if not isinstance(column, str):
            raise ValueError(f"{name}: the name {column!r:.40} of a column is no text")
    if twice := sorted({column for column in columns if list(columns).count(column) > 1}):
        raise ValueError(f"{name}: there are several columns called {files.some(twice)}")
