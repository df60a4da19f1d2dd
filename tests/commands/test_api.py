"""From Python: train, evaluate and load, whatever was imported first, in any thread."""

from __future__ import annotations

import asyncio
import importlib
import json
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import jaxft
from jaxft import api, config
from jaxft.experiment.directory import RunDirectory
from jaxft.training.logs import Logs


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


# Importing


@pytest.mark.parametrize(
    "first", ["", "jaxft.train", "jaxft.evaluate", "jaxft.predict", "jaxft.api", "jaxft.optim"]
)
def test_the_names_are_callable_in_every_order_of_imports(monkeypatch, first):
    for name in [name for name in sys.modules if name.partition(".")[0] == "jaxft"]:
        if name.count(".") < 2 and name not in ("jaxft.optim", "jaxft.models"):
            monkeypatch.delitem(sys.modules, name)
    if first:
        importlib.import_module(first)
    space: dict = {}
    exec("from jaxft import evaluate, load, train\nimport jaxft, jaxft.train", space)
    for name in ("train", "evaluate", "load"):
        assert callable(space[name]) and callable(getattr(space["jaxft"], name)), name
    assert callable(space["train"].main) and callable(space["evaluate"].main)


def test_what_is_not_there_is_an_attribute_error():
    assert {"train", "evaluate", "load"} <= set(dir(jaxft))
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        jaxft.fit  # noqa: B018


# Prediction


def test_predictions_are_those_of_the_command(trained):
    lines = (trained / "run" / "predictions" / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    model = jaxft.load(trained / "run")
    found = model.predict([row["text"] for row in rows])
    assert [p.label for p in found] == [row["predicted"] for row in rows]
    np.testing.assert_allclose(
        [p.probability for p in found], [row["probability"] for row in rows], rtol=1e-4
    )
    assert model.labels == ("bad", "good", "odd") == tuple(found[0].probabilities)
    assert sum(found[0].probabilities.values()) == pytest.approx(1)
    exported = jaxft.load(trained / "run" / "best")
    np.testing.assert_array_equal(exported.logits(["fine", "cold"]), model.logits(("fine", "cold")))
    assert model.predict([]) == [] and model.logits(iter(())).shape == (0, 3)


def test_pairs_are_two_texts(trained):
    model = jaxft.load(str(trained / "run" / "best"))
    together = model.logits([("a fine day", "it was cold"), ("odd", "rare")])
    assert together.shape == (2, 3) and together.dtype == np.float32
    turned = model.logits([["it was cold", "a fine day"]])
    assert np.abs(together[0] - turned[0]).max() > 1e-6  # rounding is 1e-7


def test_images_come_as_paths_arrays_or_pillow_images(trained):
    model = jaxft.load(trained / "pictures")
    path = trained / "images" / "left" / "0.png"
    with Image.open(path) as image:
        given = [str(path), path, image.copy(), np.asarray(image)]
    found = model.logits(given)
    np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), rtol=1e-5)
    batch = model.logits(np.stack([given[3]] * 2)[..., None])
    np.testing.assert_allclose(batch, found[:2], rtol=1e-5)
    with pytest.raises(ValueError, match="input 2: there is no file"):
        model.logits([path, "nowhere.png"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a fine day", "give a list of inputs, not one str"),
        (3, "give a list of inputs, not one int"),
        (["fine", 3], "input 2 is no text"),
        (["fine", None], "input 2 is no text"),
        ([("a", "b", "c")], "input 1 is no text and no pair"),
        (["fine", "b\ud800"], "input 2 holds half of a surrogate pair"),
        (["fine", ("a", "b")], "input 2: texts and pairs"),
        ([("a", "b")], "was trained on single texts"),
    ],
)
def test_wrong_inputs_are_named(trained, given, said):
    with pytest.raises(ValueError, match=said):
        jaxft.load(trained / "run").predict(given)


def test_it_works_outside_the_main_thread(trained):
    results: list = []

    def work():
        results.append(jaxft.load(trained / "run").predict(["fine"])[0])
        results.append(jaxft.evaluate(trained / "run")["accuracy"])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    here = jaxft.load(trained / "run").predict(["fine"])[0]
    assert results == [here, summary(trained / "run")["test"]["accuracy"]]


# Evaluation


def test_evaluate_gives_the_metrics(trained, capsys):
    expected = summary(trained / "run")["test"]
    found = jaxft.evaluate(trained / "run")
    assert found["accuracy"] == expected["accuracy"] and "confusion" in found
    there = jaxft.evaluate(
        trained / "run" / "best", trained / "test.csv", text="text", label="label"
    )
    assert there["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert not capsys.readouterr().out
    with pytest.raises(ValueError, match="no such file"):
        jaxft.evaluate(trained / "run", trained / "tset.csv")


# Training


def config_of(run: Path) -> config.ConfigDict:
    return RunDirectory(run).config()


def test_a_finished_run_is_only_read(trained):
    made = config_of(trained / "run")
    result = jaxft.train(made, trained / "run")
    expected = summary(trained / "run")
    assert result.metrics == result.test == expected["test"] and result.eval == expected["eval"]
    assert result.best.is_dir() and result.report.is_file()
    assert result.load().predict(["fine"])[0].label in ("bad", "good", "odd")
    with pytest.raises(ValueError, match="another config(.|\n)*optim.lr: 0.005 -> 0.1"):
        jaxft.train(made, trained / "run", {"optim.lr": 0.1})


def test_ctrl_c_saves_and_the_same_call_continues(trained, tmp_path, monkeypatch):
    original = Logs.train

    def interrupt(self, at, *rest):
        original(self, at, *rest)
        if at == 2:
            signal.raise_signal(signal.SIGINT)

    made, workdir = config_of(trained / "run"), tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Logs, "train", interrupt)
        jaxft.train(made, workdir)
    assert (workdir / "checkpoints" / "2").is_dir()

    async def cell():  # of a notebook, which runs inside an event loop
        return jaxft.train(made, workdir)

    result = asyncio.run(cell())
    assert result.summary["steps"] == 120 and result.directory == workdir
    expected = load_file(trained / "run" / "best" / "model.safetensors")
    for name, value in load_file(result.best / "model.safetensors").items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_a_config_takes_fields_dotted_or_nested(trained):
    made = api.make_config(
        config.default_config(), {"optim": {"lr": 1e-4}, "data.text": ["a", "b"]}
    )
    assert made.optim.lr == 1e-4 and made.data.text == ("a", "b") and made.train.epochs == 3
    steps = api.make_config(made, {"train.steps": 7})
    assert (steps.train.steps, steps.train.epochs) == (7, None)
    epochs = api.make_config(steps, {"train.epochs": 2.0})
    assert (epochs.train.steps, epochs.train.epochs) == (None, 2.0)
    own = config.default_config()
    own.train.steps = 7
    assert api.make_config(own).train.epochs is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"optim.lrr": 1}, "config.optim.lrr does not exist"),
        ({"optim": {"lr": "fast"}}, "config.optim.lr='fast' is not a number"),
        ({"train.steps": 3, "train.epochs": 2}, "both given"),
        ({"optim": 3}, "config.optim is a section"),
    ],
)
def test_a_wrong_field_is_a_value_error(overrides, said):
    with pytest.raises(ValueError, match=said):
        api.make_config(config.default_config(), overrides)
    with pytest.raises(ValueError, match="a config is a ConfigDict or"):
        api.make_config({"optim": {"lr": 1}})
