"""Tables for the terminal: metrics of an evaluation, and what happens to every parameter."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.table import Table

from jaxft.terminal.text import plain, plain_console

# Confusion matrices beyond this many classes do not fit a line; they are in the JSON and the report.
_WIDEST_CONFUSION = 12


def show_metrics(
    metrics: Mapping[str, Any], headline: Sequence[str], *, stream: TextIO | None = None
) -> None:
    """Headline numbers, one row a class where there are such, and the confusion of few classes.

    Args:
      metrics: what `Evaluation.to_json` gives.
      headline: the metrics of the first row.
    """
    console = plain_console(stream or sys.stdout)
    numbers = Table(*headline, box=None)
    numbers.add_row(*(f"{metrics[name]:.4f}" for name in headline))
    console.print(numbers)
    classes = Table("class", "precision", "recall", "f1", "support", box=None)
    for name, row in metrics.get("per_class", {}).items():  # not there where classes are many
        scores = (f"{row[key]:.4f}" for key in ("precision", "recall", "f1"))
        classes.add_row(plain(name), *scores, str(row["support"]))
    if classes.row_count:
        console.print(classes)
    counted = metrics.get("confusion", {})
    names = [plain(name) for name in counted.get("names", ())]
    if 0 < len(names) <= _WIDEST_CONFUSION:
        confusion = Table("true \\ predicted", *names, box=None)
        for name, counts in zip(names, counted["matrix"], strict=True):
            confusion.add_row(name, *map(str, counts))
        console.print(confusion)


def show_parameters(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a parameter, whole however narrow the terminal: paths are there to be copied."""
    width = max(len(row["path"]) for row in rows)
    print(f"{'parameter':<{width}}  {'shape':>16}  depth  trainable  learning rate  weight decay")
    for row in rows:
        shape = "x".join(map(str, row["shape"])) or "scalar"
        rate = f"{row['learning_rate']:.3g}" if row["trainable"] else "-"
        decay = f"{row['weight_decay']:.3g}" if row["trainable"] else "-"
        state = "yes" if row["trainable"] else "frozen"
        print(
            f"{row['path']:<{width}}  {shape:>16}  {row['depth']:>5}  {state:>9}  {rate:>13}  {decay:>12}"
        )
