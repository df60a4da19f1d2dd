"""Measure a config on every part of its data: `python -m jaxft.cross_validate --config FILE --folds 5`.

Each fold is held out once, and a model is trained on the others: mean, deviation and corrected confidence
interval of each metric, and a prediction of every row by a model that has not seen it. `--seeds N` keeps the
rows and changes the seed; `--against FILE` holds a second config against the first, on the same rows.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin(huge_pages=True)

import sys
from collections.abc import Sequence

from jaxft.search.validation import against
from jaxft.search.validation.folds import FOLDS, make_plan
from jaxft.search.validation.validating import cross_validate
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse

FLAGS = (
    Flag("folds", f"equal parts of the training data, each held out once; default: {FOLDS}", default=0),
    Flag("repeats", "how often they are cut, each time in another way; default: 1", default=0),
    Flag("seeds", "in place of folds: so many seeds on the same rows", default=0),
    Flag("checkpoint", "what is measured: last, or best on the held-out rows (optimistic)", default="last"),
    Flag("against", "a second config file, FILE[:arg], to be held against the first on the same rows"),
    Flag("workers", "trials that run side by side, on a CPU that one of them does not fill", default=1),
    Flag("output", "folder of what is found and of the trials; default: runs/cross_validate-TASK"),
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    values, config = parse(argv, FLAGS, with_config=True)
    assert config is not None
    plan = make_plan(values.folds, values.repeats, values.seeds, values.checkpoint)
    output = values.output or f"runs/cross_validate-{config.task}"
    other = None
    if values.against:  # what the command line changes is changed in both
        other = parse([*argv, f"--config={values.against}"], FLAGS, with_config=True)[1]
    if other is None:
        found = cross_validate(config, plan, output, workers=values.workers)
        against.show_validation(found, output)
    else:
        both = against.cross_validate_pair(config, other, plan, output, workers=values.workers)
        against.show_pair_of(both, output)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
