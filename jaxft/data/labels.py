"""Class labels: the column they are in, their names and numbers. (Subsets of them: subsets.py.)"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.base.nearest import nearest
from jaxft.data.class_weights import BALANCED, ClassWeights, balanced, given_weights
from jaxft.data.facts import packed, unpacked
from jaxft.data.files import Source, some
from jaxft.data.label_names import (
    are_numbers,
    broken_numbers,
    chosen_names,
    listed,
    name_of,
    separator_in,
    sorted_names,
    whole_numbers,
)
from jaxft.data.targets import Batch, places

# Names under which label columns are commonly found, the likeliest first.
LABEL_COLUMNS = ("label", "labels", "class", "target", "category", "sentiment", "intent", "y")
# Below so many rows (a try, one example a class) as many labels as rows are no sign of a mistake.
_FEW_ROWS = 8

_NO_NUMBER = frozenset(("nan", "inf", "-inf", "+inf"))
_ITEM = r"""('[^']*'|"[^"]*"|[+-]?[0-9.]+)"""
_MULTI_LABEL = (
    "for several labels an example set config.task='multi_label' (of images 'image_multi_label')"
)
_LIST = re.compile(rf"\[\s*({_ITEM}([,\s]\s*{_ITEM})*\s*,?)?\s*\]")


@dataclasses.dataclass(frozen=True)
class Labels:
    """One class an example: names[ids[j]] is the label of the source's row rows[j]; see `Targets`.

    rows [n] int64, ids [n] int32, dropped [m] int64; weights [C] float64, what an example of each class
    counts in the loss, None: 1.
    """

    names: tuple[str, ...]
    rows: np.ndarray
    ids: np.ndarray
    dropped: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: np.ndarray) -> Labels:
        """The examples at these positions (of this selection, not of the source)."""
        return dataclasses.replace(self, rows=self.rows[positions], ids=self.ids[positions])

    @property
    def offsets(self) -> np.ndarray:
        return np.arange(len(self) + 1)

    def strata(self) -> np.ndarray:
        return self.ids

    def said_of_strata(self) -> str:
        absent = sum(count == 0 for count in self.counts().values())
        lacking = f"; {absent} of the {len(self.names)} labels have none there" if absent else ""
        return f"of each label alike{lacking}"

    def fill(self, slots: np.ndarray, inputs: Batch) -> Batch:
        """'labels' int32, 'index' int32 and 'weight' float32 of the shape of slots."""
        labels = np.where(slots >= 0, self.ids[slots], 0).astype(np.int32)
        batch = {"labels": labels, **places(self.rows, slots)}
        if self.weights is not None:
            batch["weight"] *= self.weights[labels].astype(np.float32)
        return batch

    def contents(self) -> tuple[np.ndarray, ...]:
        return self.rows, self.ids

    def mean_weight(self) -> float:
        """What an example counts in the loss, the mean over all."""
        return 1.0 if self.weights is None else float(self.weights[self.ids].mean())

    def numbered_as(self, names: Sequence[str]) -> Labels:
        """The same labels under another numbering of the same names."""
        number = {name: i for i, name in enumerate(names)}
        ids = np.array([number[name] for name in self.names], np.int32)[self.ids]
        return Labels(tuple(names), self.rows, ids, self.dropped)

    def weighted(self, given: ClassWeights) -> Labels:
        """Each example counts in the loss what its class weighs: 'balanced', or (name, weight) pairs."""
        if given == BALANCED:
            counts = np.bincount(self.ids, minlength=len(self.names))
            return dataclasses.replace(self, weights=balanced(counts, len(self)))
        return dataclasses.replace(self, weights=given_weights(given, self.names))

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


def find_target_column(
    source: Source, given: str, named: Mapping[str, Sequence[str]], known: Sequence[str], what: str
) -> str:
    """The column of the targets: as given, or the only one in `named`, or one with a `known` name.

    named: columns whose values have names, of `source`: its `class_names` or `item_names`.
    what: 'label' or 'tag', for the message.
    """
    if not given and len(named) == 1:
        return next(iter(named))
    return find_column(source, given, known, what, option="label")


def read_labels(
    source: Source,
    column: str,
    *,
    names: Sequence[str] | None = None,
    classes: Sequence[str] = (),
    drop_missing: bool = False,
    advice: str = "",
) -> Labels:
    """Reads the labels of a source, in O(rows + different labels).

    names: the class names of the training data; None (this is the training data) takes them from
      the source's class names or, for a plain file, from the values: sorted, by value if all are
      integers. With names given, labels that are not among them raise ValueError.
    classes: keep only the examples of these classes; `names` keeps its order. Naming them also
      says that they are classes, however many.
    drop_missing: leave out rows without a label rather than raise ValueError.
    advice: how the user can ask for that, for the message of this error.

    Whole numbers that were stored as floats because some are missing (1.0) are integers (1).
    Raises ValueError for what is no class: lists (several labels an example), numbers that are not
    whole (regression), more different labels than half of the rows (identifiers, free text).
    """
    codes, distinct = _factorise(source, column)
    texts = _names(source, column, distinct, codes)
    missing = np.array([not text for text in texts])[codes]
    if missing.any() and not drop_missing:
        rows = np.flatnonzero(missing)
        raise ValueError(_no_label(source, column, rows, distinct[codes[rows[0]]]) + advice)
    if missing.all():
        raise ValueError(f"{source.name}: column {column!r} has no label in any row")
    kinds = dict.fromkeys(text for text in texts if text)
    if names is None:
        whole = _check_kind(source, column, kinds)
        texts = [whole.get(text, text) for text in texts]
        names = source.class_names.get(column) or sorted_names({text for text in texts if text})
        present = np.flatnonzero(~missing)
        _check_classes(source, column, names, len(present), chosen=bool(classes))
    names = chosen_names(source, names, classes)
    number = {name: i for i, name in enumerate(names)}
    whole = whole_numbers(kinds)
    of_text = [number.get(text, number.get(whole.get(text, text), -1)) for text in texts]
    ids = np.array(of_text, np.int32)[codes]
    if not classes:
        _check_known(
            source, ids, missing, [texts[code] for code in np.unique(codes[ids < 0])], names
        )
    rows = np.flatnonzero(ids >= 0)
    if not len(rows):
        raise ValueError(f"{source.name} has no row of the classes {listed(names)}")
    return Labels(tuple(names), rows, ids[rows], np.flatnonzero(missing))


# Values -> names


def _plain(source: Source, column: str, rows: np.ndarray, values: Sequence[Any]) -> Sequence[Any]:
    """Values of the column as plain Python ones; ValueError names the first that is a collection."""
    types = set(map(type, values))
    if any(issubclass(kind, np.generic | np.ndarray) for kind in types):  # from TFDS
        values = [v.tolist() if isinstance(v, np.generic | np.ndarray) else v for v in values]
        types = set(map(type, values))
    collections = tuple(k for k in types if issubclass(k, Mapping | list | tuple | set | frozenset))
    if collections:
        place = next(i for i, value in enumerate(values) if isinstance(value, collections))
        raise ValueError(_several(source.where(int(rows[place])), column, values[place]))
    # True, 1 and 1.0 are equal, and would be one label where a column mixes them.
    if bool in types:
        values = [str(value) if isinstance(value, bool) else value for value in values]
    if float in types:  # one NaN, which equals itself where it is the same object
        values = [math.nan if value != value else value for value in values]
    return values


def _several(where: str, column: str, value: Any) -> str:
    return (
        f"{where}: column {column!r} holds lists ({value!r:.60}), but each example has one class; "
        f"{_MULTI_LABEL}"
    )


class _Codes(dict):
    """value -> its number, in the order of first use."""

    def __missing__(self, value: Any) -> int:
        self[value] = code = len(self)
        return code


def _factorise(source: Source, column: str) -> tuple[np.ndarray, list[Any]]:
    """['b', 'a', 'b'] -> [0, 1, 0] int32, ['b', 'a']: of a row 4 bytes are kept, no objects."""
    if source.facts is None:
        return _read_codes(source, column)

    def make() -> dict[str, np.ndarray]:
        codes, distinct = _read_codes(source, column)
        return {"codes": codes, "distinct": packed(distinct)}

    kept = source.facts.known(("labels", column), make)
    return kept["codes"], unpacked(kept["distinct"])


def _read_codes(source: Source, column: str) -> tuple[np.ndarray, list[Any]]:
    codes = _Codes()
    found = np.empty(len(source), np.int32)
    for rows, (values,) in source.chunks((column,)):
        plain = _plain(source, column, rows, values)
        found[rows] = np.fromiter(map(codes.__getitem__, plain), np.int32, len(plain))
    return found, list(codes)


def _names(source: Source, column: str, distinct: list[Any], codes: np.ndarray) -> list[str]:
    """The name of each distinct value; '' where the label is missing."""
    class_names = source.class_names.get(column)
    names = []
    for code, value in enumerate(distinct):
        try:
            names.append(name_of(value, class_names))
            names[-1].encode("utf-8")
        except ValueError as error:
            reason = "not UTF-8" if isinstance(error, UnicodeError) else str(error)
            where = source.where(int(np.argmax(codes == code)))
            raise ValueError(f"{where}: column {column!r}, label {value!a:.60}: {reason}") from None
    return names


def _no_label(source: Source, column: str, rows: np.ndarray, value: Any) -> str:
    first = int(rows[0])
    count = f"{len(rows)} rows are" if len(rows) > 1 else "1 row is"
    return (
        f"{source.where(first)}: column {column!r} has no label ({value!r:.40}); {count} like "
        f"this ({source.numbered(rows)}): label them, or leave them out"
    )


# What is a class, and what is not


def _check_kind(source: Source, column: str, kinds: Iterable[str]) -> dict[str, str]:
    """'1.0' -> '1' where all labels are whole numbers; ValueError for regression and multi-label."""
    kinds = [text for text in kinds if text.lower() not in _NO_NUMBER]
    if column in source.class_names or not kinds:
        return {}
    if all(map(_LIST.fullmatch, kinds)):
        raise ValueError(_several(source.name, column, next(iter(kinds))))
    if not are_numbers(kinds):
        return {}
    if broken := broken_numbers(kinds):
        raise ValueError(
            f"{source.name}: column {column!r} holds numbers that are not whole "
            f"({listed(broken, 3)}): to learn numbers set config.task='text_regression' (of images "
            "'image_regression'); for classes, bin them, or write their names in words"
        )
    return whole_numbers(kinds)


def _check_classes(
    source: Source, column: str, names: Sequence[str], rows: int, *, chosen: bool
) -> None:
    if len(names) < 2:
        raise ValueError(
            f"{source.name}: column {column!r} holds one label only ({listed(names)}); "
            "classification needs two"
        )
    named = column in source.class_names or chosen
    if not named and (separator := separator_in(names)):
        joined = next(name for name in names if separator in name)
        raise ValueError(
            f"{source.name}: column {column!r} holds several labels joined by {separator!r} "
            f"({joined!r:.60}); {_MULTI_LABEL}, or, if they are single classes, list them in "
            "config.data.classes"
        )
    # A free text or an identifier taken for the label would become a head of thousands of classes.
    if not named and rows >= _FEW_ROWS and len(names) > rows / 2:
        shown = [name if len(name) < 40 else name[:40] + "…" for name in names[:3]]
        raise ValueError(
            f"{source.name}: column {column!r} has {len(names)} different values in {rows} rows "
            f"({', '.join(shown)}, …): not class labels; name the label column by "
            "config.data.label, or, if they are classes, list them in config.data.classes"
        )


def _check_known(
    source: Source, ids: np.ndarray, missing: np.ndarray, unknown: list[str], names: Sequence[str]
) -> None:
    """ValueError where a label is not among the names: the first row, and all such labels."""
    strangers = np.flatnonzero((ids < 0) & ~missing)
    if not len(strangers):
        return
    unknown = [text for text in unknown if text]
    all_of_them = f" (with {some(unknown[1:])}: {len(strangers)} rows)" if len(unknown) > 1 else ""
    raise ValueError(
        f"{source.where(int(strangers[0]))}: the label {unknown[0]!r} is unknown{all_of_them}; the "
        f"model's labels are {listed(names)}{nearest(unknown[0], names)}"
    )
