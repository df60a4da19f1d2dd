"""Fine-tune a checkpoint: `python -m jaxft.train --config FILE --workdir DIR [--config.a.b=value …]`.

The same command continues a run that was stopped, exactly: the state is a pure function of the
config and the step, and a checkpoint holds the step's parameters and optimizer slots.
From Python: `jaxft.train(config, workdir)` (see `api.py`).
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported: this may start the process anew
    from jaxft.terminal.start import begin

    begin(huge_pages=True)

import dataclasses
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxft.api import Trained, make_config, read_result
from jaxft.config import ConfigDict, to_json
from jaxft.optim import merge
from jaxft.run import processes
from jaxft.run.build import Run, build, devices, prepare
from jaxft.run.compilation import blank_batches, use_compilation_cache
from jaxft.run.continuing import Changes
from jaxft.run.directory import RunDirectory
from jaxft.run.finish import finish, report, weights_if_best
from jaxft.run.loop import resume, run_loop
from jaxft.run.provenance import source_record
from jaxft.run.session import Session
from jaxft.run.signals import Stopped, leave, raised
from jaxft.run.table import parameter_rows
from jaxft.run.timing import Stopwatch
from jaxft.run.weights import what_counts
from jaxft.tasks.names import minimised
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse
from jaxft.training.checkpoint import Checkpoints, check_resume_step
from jaxft.training.logs import Logs

FLAGS = (
    Flag(
        "workdir", "directory of the run; created, or continued if it holds this run", required=True
    ),
    Flag(
        "resume_from",
        "continue from this earlier checkpoint (0: begin again); later ones are set aside, not deleted",
        default=-1,
    ),
    *processes.FLAGS,
)


def main(argv: Sequence[str]) -> int:
    """The command. Returns the exit status: 0 finished, 143 or 130 saved and stopped by a signal."""
    clock = Stopwatch()
    processes.join(argv)
    with ExitStack() as held:
        with processes.agreement("the config") as facts:
            values, config = parse(argv, FLAGS, with_config=True)
            assert config is not None
            facts.append(to_json(config))
            directory = RunDirectory(values.workdir)
            if processes.is_lead():
                held.enter_context(directory.claimed())
        again = values.resume_from if values.resume_from >= 0 else None
        return run(config, directory, clock, resume_from=again)


def run(
    config: ConfigDict, directory: RunDirectory, clock: Stopwatch, resume_from: int | None = None
) -> int:
    """Start, continue or merely report the run in `directory`. Returns the exit status.

    Args:
      resume_from: go on from the checkpoint of this step, not from the newest; 0 begins again.
    """
    phase = ["starting"]
    try:
        with raised():
            return _run(config, directory, clock, phase, resume_from)
    except Stopped as stopped:
        rest = "finishes the run" if phase[-1] == "finishing" else "starts again where it was"
        print(
            f"jaxft: {stopped.name} while {phase[-1]}: nothing is lost, the same command {rest}",
            file=sys.stderr,
        )
        return 128 + stopped.number


def _run(
    config: ConfigDict, directory: RunDirectory, clock: Stopwatch, phase: list[str],
    resume_from: int | None,
) -> int:  # fmt: skip
    lead = processes.is_lead()
    with processes.agreement("the run directory"):
        changes = directory.changes(config) if lead else None
        if resume_from is not None:
            check_resume_step(directory.checkpoints, resume_from)
            if changes is not None:
                changes = dataclasses.replace(changes, reopens=True)
    if processes.lead_says(changes is not None and _is_whole(config, directory, changes)):
        return 0
    use_compilation_cache(config.train.compile_cache)
    with clock.time("load"), processes.agreement("the checkpoint or the data") as facts:
        prepared = prepare(config)
        cache = config.data.cache or str(directory.path / "cache")
        built, state = build(prepared, devices(config), cache=cache)
        facts.append(source_record(built))
        notes: list[str] = []
        if changes is not None:
            notes = directory.begin(config, facts[0], changes)
            directory.write_json("parameters.json", parameter_rows(prepared))
    with (
        processes.in_step(),
        Checkpoints(directory.checkpoints, built.parallel, keep=config.checkpoint.keep) as saves,
        Logs(directory.path, total_steps=prepared.length.steps,
             steps_per_epoch=prepared.length.epoch, log_every=config.train.log_every,
             tensorboard=config.log.tensorboard, enabled=lead, shown=prepared.task.shown,
             minimised=minimised(config.task)) as logs,
    ):  # fmt: skip
        session = Session(built, directory, saves, logs, clock)
        _introduce(built, logs)
        for path in [] if resume_from is None else saves.set_aside_after(resume_from):
            logs.say(f"set aside: {path}")
        state, memory = resume(session, state)
        for note in notes:
            logs.event(built.steps_done(state), "changed", note)
        with clock.time("compile"):
            built.stages.compile(built.steps_done(state), built.train_batches)
            whole = merge(state.params, state.frozen)  # only its shapes and places matter
            built.eval_step.compile((whole,), blank_batches(built.eval_batches, built.parallel))
        built.stages.compile_ahead(built.steps_done(state), built.train_batches)
        phase.append("training")
        with clock.time("train", without=("eval", "save")):
            state, memory, stopped_by = run_loop(session, state, memory)
        if stopped_by:
            return 128 + stopped_by
        phase.append("finishing")
        saves.wait()
        last_step, whole = built.steps_done(state), weights_if_best(session, state, memory)
        del state
        finish(session, whole, memory, last_step)
        built.stages.wait()
        processes.together("finished")
    return 0


def _is_whole(config: ConfigDict, directory: RunDirectory, changes: Changes) -> bool:
    """Whether nothing is left to do but to say so. A report that is missing is made again here."""
    if changes.reopens or not directory.finished():
        return False
    lacking = directory.lacks(test=bool(config.data.test))
    if lacking == ["report.html"]:
        print(f"{directory.path} is finished but had no report; it is now in {report(directory)}")
    elif not lacking:
        print(f"{directory.path} is finished; its report is {directory.path}/report.html")
    return lacking in ([], ["report.html"])


def _introduce(run: Run, logs: Logs) -> None:
    """Say once what this run is, and everything that was decided rather than given."""
    prepared = run.prepared
    splits = prepared.splits
    sizes = {"train": splits.train, "eval": splits.eval, "test": splits.test}
    rows = ", ".join(f"{len(s.targets)} {name}" for name, s in sizes.items() if s is not None)
    labels = f", {len(splits.names)} labels" if splits.names else ""
    logs.say(f"model {prepared.config.model.path}: {prepared.decisions.summary}")
    logs.say(f"data {rows} rows{labels}; {'; '.join(splits.notes)}")
    logs.say(
        f"{prepared.length.steps} steps, {prepared.length.epoch} an epoch; {run.parallel.summary}"
    )
    if counts := what_counts(prepared.config):
        logs.say(counts)
    if run.initialised:
        logs.say(f"newly initialised: {', '.join(run.initialised)}")
    if run.dropped:
        logs.say(f"not used from the checkpoint: {', '.join(run.dropped)}")
    for warning in prepared.decisions.warnings:
        logs.say(f"warning: {warning}")


class _Callable(ModuleType):
    """`jaxft.train` is this module, whoever imports it first; it can be called, too."""

    def __call__(
        self,
        config: ConfigDict | str | Path,
        workdir: str | Path,
        overrides: Mapping[str, Any] | None = None,
    ) -> Trained:
        """Start or continue the run in `workdir`; a finished one is only read.

        Args:
          config: a config, or the path of a config file (`FILE` or `FILE:arg`).
          workdir: directory of the run; created, or continued if it holds this run.
          overrides: values by field, dotted or nested: {'optim.lr': 1e-4}.

        Raises:
          ValueError: what the command would say in one line.
          OSError: `workdir` cannot be written, or another process holds it.
          FloatingPointError: a loss that is not finite.
          KeyboardInterrupt: Ctrl-C, after saving: the same call continues. Any other signal that
            stops a run is raised again, too, when all is saved.
        """
        clock, resolved = Stopwatch(), make_config(config, overrides)
        directory = RunDirectory(Path(workdir).expanduser())
        with ExitStack() as held:
            if processes.is_lead():
                held.enter_context(directory.claimed())
            status = run(resolved, directory, clock)
        if status:
            signal.raise_signal(status - 128)
            raise InterruptedError(f"stopped by a signal; the same call continues {directory.path}")
        return read_result(directory)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    leave(run_command(main, sys.argv))
