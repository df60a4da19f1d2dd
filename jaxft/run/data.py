"""From a config to batches: opens the sources, settles the labels, plans every batch of the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxft.config import ConfigDict
from jaxft.data.batching import plan_evaluation, plan_training, steps_per_epoch
from jaxft.data.images import Augment, Images, Preprocess, find_image_column
from jaxft.data.labels import Labels, few_per_class, find_label_column, holdout, read_labels
from jaxft.data.loader import ImageBatches, TextBatches
from jaxft.data.sources import Source, open_source
from jaxft.data.text import find_text_columns, load_tokenizer, tokenize

Batches = TextBatches | ImageBatches
_AUGMENT = {
    "none": None,
    "flip": Augment(flip=True),
    "crop_flip": Augment(crop_scale=(0.35, 1.0), flip=True),
}


@dataclasses.dataclass(frozen=True)
class Split:
    """Some rows of a source, with labels: what is trained on, evaluated, or predicted."""

    source: Source
    labels: Labels

    def take(self, positions: np.ndarray) -> Split:
        """These positions, in this order."""
        return Split(self.source, self.labels.take(positions))


@dataclasses.dataclass(frozen=True)
class Splits:
    """The rows of a run and what was decided about them.

    Attributes:
      train, eval, test: the rows; there may be no test rows.
      names: label names by class number.
      columns: input column names.
      notes: what was decided rather than given, one line each, for the terminal.
    """

    train: Split
    eval: Split
    test: Split | None
    names: tuple[str, ...]
    columns: tuple[str, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Slicing:
    """How batches are cut: over devices, microbatches and processes."""

    shards: int = 1
    accumulate: int = 1
    process_index: int = 0
    process_count: int = 1


def open_splits(config: ConfigDict, inputs: str, checkpoint_names: Sequence[str]) -> Splits:
    """Open `config.data`'s sources and settle columns, label names and the held-out share.

    Args:
      config: the run's.
      inputs: 'text' or 'image'.
      checkpoint_names: label names of the checkpoint's own head; when the data has the same set,
        their order is kept, and so the head stays useful.

    Raises:
      ValueError: a file, column or label is not usable; one line.
    """
    c, notes = config.data, []
    if not c.train:
        raise ValueError("config.data.train is empty: give a file, a folder or a data set name")
    source = open_source(c.train, data_dir=c.dir or None)
    label = find_label_column(source, c.label)
    if inputs == "text":
        columns = find_text_columns(source, c.text, label)
    else:
        columns = (find_image_column(source, c.text[0] if c.text else ""),)
    notes.append(f"input {', '.join(columns)}; label {label}")
    labels = read_labels(source, label, classes=c.classes)
    if sorted(labels.names) == sorted(checkpoint_names):
        labels = read_labels(source, label, names=tuple(checkpoint_names), classes=c.classes)
    train = Split(source, labels)

    def other(spec: str) -> Split:
        there = open_source(spec, data_dir=c.dir or None)
        column = find_label_column(there, c.label)
        return Split(there, read_labels(there, column, names=labels.names, classes=c.classes))

    if c.eval:
        held_out = other(c.eval)
    else:
        kept, positions = holdout(labels.ids, c.eval_fraction, config.train.seed)
        train, held_out = train.take(kept), train.take(positions)
        notes.append(
            f"no data.eval given: {len(positions)} of {len(labels)} training rows "
            f"({c.eval_fraction:.0%} of each label) are held out for evaluation"
        )
    if c.examples_per_class is not None:
        few = few_per_class(train.labels.ids, c.examples_per_class, config.train.seed)
        train = train.take(few)
    test = other(c.test) if c.test else None
    return Splits(train, held_out, test, tuple(labels.names), tuple(columns), tuple(notes))


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns splits into batches by what the checkpoint's inputs are.

    Attributes:
      inputs: 'text' or 'image'.
      directory: the checkpoint's, for tokenizer or preprocessor files.
      columns: input columns.
      max_length: longest text in tokens.
      cache: directory of tokenised text; None: not kept.
    """

    inputs: str
    directory: str
    hf_config: dict[str, Any]
    columns: tuple[str, ...]
    max_length: int
    cache: str | None

    def tokens(self, split: Split) -> Any:
        """Token ids of a text split."""
        return tokenize(
            split.source,
            split.labels.rows,
            self.columns,
            load_tokenizer(self.directory),
            max_length=self.max_length,
            vocab_size=self.hf_config["vocab_size"],
            cache_dir=self.cache,
        )

    def images(self, split: Split, augment: Augment | None, seed: int) -> Images:
        """Decoded images of an image split."""
        preprocess = Preprocess.from_checkpoint(
            self.directory,
            image_size=self.hf_config["image_size"],
            channels=self.hf_config.get("num_channels", 3),
        )
        return Images(
            split.source, split.labels.rows, self.columns[0], preprocess, augment=augment, seed=seed
        )

    def training(self, split: Split, config: ConfigDict, steps: int, cut: Slicing) -> Batches:
        """`steps` batches of an endless shuffled stream; batch i depends on i alone."""
        c = config.train
        here = {"process_index": cut.process_index, "process_count": cut.process_count}
        if self.inputs == "image":
            images = self.images(split, _AUGMENT[config.data.augment], c.seed)
            return ImageBatches(
                images, split.labels, batch_size=c.batch_size, steps=steps, seed=c.seed,
                shards=cut.shards, row_multiple=cut.accumulate, **here,
            )  # fmt: skip
        tokens = self.tokens(split)
        plan = plan_training(
            tokens.lengths, batch_size=c.batch_size, steps=steps, seed=c.seed, shards=cut.shards,
            row_multiple=cut.accumulate, pack=config.data.pack, max_shapes=config.data.max_shapes,
        )  # fmt: skip
        return TextBatches(tokens, split.labels, plan, **here)

    def evaluation(self, split: Split, config: ConfigDict, cut: Slicing) -> Batches:
        """Every example once."""
        size = config.eval.batch_size
        here = {"process_index": cut.process_index, "process_count": cut.process_count}
        if self.inputs == "image":
            images = self.images(split, None, 0)
            return ImageBatches(
                images, split.labels, batch_size=size, steps=None, seed=0, shards=cut.shards, **here
            )
        tokens = self.tokens(split)
        plan = plan_evaluation(
            tokens.lengths, batch_size=size, shards=cut.shards, pack=config.data.pack
        )
        return TextBatches(tokens, split.labels, plan, **here)


def make_encoder(
    config: ConfigDict, inputs: str, directory: str, hf_config: dict[str, Any], splits: Splits,
    cache: str | None,
) -> Encoder:  # fmt: skip
    """The encoder of a run.

    Raises:
      ValueError: data.max_length is above what the checkpoint has positions for.
    """
    limit = hf_config.get("max_position_embeddings", 0)
    length = config.data.max_length or limit
    if inputs == "text" and length > limit:
        raise ValueError(
            f"config.data.max_length={length} is above the {limit} positions of the checkpoint"
        )
    return Encoder(inputs, directory, hf_config, splits.columns, length, cache)


def run_length(config: ConfigDict, examples: int) -> tuple[int, int]:
    """(optimizer updates of the run, updates of one epoch)."""
    epoch = steps_per_epoch(examples, config.train.batch_size)
    return config.train.steps or max(1, round(config.train.epochs * epoch)), epoch
