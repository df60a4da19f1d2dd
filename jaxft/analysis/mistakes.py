"""What the report shows of a classifier: how often it is right, and what it gets wrong."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from jaxft.analysis.calibrated import calibrated
from jaxft.analysis.confusion import Confusion
from jaxft.analysis.gallery import bar, gallery
from jaxft.analysis.metrics import wilson_interval
from jaxft.analysis.page import Html, element, figure, join, table
from jaxft.analysis.record import Record
from jaxft.analysis.sections import missing
from jaxft.analysis.view import View
from jaxft.training.rows import Row

_MAX_TEXTS, _MAX_IMAGES = 15, 24
# Beyond this many labels a picture of the matrix shows nothing but its diagonal, and a table of the
# labels would be most of the page.
_MAX_MATRIX, _MAX_LABELS = 200, 100


def result(record: Record, metrics: Mapping[str, Any]) -> str:
    """The share of correct predictions, beside chance."""
    confusion = _confusion(record, record.split)
    support = confusion.support if confusion is not None else np.zeros(1, np.int64)
    total = metrics.get("examples") or int(support.sum())
    which = {"test": "test", "eval": "evaluation"}[record.split]
    text = f"{metrics['accuracy']:.1%} of {total:,} {which} examples are classified correctly"
    if total:
        low, high = wilson_interval(round(metrics["accuracy"] * total), total)
        text += f" (95% interval {low:.1%} to {high:.1%})"
    most = metrics.get("majority_accuracy") or int(support.max()) / max(1, total)
    if most:
        text += f"; always giving the most frequent label would be right for {most:.1%}"
    return f"{text}."


def predictions(record: Record, plots: ModuleType) -> Html:
    """Confusion matrix and per-class table of the split that is reported."""
    confusion = _confusion(record, record.split)
    if confusion is None:
        return missing(
            f"No predictions/{record.split}.confusion.json."
            if record.metrics(record.split)
            else "No evaluation yet."
        )
    which = {"test": "test", "eval": "evaluation"}[record.split]
    classes = element("div", element("h3", "By label"), _by_label(confusion))
    if len(confusion.names) > _MAX_MATRIX:
        return join([_confusions(confusion), classes])
    caption = f"Confusion matrix of the {which} data: counts, shaded by their share of the row."
    matrix = figure(plots.confusion_matrix(confusion.matrix(), confusion.names), caption)
    if len(confusion.names) <= 6:  # narrow enough to stand side by side
        return element("div", matrix, classes, attributes={"class": "beside"})
    return join([matrix, _confusions(confusion), classes])


def _confusion(record: Record, split: str) -> Confusion | None:
    """Of the evaluation that `record.metrics` gives; None if it is not known."""
    metrics = record.metrics(split)
    if "confusion" in metrics:  # where runs kept it before it had a file of its own
        names = metrics.get("per_class")
        names = list(names) if isinstance(names, Mapping) else []
        return Confusion.from_json({"names": names, "matrix": metrics["confusion"]})
    return Confusion.from_json(record.detail(split, "confusion"))


def _by_label(confusion: Confusion) -> Html:
    """Every label, or of many those with the lowest F1."""
    precision, recall, f1 = confusion.scores()
    support = confusion.support
    shown, note = np.arange(len(support)), Html()
    if len(support) > _MAX_LABELS:
        known = np.flatnonzero(support)
        shown = known[np.lexsort((-support[known], f1[known]))][:_MAX_LABELS]
        note = element(
            "p",
            f"{len(shown)} of {len(known):,} labels that occur, those with the lowest F1; the others "
            "follow from the confusion's file.",
        )
    rows = [
        (
            confusion.names[c],
            f"{precision[c]:.3f}",
            f"{recall[c]:.3f}",
            f"{f1[c]:.3f}",
            bar(float(f1[c])),
            f"{support[c]:,}",
        )
        for c in shown.tolist()
    ]
    heads = ["label", "precision", "recall", "F1", "", "examples"]
    return join([note, table(heads, rows, kinds="tnnntn")])


def confident_mistakes(record: Record, _: ModuleType) -> Html:
    """Wrong predictions, the most confident first."""
    rows = wrong = 0
    images = False

    def mistakes() -> Iterator[Row]:
        nonlocal rows, wrong, images
        for row in filter(_is_prediction, record.predictions.get(record.split, ())):
            rows += 1
            if row["label"] != row["predicted"]:
                wrong, images = wrong + 1, images or "image" in row
                yield row

    first = heapq.nsmallest(
        max(_MAX_IMAGES, _MAX_TEXTS),
        mistakes(),
        key=lambda row: (-row["probability"], row["index"]),
    )
    if not rows:
        return missing(f"No predictions/{record.split}.jsonl.")
    if not wrong:
        return element("p", f"All {rows:,} examples are classified correctly.")
    shown = first[: _MAX_IMAGES if images else _MAX_TEXTS]
    rest = wrong - len(shown)
    note = (
        f"{wrong:,} of {rows:,} examples are classified wrongly"
        + (f"; the {len(shown)} most confident of them are shown" if rest else "")
        + ". Confident mistakes are often mislabelled or ambiguous examples."
    )
    return join([element("p", note), gallery(shown, _words) if images else _texts(shown)])


def _is_prediction(row: Mapping[str, Any]) -> bool:
    probability = row.get("probability")
    number = type(probability) in (int, float) and math.isfinite(probability or 0)
    return number and all(isinstance(row.get(key), str) for key in ("label", "predicted"))


def _confusions(confusion: Confusion) -> Html:
    """The most frequent mistakes as a table: with many labels the matrix alone is hard to read."""
    names, support = confusion.names, confusion.support
    rows = [
        (names[label], names[predicted], str(count), f"{count / support[label]:.1%}")
        for label, predicted, count in confusion.mistakes(most=10)
    ]
    if not rows:
        return Html()
    return join(
        [
            element("h3", "Most frequent confusions"),
            table(["label", "predicted as", "examples", "of the label"], rows, kinds="ttnn"),
        ]
    )


def _texts(rows: Sequence[Mapping[str, Any]]) -> Html:
    cells = [
        (
            str(row["index"]),
            str(row["label"]),
            str(row["predicted"]),
            f"{row['probability']:.3f}",
            f"{row['loss']:.2f}" if "loss" in row else "",
            str(row.get("text", "")),
        )
        for row in rows
    ]
    columns = ["row", "label", "predicted", "probability", "loss", "text"]
    return table(columns, cells, kinds="nttnnw")


def _words(row: Row) -> tuple[str, ...]:
    predicted = element("strong", str(row["predicted"]))
    return (join([predicted, f" {row['probability']:.3f}"]), f"label {row['label']}")


VIEW = View(
    tiles={
        "accuracy": "accuracy",
        "f1_macro": "macro F1",
        "mcc": "Matthews correlation",
        "loss": "loss",
    },
    result=result,
    sections={
        "Predictions": predictions,
        "Calibration": calibrated,
        "Mistakes": confident_mistakes,
    },
)
