"""One name for a dataset, wherever it lives -> a `Source`: random access to dicts of values.

Shuffling, splitting into batches and distribution exist once, elsewhere (batching.py).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.base.nearest import nearest
from jaxft.data import conll, files
from jaxft.data.delimited import read_delimited
from jaxft.data.files import Source
from jaxft.data.jsonl import read_jsonl
from jaxft.data.parquet import read_parquet
from jaxft.data.tfds import of_kind, records_of

__all__ = ["Source", "open_source"]

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".conll")
KINDS = (
    "a file *" + ", *".join(SUFFIXES) + "; a folder of class folders of images; a folder saved by "
    "datasets.save_to_disk (FOLDER or FOLDER:SPLIT); tfds:NAME:SPLIT; hf:NAME:SPLIT; "
    "sklearn:digits:train or :test"
)


def open_source(
    spec: str,
    *,
    data_dir: str | None = None,
    delimiter: str = "",
    labelled: bool = True,
    cache: str | None = None,
) -> Source:
    """Opens a dataset by its name (`KINDS` lists the forms).

    data_dir: where TFDS datasets are prepared; None is TFDS's own default.
    delimiter: of CSV and TSV files; '' is the suffix's, unless the header says otherwise.
    labelled: False also opens images without classes, for prediction: a single image file, a folder
      of images, a folder with a single subfolder of them. Their rows have no label.
    cache: folder in which what is found in a large table is kept for the next start; None: nowhere.

    Raises ValueError: in one line what is wrong, where, and what is nearest to it. Pipes, sockets
    and devices are refused before they are opened: a read of them may never end.
    """
    separator = _separator(delimiter)
    kind, _, rest = spec.partition(":")
    if kind == "tfds":
        return _open_tfds(rest, data_dir)
    if kind == "hf":
        return _open_hub(rest)
    if kind == "sklearn":
        return _open_digits(rest)
    if not spec:
        raise ValueError(f"no dataset is named; a dataset is {KINDS}")
    folder, _, split = spec.rpartition(":")
    if folder and os.path.isdir(os.path.expanduser(folder)) and not os.path.exists(spec):
        return _open_saved(files.existing(folder), split)
    path = files.existing(spec)
    if path.is_dir():
        return _open_folder(path, labelled)
    return _open_file(path, separator, labelled, cache)


def _separator(given: str) -> str:
    r"""The character of `config.data.delimiter`; a tab may be written as tab or \t."""
    found = "\t" if given in ("tab", "\\t") else given
    if len(found) > 1 or found in tuple('"\r\n\0 ') or found.isalnum():
        raise ValueError(
            f"config.data.delimiter={given!r} is not one character that separates fields, such as "
            "';' (a tab is written as tab); empty: by the file's suffix, or by its header"
        )
    return found


def _open_folder(path: Path, labelled: bool) -> Source:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _open_saved(path, "")
    if (path / "features.json").exists():
        return _open_tfds_folder(path, "", path.name)
    return files.read_image_folder(path, labelled=labelled)


def _open_file(path: Path, delimiter: str, labelled: bool, cache: str | None) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return read_delimited(path, ",", given=delimiter, cache=cache)
    if suffix == ".tsv":
        return read_delimited(path, "\t", given=delimiter, cache=cache)
    if suffix == ".jsonl":
        return read_jsonl(path)
    if suffix == ".parquet":
        return read_parquet(path)
    if suffix in conll.SUFFIXES:
        return conll.read_conll(path)
    if suffix in files.IMAGE_SUFFIXES and not labelled:
        return files.read_images(path.name, [str(path)])
    if suffix in files.IMAGE_SUFFIXES:
        raise ValueError(f"{path}: a single image has no label; give a folder of class folders")
    hint = nearest(suffix, SUFFIXES) if suffix else ""
    raise ValueError(
        f"{path.name}: unknown kind of file {path.suffix!r}{hint}; a dataset is {KINDS}"
    )


# Hugging Face datasets


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "Hugging Face datasets are read by an optional package: pip install 'jaxft[hf]'"
        ) from None
    return datasets


def _check_inside(folder: Path) -> None:
    """Of what a library is going to open: no pipes or devices, where it would wait for ever."""
    for entry in (*folder.glob("*"), *folder.glob("*/*")):
        files.existing(str(entry))


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _open_saved(path: Path, split: str) -> Source:
    """What `datasets.save_to_disk` wrote: one dataset, or a dict of splits."""
    _check_inside(path)
    try:
        data = _datasets().load_from_disk(str(path))
    except Exception as error:  # of whatever type the library meets in a folder that is not its own
        raise ValueError(f"{path}: not a readable saved dataset ({_reason(error)})") from None
    if hasattr(data, "column_names") and not isinstance(data, dict):
        if split:
            raise ValueError(f"{path} is a single dataset without splits; got split {split!r}")
        return _from_datasets(data, path.name)
    if split not in data:
        wanted = f"has no split {split!r}" if split else "has several splits; name one"
        splits = ", ".join(f"{path}:{name}" for name in data)
        raise ValueError(f"{path} {wanted}: {splits}")
    return _from_datasets(data[split], f"{path.name}:{split}")


def _open_hub(spec: str) -> Source:
    """NAME[:CONFIG]:SPLIT on the Hugging Face hub, or in its cache when offline."""
    match = re.fullmatch(r"([^:]+)(?::([^:\[]+))?:([^:\[]+(?:\[.*\])?)", spec)
    if match is None:
        raise ValueError(f"hf:{spec}: a hub dataset is named hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
    name, config, split = match.groups()
    datasets = _datasets()
    try:
        data = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"hf:{spec}: could not be loaded ({_reason(error)})") from None
    return _from_datasets(data, f"{name}:{split}")


def _from_datasets(data: Any, name: str) -> Source:
    if len(data) == 0:
        raise ValueError(f"{name}: the dataset has no rows")
    # Images stay encoded. `datasets` would decode them with every format of Pillow, and that of
    # PostScript starts a program; decode.py opens raster formats alone.
    for column, feature in data.features.items():
        if type(feature).__name__ == "Image":
            data = data.cast_column(column, _datasets().Image(decode=False))

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
        class_names=_class_names(data.features),
        item_names=_class_names(
            {key: getattr(feature, "feature", None) for key, feature in data.features.items()}
        ),
    )


def _class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Of those that are classes."""
    return {
        key: tuple(feature.names)
        for key, feature in features.items()
        if type(feature).__name__ == "ClassLabel"
    }


# TFDS, read without tensorflow


def _open_tfds(spec: str, data_dir: str | None) -> Source:
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
    return _open_tfds_folder(versions[wanted], split, f"{name}:{split}")


def _what_is_prepared(root: Path, name: str, versions: list[str]) -> str:
    if versions:
        return f"; prepared versions: {', '.join(sorted(versions))}"
    configs = sorted(p.parent.parent.name for p in (root / name).glob("*/*/dataset_info.json"))
    if configs:
        return "; prepared configs: " + ", ".join(f"{name}/{config}" for config in configs)
    return nearest(name, [p.name for p in root.iterdir()] if root.is_dir() else [])


def _open_tfds_folder(folder: Path, split: str, name: str) -> Source:
    import tensorflow_datasets as tfds

    _check_inside(folder)
    try:
        builder = tfds.builder_from_directory(str(folder))
    except Exception as error:  # of whatever type the library meets in files that are not its own
        raise ValueError(f"{folder}: not a readable TFDS dataset ({_reason(error)})") from None
    splits = ", ".join(builder.info.splits)
    if not split:
        raise ValueError(f"{folder} is a TFDS dataset: write tfds:NAME:SPLIT (splits: {splits})")
    features = dict(builder.info.features.items())
    # Images stay encoded: reading labels then decodes nothing, and images.py decodes all alike.
    encoded = {key: tfds.decode.SkipDecoding() for key in of_kind(features, tfds.features.Image)}
    try:
        data = builder.as_data_source(split=split, decoders=encoded)
    except NotImplementedError:
        raise ValueError(
            f"tfds:{name} is prepared in a format without random access; prepare it again with "
            "--file_format=array_record"
        ) from None
    except ValueError as error:
        raise ValueError(f"tfds:{name}: {_reason(error)} (splits: {splits})") from None
    if len(data) == 0:
        raise ValueError(f"tfds:{name}: the split has no rows")
    return records_of(data, features, name)


# The digits that scikit-learn ships


def _open_digits(spec: str) -> Source:
    """1,797 handwritten digits, 8x8 grey; every fifth example of each class is in ':test'.

    The values 0..16 become 0..255 (round(x * 255 / 16)), so that they are images like others.
    """
    if spec not in ("digits:train", "digits:test"):
        raise ValueError(f"sklearn:{spec}: there are sklearn:digits:train and sklearn:digits:test")
    from sklearn.datasets import load_digits

    digits = load_digits()
    within_class = np.zeros(len(digits.target), np.int64)
    for label in range(10):
        members = digits.target == label
        within_class[members] = np.arange(members.sum())
    chosen = (within_class % 5 == 4) == (spec == "digits:test")
    images = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return files.table(
        spec,
        {"image": images, "label": digits.target[chosen].tolist()},
        class_names={"label": tuple(str(label) for label in range(10))},
    )
