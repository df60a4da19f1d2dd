"""Classification metrics of a whole split, from what is kept of each batch's logits.

The numbers are scikit-learn's by definition, but computed from counts: its own Matthews
correlation and confusion matrix are quadratic in the classes, and its import takes a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.analysis.confusion import Confusion, confusion

# Scores of single classes are part of the metrics up to this many: 100 are 10 kB a row of
# metrics.jsonl and of each checkpoint's memory. Beyond it they follow from the confusion's file.
PER_CLASS = 100
_TEXT_LIMIT = 300  # characters of a text kept in a prediction row
_BLOCK = 1 << 22  # logits converted to float64 at a time: 32 MB


def outcomes(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What metrics and rows need of predictions, however many the classes.

    Args:
      logits: [k, C], or log-probabilities.
      labels: [k] class numbers.

    Returns:
      'predicted' [k] int32, the class; 'probability' [k] float64, of it; 'loss' [k] float64, the
      cross-entropy, computed in float64: NaN where logits are not finite, and only there.

    Raises:
      ValueError: a label that is no class.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    assert logits.shape[:-1] == labels.shape, (logits.shape, labels.shape)
    classes = logits.shape[-1]
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"labels must be 0..{classes - 1}, got {labels.min()}..{labels.max()}")
    predicted = np.zeros(len(labels), np.int32)
    probability, losses = np.full((2, len(labels)), np.nan)
    for rows in _blocks(logits):
        sound = np.flatnonzero(np.isfinite(logits[rows]).all(-1)) + rows.start
        scores = _log_softmax(logits[sound])
        predicted[sound] = logits[sound].argmax(-1)
        probability[sound] = np.exp(scores[np.arange(len(sound)), predicted[sound]])
        losses[sound] = -scores[np.arange(len(sound)), labels[sound]]
    return {"predicted": predicted, "probability": probability, "loss": losses}


def classification_metrics(
    outcome: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str]
) -> tuple[dict[str, Any], Confusion]:
    """Metrics of single-label predictions, as plain JSON values; small, however many classes.

    Args:
      outcome: 'predicted' and 'loss' [N], as `outcomes` gives them.
      labels: [N] class numbers.
      names: C label names.

    Returns:
      The metrics, and which label is predicted as which: 'loss' (mean cross-entropy), 'accuracy',
      'precision_*', 'recall_*', 'f1_*' for macro and micro, 'mcc' (Matthews
      correlation for several classes, Gorodkin 2004; 0 when all labels or all predictions are one
      class), 'examples', 'majority_accuracy' (of always giving the most frequent label),
      'predicted_classes' (how many are ever predicted), 'most_predicted' (the name of the most
      frequent prediction), and up to PER_CLASS classes 'per_class' {name: precision, recall, f1,
      support}. A ratio without a denominator is 0. Macro means are over the classes that occur
      among labels or predictions.

    Raises:
      ValueError: no examples.
      FloatingPointError: logits that are not finite.
    """
    losses, labels = outcome["loss"], np.asarray(labels)
    assert losses.shape == labels.shape, (losses.shape, labels.shape)
    if not len(labels):
        raise ValueError("there is no example to compute metrics of")
    if broken := int(np.isnan(losses).sum()):
        raise FloatingPointError(f"the logits of {broken} of {len(labels)} examples are not finite")
    counts = confusion(labels, outcome["predicted"], names)
    support, chosen = counts.support, counts.chosen
    precision, recall, f1 = counts.scores()
    occurs = (support > 0) | (chosen > 0)
    # With one label and one prediction an example, the three micro averages are the accuracy.
    accuracy = float(counts.correct.sum() / support.sum())
    metrics = {
        "loss": float(losses.mean()),
        "accuracy": accuracy,
        "f1_macro": float(f1[occurs].mean()),
        "precision_macro": float(precision[occurs].mean()),
        "recall_macro": float(recall[occurs].mean()),
        "f1_micro": accuracy,
        "precision_micro": accuracy,
        "recall_micro": accuracy,
        "mcc": _matthews(counts),
        "examples": len(labels),
        "majority_accuracy": float(support.max() / support.sum()),
        "predicted_classes": int((chosen > 0).sum()),
        "most_predicted": counts.names[int(chosen.argmax())],
    }
    if len(names) <= PER_CLASS:
        metrics["per_class"] = per_class(counts)
    return metrics, counts


def per_class(counts: Confusion) -> dict[str, dict[str, float]]:
    """{name: {'precision', 'recall', 'f1', 'support'}} of every class."""
    columns = [part.tolist() for part in (*counts.scores(), counts.support)]
    keys = ("precision", "recall", "f1", "support")
    rows = zip(counts.names, *columns, strict=True)
    return {name: dict(zip(keys, values, strict=True)) for name, *values in rows}


def warnings_of(metrics: Mapping[str, Any]) -> list[str]:
    """What in the metrics is probably not meant, one line each: predictions of one class only."""
    if metrics.get("predicted_classes") != 1 or metrics.get("majority_accuracy", 1.0) == 1.0:
        return []
    return [
        f"all {metrics['examples']:,} examples are predicted as {metrics['most_predicted']!r}: the "
        "model has not learned to tell the labels apart (too short a run, or a learning rate that "
        "is too high or too low)"
    ]


def prediction_rows(
    outcome: Mapping[str, np.ndarray],
    labels: np.ndarray,
    names: Sequence[str],
    *,
    index: np.ndarray,
    kind: str,
    inputs: Sequence[str],
) -> list[dict[str, Any]]:
    """Rows of predictions/*.jsonl, one an example.

    Args:
      outcome: of `outcomes`.
      labels: [N] class numbers.
      names: C label names.
      index: [N] row numbers in the source.
      kind: 'text' or 'image', the key of the input.
      inputs: N texts (cut to 300 characters) or image paths.
    """
    columns = (outcome[key].tolist() for key in ("predicted", "probability", "loss"))
    return [
        {
            "index": row,
            "label": names[label],
            "predicted": names[predicted],
            "probability": probability,
            "loss": loss,
            kind: shorten(text) if kind == "text" else text,
        }
        for row, label, predicted, probability, loss, text in zip(
            index.tolist(), labels.tolist(), *columns, inputs, strict=True
        )
    ]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, float64."""
    return np.exp(_log_softmax(logits))


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927): inside [0, 1], and sound for few examples.

    >>> [round(x, 3) for x in wilson_interval(10, 10)]
    [0.722, 1.0]
    """
    z = 1.959963984540054
    share = correct / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def shorten(text: str, limit: int = _TEXT_LIMIT) -> str:
    """The text on one line, cut to `limit` characters with an ellipsis."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _blocks(logits: np.ndarray) -> Iterator[slice]:
    """Rows by the block: of many classes the logits alone are gigabytes, and copies would be more."""
    size = max(1, _BLOCK // logits.shape[-1])
    for start in range(0, len(logits), size):
        yield slice(start, start + size)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _matthews(counts: Confusion) -> float:
    """From the sums alone: the matrix of 10,000 classes would be 800 MB."""
    support, chosen = counts.support.astype(float), counts.chosen.astype(float)
    total = support.sum()
    spread = (total**2 - chosen @ chosen) * (total**2 - support @ support)
    if spread == 0:
        return 0.0
    return float((counts.correct.sum() * total - support @ chosen) / math.sqrt(spread))
