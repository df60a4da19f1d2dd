"""Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxft.data import files
from jaxft.data.arrow import from_groups
from jaxft.data.files import Source
from jaxft.data.records import FileBytes


def read_parquet(path: Path) -> Source:
    """A Parquet file, of which a row group of a column is decoded when it is asked for.

    Raises ValueError: not Parquet, truncated, encrypted, of a type that pyarrow cannot read; what
    `arrow.from_groups` raises.
    """
    import pyarrow
    import pyarrow.parquet

    file = FileBytes(path)
    try:
        # As one file: the names of its folders (`lang=en`) are no columns.
        table = pyarrow.parquet.ParquetFile(
            path if file.kept is None else pyarrow.BufferReader(file.kept)
        )
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(
            f"{path.name}: not a readable Parquet file ({files.first_line(error)})"
        ) from None

    def decode(group: int, column: str) -> Any:
        file.check()
        return table.read_row_group(group, columns=[column]).column(column)

    counts = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
    return from_groups(path.name, table.schema_arrow, counts, decode)
