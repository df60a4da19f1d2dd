"""What the model that a run begins with says of its data, for tasks that compare with it.

Computed once and kept beside the tokens, under a hash of the weights and the tokens, so that no second
model is in memory while the first one trains.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxft.config import ConfigDict
from jaxft.data.loader import TextBatches
from jaxft.experiment.encoder import Encoder
from jaxft.experiment.evaluation import predict
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
        path = self._path(batches)
        found = _read(path, len(split.targets))
        here = _everywhere(found is not None)
        if found is None or not here:
            found = self._made(split, batches)
            _write(path, found)
        targets: Any = split.targets
        return dataclasses.replace(split, targets=targets.with_reference(found))

    def _made(self, split: Split, batches: TextBatches) -> np.ndarray:
        assert isinstance(self.task, Referring)
        program = evaluation_step(
            self.architecture, self.task, self.config.model.dtype, self.parallel
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


def _everywhere(here: bool) -> bool:
    """Whether it is so in every process: all compute together, or none."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.array(here)).all())


def _read(path: Path | None, rows: int) -> np.ndarray | None:
    """None where it is missing or damaged."""
    try:
        found = None if path is None else np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if found is None or found.dtype != np.float32 or len(found) != rows:
        return None
    return found if np.isfinite(found).all() else None


def _write(path: Path | None, found: np.ndarray) -> None:
    """The file is there whole, or not at all; several processes may write the same."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.split(".")[0]
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, found, allow_pickle=False)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
