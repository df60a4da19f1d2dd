"""Weights of classes, given or balanced: what the examples of rare ones count more in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxft.base.nearest import nearest

BALANCED = "balanced"
ClassWeights = str | Sequence[tuple[str, float]]  # `BALANCED`, or (name, weight) pairs


def balanced(counts: np.ndarray, rows: int) -> np.ndarray:
    """Each class counts the same in all: rows / (C x its count), as scikit-learn's 'balanced'.

    counts: [C] examples of each class; a class without any has 1.

    >>> balanced(np.array([6, 2, 0]), 8).round(3).tolist()
    [0.444, 1.333, 1.0]
    """
    return np.where(counts > 0, rows / (len(counts) * np.maximum(counts, 1)), 1.0)


def balanced_labels(counts: np.ndarray, rows: int) -> np.ndarray:
    """Of each label that is there or not, the examples that have it count as much as the others.

    >>> balanced_labels(np.array([6, 2, 0]), 8).round(3).tolist()
    [0.333, 3.0, 1.0]
    """
    return np.where(counts > 0, (rows - counts) / np.maximum(counts, 1), 1.0)


def given_weights(given: ClassWeights, names: Sequence[str]) -> np.ndarray:
    """[C] of (name, weight) pairs; what is not named has 1. ValueError: no such class."""
    weights = np.ones(len(names))
    number = {name: i for i, name in enumerate(names)}
    assert not isinstance(given, str), given
    for name, weight in given:
        if name not in number:
            raise ValueError(
                f"config.train.class_weights: there is no class {name!r}; the classes are "
                f"{', '.join(names[:20])}{nearest(name, names)}"
            )
        weights[number[name]] = weight
    return weights
