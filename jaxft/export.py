"""Write a run's model in Hugging Face format: `python -m jaxft.export --run DIR --output DIR`.

Works while the run is still going or after it was stopped: the best checkpoint so far is taken, or
with `--step N` the checkpoint of that step.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin()

import sys
from collections.abc import Sequence
from pathlib import Path

from jaxft.run import finish
from jaxft.run.build import build, prepare
from jaxft.run.directory import RunDirectory
from jaxft.run.provenance import source_record
from jaxft.run.weights import best_weights
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse
from jaxft.training.checkpoint import Checkpoints
from jaxft.training.parallel import make_parallel

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
    output = Path(values.output)
    if output.exists() and not (output / "config.json").exists():
        raise ValueError(f"--output {output} exists and is not a checkpoint; it is left as it is")
    prepared = prepare(config)
    parallel = make_parallel("auto")
    run, _ = build(prepared, parallel, cache=config.data.cache or str(directory.path / "cache"))
    directory.check_source(source_record(run))
    with Checkpoints(directory.checkpoints, parallel, keep=config.checkpoint.keep) as checkpoints:
        step = _step(checkpoints, values.step)
        whole = best_weights(run, checkpoints, step)
    frozen = run.stages.saved_at(step).frozen
    finish.export(prepared, whole, str(output), unchanged=frozen, lead=True)
    print(f"step {step} of {directory.path} -> {output}")
    return 0


def _step(checkpoints: Checkpoints, wanted: int) -> int:
    """The step to export: the wanted one, else the best, else the latest."""
    steps = checkpoints.steps()
    if not steps:
        raise ValueError("the run has no complete checkpoint yet")
    if wanted >= 0:
        if wanted not in steps:
            raise ValueError(f"--step={wanted} is not kept; there are {', '.join(map(str, steps))}")
        return wanted
    best = checkpoints.memory(steps[-1])["best_step"]
    return best if best is not None else steps[-1]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
