"""Several labels an example, from the column of labels to the exported checkpoint."""

import csv
import json
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
import torch
import transformers

from jaxft import evaluate, load, predict, train
from jaxft.analysis.multilabel import Thresholds, multilabel_metrics, probabilities, tuned
from jaxft.tasks.multi_label import LabelSet, MultiLabel, loss
from tests import tiny

ROOT = Path(__file__).parents[2]
NAMES = ("bad", "good", "odd")


def write(path, rows=240, *, seed=0, separator="|"):
    """Sentences with a word for each of their labels, none to three."""
    rng = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "labels"])
        for _ in range(rows):
            own = [name for name in NAMES if rng.random() < {"odd": 0.2}.get(name, 0.5)]
            words = rng.choices(tiny.FILLER, k=rng.randint(1, 7))
            words += [rng.choice(tiny.WORDS[name]) for name in own]
            rng.shuffle(words)
            writer.writerow([" ".join(words), separator.join(own)])
    return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run, and its data."""
    folder = tmp_path_factory.mktemp("multi_label")
    write(folder / "train.csv")
    write(folder / "test.csv", 60, seed=9, separator=";")
    overrides = {
        "model.path": tiny.bert(folder / "bert", blocks=1, dropout=0.0, width=64),
        "data": {"train": str(folder / "train.csv"), "test": str(folder / "test.csv")},
        "data.eval_fraction": 0.25, "data.max_shapes": 1, "train.compile_cache": "",
        "train.batch_size": 16, "train.steps": 200, "optim.lr": 3e-3, "parallel.mode": "jit",
        "eval.every": "50%", "log.tensorboard": False,
    }  # fmt: skip
    return folder, train(ROOT / "configs/multi_label.py", folder / "run", overrides)


def made(rows=400, labels=6, seed=0):
    """Logits with ties that tell labels of different frequency, and the last of them not at all."""
    rng = np.random.default_rng(seed)
    truth = rng.random((rows, labels)) < np.linspace(0.5, 0.02, labels)
    signal = np.where(np.arange(labels) < labels - 1, 2.0, 0.0)
    logits = rng.normal(size=(rows, labels)) + signal * truth - 2
    return logits.round(1).astype(np.float32), truth


def test_metrics_are_those_of_scikit_learn():
    logits, truth = made()
    ours = multilabel_metrics(logits, truth, "abcdef")
    half = probabilities(logits) >= 0.5
    for average in ("micro", "macro"):
        scores = sklearn.metrics.precision_recall_fscore_support(
            truth, half, average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), scores, strict=False):
            assert ours[f"{name}_{average}"] == pytest.approx(value)
        expected = sklearn.metrics.average_precision_score(truth, logits, average=average)
        assert ours[f"average_precision_{average}"] == pytest.approx(expected)
    ranked = sklearn.metrics.label_ranking_average_precision_score(truth, logits)
    assert ours["label_ranking_average_precision"] == pytest.approx(ranked)
    assert ours["hamming_loss"] == pytest.approx(sklearn.metrics.hamming_loss(truth, half))
    assert ours["subset_accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, half))
    expected = sklearn.metrics.log_loss(truth.ravel(), probabilities(logits.ravel()))
    assert ours["loss"] == pytest.approx(expected)
    own = sklearn.metrics.f1_score(truth, half, average=None)
    assert [row["f1"] for row in ours["per_class"].values()] == pytest.approx(own)


def test_thresholds_are_the_best_ones_and_used_on_other_examples():
    logits, truth = made()
    found, scores = tuned(logits, truth), probabilities(logits)
    grid = np.unique(scores[truth])

    def f1(threshold, label=slice(None)):
        return sklearn.metrics.f1_score(
            truth[:, label].ravel(), scores[:, label].ravel() >= threshold
        )

    assert f1(found.common) == pytest.approx(max(map(f1, grid)))
    for label in range(5):
        own = found.single[label]
        assert own not in np.unique(scores) and f1(own, label) == pytest.approx(
            max(f1(t, label) for t in grid)
        )
    # Too few have the last one, and nothing tells it.
    assert truth[:, 5].sum() < 10 and found.single[5] == found.common
    ours = multilabel_metrics(logits, truth, "abcdef")
    assert ours["f1_micro_common"] == pytest.approx(f1(found.common))
    assert ours["f1_micro_common"] > ours["f1_micro"]
    assert ours["f1_macro_tuned"] > ours["f1_macro_common"] > ours["f1_macro"]
    others = made(seed=1)
    again = multilabel_metrics(*others, "abcdef", found)
    applies = probabilities(others[0]) >= found.single
    expected = sklearn.metrics.f1_score(others[1], applies, average="micro")
    assert again["f1_micro_tuned"] == pytest.approx(expected)
    assert again["thresholds"] == found.to_json()["thresholds"]
    kept = Thresholds.of(json.loads(json.dumps(ours)), 6)
    np.testing.assert_allclose(kept.single, found.single, atol=1e-6)
    for damaged in ({}, {"threshold": 0.1, "thresholds": [0.1]}, {"thresholds": "no"}):
        assert Thresholds.of(damaged, 6).single.tolist() == [0.5] * 6


def test_what_is_undefined_is_zero_and_what_is_not_finite_is_an_error():
    none = multilabel_metrics(np.full((3, 2), -9.0), np.zeros((3, 2), bool), "ab")
    assert none["f1_macro"] == none["average_precision_macro"] == none["f1_micro_tuned"] == 0
    assert none["label_ranking_average_precision"] == none["subset_accuracy"] == 1
    with pytest.raises(FloatingPointError, match="1 of 2 examples"):
        multilabel_metrics(np.array([[0, np.nan], [0, 0]]), np.zeros((2, 2), bool), "ab")
    with pytest.raises(ValueError, match="no example"):
        multilabel_metrics(np.zeros((0, 2)), np.zeros((0, 2), bool), "ab")
    silent = multilabel_metrics(np.full((9, 2), -1.0), np.ones((9, 2), bool), "ab")
    assert "no label of 9 examples" in MultiLabel("text").warnings(silent)[0]


def test_the_loss_and_its_gradient_are_pytorchs():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 3)), rng.integers(0, 2, (5, 3)).astype(np.float32)
    batch = {"labels": labels, "weight": np.array([1, 1, 0, 1, 1], np.float32)}

    def mean(logits):
        total, weight = loss({"logits": logits}, batch)
        return total / weight

    value, gradient = jax.value_and_grad(mean)(jnp.asarray(logits, jnp.float32))
    given = torch.tensor(logits, requires_grad=True)
    kept = torch.tensor([0, 1, 3, 4])
    expected = torch.nn.BCEWithLogitsLoss()(given[kept], torch.tensor(labels).double()[kept])
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(gradient, given.grad, atol=1e-7)


def test_a_run_learns_and_scores_test_data_with_the_thresholds_of_the_evaluation_data(world):
    folder, result = world
    assert result.test["f1_micro_tuned"] > 0.85 and result.test["average_precision_macro"] > 0.9
    assert result.test["thresholds"] == result.eval["thresholds"]
    assert result.summary["labels"] == list(NAMES) and result.test["examples"] == 60
    rows = [json.loads(x) for x in (folder / "run/predictions/test.jsonl").read_text().splitlines()]
    assert len(rows) == 60 and set(rows[0]) >= {"index", "labels", "predicted", "loss", "text"}
    right = np.mean([row["labels"] == row["predicted"] for row in rows])
    assert right == pytest.approx(result.test["subset_accuracy_tuned"])
    assert all(set(row["probabilities"]) >= {*row["labels"], *row["predicted"]} for row in rows)


def test_the_report_shows_every_label_and_threshold(world):
    page = (world[0] / "run/report.html").read_text()
    assert "micro F1, tuned thresholds" in page and "largest loss" in page
    assert "one for each label" in page and "something unexpected" not in page


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_predict_writes_the_labels_joined_and_their_probabilities(world, tmp_path, suffix):
    folder, result = world
    output = tmp_path / f"out{suffix}"
    command = ["predict", f"--run={folder}/run", f"--input={folder}/test.csv", f"--output={output}"]
    assert predict.main(command) == 0
    assert predict.main(command) == 0  # over its own output
    read = csv.DictReader if suffix == ".csv" else lambda lines: map(json.loads, lines)
    rows = list(read(output.read_text().splitlines()))
    kept = [json.loads(x) for x in (folder / "run/predictions/test.jsonl").read_text().splitlines()]
    assert [row["predicted"] for row in rows] == ["|".join(row["predicted"]) for row in kept]
    thresholds = dict(zip(NAMES, result.eval["thresholds"], strict=True))
    for row in rows:
        above = [name for name in NAMES if float(row[f"probability_{name}"]) >= thresholds[name]]
        assert "|".join(above) == row["predicted"]


def test_the_export_is_one_of_transformers_with_the_same_probabilities_and_thresholds(world):
    folder, result = world
    texts = ["a fine day", "it was cold and strange", "the film"]
    found = load(folder / "run").predict(texts)
    assert found[1].labels == ("bad", "odd") and isinstance(found[1], LabelSet)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(result.best)
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.fitted_on_evaluation["thresholds"] == result.eval["thresholds"]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(result.best / "tokenizer.json"), pad_token="[PAD]"
    )
    with torch.no_grad():
        expected = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits.sigmoid()
    scores = [list(answer.probabilities.values()) for answer in found]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    again = load(result.best)  # by what its config.json says
    assert [answer.labels for answer in again.predict(texts)] == [a.labels for a in found]
    metrics = evaluate(result.best, folder / "test.csv")
    assert metrics["f1_micro_tuned"] == pytest.approx(result.test["f1_micro_tuned"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"eval.metric": "accuracy"}, "no metric of .*multi_label.*average_precision_macro"),
        ({"train.label_smoothing": 0.1}, "label_smoothing=0.1 has no meaning"),
        ({"data.examples_per_class": 2}, "examples_per_class=2 has no meaning"),
        ({"data.text": ("text",), "data.label": "text"}, "'text' is the input and the label"),
        ({"task": "text_classification", "eval.metric": "loss"}, "joined by.*task='multi_label'"),
        ({"data.eval": "other.csv"}, "data.eval: other.csv, line 3: the label 'god' is unknown.*good"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_cannot_be_is_one_line(world, tmp_path, change, message):
    folder, _ = world
    (tmp_path / "other.csv").write_text("text,labels\nfine,good\nfine,god|bad\n")
    change = {k: str(tmp_path / v) if v == "other.csv" else v for k, v in change.items()}
    (tmp_path / "train.csv").write_text(
        "text,labels\n" + "a,good|bad\nb,bad\nc,good\nd,bad|good\n" * 3
    )
    given = {
        "model.path": str(folder / "bert"), "data.train": str(tmp_path / "train.csv"), **change
    }  # fmt: skip
    with pytest.raises(ValueError, match=message) as error:
        train(ROOT / "configs/multi_label.py", tmp_path / "run", given)
    assert "\n" not in str(error.value)


def test_images_have_several_labels_too(tmp_path):
    folder = Path(tiny.images(tmp_path / "images"))
    files = sorted(folder.glob("*/*.png"))
    lines = [f"{file},{file.parent.name}{'|any' if i % 2 else ''}" for i, file in enumerate(files)]
    (tmp_path / "train.csv").write_text("\n".join(["image,labels", *lines]))
    result = train(
        ROOT / "configs/image_multi_label.py", tmp_path / "run",
        {"model.path": tiny.vit(tmp_path / "vit", blocks=1), "data.train": str(tmp_path / "train.csv"),
         "data.eval": str(tmp_path / "train.csv"), "train.steps": 4, "train.batch_size": 8,
         "train.compile_cache": "", "log.tensorboard": False, "parallel.mode": "jit"},
    )  # fmt: skip
    assert json.loads((result.best / "config.json").read_text())["problem_type"] == (
        "multi_label_classification"
    )
    found = load(result.best).predict([files[0]])[0]
    assert list(found.probabilities) == ["any", *sorted({file.parent.name for file in files})]
    page = (tmp_path / "run/report.html").read_text()
    assert "<img" in page and "something unexpected" not in page
