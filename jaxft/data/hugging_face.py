"""Hugging Face datasets: from a folder, from the hub, or in memory."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data import files
from jaxft.data.files import Source


def library() -> Any:
    """`datasets`. ValueError: it is not installed."""
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "Hugging Face datasets are read by an optional package: pip install 'jaxft[hf]'"
        ) from None
    return datasets


def open_saved(path: Path, split: str) -> Source:
    """What `datasets.save_to_disk` wrote: one dataset, or a dict of splits."""
    files.check_inside(path)
    try:
        data = library().load_from_disk(str(path))
    except Exception as error:  # of whatever type the library meets in a folder that is not its own
        raise ValueError(
            f"{path}: not a readable saved dataset ({files.first_line(error)})"
        ) from None
    if hasattr(data, "column_names") and not isinstance(data, dict):
        if split:
            raise ValueError(f"{path} is a single dataset without splits; got split {split!r}")
        return from_datasets(data, path.name)
    if split not in data:
        wanted = f"has no split {split!r}" if split else "has several splits; name one"
        splits = ", ".join(f"{path}:{name}" for name in data)
        raise ValueError(f"{path} {wanted}: {splits}")
    return from_datasets(data[split], f"{path.name}:{split}")


def hub_name(spec: str) -> tuple[str, str | None, str]:
    """(name, config, split) of NAME[:CONFIG]:SPLIT. ValueError: it is of another form."""
    match = re.fullmatch(r"([^:]+)(?::([^:\[]+))?:([^:\[]+(?:\[.*\])?)", spec)
    if match is None:
        raise ValueError(f"hf:{spec}: a hub dataset is named hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
    name, config, split = match.groups()
    return name, config, split


def open_hub(spec: str) -> Source:
    """NAME[:CONFIG]:SPLIT on the Hugging Face hub, or in its cache when offline."""
    name, config, split = hub_name(spec)
    datasets = library()
    try:
        data = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"hf:{spec}: could not be loaded ({files.first_line(error)})") from None
    return from_datasets(data, f"{name}:{split}")


def encoded_images(data: Any) -> Any:
    """A Dataset or IterableDataset whose images stay encoded.

    `datasets` would decode them with every format of Pillow, and that of PostScript starts a program;
    decode.py opens raster formats alone.
    """
    for column, feature in (getattr(data, "features", None) or {}).items():
        if type(feature).__name__ == "Image":
            data = data.cast_column(column, library().Image(decode=False))
    return data


def from_datasets(data: Any, name: str) -> Source:
    if len(data) == 0:
        raise ValueError(f"{name}: the dataset has no rows")
    data = encoded_images(data)

    @functools.cache
    def selected(columns: tuple[str, ...]) -> Any:
        return data.select_columns(list(columns))

    def read(columns: Sequence[str], rows: np.ndarray) -> list[Sequence[Any]]:
        # The data lies in memory-mapped files, from which a slice is read faster than single rows.
        first, count = int(rows[0]), len(rows)
        together = np.array_equal(rows, np.arange(first, first + count))
        found = selected(tuple(columns))[slice(first, first + count) if together else rows.tolist()]
        return [found[column] for column in columns]

    return Source(
        name=name,
        columns=tuple(data.column_names),
        count=len(data),
        read=read,
        class_names=class_names(data.features),
        item_names=item_names(data.features),
    )


def item_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Of columns of lists of class numbers, the names they stand for."""
    return class_names({key: getattr(of, "feature", None) for key, of in features.items()})


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Of columns of class numbers, the names they stand for."""
    return {
        key: tuple(feature.names)
        for key, feature in features.items()
        if type(feature).__name__ == "ClassLabel"
    }
