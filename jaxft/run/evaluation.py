"""Predictions of a model over a split, and what they are worth."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxft.analysis.confusion import Confusion
from jaxft.analysis.metrics import classification_metrics, confusion_of, prediction_rows, shorten
from jaxft.analysis.pictures import inline
from jaxft.data.loader import iterate
from jaxft.run.data import Batches, Encoder, Split
from jaxft.training.parallel import Parallel, Programs


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one pass over a split gives.

    Attributes:
      logits: [N, C] float32, in the order of the split's rows.
      metrics: see `classification_metrics`.
      confusion: counts of (label, predicted); apart from the metrics because of its size.
    """

    logits: np.ndarray
    metrics: dict[str, Any]
    confusion: Confusion

    def to_json(self) -> dict[str, Any]:
        """The metrics and 'confusion' (see `Confusion.to_json`), for a file of their own."""
        return {**self.metrics, "confusion": self.confusion.to_json()}


def predict(
    program: Programs,
    params: Any,
    batches: Batches,
    parallel: Parallel,
    rows: np.ndarray,
    *,
    threads: int = 2,
) -> np.ndarray:
    """Logits [N, C] float32, one row for each of `rows` (source row numbers [N]), in their order.

    `params` is the whole tree, placed as the program was compiled for. `threads` prepare batches.
    Every process runs this and every process gets all logits.
    """
    position = np.full(int(rows.max()) + 1, -1, np.int64)
    position[rows] = np.arange(len(rows))
    logits: np.ndarray | None = None
    seen = 0
    for out in _outputs(program, params, batches, parallel, threads):
        scores = np.asarray(out["logits"]).reshape(-1, out["logits"].shape[-1])
        index = np.asarray(out["index"]).reshape(-1)
        if logits is None:
            logits = np.zeros((len(rows), scores.shape[-1]), np.float32)
        real = index >= 0
        logits[position[index[real]]] = scores[real]
        seen += int(real.sum())
    assert logits is not None and seen == len(rows), (seen, len(rows))
    return logits


def evaluate(
    program: Programs,
    params: Any,
    batches: Batches,
    parallel: Parallel,
    split: Split,
    *,
    threads: int = 2,
) -> Evaluation:
    """Predict a labelled split and compare with its labels. `threads` prepare batches."""
    logits = predict(program, params, batches, parallel, split.labels.rows, threads=threads)
    labels, names = split.labels.ids, split.labels.names
    return Evaluation(
        logits, classification_metrics(logits, labels, names), confusion_of(logits, labels, names)
    )


class Predictions:
    """Rows of predictions/NAME.jsonl for a split that is evaluated again and again.

    What a row shows of its input is read from the source once, at the first use, and kept: at most
    a few hundred bytes a row, where reading Parquet rows or images anew at each new best can take
    longer than the evaluation.
    """

    def __init__(self, split: Split, encoder: Encoder):
        self._split, self._encoder = split, encoder

    def rows(self, result: Evaluation) -> list[dict[str, Any]]:
        """See `prediction_rows`."""
        labels = self._split.labels
        return prediction_rows(
            result.logits, labels.ids, labels.names, index=labels.rows,
            kind=self._encoder.inputs, inputs=self._inputs,
        )  # fmt: skip

    @functools.cached_property
    def _inputs(self) -> list[str]:
        source, encoder = self._split.source, self._encoder
        return [_shown(source[int(row)], encoder) for row in self._split.labels.rows]


def _shown(row: dict[str, Any], encoder: Encoder) -> str:
    """What a reader of the report sees of an example: its text, or its image (a path, or inline)."""
    if encoder.inputs == "text":
        return shorten(" | ".join(str(row[c]) for c in encoder.columns))
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
