"""Metrics are held against scikit-learn, which defines their conventions."""

import json
import warnings

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sk

from jaxft.analysis import confusion as confusion_module
from jaxft.analysis import metrics as analysis
from jaxft.analysis.confusion import Confusion, confusion
from jaxft.analysis.metrics import outcomes, per_class, warnings_of, wilson_interval


def classification_metrics(logits, labels, names):
    return analysis.classification_metrics(outcomes(logits, labels), labels, names)[0]


def confusion_of(logits, labels, names):
    return analysis.classification_metrics(outcomes(logits, labels), labels, names)[1]


def prediction_rows(logits, labels, names, **more):
    return analysis.prediction_rows(outcomes(logits, labels), labels, names, **more)


def case(seed: int, examples: int, classes: int, used: int) -> tuple[np.ndarray, np.ndarray]:
    """Random logits and labels; only the first `used` classes are labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, used, examples)
    logits = rng.normal(size=(examples, classes)) * 2
    logits[np.arange(examples), labels] += 1.5
    return logits.astype(np.float32), labels


@pytest.mark.parametrize(
    "examples,classes,used",
    [(200, 2, 2), (300, 5, 5), (60, 28, 28), (50, 6, 3), (7, 3, 1), (1, 2, 1)],
)
def test_metrics_equal_scikit_learn(examples, classes, used):
    logits, labels = case(examples, examples, classes, used)
    names = [f"c{i}" for i in range(classes)]
    predicted = logits.argmax(-1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ours = classification_metrics(logits, labels, names)
    assert not said
    for average in ("macro", "micro"):
        p, r, f, _ = sk.precision_recall_fscore_support(
            labels, predicted, average=average, zero_division=0
        )
        got = [ours[f"{name}_{average}"] for name in ("precision", "recall", "f1")]
        np.testing.assert_allclose(got, [p, r, f], rtol=1e-12)
    everything = list(range(classes))
    rows = sk.precision_recall_fscore_support(labels, predicted, labels=everything, zero_division=0)
    got = [
        [ours["per_class"][n][k] for n in names] for k in ("precision", "recall", "f1", "support")
    ]
    np.testing.assert_allclose(got, rows, rtol=1e-12)
    counted = confusion_of(logits, labels, names)
    expected = sk.confusion_matrix(labels, predicted, labels=everything)
    np.testing.assert_array_equal(counted.matrix(), expected)
    assert ours["majority_accuracy"] == pytest.approx(expected.sum(1).max() / examples)
    assert ours["predicted_classes"] == len(set(predicted.tolist()))
    np.testing.assert_allclose(ours["accuracy"], sk.accuracy_score(labels, predicted), rtol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, when there is one class only
        expected = sk.matthews_corrcoef(labels, predicted)
    np.testing.assert_allclose(ours["mcc"], expected, atol=1e-12)
    np.testing.assert_allclose(
        ours["loss"], sk.log_loss(labels, softmax(logits, -1), labels=everything), rtol=1e-6
    )
    assert ours["examples"] == examples


def test_metrics_are_plain_json_and_survive_a_round_trip():
    logits, labels = case(0, 40, 3, 3)
    ours = classification_metrics(logits, labels, ["a", "b", "c"])
    assert json.loads(json.dumps(ours, allow_nan=False)) == ours


def test_ten_thousand_classes_are_counted_without_a_matrix():
    logits, labels = case(1, 300, 10_000, 10_000)
    names = [f"class {i}" for i in range(10_000)]
    ours = classification_metrics(logits, labels, names)
    counted = confusion_of(logits, labels, names)
    assert "per_class" not in ours and len(json.dumps(ours)) < 1000
    assert len(counted.counts) <= 300 and len(json.dumps(counted.to_json()["triples"])) < 10_000
    predicted = logits.argmax(-1)
    assert ours["mcc"] == pytest.approx(
        sk.matthews_corrcoef(*(np.unique([labels, predicted], return_inverse=True)[1])), abs=1e-12
    )
    macro = sk.f1_score(labels, predicted, average="macro", zero_division=0)
    assert ours["f1_macro"] == pytest.approx(macro, rel=1e-12)
    np.testing.assert_allclose(
        ours["loss"], sk.log_loss(labels, softmax(logits, -1), labels=range(10_000)), rtol=1e-5
    )


@pytest.mark.parametrize("classes", [3, 150])
def test_a_confusion_survives_its_file(classes):
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(classes)]
    made = confusion(*rng.integers(0, classes, (2, 400)), names)
    read = Confusion.from_json(json.loads(json.dumps(made.to_json())))
    assert ("matrix" in made.to_json()) == (classes == 3)
    np.testing.assert_array_equal(read.matrix(), made.matrix())
    assert read.names == tuple(names) and per_class(read) == per_class(made)
    (label, predicted, count), *_ = made.mistakes(most=5)
    wrong = made.matrix() * (1 - np.eye(classes, dtype=int))
    assert wrong[label, predicted] == count == wrong.max()


@pytest.mark.parametrize(
    "value",
    [
        None, [], "x", {}, {"names": 3}, {"names": ["a"]}, {"names": ["a"], "matrix": [[1, 2]]},
        {"names": ["a"], "matrix": [["x"]]}, {"names": ["a"], "matrix": [[-1]]},
        {"names": ["a"], "matrix": [[0.5]]}, {"names": ["a"], "triples": [[0, 1, 1]]},
        {"names": ["a"], "triples": [[-1, 0, 1]]}, {"names": ["a"], "triples": [[0, 0]]},
        {"names": ["a"], "triples": [[0, 0, 10**30]]}, {"names": ["a"], "triples": [{}]},
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_no_confusion(value):
    assert Confusion.from_json(value) is None


def test_a_model_that_predicts_one_class_is_warned_of():
    logits = np.tile([2.0, 1.0, 0.0], (8, 1))
    ours = classification_metrics(logits, np.arange(8) % 3, ["ham", "spam", "odd"])
    (warning,) = warnings_of(ours)
    assert "all 8 examples are predicted as 'ham'" in warning
    assert not warnings_of(classification_metrics(logits, np.zeros(8, int), ["ham", "spam", "odd"]))
    logits[0] = [0.0, 1.0, 2.0]
    assert not warnings_of(classification_metrics(logits, np.arange(8) % 3, ["ham", "spam", "odd"]))
    assert not warnings_of({"accuracy": 0.5})


def test_what_is_kept_of_logits_does_not_depend_on_the_batch_they_came_in(monkeypatch):
    logits, labels = case(3, 500, 7, 7)
    whole = outcomes(logits, labels)
    monkeypatch.setattr(analysis, "_BLOCK", 64)
    monkeypatch.setattr(confusion_module, "_BLOCK", 9)
    parts = [outcomes(logits[i : i + 13], labels[i : i + 13]) for i in range(0, 500, 13)]
    for name, array in whole.items():
        assert np.array_equal(np.concatenate([part[name] for part in parts]), array)
        assert parts[0][name].dtype == array.dtype
    np.testing.assert_array_equal(whole["predicted"], logits.argmax(-1))
    expected = sk.confusion_matrix(labels, whole["predicted"])
    np.testing.assert_array_equal(confusion_of(logits, labels, "abcdefg").matrix(), expected)
    logits[2, 3], logits[9, 0] = np.inf, np.nan
    assert np.flatnonzero(np.isnan(outcomes(logits, labels)["loss"])).tolist() == [2, 9]


def test_the_loss_is_exact_for_extreme_logits():
    logits = np.array([[1000.0, 0.0], [0.0, 1000.0]])
    ours = classification_metrics(logits, np.array([0, 0]), ["a", "b"])
    assert ours["loss"] == pytest.approx(500.0)
    assert ours["accuracy"] == 0.5


def test_broken_inputs_are_refused():
    logits, labels = case(0, 4, 3, 3)
    with pytest.raises(ValueError, match="no example"):
        classification_metrics(logits[:0], labels[:0], "abc")
    with pytest.raises(ValueError, match=r"labels must be 0\.\.2, got 0\.\.3"):
        classification_metrics(logits, np.array([0, 1, 2, 3]), "abc")
    logits[2, 1] = np.nan
    with pytest.raises(FloatingPointError, match="1 of 4 examples"):
        classification_metrics(logits, labels, "abc")


def test_prediction_rows_describe_each_example():
    logits = np.log(np.array([[0.9, 0.1], [0.7, 0.3]]))
    rows = prediction_rows(
        logits, np.array([0, 1]), ["no", "yes"],
        index=np.array([7, 3]), kind="text", inputs=["a\n  b", "x" * 400],
    )  # fmt: skip
    assert rows[0] == {
        "index": 7,
        "label": "no",
        "predicted": "no",
        "probability": pytest.approx(0.9),
        "loss": pytest.approx(-np.log(0.9)),
        "text": "a b",
    }
    assert rows[1]["label"] == "yes" and rows[1]["predicted"] == "no"
    assert rows[1]["loss"] == pytest.approx(-np.log(0.3))
    assert len(rows[1]["text"]) == 300 and rows[1]["text"].endswith("…")
    json.dumps(rows, allow_nan=False)


def test_image_paths_are_kept_whole():
    path = "/images/" + "x" * 400 + ".png"
    (row,) = prediction_rows(
        np.zeros((1, 2)), np.array([0]), "ab", index=np.array([0]), kind="image", inputs=[path]
    )
    assert row["image"] == path


def test_wilson_interval_against_the_published_values():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for correct, total, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        np.testing.assert_allclose(wilson_interval(correct, total), (low, high), atol=6e-5)
    assert wilson_interval(20, 20)[1] == 1.0
