"""What a teacher says of the training rows, found once and kept.

It reads them before the run's weights are read, and what it says is kept beside the tokens under a hash of
all that it follows from, so that only the model that trains is in memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from jax.sharding import PartitionSpec

from jaxft.config import ConfigDict
from jaxft.data.taught import Taught
from jaxft.experiment.encoder import Batches
from jaxft.experiment.evaluation import predict
from jaxft.experiment.kept_array import kept_array
from jaxft.experiment.prepared import Prepared
from jaxft.experiment.provenance import inputs_fingerprint
from jaxft.experiment.split import Split
from jaxft.experiment.steps import evaluation_step, slicing
from jaxft.experiment.teacher import Teacher
from jaxft.models import by_path, hf
from jaxft.models.cuts import param_specs
from jaxft.optim import path_map
from jaxft.tasks.contract import Distils
from jaxft.tasks.table import TASKS
from jaxft.training.parallel import Parallel


def with_teacher(prepared: Prepared, parallel: Parallel, *, cache: str | None) -> Prepared:
    """The same, whose training targets have the teacher's logits; itself where there is no teacher.

    Args:
      cache: directory in which they are kept; None: not kept.

    Raises:
      ValueError: a row cannot be read by the teacher.
      FloatingPointError: what it says is not finite.
    """
    teacher, splits, config = prepared.teacher, prepared.splits, prepared.config
    if teacher is None or is_taught(prepared):
        return prepared
    train = splits.train
    batches = teacher.encoder(splits, cache).evaluation(train, config, slicing(parallel))
    logits = kept_array(
        _path(teacher, batches, config, cache),
        int(train.targets.offsets[-1]),
        lambda: _said(teacher, train, batches, config, parallel),
    )
    train = dataclasses.replace(train, targets=Taught(train.targets, logits))
    return dataclasses.replace(prepared, splits=dataclasses.replace(splits, train=train))


def is_taught(prepared: Prepared) -> bool:
    """Whether `with_teacher` was here."""
    return isinstance(prepared.splits.train.targets, Taught)


def _said(
    teacher: Teacher, split: Split, batches: Batches, config: ConfigDict, parallel: Parallel
) -> np.ndarray:
    """[E, C] float32, see `Taught.logits`."""
    architecture, task = teacher.model.architecture, TASKS[config.task]
    assert isinstance(task, Distils)
    specs = by_path(
        param_specs(
            architecture.abstract, architecture.tensor_rules, fsdp=config.parallel.fsdp, tensor=1
        )
    )
    placed = path_map(lambda path, _: specs.get(path, PartitionSpec()), architecture.whole)
    params, _ = hf.read_params(
        teacher.directory, architecture, key=jax.random.key(0), shardings=parallel.shardings(placed)
    )
    program = evaluation_step(architecture, task.logits, config.model.dtype, parallel)
    found = predict(
        program, parallel.replicate(params), batches, parallel, split.targets,
        threads=config.data.workers,
    )  # fmt: skip
    logits, seen = np.asarray(found["logits"], np.float32), found["seen"]
    if not np.isfinite(logits[seen]).all():
        raise FloatingPointError(
            f"config.distill.teacher={config.distill.teacher!r}: what it says of the training data is not "
            "finite"
        )
    logits = logits[:, list(teacher.order)] if teacher.order else logits
    logits[~seen] = np.nan
    return logits


def _path(teacher: Teacher, batches: Batches, config: ConfigDict, cache: str | None) -> Path | None:
    if cache is None:
        return None
    made_of = [
        teacher.record(), teacher.order, config.task, config.model.dtype, inputs_fingerprint(batches)
    ]  # fmt: skip
    name = hashlib.blake2b(json.dumps(made_of).encode(), digest_size=16).hexdigest()
    return Path(cache) / f"{name}.teacher.npy"
