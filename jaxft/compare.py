"""Compare runs with each other: `python -m jaxft.compare RUN RUN … [--output compare.html]`.

Prints one table: what differs in the configs, the metrics of the best checkpoint on evaluation and test
data, and seconds. Runs that are equal but for `train.seed` are one row: mean ± standard deviation. Two
folders of `cross_validate` get a paired test instead, over their folds or seeds.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin()

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxft.analysis import comparison
from jaxft.experiment.compared import compared_metrics, read_compared
from jaxft.experiment.output import Output, check_output
from jaxft.search.validation.against import is_validation, shown_pair
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse, take_words
from jaxft.terminal.tables import show_comparison

FLAGS = (Flag("output", "also write a page to this FILE.html; never over another file"),)


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    words, rest = take_words(argv, FLAGS)
    values, _ = parse(rest, FLAGS)
    if not words:
        raise ValueError("no runs are given: python -m jaxft.compare RUN RUN …")
    if values.output and Path(values.output).suffix != ".html":
        raise ValueError(f"--output {values.output} is a page: name it FILE.html")
    earlier, paths = comparison.is_comparison, list(dict.fromkeys(words))
    if values.output:
        output = check_output(values.output, reads={}, earlier=earlier, written_by="compare")
    page = shown_pair(paths) if any(map(is_validation, paths)) else _shown(paths)
    if values.output:
        with Output(output) as file:
            file.write(page().encode("utf-8", "replace"))
        print(f"page: {values.output}")
    return 0


def _shown(paths: Sequence[str]) -> Callable[[], str]:
    runs = [read_compared(path) for path in paths]
    groups, metrics = comparison.group(runs), compared_metrics(runs)
    heads, rows = comparison.summary_rows(groups, metrics)
    # Words are the letter, the runs, the seeds and what differs; then come numbers.
    show_comparison(heads, rows, comparison.notes(groups), words=4)
    return lambda: comparison.render(groups, metrics)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
