"""Metrics of sets of labels, and the thresholds above which a label is said to apply.

The numbers are scikit-learn's by definition. They are computed here because one sorting of a label's scores
gives its average precision and its best threshold, and because scikit-learn ranks the labels of each
example in a Python loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.analysis.metrics import PER_CLASS

# A label has a threshold of its own if it has so many examples, since what is best for a handful is chance,
# and if its F1 is so far on the way to 1 from that of saying always that it applies: of scores that tell
# nothing that is the best F1, and a label that is said of every example helps nobody.
FEWEST, GAIN = 10, 0.1
_BLOCK = 1 << 20  # scores that are looked at at a time


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Probabilities from which on a label applies.

    Attributes:
      common: of all labels together.
      single: [C], of each.
    """

    common: float
    single: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """{'threshold': common, 'thresholds': [C] in the order of the labels}, to six digits."""
        return {
            "threshold": round(self.common, 6),
            "thresholds": [round(x, 6) for x in self.single.tolist()],
        }

    @classmethod
    def of(cls, value: Mapping[str, Any], labels: int) -> Thresholds:
        """What `to_json` gave for so many labels; of anything else, which a file may hold, 0.5 for all."""
        common, single = value.get("threshold"), value.get("thresholds")
        numbers = [common, *single] if isinstance(single, list) else []
        sound = all(type(x) in (int, float) and 0 <= x <= 1 for x in numbers)
        if len(numbers) != labels + 1 or not sound:
            numbers = [0.5] * (labels + 1)
        return cls(float(numbers[0]), np.array(numbers[1:], np.float64))


def probabilities(logits: Any) -> np.ndarray:
    """The logistic function of each, float64."""
    return np.exp(-np.logaddexp(0, -np.asarray(logits, np.float64)))


def cross_entropy(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[N] float64: the mean over labels of each example's binary cross-entropy.

    logits: [N, C]; truth: [N, C] bool.
    """
    logits = np.asarray(logits, np.float64)
    return (np.logaddexp(0, logits) - truth * logits).mean(-1)


def tuned(logits: np.ndarray, truth: np.ndarray) -> Thresholds:
    """The thresholds with the highest F1 on these examples: one over all labels (micro F1), and each.

    logits: [N, C]; truth: [N, C] bool.
    Labels that have too few examples or are hardly told (`FEWEST`, `GAIN`) have the common one. Each lies in
    the middle between two scores, so that rounding decides nothing.
    """
    common, _ = _best(logits, truth)
    single = np.full(logits.shape[1], common)
    count = truth.sum(0)
    always = 2 * count / (len(truth) + count)
    for label in np.flatnonzero(count >= FEWEST):
        own, f1 = _best(logits[:, label], truth[:, label])
        if f1 >= always[label] + GAIN * (1 - always[label]):
            single[label] = own
    return Thresholds(float(probabilities(common)), probabilities(single))


def multilabel_metrics(
    logits: np.ndarray,
    truth: np.ndarray,
    names: Sequence[str],
    thresholds: Thresholds | None = None,
) -> dict[str, Any]:
    """Metrics as plain JSON values.

    Args:
      logits: [N, C].
      truth: [N, C] bool, which labels apply.
      names: C label names.
      thresholds: tuned on other examples; None tunes them on these, of which the scores then are
        too good by what can be gained by chance.

    Returns:
      'loss' (mean binary cross-entropy over examples and labels); 'precision_*', 'recall_*' and 'f1_*' for
      micro and macro with a label where its probability is 0.5 or more, 'subset_accuracy' (of examples
      with exactly the right set) and 'hamming_loss' (of labels that are wrong); '*_common' and '*_tuned',
      the F1 scores, subset accuracy and Hamming loss with the common threshold and with those of each label;
      'average_precision_micro' and '_macro', 'label_ranking_average_precision', which need none;
      'examples', 'labels_per_example', 'predicted_per_example' (with the tuned ones), 'threshold' and
      'thresholds'; and up to `PER_CLASS` labels 'per_class' {name: precision, recall, f1, f1_tuned,
      average_precision, support}. A ratio without a denominator is 0. Macro means are over the labels that
      occur among the true or the predicted ones; of average precisions, over the true ones.

    Raises:
      ValueError: no examples.
      FloatingPointError: logits that are not finite.
    """
    assert logits.shape == truth.shape == (len(truth), len(names)), (logits.shape, truth.shape)
    if not len(truth):
        raise ValueError("there is no example to compute metrics of")
    if broken := int((~np.isfinite(logits)).any(1).sum()):
        raise FloatingPointError(f"the logits of {broken} of {len(truth)} examples are not finite")
    thresholds = thresholds or tuned(logits, truth)
    scores = probabilities(logits)
    half, own = scores >= 0.5, scores >= thresholds.single
    plain, best = _Counts.of(half, truth), _Counts.of(own, truth)
    precisions = np.array([average_precision(x, y) for x, y in zip(logits.T, truth.T, strict=True)])
    occurs = truth.any(0)
    metrics = {
        "loss": float(cross_entropy(logits, truth).mean()),
        **plain.averages(),
        **_sets(half, truth),
        **_suffixed("common", scores >= thresholds.common, truth),
        **_suffixed("tuned", own, truth),
        "average_precision_micro": average_precision(logits.ravel(), truth.ravel()),
        "average_precision_macro": float(precisions[occurs].mean()) if occurs.any() else 0.0,
        "label_ranking_average_precision": ranking_precision(logits, truth),
        "examples": len(truth),
        "labels_per_example": float(truth.sum() / len(truth)),
        "predicted_per_example": float(own.sum() / len(truth)),
        **thresholds.to_json(),
    }
    if len(names) <= PER_CLASS:
        columns = (*plain.scores(), best.scores()[2], precisions, plain.support)
        keys = ("precision", "recall", "f1", "f1_tuned", "average_precision", "support")
        rows = zip(names, *(column.tolist() for column in columns), strict=True)
        metrics["per_class"] = {
            name: dict(zip(keys, values, strict=True)) for name, *values in rows
        }
    return metrics


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Precision at each score of a true one, weighted by how many have it; 0 without a true one.

    scores: [N]; truth: [N] bool.

    >>> average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.8333333333333333
    """
    _, right, chosen = _curve(scores, truth)
    if not len(right):
        return 0.0
    return float((np.diff(right, prepend=0) * right / chosen).sum() / right[-1])


def ranking_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Label ranking average precision (Tsoumakas et al. 2010): over examples and their true labels, the mean
    share of true ones among the labels that score at least as high; 1 where none or all are true.

    scores: [N, C]; truth: [N, C] bool.
    """
    total, labels = 0.0, scores.shape[1]
    for rows in _blocks(len(scores), labels):
        order = np.argsort(-scores[rows], axis=1, kind="stable")
        ranked = np.take_along_axis(scores[rows], order, 1)
        right = np.take_along_axis(truth[rows], order, 1)
        # Equal scores share the last of their ranks.
        last = np.concatenate([ranked[:, 1:] != ranked[:, :-1], np.ones((len(order), 1), bool)], 1)
        place = np.where(last, np.arange(labels), labels)
        place = np.minimum.accumulate(place[:, ::-1], 1)[:, ::-1]
        above = np.take_along_axis(right.cumsum(1), place, 1)
        count = right.sum(1)
        found = (right * above / (place + 1)).sum(1) / np.maximum(count, 1)
        total += float(np.where((count == 0) | (count == labels), 1.0, found).sum())
    return total / len(scores)


def warnings_of(metrics: Mapping[str, Any]) -> list[str]:
    """What in the metrics is probably not meant, one line each: no example is given a label at 0.5."""
    if metrics["recall_micro"] > 0 or not metrics["labels_per_example"]:
        return []
    return [
        f"no label of {metrics['examples']:,} examples has a probability of 0.5 or more, as is usual "
        f"after few steps and where labels are rare; at the tuned thresholds micro F1 is "
        f"{metrics['f1_micro_tuned']:.3f}, and average precision is {metrics['average_precision_micro']:.3f}"
    ]


@dataclasses.dataclass(frozen=True)
class _Counts:
    """Of each label [C]: predicted and true, predicted, true."""

    right: np.ndarray
    chosen: np.ndarray
    support: np.ndarray

    @classmethod
    def of(cls, predicted: np.ndarray, truth: np.ndarray) -> _Counts:
        return cls((predicted & truth).sum(0), predicted.sum(0), truth.sum(0))

    def scores(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Precision, recall and F1 of each label."""
        right, chosen, support = self.right, self.chosen, self.support
        return _ratio(right, chosen), _ratio(right, support), _ratio(2 * right, chosen + support)

    def averages(self) -> dict[str, float]:
        occurs = (self.support > 0) | (self.chosen > 0)
        totals = (x.sum(keepdims=True) for x in (self.right, self.chosen, self.support))
        found = {}
        for name, own, whole in zip(
            ("precision", "recall", "f1"), self.scores(), _Counts(*totals).scores(), strict=True
        ):
            found[f"{name}_micro"] = float(whole[0])
            found[f"{name}_macro"] = float(own[occurs].mean()) if occurs.any() else 0.0
        return found


def _sets(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    wrong = predicted != truth
    return {
        "subset_accuracy": float((~wrong.any(1)).mean()),
        "hamming_loss": float(wrong.mean()),
    }


def _suffixed(suffix: str, predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    found = _Counts.of(predicted, truth).averages() | _sets(predicted, truth)
    names = ("f1_micro", "f1_macro", "subset_accuracy", "hamming_loss")
    return {f"{name}_{suffix}": found[name] for name in names}


def _best(logits: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """(the logit from which on F1 is highest, that F1); 0 and 0 where nothing is true."""
    logits, truth = np.ravel(logits), np.ravel(truth)
    at, right, chosen = _curve(logits, truth)
    if not len(at):
        return 0.0, 0.0
    f1 = 2 * right / (chosen + right[-1])
    best = int(f1.argmax())
    score = float(at[best])
    below = logits[logits < score]
    return (score + float(below.max())) / 2 if len(below) else score - 1.0, float(f1[best])


def _curve(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each different score of a true one, the highest first: (the score, true ones that score as much
    or more, all that do). Only there can F1 be highest, and does recall change.
    """
    at, times = np.unique(scores[truth], return_counts=True)
    chosen = np.zeros(len(at) + 1, np.int64)
    for some in _blocks(len(scores), 1):
        place = np.searchsorted(at, scores[some], side="right")
        chosen += np.bincount(place, minlength=len(at) + 1)
    return at[::-1], times[::-1].cumsum(), chosen[:0:-1].cumsum()


def _blocks(rows: int, width: int) -> Iterator[slice]:
    size = max(1, _BLOCK // width)
    return (slice(start, start + size) for start in range(0, rows, size))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)
