"""Images that a table names by their paths: where these begin."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data.files import IMAGE_SUFFIXES, Source

_LOOKED_AT = 256  # rows


def located(source: Source, folder: Path) -> Source:
    """The source with its columns of image paths relative to `folder`, that of its file, or as they are.

    A column holds paths if its first value is the name of an image. They begin at `folder` if of the first
    rows as many are found from there as from the current folder; the source's notes say which it is.
    """
    notes, bases = list(source.notes), {}
    rows = np.arange(min(len(source), _LOOKED_AT))
    for column in source.columns:
        if not _is_image_name(source.read((column,), rows[:1])[0][0]):
            continue
        (values,) = source.read((column,), rows)
        relative = [v for v in values if isinstance(v, str) and v and not os.path.isabs(v)]
        if not relative:
            continue
        beside, here = (_found(relative, base) for base in (str(folder), ""))
        if beside >= here:
            bases[column] = str(folder)
        where = (
            f"at the folder of the file, {str(folder)!r}"
            if beside >= here
            else "at the current folder"
        )
        notes.append(f"{source.name}: the paths of {column!r} start {where}")
    if not bases:
        return dataclasses.replace(source, notes=tuple(notes))

    def read(columns: Sequence[str], rows: np.ndarray) -> list[Sequence[Any]]:
        found = source.read(columns, rows)
        return [
            [_joined(bases[column], value) for value in values] if column in bases else values
            for column, values in zip(columns, found, strict=True)
        ]

    return dataclasses.replace(source, read=read, notes=tuple(notes))


def _is_image_name(value: Any) -> bool:
    return isinstance(value, str) and os.path.splitext(value)[1].lower() in IMAGE_SUFFIXES


def _joined(base: str, value: Any) -> Any:
    return os.path.join(base, value) if isinstance(value, str) and value else value


def _found(paths: Sequence[str], base: str) -> int:
    return sum(_is_file(os.path.join(base, path)) for path in paths)


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # a NUL character
        return False
