"""From a config to rows: opens the sources, settles the targets and what is held out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, cast

from jaxft.config import ConfigDict
from jaxft.data.inputs import KINDS
from jaxft.data.label_cells import columns_of
from jaxft.data.sources import Source
from jaxft.data.subsets import few_per_class
from jaxft.data.targets import Targets
from jaxft.experiment.blocks import Blocks, Streamed
from jaxft.experiment.opening import Given, open_named, open_training
from jaxft.experiment.split import Split, check_groups, hold_out, labelled_split
from jaxft.experiment.unused import check_unused
from jaxft.tasks.contract import Reading, Task

_ADVICE = " by config.data.on_bad_row='skip'"


@dataclasses.dataclass(frozen=True)
class Splits:
    """The rows of a run and what was decided about them.

    Attributes:
      train, eval, test: the rows; there may be no test rows.
      names: of the model's outputs, by number; () where they are numbers.
      columns: input column names.
      notes: what was decided rather than given, one line each, for the terminal.
      windows: entries of the training rows, where a row may become several (`Kind.windowed`); None:
        one each, or not counted yet.
      blocks: where the training rows are those of the first block of a stream: the others.
      pairs: of training rows in an epoch, where these are what is learned from (`tasks.contract.Paired`).
    """

    train: Split
    eval: Split
    test: Split | None
    names: tuple[str, ...]
    columns: tuple[str, ...]
    notes: tuple[str, ...]
    windows: int | None = None
    blocks: Blocks | None = None
    pairs: int | None = None

    @property
    def entries(self) -> int:
        """What an epoch counts: examples, or the windows of their texts."""
        return self.examples if self.windows is None else self.windows

    @property
    def examples(self) -> int:
        """Of an epoch: the training rows, or pairs of them."""
        return len(self.train.targets) if self.pairs is None else self.pairs


@dataclasses.dataclass(frozen=True)
class Whole:
    """The training data before anything of it is held out, and what was settled by them.

    Attributes:
      split: every usable row.
      label: column of the targets; '' where they are made of the inputs.
      columns: input column names.
      reading: how other data are to be read.
      notes: see `Splits`.
    """

    split: Split
    label: str
    columns: tuple[str, ...]
    reading: Reading
    notes: tuple[str, ...]


def open_whole(
    config: ConfigDict,
    task: Task[Any],
    checkpoint_names: Sequence[str],
    cache: str | None = None,
    given: Given | None = None,
    *,
    source: Source | None = None,
) -> Whole:
    """Open the training data, check every row of them, settle columns and labels.

    Args:
      source: opened already; the others see `open_splits`.

    Raises:
      ValueError: a file, column, target or input is not usable; one line.
    """
    c = config.data
    if source is None:
        source = open_training(c, inputs=task.inputs, cache=cache, given=given or {})
    label = task.find_column(source, c.label)
    columns = KINDS[task.inputs].find_columns(source, c.text, label)
    if set(columns_of(source, label)) & set(columns):
        raise ValueError(
            f"{source.name}: column {label!r} is the input and the label; name the one by "
            "config.data.text, the other by config.data.label"
        )
    reading = Reading(
        order=checkpoint_names, classes=c.classes, drop=c.on_bad_row != "error", advice=_ADVICE
    )
    split, found = labelled_split(task, source, label, columns, reading)
    said = f"input {', '.join(columns)}" + f"; label {label}" * bool(label)
    reading = dataclasses.replace(reading, names=split.targets.names)
    return Whole(split, label, tuple(columns), reading, (*source.notes, said, *found))


def open_splits(
    config: ConfigDict,
    task: Task[Any],
    checkpoint_names: Sequence[str],
    cache: str | None = None,
    given: Given | None = None,
) -> Splits:
    """Open `config.data`'s sources, check every row of them, settle columns, labels and held-out share.

    Args:
      config: the run's.
      task: what is learned.
      checkpoint_names: label names of the checkpoint's own head; when the data has the same set,
        their order is kept, and so the head stays useful.
      cache: folder in which what is found in large tables is kept; None: nowhere.
      given: sources in memory; see `open_named`.

    Raises:
      ValueError: a file, column, target or input of any split is not usable; one line.
    """
    check_unused(config, task)
    c = config.data
    how: dict[str, Any] = {"inputs": task.inputs, "cache": cache, "given": given or {}}
    streamed = Streamed(config, task, given or {}) if c.stream else None
    first = streamed.first if streamed else None
    whole = open_whole(config, task, checkpoint_names, cache, given, source=first)
    train, label, columns, reading = whole.split, whole.label, whole.columns, whole.reading
    source, notes, names = train.source, [*whole.notes], train.targets.names

    def other(field: str, spec: str) -> Split:
        with _naming(f"config.{field}"):
            there = open_named(spec, c, **how)
            # The column of the training data, so that both are read alike, else a usual name.
            column = label if label in there.columns else task.find_column(there, c.label)
            split, found = labelled_split(task, there, column, columns, reading)
        notes.extend((*there.notes, *found))
        if column != label:
            notes.append(f"{field}: label {column}")
        return split

    if c.eval:
        held_out = other("data.eval", c.eval)
    else:
        rows, (train, held_out) = len(train.targets), hold_out(train, c)
        notes.append(_said_of_holdout(rows, held_out.targets, c))
    test = other("data.test", c.test) if c.test else None
    if c.group:
        _check_groups(c, train, held_out, test)
    if c.examples_per_class is not None:
        with _naming("config.data.examples_per_class" + ", of what is not held out" * (not c.eval)):
            few = few_per_class(train.targets.strata(), c.examples_per_class, c.split_seed)
        train = train.take(few)
    train = _weighted(train, config)
    if source.mixture is not None:
        notes.append(source.mixture.said(train.targets.rows))
    blocks = None
    if streamed:
        notes.append(streamed.said)

        def settled(block: Source) -> tuple[Split, tuple[str, ...]]:
            split, found = labelled_split(task, block, label, columns, reading)
            return _weighted(split, config), found

        blocks = streamed.blocks(settled)
    return Splits(train, held_out, test, names, columns, tuple(notes), blocks=blocks)


def _weighted(split: Split, config: ConfigDict) -> Split:
    if not (weights := config.train.class_weights):
        return split
    return dataclasses.replace(split, targets=cast(Any, split.targets).weighted(weights))


def _said_of_holdout(rows: int, held: Targets, data: ConfigDict) -> str:
    if data.folds is None:
        how = f"{rows} training rows ({len(held) / rows:.1%}, {held.said_of_strata()})"
    else:
        how = f"{rows} training rows (fold {data.fold} of 0 to {data.folds - 1}, {held.said_of_strata()})"
    whole = f", each group of {data.group!r} as a whole" * bool(data.group)
    return f"no data.eval given: {len(held)} of {how} are held out for evaluation{whole}"


def _check_groups(data: ConfigDict, train: Split, held_out: Split, test: Split | None) -> None:
    """ValueError for a group that is in two splits."""
    if data.eval:
        with _naming("config.data.eval"):
            check_groups(data.group, train, held_out, "training data")
    for known, what in ((train, "training data"), (held_out, "evaluation data")):
        if test is not None:
            with _naming("config.data.test"):
                check_groups(data.group, known, test, what)


@contextlib.contextmanager
def _naming(field: str) -> Iterator[None]:
    """Says of a mistake in the block in which of several sources it is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None
