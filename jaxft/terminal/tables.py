"""Tables for the terminal: metrics of an evaluation, several runs, and what happens to every parameter."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxft.terminal.text import plain, plain_console

# Confusion matrices beyond this many classes do not fit a line; they are in the JSON and the report.
_WIDEST_CONFUSION = 12
_WIDE = 10_000  # columns where there is no terminal to fit into: a table is as wide as it is


def show_metrics(
    metrics: Mapping[str, Any], headline: Sequence[str], *, stream: TextIO | None = None
) -> None:
    """Headline numbers, one row per class where there are classes, and the confusion matrix of a few.

    Args:
      metrics: what `Evaluation.to_json` gives.
      headline: the metrics of the first row, of which only some data, or some settings, have all.
    """
    console = plain_console(stream or sys.stdout)
    headline = [name for name in headline if name in metrics]
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


def show_comparison(
    heads: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str], *, words: int
) -> None:
    """One row per group of runs, and below the table what must be known about them.

    Args:
      words: how many of the first columns hold words, which may be wrapped; the rest are numbers.
    """
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        is_number = number >= words
        table.add_column(head, justify="right" if is_number else "left", no_wrap=is_number)
    for row in rows:
        table.add_row(*map(Text, row))  # as Text: a name may look like markup
    console.print(table)
    for note in notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)


def show_findings(
    findings: Sequence[tuple[str, str, str, str]], *, stream: TextIO | None = None
) -> None:
    """One line a finding and, below what is more than a note, what to do.

    Args:
      findings: (level, what was looked at, what was found, advice), in their order.
    """
    console = plain_console(stream or sys.stdout)
    widths = [max((len(row[i]) for row in findings), default=0) for i in (0, 1)]
    colours = {"serious": "bold red", "warning": "yellow"}
    for level, check, summary, advice in findings:
        head = f"{level:<{widths[0]}}  {check:<{widths[1]}}  "
        console.print(
            Text.assemble((head, colours.get(level, "dim")), plain(summary)), soft_wrap=True
        )
        if advice and level != "note":
            console.print(Text(" " * len(head) + plain(advice)), soft_wrap=True)


def show_parameters(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per parameter, never wrapped by us: paths are there to be copied."""
    width = max(len(row["path"]) for row in rows)
    heads = "depth  trainable  learning rate  weight decay  placement"
    print(f"{'parameter':<{width}}  {'shape':>16}  {heads}")
    for row in rows:
        shape = "x".join(map(str, row["shape"])) or "scalar"
        rate = f"{row['learning_rate']:.3g}" if row["trainable"] else "-"
        decay = f"{row['weight_decay']:.3g}" if row["trainable"] else "-"
        state = "yes" if row["trainable"] else "frozen"
        cut = any(row["placement"])
        place = ", ".join(axis or "-" for axis in row["placement"]) if cut else "whole"
        print(
            f"{row['path']:<{width}}  {shape:>16}  {row['depth']:>5}  {state:>9}  {rate:>13}  "
            f"{decay:>12}  {place}"
        )
