"""Label names: how a value of a table is one, their order, and which of them are kept."""

from __future__ import annotations

import decimal
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jaxft.base.nearest import nearest
from jaxft.data.files import Source

# What several names in one text are separated by, the likeliest first.
SEPARATORS = ("|", ";", ",")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_WHOLE_AS_FLOAT = re.compile(r"([+-]?[0-9]{1,18})\.0*")
_NUMBER = re.compile(r"[+-]?([0-9]+[.,]?[0-9]*|[.,][0-9]+)([eE][+-]?[0-9]+)?")


def name_of(value: Any, class_names: Sequence[str] | None) -> str:
    """'' for a missing label: None, NaN, blank, or the -1 of unlabelled test splits."""
    if value is None or value != value:
        return ""
    if class_names is not None and isinstance(value, int):
        return class_names[value] if 0 <= value < len(class_names) else ""
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if isinstance(value, float | decimal.Decimal) and value == value // 1:
        value = int(value)  # integers with gaps are read as floats
    return str(value).strip()


def are_numbers(names: Iterable[str]) -> bool:
    """Whether all are written as numbers."""
    return all(map(_NUMBER.fullmatch, names))


def whole_numbers(names: Iterable[str]) -> dict[str, str]:
    """{'1.0': '1'} of those that are whole numbers stored as floats."""
    return {text: match[1] for text in names if (match := _WHOLE_AS_FLOAT.fullmatch(text))}


def broken_numbers(names: Iterable[str]) -> list[str]:
    """Of names that are numbers, those that are not whole."""
    return [text for text in names if not float(text.replace(",", ".")).is_integer()]


def sorted_names(values: set[str]) -> list[str]:
    """By value if all are whole numbers."""
    if all(_WHOLE.fullmatch(value) for value in values):
        return sorted(values, key=lambda value: (int(value), value))
    return sorted(values)


def chosen_names(source: Source, names: Sequence[str], classes: Sequence[str]) -> Sequence[str]:
    """The names that are among the classes to keep, if any are named."""
    if not classes:
        return names
    known = set(names)
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise ValueError(
            f"{source.name} has no class {unknown[0]!r}; its classes are {listed(names)}"
            f"{nearest(unknown[0], names)}"
        )
    kept = [name for name in names if name in set(classes)]
    if len(kept) < 2:
        raise ValueError(f"config.data.classes keeps {listed(kept)} only; classification needs two")
    return kept


def separator_in(names: Iterable[str]) -> str:
    """What joins several labels to one name, as in a, b, a|b; '' where nothing does.

    It joins where most of the names that have it, and two at least, consist of other names.
    """
    names = set(names)
    for separator in SEPARATORS:
        joined = [name for name in names if separator in name]
        parts = [{part.strip() for part in name.split(separator)} for name in joined]
        if sum(own <= names for own in parts) >= max(2, len(joined) / 2):
            return separator
    return ""


def joined(names: Sequence[str], among: Sequence[str]) -> str:
    """One text of several names, as this project reads it: 'a|b', or a JSON list where no separator is
    free.

    among: all names that there are.
    """
    free = [mark for mark in SEPARATORS if not any(mark in name for name in among)]
    return free[0].join(names) if free else json.dumps(list(names), ensure_ascii=False)


def listed(names: Sequence[str], limit: int = 20) -> str:
    """The first names, and how many there are."""
    more = f", … ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
