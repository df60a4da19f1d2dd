"""Noise and augmentation change training batches alone, and are refused where they would change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from jaxft.config import default_config, override
from jaxft.experiment.changes import check_changes
from jaxft.experiment.data import open_splits
from jaxft.experiment.encoder import Slicing, make_encoder
from jaxft.models import load_architecture
from jaxft.tasks.table import TASKS


def batches(world, **fields):
    """(training, evaluation) of a run with these fields."""
    values = {
        "data.train": str(world / "train.csv"),
        "model.path": str(world / "one_block"),
        **fields,
    }
    config = override(default_config(), values)
    task = TASKS[config.task]
    splits = open_splits(config, task, ())
    architecture = load_architecture(config.model.path, num_labels=len(splits.names))
    encoder = make_encoder(
        config, task.inputs, config.model.path, architecture.limits, splits, None
    )
    return (
        encoder.training(splits.train, config, 4, Slicing()),
        encoder.evaluation(splits.eval, config, Slicing()),
    )


def test_noise_changes_training_texts_alone(world):
    plain, held = batches(world)
    noisy, held_noisy = batches(world, **{"data.token_dropout": 0.2, "data.word_swap": 0.2})
    for name, values in held[0].items():
        np.testing.assert_array_equal(held_noisy[0][name], values)
    for step in range(4):
        before, after = plain[step], noisy[step]
        changed = {name for name in before if (before[name] != after[name]).any()}
        assert changed == {"input_ids"}
    np.testing.assert_array_equal(
        plain.tokens.ids, noisy.tokens.ids
    )  # and so are those in the cache


def test_augmentation_changes_training_images_alone(world):
    image = {
        "task": "image_classification", "data.train": str(world / "images"),
        "model.path": str(world / "vit"), "data.eval_fraction": 0.25,
    }  # fmt: skip
    plain, held = batches(world, **image)
    changed, held_too = batches(
        world, **image, **{"data.augment_policy": "trivialaugment", "data.erase": 0.5}
    )
    np.testing.assert_array_equal(held_too[0]["pixel_values"], held[0]["pixel_values"])
    assert (changed[0]["pixel_values"] != plain[0]["pixel_values"]).any()
    np.testing.assert_array_equal(changed[0]["labels"], plain[0]["labels"])


@pytest.mark.parametrize("field, value", [("data.erase", 0.5), ("data.augment", "flip")])
def test_changes_of_images_are_refused_for_texts(world, field, value):
    with pytest.raises(ValueError, match=f"config.{field}=.* is for images"):
        batches(world, **{field: value})


def test_a_batch_of_one_image_cannot_be_mixed():
    config = override(default_config(), {"data.cutmix": 1.0, "train.batch_size": 1})
    with pytest.raises(ValueError, match="config.data.cutmix=1.0 mixes the images of a batch"):
        check_changes(config, "image")
    check_changes(override(config, {"train.batch_size": 2}), "image")
