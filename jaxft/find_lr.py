"""A learning rate for a run, by a range test: `python -m jaxft.find_lr --config FILE`.

The rate grows over a hundred updates of the run, and the curve of the loss suggests one. The test needs no
run directory, and saves no weights.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin(huge_pages=True)

import sys
from collections.abc import Sequence

from jaxft.analysis import range_page
from jaxft.search.finding_lr import find_lr
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse
from jaxft.terminal.plot import curve_lines, show_lines
from jaxft.terminal.tables import show_comparison

FLAGS = (
    Flag("lowest", "rate of the first update", default=1e-7),
    Flag("highest", "rate of the last update, if the loss does not diverge before", default=10.0),
    Flag("steps", "updates", default=100),
    Flag("seeds", "runs whose mean is read; on one device they are one program", default=1),
    Flag("output", "folder for find_lr.json and find_lr.html; default: runs/find_lr-TASK"),
)
_TOLD = 10  # updates between two lines


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    values, config = parse(argv, FLAGS, with_config=True)
    assert config is not None
    output = values.output or f"runs/find_lr-{config.task}"

    def told(step: int, rate: float, loss: float) -> None:
        if step % _TOLD == 0:
            print(f"step {step}/{values.steps}  rate {rate:.2e}  loss {loss:.4f}", flush=True)

    found = find_lr(
        config, lowest=values.lowest, highest=values.highest, steps=values.steps,
        seeds=values.seeds, output=output, told=told,
    )  # fmt: skip
    show_lines(curve_lines(**range_page.chart(found.curve), marks=range_page.marks(found)))
    show_comparison(range_page.HEADS, range_page.rows(found), range_page.notes(found), words=2)
    print(range_page.option(found))
    print(f"page: {output}/find_lr.html")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
