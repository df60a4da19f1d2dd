"""`Part`: the rows of a split as the checks read them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxft.analysis.pictures import inline
from jaxft.data.files import Source
from jaxft.data.inputs import KINDS

Texts = tuple[str, ...]  # of one row, usually one a column
# Of a longer text the checks that compare contents read the beginning only.
MOST_CHARACTERS = 10_000


@dataclasses.dataclass(frozen=True)
class Part:
    """Some rows of a split.

    Attributes:
      name: 'train', 'eval' or 'test'.
      source, rows: [n] int64, the rows of the source.
      inputs: the kind, of data/inputs.py.
      columns: input columns; `label`: that of the targets, '' without.
      classes: [n] int class numbers; None where the targets are none.
      names: of the classes.
      numbers: [n] float targets; None where they are none.
      whole: rows of the split, of which these may be a sample.
    """

    name: str
    source: Source
    rows: np.ndarray
    inputs: str
    columns: tuple[str, ...]
    label: str = ""
    classes: np.ndarray | None = None
    names: tuple[str, ...] = ()
    numbers: np.ndarray | None = None
    whole: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def targets(self) -> np.ndarray | None:
        """[n] class numbers or numbers; None where an example has neither."""
        return self.numbers if self.classes is None else self.classes

    def take(self, positions: np.ndarray) -> Part:
        """The rows at these positions."""

        def chosen(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[positions]

        return dataclasses.replace(
            self,
            rows=self.rows[positions],
            classes=chosen(self.classes),
            numbers=chosen(self.numbers),
        )

    def sample(self, limit: int, seed: int) -> Part:
        """At most `limit` rows at random, in the order of the source."""
        if len(self) <= limit:
            return self
        chosen = np.random.default_rng(seed).choice(len(self), limit, replace=False)
        return self.take(np.sort(chosen))

    def where(self, position: int) -> str:
        """The place of a row as a user counts."""
        return self.source.where(int(self.rows[position]))

    def target(self, position: int) -> str:
        """The target of a row, in words."""
        if self.classes is not None:
            return self.names[int(self.classes[position])]
        return "" if self.numbers is None else f"{self.numbers[position]:g}"

    def chunks(self) -> Iterator[list[Texts]]:
        """The texts of some rows after the other, whole."""
        for _, values in self.source.chunks(self.columns, self.rows):
            yield [self._row(row) for row in zip(*values, strict=True)]

    def _row(self, values: Sequence[Any]) -> Texts:
        """The texts of the columns; where one holds something else, what a reader sees of the row."""
        if not all(isinstance(value, str | bytes | int | float) for value in values):
            return (KINDS[self.inputs].shown(values),)
        return tuple(v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values)

    @property
    def are_images(self) -> bool:
        return KINDS[self.inputs].model == "image"

    @functools.cached_property
    def texts(self) -> list[Texts]:
        """Of each row, cut to MOST_CHARACTERS each: in memory, so of a sample."""
        return [
            tuple(text[:MOST_CHARACTERS] for text in row) for part in self.chunks() for row in part
        ]

    def images(self) -> Iterator[Any]:
        """The values of the image column: paths, encoded bytes, arrays."""
        for _, (values,) in self.source.chunks(self.columns[:1], self.rows):
            yield from values

    def picture(self, position: int) -> str:
        """The image of a row for a page: its file, or a data URI of small pixels; '' of others."""
        value = self.source[int(self.rows[position])][self.columns[0]]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, np.ndarray):
            return inline(value)
        return value if isinstance(value, str) else ""

    def shown(self, position: int) -> str:
        """The input of a row for a table."""
        if self.are_images:
            return ""
        return " ‖ ".join(self.texts[position])


def said_of_sample(parts: list[Part]) -> str:
    """'; a sample: 20,000 of 93,000 rows of train', or ''."""
    smaller = [f"{len(p):,} of {p.whole:,} rows of {p.name}" for p in parts if len(p) < p.whole]
    return f"; a sample: {', '.join(smaller)}" if smaller else ""
