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
from pathlib import Path

from jaxft.experiment import finish
from jaxft.experiment.directory import RunDirectory
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
# Names in a run directory that training writes, perhaps later; best/ may be written by an export.
_OF_THE_RUN = frozenset(
    ("config.json", "source.json", "metrics.jsonl", "parameters.json", "checkpoints", "predictions")
    + ("summary.json", "report.html", "tensorboard", "cache", ".lock")
)


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    values, _ = parse(argv, FLAGS)
    directory, output = RunDirectory(values.run), Path(values.output)
    config = directory.config()
    _check_output(output, directory, hf.resolve(config.model.path))
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


def _check_output(output: Path, directory: RunDirectory, source: str) -> None:
    """Before anything is read: the output is replaced as a whole, so it must not be another's place."""
    if output.exists() and not (output / "config.json").exists():
        raise ValueError(f"--output {output} exists and is not a checkpoint; it is left as it is")
    target, run = output.resolve(), directory.path.resolve()
    for place, what in ((run, "run"), (Path(source).resolve(), "checkpoint that it began from")):
        if target == place or target in place.parents:
            verb = "is" if target == place else "holds"
            raise ValueError(f"--output {output} {verb} the {what}; give a directory of its own")
    if run in target.parents and target.relative_to(run).parts[0] in _OF_THE_RUN:
        raise ValueError(
            f"--output {output} belongs to the run, which writes there; give a directory of its own"
        )
    above = next(folder for folder in target.parents if folder.exists())
    if not above.is_dir():
        raise ValueError(f"--output {output}: {above} is a file, not a directory")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
