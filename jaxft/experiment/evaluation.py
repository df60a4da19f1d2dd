"""Predictions of a model over a split, and what they are worth."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxft.analysis.metrics import shorten
from jaxft.analysis.pictures import inline
from jaxft.data.loader import iterate
from jaxft.data.targets import Targets
from jaxft.data.words import words_of
from jaxft.experiment.data import Batches, Encoder
from jaxft.experiment.split import Split
from jaxft.tasks.contract import Predicted, Task
from jaxft.training.parallel import Parallel, Programs


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one pass over a split gives.

    Attributes:
      predicted: in the order of the split's rows.
      metrics, details: see `Task.scores`.
    """

    predicted: Predicted
    metrics: dict[str, Any]
    details: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Metrics and details, for a file of their own."""
        return {**self.metrics, **self.details}


def predict(
    program: Programs,
    params: Any,
    batches: Batches,
    parallel: Parallel,
    targets: Targets,
    *,
    threads: int = 2,
) -> dict[str, np.ndarray]:
    """What the task brings back of every example (see `Predicted`), in the order of `targets`.

    `params` is the whole tree, placed as the program was compiled for. `threads` prepare batches.
    Every process runs this and every process gets everything.
    """
    rows, offsets = targets.rows, targets.offsets
    position = np.full(int(rows.max()) + 1, -1, np.int64)
    position[rows] = np.arange(len(rows))
    found: dict[str, np.ndarray] = {"seen": np.zeros(offsets[-1], bool)}
    several = False
    for arrays in _outputs(program, params, batches, parallel, threads):
        out = {name: np.asarray(array) for name, array in arrays.items()}
        index, item = out.pop("index"), out.pop("item", None)
        real, several = index >= 0, item is not None
        place = offsets[position[index[real]]] + (item[real] if item is not None else 0)
        found["seen"][place] = True
        for name, array in out.items():
            # Filled in place: of many classes the logits are gigabytes, and are never there twice.
            if name not in found:
                found[name] = np.zeros((offsets[-1], *array.shape[index.ndim :]), array.dtype)
            found[name][place] = array[real]
    assert several or found["seen"].all(), (found["seen"].sum(), len(rows))
    return found


def evaluate(
    task: Task[Any],
    program: Programs,
    params: Any,
    batches: Batches,
    parallel: Parallel,
    split: Split,
    *,
    threads: int = 2,
) -> Evaluation:
    """Predict a split and compare with its targets. `threads` prepare batches."""
    predicted = predict(program, params, batches, parallel, split.targets, threads=threads)
    return Evaluation(predicted, *task.scores(predicted, split.targets))


class Predictions:
    """Rows of predictions/NAME.jsonl for a split that is evaluated again and again.

    What a row shows of its input is read from the source once, at the first use, and kept: at most
    a few hundred bytes a row, where reading Parquet rows or images anew at each new best can take
    longer than the evaluation.
    """

    def __init__(self, task: Task[Any], split: Split, encoder: Encoder):
        self._task, self._split, self._encoder = task, split, encoder

    def rows(self, result: Evaluation) -> list[dict[str, Any]]:
        """See `Task.rows`."""
        return self._task.rows(result.predicted, self._split.targets, self._inputs)

    @functools.cached_property
    def _inputs(self) -> list[str]:
        source, encoder = self._split.source, self._encoder
        return [_shown(source[int(row)], encoder) for row in self._split.targets.rows]


def _shown(row: dict[str, Any], encoder: Encoder) -> str:
    """What a reader of the report sees of an example: its text, or its image (a path, or inline)."""
    if encoder.inputs == "text":
        return shorten(" | ".join(str(row[c]) for c in encoder.columns))
    if encoder.inputs == "words":
        return shorten(" ".join(words_of(row[encoder.columns[0]])))
    image = row[encoder.columns[0]]
    if isinstance(image, dict):  # an undecoded image of a Hugging Face data set
        image = image.get("path") or b""
    if isinstance(image, str | Path):
        return str(image)
    return "" if isinstance(image, bytes) else inline(np.asarray(image))


def _outputs(
    program: Programs, params: Any, batches: Batches, parallel: Parallel, threads: int
) -> Iterator[dict[str, jax.Array]]:
    """Device outputs, each handed out while the next batch is already running."""
    waiting: dict[str, jax.Array] | None = None
    for batch in iterate(batches, put=parallel.put, threads=threads):
        out = parallel.unreplicate(program(params, batch))
        if waiting is not None:
            yield waiting
        waiting = out
    if waiting is not None:
        yield waiting
