"""One name for a dataset, wherever it lives -> a `Source`: random access to dicts of values.

Shuffling, splitting into batches and distribution exist once, elsewhere (batching.py).
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from pathlib import Path

import numpy as np

from jaxft.base.nearest import nearest
from jaxft.data import arrow, compressed, conll, files, hugging_face, jsonl, remote, tfds
from jaxft.data.combined import joined, sliced, split_slice
from jaxft.data.delimited import read_delimited
from jaxft.data.files import Source
from jaxft.data.image_paths import located
from jaxft.data.json_rows import read_json
from jaxft.data.parquet import read_parquet
from jaxft.data.plain_text import read_text

__all__ = ["Source", "open_source"]

SUFFIXES = (
    ".csv", ".tsv", *jsonl.SUFFIXES, ".json", ".parquet", *arrow.SUFFIXES, ".txt", ".conll"
)  # fmt: skip
KINDS = (
    "a file *"
    + ", *".join(SUFFIXES)
    + " (also compressed: "
    + ", ".join(compressed.SUFFIXES)
    + "); "
    "several, FILE,FILE or a pattern like part-*.csv; s3://, gs:// or https://…; a folder of class "
    "folders of images; a folder saved by datasets.save_to_disk (FOLDER or FOLDER:SPLIT); "
    "tfds:NAME:SPLIT; hf:NAME:SPLIT; sklearn:digits:train or :test"
)
_APART = re.compile(r",(?![^\[]*\])")


@dataclasses.dataclass(frozen=True)
class _Opening:
    """The arguments of `open_source`."""

    data_dir: str | None
    delimiter: str
    sample_by: str
    labelled: bool
    images: bool
    skip: bool
    cache: str | None


def open_source(
    spec: str,
    *,
    data_dir: str | None = None,
    delimiter: str = "",
    sample_by: str = "auto",
    labelled: bool = True,
    images: bool = False,
    skip: bool = False,
    cache: str | None = None,
) -> Source:
    """Opens a dataset by its name (`KINDS` lists the forms).

    Several names, with commas between them, and patterns give one source of all their rows. Behind each may
    be a slice: 'a.csv[:80%]', 'hf:NAME:train[100:200]'.

    data_dir: where TFDS datasets are prepared; None is TFDS's own default.
    delimiter: of CSV and TSV files; '' is the suffix's, unless the header says otherwise.
    sample_by: what a row of a text file is; see `plain_text.read_text`.
    labelled: False also opens images without classes, for prediction: a single image file, a folder
      of images, a folder with a single subfolder of them. Their rows have no label.
    images: columns of a file may hold paths of images; see `image_paths.located`.
    skip: records of CSV, TSV and JSONL files that cannot be read are left out, and counted in the notes.
    cache: folder in which what is found in a large table is kept for the next start (None: nowhere), and
      what is unpacked or downloaded (None: the user's own cache).

    Raises ValueError: in one line what is wrong, where, and what is nearest to it. Pipes, sockets
    and devices are refused before they are opened: a read of them may never end.
    """
    opening = _Opening(data_dir, separator(delimiter), sample_by, labelled, images, skip, cache)
    if not spec.strip():
        raise ValueError(f"no dataset is named; a dataset is {KINDS}")
    names = [spec] if _is_there(spec) else [name.strip() for name in _APART.split(spec)]
    if not all(names):
        raise ValueError(f"{spec!r} names nothing between two commas, or behind the last one")
    parts = [part for name in names for part in _opened(name, opening)]
    more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
    return joined(f"{parts[0].name}{more}", parts)


def refuse_missing(spec: str) -> None:
    """ValueError for a plain path where nothing is, for use before a model is read."""
    if spec.strip() and not any(sign in spec for sign in ":,*?["):
        files.existing(spec)


def _is_there(name: str) -> bool:
    try:
        return os.path.exists(os.path.expanduser(name))
    except ValueError:  # a NUL character
        return False


def _opened(name: str, opening: _Opening) -> list[Source]:
    """The source, or those that a pattern stands for."""
    kind, _, rest = name.partition(":")
    if kind == "tfds":
        return [tfds.open_prepared(rest, opening.data_dir, opening.cache)]
    if kind == "hf" and not remote.is_remote(name):
        return [hugging_face.open_hub(rest)]
    plain, bounds = (name, None) if _is_there(name) else split_slice(name)
    if kind == "sklearn":
        found = _open_digits(plain.partition(":")[2])
    else:
        found = joined(os.path.basename(plain), [_at(one, opening) for one in matching(plain)])
    return [found if bounds is None else sliced(found, bounds)]


def matching(pattern: str) -> list[str]:
    """The files that a pattern stands for, sorted; a name that is none stands for itself."""
    if not glob.has_magic(pattern) or _is_there(pattern):
        return [pattern]
    if remote.is_remote(pattern):
        # (A question mark begins the query of an address.)
        return remote.matching(pattern) if glob.has_magic(pattern.replace("?", "")) else [pattern]
    if found := sorted(glob.glob(os.path.expanduser(pattern), recursive=True)):
        return found
    if _is_there(whole := pattern.partition("[")[0]):
        raise ValueError(
            f"{pattern}: a part of {whole} is written {whole}[:80%], {whole}[80%:] or {whole}[100:200]"
        )
    folder = os.path.dirname(pattern)
    if glob.has_magic(folder) or not os.path.isdir(os.path.expanduser(folder or ".")):
        raise ValueError(f"{pattern}: no file has such a name")
    there = sorted(n for n in os.listdir(os.path.expanduser(folder or ".")) if n[:1] != ".")
    raise ValueError(
        f"{pattern}: no file has such a name; {folder or '.'!r} holds {files.some(there)}"
    )


def _at(name: str, opening: _Opening) -> Source:
    """What is at this path or address."""
    notes: tuple[str, ...] = ()
    if remote.is_remote(name):
        path, notes = remote.downloaded(name, opening.cache)
    else:
        folder, _, split = name.rpartition(":")
        if folder and os.path.isdir(os.path.expanduser(folder)) and not _is_there(name):
            return hugging_face.open_saved(files.existing(folder), split)
        path = files.existing(name)
    if path.is_dir():
        return _open_folder(path, opening.labelled)
    source = _open_file(path, opening)
    if opening.images and not remote.is_remote(name):
        source = located(source, path.parent)
    return dataclasses.replace(source, notes=notes + source.notes) if notes else source


def separator(given: str) -> str:
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
        return hugging_face.open_saved(path, "")
    if (path / "features.json").exists():
        return tfds.open_folder(path, "", path.name)
    return files.read_image_folder(path, labelled=labelled)


def _open_file(path: Path, opening: _Opening) -> Source:
    suffix = path.suffix.lower()
    if suffix in compressed.SUFFIXES:
        path = compressed.unpacked(path, opening.cache)
        suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        separator = "," if suffix == ".csv" else "\t"
        return read_delimited(
            path, separator, given=opening.delimiter, cache=opening.cache, skip=opening.skip
        )
    if suffix == ".txt":
        return read_text(path, opening.sample_by)
    if suffix in jsonl.SUFFIXES:
        return jsonl.read_jsonl(path, skip=opening.skip)
    if suffix == ".json":
        return read_json(path, skip=opening.skip)
    for suffixes, read in _READERS.items():
        if suffix in suffixes:
            return read(path)
    if suffix in files.IMAGE_SUFFIXES and not opening.labelled:
        return files.read_images(path.name, [str(path)])
    if suffix in files.IMAGE_SUFFIXES:
        raise ValueError(f"{path}: a single image has no label; give a folder of class folders")
    if suffix in compressed.ARCHIVES:
        raise compressed.refused(path)
    hint = nearest(suffix, SUFFIXES) if suffix else ""
    raise ValueError(
        f"{path.name}: unknown kind of file {path.suffix!r}{hint}; a dataset is {KINDS}"
    )


_READERS = {
    (".parquet",): read_parquet,
    arrow.SUFFIXES: arrow.read_arrow,
    conll.SUFFIXES: conll.read_conll,
}


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
