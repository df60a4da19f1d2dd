"""One run from its directory to its report: begun, continued, finished, or found to be whole already."""

from __future__ import annotations

import dataclasses
import sys

from jaxft.config import ConfigDict
from jaxft.experiment import processes
from jaxft.experiment.build import Run, build
from jaxft.experiment.compilation import batch_shapes, use_compilation_cache
from jaxft.experiment.continuing import Changes
from jaxft.experiment.directory import RunDirectory
from jaxft.experiment.finish import finish, report, weights_if_best
from jaxft.experiment.loop import resume, run_loop
from jaxft.experiment.opening import Given
from jaxft.experiment.prepared import prepare
from jaxft.experiment.provenance import source_record
from jaxft.experiment.session import Session, opened
from jaxft.experiment.signals import Stopped, raised
from jaxft.experiment.steps import devices, padding_note
from jaxft.experiment.table import parameter_rows
from jaxft.experiment.teacher import Teacher
from jaxft.experiment.timing import Stopwatch
from jaxft.experiment.weights import what_counts
from jaxft.training.checkpoint import check_resume_step
from jaxft.training.logs import Logs
from jaxft.training.step import TrainState


def carry_out(
    config: ConfigDict,
    directory: RunDirectory,
    clock: Stopwatch,
    resume_from: int | None = None,
    given: Given | None = None,
) -> int:
    """Start, continue or merely report the run in `directory`. Returns the exit status.

    Args:
      resume_from: go on from the checkpoint of this step, not from the newest; 0 begins again.
      given: sources in memory; see `open_named`.
    """
    phase = ["starting"]
    try:
        with raised():
            status = _carried_out(config, directory, clock, phase, resume_from, given)
            processes.part()
            return status
    except Stopped as stopped:
        rest = "finishes the run" if phase[-1] == "finishing" else "starts again where it was"
        print(
            f"jaxft: {stopped.name} while {phase[-1]}: nothing is lost, the same command {rest}",
            file=sys.stderr,
        )
        return 128 + stopped.number


def _carried_out(
    config: ConfigDict, directory: RunDirectory, clock: Stopwatch, phase: list[str],
    resume_from: int | None, given: Given | None,
) -> int:  # fmt: skip
    lead, laid_out = processes.is_lead(), 0
    processes.check_shared(directory.path)
    with processes.agreement("the run directory"):
        changes = directory.changes(config) if lead else None
        laid_out = directory.laid_out() if lead else 0
        if resume_from is not None:
            check_resume_step(directory.checkpoints, resume_from)
            if changes is not None:
                changes = dataclasses.replace(changes, reopens=True)
    if processes.lead_says(changes is not None and _is_whole(config, directory, changes)):
        return 0
    use_compilation_cache(config.train.compile_cache)
    with clock.time("load"):
        laid_out = processes.lead_says(laid_out)
        run, state, notes = _loaded(config, directory, changes, laid_out, given)
    with processes.in_step(), opened(run, directory, clock, lead=lead) as session:
        _introduce(run, session.logs)
        if resume_from is not None:
            for path in session.checkpoints.set_aside_after(resume_from):
                session.logs.say(f"set aside: {path}")
        state, memory = resume(session, state)
        for note in notes:
            session.logs.event(run.steps_done(state), "changed", note)
        _compile(session, state)
        phase.append("training")
        with clock.time("train", without=("eval", "save")):
            state, memory, stopped_by = run_loop(session, state, memory)
        if stopped_by:
            return 128 + stopped_by
        phase.append("finishing")
        session.checkpoints.wait()
        last_step, whole = run.steps_done(state), weights_if_best(session, state, memory)
        del state
        finish(session, whole, memory, last_step)
        run.stages.wait()
        processes.together("finished")
    return 0


def _loaded(
    config: ConfigDict, directory: RunDirectory, changes: Changes | None, laid_out: int,
    given: Given | None,
) -> tuple[Run, TrainState, list[str]]:  # fmt: skip
    """The run, its first state, and what is worth a word; all processes agree on what they read.

    Args:
      changes: of the config of the run that is here; None in processes that do not write.
      laid_out: see `build`.
    """
    with processes.agreement("the checkpoint or the data") as facts:
        cache = config.data.cache or str(directory.path / "cache")
        prepared = prepare(config, cache, given)
        parallel = devices(config)
        run, state = build(prepared, parallel, cache=cache, laid_out=laid_out, stack=True)
        facts.append(source_record(run))
        notes: list[str] = []
        if changes is not None:
            notes = directory.begin(config, facts[0], changes)
            directory.write_json("parameters.json", parameter_rows(prepared))
    return run, state, notes


def _compile(session: Session, state: TrainState) -> None:
    """What the next steps and the evaluation need; the rest follows in the background."""
    run, shared = session.run, session.run.shared
    with session.clock.time("compile"):
        run.stages.compile(run.steps_done(state), run.train_batches)
        # Of the weights only shapes and places matter.
        evaluated = run.eval_batches(run.steps_done(state) + 1)
        stage = run.stages.at(0)
        whole = run.evaluated(stage.plain(stage.state, shared.parallel).whole)
        shared.eval_step.compile((whole,), batch_shapes(evaluated, shared.parallel))
        if (fitting := run.fitting(run.steps_done(state) + 1)) is not None:
            fitting.compile(state)
    run.stages.compile_ahead(run.steps_done(state), run.train_batches)


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
    logs.say(f"implementation {prepared.architecture.note}")
    if prepared.teacher is not None:
        logs.say(_said_of_teacher(prepared.teacher, prepared.config))
    logs.say(f"data {rows} rows{labels}; {'; '.join(splits.notes)}")
    logs.say(
        f"{prepared.length.steps} steps, {prepared.length.epoch} an epoch; {run.parallel.summary}"
    )
    shared = run.shared
    if said := padding_note(prepared.config, run.parallel):
        logs.say(said)
    batches = {"train": run.train_batches, "eval": shared.eval_batches, "test": shared.test_batches}
    for name, of_split in batches.items():
        for note in () if of_split is None else of_split.notes:
            logs.say(f"{name}: {note}")
    if run.stacking.said:
        logs.say(f"model.stack: {run.stacking.said}")
    for note in run.kept.notes:
        logs.say(f"data.cache_prefix: {note}")
    if said := shared.encoder.kind.says(prepared.directory):
        logs.say(said)
    if splits.pairs is not None:
        logs.say(f"an epoch is {splits.pairs} pairs of training rows")
    if shared.fitting is not None:
        logs.say(
            "the classifier is fitted to all training rows before each evaluation and each save"
        )
    if counts := what_counts(prepared.config):
        logs.say(counts)
    if drawn := [path for path in run.initialised if path in prepared.architecture.depths]:
        logs.say(f"newly initialised: {', '.join(drawn)}")
    if run.shared.dropped:
        logs.say(f"not used from the checkpoint: {', '.join(run.shared.dropped)}")
    for warning in prepared.decisions.warnings:
        logs.say(f"warning: {warning}")


def _said_of_teacher(teacher: Teacher, config: ConfigDict) -> str:
    c, model = config.distill, teacher.model
    return (
        f"teacher {c.teacher}: {model.architecture.exports}; the loss is {1 - c.weight:g} x that of the "
        f"labels + {c.weight:g} x the distance from it"
    )
