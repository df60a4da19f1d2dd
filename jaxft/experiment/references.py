"""What the model that a run begins with says of its data, for tasks that compare with it.

Computed once and kept beside the tokens, under a hash of the weights and the tokens, so that no second
model is in memory while the first one trains.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.config import ConfigDict
from jaxft.data.loader import TextBatches
from jaxft.experiment.encoder import Encoder
from jaxft.experiment.evaluation import predict
from jaxft.experiment.kept_array import kept_array
from jaxft.experiment.split import Split
from jaxft.experiment.steps import evaluation_step, slicing
from jaxft.models import Architecture
from jaxft.tasks.contract import Referring, Task
from jaxft.training.parallel import Parallel


@dataclasses.dataclass(frozen=True)
class References:
    """How they are made.

    Attributes:
      params: that the run begins with, placed.
      weights: what these are a function of, such as the hash of their files; '' keeps nothing.
    """

    task: Task[Any]
    architecture: Architecture
    params: Any
    encoder: Encoder
    config: ConfigDict
    parallel: Parallel
    weights: str

    def known_to(self, split: Split) -> Split:
        """The split, with what its targets compare with; itself where the task does not compare."""
        if not isinstance(self.task, Referring):
            return split
        batches = self.encoder.evaluation(split, self.config, slicing(self.parallel))
        assert isinstance(batches, TextBatches)
        found = kept_array(
            self._path(batches), len(split.targets), lambda: self._made(split, batches)
        )
        targets: Any = split.targets
        return dataclasses.replace(split, targets=targets.with_reference(found))

    def _made(self, split: Split, batches: TextBatches) -> np.ndarray:
        assert isinstance(self.task, Referring)
        program = evaluation_step(
            self.architecture, self.task.predictions, self.config.model.dtype, self.parallel
        )
        predicted = predict(
            program, self.parallel.replicate(self.params), batches, self.parallel, split.targets,
            threads=self.config.data.workers,
        )  # fmt: skip
        found = np.asarray(predicted[self.task.reference], np.float32)
        if not np.isfinite(found).all():
            raise FloatingPointError(
                "what the model says of the data before the first step is not finite"
            )
        return found

    def _path(self, batches: TextBatches) -> Path | None:
        if not (self.weights and self.encoder.cache):
            return None
        made_of = f"{self.weights} {batches.tokens.fingerprint} {self.config.model.dtype}"
        name = hashlib.blake2b(made_of.encode(), digest_size=16).hexdigest()
        return Path(self.encoder.cache) / f"{name}.reference.npy"
