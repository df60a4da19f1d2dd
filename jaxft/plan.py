"""What a run needs on hardware that is not here: `python -m jaxft.plan --config FILE --topology v5e:4x4`.

The run's own update is compiled ahead of time for a TPU slice, GPUs or this CPU; no weight is read.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin()

import sys
from collections.abc import Sequence

from jaxft.planning import told
from jaxft.search.planning import make_plan
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse
from jaxft.terminal.tables import show_comparison

FLAGS = (
    Flag("topology", "v5e:4x4, v5p:4x4x4, v6e:16x16, h100:8x8 (hosts x GPUs), cpu, cpu:8", required=True),
    Flag("length", "tokens of every text; the data are then not read and need not be there", default=0),
    Flag("examples", "of the training data, where these are not read", default=0),
    Flag("compile", "false: trace alone; temporaries and traffic are then estimates", default=True),
    Flag("search", "look for the fastest batch, mesh, dtype and recomputation that fit", default=False),
    Flag("compiled", "of a search: so many of the most promising are compiled", default=3),
    Flag("price", "US dollars of a device an hour; 0: as the table says", default=0.0),
    Flag("watts", "of a device; 0: as the table says", default=0.0),
    Flag("output", "folder for plan.json and plan.html; default: runs/plan-TASK"),
)  # fmt: skip
_NO_FIT = 3


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status: 3 where it does not fit."""
    values, config = parse(argv, FLAGS, with_config=True)
    assert config is not None
    output = values.output or f"runs/plan-{config.task}"
    plan = make_plan(
        config, values.topology, output=output, length=values.length, examples=values.examples,
        price=values.price or None, watts=values.watts or None,
        compiles=values.compile, compiled=values.compiled if values.search else 0,
        say=lambda line: print(line, flush=True),
    )  # fmt: skip
    print(told.subject(plan), told.headline(plan), sep="\n")
    show_comparison(("memory", "a device", "share"), told.memory_rows(plan), (), words=1)
    if plan.traffic:
        show_comparison(told.TRAFFIC_HEADS, told.traffic_rows(plan), (), words=2)
    if plan.least:
        show_comparison(told.LEAST_HEADS, told.least_rows(plan), (), words=1)
    for line in (*told.time_lines(plan), *plan.notes, *plan.advice):
        print(line)
    print(f"page: {output}/plan.html; train --plan={output}/plan.json uses it")
    return 0 if plan.fits else _NO_FIT


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
