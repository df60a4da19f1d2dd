"""Readers of CSV, TSV, JSONL, Parquet and image folders, and `Source`, what every reader returns.

Tables are read whole (fine-tuning text fits in memory); images are read when they are decoded.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

# The formats that Pillow reads without a plug-in and that people keep photographs in.
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm".split())


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to the rows of a dataset as dicts of Python values.

    `class_names` holds, for a column of class numbers, the names they stand for (from TFDS,
    Hugging Face and image folders; empty for plain files).
    """

    name: str  # for messages: file name, or dataset name and split
    columns: tuple[str, ...]
    count: int
    read_row: Callable[[int], dict[str, Any]]
    read_column: Callable[[str], Sequence[Any]]
    class_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    lines: Sequence[int] = ()  # the line of each row in its file, where rows have lines

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.read_row(row)

    def column(self, name: str) -> Sequence[Any]:
        """All values of one column, in row order."""
        return self.read_column(name)

    def where(self, row: int) -> str:
        """The place of a row as a user counts: 'train.csv, line 12' or 'glue/sst2:train, row 3'."""
        return f"{self.name}, " + (f"line {self.lines[row]}" if self.lines else f"row {row + 1}")


def nearest(name: str, choices: Collection[str]) -> str:
    """'; did you mean X?' or '': the end of a message about a name that does not exist."""
    lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return f"; did you mean {lower[found[0]]!r}?" if found else ""


def table(
    name: str,
    columns: Mapping[str, Sequence[Any]],
    *,
    class_names: Mapping[str, tuple[str, ...]] | None = None,
    lines: Sequence[int] = (),
) -> Source:
    """A source over columns held in memory, all of one length."""
    return Source(
        name=name,
        columns=tuple(columns),
        count=len(next(iter(columns.values()))),
        read_row=lambda row: {key: values[row] for key, values in columns.items()},
        read_column=lambda key: columns[key],
        class_names=class_names or {},
        lines=lines,
    )


def existing(path: str) -> Path:
    """The path, or a ValueError that names what is nearest to it in its folder."""
    found = Path(path).expanduser()
    if found.exists():
        return found
    if not found.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {str(found.parent)!r}")
    siblings = sorted(p.name for p in found.parent.iterdir() if not p.name.startswith("."))
    hint = nearest(found.name, siblings) or f"; {str(found.parent)!r} holds {_some(siblings)}"
    raise ValueError(f"{path}: no such file or folder{hint}")


def _some(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(map(repr, names[:limit])) + more) if names else "nothing"


def read_delimited(path: Path, delimiter: str) -> Source:
    """A CSV or TSV file: UTF-8 with or without a byte order mark, a header, quoted line ends.

    Raises ValueError, naming the line: empty file, no header, a row with too few or too many
    fields, a quote that is never closed, bytes that are not UTF-8.
    """
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for row in reader:
                if row:  # csv gives [] for a blank line
                    rows.append(row)
                    lines.append(start)
                    if len(row) != len(rows[0]):
                        raise ValueError(
                            f"{path.name}, line {start}: {len(row)} fields, but the header has "
                            f"{len(rows[0])} ({_some(rows[0])})"
                        )
                # A row may span lines, so the next one starts after the last line read.
                start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path.name}, line {start}: bad quoting ({error}); a quote inside a quoted field is "
            'written twice (""), and an opened quote must be closed'
        ) from None
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    if not rows:
        raise ValueError(f"{path.name}: the file is empty")
    header = _header(path, rows.pop(0), delimiter)
    if not rows:
        raise ValueError(f"{path.name}: there are no rows after the header")
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    return table(path.name, columns, lines=lines[1:])


def _header(path: Path, header: list[str], delimiter: str) -> list[str]:
    header = [name.strip() for name in header]
    if len(header) == 1:
        for other in ";\t|,":
            if other != delimiter and other in header[0]:
                raise ValueError(
                    f"{path.name}: the header {header[0]!r} is separated by {other!r}, "
                    f"a {path.suffix} file by {delimiter!r}"
                )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{path.name}: the header names {_some(twice)} more than once")
    numbers = [name for name in header if name and _is_number(name)]
    if numbers:
        raise ValueError(
            f"{path.name}: the first line must name the columns, but it holds {_some(numbers)}"
        )
    return header


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _not_utf8(path: Path) -> ValueError:
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return ValueError(
            f"{path.name}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file "
            f"as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 {path.name}"
        )
    return ValueError(f"{path.name}: changed while it was read")


def read_jsonl(path: Path) -> Source:
    """A file of one JSON object a line. A key that a row lacks is None there.

    Raises ValueError, naming the line, for what is not a JSON object or not UTF-8.
    """
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError:
                raise _not_utf8(path) from None
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path.name}, line {number}: not JSON ({error.msg} at column {error.colno})"
                ) from None
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path.name}, line {number}: a {type(row).__name__}, where each line must be "
                    'an object like {"text": "...", "label": "..."}'
                )
            rows.append(row)
            lines.append(number)
    if not rows:
        raise ValueError(f"{path.name}: the file is empty")
    names = dict.fromkeys(key for row in rows for key in row)
    if not names:
        raise ValueError(f"{path.name}: the objects have no keys")
    return table(path.name, {key: [row.get(key) for row in rows] for key in names}, lines=lines)


def read_parquet(path: Path) -> Source:
    """A Parquet file; class names stored by Hugging Face datasets in its metadata are used."""
    import pyarrow
    import pyarrow.parquet

    try:
        data = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path.name}: not a readable Parquet file ({reason})") from None
    if data.num_rows == 0:
        raise ValueError(f"{path.name}: the file has no rows")
    stored = json.loads((data.schema.metadata or {}).get(b"huggingface", b"{}"))
    features = stored.get("info", {}).get("features") or {}
    return Source(
        name=path.name,
        columns=tuple(data.column_names),
        count=data.num_rows,
        read_row=lambda row: data.slice(row, 1).to_pylist()[0],
        read_column=lambda name: data.column(name).to_pylist(),
        class_names={
            key: tuple(feature["names"])
            for key, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        },
    )


def read_image_folder(path: Path) -> Source:
    """A folder with one subfolder of images per class; rows {'image': path, 'label': number}.

    Classes and files are sorted by name. Hidden files and files that are no images are passed over.
    """
    folders = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    images = {folder.name: _images(folder) for folder in folders}
    images = {name: files for name, files in images.items() if files}
    if not images:
        inner = [f.name for f in folders if any(_images(p) for p in f.iterdir() if p.is_dir())]
        hint = f"; the class folders are in {_some([str(path / name) for name in inner])}"
        holds = _some(sorted(p.name for p in path.iterdir()))
        raise ValueError(
            f"{path}: not an image folder (one subfolder of images per class)"
            + (hint if inner else f", nor a saved dataset; it holds {holds}")
        )
    files = [str(file) for group in images.values() for file in group]
    classes = [label for label, group in enumerate(images.values()) for _ in group]
    return table(
        path.name, {"image": files, "label": classes}, class_names={"label": tuple(images)}
    )


def _images(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )
