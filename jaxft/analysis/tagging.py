"""What the report shows of a model that tags words: entities by type, and the worst examples."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from jaxft.analysis.confusion import Confusion
from jaxft.analysis.page import Html, element, figure, join, table
from jaxft.analysis.record import Record
from jaxft.analysis.sections import missing
from jaxft.analysis.view import View
from jaxft.training.rows import Row

_WORST = 15
_MAX_MATRIX = 60


def result(record: Record, metrics: Mapping[str, Any]) -> str:
    """How many entities are found, and how many of those that are given are right."""
    which = {"test": "test", "eval": "evaluation"}[record.split]
    text = (
        f"{metrics['recall']:.1%} of the {metrics['entities']:,} entities in {metrics['examples']:,} "
        f"{which} examples are found whole and of the right type; {metrics['precision']:.1%} of the "
        f"{metrics['predicted_entities']:,} that the model gives are right (F1 {metrics['f1']:.3f})."
    )
    if metrics.get("unread_words"):
        text += f" {metrics['unread_words']:,} words were not read, and count as no entity."
    return text


def predictions(record: Record, plots: ModuleType) -> Html:
    """Scores of each type, and which is taken for which."""
    metrics = record.metrics(record.split)
    if not metrics:
        return missing("No evaluation yet.")
    rows = [
        [name, *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1")), f"{row['support']:,}"]
        for name, row in metrics["per_class"].items()
    ]
    by_type = element(
        "div",
        element("h3", "By type"),
        table(["type", "precision", "recall", "F1", "entities"], rows, kinds="tnnnn"),
    )
    counted = Confusion.from_json(record.detail(record.split, "confusion"))
    if counted is None or len(counted.names) > _MAX_MATRIX:
        return by_type
    matrix = figure(
        plots.confusion_matrix(counted.matrix(), counted.names),
        "Types of entities with the same words, true and predicted, shaded by their share of the row; "
        "the last row and column are words that only one of the two takes for an entity.",
    )
    return join([matrix, by_type])


def worst(record: Record, _: ModuleType) -> Html:
    """The examples with the most entities that are missed or made up."""
    rows = wrong = 0

    def mistakes() -> Iterator[Row]:
        nonlocal rows, wrong
        for row in filter(_is_prediction, record.predictions.get(record.split, ())):
            rows += 1
            if row["missed"] or row["spurious"]:
                wrong += 1
                yield row

    first = heapq.nsmallest(
        _WORST,
        mistakes(),
        key=lambda row: (-len(row["missed"]) - len(row["spurious"]), row["index"]),
    )
    if not rows:
        return missing(f"No predictions/{record.split}.jsonl.")
    cells = [
        [str(row["index"]), _named(row["missed"]), _named(row["spurious"]), str(row.get("text", ""))]
        for row in first
    ]  # fmt: skip
    note = (
        f"In {wrong:,} of {rows:,} examples an entity is missed or made up; those with the "
        "most of them are first. One with wrong words or of the wrong type is both."
    )
    heads = ["row", "missed", "made up", "text"]
    return join([element("p", note), table(heads, cells, kinds="nwww") if cells else Html()])


def _named(entities: list[Mapping[str, Any]]) -> str:
    return "; ".join(f"{entity.get('text')} ({entity.get('type')})" for entity in entities)


def _is_prediction(row: Row) -> bool:
    """Whether it holds what was written."""
    return all(
        isinstance(row.get(key), list) and all(isinstance(entry, dict) for entry in row[key])
        for key in ("missed", "spurious")
    )


VIEW = View(
    tiles={
        "f1": "entity F1",
        "precision": "precision",
        "recall": "recall",
        "accuracy": "words right",
        "loss": "loss",
    },
    result=result,
    sections={"Predictions": predictions, "Mistakes": worst},
)
