"""A run together with the places it writes to: what the loop and the finish pass around."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Iterator
from typing import Any

from jaxft.config import ConfigDict
from jaxft.data.loader import rows_of
from jaxft.experiment.build import Run
from jaxft.experiment.directory import RunDirectory
from jaxft.experiment.evaluation import Evaluation
from jaxft.experiment.streaming import StreamBatches
from jaxft.experiment.timing import Stopwatch
from jaxft.optim.paths import leaf_paths
from jaxft.tasks.distillation import PARTS
from jaxft.tasks.names import METRICS, minimised
from jaxft.training.checkpoint import Checkpoints, Keep
from jaxft.training.logs import Logs
from jaxft.training.nonfinite import NonFinite


@dataclasses.dataclass(frozen=True)
class Session:
    """One process's work on one run. All processes have one; only the lead's logs write."""

    run: Run
    directory: RunDirectory
    checkpoints: Checkpoints
    logs: Logs
    nonfinite: NonFinite
    clock: Stopwatch


@contextlib.contextmanager
def opened(
    run: Run, directory: RunDirectory, clock: Stopwatch, *, lead: bool = True
) -> Iterator[Session]:
    """A session with its checkpoints and logs, closed at the end. `lead`: this process writes logs."""
    prepared, config = run.prepared, run.prepared.config
    mixture = prepared.splits.train.source.mixture
    nonfinite = NonFinite(
        directory.path, how=config.train.on_nonfinite, most=config.train.max_nonfinite,
        rows=functools.partial(_rows_of, run), paths=functools.partial(_trained, run), writes=lead,
    )  # fmt: skip
    with (
        Checkpoints(directory.checkpoints, run.parallel, keep=_keep(config)) as saves,
        Logs(directory.path, total_steps=prepared.length.steps,
             steps_per_epoch=prepared.length.epoch, log_every=config.train.log_every,
             tensorboard=config.log.tensorboard, enabled=lead,
             epoch_examples=prepared.epoch_examples, shown=prepared.task.shown,
             minimised=minimised(config.task), when_waiting=_when_waiting(config),
             sources=mixture.names if mixture else (),
             parts=PARTS if prepared.teacher else (), nonfinite=nonfinite) as logs,
    ):  # fmt: skip
        yield Session(run, directory, saves, logs, nonfinite, clock)


def _rows_of(run: Run, step: int) -> list[int]:
    """Numbers of the rows that update `step` reads."""
    batches = run.train_batches
    at = step - 1
    return batches.rows(at) if isinstance(batches, StreamBatches) else rows_of(batches, at)


def _trained(run: Run, step: int) -> tuple[str, ...]:
    """Paths of the parameters that update `step` trains, in the order of their tree."""
    stage = run.stages.at(step - 1)
    return leaf_paths(stage.plain(stage.state, run.parallel).params)


def _keep(config: ConfigDict) -> Keep:
    c = config.checkpoint
    return Keep(c.keep, c.keep_every_steps, c.keep_every_hours)


def _when_waiting(config: ConfigDict) -> str:
    """What to do where the devices wait for data."""
    workers, cores = config.data.workers, os.cpu_count() or 1
    if workers < cores:
        return f"raise data.workers, now {workers} (this machine has {cores} cores)"
    return (
        f"data.workers is {workers}, as many as this machine has cores; less data.augment, or images stored "
        "near the model's size, cost less"
    )


@dataclasses.dataclass(frozen=True)
class Memory:
    """What the loop remembers besides the state; saved with each checkpoint as JSON.

    Attributes:
      best_step, best_value, best_metrics: of the best evaluation so far.
      reference: the value that the next one must beat by `eval.min_delta`.
      without_improvement: evaluations since the reference was beaten.
      stream: where the next batch is in a stream of training data (`streaming.Place`).
    """

    best_step: int | None = None
    best_value: float | None = None
    best_metrics: dict[str, Any] | None = None
    reference: float | None = None
    without_improvement: int = 0
    stopped_early: bool = False
    stream: dict[str, Any] | None = None

    @classmethod
    def from_json(cls, saved: Any) -> Memory:
        """What `dataclasses.asdict` gave, read again from a checkpoint.

        Raises:
          ValueError: it is anything else; one line.
        """
        if not isinstance(saved, dict):
            raise ValueError(_not_ours(f"it is {saved!r:.60}"))
        known = [field.name for field in dataclasses.fields(cls)]
        for name in (name for name in saved if name not in known):
            raise ValueError(_not_ours(f"nothing here knows its {name!r:.60}"))
        for name, (words, is_right) in _REMEMBERED.items():
            if name not in saved:
                raise ValueError(_not_ours(f"it has no {name!r}"))
            if not is_right(saved[name]):
                raise ValueError(_not_ours(f"its {name!r} is {saved[name]!r:.60}, not {words}"))
        best = [saved[name] is None for name in ("best_step", "best_value", "best_metrics")]
        if any(best) != all(best):
            raise ValueError(_not_ours("of the best evaluation it has only a part"))
        return cls(**saved)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


# What every checkpoint has had; a field of `Memory` that comes later has its default in earlier ones.
_REMEMBERED = {
    "best_step": ("a step", lambda x: x is None or _is_count(x)),
    "best_value": ("a number", lambda x: x is None or _is_number(x)),
    "best_metrics": ("metrics by name", lambda x: x is None or isinstance(x, dict)),
    "reference": ("a number", lambda x: x is None or _is_number(x)),
    "without_improvement": ("a count", _is_count),
    "stopped_early": ("true or false", lambda x: isinstance(x, bool)),
}


def _not_ours(what: str) -> str:
    return (
        f"what the checkpoint remembers of the run is not what this version of jaxft writes: {what}; "
        "--resume_from=STEP continues from an earlier checkpoint, 0 begins again"
    )


def judge(
    memory: Memory, step: int, result: Evaluation, config: ConfigDict, *, last: bool
) -> Memory:
    """What is remembered after an evaluation: a new best, or one more without improvement.

    Args:
      last: this is the run's last step, where nothing can stop early any more.
    """
    value = float(result.metrics[config.eval.metric])
    sign = -1.0 if METRICS[config.task][config.eval.metric] == "min" else 1.0
    if memory.best_value is None or sign * (value - memory.best_value) > 0:
        memory = dataclasses.replace(
            memory, best_step=step, best_value=value, best_metrics=result.metrics
        )
    # Patience has a reference of its own: many improvements below min_delta must be able to add up.
    if memory.reference is None or sign * (value - memory.reference) > config.eval.min_delta:
        memory = dataclasses.replace(memory, reference=value, without_improvement=0)
    else:
        memory = dataclasses.replace(memory, without_improvement=memory.without_improvement + 1)
    patience = config.eval.patience
    stop = patience is not None and memory.without_improvement >= patience and not last
    return dataclasses.replace(memory, stopped_early=stop)
