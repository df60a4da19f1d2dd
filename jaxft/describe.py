"""Show what a config does to every parameter, before any compute: `python -m jaxft.describe --config FILE`.

One row per parameter: path, shape, depth, trainable, peak learning rate, weight decay, and which axis of the
mesh cuts each dimension; then totals, what keeping the frozen prefix takes and saves, and warnings, among
them those of `jaxft.optim.lint`. `--paths` prints only the paths, to write patterns from.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin()

import sys
from collections.abc import Sequence

from jaxft.experiment.prefix_forecast import forecast
from jaxft.experiment.prepared import findings, prepare
from jaxft.experiment.table import parameter_rows
from jaxft.experiment.weights import what_counts
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse
from jaxft.terminal.tables import show_parameters

FLAGS = (Flag("paths", "print the parameter paths and nothing else", default=False),)


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    values, config = parse(argv, FLAGS, with_config=True)
    assert config is not None
    prepared = prepare(config)
    rows = parameter_rows(prepared)
    if values.paths:
        print("\n".join(row["path"] for row in rows))
        return 0
    show_parameters(rows)
    print(f"implementation {prepared.architecture.note}")
    print(prepared.decisions.summary)
    if counts := what_counts(config):
        print(counts)
    for stage in prepared.decisions.plan:
        print(
            f"from update {stage.start}: depths {', '.join(sorted(map(str, stage.groups), key=int))} train"
        )
    for line in forecast(prepared):
        print(line)
    for warning in (*prepared.decisions.warnings, *map(str, findings(prepared))):
        print(f"warning: {warning}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
