"""What a checkpoint makes of some rows before anything of it is trained: the features of a probe."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxft.config import ConfigDict
from jaxft.data.loader import iterate
from jaxft.data.targets import Targets
from jaxft.experiment.checkpoint_place import local_checkpoint
from jaxft.experiment.data import Splits
from jaxft.experiment.encoder import Batches, Encoder, Slicing, make_encoder
from jaxft.experiment.model import open_model
from jaxft.experiment.prepared import needed_vocabulary
from jaxft.experiment.split import Split
from jaxft.models import Architecture, Params, hf
from jaxft.models.features import block_features
from jaxft.tasks.contract import Task


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A checkpoint of which everything but the weights was looked at, and batches of some rows for it."""

    name: str
    directory: str
    architecture: Architecture
    encoder: Encoder
    batches: Batches

    def read(self, seed: int) -> Params:
        """Its weights, on the default device, with a new head drawn from `seed`."""
        key = jax.random.fold_in(jax.random.key(seed), 1)
        return hf.read_params(self.directory, self.architecture, key=key)[0]


def open_architecture(
    name: str, config: ConfigDict, task: Task[Any], splits: Splits
) -> tuple[str, Architecture]:
    """(directory, architecture) of the checkpoint `name`, a directory or a hub id, with a head for the task.

    Raises ValueError: it is none, or takes other inputs than the task has.
    """
    directory = local_checkpoint(name)
    labels = len(task.id2label(splits.names))
    architecture = open_model(
        config,
        directory,
        name=name,
        num_labels=labels,
        new_head=True,
        vocabulary=needed_vocabulary(config, task, directory),
    )
    return directory, architecture


def open_frozen(
    name: str, config: ConfigDict, task: Task[Any], splits: Splits, split: Split
) -> Frozen:
    """The checkpoint `name` for the rows of `split`.

    Raises ValueError for whatever is wrong with it, before anything is computed.
    """
    directory, architecture = open_architecture(name, config, task, splits)
    hf.missing(directory, architecture)  # raises where the weights do not fit
    encoder = make_encoder(config, task.inputs, directory, architecture.limits, splits, None)
    batches = encoder.evaluation(split, config, Slicing())
    return Frozen(name, directory, architecture, encoder, batches)


def features_of(
    one: Frozen, params: Params, targets: Targets, config: ConfigDict
) -> tuple[list[np.ndarray], float | None, int | None]:
    """(features [n, D] fp32 of each block, FLOPs an example, peak bytes of the largest batch).

    One program a batch shape, on the default device; what is kept of a batch is its features alone.

    Args:
      params: of `one.read`.

    Raises:
      ValueError: a bridged module cannot be traced, or shows no hidden states; one line.
      FloatingPointError: a hidden state is not finite.
    """
    forward = jax.jit(lambda params, batch: block_features(one.architecture, params, batch))
    programs: dict[tuple, Any] = {}
    total: list[float | None] = []
    peaks = []
    features: list[np.ndarray] = []
    order = np.argsort(targets.rows)
    for batch in iterate(one.batches, put=jax.device_put, threads=config.data.workers):
        shapes = tuple((name, x.shape) for name, x in sorted(batch.items()))
        if shapes not in programs:
            programs[shapes] = forward.lower(params, batch).compile()
            memory = programs[shapes].memory_analysis()
            peaks.append(None if memory is None else memory.peak_memory_in_bytes)
        total.append((programs[shapes].cost_analysis() or {}).get("flops"))
        index = np.asarray(batch["index"])
        place = order[np.searchsorted(targets.rows, index[index >= 0], sorter=order)]
        for number, hidden in enumerate(programs[shapes](params, batch)):
            if number == len(features):
                features.append(np.zeros((len(targets), hidden.shape[-1]), np.float32))
            features[number][place] = np.asarray(hidden)[index >= 0]
    if not all(np.isfinite(x).all() for x in features):
        raise FloatingPointError(f"{one.name}: its hidden states are not finite")
    flops = None if None in total else sum(x for x in total if x is not None) / len(targets)
    peak = None if None in peaks else max(x for x in peaks if x is not None)
    return features, flops, peak
