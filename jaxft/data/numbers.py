"""Numbers as targets: the column they are in, and which values are no number. (Class labels: labels.py.)"""

from __future__ import annotations

import dataclasses
import decimal
import math
from typing import Any

import numpy as np

from jaxft.data.files import Source
from jaxft.data.labels import find_column
from jaxft.data.targets import Batch, places

# Names under which columns of scores are commonly found, the likeliest first.
NUMBER_COLUMNS = ("score", "label", "labels", "target", "value", "rating", "similarity", "y")
_CLASSES = (
    "to learn classes set config.task='text_classification' (of images 'image_classification')"
)
_BINS, _LEAST_IN_BIN = 10, 10
_MOST = 1e18  # the square of which, an error, is still a float32


@dataclasses.dataclass(frozen=True)
class Numbers:
    """values[j] is the target of the source's row rows[j]; see `Targets`.

    rows [n] int64, values [n] float64 as in the data, dropped [m] int64.
    """

    rows: np.ndarray
    values: np.ndarray
    dropped: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def offsets(self) -> np.ndarray:
        return np.arange(len(self) + 1)

    def take(self, positions: np.ndarray) -> Numbers:
        return Numbers(self.rows[positions], self.values[positions], self.dropped)

    def strata(self) -> np.ndarray:
        """By quantile: up to ten groups of equally many examples, lowest values first."""
        bins = max(1, min(_BINS, len(self) // _LEAST_IN_BIN))
        ranks = np.empty(len(self), np.int64)
        ranks[np.argsort(self.values, kind="stable")] = np.arange(len(self))
        return ranks * bins // len(self)

    def said_of_strata(self) -> str:
        return "of low and high values alike"

    def fill(self, slots: np.ndarray, inputs: Batch) -> Batch:
        """'labels' float32, 'index' int32 and 'weight' float32 of the shape of slots."""
        labels = np.where(slots >= 0, self.values[slots], 0).astype(np.float32)
        return {"labels": labels, **places(self.rows, slots)}

    def contents(self) -> tuple[np.ndarray, ...]:
        return self.rows, self.values


def find_number_column(source: Source, given: str = "") -> str:
    """The column of the targets: as given, or one with a usual name."""
    return find_column(source, given, NUMBER_COLUMNS, "target", option="label")


def read_numbers(
    source: Source, column: str, *, drop_bad: bool = False, advice: str = ""
) -> Numbers:
    """Reads a column of numbers up to 1e18; texts that are numbers ('3.5', '1e-3') count as such.

    drop_bad: leave out rows without such a number rather than raise ValueError.
    advice: how the user can ask for that, for the message of this error.

    Raises ValueError: a row has none (the first, and how many), no row has one, or the numbers stand
    for class names.
    """
    if names := source.class_names.get(column):
        raise ValueError(
            f"{source.name}: the numbers in column {column!r} stand for classes "
            f"({', '.join(names[:3])}, …); {_CLASSES}"
        )
    values = np.empty(len(source), np.float64)
    for part, (given,) in source.chunks((column,)):
        values[part] = [_number(value) for value in given]
    usable = np.abs(values) <= _MOST  # which NaN is not
    bad = np.flatnonzero(~usable)
    if len(bad) == len(values):
        raise ValueError(
            f"{source.name}: column {column!r} has a usable number in no row ({source[0][column]!r:.40} in "
            f"the first); {_CLASSES}"
        )
    if len(bad) and not drop_bad:
        first = int(bad[0])
        count = f"{len(bad)} rows are" if len(bad) > 1 else "1 row is"
        value = source[first][column]
        raise ValueError(
            f"{source.where(first)}: column {column!r} holds {value!r:.40}, no number between "
            f"{-_MOST:.0e} and {_MOST:.0e}; {count} like this ({source.numbered(bad)}): "
            f"mend them, or leave them out{advice}"
        )
    rows = np.flatnonzero(usable)
    return Numbers(rows, values[rows], bad)


def _number(value: Any) -> float:
    """NaN for what is no number; truth values are none, though Python counts with them."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal | str):
        return math.nan
    try:
        # An underscore between digits is Python's, not the data's.
        return math.nan if isinstance(value, str) and "_" in value else float(value)
    except (ValueError, OverflowError):
        return math.nan
