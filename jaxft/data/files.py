"""`Source`, what every reader returns; columns in memory, and image folders.

A source gives the values of a few rows at a time, so that no step holds those of all rows.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.base.nearest import nearest
from jaxft.data.facts import Facts
from jaxft.data.mixture import Mixture

# The formats that Pillow reads without a plug-in and that people keep photographs in.
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm".split())
# Rows that are in memory at a time: enough that what a chunk costs beside its rows does not count.
CHUNK = 1024

# columns, rows [k] int64 -> of each column its k values
Read = Callable[[Sequence[str], np.ndarray], list[Sequence[Any]]]


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to the rows of a dataset, as Python values.

    `class_names` holds, for a column of class numbers, the names they stand for (from TFDS,
    Hugging Face and image folders; empty for plain files), `item_names` the same for a column of
    lists of them.
    """

    name: str  # for messages: file name, or dataset name and split
    columns: tuple[str, ...]
    count: int
    read: Read  # of a few rows: what it returns is in memory; called in several threads
    class_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    lines: (
        Sequence[int] | np.ndarray
    ) = ()  # the line of each row in its file, where rows have lines
    paths: Sequence[str] = ()  # the file of each row, where rows are files
    notes: tuple[str, ...] = ()  # what was found rather than given, one line each
    item_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    facts: Facts | None = None  # what is kept of an earlier reading of the same file
    mixture: Mixture | None = None  # of which sources it is made, where these have shares
    place: Callable[[int], str] | None = None  # of a row, where neither lines nor paths tell it

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> dict[str, Any]:
        values = self.read(self.columns, np.array([row], np.int64))
        return {column: value for column, (value,) in zip(self.columns, values, strict=True)}

    def chunks(
        self, columns: Sequence[str], rows: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, list[Sequence[Any]]]]:
        """`rows` [n] int64 in their order, `CHUNK` at a time: (rows [k], of each column k values).

        None is all rows. Rows that ascend are read fastest.
        """
        count = self.count if rows is None else len(rows)
        for start in range(0, count, CHUNK):
            stop = min(start + CHUNK, count)
            part = np.arange(start, stop) if rows is None else rows[start:stop]
            yield part, self.read(columns, part)

    def column(self, name: str) -> list[Any]:
        """All values of one column, in row order; `chunks` gives them without holding them all."""
        return [value for _, (values,) in self.chunks((name,)) for value in values]

    def where(self, row: int) -> str:
        """The place of a row as a user counts: 'train.csv, line 12', 'glue/sst2:train, row 3'.

        Where rows are files it is the file: 'photos/daisy/a.png'.
        """
        if self.place is not None:
            return self.place(row)
        return self.paths[row] if self.paths else f"{self.name}, {self.numbered([row])}"

    def numbered(self, rows: Sequence[int] | np.ndarray, limit: int = 5) -> str:
        """'line 3', 'lines 3, 8, 9, …' or 'rows 1, 2'; of several files, and where rows are files, places."""
        shown = [int(row) for row in rows[:limit]]
        more = ", …" if len(rows) > limit else ""
        if self.paths or self.place is not None:
            return ", ".join(map(self.where, shown)) + more
        by_line = len(self.lines) > 0
        numbers = [int(self.lines[row]) if by_line else row + 1 for row in shown]
        kind = ("line" if by_line else "row") + ("s" if len(rows) > 1 else "")
        return f"{kind} {', '.join(map(str, numbers))}{more}"


@dataclasses.dataclass(frozen=True)
class Column:
    """The values of a column in some rows [n] int64, read a few at a time whenever they are gone through.

    convert: what is made of each.
    """

    source: Source
    name: str
    rows: np.ndarray
    convert: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        for _, (values,) in self.source.chunks((self.name,), self.rows):
            yield from map(self.convert, values)

    def take(self, positions: np.ndarray) -> Column:
        """The values at these positions (of this selection, not of the source)."""
        return dataclasses.replace(self, rows=self.rows[positions])


def some(names: Sequence[str], limit: int = 8) -> str:
    """The names in quotes, the first ones of many; 'nothing' for none."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(map(repr, names[:limit])) + more) if names else "nothing"


def table(
    name: str,
    columns: Mapping[str, Sequence[Any]],
    *,
    class_names: Mapping[str, tuple[str, ...]] | None = None,
    lines: Sequence[int] = (),
    paths: Sequence[str] = (),
    notes: tuple[str, ...] = (),
) -> Source:
    """A source over columns held in memory, all of one length."""

    def read(names: Sequence[str], rows: np.ndarray) -> list[Sequence[Any]]:
        chosen = rows.tolist()
        return [[columns[name][row] for row in chosen] for name in names]

    return Source(
        name=name,
        columns=tuple(columns),
        count=len(next(iter(columns.values()))),
        read=read,
        class_names=class_names or {},
        lines=lines,
        paths=paths,
        notes=notes,
    )


# Paths


def existing(path: str) -> Path:
    """The path of a regular file or a folder, symbolic links followed.

    Raises ValueError: nothing is there (the nearest name in its folder is named); it is a pipe, a
    socket or a device, from which a read may never end; its name is not UTF-8.
    """
    check_name(path)
    # (Not Path.expanduser, which raises RuntimeError for the home of a user that does not exist.)
    found = Path(os.path.expanduser(path))
    try:
        mode = os.stat(found).st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise _missing(path, found, error) from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{path}: {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}; {_INSTEAD}")
    return found


_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip
_INSTEAD = "data is read from a regular file or a folder, so write it to one first"


def _missing(path: str, found: Path, error: Exception) -> ValueError:
    if os.path.islink(found):
        return ValueError(f"{path}: a symbolic link to {os.readlink(found)!r}, which is not there")
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        reason = getattr(error, "strerror", None) or str(error)
        return ValueError(f"{path!r:.200}: cannot be opened ({reason.lower()})")
    if not found.parent.is_dir():
        return ValueError(f"{path}: there is no folder {str(found.parent)!r}")
    siblings = sorted(p.name for p in found.parent.iterdir() if not p.name.startswith("."))
    hint = nearest(found.name, siblings) or f"; {str(found.parent)!r} holds {some(siblings)}"
    return ValueError(f"{path}: no such file or folder{hint}")


def check_name(path: str) -> None:
    """ValueError for a name that is not UTF-8: it could be written to no JSON, report or table."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise ValueError(
            f"{shown}: the name of this file or folder is not UTF-8; rename it (for example by: "
            "convmv -f WINDOWS-1252 -t UTF-8 --notest)"
        ) from None


def check_inside(folder: Path) -> None:
    """Of what a library is going to open: no pipes or devices, where it would wait for ever."""
    for entry in (*folder.glob("*"), *folder.glob("*/*")):
        existing(str(entry))


def first_line(error: Exception) -> str:
    """What an error of a library says, or its type."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


# Image folders


def read_image_folder(path: Path, *, labelled: bool = True) -> Source:
    """A folder with one subfolder of images per class; rows {'image': path, 'label': number}.

    labelled: False also takes what has no classes, and then has rows {'image': path}: a folder with
      images in it (those of its subfolders follow), and one that holds them in a single subfolder.

    Classes and files are sorted by name. Hidden files and files that are no images are passed over.
    """
    check_name(str(path))
    loose = _images(path)
    folders = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    images = {folder.name: found for folder in folders if (found := _images(folder))}
    nested = [file for group in images.values() for file in group]
    if not labelled and (loose or len(images) == 1):
        return read_images(path.name, loose + nested)
    if not images:
        raise _no_image_folder(path, folders, loose)
    classes = [label for label, group in enumerate(images.values()) for _ in group]
    notes = (f"{path}: {len(loose)} images outside the class folders are left out",)
    return table(
        path.name,
        {"image": nested, "label": classes},
        class_names={"label": tuple(images)},
        paths=nested,
        notes=notes if loose else (),
    )


def read_images(name: str, paths: Sequence[str]) -> Source:
    """Images without labels: rows {'image': path}."""
    return table(name, {"image": paths}, paths=paths)


def _no_image_folder(path: Path, folders: list[Path], loose: list[str]) -> ValueError:
    start = f"{path}: not an image folder (one subfolder of images per class)"
    if loose:
        return ValueError(f"{start}: its {len(loose)} images are in no subfolder, so in no class")
    inner = [str(f) for f in folders if any(_images(p) for p in f.iterdir() if p.is_dir())]
    if inner:
        return ValueError(f"{start}; the class folders are in {some(inner)}")
    names = sorted(p.name for p in path.iterdir())
    hint = "; name one of its files" if any(n.endswith((".parquet", ".csv")) for n in names) else ""
    return ValueError(f"{start}, nor a saved dataset; it holds {some(names)}{hint}")


def _images(folder: Path) -> list[str]:
    """Paths of the images in a folder, sorted; ValueError for one that is a pipe or leads nowhere."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith("."):
                check_name(entry.path)
                if entry.is_file():
                    found.append(entry.path)
                elif not entry.is_dir():
                    existing(entry.path)  # says what it is
    return sorted(found)
