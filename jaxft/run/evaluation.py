"""Predictions of a model over a split, and what they are worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxft.analysis.metrics import classification_metrics
from jaxft.data.loader import iterate
from jaxft.run.data import Batches, Split
from jaxft.training.parallel import Parallel, Programs


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one pass over a split gives.

    Attributes:
      logits: [N, C] float32, in the order of the split's rows.
      metrics: see `classification_metrics`.
    """

    logits: np.ndarray
    metrics: dict[str, Any]


def predict(
    program: Programs,
    params: Any,
    batches: Batches,
    parallel: Parallel,
    rows: np.ndarray,
) -> np.ndarray:
    """Logits [N, C] float32, one row for each of `rows` (source row numbers [N]), in their order.

    `params` is the whole tree, placed as the program was compiled for.
    Every process runs this and every process gets all logits.
    """
    position = np.full(int(rows.max()) + 1, -1, np.int64)
    position[rows] = np.arange(len(rows))
    logits: np.ndarray | None = None
    seen = 0
    for out in _outputs(program, params, batches, parallel):
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
    program: Programs, params: Any, batches: Batches, parallel: Parallel, split: Split
) -> Evaluation:
    """Predict a labelled split and compare with its labels."""
    logits = predict(program, params, batches, parallel, split.labels.rows)
    return Evaluation(logits, classification_metrics(logits, split.labels.ids, split.labels.names))


def _outputs(
    program: Programs, params: Any, batches: Batches, parallel: Parallel
) -> Iterator[dict[str, jax.Array]]:
    """Device outputs, each handed out while the next batch is already running."""
    waiting: dict[str, jax.Array] | None = None
    for batch in iterate(batches, put=parallel.put):
        out = parallel.unreplicate(program(params, batch))
        if waiting is not None:
            yield waiting
        waiting = out
    if waiting is not None:
        yield waiting
