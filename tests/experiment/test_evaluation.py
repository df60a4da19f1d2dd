"""Evaluation around the device program: threads, order of the rows, inputs read once."""

import dataclasses
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from jaxft.data.files import table
from jaxft.data.inputs import KINDS
from jaxft.data.labels import Labels
from jaxft.experiment.evaluation import Predictions, evaluate
from jaxft.experiment.split import Split
from jaxft.tasks.classification import Classification

TEXT = Classification("text")
ROWS = np.array([7, 2, 5, 0])
PARALLEL = SimpleNamespace(put=lambda batch: batch, unreplicate=lambda out: out)


class Batches:
    """Batches of two rows in another order than the split's, with an empty place each."""

    def __init__(self):
        self.threads = set()

    def __len__(self):
        return 2

    def __getitem__(self, step):
        self.threads.add(threading.current_thread().name)
        return {"index": np.array([[0, 5, -1], [7, 2, -1]][step])}


def program(_, batch):
    """Row 7 is predicted as class 1, every other as class 0."""
    logits = np.stack([batch["index"] != 7, batch["index"] == 7], axis=-1)
    return {"logits": logits.astype(np.float32), "index": batch["index"]}


def split(reads=None):
    source = table("a.csv", {"text": [f"text {i}  of\nmany" for i in range(8)]})
    if reads is not None:
        whole = source.read
        source = dataclasses.replace(
            source, read=lambda columns, rows: reads.extend(rows) or whole(columns, rows)
        )
    return Split(source, Labels(("a", "b"), ROWS, np.array([1, 0, 0, 1], np.int32)))


def test_an_evaluation_has_predictions_metrics_and_confusion_in_the_order_of_the_rows():
    result = evaluate(TEXT, program, None, Batches(), PARALLEL, split())
    assert result.predicted["predicted"].tolist() == [1, 0, 0, 0]
    assert result.metrics["accuracy"] == 0.75 and "confusion" not in result.metrics
    assert result.details["confusion"]["matrix"] == [[2, 0], [1, 1]]
    assert result.to_json()["confusion"]["matrix"] == [[2, 0], [1, 1]]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_threads_that_prepare_batches_are_those_asked_for(monkeypatch, threads):
    from jaxft.experiment import evaluation

    asked = []

    def iterate(batches, *, put, threads):
        asked.append(threads)
        return iter([put(batches[step]) for step in range(len(batches))])

    monkeypatch.setattr(evaluation, "iterate", iterate)
    evaluate(TEXT, program, None, Batches(), PARALLEL, split(), threads=threads)
    assert asked == [threads]


def test_inputs_are_read_once_however_often_predictions_are_written():
    reads = []
    rows = split(reads)
    predictions = Predictions(TEXT, rows, SimpleNamespace(kind=KINDS["text"], columns=("text",)))
    result = evaluate(TEXT, program, None, Batches(), PARALLEL, rows)
    first = list(predictions.rows(result))
    assert list(predictions.rows(result)) == first and reads == ROWS.tolist()
    assert [row["text"] for row in first] == [f"text {i} of many" for i in ROWS]
    assert [row["predicted"] for row in first] == ["b", "a", "a", "a"]


def test_of_a_large_split_inputs_are_read_again_and_rows_are_the_same(monkeypatch):
    from jaxft.experiment import evaluation

    rows, reads = split(), []
    encoder = SimpleNamespace(kind=KINDS["text"], columns=("text",))
    result = evaluate(TEXT, program, None, Batches(), PARALLEL, rows)
    kept = list(Predictions(TEXT, rows, encoder).rows(result))
    monkeypatch.setattr(evaluation, "KEPT", 3)
    monkeypatch.setattr(evaluation, "_ROWS", 3)
    again = Predictions(TEXT, split(reads), encoder)
    assert list(again.rows(result)) == kept and reads == ROWS.tolist()
    next(again.rows(result))
    assert reads[4:] == ROWS[:3].tolist()  # no more than is asked for


@pytest.mark.parametrize(
    "value, shown",
    [
        ("a/b.png", "a/b.png"),
        ({"bytes": b"x", "path": "b.png"}, "b.png"),
        ({"bytes": b"x", "path": None}, ""),
        (b"x", ""),
    ],
)
def test_images_are_shown_by_their_file_where_they_have_one(value, shown):
    source = table("a.parquet", {"image": [value]})
    one = Split(source, Labels(("a", "b"), np.array([0]), np.array([0], np.int32)))
    predictions = Predictions(TEXT, one, SimpleNamespace(kind=KINDS["image"], columns=("image",)))
    assert predictions._inputs == [shown]
