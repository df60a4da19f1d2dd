"""Class labels: their names and numbers, subsets by class, and stratified splits."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxft.data.files import Source, nearest

# Names under which label columns are commonly found, the likeliest first.
LABEL_COLUMNS = ("label", "labels", "class", "target", "category", "sentiment", "intent", "y")


@dataclasses.dataclass(frozen=True)
class Labels:
    """names[ids[j]] is the label of the source's row rows[j]; rows [n] int64, ids [n] int32."""

    names: tuple[str, ...]
    rows: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: np.ndarray) -> Labels:
        """The examples at these positions (of this selection, not of the source)."""
        return Labels(self.names, self.rows[positions], self.ids[positions])

    def counts(self) -> dict[str, int]:
        """Name -> number of examples, in the order of the class numbers."""
        counts = np.bincount(self.ids, minlength=len(self.names))
        return {name: int(count) for name, count in zip(self.names, counts, strict=True)}


def find_column(source: Source, given: str, known: Sequence[str], what: str, *, option: str) -> str:
    """The column `given`, or if that is '' the first of the `known` names that the source has.

    option: the field of config.data where a user names it, for the message.
    """
    if given:
        if given not in source.columns:
            raise ValueError(
                f"{source.name} has no column {given!r}; its columns are "
                f"{', '.join(source.columns)}{nearest(given, source.columns)}"
            )
        return given
    lower = {name.lower(): name for name in reversed(source.columns)}
    for name in known:
        if name in lower:
            return lower[name]
    raise ValueError(
        f"{source.name}: no {what} column found among {', '.join(map(repr, source.columns))}; name "
        f"it by config.data.{option} (or call it {known[0]!r} there)"
    )


def find_label_column(source: Source, given: str = "") -> str:
    """The label column: as given, or the only one with class names, or one with a usual name."""
    if not given and len(source.class_names) == 1:
        return next(iter(source.class_names))
    return find_column(source, given, LABEL_COLUMNS, "label", option="label")


def read_labels(
    source: Source,
    column: str,
    *,
    names: Sequence[str] | None = None,
    classes: Sequence[str] = (),
) -> Labels:
    """Reads the labels of a source.

    names: the class names of the training data; None (this is the training data) takes them from
      the source's class names or, for a plain file, from the values: sorted, by value if all are
      integers. With names given, a label that is not among them raises ValueError.
    classes: keep only the examples of these classes; `names` keeps its order.
    """
    values = _as_names(source, column)
    if names is None:
        names = source.class_names.get(column) or _sorted_names(set(values))
        _check_classes(source, column, names, len(values))
    if classes:
        unknown = [name for name in classes if name not in names]
        if unknown:
            raise ValueError(
                f"{source.name} has no class {unknown[0]!r}; its classes are {_list(names)}"
                f"{nearest(unknown[0], names)}"
            )
        names = [name for name in names if name in set(classes)]
        if len(names) < 2:
            raise ValueError(
                f"config.data.classes keeps {_list(names)} only; classification needs two"
            )
    number = {name: i for i, name in enumerate(names)}
    if classes:
        rows = np.array([i for i, value in enumerate(values) if value in number], np.int64)
        if not len(rows):
            raise ValueError(f"{source.name} has no row of the classes {_list(names)}")
    else:
        rows = np.arange(len(values))
        stranger = next((i for i, value in enumerate(values) if value not in number), None)
        if stranger is not None:
            raise ValueError(
                f"{source.where(stranger)}: the label {values[stranger]!r} is unknown; the model's "
                f"labels are {_list(names)}{nearest(values[stranger], names)}"
            )
    ids = np.array([number[values[row]] for row in rows], np.int32)
    return Labels(tuple(names), rows, ids)


def unlabelled(rows: int, names: Sequence[str]) -> Labels:
    """Labels for data that has none (prediction): every class number is 0."""
    return Labels(tuple(names), np.arange(rows), np.zeros(rows, np.int32))


def _as_names(source: Source, column: str) -> list[str]:
    """Each row's label as a name; surrounding blanks are dropped."""
    class_names = source.class_names.get(column)
    result = []
    for row, value in enumerate(source.column(column)):
        result.append(_name(value, class_names))
        if not result[-1]:
            raise ValueError(f"{source.where(row)}: column {column!r} has no label ({value!r})")
    return result


def _name(value: Any, class_names: Sequence[str] | None) -> str:
    """'' for a missing label: None, NaN, blank, or the -1 of unlabelled test splits."""
    if value is None:
        return ""
    if isinstance(value, np.generic):
        value = value.item()
    if class_names is not None and isinstance(value, int):
        return class_names[value] if 0 <= value < len(class_names) else ""
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if isinstance(value, float):
        if value != value:
            return ""
        value = int(value) if value.is_integer() else value  # integers with gaps read as floats
    return str(value).strip()


def _sorted_names(values: set[str]) -> list[str]:
    if all(re.fullmatch(r"[+-]?[0-9]+", value) for value in values):
        return sorted(values, key=lambda value: (int(value), value))
    return sorted(values)


def _check_classes(source: Source, column: str, names: Sequence[str], rows: int) -> None:
    if len(names) < 2:
        raise ValueError(
            f"{source.name}: column {column!r} holds one label only ({_list(names)}); "
            "classification needs two"
        )
    # A free text or an identifier taken for the label would become a head of thousands of classes.
    if column not in source.class_names and len(names) > 50 and len(names) > rows / 2:
        raise ValueError(
            f"{source.name}: column {column!r} has {len(names)} different values in {rows} rows "
            f"({_list(names, 3)}): not class labels"
        )


def _list(names: Sequence[str], limit: int = 20) -> str:
    more = f", … ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def few_per_class(ids: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Sorted positions of `count` random examples of each class present in ids [n]."""
    if count < 1:
        raise ValueError(f"examples per class must be at least 1, got {count}")
    smallest = min(collections.Counter(ids.tolist()).values())
    if smallest < count:
        raise ValueError(
            f"{count} examples per class are wanted, but the smallest class has {smallest}"
        )
    groups = _shuffled_classes(ids, seed)
    return np.sort(np.concatenate([group[:count] for group in groups]))


def holdout(ids: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits positions 0..n-1 into (kept, held out), both sorted, with each class's share alike.

    A class with two or more examples has at least one on either side; a single example is kept.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the held-out fraction must lie between 0 and 1, got {fraction}")
    held = []
    for group in _shuffled_classes(ids, seed):
        count = min(max(round(len(group) * fraction), 1), len(group) - 1)
        held.append(group[:count])
    out = np.sort(np.concatenate(held))
    if not len(out):
        raise ValueError("nothing can be held out: every class has a single example")
    return np.setdiff1d(np.arange(len(ids)), out), out


def _shuffled_classes(ids: np.ndarray, seed: int) -> list[np.ndarray]:
    """The positions of each class in a random order."""
    generator = np.random.default_rng(seed)
    return [generator.permutation(np.flatnonzero(ids == label)) for label in np.unique(ids)]
