"""Sources made of others: several one after the other, a part of one, other names for columns."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.base.nearest import nearest
from jaxft.data.facts import Facts
from jaxft.data.files import Source, some
from jaxft.data.mixture import Mixture

_NOTES = 3  # of the parts of one source that are given one by one
_SLICE = re.compile(r"(.*[^\[\]])\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\]", re.DOTALL)


# One after the other


def joined(name: str, parts: Sequence[Source]) -> Source:
    """The rows of sources with the same columns, one after the other; a row knows its place in its file.

    Class numbers that stand for other names in another part become these names.

    Raises ValueError: a part that lacks a column, or has one more than the first.
    """
    first, *others = parts
    if not others:
        return first
    for part in others:
        if missing := sorted(set(first.columns).symmetric_difference(part.columns)):
            without, has = (part, first) if missing[0] in first.columns else (first, part)
            raise ValueError(
                f"{without.name} has no column {missing[0]!r}, which {has.name} has; the files of one "
                "source have the same columns"
            )
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    named = {
        c
        for c in first.columns
        if any(p.class_names.get(c) != first.class_names.get(c) for p in parts)
    }
    listed = {
        c
        for c in first.columns
        if any(p.item_names.get(c) != first.item_names.get(c) for p in parts)
    }

    def of_part(number: int, columns: Sequence[str], rows: np.ndarray) -> list[Sequence[Any]]:
        part = parts[number]
        found = part.read(columns, rows - starts[number])
        return [
            _named(values, part.class_names.get(column, ()) if column in named else (),
                   part.item_names.get(column, ()) if column in listed else ())
            for column, values in zip(columns, found, strict=True)
        ]  # fmt: skip

    def read(columns: Sequence[str], rows: np.ndarray) -> list[Sequence[Any]]:
        owner = np.searchsorted(starts, rows, side="right") - 1
        if len(rows) and (owner == owner[0]).all():
            return of_part(int(owner[0]), columns, rows)
        found: list[list[Any]] = [[None] * len(rows) for _ in columns]
        for number in np.unique(owner).tolist():
            places = np.flatnonzero(owner == number)
            values = of_part(number, columns, rows[places])
            for own, of_column in zip(found, values, strict=True):
                for place, value in zip(places.tolist(), of_column, strict=True):
                    own[place] = value
        return list(found)

    def place(row: int) -> str:
        number = int(np.searchsorted(starts, row, side="right")) - 1
        return parts[number].where(row - int(starts[number]))

    return Source(
        name=name,
        columns=first.columns,
        count=int(starts[-1]),
        read=read,
        class_names={c: names for c, names in first.class_names.items() if c not in named},
        item_names={c: names for c, names in first.item_names.items() if c not in listed},
        notes=_few([note for part in parts for note in part.notes]),
        facts=_of_all([part.facts for part in parts]),
        place=place,
    )


def _named(values: Sequence[Any], names: Sequence[str], of_items: Sequence[str]) -> Sequence[Any]:
    """Class numbers as the names that they stand for; other values as they are."""

    def name(value: Any, known: Sequence[str]) -> Any:
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        return known[value] if whole and 0 <= value < len(known) else value

    if names:
        return [name(value, names) for value in values]
    if of_items:
        return [
            [name(item, of_items) for item in value] if isinstance(value, list | tuple) else value
            for value in values
        ]
    return values


def _few(notes: Sequence[str]) -> tuple[str, ...]:
    more = len(notes) - _NOTES
    return (*notes[:_NOTES], f"{more} more notes on its files") if more > 1 else tuple(notes)


def _of_all(parts: Iterable[Facts | None]) -> Facts | None:
    """What is kept of all together; nothing where one is too small for it."""
    keys, folder = [], None
    for facts in parts:
        if facts is None:
            return None
        keys.append(facts.key)
        folder = facts.folder
    return Facts(folder, ("joined", json.dumps(keys))) if folder is not None else None


def mixed(
    names: Sequence[str],
    parts: Sequence[Source],
    weights: Sequence[float],
    temperature: float | None,
) -> Source:
    """The rows of all, of the columns that all have, with what a training set needs to mix them.

    names: of the parts, for metrics; where two are the same, numbered.

    Raises ValueError: no column is in all.
    """
    common = [c for c in parts[0].columns if all(c in part.columns for part in parts)]
    if not common:
        columns = "; ".join(f"{part.name}: {some(part.columns)}" for part in parts)
        raise ValueError(f"config.data.mixture: no column is in all of its sources ({columns})")
    left = [dataclasses.replace(part, columns=tuple(common)) for part in parts]
    source = joined(f"a mixture of {some(names)}", left)
    named = [
        name if list(names).count(name) == 1 else f"{name}-{i + 1}" for i, name in enumerate(names)
    ]
    ends = tuple(int(end) for end in np.cumsum([len(part) for part in parts]))
    mixture = Mixture(tuple(named), ends, tuple(map(float, weights)), temperature)
    return dataclasses.replace(source, mixture=mixture)


# A part


def split_slice(spec: str) -> tuple[str, tuple[str, str] | None]:
    """'a.csv[:80%]' -> ('a.csv', ('', '80%')); without a slice, None."""
    match = _SLICE.fullmatch(spec)
    return (match[1], (match[2] or "", match[3] or "")) if match else (spec, None)


def sliced(source: Source, bounds: tuple[str, str]) -> Source:
    """The rows from the first bound on, before the second, as `datasets` reads 'train[10%:80%]'.

    bounds: row numbers, from 0, those of the end negative; or shares in percent, which are rounded to
      the nearest row, so that [:80%] and [80%:] are all rows, each once.

    Raises ValueError: there are no such rows.
    """
    said = f"{source.name}[{bounds[0]}:{bounds[1]}]"
    start, stop = (
        _bound(text, len(source), default)
        for text, default in zip(bounds, (0, len(source)), strict=True)
    )
    if start >= stop:
        raise ValueError(f"{said}: no rows; {source.name} has {len(source)}")
    lines, paths = source.lines, source.paths
    numbered = len(lines) > 0 and source.place is None
    return dataclasses.replace(
        source,
        count=stop - start,
        read=lambda columns, rows: source.read(columns, rows + start),
        lines=lines[start:stop] if len(lines) else lines,
        paths=paths[start:stop] if len(paths) else paths,
        place=None if numbered or paths else lambda row: source.where(row + start),
        facts=source.facts and source.facts.further("rows", str(start), str(stop)),
    )


def _bound(text: str, count: int, default: int) -> int:
    if not text:
        return default
    if text.endswith("%"):
        number = int(np.rint(int(text[:-1]) * count / 100))
    else:
        number = int(text)
    return min(max(number + count if number < 0 else number, 0), count)


# Other names


def renamed(source: Source, names: Sequence[tuple[str, str]]) -> Source:
    """The source with other names of columns. Of a pair (old, new), a source without `old` may have `new`.

    Raises ValueError: a column that is not there, or two of one name.
    """
    new = {column: column for column in source.columns}
    for old, name in names:
        if old not in new:
            if name in source.columns:
                continue
            raise ValueError(
                f"config.data.rename: {source.name} has no column {old!r}{nearest(old, source.columns)}; "
                f"its columns are {some(source.columns)}"
            )
        new[old] = name
    columns = tuple(new.values())
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ValueError(
            f"config.data.rename: {source.name} would have two columns {twice[0]!r}; rename the other, too"
        )
    if columns == source.columns:
        return source
    old_of = {name: old for old, name in new.items()}

    def of(names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        return {new[column]: value for column, value in names.items()}

    return dataclasses.replace(
        source,
        columns=columns,
        read=lambda wanted, rows: source.read([old_of[column] for column in wanted], rows),
        class_names=of(source.class_names),
        item_names=of(source.item_names),
        facts=source.facts and source.facts.further("renamed", *columns),
    )
