"""Sections of the report that tell what the model gets wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from jaxft.analysis.page import Html, element, figure, join, table
from jaxft.analysis.pictures import thumbnail
from jaxft.analysis.record import Record
from jaxft.analysis.sections import missing

_MAX_TEXTS, _MAX_IMAGES = 15, 24


def predictions(record: Record, plots: ModuleType) -> Html:
    """Confusion matrix and per-class table of the split that is reported."""
    metrics = record.metrics(record.split)
    per_class, confusion = metrics.get("per_class"), metrics.get("confusion")
    if not per_class or not confusion:
        return missing("No evaluation yet.")
    names = list(per_class)
    which = {"test": "test", "eval": "evaluation"}[record.split]
    caption = f"Confusion matrix of the {which} data: counts, shaded by their share of the row."
    matrix = figure(plots.confusion_matrix(confusion, names), caption)
    classes = element("div", element("h3", "By label"), _by_label(per_class))
    if len(names) <= 6:  # narrow enough to stand side by side
        return element("div", matrix, classes, attributes={"class": "beside"})
    return join([matrix, _confusions(confusion, names), classes])


def _by_label(per_class: Mapping[str, Mapping[str, float]]) -> Html:
    rows = [
        (
            name,
            f"{c['precision']:.3f}",
            f"{c['recall']:.3f}",
            f"{c['f1']:.3f}",
            _bar(c["f1"]),
            f"{c['support']:,}",
        )
        for name, c in per_class.items()
    ]
    return table(["label", "precision", "recall", "F1", "", "examples"], rows, kinds="tnnntn")


def confident_mistakes(record: Record) -> Html:
    """Wrong predictions, the most confident first."""
    rows = record.predictions.get(record.split)
    if not rows:
        return missing(f"No predictions/{record.split}.jsonl.")
    wrong = [row for row in rows if row["label"] != row["predicted"]]
    if not wrong:
        return element("p", f"All {len(rows):,} examples are classified correctly.")
    wrong.sort(key=lambda row: (-row["probability"], row["index"]))
    images = any("image" in row for row in wrong)
    shown = wrong[: _MAX_IMAGES if images else _MAX_TEXTS]
    rest = len(wrong) - len(shown)
    note = (
        f"{len(wrong):,} of {len(rows):,} examples are classified wrongly"
        + (f"; the {len(shown)} most confident of them are shown" if rest else "")
        + ". Confident mistakes are often mislabelled or ambiguous examples."
    )
    return join([element("p", note), _gallery(shown) if images else _texts(shown)])


def _confusions(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Html:
    """The most frequent mistakes as a table: with many labels the matrix alone is hard to read."""
    cells = [
        (count, label, predicted)
        for label, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        if count and label != predicted
    ]
    cells.sort(key=lambda cell: (-cell[0], cell[1], cell[2]))
    rows = [
        (names[label], names[predicted], str(count), f"{count / sum(confusion[label]):.1%}")
        for count, label, predicted in cells[:10]
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


def _gallery(rows: Sequence[Mapping[str, Any]]) -> Html:
    items = []
    for row in rows:
        words = join(
            [
                element("strong", str(row["predicted"])),
                f" {row['probability']:.3f}",
                Html("<br>"),
                f"label {row['label']}",
                Html("<br>"),
                f"row {row['index']}",
            ]
        )
        items.append(element("li", _picture(str(row.get("image", ""))), words))
    return element("ul", *items, attributes={"class": "gallery"})


def _picture(source: str) -> Html:
    found = thumbnail(source)
    if found is None:
        return missing(source[:200] or "no image")
    uri, tiny = found
    # The URI is base64 and the class ours: nothing here needs to be escaped.
    return Html(f'<img src="{uri}" alt="" class="{"tiny" if tiny else "photo"}">')


def _bar(value: float) -> Html:
    return element("span", attributes={"class": "bar", "style": f"width:{4 * value:.2f}rem"})
