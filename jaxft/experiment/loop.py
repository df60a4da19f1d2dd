"""The loop: next batch, step, log, evaluate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
from typing import Any

import jax

from jaxft.config import ConfigDict
from jaxft.data.loader import filled, iterate
from jaxft.experiment.alarm import Alarm
from jaxft.experiment.build import Run, read_params
from jaxft.experiment.compilation import release_free_memory
from jaxft.experiment.evaluation import evaluate
from jaxft.experiment.finish import write_predictions
from jaxft.experiment.fitting import Fitting
from jaxft.experiment.session import Memory, Session, judge
from jaxft.experiment.signals import saved_first
from jaxft.experiment.streaming import StreamBatches
from jaxft.experiment.weights import changes_weights, weights_of
from jaxft.training.nonfinite import RollBack
from jaxft.training.replicas import check_replicas
from jaxft.training.step import TrainState
from jaxft.training.waiting import Waiting
from jaxft.training.window import Fed


def run_loop(session: Session, state: TrainState, memory: Memory) -> tuple[TrainState, Memory, int]:
    """The loop. Returns the last state, what is remembered, and the signal that ended it, or 0."""
    while True:
        try:
            return _trained(session, state, memory)
        except RollBack as error:
            message = str(error)
        # Here the exception is gone, and with it the state that it came from.
        state, memory = _rolled_back(session, message)


def _trained(session: Session, state: TrainState, memory: Memory) -> tuple[TrainState, Memory, int]:
    """From a state to the end of the run, or to an update that is to be left out (RollBack)."""
    run, logs = session.run, session.logs
    config, num_steps = run.prepared.config, run.prepared.length.steps
    start = run.steps_done(state)
    stage = run.stages.index(start)
    batches = iterate(
        run.train_batches, start, num_steps, threads=config.data.workers,
        put=lambda batch: (run.parallel.put(batch), filled(batch)),
    )  # fmt: skip
    alarm = Alarm(config.checkpoint.every_minutes)
    with contextlib.closing(batches), saved_first() as stop, Waiting() as waiting:
        for step in range(start + 1, num_steps + 1):
            if memory.stopped_early:
                break
            if run.stages.index(step - 1) > stage:
                stage, state = run.stages.index(step - 1), _next_stage(session, state, step - 1)
            # Dispatch only: nothing below waits for the device, except where something is due.
            batch, room = waiting.next(batches)
            rate, fed = float(run.prepared.learning_rates[step - 1]), Fed(*room, waiting.seconds)
            if session.nonfinite.leaves_out(step):
                state = dataclasses.replace(state, step=state.step + 1)
                logs.left_out(step, rate, fed)
            else:
                state, metrics = run.stages.at(step - 1).program(state, batch)
                metrics = run.parallel.unreplicate(metrics)
                waiting.handed_in(metrics["loss"])
                logs.train(step, metrics, rate, fed)
            stopping = stop.requested(step)
            evaluating = step % run.eval_every == 0 or step == num_steps
            # The clock is asked at every step: with several processes asking is something they do together.
            saving = alarm.rings(step) or evaluating or stopping or _saved_at(config, step)
            if saving and (fitting := run.fitting(step)) is not None:
                state = _fitted(session, fitting, state)
            if evaluating:
                memory = _evaluate(session, state, memory, step)
            if saving:
                memory = _save(session, state, memory, step)
                alarm.set()
            if stopping:
                break
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
    """The newest complete checkpoint, or the state as built.

    Where it is damaged it is set aside, and the newest before it that is whole is taken.

    Raises:
      CheckpointDamaged: and there is none: to begin again is for the user to decide.
    """
    return _restored(session, state)


def _rolled_back(session: Session, why: str) -> tuple[TrainState, Memory]:
    """The last checkpoint of a run that goes on, or its first state; why: what is said of it."""
    run = session.run
    session.checkpoints.wait()
    with session.clock.time("load"):
        # As in the beginning: of what later stages train, only the source has the first values.
        params, _ = read_params(run.prepared, run.parallel)
        state = run.stages.at(0).begin(params, run.prepared.inputs(), run.parallel)
        del params
        return _restored(session, state, why)


def _restored(session: Session, state: TrainState, why: str = "") -> tuple[TrainState, Memory]:
    """See `resume`. why: the run went back, for this reason."""
    run, (latest, damaged) = session.run, session.checkpoints.newest_usable()
    session.nonfinite.resume(latest or 0)
    if why:
        back = f"the checkpoint of step {latest}" if latest else "the beginning"
        session.logs.resume(latest or 0, "rollback", f"{why}; the run goes back to {back}")
    if latest is None:
        return state, Memory()
    stage = run.stages.saved_at(latest)
    if stage.frozen != run.stages.at(0).frozen:
        plain = run.stages.plain(state)
        whole, hparams = run.parallel.unreplicate((plain.whole, state.hparams))
        state = stage.begin(whole, hparams, run.parallel)
    restore = functools.partial(session.checkpoints.restore, latest)
    state, saved = run.stages.restored(_emptied(state), latest, restore)
    if not why:
        session.logs.resume(latest)
    if damaged:  # not before the rows of later steps are gone
        session.logs.event(latest, "damaged", damaged)
    if run.stages.begins(latest):  # killed between the save and the first update of a stage
        state = run.stages.advance(state, latest)
    memory = Memory.from_json(saved)
    if isinstance(run.train_batches, StreamBatches) and latest < len(run.train_batches):
        run.train_batches.go_to(memory.stream, latest)
    return state, memory


def _emptied(state: TrainState) -> TrainState:
    """Shapes and places of what a checkpoint holds, which frees its memory; the rest as it is.

    Or a state and the one that is read would be in memory together. The arrays are the state's alone: the
    loop donates them, too.
    """

    def emptied(x: jax.Array) -> jax.ShapeDtypeStruct:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        x.delete()
        return shape

    held = (state.step, state.params, state.opt_state, state.stats)
    step, params, slots, stats = jax.tree.map(emptied, held)
    release_free_memory()
    return dataclasses.replace(state, step=step, params=params, opt_state=slots, stats=stats)


def _saved_at(config: ConfigDict, step: int) -> bool:
    c = config.checkpoint
    return step % c.every_steps == 0 or (
        c.keep_every_steps is not None and step % c.keep_every_steps == 0
    )


def _save(session: Session, state: TrainState, memory: Memory, step: int) -> Memory:
    """Begin a checkpoint. Returns what it remembers: of a stream also where the next batch is."""
    session.logs.flush()  # a loss that is not finite ends the run before a good save is replaced
    if isinstance(batches := session.run.train_batches, StreamBatches):
        memory = dataclasses.replace(memory, stream=batches.place(step))
        for note in batches.news():
            session.logs.say(note)
    with session.clock.time("save"):
        if (run := session.run).prepared.config.checkpoint.check_replicas:
            held = {"params": state.params, "frozen": state.frozen, "slots": state.opt_state}
            check_replicas(held, stacked=run.parallel.mode == "pmap")
        plain = session.run.stages.plain(state, frozen=False)
        session.checkpoints.save(step, plain, dataclasses.asdict(memory), memory.best_step)
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


def _evaluated(run: Run, state: TrainState) -> Any:
    """The weights that stand for the state, as the evaluation takes them: its own where they are so."""
    stage = run.stages.at(max(run.steps_done(state) - 1, 0))
    if stage.layout == run.stacking.evaluation and not changes_weights(run.prepared.config):
        return state.whole
    return run.evaluated(weights_of(run, state))


def _evaluate(session: Session, state: TrainState, memory: Memory, step: int) -> Memory:
    """Evaluate the state and note whether it is the best so far."""
    run, logs, split = session.run, session.logs, session.run.prepared.splits.eval
    logs.flush()  # a loss that is not finite ends the run here, before it is evaluated
    with session.clock.time("eval"):
        result = evaluate(
            run.prepared.task, run.shared.eval_step, _evaluated(run, state),
            run.eval_batches(step), run.parallel, split,
            writer=run.writer, threads=run.prepared.config.data.workers,
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
