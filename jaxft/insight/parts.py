"""`Part`: the rows of a split as the checks read them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxft.analysis.pictures import inline
from jaxft.data.files import Source
from jaxft.data.inputs import KINDS
from jaxft.data.label_sets import LabelSets
from jaxft.data.tags import OUTSIDE, Tags, type_of

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
      sets: the labels of each row, where it may have several; `tags`: a tag for each of its words.
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
    sets: LabelSets | None = None
    tags: Tags | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def targets(self) -> np.ndarray | None:
        """[n] class numbers or numbers; None where an example has neither."""
        return self.numbers if self.classes is None else self.classes

    @functools.cached_property
    def codes(self) -> np.ndarray | None:
        """[n] int64, equal where the classes, the labels or the tags of two rows are; None of others.

        (Of labels and tags 60 bits of a hash, so that splits agree on them.)
        """
        if self.classes is not None:
            return self.classes
        several = self.sets or self.tags
        if several is None:
            return None
        bounds = several.bounds if isinstance(several, LabelSets) else several.offsets
        ids = np.ascontiguousarray(several.ids, np.int32)
        return np.array(
            [
                int.from_bytes(hashlib.blake2b(ids[a:b].tobytes(), digest_size=8).digest()) >> 4
                for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
            ],
            np.int64,
        )

    @functools.cached_property
    def labels(self) -> LabelSets | None:
        """What may be there in a row besides others: its labels, or the types of its tags but 'O'."""
        if self.tags is None:
            return self.sets
        kinds, of_tag = tag_types(self.tags.names)
        names = tuple(kind for kind in kinds if kind != OUTSIDE)
        number = np.array([names.index(kind) if kind in names else -1 for kind in kinds], np.int64)
        ids = number[of_tag][self.tags.ids] if len(self.tags.ids) else np.zeros(0, np.int64)
        row = np.repeat(np.arange(len(self)), np.diff(self.tags.offsets))
        keys = np.unique(row[ids >= 0] * max(1, len(names)) + ids[ids >= 0])
        row, ids = np.divmod(keys, max(1, len(names)))
        bounds = np.searchsorted(row, np.arange(len(self) + 1))
        return LabelSets(names, self.rows, bounds, ids.astype(np.int32))

    def take(self, positions: np.ndarray) -> Part:
        """The rows at these positions."""

        def chosen(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[positions]

        return dataclasses.replace(
            self,
            rows=self.rows[positions],
            classes=chosen(self.classes),
            numbers=chosen(self.numbers),
            sets=None if self.sets is None else self.sets.take(positions),
            tags=None if self.tags is None else self.tags.take(positions),
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
        if self.sets is not None:
            a, b = self.sets.bounds[position : position + 2]
            return ", ".join(self.names[i] for i in self.sets.ids[a:b]) or "none"
        if self.tags is not None:
            a, b = self.tags.offsets[position : position + 2]
            return " ".join(self.names[i] for i in self.tags.ids[a:b])
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


def tag_types(names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """(the types of these tags, [T] int of each tag that of its type).

    >>> tag_types(["O", "B-person", "I-person"])
    (['O', 'person'], array([0, 1, 1]))
    """
    kinds = list(dict.fromkeys(map(type_of, names)))
    return kinds, np.array([kinds.index(type_of(name)) for name in names], np.int64)


def said_of_sample(parts: list[Part]) -> str:
    """'; a sample: 20,000 of 93,000 rows of train', or ''."""
    smaller = [f"{len(p):,} of {p.whole:,} rows of {p.name}" for p in parts if len(p) < p.whole]
    return f"; a sample: {', '.join(smaller)}" if smaller else ""
