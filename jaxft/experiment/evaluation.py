"""Predictions of a model over a split, and what they are worth."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jaxft.analysis.metrics import shorten
from jaxft.analysis.pictures import inline
from jaxft.data.inputs import Kind
from jaxft.data.loader import TextBatches, iterate
from jaxft.data.targets import Targets
from jaxft.experiment.encoder import Batches, Encoder
from jaxft.experiment.split import Split
from jaxft.tasks.contract import Join, Predicted, Task, Writes, fitted
from jaxft.training.parallel import Parallel
from jaxft.training.programs import Programs

# Up to so many rows what is shown of each is read once and kept: some 20 MB of texts.
KEPT = 1 << 16
_ROWS = 1024  # rows of a file that are made at a time


class Writing(Protocol):
    """What gives texts for those of a split, see writing.py."""

    @property
    def rows(self) -> int: ...
    def chosen(self, count: int) -> np.ndarray: ...
    def texts(self, params: Any, split: Split) -> np.ndarray: ...


# Of predictions [k, ...] and their places [k] among those of the split: what is kept of them.
Keep = Callable[[dict[str, np.ndarray], np.ndarray], Predicted]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one pass over a split gives.

    Attributes:
      predicted: what `Task.kept` leaves of each prediction, in the order of the split's rows.
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
    keep: Keep | None = None,
    join: Join | None = None,
    threads: int = 2,
) -> Predicted:
    """What the task brings back of every example (see `Predicted`), in the order of `targets`.

    `params` is the whole tree, placed as the program was compiled for. `keep` is asked of each batch what
    stays of it; None: everything. `join` is asked, instead, what becomes of the windows of each example,
    where there are several (see `Task.join`). `threads` prepare batches. Every process runs this and every
    process gets everything.
    """
    found = Collected(batches, targets, keep=keep, join=join)

    def call(batch: Any) -> dict[str, jax.Array]:
        return parallel.unreplicate(program(params, batch))

    for arrays in outputs(call, batches, parallel.put, threads):
        found.add({name: np.asarray(array) for name, array in arrays.items()})
    return found.whole()


class Collected:
    """What one model gives of every example, put together as the batches come. Arguments as of `predict`."""

    def __init__(self, batches: Batches, targets: Targets, *, keep: Keep | None, join: Join | None):
        self._windows = batches.tokens.windows if isinstance(batches, TextBatches) else None
        self._offsets = targets.offsets if self._windows is None else self._windows
        self._keep, self._join = keep if self._windows is None else None, join
        self._position, self._targets = _positions(targets.rows), targets
        self._found = {"seen": np.zeros(self._offsets[-1], bool)}
        self._several = False

    def add(self, out: dict[str, np.ndarray]) -> None:
        """What the model gives of one batch."""
        own = dict(out)
        index, item = own.pop("index"), own.pop("item", None)
        real, self._several = index >= 0, item is not None
        place = self._offsets[self._position(index[real])]
        place = place + (item[real] if item is not None else 0)
        found = self._found
        found["seen"][place] = True
        own = {name: array[real] for name, array in own.items()}
        for name, array in (own if self._keep is None else self._keep(own, place)).items():
            # Filled in place: of many classes the logits are gigabytes, and are never there twice.
            if name not in found:
                found[name] = np.zeros((self._offsets[-1], *array.shape[1:]), array.dtype)
            found[name][place] = array

    def whole(self) -> Predicted:
        """All of it, after the last batch."""
        found, targets = self._found, self._targets
        assert self._several or found["seen"].all(), (found["seen"].sum(), len(targets))
        if self._windows is None:
            return found
        assert self._join is not None and found.pop("seen").all()
        joined = self._join(found, self._windows, targets)
        return {"seen": np.ones(len(targets), bool), **joined}


def _positions(rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Where each of some rows of the source stands among `rows`, which are all different."""
    if (rows[1:] > rows[:-1]).all():  # as they nearly always are
        return lambda wanted: np.searchsorted(rows, wanted)
    order = np.argsort(rows)
    ascending = rows[order]
    return lambda wanted: order[np.searchsorted(ascending, wanted)]


def evaluate(
    task: Task[Any],
    program: Programs,
    params: Any,
    batches: Batches,
    parallel: Parallel,
    split: Split,
    *,
    writer: Writing | None = None,
    threads: int = 2,
) -> Evaluation:
    """Predict a split and compare with its targets. `threads` prepare batches; the writer gives texts."""
    keep = functools.partial(task.kept, split.targets)
    predicted = predict(
        program, params, batches, parallel, split.targets, keep=keep, join=task.join,
        threads=threads,
    )  # fmt: skip
    metrics, details = scores(task, predicted, split)
    if writer is not None and writer.rows:
        texts, own = _written(task, writer, params, split)
        predicted, metrics = {**predicted, "written": texts}, metrics | own
    return Evaluation(predicted, metrics, details)


def scores(
    task: Task[Any], predicted: Predicted, split: Split
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics and details of predictions of a split, see `Task.scores`; of a mixture by source, too."""
    metrics, details = task.scores(predicted, split.targets)
    if split.source.mixture is not None:
        metrics = metrics | _by_source(task, predicted, split)
    return metrics, details


def _written(
    task: Task[Any], writer: Writing, params: Any, split: Split
) -> tuple[np.ndarray, dict[str, Any]]:
    """The texts that a model gives for some examples, None for the others, and what they are worth."""
    assert isinstance(task, Writes)
    chosen = writer.chosen(len(split.targets))
    part = split.take(chosen)
    written = np.full(len(split.targets), None, object)
    written[chosen] = writer.texts(params, part)
    return written, task.text_scores(written[chosen].tolist(), part.targets)


def _by_source(task: Task[Any], predicted: Predicted, split: Split) -> dict[str, float]:
    """The loss of each source of a mixture, over its own examples."""
    mixture, targets = split.source.mixture, split.targets
    assert mixture is not None
    sources, found = mixture.source_of(targets.rows), {}
    for number, name in enumerate(mixture.names):
        of_entries = np.repeat(sources == number, np.diff(targets.offsets))
        if of_entries.any():
            own = {key: array[of_entries] for key, array in predicted.items()}
            metrics, _ = task.scores(own, targets.take(np.flatnonzero(sources == number)))
            found[f"loss/{name}"] = metrics["loss"]
    return found


class Predictions:
    """Rows of predictions/NAME.jsonl for a split that is evaluated again and again.

    Of a split of up to `KEPT` rows, what a row shows of its input is read from the source once, at the
    first use: reading Parquet rows or images anew at each new best can take longer than the evaluation.
    Of a larger one it is read each time, a few rows at a time, and so are the rows made.
    """

    def __init__(self, task: Task[Any], split: Split, encoder: Encoder):
        self._task, self._split, self._encoder = task, split, encoder

    def rows(self, result: Evaluation) -> Iterator[dict[str, Any]]:
        """One an example (see `Task.rows`), in the order of the split's."""
        targets = self._split.targets
        task = fitted(self._task, result.metrics, targets.names)
        offsets, count = targets.offsets, len(targets)
        for start in range(0, count, _ROWS):
            some = slice(start, min(start + _ROWS, count))
            own = slice(offsets[some.start], offsets[some.stop])
            predicted = {name: array[own] for name, array in result.predicted.items()}
            inputs = self._inputs[some] if count <= KEPT else self._read(targets.rows[some])
            part = targets.take(np.arange(some.start, some.stop))
            yield from task.rows(predicted, part, inputs)

    @functools.cached_property
    def _inputs(self) -> Sequence[str]:
        return self._read(self._split.targets.rows)

    def _read(self, rows: np.ndarray) -> list[str]:
        columns, encoder = self._encoder.columns, self._encoder
        return [
            _shown(values, encoder.kind)
            for _, found in self._split.source.chunks(columns, rows)
            for values in zip(*found, strict=True)
        ]


def _shown(values: Sequence[Any], kind: Kind) -> str:
    """What a reader of the report sees of an example: its text, or its image (a path, or inline)."""
    if kind.model == "text":
        return shorten(kind.shown(values))
    image = values[0]
    if isinstance(image, dict):  # an undecoded image of a Hugging Face data set
        image = image.get("path") or b""
    if isinstance(image, str | Path):
        return str(image)
    return "" if isinstance(image, bytes) else inline(np.asarray(image))


def outputs(
    call: Callable[[Any], dict[str, jax.Array]],
    batches: Batches,
    put: Callable[[Any], Any],
    threads: int,
) -> Iterator[dict[str, jax.Array]]:
    """What `call` gives of each batch, placed by `put`, handed out while the next is already running."""
    waiting: dict[str, jax.Array] | None = None
    for batch in iterate(batches, put=put, threads=threads):
        out = call(batch)
        if waiting is not None:
            yield waiting
        waiting = out
    if waiting is not None:
        yield waiting
