"""A run whose data need not be there: what its batches look like, of texts of one length or of images.

The arrays are those that the run's own loader makes, of rows that are all full. What the rows say is
nothing that a plan reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxft.config import ConfigDict
from jaxft.data.batching import plan_training
from jaxft.data.files import Source
from jaxft.data.images import Images, Preprocess
from jaxft.data.inputs import KINDS
from jaxft.data.label_sets import LabelSets
from jaxft.data.labels import Labels
from jaxft.data.loader import ImageBatches, TextBatches
from jaxft.data.numbers import Numbers
from jaxft.data.targets import Batch, Targets, Unlabelled
from jaxft.data.tokens import Tokens
from jaxft.experiment.changes import mixing_of
from jaxft.experiment.data import Splits
from jaxft.experiment.encoder import Slicing
from jaxft.experiment.prepared import Prepared, settle
from jaxft.experiment.split import Split
from jaxft.models import ImageLimits, class_names, hf
from jaxft.tasks.table import TASKS

NOWHERE = "data that are not there"  # name of their source
_LABELS = ("0", "1")  # of a head for which config.json names no classes
_SIDE = 224  # of images for models that take any
_Rows = np.ndarray


def _unlabelled(names: tuple[str, ...], rows: _Rows) -> Targets:
    return Unlabelled(rows, np.arange(len(rows) + 1))


_TARGETS: dict[str, Callable[[tuple[str, ...], _Rows], Targets]] = {
    "text_classification": lambda names, rows: Labels(names, rows, np.zeros(len(rows), np.int32)),
    "image_classification": lambda names, rows: Labels(names, rows, np.zeros(len(rows), np.int32)),
    "multi_label": lambda names, rows: _sets(names, rows),
    "image_multi_label": lambda names, rows: _sets(names, rows),
    "text_regression": lambda names, rows: Numbers(rows, np.zeros(len(rows))),
    "image_regression": lambda names, rows: Numbers(rows, np.zeros(len(rows))),
    "causal_lm": _unlabelled,
    "masked_lm": _unlabelled,
    "instruction": _unlabelled,
}
# What else is known of each token where a task reads it.
_EXTRA = {"masked_lm": ("word",), "instruction": ("counted",)}


def _sets(names: tuple[str, ...], rows: _Rows) -> LabelSets:
    return LabelSets(names, rows, np.zeros(len(rows) + 1, np.int64), np.zeros(0, np.int32))


def outline(config: ConfigDict, examples: int) -> Prepared:
    """What `prepare` gives, of a checkpoint of which config.json is enough and of data that nobody reads.

    Args:
      examples: of the training data.

    Raises:
      ValueError: as `prepare`, and of a task whose batches only its data tell.
    """
    if config.task not in _TARGETS:
        raise ValueError(
            f"config.task={config.task!r} can be planned with its data only, whose batches nobody else "
            f"knows; give config.data.train, and no --length. Without data: {', '.join(_TARGETS)}"
        )
    if not config.model.path:
        raise ValueError("config.model.path is empty: give a checkpoint directory or a hub id")
    directory = hf.resolve(config.model.path)
    kind = KINDS[TASKS[config.task].inputs]
    regresses = config.task.endswith("regression")
    plain = config.task in ("causal_lm", "masked_lm", "instruction")
    names = () if regresses or plain else (tuple(class_names(directory)) or _LABELS)
    rows = np.arange(examples)
    split = Split(_no_source(examples), _TARGETS[config.task](names, rows))
    column = "image" if kind.model == "image" else "text"
    windows = examples if kind.windowed else None
    splits = Splits(split, split, None, names, (column,), (), windows=windows)
    return settle(config, directory, splits)


def outlined_batch(prepared: Prepared, length: int, cut: Slicing) -> Batch:
    """The largest batch of such a run, blank, with the arrays that its loader makes.

    Args:
      length: tokens of each text; of images nothing.

    Raises:
      ValueError: the model has fewer positions, or the batch cannot be cut so.
    """
    config, targets = prepared.config, prepared.splits.train.targets
    limits, c = prepared.architecture.limits, config.train
    if isinstance(limits, ImageLimits):
        sides = (limits.height or _SIDE, limits.width or _SIDE)
        plain = Preprocess.from_checkpoint(
            prepared.directory, image_size=sides, channels=limits.channels
        )
        source, rows = prepared.splits.train.source, prepared.splits.train.targets.rows
        images = Images(source, rows, "image", plain, augment=None, seed=0)
        batches = ImageBatches(
            images, targets, batch_size=c.batch_size, steps=1, seed=0, shards=cut.shards,
            row_multiple=cut.accumulate, mixing=mixing_of(config),
        )  # fmt: skip
        return batches.blank()[0]
    if length > limits.positions:
        raise ValueError(
            f"--length={length} is above the {limits.positions} positions of the checkpoint"
        )
    tokens = _tokens(len(targets), length, _EXTRA.get(config.task, ()))
    if prepared.task.inputs in [k for k, one in KINDS.items() if one.windowed]:
        tokens = dataclasses.replace(tokens, windows=np.arange(len(targets) + 1))
    plan = plan_training(
        tokens.lengths, batch_size=c.batch_size, steps=1, seed=0, shards=cut.shards,
        row_multiple=cut.accumulate, pack=config.data.pack and not limits.alone, max_shapes=1,
    )  # fmt: skip
    corrupt = _masked if config.task == "masked_lm" else None
    return TextBatches(tokens, targets, plan, corrupt=corrupt).blank()[-1]


def _tokens(count: int, length: int, extra: tuple[str, ...]) -> Tokens:
    ids = np.broadcast_to(np.uint16(0), (count * length,))
    offsets = np.arange(count + 1) * length
    second = np.full(count, length, np.int32)
    marks = {name: np.broadcast_to(np.int32(0), ids.shape) for name in extra}
    return Tokens(ids, offsets, second, cached=False, extra=marks)


def _masked(inputs: Batch, slots: np.ndarray, epoch: int) -> Batch:
    ids = inputs["input_ids"]
    return {**inputs, "original": ids, "chosen": np.zeros(ids.shape, bool)}


def _no_source(count: int) -> Source:
    def read(columns: Any, rows: np.ndarray) -> Any:
        raise AssertionError("the rows of an outline are not read")

    return Source(NOWHERE, ("text", "image"), count, read)
