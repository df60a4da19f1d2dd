"""One trial by itself, in memory: the loop of a run without its directory."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from typing import Any

import jax

from jaxft.data.loader import iterate
from jaxft.experiment.build import Run
from jaxft.experiment.compilation import batch_shapes
from jaxft.experiment.evaluation import Evaluation, evaluate
from jaxft.experiment.weights import weights_of
from jaxft.search.trials.progress import NOT_FINITE, Ended, Progress, Told, on_host, own_paths
from jaxft.training.programs import Programs
from jaxft.training.step import TrainState

# Updates that are in flight before their losses are looked at: one that is not finite is seen soon,
# and the device never waits for it.
_AHEAD = 8


class HaltedError(Exception):
    """A trial was told to end though nothing is to be kept of it: another one has failed."""


def run_alone(
    run: Run, state: TrainState, source: Any, told: Told | None, *, weights: bool, predictions: bool,
    halt: threading.Event | None = None,
) -> Ended:  # fmt: skip
    """Train from the first update to the last, and evaluate as a run of `train` does, with the same bits.

    Args:
      state: is donated.
      source: the tree that the run began with, placed.
      told: hears of each evaluation.
      weights, predictions: whether those of the best evaluation are kept.
      halt: once it is set, no further update is begun.

    Raises:
      HaltedError: `halt` was set.
    """
    prepared, parallel = run.prepared, run.parallel
    config, steps = prepared.config, prepared.length.steps
    progress = Progress(config, steps, told, weights=weights, predictions=predictions)
    waiting: deque[Any] = deque()
    seen: dict[Any, tuple[Programs, dict[str, Any]]] = {}

    def look(left: int) -> None:
        while len(waiting) > left:
            metrics = waiting.popleft()
            progress.trained(*(float(metrics[k]) for k in ("loss", "weight", "grad_norm")))

    run.stages.compile(0, run.train_batches)
    shared = run.shared
    shared.eval_step.compile((state.whole,), batch_shapes(run.eval_batches(1), parallel))
    batches = iterate(run.train_batches, 0, steps, threads=config.data.workers, put=parallel.put)
    try:
        for step in range(1, steps + 1):
            if halt is not None and halt.is_set():
                raise HaltedError
            if run.stages.begins(step - 1):
                state = run.stages.advance(state, step - 1)
                run.stages.compile(step - 1, run.train_batches)
            program, batch = run.stages.at(step - 1).program, next(batches)
            shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
            seen[id(program), str(shapes)] = program, shapes
            state, metrics = program(state, batch)
            waiting.append(parallel.unreplicate(metrics))
            due = step % run.eval_every == 0 or step == steps
            look(0 if due else _AHEAD)
            if due and not progress.stopped:
                state = _evaluate(run, state, source, step, progress)
            if progress.stopped:
                break
    finally:
        batches.close()
    run.stages.wait()
    sizes = [program.bytes(shapes) for program, shapes in seen.values()]
    known = [size for size in sizes if size is not None]
    return dataclasses.replace(progress.ended(), memory=max(known, default=None))


def _evaluate(
    run: Run, state: TrainState, source: Any, step: int, progress: Progress
) -> TrainState:
    """Evaluate and note it; returns the state, whose head may have been fitted."""
    shared, task = run.shared, run.prepared.task
    if (fitting := run.fitting(step)) is not None:
        try:
            state = fitting(task, state, weights_of(run, state, source))
        except FloatingPointError:
            progress.stopped = NOT_FINITE
            return state
    whole = weights_of(run, state, source)
    result: Evaluation = evaluate(
        task, shared.eval_step, whole, run.eval_batches(step), run.parallel, run.prepared.splits.eval,
        writer=shared.writer, threads=run.prepared.config.data.workers,
    )  # fmt: skip
    progress.evaluated(
        step, result, lambda: on_host(run.parallel.unreplicate(whole), own_paths(run))
    )
    return state
