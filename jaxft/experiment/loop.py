"""The loop: next batch, step, log, evaluate, save."""

from __future__ import annotations

import dataclasses
import signal

from jaxft.data.loader import filled, iterate
from jaxft.experiment.evaluation import evaluate
from jaxft.experiment.finish import write_predictions
from jaxft.experiment.fitting import Fitting
from jaxft.experiment.session import Memory, Session, judge
from jaxft.experiment.signals import saved_first
from jaxft.experiment.streaming import StreamBatches
from jaxft.experiment.weights import weights_of
from jaxft.training.step import TrainState
from jaxft.training.waiting import Waiting
from jaxft.training.window import Fed


def run_loop(session: Session, state: TrainState, memory: Memory) -> tuple[TrainState, Memory, int]:
    """The loop. Returns the last state, what is remembered, and the signal that ended it, or 0."""
    run, logs = session.run, session.logs
    config, num_steps = run.prepared.config, run.prepared.length.steps
    start = run.steps_done(state)
    stage = run.stages.index(start)
    batches = iterate(
        run.train_batches, start, num_steps, threads=config.data.workers,
        put=lambda batch: (run.parallel.put(batch), filled(batch)),
    )  # fmt: skip
    with saved_first() as stop, Waiting() as waiting:
        for step in range(start + 1, num_steps + 1):
            if memory.stopped_early:
                break
            if run.stages.index(step - 1) > stage:
                stage, state = run.stages.index(step - 1), _next_stage(session, state, step - 1)
            # Dispatch only: nothing below waits for the device, except where something is due.
            batch, room = waiting.next(batches)
            state, metrics = run.stages.at(step - 1).program(state, batch)
            metrics = run.parallel.unreplicate(metrics)
            waiting.handed_in(metrics["loss"])
            rate = float(run.prepared.learning_rates[step - 1])
            logs.train(step, metrics, rate, Fed(*room, waiting.seconds))
            stopping = stop.requested(step)
            evaluating = step % run.eval_every == 0 or step == num_steps
            saving = evaluating or stopping or step % config.checkpoint.every_steps == 0
            if saving and run.shared.fitting is not None:
                state = _fitted(session, run.shared.fitting, state)
            if evaluating:
                memory = _evaluate(session, state, memory, step)
            if saving:
                memory = _save(session, state, memory, step)
            if stopping:
                break
    batches.close()
    logs.flush()
    if stop.received:  # also one that came while the last step was evaluated, which is saved
        session.checkpoints.wait()
        step, name = run.steps_done(state), signal.Signals(stop.received).name
        logs.event(step, name.lower(), f"{name}: saved step {step}; the same command continues")
        return state, memory, stop.received
    if memory.stopped_early:
        waited = f"{config.eval.patience} evaluations without a better {config.eval.metric}"
        logs.event(run.steps_done(state), "early stop", f"stopped early: {waited}")
    return state, memory, 0


def resume(session: Session, state: TrainState) -> tuple[TrainState, Memory]:
    """The newest complete checkpoint, or the state as built."""
    run, latest = session.run, session.checkpoints.latest_step()
    if latest is None:
        return state, Memory()
    stage = run.stages.saved_at(latest)
    if stage.frozen != run.stages.at(0).frozen:
        whole, hparams = run.parallel.unreplicate((state.whole, state.hparams))
        state = stage.begin(whole, hparams, run.parallel)
    state, saved = session.checkpoints.restore(latest, state)
    session.logs.resume(latest)
    if run.stages.begins(latest):  # killed between the save and the first update of a stage
        state = run.stages.advance(state, latest)
    memory = Memory.from_json(saved)
    if isinstance(run.train_batches, StreamBatches) and latest < len(run.train_batches):
        run.train_batches.go_to(memory.stream, latest)
    return state, memory


def _save(session: Session, state: TrainState, memory: Memory, step: int) -> Memory:
    """Begin a checkpoint. Returns what it remembers: of a stream also where the next batch is."""
    session.logs.flush()  # a loss that is not finite ends the run before a good save is replaced
    if isinstance(batches := session.run.train_batches, StreamBatches):
        memory = dataclasses.replace(memory, stream=batches.place(step))
        for note in batches.news():
            session.logs.say(note)
    with session.clock.time("save"):
        session.checkpoints.save(step, state, dataclasses.asdict(memory), memory.best_step)
    return memory


def _next_stage(session: Session, state: TrainState, step: int) -> TrainState:
    """Grow the trainable tree before update `step`; its program was compiled in the meantime."""
    run, logs = session.run, session.logs
    logs.flush()
    with session.clock.time("compile"):
        state = run.stages.advance(state, step)
        run.stages.compile(step, run.train_batches)
    run.stages.compile_ahead(step, run.train_batches)
    logs.event(step, "stage", run.stages.describe(step))
    return state


def _fitted(session: Session, fitting: Fitting, state: TrainState) -> TrainState:
    """The state with the head that is fitted to its weights."""
    session.logs.flush()  # a loss that is not finite ends the run here, before anything is fitted
    with session.clock.time("eval"):
        return fitting(session.run.prepared.task, state, weights_of(session.run, state))


def _evaluate(session: Session, state: TrainState, memory: Memory, step: int) -> Memory:
    """Evaluate the state and note whether it is the best so far."""
    run, logs, split = session.run, session.logs, session.run.prepared.splits.eval
    logs.flush()  # a loss that is not finite ends the run here, before it is evaluated
    with session.clock.time("eval"):
        result = evaluate(
            run.prepared.task, run.shared.eval_step, weights_of(run, state),
            run.eval_batches(step), run.parallel, split,
            writer=run.shared.writer, threads=run.prepared.config.data.workers,
        )  # fmt: skip
    last = step == run.prepared.length.steps
    memory = judge(memory, step, result, run.prepared.config, last=last)
    best = memory.best_step == step
    if best and logs.enabled:
        write_predictions(session.directory, "eval", run.shared.eval_rows, result)
    logs.evaluation(step, "eval", result.metrics, best=best)
    for warning in run.prepared.task.warnings(result.metrics):
        logs.say(f"warning: {warning}")
    return memory
