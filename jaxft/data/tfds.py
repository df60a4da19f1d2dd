"""Datasets that TFDS prepared, read without tensorflow where they have random access (else tfds_copy.py)."""

from __future__ import annotations

import dataclasses
import functools
import re
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.base.nearest import nearest
from jaxft.data import files, records
from jaxft.data.files import Source
from jaxft.data.tfds_copy import with_random_access


def open_prepared(spec: str, data_dir: str | None, cache: str | None = None) -> Source:
    """NAME[/CONFIG][:VERSION]:SPLIT, prepared on disk; nothing is ever downloaded."""
    match = re.fullmatch(r"([^:]+)(?::(\d+\.\d+\.\d+))?:(.+)", spec)
    if match is None:
        raise ValueError(f"tfds:{spec}: a TFDS dataset is named tfds:NAME:SPLIT")
    name, version, split = match.groups()
    root = Path(data_dir or "~/tensorflow_datasets").expanduser()
    versions = {
        tuple(map(int, path.parent.name.split("."))): path.parent
        for path in (root / name).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    }
    wanted = tuple(map(int, version.split("."))) if version else max(versions, default=())
    if wanted not in versions:
        raise ValueError(
            f"tfds:{spec} is not prepared in {str(root)!r} (nothing is downloaded here; run "
            f"`tfds build {name} --data_dir={root} --file_format=array_record`)"
            + _what_is_prepared(root, name, [path.name for path in versions.values()])
        )
    return open_folder(versions[wanted], split, f"{name}:{split}", cache)


def _what_is_prepared(root: Path, name: str, versions: list[str]) -> str:
    if versions:
        return f"; prepared versions: {', '.join(sorted(versions))}"
    configs = sorted(p.parent.parent.name for p in (root / name).glob("*/*/dataset_info.json"))
    if configs:
        return "; prepared configs: " + ", ".join(f"{name}/{config}" for config in configs)
    return nearest(name, [p.name for p in root.iterdir()] if root.is_dir() else [])


def open_folder(folder: Path, split: str, name: str, cache: str | None = None) -> Source:
    """A split of what TFDS prepared in this folder.

    cache: folder for the copy of a dataset without random access; None: the user's own cache.

    Raises ValueError: no such dataset or split, no rows; see `tfds_copy.with_random_access`, too.
    """
    import tensorflow_datasets as tfds

    files.check_inside(folder)
    try:
        builder = tfds.builder_from_directory(str(folder))
    except Exception as error:  # of whatever type the library meets in files that are not its own
        raise ValueError(
            f"{folder}: not a readable TFDS dataset ({files.first_line(error)})"
        ) from None
    splits = ", ".join(builder.info.splits)
    if not split:
        raise ValueError(f"{folder} is a TFDS dataset: write tfds:NAME:SPLIT (splits: {splits})")
    features = dict(builder.info.features.items())
    # Images stay encoded: reading labels then decodes nothing, and images.py decodes all alike.
    encoded = {key: tfds.decode.SkipDecoding() for key in of_kind(features, tfds.features.Image)}
    try:
        builder.info.splits[split]
    except (KeyError, ValueError) as error:
        raise ValueError(f"tfds:{name}: {files.first_line(error)} (splits: {splits})") from None
    builder, notes = with_random_access(builder, split, name, cache)
    data = builder.as_data_source(split=split, decoders=encoded)
    if len(data) == 0:
        raise ValueError(f"tfds:{name}: the split has no rows")
    return dataclasses.replace(records_of(data, features, name), notes=notes)


def of_kind(features: Mapping[str, Any], kind: type) -> set[str]:
    """The columns that are of this kind of `tfds.features`."""
    return {key for key, feature in features.items() if isinstance(feature, kind)}


def records_of(data: Any, features: Mapping[str, Any], name: str) -> Source:
    """A source of the records of `data`, what `as_data_source` of a split gives.

    A record is read whole, whatever is wanted of it. So class numbers are kept from one pass, and texts,
    too, as long as those of all records are small; beyond that they are read each time.

    Raises ValueError, when it is read: a text that is not UTF-8.
    """
    import tensorflow_datasets as tfds

    text = of_kind(features, tfds.features.Text)
    classes = of_kind(features, tfds.features.ClassLabel)

    @functools.cache
    def kept() -> _Kept:
        return _Kept(data, text, classes)

    def decoded(row: int, key: str, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")  # TFDS gives text as bytes
        except UnicodeDecodeError:
            raise ValueError(f"tfds:{name}, row {row + 1}: {key!r} is not UTF-8") from None

    def read(columns: Sequence[str], rows: np.ndarray) -> list[Sequence[Any]]:
        chosen = rows.tolist()
        if text.union(classes).issuperset(columns) and kept().has(columns):
            stored = [kept().values(column, chosen) for column in columns]
        else:
            whole = [data[row] for row in chosen]
            stored = [[record[column] for record in whole] for column in columns]
        found: list[Sequence[Any]] = []
        for column, raw in zip(columns, stored, strict=True):
            if column in text:
                raw = [decoded(row, column, one) for row, one in zip(chosen, raw, strict=True)]
            found.append(raw)
        return found

    return Source(
        name=name,
        columns=tuple(sorted(features)),  # their order in the file changes from process to process
        count=len(data),
        read=read,
        class_names={key: tuple(features[key].names) for key in classes},
    )


class _Kept:
    """Class numbers, 4 bytes each, and texts, one after the other with where each begins."""

    def __init__(self, data: Any, text: set[str], classes: set[str]):
        self._numbers = {key: array("i") for key in classes}
        self._texts = {key: (bytearray(), array("q", [0])) for key in text}
        for row in range(len(data)):
            record = data[row]
            for key, numbers in self._numbers.items():
                numbers.append(int(record[key]))
            for key, (texts, ends) in self._texts.items():
                texts += record[key]
                ends.append(len(texts))
            if sum(len(texts) for texts, _ in self._texts.values()) > records.KEPT:
                self._texts.clear()

    def has(self, columns: Sequence[str]) -> bool:
        """Whether all of these are kept."""
        return all(column in self._numbers or column in self._texts for column in columns)

    def values(self, column: str, rows: Sequence[int]) -> list[Any]:
        """Of some rows: numbers, or the bytes of texts."""
        if column in self._numbers:
            return [self._numbers[column][row] for row in rows]
        texts, ends = self._texts[column]
        return [bytes(texts[ends[row] : ends[row + 1]]) for row in rows]
