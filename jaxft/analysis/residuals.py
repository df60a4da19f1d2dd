"""What the report shows of a regression: predicted against true, the errors, and the worst rows."""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from jaxft.analysis.gallery import gallery
from jaxft.analysis.page import Html, element, figure, join, table
from jaxft.analysis.record import Record
from jaxft.analysis.sections import missing
from jaxft.analysis.view import View
from jaxft.training.rows import Row

_WORST = 15


def result(record: Record, metrics: Mapping[str, Any]) -> str:
    """The usual error, beside that of always giving the mean."""
    which = {"test": "test", "eval": "evaluation"}[record.split]
    return (
        f"On {metrics['examples']:,} {which} examples the error is {metrics['mae']:.4g} on average "
        f"(root mean square {metrics['rmse']:.4g}; always giving the mean: {metrics['label_std']:.4g}), "
        f"and predicted and true numbers correlate with {metrics['pearson']:.3f} (ranks: "
        f"{metrics['spearman']:.3f})."
    )


def predictions(record: Record, plots: ModuleType) -> Html:
    """Predicted against true numbers, and how the errors are distributed."""
    numbers = array("d")
    for row in _rows(record):
        numbers.extend((row["label"], row["predicted"]))
    if not numbers:
        return missing(f"No predictions/{record.split}.jsonl.")
    labels, predicted = np.frombuffer(numbers).reshape(-1, 2).T
    against = figure(
        plots.scatter(labels, predicted),
        "Predicted against true numbers, a dot an example; on the line they are equal.",
    )
    errors = figure(
        plots.histogram(predicted - labels, "predicted - true"),
        "How many examples have an error of which size.",
    )
    return element("div", against, errors, attributes={"class": "pair"})


def worst(record: Record, _: ModuleType) -> Html:
    """The examples with the largest error."""
    rows = heapq.nsmallest(
        _WORST, _rows(record), key=lambda row: (-abs(row["error"]), row["index"])
    )
    images = any("image" in row for row in rows)
    if not rows:
        return missing(f"No predictions/{record.split}.jsonl.")
    note = (
        "The largest errors. An example whose neighbours in this list are of one kind tells what the "
        "model lacks; a single one is often a wrong number in the data."
    )
    return join([element("p", note), gallery(rows, _words) if images else _texts(rows)])


def _words(row: Row) -> tuple[str, ...]:
    predicted = element("strong", f"{row['predicted']:.4g}")
    return (predicted, f"true {row['label']:.4g}", f"error {row['error']:.4g}")


def _texts(rows: Sequence[Row]) -> Html:
    cells = [
        [str(row["index"]), *(f"{row[key]:.4g}" for key in ("label", "predicted", "error")),
         str(row.get("text", ""))]
        for row in rows
    ]  # fmt: skip
    heads = ["row", "true", "predicted", "error", "text"]
    return table(heads, cells, kinds="nnnnw")


def _rows(record: Record) -> Iterator[Row]:
    """Of predictions/*.jsonl, those that hold what was written."""
    return (
        row
        for row in record.predictions.get(record.split, ())
        if all(_is_number(row.get(key)) for key in ("label", "predicted", "error"))
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


VIEW = View(
    tiles={
        "pearson": "Pearson correlation",
        "spearman": "Spearman correlation",
        "r2": "R²",
        "rmse": "root mean square error",
        "mae": "mean absolute error",
        "loss": "loss",
    },
    result=result,
    sections={"Predictions": predictions, "Mistakes": worst},
)
