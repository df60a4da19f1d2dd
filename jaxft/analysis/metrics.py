"""Classification metrics of a whole split, from its logits. Not for use inside a compiled step.

The numbers are scikit-learn's; the loss is computed here, in float64 from the logits themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_TEXT_LIMIT = 300  # characters of a text kept in a prediction row


def classification_metrics(
    logits: np.ndarray, labels: np.ndarray, names: Sequence[str], *, loss: float | None = None
) -> dict[str, Any]:
    """Metrics of single-label predictions, as plain JSON values.

    Args:
      logits: [N, C], or log-probabilities.
      labels: [N] class numbers.
      names: C label names.
      loss: mean loss when it is known already; None: mean cross-entropy, in float64.

    Returns:
      'loss', 'accuracy', 'precision_*', 'recall_*', 'f1_*' for macro and micro, 'mcc' (Matthews
      correlation; 0 when all labels or all predictions are one class), 'examples', 'per_class'
      {name: precision, recall, f1, support}, and 'confusion', rows = labels, columns = predictions.
      A ratio without a denominator is 0. Macro means are over the classes that occur among labels
      or predictions.

    Raises:
      ValueError: no examples, or a label that is no class.
      FloatingPointError: logits that are not finite.
    """
    # Here, since it costs 1.1 s and 135 MB, and only the process that writes the logs evaluates.
    from sklearn import metrics as sk

    logits, labels = _checked(logits, labels, names)
    predicted, classes = logits.argmax(-1), list(range(len(names)))

    def scores(average: str | None, of: list[int] | None) -> Any:
        return sk.precision_recall_fscore_support(
            labels, predicted, labels=of, average=average, zero_division=0
        )

    macro, each = scores("macro", None), np.stack(scores(None, classes), axis=-1)
    # With one label and one prediction an example, the three micro averages are the accuracy.
    accuracy = float(sk.accuracy_score(labels, predicted))
    return {
        "loss": float(_cross_entropy(logits, labels).mean()) if loss is None else float(loss),
        "accuracy": accuracy,
        "f1_macro": float(macro[2]),
        "precision_macro": float(macro[0]),
        "recall_macro": float(macro[1]),
        "f1_micro": accuracy,
        "precision_micro": accuracy,
        "recall_micro": accuracy,
        "mcc": _matthews(labels, predicted),
        "examples": len(labels),
        "per_class": {
            name: {
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "support": int(support),
            }
            for name, (precision, recall, f1, support) in zip(names, each, strict=True)
        },
        "confusion": sk.confusion_matrix(labels, predicted, labels=classes).tolist(),
    }


def prediction_rows(
    logits: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    *,
    index: np.ndarray,
    kind: str,
    inputs: Sequence[str],
) -> list[dict[str, Any]]:
    """Rows of predictions/*.jsonl, one an example.

    Args:
      logits: [N, C].
      labels: [N] class numbers.
      names: C label names.
      index: [N] row numbers in the source.
      kind: 'text' or 'image', the key of the input.
      inputs: N texts (cut to 300 characters) or image paths.
    """
    logits, labels = _checked(logits, labels, names)
    assert len(labels) == len(index) == len(inputs), (len(labels), len(index), len(inputs))
    predicted = logits.argmax(-1)
    probability = softmax(logits)[np.arange(len(labels)), predicted]
    losses = _cross_entropy(logits, labels)
    return [
        {
            "index": int(index[i]),
            "label": names[labels[i]],
            "predicted": names[predicted[i]],
            "probability": float(probability[i]),
            "loss": float(losses[i]),
            kind: shorten(inputs[i]) if kind == "text" else inputs[i],
        }
        for i in range(len(labels))
    ]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [N, C] in float64."""
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


def _checked(
    logits: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    assert logits.shape == (len(labels), len(names)), (logits.shape, len(labels), len(names))
    if not len(labels):
        raise ValueError("there is no example to compute metrics of")
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(f"labels must be 0..{len(names) - 1}, got {labels.min()}..{labels.max()}")
    broken = int((~np.isfinite(logits)).any(-1).sum())
    if broken:
        raise FloatingPointError(f"the logits of {broken} of {len(labels)} examples are not finite")
    return logits, labels


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -_log_softmax(logits)[np.arange(len(labels)), labels]


def _matthews(labels: np.ndarray, predicted: np.ndarray) -> float:
    """0 when either is all one class; there scikit-learn divides by zero, with a warning."""
    from sklearn.metrics import matthews_corrcoef

    if len(np.unique(labels)) == 1 or len(np.unique(predicted)) == 1:
        return 0.0
    return float(matthews_corrcoef(labels, predicted))
