"""`Targets`: what is to be learned of the rows of a split, as the data pipeline sees it.

Each kind of task has its own (`Labels` in labels.py for classes); the pipeline only asks for these.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from jaxft.data.files import Column

Batch = dict[str, np.ndarray]


class Targets(Protocol):
    """Of n examples, in an order of their own.

    Attributes:
      rows: [n] int64, the row of the source that each example is.
      names: what the outputs of the model are called, by number; () where they are numbers.
      dropped: [m] int64, rows of the source that were left out because their target is missing.
      offsets: [n + 1] int64: of all predictions of the split, those of example j are
        offsets[j]..offsets[j + 1]. One each, where an example is predicted as a whole.
    """

    @property
    def rows(self) -> np.ndarray: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def dropped(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def take(self, positions: np.ndarray) -> Targets:
        """The examples at these positions (of this selection, not of the source)."""
        ...

    def strata(self) -> np.ndarray:
        """[n] int: the group of each example; a held-out share is taken of every group alike."""
        ...

    def said_of_strata(self) -> str:
        """What to say of a held-out share that was taken so: 'of each label alike'."""
        ...

    def fill(self, slots: np.ndarray, inputs: Batch) -> Batch:
        """The arrays that the loss reads, 'weight' and 'index' among them (see loader.py).

        slots: positions of the examples in a batch, any shape, -1 where empty.
        inputs: the arrays of that batch which the model reads.
        """
        ...

    def contents(self) -> tuple[np.ndarray, ...]:
        """Arrays that change with every row and every target, for a fingerprint."""
        ...


@dataclasses.dataclass(frozen=True)
class Unlabelled:
    """Rows without targets, to be predicted. See `Targets`.

    words: of each example (lists of texts), where the inputs are words.
    contexts: of each example, where answers are looked for in one.
    """

    rows: np.ndarray
    offsets: np.ndarray
    names: tuple[str, ...] = ()
    dropped: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    words: Column | None = None
    contexts: Column | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: np.ndarray) -> Unlabelled:
        counts = np.diff(self.offsets)[positions]
        words, contexts = (
            None if column is None else column.take(positions)
            for column in (self.words, self.contexts)
        )
        return Unlabelled(self.rows[positions], offsets_of(counts), words=words, contexts=contexts)

    def strata(self) -> np.ndarray:
        return np.zeros(len(self), np.int64)

    def said_of_strata(self) -> str:
        return "at random"

    def fill(self, slots: np.ndarray, inputs: Batch) -> Batch:
        return places(self.rows, slots)

    def contents(self) -> tuple[np.ndarray, ...]:
        return (self.rows,)


def unlabelled(rows: int) -> Unlabelled:
    """The first `rows` rows of a source, each predicted as a whole."""
    return Unlabelled(np.arange(rows), np.arange(rows + 1))


def unlabelled_words(words: Column) -> Unlabelled:
    """Rows of a source, with these words each; every word is predicted."""
    counts = np.fromiter(map(len, words), np.int64, len(words))
    return Unlabelled(words.rows, offsets_of(counts), words=words)


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """[2, 1] -> [0, 2, 3], int64."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def places(rows: np.ndarray, slots: np.ndarray) -> Batch:
    """'weight' float32 and 'index' int32 (the row in the source) of slots; 0 and -1 where empty."""
    real = slots >= 0
    return {
        "weight": real.astype(np.float32),
        "index": np.where(real, rows[slots], -1).astype(np.int32),
    }
