"""What the report shows of sets of labels: each label, its threshold, and what is furthest off."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from jaxft.analysis.calibrated import calibrated_labels
from jaxft.analysis.gallery import bar, gallery
from jaxft.analysis.page import Html, element, join, table
from jaxft.analysis.record import Record
from jaxft.analysis.sections import missing
from jaxft.analysis.view import View
from jaxft.training.rows import Row

_MAX_TEXTS, _MAX_IMAGES = 15, 24
_SHOWN = 6  # probabilities of one example
_SCORES = ("precision", "recall", "f1", "f1_tuned", "average_precision")


def result(record: Record, metrics: Mapping[str, Any]) -> str:
    """F1 at the tuned thresholds beside that at 0.5, and on which data they were tuned."""
    which = {"test": "test", "eval": "evaluation"}[record.split]
    tuned = "tuned on the evaluation data" + (
        "" if record.split == "test" else ", these same examples, so that it flatters"
    )
    return (
        f"On {metrics['examples']:,} {which} examples with {metrics['labels_per_example']:.2f} labels each "
        f"micro F1 is {metrics['f1_micro_tuned']:.3f} with a threshold for each label, {tuned}, and "
        f"{metrics['f1_micro']:.3f} with 0.5 for all; {metrics['subset_accuracy_tuned']:.1%} of examples "
        "are given exactly their labels."
    )


def predictions(record: Record, _: ModuleType) -> Html:
    """Averages at three kinds of threshold, and every label, the worst first."""
    metrics = record.metrics(record.split)
    if not metrics:
        return missing("No evaluation yet.")
    heads = ["threshold", "micro F1", "macro F1", "exactly right", "labels wrong"]
    common = f"{metrics['threshold']:.3f} for all"
    kinds = (("0.5 for all", ""), (common, "_common"), ("one for each label", "_tuned"))
    rows = [
        (words, *(f"{metrics[f'{name}{suffix}']:.3f}" for name in ("f1_micro", "f1_macro")),
         f"{metrics[f'subset_accuracy{suffix}']:.1%}", f"{metrics[f'hamming_loss{suffix}']:.2%}")
        for words, suffix in kinds
    ]  # fmt: skip
    averages = table(heads, rows, kinds="tnnnn")
    by_label = join([element("h3", "By label"), _by_label(metrics)])
    return join([averages, by_label])


def _by_label(metrics: Mapping[str, Any]) -> Html:
    scores = metrics.get("per_class")
    if not isinstance(scores, Mapping):
        return missing("Scores of single labels are kept for up to 100 labels.")
    own = dict(zip(scores, metrics["thresholds"], strict=True))
    ordered = sorted(scores, key=lambda name: scores[name]["average_precision"])
    rows = [
        (name, *(f"{scores[name][key]:.3f}" for key in _SCORES),
         bar(scores[name]["average_precision"]), f"{own[name]:.3f}", f"{scores[name]['support']:,}")
        for name in ordered
    ]  # fmt: skip
    heads = [
        "label", "precision", "recall", "F1", "F1, own threshold", "average precision", "",
        "threshold", "examples",
    ]  # fmt: skip
    note = (
        "Precision, recall and the first F1 are at a probability of 0.5. The lowest average precision is "
        "first. Labels that have few evaluation examples, or are hardly told from the others, share the "
        "common threshold."
    )
    return join([element("p", note), table(heads, rows, kinds="tnnnnntnn")])


def furthest_off(record: Record, _: ModuleType) -> Html:
    """The examples with the largest loss."""
    rows = heapq.nsmallest(
        max(_MAX_IMAGES, _MAX_TEXTS),
        filter(_is_prediction, record.predictions.get(record.split, ())),
        key=lambda row: (-row["loss"], row["index"]),
    )
    if not rows:
        return missing(f"No predictions/{record.split}.jsonl.")
    note = (
        "The examples with the largest loss. Labels that are missing in the data stand out here as "
        "confident predictions."
    )
    images = any("image" in row for row in rows)
    shown = rows[: _MAX_IMAGES if images else _MAX_TEXTS]
    return join([element("p", note), gallery(shown, _words) if images else _texts(shown)])


def _is_prediction(row: Mapping[str, Any]) -> bool:
    loss, scores = row.get("loss"), row.get("probabilities")
    sound = type(loss) in (int, float) and math.isfinite(loss or 0) and isinstance(scores, dict)
    return sound and all(isinstance(row.get(key), list) for key in ("labels", "predicted"))


def _words(row: Row) -> tuple[str, ...]:
    return (
        join([element("strong", _listed(row["predicted"]))]),
        f"labels {_listed(row['labels'])}",
    )


def _texts(rows: Sequence[Row]) -> Html:
    cells = [
        (str(row["index"]), _listed(row["labels"]), _listed(row["predicted"]),
         ", ".join(_probabilities(row)), f"{row['loss']:.2f}", str(row.get("text", "")))
        for row in rows
    ]  # fmt: skip
    heads = ["row", "labels", "predicted", "probabilities", "loss", "text"]
    return table(heads, cells, kinds="nttwnw")


def _probabilities(row: Row) -> Iterator[str]:
    scores = row["probabilities"].items()
    return (f"{name} {float(value):.2f}" for name, value in list(scores)[:_SHOWN])


def _listed(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names)) or "none"


VIEW = View(
    tiles={
        "f1_micro_tuned": "micro F1, tuned thresholds",
        "f1_macro_tuned": "macro F1, tuned thresholds",
        "average_precision_macro": "mean average precision",
        "loss": "loss",
    },
    result=result,
    sections={
        "Predictions": predictions,
        "Calibration": calibrated_labels,
        "Mistakes": furthest_off,
    },
)
