"""Data that is read from its beginning to its end, a block of rows at a time: no random access, any size.

`datasets` reads; what it says of its iterator after a row is how to go on from there.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxft.base.nearest import nearest
from jaxft.data import arrow, combined, compressed, files, hugging_face, jsonl, remote
from jaxft.data.delimited import DELIMITERS
from jaxft.data.files import Source
from jaxft.data.sources import matching, separator

# The builder of `datasets` for each kind of file.
_BUILDERS = {
    **dict.fromkeys((*jsonl.SUFFIXES, ".json"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".parquet": "parquet",
    **dict.fromkeys(arrow.SUFFIXES, "arrow"),
    ".txt": "text",
}
FORMS = (
    f"files *{', *'.join(_BUILDERS)} (also compressed, several, or remote), hf:NAME:SPLIT, or a "
    "datasets.IterableDataset that is handed over"
)
_AT_RANDOM = f"has random access: leave config.data.stream None; a stream is of {FORMS}"


@dataclasses.dataclass(frozen=True)
class Position:
    """Between two rows of a stream.

    Attributes:
      epoch: passes that were made before.
      row: rows of this pass that were read before.
      state: of the iterator there, as `datasets` gives it (JSON values); None: the beginning.
    """

    epoch: int = 0
    row: int = 0
    state: Mapping[str, Any] | None = None


class Stream:
    """The rows of one iterable dataset, again and again.

    name: for messages.
    opened: an `IterableDataset` at its beginning.
    rows: of a block.
    """

    def __init__(self, name: str, opened: Callable[[], Any], rows: int):
        self.name, self._opened, self._rows = name, opened, rows
        self._lock = threading.Lock()
        self._live: tuple[Position, Any, Iterator[Mapping[str, Any]]] | None = None

    def read(self, position: Position) -> tuple[Source, Position]:
        """The block that begins at a position, and where the next one begins.

        A block ends where a pass ends; it holds at least one row. Going on from where the last call ended
        reads no row twice.

        Raises:
          ValueError: there is no row, or the library fails on one.
        """
        with self._lock:
            return self._read(position)

    def _read(self, position: Position) -> tuple[Source, Position]:
        try:
            dataset, iterator = self._at(position)
            rows = list(itertools.islice(iterator, self._rows))
            state = copy.deepcopy(dataset.state_dict())
        except Exception as error:  # of whatever type the library meets in somebody's data
            at = f", after row {position.row:,}" if position.row else ""
            raise ValueError(
                f"{self.name}{at}: the stream cannot be read ({files.first_line(error)})"
            ) from None
        if not rows and not position.row:
            raise ValueError(f"{self.name}: the stream has no rows")
        if not rows:  # the block before ended with the pass
            return self._read(Position(position.epoch + 1))
        after = Position(position.epoch, position.row + len(rows), state)
        if len(rows) < self._rows:
            after = Position(position.epoch + 1)
        self._live = (after, dataset, iterator)
        return _block(self.name, rows, position.row, getattr(dataset, "features", None)), after

    def _at(self, position: Position) -> tuple[Any, Iterator[Mapping[str, Any]]]:
        if self._live is not None and self._live[0] == position and position.row:
            return self._live[1:]
        dataset = hugging_face.encoded_images(self._opened())
        if hasattr(dataset, "set_epoch"):  # of which a shuffle of its own depends
            dataset.set_epoch(position.epoch)
        if position.state is not None:
            dataset.load_state_dict(copy.deepcopy(dict(position.state)))
        return dataset, iter(dataset)


def _block(name: str, rows: list[Mapping[str, Any]], before: int, features: Any) -> Source:
    columns = dict.fromkeys(column for row in rows for column in row)
    found = files.table(
        name,
        {column: [row.get(column) for row in rows] for column in columns},
        class_names=hugging_face.class_names(features or {}),
    )
    return dataclasses.replace(
        found,
        item_names=hugging_face.item_names(features or {}),
        place=lambda row: f"{name}, row {before + row + 1:,}",
    )


def is_stream(data: Any) -> bool:
    """Whether an object is an `IterableDataset`, or says as that does where its iterator is."""
    return all(hasattr(data, name) for name in ("state_dict", "load_state_dict", "__iter__"))


def handed_stream(name: str, data: Any, rows: int) -> Stream:
    """Of an `IterableDataset` in memory. ValueError: it is none."""
    if not is_stream(data):
        raise ValueError(f"{name} is a {type(data).__name__}, which {_AT_RANDOM}")
    return Stream(name, lambda: copy.copy(data), rows)


def open_stream(spec: str, rows: int, *, delimiter: str = "", sample_by: str = "auto") -> Stream:
    """What a config names as its training data, as a stream of blocks of `rows` rows.

    delimiter, sample_by: as of `open_source`.

    Raises:
      ValueError: nothing is there, or it cannot be streamed.
    """
    kind, _, rest = spec.partition(":")
    if kind == "hf" and not remote.is_remote(spec):
        name, config, split = hugging_face.hub_name(rest)
        opened = _opening(spec, name, config, split=split)
        return Stream(f"{name}:{split}", opened, rows)
    names = [spec] if os.path.exists(spec) else [name.strip() for name in spec.split(",")]
    if not all(names):
        raise ValueError(f"{spec!r} names nothing between two commas, or behind the last one")
    paths = [path for name in names for path in _paths(name)]
    suffixes = [_suffix(path) for path in paths]
    builder = _BUILDERS[suffixes[0]]
    tabs = [suffix == ".tsv" for suffix in suffixes]
    if {_BUILDERS[suffix] for suffix in suffixes} != {builder} or len(set(tabs)) > 1:
        shown = files.some([os.path.basename(path) for path in paths])
        raise ValueError(f"{spec}: a stream is of files of one kind, not {shown}")
    options: dict[str, Any] = {}
    if builder == "csv":
        options = _of_table(spec, paths, delimiter, "\t" if tabs[0] else ",")
    if builder == "text":
        options["sample_by"] = "line" if sample_by == "auto" else sample_by
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    name = os.path.basename(paths[0]) + more
    return Stream(name, _opening(spec, builder, None, data_files=paths, **options), rows)


def _of_table(spec: str, paths: list[str], given: str, usual: str) -> dict[str, Any]:
    """How cells are read: as texts as they stand, as when a file is read at random: pandas would take '007'
    for a number.

    given: `config.data.delimiter`. usual: what separates where that is ''.
    """
    between = separator(given) or usual
    options: dict[str, Any] = {"sep": between, "keep_default_na": False}
    found = _opening(spec, "csv", None, data_files=paths, **options)()
    columns = found.column_names or list(next(iter(found), {}))
    if len(columns) == 1 and not given and any(other in columns[0] for other in DELIMITERS):
        raise ValueError(
            f"{spec}: the header {columns[0]!r} is not separated by {between!r}; name what separates its "
            "columns by config.data.delimiter"
        )
    library = hugging_face.library()
    features = library.Features(dict.fromkeys(columns, library.Value("string")))
    return {**options, "features": features}


def _opening(spec: str, name: str, config: str | None, **options: Any) -> Callable[[], Any]:
    """Opens it, now once and whenever the result is called."""
    options.setdefault("split", "train")

    def opened() -> Any:
        try:
            return hugging_face.library().load_dataset(name, config, streaming=True, **options)
        except Exception as error:  # of whatever type the library meets in somebody's data
            reason = files.first_line(error)
            raise ValueError(f"{spec}: could not be opened as a stream ({reason})") from None

    opened()
    return opened


def _paths(name: str) -> list[str]:
    if name.startswith(("tfds:", "sklearn:")):
        raise ValueError(f"{name} {_AT_RANDOM}")
    if combined.split_slice(name)[1] is not None and not os.path.exists(name):
        raise ValueError(f"{name} is a part, which {_AT_RANDOM}")
    found = matching(name)
    if remote.is_remote(name):
        return found
    paths = [files.existing(path) for path in found]
    if folders := [path for path in paths if path.is_dir()]:
        raise ValueError(f"{folders[0]} is a folder, which {_AT_RANDOM}")
    return [str(path) for path in paths]


def _suffix(path: str) -> str:
    """Of what a file holds, compressed or not: one of `_BUILDERS`."""
    plain = Path(path.partition("?")[0])
    suffix = (
        Path(plain.stem).suffix if plain.suffix in compressed.SUFFIXES else plain.suffix
    ).lower()
    if suffix not in _BUILDERS:
        hint = nearest(suffix, tuple(_BUILDERS)) if suffix else ""
        raise ValueError(f"{path}: {suffix!r} cannot be streamed{hint}; a stream is of {FORMS}")
    return suffix
