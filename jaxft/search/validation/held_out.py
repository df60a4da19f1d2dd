"""What trials predicted of the rows that each of them held out: put together, in the order of the data."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxft.data.targets import Targets
from jaxft.experiment.encoder import make_encoder
from jaxft.experiment.evaluation import Evaluation, Predictions
from jaxft.experiment.prepared import Prepared
from jaxft.experiment.split import Split
from jaxft.search.trials.trial import Outcome
from jaxft.tasks.contract import Predicted


def pooled(whole: Targets, parts: Sequence[tuple[Targets, Predicted]]) -> Predicted:
    """What was predicted of each row of `whole`, of which each is in one of the parts.

    Raises:
      ValueError: the arrays of two parts are not of one form.
    """
    offsets, order = whole.offsets, np.argsort(whole.rows, kind="stable")
    found: dict[str, np.ndarray] = {}
    seen = np.zeros(len(whole), bool)
    for targets, predicted in parts:
        at = order[np.searchsorted(whole.rows[order], targets.rows)]
        seen[at] = True
        counts = np.diff(offsets)[at]
        assert (counts == np.diff(targets.offsets)).all()
        starts = np.repeat(offsets[at] - targets.offsets[:-1], counts)
        place = starts + np.arange(targets.offsets[-1])
        for name, array in predicted.items():
            if name not in found:
                found[name] = np.zeros((offsets[-1], *array.shape[1:]), array.dtype)
            if array.shape[1:] != found[name].shape[1:]:
                raise ValueError(
                    f"{name} has the form {array.shape[1:]} in one fold, {found[name].shape[1:]} in another"
                )
            found[name][place] = array
    assert seen.all()
    return found


def prediction_rows(
    prepared: Prepared, outcome: Outcome, cache: str | None
) -> Iterator[dict[str, Any]]:
    """The task's own rows of what a trial predicted, as of predictions/eval.jsonl of a run."""
    assert outcome.predicted is not None
    task, split = prepared.task, prepared.splits.eval
    encoder = make_encoder(
        prepared.config, task.inputs, prepared.directory, prepared.architecture.limits,
        prepared.splits, cache,
    )  # fmt: skip
    result = Evaluation(outcome.predicted, outcome.best, {})
    return Predictions(task, split, encoder).rows(result)


def in_row_order(
    parts: Sequence[tuple[dict[str, Any], Iterator[dict[str, Any]]]],
) -> Iterator[dict[str, Any]]:
    """Rows of several trials, by their 'index', each behind what says of which trial it is."""
    return heapq.merge(*(_named(*part) for part in parts), key=lambda row: int(row["index"]))


def fingerprint(held: Sequence[Split], columns: Sequence[str], known: Split) -> str:
    """Of which rows each trial holds out, and of what some columns have there.

    With columns of targets it depends neither on the model nor on the columns that this one reads: two
    configs that have the same were measured on the same rows.

    Args:
      held: the held-out rows of each trial.
      known: rows of which the columns count; those that it has.
    """
    digest = hashlib.sha256()
    for split in held:
        digest.update(np.ascontiguousarray(split.targets.rows).data)
        digest.update(b"|")
    there = tuple(name for name in columns if name in known.source.columns)
    for _, values in known.source.chunks(there, known.targets.rows) if there else ():
        for column in values:
            for value in column:
                digest.update(_plain(value) + b"|")
    return digest.hexdigest()


def _named(name: dict[str, Any], rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {**name, **row}


def _plain(value: Any) -> bytes:
    """Bytes of a cell; of one that is no plain value, of what it is made of."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return b"[" + b",".join(map(_plain, value)) + b"]"
    if isinstance(value, dict):
        return _plain([(key, value[key]) for key in sorted(value, key=str)])
    return repr(value).encode("utf-8", "surrogatepass")
