"""Cells of a table that hold several labels: lists, joined texts, columns or lists of 0 and 1."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.data.facts import packed, unpacked
from jaxft.data.files import Source
from jaxft.data.label_names import SEPARATORS, name_of

_QUOTED = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""")
_YES_NO = {"1": True, "0": False, "1.0": True, "0.0": False, "true": True, "false": False}
_LISTS = "[]"  # how texts are written that hold a list, in place of a separator


@dataclasses.dataclass(frozen=True)
class Cells:
    """The labels of all n rows of a source, as they were written.

    Attributes:
      names: of the different labels, in the order of first use.
      counts: [n] int32, labels of each row.
      ids: [m] int32, row by row: numbers of names.
      missing: [n] bool: rows whose cell has no value, which is not the same as no label.
      order: names of all labels where their order is given: columns, or entries of a list.
    """

    names: list[str]
    counts: np.ndarray
    ids: np.ndarray
    missing: np.ndarray
    order: tuple[str, ...] = ()

    def codes(self) -> dict[int, int]:
        """Number of a name -> the first row that has it."""
        numbers, first = np.unique(self.ids, return_index=True)
        row = np.repeat(np.arange(len(self.counts)), self.counts)
        return dict(zip(numbers.tolist(), row[first].tolist(), strict=True))


def columns_of(source: Source, column: str) -> tuple[str, ...]:
    """('a', 'b') of 'a,b', unless there is a column of that name."""
    return (column,) if column in source.columns else tuple(column.split(","))


def read_cells(
    source: Source, column: str, *, known: Sequence[str] = (), entries: Sequence[str] = ()
) -> Cells:
    """Reads the labels of each row.

    A cell is a list of names or class numbers; a text of names that are separated by the first of
    '|', ';' and ',' that occurs in the column; a list as such texts hold it ("['a', 'b']"); or a list
    of as many 0 and 1 as there are labels. `column` 'a,b,c' are columns of 0 and 1. Nothing in a cell is
    executed.

    Args:
      known: names of the labels: what occurs in one of them separates nothing.
      entries: names of what lists of 0 and 1 hold; (): their numbers.

    Raises:
      ValueError: a cell holds something else; the first such row.
    """
    columns = columns_of(source, column)
    if len(columns) > 1:
        return _from_indicators(source, columns)
    if source.facts is None:
        cells = _read(source, column, known)
    else:  # a file so large that what was found in it is kept

        def make() -> dict[str, np.ndarray]:
            found = _read(source, column, known)
            missing = found.missing.astype(np.uint8)
            return {
                "names": packed(found.names), "counts": found.counts, "ids": found.ids, "missing": missing,
            }  # fmt: skip

        kept = source.facts.known(("label sets", column, *known), make)
        cells = Cells(
            unpacked(kept["names"]), kept["counts"], kept["ids"], kept["missing"].astype(bool)
        )
    return _of_entries(source, column, cells, entries)


def _read(source: Source, column: str, known: Sequence[str]) -> Cells:
    class_names = source.item_names.get(column) or source.class_names.get(column)
    written = _written(source, column, known)
    codes: dict[str, int] = {}
    counts, missing = np.zeros(len(source), np.int32), np.zeros(len(source), bool)
    ids: list[np.ndarray] = []
    for rows, (values,) in source.chunks((column,)):
        found: list[int] = []
        for row, value in zip(rows.tolist(), values, strict=True):
            try:
                items = _items(value, written)
                missing[row] = items is None
                labels = [_named(item, class_names) for item in items or ()]
            except ValueError as error:
                reason = "not UTF-8" if isinstance(error, UnicodeError) else str(error)
                raise ValueError(
                    f"{source.where(row)}: column {column!r}, labels {value!a:.60}: {reason}"
                ) from None
            labels = [label for label in labels if label]
            counts[row] = len(labels)
            found += [codes.setdefault(label, len(codes)) for label in labels]
        ids.append(np.array(found, np.int32))
    return Cells(list(codes), counts, np.concatenate(ids), missing)


def _written(source: Source, column: str, known: Sequence[str]) -> str:
    """How the texts of a column hold several labels: '|', ';', ',', `_LISTS`, or '' for one or none."""
    candidates = [mark for mark in SEPARATORS if not any(mark in name for name in known)]
    found: set[str] = set()
    lists = texts = 0
    for _, (values,) in source.chunks((column,)):
        for value in _texts(values):
            texts += 1
            lists += value.startswith("[") and value.endswith("]")
            found.update(mark for mark in candidates if mark in value)
    if texts and lists == texts:
        return _LISTS
    return next((mark for mark in candidates if mark in found), "")


def _texts(values: Sequence[Any]) -> Iterator[str]:
    return (text for value in values if isinstance(value, str) and (text := value.strip()))


def _items(value: Any, written: str) -> list[Any] | None:
    """What a cell holds; None where it has no value."""
    if isinstance(value, np.ndarray | np.generic):  # from TFDS
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if value is None or value != value:
        return None
    if isinstance(value, Mapping):
        raise ValueError("an object is no list of labels")
    if not isinstance(value, str):
        return [value]
    if written == _LISTS:
        return _parsed(value.strip())
    return value.split(written) if written else [value]


def _parsed(text: str) -> list[Any]:
    """The items of a list that is written as JSON or as Python and numpy show it."""
    try:
        found = json.loads(text)
        if isinstance(found, list):
            return found
    except (ValueError, RecursionError):
        pass
    inside = text[1:-1]
    if "'" in inside or '"' in inside:
        return [single or double for single, double in _QUOTED.findall(inside)]
    return inside.split("," if "," in inside else None)


def _named(item: Any, class_names: Sequence[str] | None) -> str:
    """The name of an item; '' where it stands for none: None, blank, and the -1 that fills up lists."""
    if isinstance(item, np.generic):
        item = item.item()
    if isinstance(item, Mapping | list | tuple | set | frozenset):
        raise ValueError(f"{item!r:.40} is no label")
    if isinstance(item, bool):
        return str(int(item))
    if class_names is not None and isinstance(item, int) and not -1 <= item < len(class_names):
        raise ValueError(f"{item} is none of the {len(class_names)} class numbers")
    name = name_of(item, class_names)
    name.encode("utf-8")
    return name


def _of_entries(source: Source, column: str, cells: Cells, entries: Sequence[str]) -> Cells:
    """Lists of 0 and 1, all of one length, are the labels where there is a 1."""
    counts = cells.counts[~cells.missing]
    length = int(counts[0]) if len(counts) else 0
    yes = [_YES_NO.get(name.lower()) for name in cells.names]
    if length < 2 or (counts != length).any() or None in yes or column in source.item_names:
        return cells
    if entries and len(entries) != length:
        raise ValueError(
            f"{source.name}: column {column!r} holds lists of {length} numbers 0 and 1, but "
            f"config.data.classes names {len(entries)}; it has to name all, in their order"
        )
    names = tuple(entries) or tuple(map(str, range(length)))
    applies = np.array(yes, bool)[cells.ids].reshape(-1, length)
    full = np.zeros((len(cells.counts), length), bool)
    full[~cells.missing] = applies
    return _of_dense(names, full, cells.missing)


def _of_dense(names: tuple[str, ...], applies: np.ndarray, missing: np.ndarray) -> Cells:
    """applies: [n, C] bool."""
    ids = np.nonzero(applies)[1].astype(np.int32)
    return Cells(list(names), applies.sum(1).astype(np.int32), ids, missing, names)


def _from_indicators(source: Source, columns: tuple[str, ...]) -> Cells:
    """Of each row the columns that hold a 1; -1 stands for a missing value, as in unlabelled splits."""
    applies = np.zeros((len(source), len(columns)), bool)
    missing = np.zeros(len(source), bool)
    for rows, found in source.chunks(columns):
        for number, (column, values) in enumerate(zip(columns, found, strict=True)):
            for row, value in zip(rows.tolist(), values, strict=True):
                text = "" if value is None or value != value else str(value).strip().lower()
                if text in ("", "-1"):
                    missing[row] = True
                elif text in _YES_NO:
                    applies[row, number] = _YES_NO[text]
                else:
                    raise ValueError(
                        f"{source.where(row)}: column {column!r} holds {value!r:.40}, neither 0 nor 1"
                    )
    applies[missing] = False
    return _of_dense(columns, applies, missing)
