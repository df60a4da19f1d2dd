"""Write a run's model in Hugging Face format: `python -m jaxft.export --run DIR --output DIR`.

Works while the run is still going or after it was stopped: the best checkpoint so far is taken, or
with `--step N` the checkpoint of that step. The run directory is only read.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin()

import sys
from collections.abc import Sequence

from jaxft.experiment import finish
from jaxft.experiment.directory import RunDirectory
from jaxft.experiment.output import check_export
from jaxft.experiment.saved import open_saved, read_step
from jaxft.experiment.weights import best_weights
from jaxft.models import hf
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse
from jaxft.training.reader import CheckpointReader

FLAGS = (
    Flag("run", "directory of a run", required=True),
    Flag("output", "directory to write; must not exist, or be an earlier export", required=True),
    Flag("step", "optimizer updates of the checkpoint to take; default: the best one", default=-1),
)


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    values, _ = parse(argv, FLAGS)
    directory = RunDirectory(values.run)
    config = directory.config()
    output = check_export(values.output, directory.path, hf.resolve(config.model.path))
    run = open_saved(directory)
    checkpoints = CheckpointReader(directory.checkpoints, run.parallel)
    step, whole = read_step(
        checkpoints,
        values.step if values.step >= 0 else None,
        lambda step: best_weights(run, checkpoints, step, run.source),
    )
    frozen = run.stages.saved_at(step).frozen
    finish.export(run.prepared, whole, str(output), unchanged=frozen, lead=True)
    print(f"step {step} of {directory.path} -> {output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
