"""Fine-tune a checkpoint: `python -m jaxft.train --config FILE --workdir DIR [--config.a.b=value …]`.

The same command continues a run that was stopped, exactly: a checkpoint holds what the config does not say.
From Python: `jaxft.train(config, workdir)`.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported: this may start the process anew
    from jaxft.terminal.start import begin

    begin(huge_pages=True)

import sys
from collections.abc import Sequence
from contextlib import ExitStack

from jaxft import api
from jaxft.experiment import processes
from jaxft.experiment.lifecycle import carry_out
from jaxft.experiment.planned_config import with_plan
from jaxft.experiment.signals import leave
from jaxft.experiment.timing import Stopwatch
from jaxft.experiment.workdir import claimed, located
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse

FLAGS = (
    Flag("workdir", "directory or s3://… of the run: created, or continued", required=True, remote=True),
    Flag("local_copy", "where a run of a remote --workdir is kept here; default: in ~/.cache/jaxft/runs"),
    Flag(
        "resume_from",
        "continue from this earlier checkpoint (0: begin again); later ones are set aside, not deleted", -1,
    ),
    Flag("plan", "plan.json of `plan`: mesh, batch, compute type and recomputation are as it says"),
    *processes.FLAGS,
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """The command. Returns the exit status: 0 finished, 143 or 130 saved and stopped by a signal."""
    clock = Stopwatch()
    processes.join(argv)
    with ExitStack() as held:
        with processes.agreement("the config") as facts:
            values, config = parse(argv, FLAGS, with_config=True)
            assert config is not None
            config = with_plan(config, values.plan)
            facts.append(processes.common(config))
            directory, store = located(values.workdir, values.local_copy)
            if processes.is_lead():
                held.enter_context(claimed(directory, store))
        again = values.resume_from if values.resume_from >= 0 else None
        return carry_out(config, directory, clock, resume_from=again)


api.make_callable(__name__, api.train)

if __name__ == "__main__":
    leave(run_command(main, sys.argv))
