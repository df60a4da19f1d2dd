"""Which label was predicted as which, and how often: kept sparse, since most pairs never occur."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

# Up to this many classes a matrix is written as rows, which people can read; beyond it as triples,
# of which there are at most as many as examples, however many classes there are.
DENSE = 100
_BLOCK = 1 << 20  # pairs that are counted at a time


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Counts of the pairs (label, predicted) that occur.

    Attributes:
      names: C label names.
      labels, predicted, counts: [K] int64, by label, then predicted; every count is above 0.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    counts: np.ndarray

    @property
    def support(self) -> np.ndarray:
        """Examples of each label: [C] int64."""
        return self._sums(self.labels, self.counts)

    @property
    def chosen(self) -> np.ndarray:
        """How often each class is predicted: [C] int64."""
        return self._sums(self.predicted, self.counts)

    @property
    def correct(self) -> np.ndarray:
        """Examples of each label that are predicted as it: [C] int64."""
        right = self.labels == self.predicted
        return self._sums(self.labels[right], self.counts[right])

    def scores(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Precision, recall and F1 of each class, [C] float64; a ratio without a denominator is 0."""
        return (
            _ratio(self.correct, self.chosen),
            _ratio(self.correct, self.support),
            _ratio(2 * self.correct, self.chosen + self.support),
        )

    def matrix(self) -> np.ndarray:
        """[C, C] int64, rows are labels, columns predictions."""
        matrix = np.zeros((len(self.names), len(self.names)), np.int64)
        matrix[self.labels, self.predicted] = self.counts
        return matrix

    def mistakes(self, most: int) -> list[tuple[int, int, int]]:
        """(label, predicted, count) of the most frequent wrong pairs."""
        wrong = np.flatnonzero(self.labels != self.predicted)
        first = wrong[np.argsort(-self.counts[wrong], kind="stable")[:most]]
        rows = (self.labels[first], self.predicted[first], self.counts[first])
        return list(zip(*(row.tolist() for row in rows), strict=True))

    def to_json(self) -> dict[str, Any]:
        """
        {'names': [...], 'matrix': [[count, ...], ...]} up to 100 classes, else
        {'names': [...], 'triples': [[label, predicted, count], ...]} with class numbers.
        """
        if len(self.names) <= DENSE:
            return {"names": list(self.names), "matrix": self.matrix().tolist()}
        triples = np.stack([self.labels, self.predicted, self.counts], axis=-1)
        return {"names": list(self.names), "triples": triples.tolist()}

    @classmethod
    def from_json(cls, value: Any) -> Confusion | None:
        """What `to_json` gave; None for anything else, since a file may hold anything."""
        try:
            names = tuple(map(str, value["names"]))
            if "matrix" in value:
                matrix = np.array(value["matrix"])
                if matrix.shape != (len(names), len(names)):
                    return None
                labels, predicted = np.nonzero(matrix)
                counts = matrix[labels, predicted]
            else:
                labels, predicted, counts = np.array(value["triples"]).reshape(-1, 3).T
            if not len(counts):
                return None
            inside = all(c.min() >= 0 and c.max() < len(names) for c in (labels, predicted))
            if counts.dtype.kind != "i" or not inside or counts.min() < 1:
                return None
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return cls(names, *(part.astype(np.int64) for part in (labels, predicted, counts)))

    def _sums(self, classes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        # Sums of integers, which bincount returns as float64: exact to 2^53.
        return np.bincount(classes, counts, len(self.names)).astype(np.int64)


def confusion(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Confusion:
    """The counts of (label, predicted) pairs, given as class numbers [N] each."""
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    found, counts = np.zeros((2, 0), np.int64)
    for start in range(0, len(labels), _BLOCK):
        some = slice(start, start + _BLOCK)
        pairs = labels[some].astype(np.int64) * len(names) + predicted[some]
        more, times = np.unique(pairs, return_counts=True)
        found, place = np.unique(np.concatenate([found, more]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([counts, times])).astype(np.int64)
    return Confusion(tuple(names), *np.divmod(found, len(names)), counts)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)
