"""jaxft.soup: trials of a search become one checkpoint, or several and the mean of what they say."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft import evaluate, predict, soup
from jaxft.config import override
from jaxft.search.trials.progress import Ended
from jaxft.search.trials.record import Record
from jaxft.search.trials.trial import Trial, run_trials
from jaxft.terminal import config_file
from jaxft.terminal.errors import run_command
from tests.worlds import ROOT, fields

RATES = (3e-3, 1e-3, 1e-2)


def trials(world, **changes) -> list[Trial]:
    own = fields(world, "train.csv", 16, **{"model.path": str(world / "one_block")})
    short = {
        "train.steps": 6,
        "eval.every": "3 steps",
        "optim.frozen": (".*embeddings.*",),
        "eval.metric": "accuracy",
    }
    loaded = config_file.load(f"{ROOT}/configs/text_classification.py", [])
    base = override(loaded, own, short, {"data.test": str(world / "test.csv")}, changes)
    return [
        Trial(f"{number:04d}", override(base, {"optim.lr": rate}))
        for number, rate in enumerate(RATES)
    ]


@pytest.fixture(scope="module")
def search(world, tmp_path_factory):
    """A search whose trials kept what they gave, and one whose trials did not: (folder of both, outcomes)."""
    folder = tmp_path_factory.mktemp("search")
    kept = run_trials(
        trials(world), directory=folder / "kept", keep_weights=True, keep_predictions=True
    )
    recorded(folder / "bare", [one.trial for one in kept], [one.best["accuracy"] for one in kept])
    return folder, kept


def recorded(directory, trials: list[Trial], accuracies: list[float]) -> None:
    """A search of which nothing but the metric was kept."""
    record = Record(directory / "trials", weights=False, predictions=False)
    for trial, accuracy in zip(trials, accuracies, strict=True):
        row = {"step": 6, trial.config.eval.metric: accuracy}
        record.write(trial.name, trial.config, Ended((row,), row, ""), 1.0)


def refused(arguments, capsys) -> str:
    assert run_command(soup.main, ["soup", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("jaxft: error: ") and "\n" not in error, error
    return error


@pytest.mark.slow
def test_the_soup_is_a_checkpoint_with_the_mean_of_the_weights(search, world, tmp_path, capsys):
    folder, kept = search
    out = tmp_path / "out"
    given = [f"--trials={folder / 'kept'}", f"--output={out}", "--kind=uniform", "--ensemble"]
    assert soup.main(["soup", *given]) == 0
    shown = capsys.readouterr().out
    found = json.loads((out / "soup.json").read_text())
    assert not (out / "trials").exists()  # nothing was run again
    assert found["rows"].keys() == {
        "best trial", "uniform soup", "greedy soup", "mean of the logits",
    }  # fmt: skip
    values = {name: value for name, (value, _) in found["rows"].items()}
    metric = found["metric"]
    assert values["best trial"] == pytest.approx(max(one.best[metric] for one in kept))
    assert values["greedy soup"] >= values["best trial"] and f"{values['greedy soup']:.4f}" in shown

    weights, source = (
        load_file(out / "soup/model.safetensors"),
        load_file(world / "one_block/model.safetensors"),
    )
    bias = "classifier/bias"
    mean = np.mean([one.weights[bias] for one in kept], axis=0)
    np.testing.assert_allclose(weights["classifier.bias"], mean, rtol=1e-6)
    name = next(name for name in source if "word_embeddings" in name)
    np.testing.assert_array_equal(weights[name], source[name])  # frozen
    assert "mean of those of 3 trained models" in (out / "soup/README.md").read_text()
    # What was said of it is what `evaluate` says of the checkpoint.
    report = tmp_path / "metrics.json"
    data = world / "test.csv"
    assert (
        evaluate.main(["evaluate", f"--run={out / 'soup'}", f"--data={data}", f"--output={report}"])
        == 0
    )
    again = json.loads(report.read_text())
    assert again[metric] == pytest.approx(found["rows"]["uniform soup"][1], abs=1e-6)

    # The ensemble: its rows are those of the mean of the logits, its members are the trials.
    logits = np.mean([one.predicted["logits"] for one in kept], axis=0)
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    right = np.mean([row["predicted"] == row["label"] for row in rows])
    assert right == pytest.approx(values["mean of the logits"])
    names = sorted({row["label"] for row in rows})
    assert [row["predicted"] for row in rows] == [names[i] for i in logits.argmax(1)]
    best = load_file(out / f"members/{kept[0].trial.name}/model.safetensors")
    np.testing.assert_array_equal(best["classifier.bias"], kept[0].weights[bias])
    # And `predict` and `evaluate` take it as one model, on rows that it has not been asked of.
    spoken = [f"--run={out}", f"--input={data}", f"--output={tmp_path / 'said.jsonl'}"]
    assert predict.main(["predict", *spoken]) == 0
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    right = np.mean([row["predicted"] == row["label"] for row in said])
    assert right == pytest.approx(found["rows"]["mean of the logits"][1])
    for one in kept:  # its probabilities are of the mean of what they say
        member = out / "members" / one.trial.name
        assert predict.main(["predict", f"--run={member}", f"--input={data}",
                             f"--output={tmp_path / one.trial.name}.jsonl"]) == 0  # fmt: skip
    alone = [
        [
            json.loads(line)
            for line in (tmp_path / f"{one.trial.name}.jsonl").read_text().splitlines()
        ]
        for one in kept
    ]
    columns = [f"probability_{name}" for name in names]
    logs = np.log([[[row[name] for name in columns] for row in rows] for rows in alone]).mean(0)
    mean = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    np.testing.assert_allclose([[row[name] for name in columns] for row in said], mean, atol=1e-5)
    asked = [f"--run={out}", f"--data={data}", f"--output={tmp_path}/mean.json"]
    assert evaluate.main(["evaluate", *asked]) == 0
    assert json.loads((tmp_path / "mean.json").read_text())[metric] == pytest.approx(right)
    # Into the same folder again; but not into another's.
    assert soup.main(["soup", *given]) == 0


@pytest.mark.slow
def test_what_was_not_kept_is_run_again(search, tmp_path):
    folder, kept = search
    given = [f"--trials={folder / 'bare'}", f"--output={tmp_path / 'out'}", "--top=2"]
    assert soup.main(["soup", *given]) == 0
    assert len(list((tmp_path / "out/trials").glob("*.npz"))) == 2
    other = [f"--trials={folder / 'kept'}", f"--output={tmp_path / 'other'}", "--top=2"]
    assert soup.main(["soup", *other]) == 0
    first, second = (
        load_file(tmp_path / name / "soup/model.safetensors") for name in ("out", "other")
    )
    for name in second:  # to rounding: two trials in one program, where there were three
        np.testing.assert_allclose(first[name], second[name], rtol=1e-5, atol=1e-7)


def test_mistakes_are_one_line(world, tmp_path, capsys):
    given, out = f"--trials={tmp_path / 'search'}", f"--output={tmp_path / 'out'}"
    recorded(tmp_path / "search", trials(world), [0.5, 0.6, 0.7])
    assert "at least 2" in refused([given, out, "--top=1"], capsys)
    assert "greedy or uniform" in refused([given, out, "--kind=best"], capsys)
    assert "0 trials" in refused([f"--trials={tmp_path / 'none'}", out], capsys)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    assert "left as it is" in refused([given, f"--output={tmp_path / 'mine'}"], capsys)
    first, second, third = trials(world)
    other = dataclasses.replace(second, config=override(second.config, {"data.eval_fraction": 0.3}))
    recorded(tmp_path / "data", [first, other, third], [0.5, 0.6, 0.7])
    assert "config.data.eval_fraction" in refused([f"--trials={tmp_path / 'data'}", out], capsys)
    norms = {
        "model.path": str(world / "resnet"),
        "data.train": str(world / "images"),
        "data.test": "",
    }
    images = config_file.load(f"{ROOT}/configs/image_classification.py", [])
    images = override(images, norms, {"model.batch_stats": "train"})
    recorded(tmp_path / "norms", [Trial("a", images), Trial("b", images)], [0.5, 0.6])
    assert "batch_stats" in refused([f"--trials={tmp_path / 'norms'}", out], capsys)
