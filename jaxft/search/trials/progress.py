"""What is remembered of a trial while it runs, and what is left of it in the end."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxft.config import ConfigDict
from jaxft.experiment.build import Run
from jaxft.experiment.evaluation import Evaluation
from jaxft.experiment.session import Memory, judge
from jaxft.optim import by_path
from jaxft.tasks.contract import Predicted

# Its newest row -> whether the trial is to end here.
Told = Callable[[Mapping[str, Any]], bool]

EARLY, PRUNED, NOT_FINITE = "early", "pruned", "not finite"
OUT_OF_MEMORY = "out of memory"


@dataclasses.dataclass(frozen=True)
class Ended:
    """What is left of a trial, see `trial.Outcome`."""

    history: tuple[dict[str, Any], ...]
    best: dict[str, Any]
    stopped: str
    weights: Mapping[str, np.ndarray] | None = None
    predicted: Predicted | None = None
    memory: int | None = None


class Progress:
    """Of one trial: losses and evaluations as they come, and whether it goes on.

    Args:
      last: number of the trial's last update.
      told: hears of each row.
      weights, predictions: whether those of the best evaluation are kept.

    Attributes:
      stopped: '' as long as it goes on.
    """

    def __init__(
        self, config: ConfigDict, last: int, told: Told | None, *, weights: bool, predictions: bool
    ):
        self._config, self._last, self._told = config, last, told
        self._keeps = (weights, predictions)
        self._memory, self._history = Memory(), list[dict[str, Any]]()
        self._loss = self._weight = 0.0
        self._left_out = 0
        self._weights: dict[str, np.ndarray] | None = None
        self._predicted: Predicted | None = None
        self.stopped = ""

    def trained(self, loss: float, weight: float, grad_norm: float) -> None:
        """What one update gave: its mean loss, what that is the mean over, the norm of its gradient."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self._left_out += 1
            c = self._config.train
            if c.on_nonfinite == "skip" and self._left_out <= c.max_nonfinite:
                return
            self.stopped = self.stopped or NOT_FINITE
        self._loss, self._weight = self._loss + loss * weight, self._weight + weight

    def evaluated(
        self, step: int, result: Evaluation, weights: Callable[[], dict[str, np.ndarray]]
    ) -> None:
        """After `step` updates; `weights` gives those that were evaluated."""
        row = {
            "step": step,
            "train_loss": self._loss / max(self._weight, 1e-9),
            **result.metrics,
        }
        self._loss = self._weight = 0.0
        self._history.append(row)
        if not math.isfinite(float(result.metrics[self._config.eval.metric])):
            self.stopped = NOT_FINITE
            return
        memory = judge(self._memory, step, result, self._config, last=step == self._last)
        if memory.best_step == step:
            self._weights = weights() if self._keeps[0] else None
            self._predicted = result.predicted if self._keeps[1] else None
        self._memory = memory
        if memory.stopped_early:
            self.stopped = EARLY
        if self._told is not None and self._told(row) and step < self._last:
            self.stopped = self.stopped or PRUNED

    def ended(self) -> Ended:
        """What is left, now that it does not go on."""
        best = next((row for row in self._history if row["step"] == self._memory.best_step), {})
        return Ended(
            tuple(self._history), best, self.stopped, self._weights, self._predicted
        )  # fmt: skip


def own_paths(run: Run) -> frozenset[str]:
    """Paths of the leaves that a trial's model does not have from the source checkpoint as they are."""
    stages, decisions = run.stages, run.prepared.decisions
    moving = stages.at(run.prepared.length.steps).moving
    trained = {row.path for row in decisions if row.trains}
    return frozenset(
        trained | moving | set(run.initialised) | run.prepared.architecture.grown.keys()
    )


def on_host(whole: Any, paths: Sequence[str] | frozenset[str]) -> dict[str, np.ndarray]:
    """Copies of these leaves of a tree."""
    leaves = by_path(whole)
    return {path: np.array(x) for path, x in jax.device_get({p: leaves[p] for p in paths}).items()}
