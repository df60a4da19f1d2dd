"""A head that is fitted to what the model says of all training rows, for tasks that do not train one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxft.config import ConfigDict
from jaxft.experiment.compilation import batch_shapes
from jaxft.experiment.encoder import Batches, Encoder
from jaxft.experiment.evaluation import predict
from jaxft.experiment.split import Split
from jaxft.experiment.steps import evaluation_step, slicing
from jaxft.models import Architecture
from jaxft.optim import path_map
from jaxft.tasks.contract import HeadFitting, Task
from jaxft.training.parallel import Parallel
from jaxft.training.programs import Programs
from jaxft.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How it is done. The head is part of `TrainState.stats`: no gradient, no slot, in every checkpoint.

    Attributes:
      split, batches: the training rows, each once; what is kept of a frozen prefix is read.
      program: `(params, batch) -> HeadFitting.features`.
      threads: prepare batches.
    """

    split: Split
    batches: Batches
    program: Programs
    parallel: Parallel
    threads: int

    def compile(self, state: TrainState) -> None:
        """Ahead; of the state only shapes and places matter."""
        self.program.compile((state.whole,), batch_shapes(self.batches, self.parallel))

    def __call__(self, task: Any, state: TrainState, whole: Any) -> TrainState:
        """The state with a new head. Every process calls, and has the same one.

        Args:
          whole: the weights that stand for the state; their head is not looked at.

        Raises:
          FloatingPointError: what the model says of the training rows is not finite.
        """
        targets = self.split.targets
        features = predict(
            self.program, whole, self.batches, self.parallel, targets, threads=self.threads
        )["features"]
        if not np.isfinite(features).all():
            broken = int((~np.isfinite(features).all(-1)).sum())
            raise FloatingPointError(f"the vectors of {broken} training rows are not finite")
        found = task.head_of(features, targets)
        if jax.process_count() > 1:  # another processor may round otherwise
            found = multihost_utils.broadcast_one_to_all(found)

        def placed(path: str, x: jax.Array) -> jax.Array:
            value = np.broadcast_to(np.asarray(found[path]), x.shape)  # under pmap one a device
            return jax.make_array_from_callback(x.shape, x.sharding, lambda index: value[index])

        return dataclasses.replace(state, stats=path_map(placed, state.stats))


def make_fitting(
    architecture: Architecture, task: Task[Any], encoder: Encoder, split: Split,
    config: ConfigDict, parallel: Parallel,
) -> Fitting | None:  # fmt: skip
    """None where the task trains its head.

    Args:
      split: the training rows.
    """
    if not isinstance(task, HeadFitting):
        return None
    program = evaluation_step(architecture, task.features, config.model.dtype, parallel)
    batches = encoder.evaluation(split, config, slicing(parallel))
    return Fitting(split, batches, program, parallel, config.data.workers)
