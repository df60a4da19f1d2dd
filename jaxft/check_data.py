"""Look at the data before training on them: `python -m jaxft.check_data --config FILE`.

Duplicates and near duplicates within and across splits, conflicting and suspicious labels, label balance
and drift, truncation, unknown tokens, damaged texts and images, and what leaks the label.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin()

import sys
from collections.abc import Sequence

from jaxft.experiment.checking import check_data
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse
from jaxft.terminal.tables import show_findings

FLAGS = (
    Flag("rows", "rows of each split whose contents are compared, at most", default=50_000),
    Flag("probed", "training rows whose labels are doubted, at most", default=5_000),
    Flag("output", "folder for data_report.json and .html; default: runs/data-TASK"),
    Flag("strict", "exit with status 3 when something serious is found", default=False),
)
_FOUND = 3


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    values, config = parse(argv, FLAGS, with_config=True)
    assert config is not None
    output = values.output or f"runs/data-{config.task}"
    result = check_data(config, rows=values.rows, probed=values.probed, output=output)
    for note in result.notes:
        print(note)
    show_findings([(f.level, f.check, f.summary, f.advice) for f in result.findings])
    print(f"page: {output}/data_report.html")
    return _FOUND if values.strict and result.worst == "serious" else 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
