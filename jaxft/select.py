"""Rank checkpoints for your data by a probe: `python -m jaxft.select --config FILE --models A,B,C`.

Each candidate gets one forward pass over a sample of the training rows; a linear probe, LogME and H-score on
its frozen features say how much of the task they hold. The probes of each block, and its gradients over a few
batches, say which blocks to tune.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin()

import sys
from collections.abc import Sequence

from jaxft.analysis import selection, tuning
from jaxft.experiment.selecting import select
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse
from jaxft.terminal.tables import show_comparison

FLAGS = (
    Flag("models", "checkpoint directories or hub ids, A,B,C", required=True),
    Flag("rows", "training rows to probe on, at most", default=1000),
    Flag("gradients", "batches whose gradients are compared, block by block; 0: none", default=32),
    Flag("output", "folder for select.json and select.html; default: runs/select-TASK"),
)


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    values, config = parse(argv, FLAGS, with_config=True)
    assert config is not None
    models = list(dict.fromkeys(name.strip() for name in values.models.split(",") if name.strip()))
    output = values.output or f"runs/select-{config.task}"
    found, notes = select(
        config, models, rows=values.rows, gradients=values.gradients, output=output
    )
    for note in notes:
        print(note)
    show_comparison(selection.HEADS, selection.summary_rows(found), selection.notes(found), words=2)
    heads, rows = selection.block_rows(found)
    show_comparison(heads, rows, [f"{found.block_metric} of ridge regression, by block"], words=0)
    best = tuning.rows(found.best)
    print(f"which blocks of {found.best.name} to tune:")
    show_comparison(tuning.HEADS, best, [selection.evidence(found)], words=0)
    print("\n".join(selection.suggestion(found)))
    print(f"page: {output}/select.html")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
