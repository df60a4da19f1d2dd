"""Metrics of predicted numbers: error, and agreement in value and in order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def regression_metrics(predicted: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Metrics as plain JSON values.

    Args:
      predicted, labels: [N] numbers in the unit of the data.

    Returns:
      'loss' (mean squared error), 'rmse', 'mae', 'r2' (coefficient of determination), 'pearson',
      'spearman' (Pearson's of the ranks, ties sharing their mean), 'examples', 'label_mean',
      'label_std', 'predicted_std'. What is undefined, since all labels or all predictions are equal, is
      0. Equal to scipy's and scikit-learn's numbers where those are defined.

    Raises:
      ValueError: no examples.
      FloatingPointError: predictions that are not finite.
    """
    predicted, labels = np.asarray(predicted, np.float64), np.asarray(labels, np.float64)
    assert predicted.shape == labels.shape == (len(labels),), (predicted.shape, labels.shape)
    if not len(labels):
        raise ValueError("there is no example to compute metrics of")
    broken = int((~np.isfinite(predicted)).sum())
    if broken:
        raise FloatingPointError(
            f"the predictions of {broken} of {len(labels)} examples are not finite"
        )
    error = predicted - labels
    squared, spread = float(np.mean(error**2)), float(labels.var())
    return {
        "loss": squared,
        "rmse": math.sqrt(squared),
        "mae": float(np.abs(error).mean()),
        "r2": 1.0 - squared / spread if _varies(labels) else 0.0,
        "pearson": _correlation(predicted, labels),
        "spearman": _correlation(ranks(predicted), ranks(labels)),
        "examples": len(labels),
        "label_mean": float(labels.mean()),
        "label_std": math.sqrt(spread),
        "predicted_std": float(predicted.std()),
    }


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 on [N] float64; equal values share the mean of theirs.

    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def warnings_of(metrics: Mapping[str, Any]) -> list[str]:
    """What in the metrics is probably not meant: a model that is worse than the mean of the labels."""
    if metrics["r2"] >= 0:
        return []
    return [
        f"the error ({metrics['rmse']:.4g}) is larger than that of always giving the mean "
        f"({metrics['label_std']:.4g} about {metrics['label_mean']:.4g}): too short a run or another "
        "learning rate; numbers far from 0 are learned sooner when they are divided or shifted"
    ]


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if not (_varies(x) and _varies(y)):
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    # Scaled first: squares of tiny or huge numbers are outside of float64.
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return float(np.clip(x @ y / math.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def _varies(values: np.ndarray) -> bool:
    return bool(values.min() < values.max())
