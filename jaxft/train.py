"""Fine-tune a checkpoint: `python -m jaxft.train --config FILE --workdir DIR [--config.a.b=value …]`.

The same command continues a run that was stopped, exactly: the state is a pure function of the
config and the step, and a checkpoint holds the step's parameters and optimizer slots.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported: this may start the process anew
    from jaxft.terminal.allocator import use_huge_pages

    use_huge_pages()

import dataclasses
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import jax

from jaxft.config import ConfigDict, to_json
from jaxft.data.loader import iterate
from jaxft.optim import merge
from jaxft.run import processes
from jaxft.run.build import Run, build, devices, prepare, source_record
from jaxft.run.compilation import blank_batches, release_free_memory, use_compilation_cache
from jaxft.run.directory import RunDirectory
from jaxft.run.evaluation import evaluate
from jaxft.run.finish import finish, weights_if_best, write_predictions
from jaxft.run.session import Memory, Session, judge
from jaxft.run.stages import split_for
from jaxft.run.table import parameter_rows
from jaxft.run.timing import Stopwatch
from jaxft.run.weights import weights_of, what_counts
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse
from jaxft.training.checkpoint import Checkpoints
from jaxft.training.logs import Logs
from jaxft.training.step import TrainState

FLAGS = (
    Flag(
        "workdir", "directory of the run; created, or continued if it holds this run", required=True
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
                directory.check_config(config)
        return run(config, directory, clock)


def run(config: ConfigDict, directory: RunDirectory, clock: Stopwatch) -> int:
    """Start, continue or merely report the run in `directory`. Returns the exit status."""
    lead = processes.is_lead()
    if processes.lead_says((directory.path / "summary.json").exists()):
        if lead:
            print(f"{directory.path} is finished; its report is {directory.path / 'report.html'}")
        return 0
    use_compilation_cache(config.train.compile_cache)
    with clock.time("load"), processes.agreement("the checkpoint or the data") as facts:
        prepared = prepare(config)
        cache = config.data.cache or str(directory.path / "cache")
        built, state = build(prepared, devices(config), cache=cache)
        facts.append(source_record(built))
        if lead:
            directory.begin(config, facts[0])
            directory.write_json("parameters.json", parameter_rows(prepared))
    with (
        processes.in_step(),
        Checkpoints(directory.checkpoints, built.parallel, keep=config.checkpoint.keep) as saves,
        Logs(directory.path, total_steps=prepared.num_steps,
             steps_per_epoch=prepared.steps_per_epoch, log_every=config.train.log_every,
             tensorboard=config.log.tensorboard, enabled=lead) as logs,
    ):  # fmt: skip
        session = Session(built, directory, saves, logs, clock)
        _introduce(built, logs)
        state, memory = _resume(session, state)
        start = built.steps_done(state)
        with clock.time("compile"):
            built.stages.compile(start)
            whole = merge(state.params, state.frozen)  # only its shapes and places matter
            built.eval_step.compile((whole,), blank_batches(built.eval_batches, built.parallel))
            release_free_memory()
        with clock.time("train", without=("eval", "save")):
            state, memory, stopped_by = train(session, state, memory)
        epochs = (built.steps_done(state) - start) / prepared.steps_per_epoch
        clock.counts["examples"] = epochs * len(prepared.splits.train.labels)
        if stopped_by:
            return 128 + stopped_by
        saves.wait()
        last_step, whole = built.steps_done(state), weights_if_best(session, state, memory)
        del state
        finish(session, whole, memory, last_step)
        processes.together("finished")
    return 0


def train(session: Session, state: TrainState, memory: Memory) -> tuple[TrainState, Memory, int]:
    """The loop. Returns the last state, what is remembered, and the signal that ended it, or 0."""
    run, logs = session.run, session.logs
    config, num_steps = run.prepared.config, run.prepared.num_steps
    start = run.steps_done(state)
    stage = run.stages.index(start)
    batches = iterate(
        run.train_batches, start, num_steps, put=run.parallel.put, threads=config.data.workers
    )
    with _stoppable() as stop:
        for step in range(start + 1, num_steps + 1):
            if memory.stopped_early:
                break
            if run.stages.index(step - 1) > stage:
                stage, state = run.stages.index(step - 1), _next_stage(session, state, step - 1)
            # Dispatch only: nothing below waits for the device, except where something is due.
            state, metrics = run.stages.at(step - 1).program(state, next(batches))
            rate = float(run.prepared.learning_rates[step - 1])
            logs.train(step, run.parallel.unreplicate(metrics), rate)
            stopping = stop.requested(step)
            evaluating = step % run.eval_every == 0 or step == num_steps
            if evaluating:
                memory = _evaluate(session, state, memory, step)
            if evaluating or stopping or step % config.checkpoint.every_steps == 0:
                logs.flush()  # a loss that is not finite ends the run before a good save is replaced
                with session.clock.time("save"):
                    session.checkpoints.save(
                        step, state, dataclasses.asdict(memory), memory.best_step
                    )
            if stopping:
                session.checkpoints.wait()
                name = signal.Signals(stop.received).name
                logs.event(
                    step, name.lower(), f"{name}: saved step {step}; the same command continues"
                )
                return state, memory, stop.received
    batches.close()
    logs.flush()
    if memory.stopped_early:
        waited = f"{config.eval.patience} evaluations without a better {config.eval.metric}"
        logs.event(run.steps_done(state), "early stop", f"stopped early: {waited}")
    return state, memory, 0


def _resume(session: Session, state: TrainState) -> tuple[TrainState, Memory]:
    """The newest complete checkpoint, or the state as built."""
    run, latest = session.run, session.checkpoints.latest_step()
    if latest is None:
        return state, Memory()
    stage = run.stages.saved_at(latest)
    if stage.frozen != run.stages.at(0).frozen:
        whole = run.parallel.unreplicate(merge(state.params, state.frozen))
        state = run.parallel.init(*split_for(stage.frozen, whole), stage.tx)
    state, saved = session.checkpoints.restore(latest, state)
    session.logs.resume(latest)
    if run.stages.begins(latest):  # killed between the save and the first update of a stage
        state = run.stages.advance(state, latest)
    return state, Memory(**saved)


def _next_stage(session: Session, state: TrainState, step: int) -> TrainState:
    """Grow the trainable tree before update `step`; its program was compiled in the meantime."""
    run, logs = session.run, session.logs
    logs.flush()
    with session.clock.time("compile"):
        state = run.stages.advance(state, step)
        run.stages.compile(step)
    logs.event(step, "stage", run.stages.describe(step))
    return state


def _evaluate(session: Session, state: TrainState, memory: Memory, step: int) -> Memory:
    """Evaluate the state and note whether it is the best so far."""
    run, logs, split = session.run, session.logs, session.run.prepared.splits.eval
    logs.flush()  # a loss that is not finite ends the run here, before it is evaluated
    with session.clock.time("eval"):
        result = evaluate(
            run.eval_step, weights_of(run, state), run.eval_batches, run.parallel, split
        )
    memory = judge(memory, step, result, run.prepared.config)
    best = memory.best_step == step
    if best and logs.enabled:
        write_predictions(session.directory, "eval", split, run.encoder, result)
    logs.evaluation(step, "eval", result.metrics, best=best)
    return memory


@dataclasses.dataclass
class _Stop:
    """Number of the signal that asks to stop, agreed on by all processes; 0 for none."""

    received: int = 0

    def requested(self, step: int) -> bool:
        """True at the same step in every process: all must save together."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self.received = signal.SIGTERM
        return bool(self.received)


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    """Note SIGTERM or Ctrl-C instead of dying of it; a second one ends the process as usual."""
    stop = _Stop()
    if jax.process_count() > 1:  # the distributed service watches the signal itself
        yield stop
        return

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, *_: Any) -> None:
        stop.received = number
        restore()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        restore()


def _introduce(run: Run, logs: Logs) -> None:
    """Say once what this run is, and everything that was decided rather than given."""
    prepared = run.prepared
    splits = prepared.splits
    sizes = {"train": splits.train, "eval": splits.eval, "test": splits.test}
    rows = ", ".join(f"{len(s.labels)} {name}" for name, s in sizes.items() if s is not None)
    logs.say(f"model {prepared.config.model.path}: {prepared.treatment.summary}")
    logs.say(f"data {rows} rows, {len(splits.names)} labels; {'; '.join(splits.notes)}")
    logs.say(
        f"{prepared.num_steps} steps, {prepared.steps_per_epoch} an epoch; {run.parallel.summary}"
    )
    if counts := what_counts(prepared.config):
        logs.say(counts)
    if run.initialised:
        logs.say(f"newly initialised: {', '.join(run.initialised)}")
    if run.dropped:
        logs.say(f"not used from the checkpoint: {', '.join(run.dropped)}")
    for warning in prepared.treatment.warnings:
        logs.say(f"warning: {warning}")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
