"""The rows of one source that are used, each with a target and an input that have been checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.config import ConfigDict
from jaxft.data.checks import check_inputs
from jaxft.data.folds import fold_of, group_keys, hold_out_groups, shared_group
from jaxft.data.inputs import KINDS
from jaxft.data.labels import find_column
from jaxft.data.sources import Source
from jaxft.data.subsets import holdout
from jaxft.data.targets import Targets
from jaxft.tasks.contract import Reading, Task


@dataclasses.dataclass(frozen=True)
class Split:
    """Some rows of a source, with their targets: what is trained on, evaluated, or predicted.

    answers: the column of the texts that the model is to give, where those are the targets.
    """

    source: Source
    targets: Targets
    answers: str = ""

    def take(self, positions: np.ndarray) -> Split:
        """These positions, in this order."""
        return dataclasses.replace(self, targets=self.targets.take(positions))


def labelled_split(
    task: Task[Any], source: Source, label: str, columns: Sequence[str], reading: Reading
) -> tuple[Split, tuple[str, ...]]:
    """The rows of a source that are asked for, each with a target and a usable input.

    Args:
      label, columns: of the targets ('' where they are made of the inputs) and the inputs.
      reading: which rows, and what of one that cannot be used.

    Returns:
      The split, and notes on rows that are left out or whose text is empty.

    Raises:
      ValueError: a column is missing, a target is missing or unknown, a text is none, a file is not
        there: the first such row, and how many there are. With `reading.drop` rows without a
        target or a usable input are left out instead; an empty text is usable.
    """
    kind = KINDS[task.inputs]
    for column in columns:
        find_column(source, column, (), kind.name, option="text")
    targets = task.read(source, label, columns, reading)
    found = check_inputs(source, columns, targets.rows, inputs=kind.name, fault=kind.fault)
    if found.faults and not reading.drop:
        raise ValueError(_said_of_faults(source, found.faults) + reading.advice)
    faulty = np.array(list(found.faults), np.int64)
    kept = targets.take(np.flatnonzero(~np.isin(targets.rows, faulty)))
    if not len(kept):
        first = _first(source, found.faults)
        raise ValueError(f"{source.name}: no row has a usable {kind.name}; {first}")
    notes = tuple(
        f"{source.name}: {_rows(len(rows))} {what} ({source.numbered(rows)})"
        for rows, what in (
            (kept.dropped, "without label left out"),
            (faulty, f"without usable {kind.name} left out"),
            (found.empty, "with an empty text, used as they are"),
        )
        if len(rows)
    )
    return Split(source, kept, label if kind.answers else ""), notes


def hold_out(split: Split, data: ConfigDict) -> tuple[Split, Split]:
    """(what is trained on, what is held out) by `config.data`, where it names no evaluation data.

    Raises:
      ValueError: too few examples, or groups, of too few kinds.
    """
    strata, seed = _strata(split), data.split_seed
    groups = None
    if data.group:
        groups = group_keys(split.source, data.group, split.targets.rows)
    if data.folds is not None:
        held_out = fold_of(strata, data.folds, seed, groups) == data.fold
        kept, held = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    elif groups is not None:
        kept, held = hold_out_groups(strata, groups, data.eval_fraction, seed)
    else:
        kept, held = holdout(strata, data.eval_fraction, seed)
    return split.take(kept), split.take(held)


def check_groups(column: str, known: Split, other: Split, what: str) -> None:
    """Raises ValueError: a group of `other` is also one of `known`; `what` those are."""
    keys = [group_keys(s.source, column, s.targets.rows) for s in (known, other)]
    if shared := shared_group(*keys):
        row, count = int(other.targets.rows[shared[0]]), shared[1]
        raise ValueError(
            f"{other.source.where(row)}: the group {other.source[row][column]!r} of {column!r} is also in "
            f"the {what}, as are {count} groups in all; leave its rows out of one of them"
        )


def _strata(split: Split) -> np.ndarray:
    """[n] int: groups of which each gives its share; of a mixture those of each source."""
    strata, mixture = split.targets.strata(), split.source.mixture
    if mixture is None:
        return strata
    sources = mixture.source_of(split.targets.rows).astype(np.int64)
    return np.unique(strata.astype(np.int64) * len(mixture.names) + sources, return_inverse=True)[1]


def _said_of_faults(source: Source, faults: Mapping[int, str]) -> str:
    rows = list(faults)
    more = f"; {_rows(len(rows))} in all ({source.numbered(rows)})" if len(rows) > 1 else ""
    return f"{_first(source, faults)}{more}: mend them, or leave them out"


def _first(source: Source, faults: Mapping[int, str]) -> str:
    row, fault = next(iter(faults.items()))
    return f"{source.where(row)}: {fault}"


def _rows(count: int) -> str:
    return f"{count} rows" if count != 1 else "1 row"
