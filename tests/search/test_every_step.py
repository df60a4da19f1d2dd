"""What steps are made of besides products has an axis of trials, too: moving statistics, scans, averages."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from jaxft.config import default_config, override
from jaxft.search.trials.trial import Trial, run_trials
from jaxft.search.trials.worlds import Worlds
from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    tiny.resnet(folder / "resnet")
    tiny.images(folder / "images")
    tiny.language_model(folder / "causal", "causal")
    tiny.bert(folder / "bert", blocks=1)
    tiny.texts(folder / "train.csv", 48)
    rng = random.Random(0)
    with (folder / "texts.jsonl").open("w") as file:
        for _ in range(40):
            words = rng.choices(tiny.FILLER, k=rng.randint(2, 20))
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    return folder


STEPS = {
    "moving statistics": {
        "task": "image_classification", "model.path": "resnet", "data.train": "images",
        "model.batch_stats": "train", "data.augment": "flip", "train.batch_size": 4,
    },
    "logits of a vocabulary, in scans, and of microbatches": {
        "task": "causal_lm", "model.path": "causal", "data.train": "texts.jsonl", "eval.metric": "loss",
        "train.batch_size": 8, "train.accumulate": 2, "model.remat": True, "optim.optimizer": "sgd",
    },
    "averages, another optimizer, two passes": {
        "task": "text_classification", "model.path": "bert", "data.train": "train.csv",
        "train.batch_size": 8, "optim.average": "ema", "optim.optimizer": "sgd", "train.r_drop": 1.0,
        "optim.decay_towards": "pretrained", "optim.wise_ft": 0.5,
    },
    "gradients at other weights": {
        "task": "text_classification", "model.path": "bert", "data.train": "train.csv",
        "train.batch_size": 8, "optim.sam_radius": 0.05,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_it_is_as_alone(folder, tmp_path, name):
    changes = dict(STEPS[name])
    for field in ("model.path", "data.train"):
        changes[field] = str(folder / changes[field])
    fixed = {"train.steps": 4, "eval.every": "2 steps", "data.max_shapes": 1, "train.compile_cache": "",
             "parallel.mode": "jit", "log.tensorboard": False}  # fmt: skip
    # By Adam and Lion, biases of keys would move as the rounding of their gradients, which are 0, says.
    rates = [{"optim.lr": 1e-3}, {"optim.lr": 1e-2, "optim.weight_decay": 0.2}]
    trials = [
        Trial(str(n), override(default_config(), fixed, changes, rate))
        for n, rate in enumerate(rates)
    ]
    worlds = Worlds(tmp_path / "cache")
    alone, together = (
        run_trials(trials, directory=tmp_path / how, worlds=worlds, vmapped=how, keep_weights=True)
        for how in ("off", "on")
    )
    for one, other in zip(alone, together, strict=True):
        for row, same in zip(one.history, other.history, strict=True):
            np.testing.assert_allclose(same["train_loss"], row["train_loss"], rtol=1e-4)
            np.testing.assert_allclose(same["loss"], row["loss"], rtol=1e-4)
        assert one.weights.keys() == other.weights.keys()
        for path in one.weights:
            np.testing.assert_allclose(
                other.weights[path], one.weights[path], rtol=1e-3, atol=1e-4, err_msg=path
            )
