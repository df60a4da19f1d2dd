"""The rows of one source that are used, each with a target and an input that have been checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.config import ConfigDict
from jaxft.data.checks import check_inputs
from jaxft.data.files import Column
from jaxft.data.images import find_image_column
from jaxft.data.labels import find_column
from jaxft.data.sources import Source
from jaxft.data.subsets import holdout
from jaxft.data.targets import Targets, Unlabelled, unlabelled, unlabelled_words
from jaxft.data.text import find_text_columns
from jaxft.data.words import find_words_column, words_of
from jaxft.tasks.contract import Reading, Task


@dataclasses.dataclass(frozen=True)
class Split:
    """Some rows of a source, with their targets: what is trained on, evaluated, or predicted."""

    source: Source
    targets: Targets

    def take(self, positions: np.ndarray) -> Split:
        """These positions, in this order."""
        return Split(self.source, self.targets.take(positions))


def find_input_columns(
    inputs: str, source: Source, given: Sequence[str] = (), label: str = ""
) -> tuple[str, ...]:
    """The columns that the model reads: as given, or found by usual names.

    inputs: of the task. label: the column of the targets, which is no input.
    """
    if inputs == "words":
        return find_words_column(source, given)
    if inputs == "text":
        return find_text_columns(source, given, label)
    return (find_image_column(source, given[0] if given else ""),)


def labelled_split(
    task: Task[Any], source: Source, label: str, columns: Sequence[str], reading: Reading
) -> tuple[Split, tuple[str, ...]]:
    """The rows of a source that are asked for, each with a target and a usable input.

    Args:
      label, columns: of the targets and the inputs.
      reading: which rows, and what of one that cannot be used.

    Returns:
      The split, and notes on rows that are left out or whose text is empty.

    Raises:
      ValueError: a column is missing, a target is missing or unknown, a text is none, a file is not
        there: the first such row, and how many there are. With `reading.drop` rows without a
        target or a usable input are left out instead; an empty text is usable.
    """
    inputs = task.inputs
    for column in columns:
        find_column(source, column, (), inputs, option="text")
    targets = task.read(source, label, columns, reading)
    found = check_inputs(source, columns, targets.rows, inputs=inputs)
    if found.faults and not reading.drop:
        raise ValueError(_said_of_faults(source, found.faults) + reading.advice)
    faulty = np.array(list(found.faults), np.int64)
    kept = targets.take(np.flatnonzero(~np.isin(targets.rows, faulty)))
    if not len(kept):
        first = _first(source, found.faults)
        raise ValueError(f"{source.name}: no row has a usable {inputs}; {first}")
    notes = tuple(
        f"{source.name}: {_rows(len(rows))} {what} ({source.numbered(rows)})"
        for rows, what in (
            (kept.dropped, "without label left out"),
            (faulty, f"without usable {inputs} left out"),
            (found.empty, "with an empty text, used as they are"),
        )
        if len(rows)
    )
    return Split(source, kept), notes


def model_inputs(inputs: str) -> str:
    """The inputs of the model families ('text' or 'image') that a task with these inputs works with."""
    return "text" if inputs == "words" else inputs


def unlabelled_rows(source: Source, inputs: str, columns: Sequence[str]) -> Unlabelled:
    """All rows of a source, for prediction: no target is read. `inputs` are those of the task."""
    if inputs == "words":
        return unlabelled_words(Column(source, columns[0], np.arange(len(source)), words_of))
    return unlabelled(len(source))


def hold_out(split: Split, data: ConfigDict) -> tuple[Split, Split]:
    """(what is trained on, what is held out) by `config.data`, where it names no evaluation data."""
    kept, held = holdout(split.targets.strata(), data.eval_fraction, data.split_seed)
    return split.take(kept), split.take(held)


def _said_of_faults(source: Source, faults: Mapping[int, str]) -> str:
    rows = list(faults)
    more = f"; {_rows(len(rows))} in all ({source.numbered(rows)})" if len(rows) > 1 else ""
    return f"{_first(source, faults)}{more}: mend them, or leave them out"


def _first(source: Source, faults: Mapping[int, str]) -> str:
    row, fault = next(iter(faults.items()))
    return f"{source.where(row)}: {fault}"


def _rows(count: int) -> str:
    return f"{count} rows" if count != 1 else "1 row"
