"""Hold runs against each other: `python -m jaxft.compare RUN RUN … [--output compare.html]`.

Prints one table: what differs in the configs, the metrics of the best checkpoint on evaluation and test
data, and seconds. Runs that are equal but for `train.seed` are one row: mean ± standard deviation.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin()

import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxft.analysis import comparison
from jaxft.analysis.record import read_record
from jaxft.config import flatten, to_json
from jaxft.experiment.directory import RunDirectory
from jaxft.experiment.output import Output, check_output
from jaxft.tasks.table import TASKS
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse

FLAGS = (Flag("output", "also write a page to this FILE.html; never over another file"),)
_WIDE = 10_000  # columns where there is no terminal to fit into: a table is as wide as it is


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    paths, rest = _take_runs(argv)
    values, _ = parse(rest, FLAGS)
    if not paths:
        raise ValueError("no runs are given: python -m jaxft.compare RUN RUN …")
    output = None
    if values.output:
        if Path(values.output).suffix != ".html":
            raise ValueError(f"--output {values.output} is a page: name it FILE.html")
        output = check_output(
            values.output, reads={}, earlier=comparison.is_comparison, written_by="compare"
        )
    runs = [_read(path) for path in dict.fromkeys(paths)]
    groups = comparison.group(runs)
    metrics = _metrics(runs)
    _show(groups, metrics)
    if output is not None:
        with Output(output) as file:
            file.write(comparison.render(groups, metrics).encode("utf-8", "replace"))
        print(f"page: {values.output}")
    return 0


def _take_runs(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(run directories, everything else): the words that are no flag and no flag's value."""
    runs, rest, words = [], [argv[0]], list(argv[1:])
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            runs.append(word)
            continue
        rest.append(word)
        if word.lstrip("-") in {flag.name for flag in FLAGS} and words:
            rest.append(words.pop(0))
    return runs, rest


def _read(path: str) -> comparison.Compared:
    """One run.

    Raises:
      ValueError: no run directory, or files in it that jaxft did not write.
    """
    directory = RunDirectory(path)
    config, source = directory.config(), directory.source()
    return comparison.Compared(path, read_record(path), flatten(to_json(config)), source)


def _metrics(runs: Sequence[comparison.Compared]) -> list[str]:
    """What is compared: the metric that chooses the best checkpoint, then those of each task."""
    names = [str(runs[0].config["eval.metric"])]
    for run in runs:
        names += TASKS[run.config["task"]].compared
    return list(dict.fromkeys(names))


def _show(groups: Sequence[comparison.Group], metrics: Sequence[str]) -> None:
    heads, rows = comparison.summary_rows(groups, metrics)
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number > 3 else "left", no_wrap=number > 3)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # as Text: a name may look like markup
    console.print(table)
    for note in comparison.notes(groups):
        console.print(Text(f"note: {note}"), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
