"""Regression from the column of numbers to the exported checkpoint."""

import csv
import decimal
import json
import random
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import transformers

from jaxft import evaluate, load, predict, train
from jaxft.analysis.regression import regression_metrics
from jaxft.data.files import table
from jaxft.data.numbers import find_number_column, read_numbers
from jaxft.tasks.regression import Estimate, Regression
from tests import tiny

ROOT = Path(__file__).parents[2]
MOOD = {"good": 1.5, "bad": -1.0, "odd": 0.25}


def write(path, rows=96, *, seed=0, spoil=()):
    """Sentences whose number is decided by one word of them, nearly; `spoil`: (row, cell) pairs."""
    rng = random.Random(seed)
    spoiled = dict(spoil)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "score"])
        for i in range(rows):
            mood = rng.choice(list(MOOD))
            words = [*rng.choices(tiny.FILLER, k=rng.randint(1, 9)), rng.choice(tiny.WORDS[mood])]
            rng.shuffle(words)
            number = MOOD[mood] + rng.uniform(-0.05, 0.05)
            writer.writerow([" ".join(words), spoiled.get(i, f"{number:.3f}")])
    return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run, and its data."""
    folder = tmp_path_factory.mktemp("regression")
    write(folder / "train.csv", spoil=[(3, "n/a"), (50, "inf")])
    write(folder / "test.csv", 40, seed=9)
    overrides = {
        "model.path": tiny.bert(folder / "bert", blocks=1, dropout=0.0),
        "data": {"train": str(folder / "train.csv"), "test": str(folder / "test.csv")},
        "data.on_bad_row": "skip", "data.max_shapes": 1, "train.compile_cache": "",
        "train.batch_size": 8, "train.steps": 150, "optim.lr": 5e-3, "parallel.mode": "jit",
        "eval.every": "50%", "log.tensorboard": False,
    }  # fmt: skip
    result = train(ROOT / "configs/text_regression.py", folder / "run", overrides)
    return folder, result


def test_metrics_are_those_of_scipy_and_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 200) * 1e3  # with many ties
    predicted = labels + rng.normal(size=200) * 900
    ours = regression_metrics(predicted, labels)
    assert ours["pearson"] == pytest.approx(scipy.stats.pearsonr(predicted, labels).statistic)
    assert ours["spearman"] == pytest.approx(scipy.stats.spearmanr(predicted, labels).statistic)
    assert ours["r2"] == pytest.approx(sklearn.metrics.r2_score(labels, predicted))
    assert ours["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(labels, predicted))
    assert ours["rmse"] ** 2 == pytest.approx(ours["loss"]) == pytest.approx(
        sklearn.metrics.mean_squared_error(labels, predicted)
    )  # fmt: skip
    assert ours["examples"] == 200


def test_what_is_undefined_is_zero_and_what_is_not_finite_is_an_error():
    flat = regression_metrics(np.array([1.0, 1.0]), np.array([0.0, 2.0]))
    assert (flat["pearson"], flat["spearman"], flat["loss"]) == (0, 0, 1)
    tiny_numbers = regression_metrics(np.array([1e-300, 3e-300]), np.array([1.0, 2.0]))
    assert tiny_numbers["pearson"] == pytest.approx(1)
    with pytest.raises(FloatingPointError, match="1 of 2 examples"):
        regression_metrics(np.array([np.nan, 1.0]), np.array([0.0, 2.0]))
    with pytest.raises(ValueError, match="no example"):
        regression_metrics(np.zeros(0), np.zeros(0))


def test_numbers_are_read_as_they_are():
    values = [1, -2.5, "3.5", " 1e-3 ", decimal.Decimal("0.1"), np.float32(4), np.int64(7)]
    numbers = read_numbers(table("t.csv", {"score": values}), "score")
    assert numbers.values.tolist() == [1, -2.5, 3.5, 1e-3, 0.1, 4, 7]
    assert numbers.take(np.array([2, 0])).rows.tolist() == [2, 0]
    batch = numbers.fill(np.array([[1, -1]]), {})
    assert batch["labels"].tolist() == [[-2.5, 0]] and batch["labels"].dtype == np.float32
    assert batch["weight"].tolist() == [[1, 0]] and batch["index"].tolist() == [[1, -1]]


@pytest.mark.parametrize(
    "bad", ["", "n/a", "nan", "inf", 1e30, None, True, "1_0", [1.0], "3,5"], ids=repr
)
def test_what_is_no_number_is_named_or_dropped(bad):
    source = table("t.csv", {"score": [1, bad, 2, bad]}, lines=[2, 3, 4, 5])
    with pytest.raises(ValueError, match=r"t.csv, line 3: .*'score'.*2 rows.*lines 3, 5") as error:
        read_numbers(source, "score", advice=" by dropping")
    assert str(error.value).endswith("by dropping") and "\n" not in str(error.value)
    kept = read_numbers(source, "score", drop_bad=True)
    assert kept.rows.tolist() == [0, 2] and kept.dropped.tolist() == [1, 3]


def test_a_column_of_classes_is_none_of_numbers():
    with pytest.raises(ValueError, match="in no row .'good'.*text_classification"):
        read_numbers(table("t.csv", {"label": ["good", "bad"]}), "label")
    named = table("t", {"label": [0, 1]}, class_names={"label": ("good", "bad")})
    with pytest.raises(ValueError, match="stand for classes .good.*text_classification"):
        read_numbers(named, "label")
    with pytest.raises(ValueError, match="no column 'scoer'.*did you mean 'score'"):
        find_number_column(table("t.csv", {"score": [1.0]}), "scoer")


def test_a_held_out_share_has_low_and_high_numbers_alike():
    values = np.random.default_rng(0).permutation(200) ** 2.0
    numbers = read_numbers(table("t.csv", {"score": values.tolist()}), "score")
    strata = numbers.strata()
    assert np.bincount(strata).tolist() == [20] * 10
    assert all(values[strata == k].max() < values[strata == k + 1].min() for k in range(9))
    assert not numbers.take(np.arange(5)).strata().any()  # too few to tell apart


def test_a_run_learns_and_says_what_it_left_out(world):
    folder, result = world
    assert result.metrics["pearson"] > 0.9 and result.metrics["loss"] < 0.2
    assert result.summary["best_metric"]["name"] == "loss"
    evals = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    losses = {e["step"]: e["loss"] for e in evals if e["kind"] == "eval" and e["split"] == "eval"}
    assert result.summary["best_step"] == min(losses, key=losses.get)
    data = result.summary["data"]
    assert data["train"] + data["eval"] == 94 and data["test"] == 40
    rows = [json.loads(x) for x in (folder / "run/predictions/test.jsonl").read_text().splitlines()]
    assert len(rows) == 40 and set(rows[0]) >= {"index", "label", "predicted", "error", "text"}
    mean = np.mean([row["error"] ** 2 for row in rows])
    assert mean == pytest.approx(result.metrics["loss"])


def test_the_report_shows_the_errors(world):
    page = (world[0] / "run/report.html").read_text()
    assert "Pearson correlation" in page and "correlate with" in page
    assert page.count("<svg") >= 5 and "The largest errors" in page
    assert "something unexpected" not in page and "classified" not in page


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predict_writes_a_number(world, tmp_path, suffix):
    folder, _ = world
    output = tmp_path / f"out{suffix}"
    command = ["predict", f"--run={folder}/run", f"--input={folder}/test.csv", f"--output={output}"]
    assert predict.main(command) == 0
    assert predict.main(command) == 0  # over its own output
    if suffix == ".parquet":
        import pyarrow.parquet

        column = pyarrow.parquet.read_table(output)["predicted_value"].to_pylist()
    elif suffix == ".csv":
        column = [
            float(row["predicted_value"]) for row in csv.DictReader(output.read_text().splitlines())
        ]
    else:
        column = [json.loads(line)["predicted_value"] for line in output.read_text().splitlines()]
    rows = [json.loads(x) for x in (folder / "run/predictions/test.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(column, [row["predicted"] for row in rows], atol=1e-5)


def test_the_export_is_one_of_transformers_with_the_same_numbers(world, capsys):
    folder, result = world
    texts = ["a fine day", "it was cold and dark", "the film"]
    found = load(folder / "run").predict(texts)
    assert all(isinstance(entry, Estimate) for entry in found)
    config = json.loads((result.best / "config.json").read_text())
    assert config["problem_type"] == "regression" and len(config["id2label"]) == 1
    model = transformers.AutoModelForSequenceClassification.from_pretrained(result.best)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(result.best / "tokenizer.json"), pad_token="[PAD]"
    )
    given = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = model(**given).logits[:, 0].numpy()
    np.testing.assert_allclose([entry.value for entry in found], expected, atol=1e-5)
    again = load(result.best)  # by what its config.json says
    assert [e.value for e in again.predict(texts)] == pytest.approx([e.value for e in found])
    metrics = evaluate(result.best, folder / "test.csv")
    assert metrics["loss"] == pytest.approx(result.test["loss"], rel=1e-4)
    assert evaluate.main(["evaluate", f"--run={folder}/run"]) == 0
    assert "pearson" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, message",
    [
        ({"eval.metric": "accuracy"}, "no metric of .*text_regression.*loss, rmse"),
        ({"data.classes": ("a", "b")}, "config.data.classes.*no meaning for .*text_regression"),
        ({"train.label_smoothing": 0.1}, "label_smoothing=0.1 has no meaning"),
        ({"data.on_bad_row": "error"}, "line 5: column 'score' holds 'n/a'.*on_bad_row='skip'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_one_line(world, tmp_path, change, message):
    folder, _ = world
    given = {
        "model.path": str(folder / "bert"), "data.train": str(folder / "train.csv"),
        "data.on_bad_row": "drop", **change,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message) as error:
        train(ROOT / "configs/text_regression.py", tmp_path / "run", given)
    assert "\n" not in str(error.value)


def test_a_column_of_one_number_is_refused_for_training_alone():
    source, task = table("t.csv", {"text": ["a", "b"], "score": [1.0, 1.0]}), Regression("text")
    from jaxft.tasks.contract import Reading

    with pytest.raises(ValueError, match="'score' holds 1 in every row"):
        task.read(source, "score", ("text",), Reading())
    assert len(task.read(source, "score", ("text",), Reading(names=()))) == 2


@pytest.mark.slow
def test_images_have_numbers_too(tmp_path):
    """How bright an image is; paths in the table are relative to it."""
    from PIL import Image

    rng = np.random.default_rng(0)
    lines = ["image,score"]
    for i, level in enumerate(rng.integers(20, 236, 48)):
        pixels = np.clip(rng.normal(level, 15, (8, 8, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{level / 100}")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    result = train(
        ROOT / "configs/image_regression.py", tmp_path / "run",
        {"model.path": tiny.vit(tmp_path / "vit", blocks=1), "data.train": str(tmp_path / "train.csv"),
         "data.eval_fraction": 0.25, "train.steps": 40, "train.batch_size": 12, "optim.lr": 5e-3,
         "eval.every": "100%", "train.compile_cache": "", "log.tensorboard": False,
         "parallel.mode": "jit"},
    )  # fmt: skip
    assert result.eval["pearson"] > 0.8
    model = transformers.AutoModelForImageClassification.from_pretrained(result.best)
    assert model.config.problem_type == "regression" and model.config.num_labels == 1
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    found = [answer.value for answer in load(result.best).predict(files)]
    assert [round(x, 4) for x in found] == [
        round(answer.value, 4) for answer in load(tmp_path / "run").predict(files)
    ]
    page = (tmp_path / "run/report.html").read_text()
    assert page.count("<img") >= 12 and "something unexpected" not in page
